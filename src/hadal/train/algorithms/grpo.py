"""GRPO (DeepSeekMath, arXiv 2402.03300; R1, arXiv 2501.12948, equations 1 to 3), as practised today.

Differences from the print, each an option that later work found better and that TRL, prime-rl and others
share: the advantage is centred but not divided by the group's standard deviation (Dr.GRPO, arXiv 2503.20783);
every token of the batch weighs the same (DAPO, arXiv 2503.14476); the clip range is wider above than below
(DAPO); no KL term. The baseline may be lower than the mean, which leans on right samples more than on wrong ones
(AsymRE, arXiv 2506.20520). docs/papers.md has the settings of each paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hadal.errors import UserError
from hadal.reading import nearest
from hadal.train import algorithms

RATIOS = ("token", "sequence", "geometric")


@dataclass(frozen=True)
class Options(algorithms.Options):
    baseline: float = 1.0
    """How much of its group's mean reward is taken from a sample's own."""
    std: bool = False
    """Whether advantages are divided by the standard deviation of the group's rewards, where there is any."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    ratio: str = "token"
    """What is clipped: how much likelier a token became, the whole response (R1 as printed), or its tokens in the
    geometric mean (GSPO)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio not in RATIOS:
            raise UserError(f"ratio is {self.ratio!r}.", nearest(self.ratio, RATIOS))


def advantages(rewards_PG: Tensor, options: Options) -> Tensor:
    """Reward minus `baseline` times the mean of the prompt's group, [P, G]."""
    centred = rewards_PG - options.baseline * rewards_PG.mean(dim=1, keepdim=True)
    alike = (rewards_PG == rewards_PG[:, :1]).all(dim=1, keepdim=True)
    if options.baseline == 1:  # exactly 0, where a mean is off by a rounding
        centred = centred.masked_fill(alike, 0.0)
    return centred / rewards_PG.std(dim=1, keepdim=True).masked_fill(alike, 1.0) if options.std else centred


def loss(tokens: algorithms.Tokens, options: Options) -> Tensor:
    """Negative clipped surrogate of each token, [N]."""
    change = tokens.logprobs - tokens.old_logprobs
    if options.ratio != "token":
        change = tokens.response_sums(change)
    ratio = torch.exp(change / tokens.lengths if options.ratio == "geometric" else change)
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    return -torch.minimum(ratio * tokens.advantages, clipped * tokens.advantages)
