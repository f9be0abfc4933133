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
_RELEASES = (
    "R1", "V3", "V3.1", "V2", "V2-Lite", "R1-Distill-Qwen-1.5B", "R1-Distill-Qwen-7B", "R1-Distill-Qwen-14B",
    "R1-Distill-Qwen-32B", "R1-Distill-Llama-8B", "R1-Distill-Llama-70B",
)  # fmt: skip
_REPOSITORIES = {name.lower(): f"deepseek-ai/DeepSeek-{name}" for name in _RELEASES}
"""Where the weights of each are."""
REMEDY = "Give a model's config.json."


def names() -> list[str]:
    """The short names of the shipped configs."""
    return sorted([*(path.stem for path in _FOLDER.glob("*.json")), *_ALIASES])


def shipped(name: str) -> dict[str, Any] | None:
    """The contents of a shipped config.json; None for a name that is none of them. `deepseek-` before it is allowed."""
    short = _short(name)
    return read_object(_FOLDER / f"{_ALIASES.get(short, short)}.json", REMEDY) if short in names() else None


def repository(name: str) -> str | None:
    """The Hugging Face id of a short name's weights; None for a name that is none."""
    return _REPOSITORIES.get(_short(name))


def _short(name: str) -> str:
    return name.lower().removeprefix("deepseek-ai/").removeprefix("deepseek-")


def unknown(name: str) -> UserError:
    """The error for a name that is no shipped config, no file and no folder."""
    is_path = re.search(r"[/\\]|\.json$", name) is not None
    remedy = "Give a folder or a config.json that is there." if is_path else nearest(name, names())
    return UserError(f"There is no model {name}.", remedy)
