"""Losses as pure functions of logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from hadal.cost.memory import CHUNK_LOGITS, MANY_LOGITS
from hadal.models.balance import Counted
from hadal.models.decoder import Decoder
from hadal.train.corpus import Batch, Part


def pretraining_loss(
    model: Decoder, batch: Batch, forbidden: Tensor, mtp_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(what is minimised, cross-entropy of the next token alone): means by weight.

    What is minimised is the batch's part of its update (`Batch.part`), so that passes add up to it however it was cut.
    Only positions whose weight is above 0 go through the head. `forbidden` ids can never be emitted: their logits
    are -inf, in training as in sampling, so that both speak of the same distribution.

    Where `mtp_weight` is above 0, a model with a multi-token prediction module also predicts the token after the next
    one, from its hidden state and the next token, at that weight (DeepSeek-V3, arXiv 2412.19437, equations 21 to 25),
    never across the border of packed documents. Attention stays in a document as well.
    """
    ids_BT, weight_BT, positions_BT, part = batch.ids, batch.weight, None, batch.part
    if batch.positions is not None:
        positions_BT = batch.positions[:, :-1].clamp(max=model.config.max_position_embeddings - 1)
    wanted = weight_BT[:, 1:] > 0
    documents_BT = None if batch.documents is None else batch.documents[:, :-1]
    count = counted(wanted, documents_BT, part)
    hidden = model(ids_BT[:, :-1], positions_BT=positions_BT, counted=count, documents_BT=documents_BT)
    weight_N = weight_BT[:, 1:][wanted]
    mean = weighted_mean(-_target_logprobs(model, hidden[wanted], ids_BT[:, 1:][wanted], forbidden), weight_N)
    loss = mean * part.learnt
    if not mtp_weight or "mtp" not in model.auxiliary or not part.ahead:
        return loss, mean.detach()
    after = batch.ahead()
    if positions_BT is not None:
        positions_BT = positions_BT[:, :-1]
    if documents_BT is not None:
        documents_BT = documents_BT[:, :-1]
    ahead = model.mtp_hidden(
        hidden[:, :-1], ids_BT[:, 1:-1], positions_BT=positions_BT, counted=counted(after, documents_BT, part),
        documents_BT=documents_BT,
    )  # fmt: skip
    ahead_logprobs = _target_logprobs(model, ahead[after], ids_BT[:, 2:][after], forbidden)
    ahead_mean = weighted_mean(-ahead_logprobs, weight_BT[:, 2:][after])
    return loss + mtp_weight * part.ahead * ahead_mean, mean.detach()


def counted(wanted_BT: Tensor, documents_BT: Tensor | None, part: Part) -> Counted:
    """What experts' loads count: tokens from which the next one or a later one of the document is predicted.

    The rest is padding, or read by nobody.
    """
    if documents_BT is None:
        needed_BT = wanted_BT.flip(1).cumsum(1).flip(1) > 0
    else:
        same = documents_BT[:, :, None] == documents_BT[:, None, :]
        needed_BT = (same.triu() & wanted_BT[:, None, :]).any(2)
    return Counted.of(needed_BT, documents_BT, part.sequences)


def _target_logprobs(model: Decoder, hidden_ND: Tensor, targets_N: Tensor, forbidden: Tensor) -> Tensor:
    """Log-probability [N] of each target by the model's head, without autograd's copies where logits are many."""
    if len(targets_N) * model.config.vocab_size > MANY_LOGITS:
        return head_log_probabilities(hidden_ND, model.head_weight(), targets_N, forbidden)[0]
    return log_probabilities(model.logits(hidden_ND).index_fill(1, forbidden, float("-inf")), targets_N)


def weighted_mean(values_N: Tensor, weight_N: Tensor) -> Tensor:
    """The mean of values, each counted by its weight."""
    return (values_N * weight_N).sum() / weight_N.sum()


def log_probabilities(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability [N] of each target."""
    return -F.cross_entropy(logits_NV, targets_N, reduction="none")


class _HeadLogProbabilities(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, forbidden: Tensor, rows: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, spread, kept = [], [], []
        for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
            values = _head(hidden, weight_VD, forbidden)
            own, top = values.gather(1, targets[:, None])[:, 0], values.amax(-1)
            torch.softmax(values, -1, out=values)
            out.append(own - top + values.amax(-1).log())  # of the likeliest, the logarithm is exact
            spread.append(torch.special.entr(values).sum(-1) if with_entropy else top)
            kept = [values] if len(hidden) == len(hidden_ND) else []
            del values  # before the next
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, forbidden, *kept)
        ctx.rows = rows
        entropies = torch.cat(spread)
        ctx.mark_non_differentiable(entropies)
        return torch.cat(out), entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden_ND, weight_VD, targets_N, forbidden, *kept = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight_VD) if ctx.needs_input_grad[1] else None
        for begin in range(0, len(hidden_ND), ctx.rows):
            span = slice(begin, begin + ctx.rows)
            if kept:
                grad = kept.pop()
            else:
                grad = _head(hidden_ND[span], weight_VD, forbidden)
                torch.softmax(grad, -1, out=grad)
            # d log p(target) / d logits = 1[target] - p
            grad.scatter_add_(1, targets_N[span, None], torch.full_like(grad[:, :1], -1.0))
            grad = grad.mul_(-grads[0][span, None]).to(weight_VD.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight_VD, out=grad_hidden[span])
            if grad_weight is not None:
                torch.addmm(grad_weight, grad.t(), hidden_ND[span], beta=1 if begin else 0, out=grad_weight)
            del grad  # before the next
        return grad_hidden, grad_weight, None, None, None, None


def _head(hidden_ND: Tensor, weight_VD: Tensor, forbidden: Tensor) -> Tensor:
    logits = F.linear(hidden_ND, weight_VD)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.index_fill_(1, forbidden, float("-inf"))


def head_log_probabilities(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, forbidden: Tensor, rows: int = 0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probability [N] of each target under softmax(hidden weight^T), `forbidden` ids left out; and the
    distributions' entropy [N], which has no gradient, where it is asked for.

    The same as `log_probabilities` of all logits, which are overwritten by what the backward pass needs of them. Only
    `rows` rows (0: as CHUNK_LOGITS allows) exist at once: if there are more, the backward pass computes them again.
    Its gradient can be asked for once.
    """
    if len(hidden_ND) == 0:
        return hidden_ND.sum(-1).float(), hidden_ND.detach().sum(-1).float()
    rows = rows or max(1, CHUNK_LOGITS // len(weight_VD))
    return _HeadLogProbabilities.apply(hidden_ND, weight_VD, targets_N, forbidden, rows, with_entropy)


def policy(model: Decoder, hidden_ND: Tensor, targets_N: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of each target by the model's head, and the entropy [N] of its distribution."""
    if len(targets_N) * model.config.vocab_size > MANY_LOGITS:
        return head_log_probabilities(hidden_ND, model.head_weight(), targets_N, forbidden, with_entropy=True)
    logits = model.logits(hidden_ND).index_fill(1, forbidden, float("-inf"))
    return log_probabilities(logits, targets_N), entropy(logits)


@torch.no_grad()
def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy [N] in nats of each distribution; forbidden ids count nothing."""
    logprobs = torch.log_softmax(logits_NV, dim=-1)
    return -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
