"""DAPO (arXiv 2503.14476): GRPO with a wider clip above, every token weighing the same, groups without a difference
replaced by fresh ones, and a soft punishment before the limit of tokens (equations 8 to 13)."""

from __future__ import annotations

from dataclasses import dataclass

from hadal.train.algorithms import grpo
from hadal.train.algorithms.grpo import advantages, loss


@dataclass(frozen=True)
class Options(grpo.Options):
    std: bool = True
    max_draws: int = 4
    overlong: float = 0.2  # the paper's 4,096 of 20,480 tokens


__all__ = ["Options", "advantages", "loss"]
