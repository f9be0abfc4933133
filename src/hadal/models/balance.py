"""How evenly the tokens are spread over the experts: losses that ask for it, and figures that show it.

Axes: B sequences, T tokens of one, E experts, P experts of a token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def balance_loss(scores_BTE: Tensor, expert_BTP: Tensor, real_BT: Tensor) -> Tensor:
    """Mean over the sequences of sum_i f_i P_i, least (1) when all experts are visited alike.

    f_i = E / (P T) * how often expert i is among the chosen ones, P_i = the mean of its score, both over the T
    tokens of a sequence that `real` marks; scores add up to 1 for a token. Sequences without such tokens count
    nothing. With the batch as one sequence this is V2's expert-level loss (arXiv 2405.04434, equations 23 to 25),
    else V3's sequence-wise one (arXiv 2412.19437, equations 17 to 20). Gradients flow through P only.
    """
    B, T, E = scores_BTE.shape
    P = expert_BTP.shape[-1]
    real = real_BT.to(scores_BTE.dtype)
    tokens_B1 = real.sum(1, keepdim=True).clamp(min=1)
    counts_BE = scores_BTE.new_zeros(B, E)
    counts_BE.scatter_add_(1, expert_BTP.flatten(1), real.repeat_interleave(P, dim=1))
    frequency_BE = counts_BE * (E / P) / tokens_B1
    mean_BE = torch.einsum("bte,bt->be", scores_BTE, real) / tokens_B1
    return (frequency_BE * mean_BE).sum() / real_BT.any(1).sum().clamp(min=1)


class _WithLoss(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], torch.ones((), dtype=torch.float32, device=grads[0].device)


def with_loss(x: Tensor, loss: Tensor) -> Tensor:
    """x itself; its backward pass is that of the final loss plus `loss` (a scalar)."""
    return _WithLoss.apply(x, loss.float())


def load_metrics(load_E: Tensor) -> dict[str, float]:
    """Figures for one layer's choices of each expert.

    `load_max`: the busiest expert's load over the mean; `load_entropy`: entropy of the shares over ln E, 1 when
    even; `load_dead`: how many experts nobody visited.
    """
    share = load_E.to(torch.float64) / max(int(load_E.sum()), 1)
    entropy = float(torch.special.entr(share).sum()) / math.log(len(load_E)) if len(load_E) > 1 else 1.0
    return {
        "load_max": float(share.max()) * len(load_E),
        "load_entropy": entropy,
        "load_dead": int((load_E == 0).sum()),
    }
