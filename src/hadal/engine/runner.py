"""The model's forward passes: a chunk of prompts, or a token and its drafts for all running sequences."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List

import torch
from torch import Tensor

from hadal.engine.config import EngineConfig
from hadal.engine.graphs import Graphs, can_record, cuda_recorder
from hadal.engine.kv.buckets import Bucket, CacheView
from hadal.engine.kv.pool import PADDING
from hadal.engine.memory import chunk_size
from hadal.engine.speculation import Drafts
from hadal.engine.table import Table
from hadal.engine.weights import Weights
from hadal.engine.work import Computed, Decode, Prefill
from hadal.models.packed import stable_in
from hadal.ops.exact import exactly, padded_rows

Start = Callable[[Prefill], tuple[Tensor, Tensor]]
"""`Scheduler.start`: lets sequences begin to decode, and says who needs a first token."""


class Runner:
    """Runs what the scheduler has chosen; hidden states and logits come out."""

    def __init__(
        self, config: EngineConfig, weights: Weights, table: Table, drafts: Drafts, start: Start
    ) -> None:
        self.config, self.weights, self.table, self.drafts, self.start = config, weights, table, drafts, start
        self.model = model = weights.model
        self.context, self.exact = model.config.max_position_embeddings, config.exact
        self.chunk = chunk_size(config.chunk, model)
        self.stable = stable_in(model) if config.exact else lambda count: count
        self.graphs = self._recordings()

    def _recordings(self) -> Graphs | None:
        on_gpu = self.model.device.type == "cuda"
        wanted = on_gpu if self.config.graphs is None else self.config.graphs
        if not wanted or not can_record(self.model, self.exact):
            return None
        record = cuda_recorder() if on_gpu else lambda work: work  # elsewhere a step is only done again
        return Graphs(self.model, self.context, self.exact, self.stable, record)

    def run(self, work: Prefill | Decode | None) -> Computed | None:
        """Logits of the next tokens; None where there is nothing to do, or prompts are not at their end."""
        if self.graphs is not None:
            self.graphs.follow(self.weights.generation, moved=self.weights.copied)
        if work is None:
            return None
        with exactly(self.exact):
            return self._prefill(work) if isinstance(work, Prefill) else self._decode(work)

    def _prefill(self, prefill: Prefill) -> Computed | None:
        """One chunk of prompts; when it was the last, their sequences begin to decode."""
        left = int((prefill.total - prefill.done).max())
        most = max(self.chunk // len(prefill.jobs) // PADDING, 1) * PADDING
        tokens = min(-(-left // PADDING) * PADDING, most)
        device = prefill.done.device
        # A row that is done is padding, which has to stay inside the bucket.
        begin = torch.minimum(prefill.done, torch.tensor(prefill.bucket.size - tokens, device=device)).clamp(min=0)
        ids = torch.zeros(len(prefill.jobs), tokens, dtype=torch.long, device=device)
        for row, (job, start) in enumerate(zip(prefill.jobs, begin.tolist(), strict=True)):
            part = job.tokens[start : start + tokens]
            ids[row, : len(part)] = torch.tensor(part, device=device)
        N = len(prefill.jobs)
        spare = padded_rows(N, tokens, self.stable) - N
        view = CacheView([prefill.bucket], [begin], self.context, self.exact, spare)
        hidden = self.model(torch.cat([ids, ids.new_zeros(spare, tokens)]) if spare else ids, view)[:N]
        ends = (prefill.total - 1 >= begin) & (prefill.total - 1 < begin + tokens)
        if self.drafts.predictor is not None:  # it reads each token with the one that follows
            following = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)
            for row, (job, start) in enumerate(zip(prefill.jobs, begin.tolist(), strict=True)):
                if start + tokens < len(job.tokens):
                    following[row, -1] = job.tokens[start + tokens]
            self.drafts.prefill([prefill.bucket], [begin], hidden, following)
        rows = ends.nonzero()[:, 0]
        prefill.last[rows] = hidden[rows, (prefill.total - 1 - begin)[rows]]
        prefill.done = torch.minimum(prefill.total, begin + tokens)
        return self._first_tokens(prefill) if bool((prefill.done == prefill.total).all()) else None

    def _first_tokens(self, prefill: Prefill) -> Computed | None:
        """Logits of the tokens behind prompts, from the hidden states of the prompts' last tokens."""
        slots, rows = self.start(prefill)
        N = len(slots)
        if N == 0:
            return None
        hidden = prefill.last[rows]
        spare = self.stable(N) - N
        logits = self.model.logits(torch.cat([hidden, hidden.new_zeros(spare, hidden.shape[1])]))
        return Computed(slots, self.table.length[slots] - 1, slots.new_empty(N, 0), hidden[:, None], logits[:, None])

    def _decode(self, work: Decode) -> Computed:
        """Logits behind the last token of every running sequence, and behind its drafts."""
        slots = work.slots
        drafts = self.drafts.propose(slots)
        ids = torch.cat([self.table.last_tokens(slots)[:, None], drafts.clamp(min=0)], dim=1)
        lengths = [self.table.length[bucket.slots] for bucket in work.buckets]
        replayed = self.graphs.run(work.buckets, ids, lengths) if self.graphs is not None else None
        hidden, logits = self._forward(work.buckets, ids, lengths) if replayed is None else replayed
        self.table.length[slots] += 1  # the last token is in the cache now; of the drafts, those that are accepted
        return Computed(slots, torch.cat(lengths), drafts, hidden[: len(slots)], logits)

    def _forward(self, buckets: List[Bucket], ids_NT: Tensor, lengths: List[Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states and logits of a step, with spare rows behind those of the buckets, that exactness may need."""
        N, T = ids_NT.shape
        spare = padded_rows(N, T, self.stable) - N
        if spare:
            ids_NT = torch.cat([ids_NT, ids_NT.new_zeros(spare, T)])
        hidden = self.model(ids_NT, CacheView(buckets, lengths, self.context, self.exact, spare))
        return hidden, self.model.logits(hidden.flatten(0, 1)).view(N + spare, T, -1)
