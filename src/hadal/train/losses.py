"""Losses as pure functions of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hadal.models.decoder import Decoder


def predict(model: Decoder, ids_BT: Tensor, mask_BT: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and targets [N] at the N masked positions, each from what stands before it.

    Only those positions go through the head. `forbidden` ids can never be emitted: their logits are -inf,
    in training as in sampling, so that both speak of the same distribution.
    """
    hidden = model(ids_BT[:, :-1])
    wanted = mask_BT[:, 1:]
    logits = model.logits(hidden[wanted])
    return logits.index_fill(1, forbidden, float("-inf")), ids_BT[:, 1:][wanted]


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Mean negative log-likelihood."""
    return F.cross_entropy(logits_NV, targets_N)


def log_probabilities(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability [N] of each target."""
    return -F.cross_entropy(logits_NV, targets_N, reduction="none")


@torch.no_grad()
def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy [N] in nats of each distribution; forbidden ids count nothing."""
    logprobs = torch.log_softmax(logits_NV, dim=-1)
    return -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
