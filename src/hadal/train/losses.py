"""Losses as pure functions of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hadal.models.decoder import Decoder
from hadal.models.deepseek import Deepseek


def predict(model: Decoder, ids_BT: Tensor, mask_BT: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and targets [N] at the N masked positions, each from what stands before it.

    Only those positions go through the head. `forbidden` ids can never be emitted: their logits are -inf,
    in training as in sampling, so that both speak of the same distribution.
    """
    wanted = mask_BT[:, 1:]
    hidden = model(ids_BT[:, :-1], real_BT=_needed(wanted))
    logits = model.logits(hidden[wanted])
    return logits.index_fill(1, forbidden, float("-inf")), ids_BT[:, 1:][wanted]


def _needed(mask_BT: Tensor) -> Tensor:
    """Where a token or one that follows it is predicted from: what is left is padding."""
    return mask_BT.flip(1).cumsum(1).flip(1) > 0


def pretraining_loss(
    model: Decoder,
    ids_BT: Tensor,
    mask_BT: Tensor,
    forbidden: Tensor,
    mtp_weight: float,
    document_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(what is minimised, cross-entropy of the next token alone).

    A model with a multi-token prediction module also predicts the token after the next one, from its hidden
    state and the next token, at `mtp_weight` (DeepSeek-V3, arXiv 2412.19437, equations 21 to 25). Where rows are
    packed, `document` numbers each token's document, and no token of another one is predicted two ahead.
    """
    wanted = mask_BT[:, 1:]
    hidden = model(ids_BT[:, :-1], real_BT=_needed(wanted))
    logits = model.logits(hidden[wanted]).index_fill(1, forbidden, float("-inf"))
    loss = cross_entropy(logits, ids_BT[:, 1:][wanted])
    if not isinstance(model, Deepseek) or not model.config.num_nextn_predict_layers:
        return loss, loss.detach()
    after = mask_BT[:, 2:]
    if document_BT is not None:
        after = after & (document_BT[:, 2:] == document_BT[:, :-2])
    ahead = model.logits(model.mtp_hidden(hidden[:, :-1], ids_BT[:, 1:-1], real_BT=_needed(after))[after])
    ahead_loss = cross_entropy(ahead.index_fill(1, forbidden, float("-inf")), ids_BT[:, 2:][after])
    return loss + mtp_weight * ahead_loss, loss.detach()


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
