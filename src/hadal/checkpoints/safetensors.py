"""Reading safetensors files straight into memory that is already there.

safetensors' own reader maps a file, so that what was read counts twice until the file is let go. Here the bytes
of each tensor go to where they are wanted, converted a piece at a time: a model is loaded in its own size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hadal.checkpoints.header import REMEDY, Entry, read_header
from hadal.errors import UserError
from hadal.ops.float8 import BLOCK, FLOAT8

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": FLOAT8,
}
FP8 = "F8_E4M3"
SCALES = "_scale_inv"
"""What the name of an FP8 tensor's scales has behind it."""
_PIECE = 1 << 19  # elements that are read, converted and looked at together: they stay in a core's cache
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, with the mode that other files get: the library's own writer keeps it to its owner."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its own error for a full disk
        raise UserError(
            f"cannot write a model in {path.parent}: {error}.", "Free some space; the same command then carries on."
        ) from error
    path.chmod(mode)


class SafetensorFiles:
    """The tensors of a checkpoint folder by their names, from one file or from shards with an index."""

    def __init__(self, folder: Path, stem: str = "model") -> None:
        single, self.index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        self.source = single
        self._file: BinaryIO | None = None
        if single.is_file() or not self.index.is_file():
            if not single.is_file():
                _refuse_pickles(folder)
            self.entries = read_header(single)
        else:
            self.source = self.index
            self.entries = self._indexed(folder)

    def _indexed(self, folder: Path) -> dict[str, Entry]:
        try:
            places = json.loads(self.index.read_bytes())["weight_map"]
            files = sorted(set(places.values()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{self.index} cannot be read ({error!r}).", REMEDY) from None
        for file in files:
            if not isinstance(file, str) or Path(file).name != file or not file.isprintable():
                raise UserError(f"{self.index} names the file {file!r}.", "Shards lie beside their index.")
            if not file.endswith(".safetensors"):
                raise UserError(f"{self.index} names {file}.", "hadal reads safetensors only: convert the model first.")
            if not (folder / file).is_file():
                raise UserError(f"{self.index} names {file}, which is missing.", "Download or save that shard again.")
        entries: dict[str, Entry] = {}
        for file in files:
            header = read_header(folder / file)
            entries |= header
            listed = {name for name, place in places.items() if place == file}
            if listed != header.keys():
                name = min(listed ^ header.keys())
                which = "lacks" if name in listed else "has, unlike its index,"
                raise UserError(f"{folder / file} {which} the tensor {name}.", "Do shards and index belong together?")
        return entries

    def __enter__(self) -> SafetensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def where(self, name: str) -> Path:
        """The file that holds a tensor, or what should have named it."""
        return self.entries[name].path if name in self.entries else self.source

    def names(self) -> list[str]:
        """Of all tensors in the files' order, but those that hold the scales of others."""
        return [name for name in self.entries if not self._is_scale(name)]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """What it is stored in; bf16 for FP8 in blocks, which `read_into` multiplies out."""
        return torch.bfloat16 if self.is_float8(name) else DTYPES[self.entries[name].kind]

    def is_float8(self, name: str) -> bool:
        """Whether a tensor is stored in DeepSeek's FP8 blocks."""
        return self.entries[name].kind == FP8

    def _is_scale(self, name: str) -> bool:
        """Whether a tensor holds the scales of an FP8 one."""
        owner = self.entries.get(name.removesuffix(SCALES))
        return name.endswith(SCALES) and owner is not None and owner.kind == FP8

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """UserError unless there is a tensor of that name and shape, with its scales if it is FP8."""
        if name not in self.entries:
            raise UserError(f"{self.source} lacks the tensor {name}.", "The file is incomplete or of another model.")
        entry = self.entries[name]
        if entry.shape != shape:
            raise UserError(
                f"{entry.path}: {name} is {entry.shape} where the config wants {shape}.",
                "Do config.json and weights belong together?",
            )
        if entry.kind == FP8:
            scale = name + SCALES
            if len(shape) != 2 or scale not in self.entries:
                raise UserError(f"{entry.path}: {name} is FP8, without {scale}.", "hadal reads FP8 in scaled blocks.")
            self.check(scale, (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)))

    def in_whole_blocks(self, name: str) -> bool:
        """Whether a tensor is FP8, and its last block in each direction is a whole one."""
        return self.is_float8(name) and all(size % BLOCK == 0 for size in self.shape(name))

    def read_float8(self, name: str, out: Tensor) -> None:
        """Fill a contiguous FP8 tensor with an FP8 one's numbers, without its scales; UserError for NaN among them."""
        entry = self.entries[name]
        self._read(entry, 0, out)
        if (out.view(torch.uint8) & 127 == 127).any():  # the format's only values that are not finite
            raise _not_finite(entry.path, name)

    def read_scales(self, name: str, out: Tensor) -> None:
        """Fill a float32 tensor with an FP8 one's scales, one for each block."""
        self.read_into(name + SCALES, out)

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill a contiguous tensor of the same shape and any float dtype; UserError for values that are not finite."""
        path = self.entries[name].path
        begin = 0
        for piece in self.pieces(name, out):
            target = out.view(-1)[begin : begin + piece.numel()]
            begin += piece.numel()
            if piece.data_ptr() != target.data_ptr():
                target.copy_(piece)
            if not _finite(target):
                if _finite(piece):
                    raise UserError(f"{path}: {name} does not fit {out.dtype}.", "Load it in a wider dtype.")
                raise _not_finite(path, name)

    def pieces(self, name: str, out: Tensor | None = None) -> Iterator[Tensor]:
        """The values, flat and piece by piece, each good until the next; in place in `out` where its dtype allows."""
        entry = self.entries[name]
        if self.is_float8(name):
            yield from self._dequantised(name, entry)
            return
        total = math.prod(entry.shape)
        in_place = out is not None and out.dtype == DTYPES[entry.kind]
        room = torch.empty(0 if in_place else min(_PIECE, total), dtype=DTYPES[entry.kind])
        for begin in range(0, total, _PIECE):
            size = min(_PIECE, total - begin)
            piece = out.view(-1)[begin : begin + size] if out is not None and in_place else room[:size]
            self._read(entry, begin, piece)
            yield piece

    def _dequantised(self, name: str, entry: Entry) -> Iterator[Tensor]:
        """Bands of blocks: each value times its block's scale, in float32."""
        rows, columns = entry.shape
        scales = torch.empty(self.shape(name + SCALES))
        self.read_scales(name, scales)
        for band, row in enumerate(range(0, rows, BLOCK)):
            raw = torch.empty(min(BLOCK, rows - row), columns, dtype=FLOAT8)
            self._read(entry, row * columns, raw)
            yield (raw.float() * scales[band].repeat_interleave(BLOCK)[:columns]).view(-1)

    def _read(self, entry: Entry, begin: int, out: Tensor) -> None:
        """Bytes of a tensor from element `begin` on."""
        if self._file is None or self._file.name != str(entry.path):
            if self._file is not None:
                self._file.close()
            self._file = entry.path.open("rb", buffering=0)
        self._file.seek(entry.offset + begin * out.itemsize)
        view = memoryview(out.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        while view:
            count = self._file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise UserError(f"{entry.path} became shorter while it was read.", REMEDY)
            view = view[count:]


def _finite(values: Tensor) -> bool:
    """Whether all values are finite; NaN passes through aminmax, which is far faster than isfinite on a CPU."""
    return values.numel() == 0 or all(math.isfinite(end) for end in torch.aminmax(values))


def _not_finite(path: Path, name: str) -> UserError:
    return UserError(
        f"{path}: {name} holds values that are not finite.",
        "The checkpoint is broken: download it again, or go back to an earlier one.",
    )


def _refuse_pickles(folder: Path) -> None:
    for pattern in _PICKLES:
        for path in sorted(folder.glob(pattern)):
            raise UserError(
                f"{path} is a pickle, which can run anything when it is opened.",
                "hadal reads safetensors only: take the model's safetensors files, or convert it in a sandbox.",
            )
