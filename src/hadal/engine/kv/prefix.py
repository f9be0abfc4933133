"""The prefix cache: what was computed of earlier prompts, in blocks under the hash of all tokens up to their end.

A block is found by its whole past, so two prompts share exactly their common beginning. The least recently used
blocks go first when memory is wanted for something else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from hadal.engine.kv.buckets import Bucket

BLOCK = 32
"""Tokens of a block."""


class PrefixCache:
    """Blocks by hash: tensors [L, J, BLOCK, C], one for each that a layer keeps."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[bytes, list[Tensor]] = OrderedDict()
        self.generation = -1
        """Of the weights that the blocks were computed with."""

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """How many tokens of the KV cache the blocks take."""
        return len(self.blocks) * BLOCK

    @staticmethod
    def keys(tokens: Sequence[int], salt: str = "") -> list[bytes]:
        """The hash of each full block."""
        out, key = [], blake2b(salt.encode(), digest_size=16).digest()
        for begin in range(0, len(tokens) - BLOCK + 1, BLOCK):
            block = torch.tensor(tokens[begin : begin + BLOCK]).numpy().tobytes()
            key = blake2b(key + block, digest_size=16).digest()
            out.append(key)
        return out

    def find(self, keys: Sequence[bytes]) -> int:
        """How many of the leading blocks are here; they count as used just now."""
        found = 0
        while found < len(keys) and keys[found] in self.blocks:
            found += 1
        for key in reversed(keys[:found]):  # a beginning outlives what continues it
            self.blocks.move_to_end(key)
        return found

    def read(self, keys: Sequence[bytes], bucket: Bucket, row: int) -> None:
        """Copy blocks to the beginning of a row."""
        if not keys:
            return
        bucket.fill(len(keys) * BLOCK)
        for index, part in enumerate(bucket.parts):
            part[:, row, :, : len(keys) * BLOCK] = torch.cat([self.blocks[key][index] for key in keys], dim=2)

    def write(self, keys: Sequence[bytes], bucket: Bucket, row: int) -> None:
        """Keep the leading blocks of a row, those that are not here yet."""
        for number, key in enumerate(keys):
            if key not in self.blocks:
                block = slice(number * BLOCK, (number + 1) * BLOCK)
                self.blocks[key] = [part[:, row, :, block].clone() for part in bucket.parts]

    def evict(self, tokens: int) -> None:
        """Drop the least recently used blocks until they take at most this many tokens."""
        while self.tokens > max(tokens, 0):
            self.blocks.popitem(last=False)

    def follow(self, generation: int) -> None:
        """Forget everything where the weights are of another generation."""
        if generation != self.generation:
            self.clear()
            self.generation = generation

    def clear(self) -> None:
        """Forget everything."""
        self.blocks.clear()
