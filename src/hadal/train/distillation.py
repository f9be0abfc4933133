"""Losses of distillation: how far a student's distribution of the next token is from its teacher's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hadal.cost.memory import CHUNK_LOGITS
from hadal.models.decoder import Decoder
from hadal.train.corpus import Batch
from hadal.train.losses import counted, weighted_mean

NEVER = -1e9  # a logit of no probability; finite, so that 0 times the difference of two of them is 0


def divergence(student_NV: Tensor, teacher_NV: Tensor, reverse: bool) -> Tensor:
    """KL(teacher || student) [N] of distributions given as logits; KL(student || teacher) where `reverse`."""
    student, teacher = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    first, second = (student, teacher) if reverse else (teacher, student)
    return (first.exp() * (first - second)).sum(-1)


def distillation_loss(
    model: Decoder, teacher: Decoder, batch: Batch, forbidden: Tensor, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """(the divergence from the teacher, its value without gradient), means over the learnt tokens of a batch; the first
    is the batch's part of its update (`Batch.part`).

    reverse: KL(student || teacher), which a student is trained on where it has sampled the tokens itself
    (arXiv 2306.13649). Logits exist for a limited number of tokens at a time: the backward pass makes them again.
    """
    wanted = batch.weight[:, 1:] > 0
    positions = None if batch.positions is None else batch.positions[:, :-1]
    documents = None if batch.documents is None else batch.documents[:, :-1]

    def hidden_of(one: Decoder) -> Tensor:
        count = counted(wanted, documents, batch.part)
        hidden: Tensor = one(batch.ids[:, :-1], positions_BT=positions, counted=count, documents_BT=documents)
        return hidden[wanted]

    def part(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        with torch.no_grad():
            goal = teacher.logits(teacher_ND).index_fill(1, forbidden, NEVER)
        return divergence(model.logits(student_ND).index_fill(1, forbidden, NEVER), goal, reverse)

    own = hidden_of(model)
    with torch.no_grad():
        theirs = hidden_of(teacher)
    rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    pieces = zip(own.split(rows), theirs.split(rows), strict=True)
    if len(own) <= rows:
        values = part(own, theirs)
    else:
        values = torch.cat([checkpoint(part, *piece, use_reentrant=False) for piece in pieces])
    weight = batch.weight[:, 1:][wanted]
    loss = weighted_mean(values, weight)
    return loss * batch.part.learnt, loss.detach()
