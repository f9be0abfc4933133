"""Configs by short name: those that come with hadal, numbers only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hadal.errors import UserError
from hadal.files import read_object
from hadal.reading import nearest

_FOLDER = Path(__file__).parent / "configs"
_ALIASES = {"r1": "v3", "v3.1": "v3"}
"""The same shapes under another name."""
REMEDY = "Give a model's config.json."


def names() -> list[str]:
    """The short names of the shipped configs."""
    return sorted([*(path.stem for path in _FOLDER.glob("*.json")), *_ALIASES])


def shipped(name: str) -> dict[str, Any] | None:
    """The contents of a shipped config.json; None for a name that is none of them. `deepseek-` before it is allowed."""
    short = name.lower().removeprefix("deepseek-ai/").removeprefix("deepseek-")
    return read_object(_FOLDER / f"{_ALIASES.get(short, short)}.json", REMEDY) if short in names() else None


def unknown(name: str) -> UserError:
    """The error for a name that is no shipped config, no file and no folder."""
    is_path = re.search(r"[/\\]|\.json$", name) is not None
    remedy = "Give a folder or a config.json that is there." if is_path else nearest(name, names())
    return UserError(f"There is no model {name}.", remedy)
