"""What the loader asks of a checkpoint's files, whatever their format: names, shapes, dtypes, and tensors.

A format is a file beside this one with a class that answers so (`hadal.checkpoints.safetensors`), and a line in
`open_tensors`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from hadal.checkpoints.safetensors import SafetensorFiles


class TensorFiles(Protocol):
    """The tensors of a checkpoint by their released names. Closed at the end of a `with`."""

    source: Path
    """The file that holds all tensors, or the one that says where they are; for messages."""

    def names(self) -> list[str]:
        """Of all tensors, in the files' order; what is part of another one, such as its scales, has none."""

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype:
        """What it is stored in; bf16 for FP8 in blocks, which `read_into` multiplies out."""

    def where(self, name: str) -> Path:
        """The file that holds a tensor, or what should have named it."""

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """UserError unless there is a tensor of that name and shape, with all that belongs to it."""

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The values, flat and piece by piece, each good until the next."""

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill a contiguous tensor of the same shape and any float dtype; UserError for values that are not finite."""

    def is_float8(self, name: str) -> bool:
        """Whether a tensor is stored in DeepSeek's FP8 blocks."""

    def in_whole_blocks(self, name: str) -> bool:
        """Whether a tensor is FP8, and its last block in each direction is a whole one."""

    def read_float8(self, name: str, out: Tensor) -> None:
        """Fill a contiguous FP8 tensor with an FP8 one's numbers, without its scales; UserError for NaN among them."""

    def read_scales(self, name: str, out: Tensor) -> None:
        """Fill a float32 tensor with an FP8 one's scales, one for each block."""

    def __enter__(self) -> TensorFiles: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_tensors(folder: Path, stem: str = "model") -> TensorFiles:
    """The tensors of a folder's files that are called `stem`; UserError where there are none that hadal reads."""
    return SafetensorFiles(folder, stem)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that most of a checkpoint's weights can be computed in as they are; FP8 ones are read as bf16."""
    counts: Counter[torch.dtype] = Counter()
    with open_tensors(folder) as files:
        for name in files.names():
            counts[files.dtype(name)] += math.prod(files.shape(name))
    (dtype, _), *_ = counts.most_common(1)
    return dtype if dtype.itemsize <= 4 else torch.float32


def stored_in_float8(folder: Path) -> int:
    """How many of a checkpoint's weights are FP8."""
    with open_tensors(folder) as files:
        return sum(math.prod(files.shape(name)) for name in files.names() if files.is_float8(name))
