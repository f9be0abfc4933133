"""A run's record: `run.json`, and whether a run is whole. Nothing here imports torch."""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hadal.configs.tensor_header import read_header
from hadal.errors import UserError
from hadal.files import write_json

RUN_VERSION = 1

_COMMAND = re.compile(rb'"command": ("(?:[^"\\]|\\.)+")')
_CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def read_json(path: Path, remedy: str = "Restore it, or start anew in another folder.") -> Any:
    """Reads a JSON file of a run folder. Raises UserError, with the remedy, where it cannot be read."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read {path}: {reason}.", "Check its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (it is not JSON).", remedy) from error


def write_run(run: Path, record: dict[str, Any]) -> None:
    """Writes `run.json`, with the version of the format in it."""
    write_json(Path(run) / "run.json", {"hadal_run": RUN_VERSION, **record})


def read_run(run: Path) -> dict[str, Any]:
    """Reads `run.json` of a finished or unfinished run.

    Raises UserError, with the remedy, where it is missing, unreadable, broken or of another version.
    """
    run = Path(run)
    path = run / "run.json"
    if not run.is_dir():
        raise UserError(f"{run} is not a folder.", "Grow a model first: hadal quickstart")
    if not path.is_file():
        raise UserError(
            f"{run} is not a run folder (it has no run.json).",
            "Name the folder that hadal quickstart wrote, such as runs/dense-seed0.",
        )
    record = read_json(path, anew(run))
    if not isinstance(record, dict) or "hadal_run" not in record:
        raise UserError(f"{path} was not written by hadal.", "Name the folder that hadal quickstart wrote.")
    if record["hadal_run"] != RUN_VERSION:
        raise UserError(
            f"{run} has run format {record['hadal_run']!r}, and this hadal reads format {RUN_VERSION}.",
            f"Use the hadal that wrote it, or begin again. {anew(run)}",
        )
    return record


def origin(record: Mapping[str, Any]) -> str:
    """The checkpoint that the model of a run has come from; "" where it was grown from random numbers."""
    config = record.get("config") or {}
    stages = config.get("stage") or {}
    leave = [name for name, stage in stages.items() if stage.get("kind") not in ("evaluate", "reject")]
    name = config.get("publish") or (leave[-1] if leave else "")
    while name in stages:  # back to where it began
        name = stages[name].get("from", "")
    return str(config.get("checkpoint", "")) if name == "checkpoint" else ""


def is_grown(record: Mapping[str, Any]) -> bool:
    """Whether run.json is that of a model grown from random numbers, on tasks of its own."""
    return bool(record.get("arch")) and not origin(record)


def again(run: Path) -> str:
    """The command that carries on the run in this folder: the one that began it, also where run.json is damaged."""
    for name in ("run.json", "report.json"):
        with suppress(OSError, ValueError):
            if found := _COMMAND.search((run / name).read_bytes()):
                return str(json.loads(found[1]))
    return ""


def carry_on(run: Path) -> str:
    """How to carry on the run in this folder, as a remedy."""
    return f"Carry on where it stopped: {again(run) or f'give the command that began it, with --out {run}'}"


def anew(run: Path) -> str:
    """How to make what the folder should hold once more, as a remedy."""
    command = again(run)
    if not command:
        return f"Start anew: give the command that began it, with --out {run} --fresh"
    if not command.startswith(("hadal quickstart", "hadal train")):
        return f"Remove {run} and start anew: {command}"
    return f"Start anew: {command} --fresh"


def open_run(run: Path) -> dict[str, Any]:
    """Checks that `run` is a finished run whose checkpoint is whole, and returns its `run.json`.

    Cheap: it reads headers, not weights. Raises UserError, with the remedy, for anything else.
    """
    run = Path(run)
    record = read_run(run)
    if record.get("status") != "complete":
        raise UserError(f"the run in {run} is not finished.", carry_on(run))
    # The last stage's own checkpoint is published once more by the command that began the run.
    restored = f"Restore it: {again(run)}" if again(run) and (run / "stages").is_dir() else anew(run)
    for name in _CHECKPOINT_FILES:
        if not (run / name).is_file():
            raise UserError(f"{run} has no {name}.", restored)
    try:
        read_header(run / "model.safetensors")
    except UserError as error:
        raise UserError(error.cause, restored) from None
    return record


def count_parameters(run: Path) -> int:
    """The number of parameters in the run's checkpoint; shared ones count once, as the file holds them."""
    return sum(math.prod(tensor.shape) for tensor in read_header(Path(run) / "model.safetensors").values())
