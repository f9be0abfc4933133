"""Counter-based randomness (SplitMix64, Steele and others 2014): a key and a count give the same number everywhere.

`Rng` draws in plain Python, for tasks and corpora; `noise` a tensor at a time, for the sampler. Numpy and torch are not
needed to import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_MASK = (1 << 64) - 1
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def split_mix(state: int) -> int:
    """64 bits from a state; the next state is `_GAMMA` more."""
    z = ((state ^ (state >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


class Rng:
    """The same numbers on any platform and Python, from any start."""

    def __init__(self, *key: object) -> None:
        text = "\x1f".join(map(str, key)).encode()
        self.state = int.from_bytes(blake2b(text, digest_size=8).digest(), "little")

    def bits(self) -> int:
        """64 random bits."""
        self.state = (self.state + _GAMMA) & _MASK
        return split_mix(self.state)

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return (self.bits() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + self.below(high - low + 1)

    def random(self) -> float:
        """A number in [0, 1)."""
        return (self.bits() >> 11) / (1 << 53)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """n different items in random order."""
        pool = list(items)
        for i in range(n):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]


def noise(key_N: Tensor, position_N: Tensor) -> Tensor:
    """Uniform float64 numbers [N] in [0, 1) of keys at positions, int64 both, the same on any device.

    That at position n is what an `Rng` whose state is the key draws after n others.
    """
    z = key_N + (position_N + 1) * _signed(_GAMMA)
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    return _shifted(z ^ _shifted(z, 31), 11).double() / (1 << 53)


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed whole number that tensors hold."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of 64-bit patterns."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
