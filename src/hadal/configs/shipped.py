"""Configs by name: those that come with hadal, numbers only, and those of files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hadal.configs.reading import nearest
from hadal.errors import UserError

_FOLDER = Path(__file__).parent
_ALIASES = {"r1": "v3", "v3.1": "v3"}
"""The same shapes under another name."""


def names() -> list[str]:
    """The short names of the shipped configs."""
    return sorted([*(path.stem for path in _FOLDER.glob("*.json")), *_ALIASES])


def shipped(name: str) -> dict[str, Any] | None:
    """The contents of a shipped config.json; None for a name that is none of them. `deepseek-` before it is allowed."""
    short = name.lower().removeprefix("deepseek-ai/").removeprefix("deepseek-")
    return read_json(_FOLDER / f"{_ALIASES.get(short, short)}.json") if short in names() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; UserError where it holds something else."""
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({' '.join(str(error).split())}).", "Give a model's config.json."
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} does not hold an object.", "Give a model's config.json.")
    return data


def unknown(name: str) -> UserError:
    """The error for a name that is no shipped config, no file and no folder."""
    is_path = re.search(r"[/\\]|\.json$", name) is not None
    remedy = "Give a folder or a config.json that is there." if is_path else nearest(name, names())
    return UserError(f"There is no model {name}.", remedy)
