"""Operators whose best form depends on the machine, each beside a plain fallback."""
