"""A stage's state on disk: tensors and numbers from which it carries on bit for bit.

Each save is a safetensors file and a JSON file that holds its digest and is written last. The newest pair that
is whole is the one that counts, so a kill at any moment, or a damaged last file, costs a few steps only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hadal.files import digest_of, write_bytes, write_pieces

KEEP = 2
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}
_PIECE = 1 << 24


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
        digest = write_pieces(weights, _pieces(state.tensors))
        write_bytes(record, json.dumps({"digest": digest, "numbers": state.numbers}).encode())
        self.prune()

    def prune(self) -> None:
        """Remove all but the last few states, and what a kill left half written."""
        kept = [path for step in self.steps()[-KEEP:] for path in self._paths(step)]
        for path in [*self.folder.glob("state-*"), *self.folder.glob(".state-*.part")]:
            if path not in kept:
                path.unlink()

    def load(self) -> tuple[State | None, list[int]]:
        """The newest whole state, if there is one, and the steps of newer ones that are damaged."""
        damaged: list[int] = []
        for step in reversed(self.steps()):
            weights, record = self._paths(step)
            try:
                told = json.loads(record.read_bytes())
                if digest_of(weights) != told["digest"]:
                    raise ValueError("the digest differs")
                return State(step, load_file(weights), told["numbers"]), damaged
            except (OSError, ValueError, TypeError, KeyError, SafetensorError):
                damaged.append(step)
        return None, damaged


def _pieces(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors file of tensors, without a second copy of any."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        span = [end, end + tensor.nbytes]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        flat = memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        yield from (flat[begin : begin + _PIECE] for begin in range(0, len(flat), _PIECE))
