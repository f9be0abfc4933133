"""Expert iteration: imitate one's own verified samples (STaR, arXiv 2203.14465; ReST-EM, arXiv 2312.06585).

The control that reinforcement learning has to beat: it sees the same problems and the same verdicts, but
learns from right samples alone, by maximum likelihood.
"""

from __future__ import annotations

from torch import Tensor


def advantages(rewards_PG: Tensor, **_: float) -> Tensor:
    """1 for a right sample, 0 for a wrong one, [P, G]."""
    return (rewards_PG > 0.5).to(rewards_PG.dtype)


def loss(logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, **_: float) -> Tensor:
    """Negative log-likelihood of each token of a right sample, [N]."""
    return -logprobs_N * advantages_N
