"""What MODEL means: a run folder, a checkpoint folder, adapters, or a Hugging Face id.

Where only its config is asked for, a file or a short name will do.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from hadal.errors import UserError
from hadal.files import read_object
from hadal.library import shipped
from hadal.library.hub import HUB_ID, download

RUNS = "runs"
"""Where commands put runs: what is not there is not looked for on the hub, although it looks like an id."""


def find_model(
    model: str | Path,
    revision: str | None = None,
    cache: Path | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of a model: a local folder as it is, an id such as `owner/name` from the hub's cache or the hub.

    weights: whether more is needed than config.json. offline: use the cache only (HF_HUB_OFFLINE=1 does the same).
    UserError where there is no such folder or id, where access has to be asked for, where the hub cannot be reached,
    and where a model has no safetensors.
    """
    path, name = Path(model), str(model)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name} is a file.", "Give the folder that holds it.")
    if isinstance(model, Path) or not HUB_ID.fullmatch(name) or path.parts[0] == RUNS:
        raise _not_there(path)
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return download(name, revision, cache, offline, weights)


def _not_there(path: Path) -> UserError:
    """The error for a name that can only be a folder's, or nothing."""
    if (repository := shipped.repository(str(path))) is not None:
        return UserError(
            f"{path} is the short name of {repository}, whose config comes with hadal and whose weights do not.",
            f"Give {repository} to download them.",
        )
    beside = [str(other) for other in path.parent.glob("*") if other.is_dir()]
    remedy = "Give a run, a checkpoint folder, or a Hugging Face id (owner/name)."
    if close := difflib.get_close_matches(str(path), beside, n=1):
        remedy = f"Did you mean {close[0]}?"
    return UserError(f"There is no folder {path}.", remedy)


def find_config(model: str) -> dict[str, Any]:
    """config.json of a folder, a file, a shipped short name or a Hugging Face id, of which nothing else is loaded."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no config.json.", "Give a run, a checkpoint folder or a config.json.")
        return read_object(path / "config.json", shipped.REMEDY)
    if path.is_file():
        return read_object(path, shipped.REMEDY)
    found = shipped.shipped(model)
    if found is not None:
        return found
    if model.count("/") != 1 or model.endswith(".json"):
        raise shipped.unknown(model)
    return read_object(find_model(model, weights=False) / "config.json", shipped.REMEDY)
