"""Imported before torch by every benchmark: the environment that hadal's commands run in."""

from hadal.machine.environment import prepare

prepare()
