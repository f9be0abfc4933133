"""Imported before torch by every benchmark: the environment that hadal's commands run in."""

from hadal.environment import prepare

prepare()
