"""hadal: grow a reasoning model from nothing, run it, and know what it cost.

Importing the package is free: it loads nothing but this line. Read `hadal.cli` first,
then `hadal.recipe`.
"""

__version__ = "0.1.0"
