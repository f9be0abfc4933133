"""A stage's state on disk: tensors and numbers from which it carries on bit for bit.

Each save is a safetensors file and a JSON file that holds its digest and is written last. The newest pair that
is whole is the one that counts, so a kill at any moment, or a damaged last file, costs a few steps only.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hadal.errors import UserError

KEEP = 2


@dataclass(frozen=True)
class State:
    """What a stage was after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class StateFolder:
    """The saved states of one stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _paths(self, step: int) -> tuple[Path, Path]:
        return self.folder / f"state-{step:07d}.safetensors", self.folder / f"state-{step:07d}.json"

    def steps(self) -> list[int]:
        """Steps that have a state, oldest first."""
        names = (path.stem.removeprefix("state-") for path in self.folder.glob("state-*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, state: State) -> None:
        """Write a state and drop all but the last few. UserError where the disk is full or cannot be written."""
        weights, record = self._paths(state.step)
        data = save(state.tensors)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(weights, data)
            _write(record, json.dumps({"digest": _digest(data), "numbers": state.numbers}).encode())
            self.prune()
        except OSError as error:
            raise UserError(
                f"cannot write a checkpoint in {self.folder}: {(error.strerror or str(error)).lower()}.",
                "Free some space; the same command then carries on.",
            ) from error

    def prune(self) -> None:
        """Remove all but the last few states, and what a kill left half written."""
        kept = [path for step in self.steps()[-KEEP:] for path in self._paths(step)]
        for path in self.folder.glob("state-*"):
            if path not in kept:
                path.unlink()

    def load(self) -> tuple[State | None, list[int]]:
        """The newest whole state, if there is one, and the steps of newer ones that are damaged."""
        damaged: list[int] = []
        for step in reversed(self.steps()):
            weights, record = self._paths(step)
            try:
                told, data = json.loads(record.read_bytes()), weights.read_bytes()
                if _digest(data) != told["digest"]:
                    raise ValueError("the digest is another")
                return State(step, load(data), told["numbers"]), damaged
            except (OSError, ValueError, TypeError, KeyError, SafetensorError):
                damaged.append(step)
        return None, damaged


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """The file whole or not at all; a failure leaves nothing that takes up room."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # the first failure is the one to tell
            part.unlink(missing_ok=True)
        raise
