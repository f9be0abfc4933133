"""Dr. GRPO (arXiv 2503.20783): GRPO without its two biases.

Advantages are not divided by the standard deviation, which favours problems that are nearly solved or nearly hopeless.
Losses are divided by a constant and not by the response's length, which favours long wrong responses.
"""

from __future__ import annotations

from dataclasses import dataclass

from hadal.train.algorithms import grpo
from hadal.train.algorithms.grpo import advantages, loss


@dataclass(frozen=True)
class Options(grpo.Options):
    mean: str = "constant"
    count_all: bool = True
    clip_high: float = 0.2


__all__ = ["Options", "advantages", "loss"]
