"""The model's passes: a chunk of prompts, or a token and what was guessed behind it for all running sequences."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List

import torch
from torch import Tensor

from hadal.engine.config import EngineConfig
from hadal.engine.drafts import Drafts
from hadal.engine.graphs import Graphs, can_record, cuda_recorder
from hadal.engine.jobs import Computed, Decode, Reading
from hadal.engine.lanes import Lane, Pass
from hadal.engine.memory import chunk_size
from hadal.engine.runs import PADDING
from hadal.engine.table import Table
from hadal.engine.weights import Weights
from hadal.models.packed import stable_in
from hadal.ops.exact import exactly, padded_rows

Start = Callable[[Reading], tuple[Tensor, Tensor]]
"""`Scheduler.start`: lets the sequences of prompts that are read begin, and says who needs a first token."""


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

    def run(self, work: Reading | Decode | None) -> Computed | None:
        """Logits of the next tokens; None where there is nothing to do, or prompts are not read to their end."""
        if self.graphs is not None:
            self.graphs.follow(self.weights.generation, moved=self.weights.copied)
        if work is None:
            return None
        with exactly(self.exact):
            return self._read(work) if isinstance(work, Reading) else self._decode(work)

    def _read(self, r: Reading) -> Computed | None:
        """One chunk of the prompts that are being read; when it was the last, their sequences begin to run."""
        left = int((r.total - r.done).max())
        most = max(self.chunk // len(r.jobs) // PADDING, 1) * PADDING
        tokens = min(-(-left // PADDING) * PADDING, most)
        device = r.done.device
        # A row that is done is padding, which has to stay inside the lane.
        begin = torch.minimum(r.done, torch.tensor(r.lane.size - tokens, device=device)).clamp(min=0)
        ids = torch.zeros(len(r.jobs), tokens, dtype=torch.long, device=device)
        for row, (job, start) in enumerate(zip(r.jobs, begin.tolist(), strict=True)):
            part = job.tokens[start : start + tokens]
            ids[row, : len(part)] = torch.tensor(part, device=device)
        N = len(r.jobs)
        spare = padded_rows(N, tokens, self.stable) - N
        columns = Pass([r.lane], [begin], self.context, self.exact, spare)
        hidden = self.model(torch.cat([ids, ids.new_zeros(spare, tokens)]) if spare else ids, columns)[:N]
        ends = (r.total - 1 >= begin) & (r.total - 1 < begin + tokens)
        if self.drafts.predictor is not None:  # it reads each token with the one that follows
            following = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)
            for row, (job, start) in enumerate(zip(r.jobs, begin.tolist(), strict=True)):
                if start + tokens < len(job.tokens):
                    following[row, -1] = job.tokens[start + tokens]
            self.drafts.read([r.lane], [begin], hidden, following)
        rows = ends.nonzero()[:, 0]
        r.last[rows] = hidden[rows, (r.total - 1 - begin)[rows]]
        r.done = torch.minimum(r.total, begin + tokens)
        return self._ended(r) if bool((r.done == r.total).all()) else None

    def _ended(self, r: Reading) -> Computed | None:
        """Logits of the tokens behind prompts that are read, from the hidden states of the prompts' last ones."""
        slots, rows = self.start(r)
        N = len(slots)
        if N == 0:
            return None
        hidden = r.last[rows]
        spare = self.stable(N) - N
        logits = self.model.logits(torch.cat([hidden, hidden.new_zeros(spare, hidden.shape[1])]))
        return Computed(slots, self.table.length[slots] - 1, slots.new_empty(N, 0), hidden[:, None], logits[:, None])

    def _decode(self, work: Decode) -> Computed:
        """The tokens behind the last of every running sequence, and behind those that were guessed."""
        slots = work.slots
        guessed = self.drafts.guess(slots)
        ids = torch.cat([self.table.last_tokens(slots)[:, None], guessed.clamp(min=0)], dim=1)
        lengths = [self.table.length[lane.slots] for lane in work.lanes]
        replayed = self.graphs.run(work.lanes, ids, lengths) if self.graphs is not None else None
        hidden, logits = self._pass(work.lanes, ids, lengths) if replayed is None else replayed
        self.table.length[slots] += 1  # the last token is in the cache now; of the guessed, those that turn out right
        return Computed(slots, torch.cat(lengths), guessed, hidden[: len(slots)], logits)

    def _pass(self, lanes: List[Lane], ids_NT: Tensor, lengths: List[Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states and logits of a step, with spare rows behind those of the lanes, that exactness may need."""
        N, T = ids_NT.shape
        spare = padded_rows(N, T, self.stable) - N
        if spare:
            ids_NT = torch.cat([ids_NT, ids_NT.new_zeros(spare, T)])
        hidden = self.model(ids_NT, Pass(lanes, lengths, self.context, self.exact, spare))
        return hidden, self.model.logits(hidden.flatten(0, 1)).view(N + spare, T, -1)
