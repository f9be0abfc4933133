"""`python -m hadal` is the same as the `hadal` command."""

import sys

from hadal.cli import main

if __name__ == "__main__":
    sys.exit(main())
