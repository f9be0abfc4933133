"""GRPO (DeepSeekMath, arXiv 2402.03300; R1, arXiv 2501.12948, equations 1 to 3), as practised today.

Differences from the print, each an option that later work found better and that TRL, prime-rl and others
share: the advantage is centred but not divided by the group's standard deviation (Dr.GRPO, arXiv 2503.20783);
every token of the batch weighs the same (DAPO, arXiv 2503.14476); the clip range is wider above than below
(DAPO); no KL term. One option is hadal's own measurement (docs/log.md): wrong samples may weigh less than right
ones, in the direction of AsymRE (arXiv 2506.20520), whose lower baseline favours right samples as well.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards_PG: Tensor, negative_weight: float = 1.0) -> Tensor:
    """Reward minus the mean of the prompt's group, [P, G]; what is below the mean times `negative_weight`."""
    centred = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    return torch.where(centred < 0, centred * negative_weight, centred)


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
