"""Speculative decoding: draft tokens, of which one forward pass checks several.

A draft is accepted (`outputs.py`) when it equals the token that is drawn at its place anyway, so what a request gets is
the same with and without.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from hadal.engine.kv.buckets import Bucket, CacheView
from hadal.engine.kv.pool import Pool
from hadal.engine.sampler import Sampler
from hadal.engine.table import Table
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.ops.exact import exactly

LONGEST, SHORTEST = 4, 2
"""Tokens at the end of a text that are looked up in it."""


def look_up(tokens: Sequence[int], count: int) -> list[int]:
    """What followed the last tokens where they stood before, up to `count` tokens; the longest match counts, and of
    equals the latest (prompt lookup decoding)."""
    data = array("i", tokens).tobytes()
    width = array("i").itemsize
    for size in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
        tail = data[-size * width :]
        end = len(data) - width  # the tail itself is no match
        while (at := data.rfind(tail, 0, end)) >= 0:
            if at % width == 0:
                begin = at // width + size
                return list(tokens[begin : begin + count])
            end = at + len(tail) - 1
    return []


class Drafts:
    """Drafts for all running sequences: from their texts ("ngram", `count` tokens) or by the model's own module that
    predicts a token ahead ("mtp", one token, which keeps a cache layer of its own behind the model's).

    `drafted` and `accepted` count draft tokens. UserError for a model that has no such module.
    """

    def __init__(
        self, how: str | None, count: int, model: Decoder, table: Table, sampler: Sampler, exact: bool
    ) -> None:  # fmt: skip
        self.predictor: Decoder | None = None
        if how == "mtp":
            if not model.config.predicts_ahead:
                raise UserError("The model has no module that predicts a token ahead.", "Speculate by ngram instead.")
            self.predictor = model
        self.count = {None: 0, "ngram": count, "mtp": 1}[how]
        self.behind, self.positions, self.exact = len(model.layers), model.config.max_position_embeddings, exact
        self.table, self.sampler = table, sampler
        self.drafted = self.accepted = 0

    def propose(self, slots_N: Tensor) -> Tensor:
        """Draft tokens [N, count], -1 where there is none."""
        out = torch.full((len(slots_N), self.count), -1, dtype=torch.long, device=slots_N.device)
        if not self.count:
            return out
        if self.predictor is not None:
            out[:, 0] = self.table.draft[slots_N]
        else:
            for row, slot in enumerate(slots_N.tolist()):
                sequence = self.table.sequences[slot]
                assert sequence is not None
                found = look_up(sequence.request.prompt + self.table.generated(sequence), self.count)
                out[row, : len(found)] = torch.tensor(found, dtype=torch.long, device=out.device)
        self.drafted += int((out >= 0).sum())
        return out

    def prefill(
        self, buckets: Sequence[Bucket], begins: Sequence[Tensor], hidden_BTD: Tensor, following_BT: Tensor
    ) -> Tensor:
        """What the module makes [B, T, D] of the model's hidden states, each with the token that follows, from each
        row's token `begin` on."""
        assert self.predictor is not None
        view = CacheView(buckets, begins, self.positions, self.exact, first_layer=self.behind)
        return self.predictor.mtp_hidden(hidden_BTD, following_BT, view)

    def predict(self, kv: Pool, slots_N: Tensor, hidden_NTD: Tensor, begin_N: Tensor, count_N: Tensor) -> None:
        """Let the module, where there is one, draft each sequence's token after the one just drawn.

        It reads the hidden states of the last `count` tokens that were checked, from token `begin` on, each with the
        token that follows. Sequences that have ended meanwhile are left out, others in the buckets are passed over.
        """
        buckets, table = kv.busy(), self.table
        if self.predictor is None or not buckets:
            return
        running = kv.slots()
        T = hidden_NTD.shape[1]
        row_of = torch.full((len(table.sequences),), -1, dtype=torch.long, device=running.device)
        row_of[slots_N] = torch.arange(len(slots_N), device=running.device)
        row = row_of[running]
        known = row >= 0
        hidden = hidden_NTD[row.clamp(min=0)]
        count = torch.where(known, count_N[row.clamp(min=0)], 1)
        begin = torch.where(known, begin_N[row.clamp(min=0)], table.length[running])
        place = (table.made[running] - count)[:, None] + torch.arange(T, device=running.device)
        following = table.tokens[running[:, None], place.clamp(0, table.tokens.shape[1] - 1)]
        with exactly(self.exact):
            out = self.prefill(buckets, begin.split([len(bucket) for bucket in buckets]), hidden, following)
            logits = self.predictor.logits(out[torch.arange(len(running), device=running.device), count - 1])
        draft = self.sampler.choose(table, running, logits).tokens
        table.draft[running] = torch.where(known, draft, table.draft[running])
