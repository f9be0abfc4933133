"""Operators whose best form depends on the machine, each with a plain form that tests hold it to."""
