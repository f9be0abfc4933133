"""The header of a safetensors file: which tensors it holds and where. No torch, and no weight is read.

Every number is checked before it is believed. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from hadal.errors import UserError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
"""The dtypes that hadal reads, under the format's names."""
REMEDY = "It is truncated or corrupt: download or save it again."
_LONGEST = 100 << 20  # the format allows no longer one


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies; `offset` from the file's beginning, in bytes."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file; UserError for a file that is none or not whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST):
                raise ValueError(f"{size} bytes are too few for its header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {name: _entry(path, name, data, 8 + length, size) for name, data in header.items()}
        end = max((e.offset + ITEM_BYTES[e.kind] * math.prod(e.shape) for e in entries.values()), default=8 + length)
        if end != size:
            raise ValueError(f"it has {size} bytes where its header speaks of {end}")
    except FileNotFoundError:
        raise UserError(f"{path} is missing.", "Give a folder that holds a finished run or a checkpoint.") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}).", REMEDY) from None
    return entries


def _entry(path: Path, name: str, data: dict[str, object], data_begin: int, size: int) -> Entry:
    if not name.isprintable():  # it is shown in messages
        raise ValueError(f"it has a tensor {name!r}")
    kind, shape, offsets = data["dtype"], data["shape"], data["data_offsets"]
    if not isinstance(kind, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"the entry of {name} is malformed")
    if kind not in ITEM_BYTES:
        raise UserError(f"{path}: {name} has the dtype {kind}.", f"hadal reads {', '.join(ITEM_BYTES)}.")
    if not all(isinstance(n, int) and 0 <= n <= size for n in [*shape, *offsets]) or len(offsets) != 2:
        raise ValueError(f"the entry of {name} is malformed")
    begin, end = offsets
    if end - begin != ITEM_BYTES[kind] * math.prod(shape):
        raise ValueError(f"{name} has {end - begin} bytes, which are not its shape's")
    if data_begin + end > size:
        raise ValueError(f"{name} ends at byte {data_begin + end} of {size}")
    return Entry(path, kind, tuple(shape), data_begin + begin)
