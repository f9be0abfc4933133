"""GSPO (arXiv 2507.18071): GRPO with one ratio for a whole response, the geometric mean of its tokens' (equation 7)."""

from __future__ import annotations

from dataclasses import dataclass

from hadal.train.algorithms import grpo
from hadal.train.algorithms.grpo import advantages, loss


@dataclass(frozen=True)
class Options(grpo.Options):
    ratio: str = "geometric"
    mean: str = "sequence"
    count_all: bool = True
    std: bool = True
    clip_low: float = 3e-4
    clip_high: float = 4e-4


__all__ = ["Options", "advantages", "loss"]
