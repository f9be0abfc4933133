"""Losses as pure functions of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hadal.models.decoder import Decoder
from hadal.models.deepseek import Deepseek
from hadal.train.corpus import Batch


def pretraining_loss(
    model: Decoder, batch: Batch, forbidden: Tensor, mtp_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(what is minimised, cross-entropy of the next token alone), both means by weight.

    Only positions whose weight is above 0 go through the head. `forbidden` ids can never be emitted: their logits
    are -inf, in training as in sampling, so that both speak of the same distribution.

    A model with a multi-token prediction module also predicts the token after the next one, from its hidden
    state and the next token, at `mtp_weight` (DeepSeek-V3, arXiv 2412.19437, equations 21 to 25), never across
    the border of packed documents.
    """
    ids_BT, weight_BT, positions_BT = batch.ids, batch.weight, None
    if batch.positions is not None:
        positions_BT = batch.positions[:, :-1].clamp(max=model.config.max_position_embeddings - 1)
    wanted = weight_BT[:, 1:] > 0
    hidden = model(ids_BT[:, :-1], positions_BT=positions_BT, real_BT=_needed(wanted))
    logits = model.logits(hidden[wanted]).index_fill(1, forbidden, float("-inf"))
    weight_N = weight_BT[:, 1:][wanted]
    loss = weighted_mean(-log_probabilities(logits, ids_BT[:, 1:][wanted]), weight_N)
    if not isinstance(model, Deepseek) or not model.config.num_nextn_predict_layers:
        return loss, loss.detach()
    after = weight_BT[:, 2:] > 0
    if batch.documents is not None:
        after = after & (batch.documents[:, 2:] == batch.documents[:, :-2])
    if positions_BT is not None:
        positions_BT = positions_BT[:, :-1]
    ahead = model.mtp_hidden(hidden[:, :-1], ids_BT[:, 1:-1], positions_BT=positions_BT, real_BT=_needed(after))
    ahead = model.logits(ahead[after])
    ahead_logprobs = log_probabilities(ahead.index_fill(1, forbidden, float("-inf")), ids_BT[:, 2:][after])
    return loss + mtp_weight * weighted_mean(-ahead_logprobs, weight_BT[:, 2:][after]), loss.detach()


def _needed(wanted_BT: Tensor) -> Tensor:
    """Where the next token or a later one is predicted: what is left at the end of a row is padding."""
    return wanted_BT.flip(1).cumsum(1).flip(1) > 0


def weighted_mean(values_N: Tensor, weight_N: Tensor) -> Tensor:
    """The mean of values, each counted by its weight."""
    return (values_N * weight_N).sum() / weight_N.sum()


def log_probabilities(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability [N] of each target."""
    return -F.cross_entropy(logits_NV, targets_N, reduction="none")


@torch.no_grad()
def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy [N] in nats of each distribution; forbidden ids count nothing."""
    logprobs = torch.log_softmax(logits_NV, dim=-1)
    return -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
