"""A checksum of a model's weights, for whoever wants to be sure that nobody wrote to them without a word."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from hadal.models.decoder import Decoder


def checksum(model: Decoder) -> int:
    """Of the bits of all that a checkpoint would hold; packed matrices, which are replaced and never written to, are
    left out. It reads all of them: a second for each gigabyte or so."""
    total = 0
    for name, tensor in model.state_dict().items():
        total = zlib.crc32(_bytes(tensor), zlib.crc32(name.encode(), total))
    return total


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
