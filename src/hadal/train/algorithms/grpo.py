"""GRPO (DeepSeekMath, arXiv 2402.03300; R1, arXiv 2501.12948, equations 1 to 3), as practised today.

Differences from the print, each an option that later work found better and that TRL, prime-rl and others
share: the advantage is centred but not divided by the group's standard deviation (Dr.GRPO, arXiv 2503.20783);
every token of the batch weighs the same (DAPO, arXiv 2503.14476); the clip range is wider above than below
(DAPO); no KL term. The baseline may be lower than the mean, which leans on right samples more than on wrong ones
(AsymRE, arXiv 2506.20520).
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards_PG: Tensor, baseline: float = 1.0) -> Tensor:
    """Reward minus `baseline` times the mean of the prompt's group, [P, G]."""
    return rewards_PG - baseline * rewards_PG.mean(dim=1, keepdim=True)


def loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Tensor:
    """Negative clipped surrogate of each token, [N].

    old_logprobs: of the policy that sampled. The mean over a batch's tokens is the loss of that batch.
    """
    ratio = torch.exp(logprobs_N - old_logprobs_N)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages_N, clipped * advantages_N)
