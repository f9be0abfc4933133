"""How evenly the tokens are spread over the experts: losses that ask for it, and figures that show it.

Axes: B rows, T tokens of one, N tokens in all, S sequences, E experts, P experts of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class Counted:
    """Which tokens of a pass count in loads and balance losses, and what each of their sequences weighs.

    sequence [B, T]: the sequence that a token belongs to, -1 where it counts nothing (padding); weight [S]: what part
    of the update's loss each sequence is. An update of several passes divides 1 among all of their sequences, so that
    it does not matter how it was cut.
    """

    sequence_BT: Tensor
    weight_S: Tensor

    @classmethod
    def of(cls, real_BT: Tensor, documents_BT: Tensor | None = None, sequences: int = 0) -> Counted:
        """Of the tokens that `real` marks: a sequence is a row, or a document of one, all weighing the same.

        sequences: how many the update has; 0 where this pass is all of it.
        """
        B, T = real_BT.shape
        number_BT = torch.arange(B, device=real_BT.device)[:, None].expand(B, T)
        if documents_BT is not None:
            number_BT = number_BT * T + documents_BT
        sequence_BT = number_BT.masked_fill(~real_BT, -1)
        present = torch.zeros(1 + (B if documents_BT is None else B * T), device=real_BT.device)
        present = present.index_fill_(0, sequence_BT.flatten() + 1, 1.0)[1:]
        return cls(sequence_BT, present / (sequences or present.sum().clamp(min=1)))


def balance_loss(scores_NE: Tensor, expert_NP: Tensor, sequence_N: Tensor, weight_S: Tensor) -> Tensor:
    """The weighted sum over the sequences of sum_i f_i P_i, each least (1) when all experts are visited alike.

    f_i = E / (P T) * how often expert i is among the chosen ones, P_i = the mean of its score, both over the T
    tokens of a sequence; scores add up to 1 for a token. Sequences without tokens count nothing. With the batch as one
    sequence this is V2's expert-level loss (arXiv 2405.04434, equations 23 to 25), else V3's sequence-wise one (arXiv
    2412.19437, equations 17 to 20). Gradients flow through P only.
    """
    E, P, S = scores_NE.shape[1], expert_NP.shape[1], len(weight_S)
    row_N = sequence_N + 1  # the first is that of tokens that count nothing
    tokens_S1 = scores_NE.new_zeros(S + 1, 1).index_add_(0, row_N, torch.ones_like(scores_NE[:, :1]))[1:].clamp(min=1)
    place = (row_N[:, None] * E + expert_NP).flatten()
    counts = scores_NE.new_zeros((S + 1) * E).scatter_add_(0, place, torch.ones_like(place, dtype=scores_NE.dtype))
    frequency_SE = counts.view(S + 1, E)[1:] * (E / P) / tokens_S1
    mean_SE = scores_NE.new_zeros(S + 1, E).index_add(0, row_N, scores_NE)[1:] / tokens_S1
    return (weight_S.to(scores_NE.dtype) * (frequency_SE * mean_SE).sum(1)).sum()


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
