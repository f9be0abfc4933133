"""What runs next: prompts are admitted, sequences get their rows or are preempted, prefill and decode take turns.

When memory runs out, the sequence that came last is preempted: its tokens are prefilled again later. Nothing here
computes with the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from hadal.engine.config import EngineConfig
from hadal.engine.kv.pool import Pool, prefill_size
from hadal.engine.kv.prefix import BLOCK
from hadal.engine.request import Request, Sequence
from hadal.engine.table import Table
from hadal.engine.weights import Weights
from hadal.engine.work import Decode, Job, Prefill


class Scheduler:
    """The queue of waiting jobs, the prompts in prefill, and whose turn it is."""

    def __init__(self, config: EngineConfig, weights: Weights, kv: Pool, table: Table) -> None:
        self.config, self.weights, self.kv, self.table = config, weights, kv, table
        self.waiting: deque[Job] = deque()
        self.prefill: Prefill | None = None
        self._prefilled_last = False

    def has_work(self) -> bool:
        """Whether anything waits, is in prefill or decodes."""
        return bool(self.waiting) or self.prefill is not None or self.kv.running > 0

    def schedule(self) -> Prefill | Decode | None:
        """A chunk of the prompts in prefill, or a token for each running sequence; by turns where both wait.

        None where there is nothing to do, or the only sequence has to be prefilled again in a longer row.
        """
        self.kv.prefix.follow(self.weights.follow())
        if self.prefill is None and self.waiting and not (self.kv.running and self._prefilled_last):
            self._admit()
        if self.prefill is not None and not (self.kv.running and self._prefilled_last):
            self._prefilled_last = True
            return self.prefill
        if not self.kv.running:
            return None
        self._prefilled_last = False
        while not self.kv.grow(self.table.length):
            self._preempt()
        # Even alone, a sequence may not fit into memory twice: it is prefilled again in the longer row.
        return Decode(self.kv.busy(), self.kv.slots()) if self.kv.running else None

    def drop(self, request: Request) -> None:
        """Forget a request: what waits of it, the prefill that is for it alone, and its rows."""
        self.waiting = deque(job for job in self.waiting if job.request is not request)
        if self.prefill is not None:
            for job in self.prefill.jobs:
                if job.request is request:
                    job.sequences = []
            if not any(job.sequences for job in self.prefill.jobs):
                self.prefill = self.kv.prefill = None
        for sequence in request.sequences:
            if sequence.sample is None and sequence.slot >= 0:
                self.kv.drop_one(sequence.slot, self.table.length)

    # ---------------------------------------------------------------------------------- admission

    def _admit(self) -> None:
        """Begin the prefill of the first of the waiting jobs, with those behind it that fit beside it."""
        self.weights.check()
        self._split()
        jobs: list[Job] = []
        width = needed = rows = 0
        for job in self.waiting:
            length = len(job.tokens)
            if jobs and (len(jobs) + 1) * max(width, length) > self.config.chunk:
                break
            size = prefill_size(max(width, length))
            decoding = sum(self._row_size(sequence, length) for sequence in job.sequences)
            wanted = needed + decoding + (len(jobs) + 1) * size
            if not jobs and len(job.sequences) == 1 and self.kv.is_idle(decoding):
                wanted = decoding  # it is prefilled where it will decode
            if rows + self.kv.running and rows + self.kv.running + len(job.sequences) > self.config.rows:
                break
            if not self.kv.reclaim(wanted) and (jobs or self.kv.running):
                break
            jobs.append(job)
            width, needed, rows = max(width, length), needed + decoding, rows + len(job.sequences)
        if not jobs:
            return
        for _ in jobs:
            self.waiting.popleft()
        in_place = rows == 1 and self.kv.is_idle(needed)
        self.prefill = self._begin(jobs, needed if in_place else prefill_size(width), in_place)

    def _begin(self, jobs: list[Job], size: int, in_place: bool) -> Prefill:
        """The jobs in a bucket of their own, with what the prefix cache has of their prompts."""
        # The last token is always computed: what comes next is read from it.
        hits = [self.kv.prefix.find(job.keys[: (len(job.tokens) - 1) // BLOCK]) for job in jobs]
        self.kv.prefill = bucket = self.kv.new_bucket(size)
        bucket.resize(len(jobs))
        for row, (job, hit) in enumerate(zip(jobs, hits, strict=True)):
            self.kv.prefix.read(job.keys[:hit], bucket, row)
            if not job.resumed:
                job.request.cached = max(job.request.cached, hit * BLOCK)
        model, device = self.weights.model, self.table.device
        done = torch.tensor([hit * BLOCK for hit in hits], device=device)
        total = torch.tensor([len(job.tokens) for job in jobs], device=device)
        last = model.norm.weight.new_zeros(len(jobs), model.config.hidden_size)
        return Prefill(jobs, bucket, done, total, last, self.weights.generation, in_place)

    def _split(self) -> None:
        """Let the first of a job's sequences go ahead of the rest, where its prompt and its row do not fit at once."""
        job = self.waiting[0]
        if self.kv.running or len(job.sequences) < 2:
            return
        first, *rest = job.sequences
        length = len(job.tokens)
        if not self.kv.reclaim(prefill_size(length) + self._row_size(first, length)):
            self.waiting[0] = Job(job.request, rest, job.tokens, job.resumed)
            self.waiting.appendleft(Job(job.request, [first], job.tokens, job.resumed))

    def _row_size(self, sequence: Sequence, length: int) -> int:
        """The size of the row that a sequence begins in: its whole answer's, unless that is long."""
        most = len(sequence.request.prompt) + sequence.request.limit - 1  # the last token is never read
        return self.kv.size(min(most, length + self.config.reserve) + self.kv.lookahead)

    # ---------------------------------------------------------------------------------- from prefill to decode

    def start(self, prefill: Prefill) -> tuple[Tensor, Tensor]:
        """Give the sequences whose prefill is done their rows, as many as fit; the others are prefilled again later.

        Returns the slots [N] of those that have no token yet, and the rows [N] of their prompts.
        """
        self.prefill = None
        fresh = [self._join(prefill, size, who) for size, who in sorted(self._placed(prefill).items())]
        self.kv.prefill = None
        none = prefill.total.new_empty(0)
        return torch.cat([none, *(slots for slots, _ in fresh)]), torch.cat([none, *(rows for _, rows in fresh)])

    def _placed(self, prefill: Prefill) -> dict[int, list[tuple[Sequence, int]]]:
        """The sequences that fit, each with its prompt's row, by the size of their own; the rest waits in front.

        The prompts go into the prefix cache.
        """
        joining: dict[int, list[tuple[Sequence, int]]] = {}
        rows = self.kv.running
        deferred: list[Job] = []
        for row, job in enumerate(prefill.jobs):
            if self.config.keep_prompts and not job.resumed and prefill.generation == self.weights.generation:
                self.kv.prefix.write(job.keys, prefill.bucket, row)
            left = list(job.sequences)
            while left:
                size = prefill.bucket.size if prefill.in_place else self._row_size(left[0], len(job.tokens))
                asked = sum(size_ * len(who) for size_, who in joining.items())
                more = 0 if prefill.in_place and self.kv.is_idle(size) else asked + size
                fits = self.kv.reclaim(more) and rows < self.config.rows
                if rows and not fits:
                    break
                joining.setdefault(size, []).append((left.pop(0), row))
                rows += 1
            if left:
                deferred.append(Job(job.request, left, job.tokens, job.resumed))
        self.waiting.extendleft(reversed(deferred))
        return joining

    def _join(self, prefill: Prefill, size: int, who: Iterable[tuple[Sequence, int]]) -> tuple[Tensor, Tensor]:
        """Rows of one size for sequences; the slots of those that have no token yet, and their prompts' rows."""
        sequences, rows = zip(*who, strict=True)
        bucket = self.kv.bucket(size)
        new = [sequence for sequence in sequences if sequence.slot < 0]
        for sequence in new:
            sequence.generation = prefill.generation
        self.table.add(new)
        slots = torch.tensor([sequence.slot for sequence in sequences], device=self.table.device)
        source = torch.tensor(rows, device=self.table.device)
        tokens = int(prefill.total[source].max())
        if prefill.in_place and len(bucket) == 0:
            self.kv.adopt(prefill.bucket, slots, tokens)
        else:
            self.kv.reserve(bucket, len(slots))
            bucket.join(slots, prefill.bucket, source, tokens)
        self.table.length[slots] = prefill.total[source]
        begins = self.table.made[slots] == 0
        return slots[begins], source[begins]

    # ---------------------------------------------------------------------------------- preemption

    def _preempt(self) -> None:
        """Take the memory of what began last; it waits in front and is prefilled again."""
        running = [self.table.sequences[slot] for slot in self.kv.slots().tolist()]
        latest = max((s for s in running if s is not None), key=lambda s: (s.request.number, s.index))
        jobs = self.prefill.jobs if self.prefill is not None else []
        if jobs and (len(running) == 1 or max(job.request.number for job in jobs) >= latest.request.number):
            self.prefill = self.kv.prefill = None
            self.waiting.extendleft(job for job in reversed(jobs) if job.sequences)
            return
        self.kv.drop_one(latest.slot, self.table.length)
        tokens = latest.request.prompt + self.table.generated(latest)[:-1]
        self.waiting.appendleft(Job(latest.request, [latest], tokens, resumed=True))
