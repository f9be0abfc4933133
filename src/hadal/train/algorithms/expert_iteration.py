"""Expert iteration: imitate one's own verified samples (STaR, arXiv 2203.14465; ReST-EM, arXiv 2312.06585).

The control that reinforcement learning has to beat: it sees the same problems and the same verdicts, but
learns from right samples alone, by maximum likelihood.
"""

from __future__ import annotations

from torch import Tensor

from hadal.train.algorithms import Options, Tokens


def advantages(rewards_PG: Tensor, options: Options) -> Tensor:
    """1 for a right sample, 0 for a wrong one, [P, G]."""
    return (rewards_PG > 0.5).to(rewards_PG.dtype)


def loss(tokens: Tokens, options: Options) -> Tensor:
    """Negative log-likelihood of each token of a right sample, [N]."""
    return -tokens.logprobs * tokens.advantages


__all__ = ["Options", "advantages", "loss"]
