"""Ways to turn rewards into a gradient; each is one short pure file with `advantages` and `loss`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hadal.train.algorithms import expert_iteration, grpo


@dataclass(frozen=True)
class Algorithm:
    """advantages: rewards [P, G] -> [P, G]; loss: per-token terms [N] to be summed and divided by the token count."""

    advantages: Callable[..., Tensor]
    loss: Callable[..., Tensor]


ALGORITHMS = {
    "grpo": Algorithm(grpo.advantages, grpo.loss),
    "expert_iteration": Algorithm(expert_iteration.advantages, expert_iteration.loss),
}
