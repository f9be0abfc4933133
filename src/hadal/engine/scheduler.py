"""What runs next: prompts are let in, sequences get their runs or are put off, reading and decoding take turns.

When memory runs out, the sequence that came last is put off and read again later. It decides alone: nothing here
computes with the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from hadal.engine.config import EngineConfig
from hadal.engine.jobs import Decode, Job, Reading
from hadal.engine.prefix import BLOCK
from hadal.engine.request import Request, Sequence
from hadal.engine.runs import Runs, reading_size
from hadal.engine.table import Table
from hadal.engine.weights import Weights
from hadal.text.tokenizer import Tokenizer


class Scheduler:
    """The queue of waiting jobs, the prompts that are being read, and whose turn it is."""

    def __init__(
        self, config: EngineConfig, tokenizer: Tokenizer, weights: Weights, runs: Runs, table: Table
    ) -> None:
        self.config, self.tokenizer, self.weights = config, tokenizer, weights
        self.runs, self.table = runs, table
        self.waiting: deque[Job] = deque()
        self.reading: Reading | None = None
        self._read_last = False

    def has_work(self) -> bool:
        """Whether anything waits, is read or runs."""
        return bool(self.waiting) or self.reading is not None or self.runs.running > 0

    def schedule(self) -> Reading | Decode | None:
        """A chunk of the prompts that are being read, or a token for each running sequence; by turns where both wait.

        None where there is nothing to do, or the only sequence has to be read again in a longer run.
        """
        self.runs.store.follow(self.weights.follow())
        if self.reading is None and self.waiting and not (self.runs.running and self._read_last):
            self._admit()
        if self.reading is not None and not (self.runs.running and self._read_last):
            self._read_last = True
            return self.reading
        if not self.runs.running:
            return None
        self._read_last = False
        while not self.runs.grow(self.table.length):
            self._put_off()
        # Not even alone a sequence may have both its runs at once: it is read again in the longer one.
        return Decode(self.runs.busy(), self.runs.slots()) if self.runs.running else None

    def drop(self, request: Request) -> None:
        """Forget a request: what waits of it, what is being read for it alone, and its runs."""
        self.waiting = deque(job for job in self.waiting if job.request is not request)
        if self.reading is not None:
            for job in self.reading.jobs:
                if job.request is request:
                    job.sequences = []
            if not any(job.sequences for job in self.reading.jobs):
                self.reading = self.runs.reading = None
        for sequence in request.sequences:
            if sequence.sample is None and sequence.slot >= 0:
                self.runs.drop_one(sequence.slot, self.table.length)

    # ---------------------------------------------------------------------------------- letting in

    def _admit(self) -> None:
        """Begin to read the first of the waiting jobs, with those behind it that fit beside it."""
        self.weights.check()
        self._split()
        jobs: list[Job] = []
        width = needed = rows = 0
        for job in self.waiting:
            length = len(job.tokens)
            if jobs and (len(jobs) + 1) * max(width, length) > self.config.chunk:
                break
            size = reading_size(max(width, length))
            runs = sum(self._run_size(sequence, length) for sequence in job.sequences)
            wanted = needed + runs + (len(jobs) + 1) * size
            if not jobs and len(job.sequences) == 1 and self.runs.is_free(runs):
                wanted = runs  # it is read where it will run
            if rows + self.runs.running and rows + self.runs.running + len(job.sequences) > self.config.rows:
                break
            if not self.runs.make_room(wanted) and (jobs or self.runs.running):
                break
            jobs.append(job)
            width, needed, rows = max(width, length), needed + runs, rows + len(job.sequences)
        if not jobs:
            return
        for _ in jobs:
            self.waiting.popleft()
        own = rows == 1 and self.runs.is_free(needed)
        self.reading = self._begin(jobs, needed if own else reading_size(width), own)

    def _begin(self, jobs: list[Job], size: int, own: bool) -> Reading:
        """The jobs in a lane of their own, with what of their prompts is kept."""
        # The last token is always computed: what comes next is read from it.
        hits = [self.runs.store.find(job.keys[: (len(job.tokens) - 1) // BLOCK]) for job in jobs]
        self.runs.reading = lane = self.runs.new_lane(size)
        lane.resize(len(jobs))
        for row, (job, hit) in enumerate(zip(jobs, hits, strict=True)):
            self.runs.store.read(job.keys[:hit], lane, row)
            if not job.resumed:
                job.request.cached = max(job.request.cached, hit * BLOCK)
        model, device = self.weights.model, self.table.device
        done = torch.tensor([hit * BLOCK for hit in hits], device=device)
        total = torch.tensor([len(job.tokens) for job in jobs], device=device)
        last = model.norm.weight.new_zeros(len(jobs), model.config.hidden_size)
        return Reading(jobs, lane, done, total, last, self.weights.generation, own)

    def _split(self) -> None:
        """Let the first of a job's sequences go ahead of the rest, where its prompt and its run do not fit at once."""
        job = self.waiting[0]
        if self.runs.running or len(job.sequences) < 2:
            return
        first, *rest = job.sequences
        length = len(job.tokens)
        if not self.runs.make_room(reading_size(length) + self._run_size(first, length)):
            self.waiting[0] = Job(job.request, rest, job.tokens, job.resumed)
            self.waiting.appendleft(Job(job.request, [first], job.tokens, job.resumed))

    def _run_size(self, sequence: Sequence, length: int) -> int:
        """The size of the run that a sequence begins in: its whole answer's, unless that is long."""
        most = len(sequence.request.prompt) + sequence.request.limit - 1  # the last token is never read
        return self.runs.size(min(most, length + self.config.room) + self.runs.overhang)

    # ---------------------------------------------------------------------------------- from reading to running

    def start(self, r: Reading) -> tuple[Tensor, Tensor]:
        """Give the sequences of prompts that are read their runs, as many as fit; the others are read again later.

        Returns the slots [N] of those that have no token yet, and the rows [N] of their prompts.
        """
        self.reading = None
        fresh = [self._join(r, size, who) for size, who in sorted(self._placed(r).items())]
        self.runs.reading = None
        slots, rows = zip(*fresh, strict=True) if fresh else ((), ())
        none = r.total.new_empty(0)
        return torch.cat([none, *slots]), torch.cat([none, *rows])

    def _placed(self, r: Reading) -> dict[int, list[tuple[Sequence, int]]]:
        """The sequences that fit, each with its prompt's row, by the size of their runs; the rest waits in front.

        What was computed of the prompts is kept.
        """
        joining: dict[int, list[tuple[Sequence, int]]] = {}
        rows = self.runs.running
        put_off: list[Job] = []
        for row, job in enumerate(r.jobs):
            if self.config.keep_prompts and not job.resumed and r.generation == self.weights.generation:
                self.runs.store.write(job.keys, r.lane, row)
            left = list(job.sequences)
            while left:
                size = r.lane.size if r.own else self._run_size(left[0], len(job.tokens))
                asked = sum(size_ * len(who) for size_, who in joining.items())
                more = 0 if r.own and self.runs.is_free(size) else asked + size
                fits = self.runs.make_room(more) and rows < self.config.rows
                if rows and not fits:
                    break
                joining.setdefault(size, []).append((left.pop(0), row))
                rows += 1
            if left:
                put_off.append(Job(job.request, left, job.tokens, job.resumed))
        self.waiting.extendleft(reversed(put_off))
        return joining

    def _join(self, r: Reading, size: int, who: Iterable[tuple[Sequence, int]]) -> tuple[Tensor, Tensor]:
        """Runs of one size for sequences; the slots of those that have no token yet, and their prompts' rows."""
        sequences, rows = zip(*who, strict=True)
        lane = self.runs.lane(size)
        new = [sequence for sequence in sequences if sequence.slot < 0]
        for sequence in new:
            sequence.generation = r.generation
        self.table.add(new, [self.tokenizer.in_thought(sequence.request.prompt) for sequence in new])
        slots = torch.tensor([sequence.slot for sequence in sequences], device=self.table.device)
        source = torch.tensor(rows, device=self.table.device)
        columns = int(r.total[source].max())
        if r.own and len(lane) == 0:
            self.runs.adopt(r.lane, slots, columns)
        else:
            self.runs.reserve(lane, len(slots))
            lane.join(slots, r.lane, source, columns)
        self.table.length[slots] = r.total[source]
        begins = self.table.made[slots] == 0
        return slots[begins], source[begins]

    # ---------------------------------------------------------------------------------- putting off

    def _put_off(self) -> None:
        """Take the memory of what began last; it waits in front and is read again."""
        running = [self.table.sequences[slot] for slot in self.runs.slots().tolist()]
        latest = max((s for s in running if s is not None), key=lambda s: (s.request.number, s.index))
        reading = self.reading.jobs if self.reading is not None else []
        if reading and (len(running) == 1 or max(job.request.number for job in reading) >= latest.request.number):
            self.reading = self.runs.reading = None
            self.waiting.extendleft(job for job in reversed(reading) if job.sequences)
            return
        self.runs.drop_one(latest.slot, self.table.length)
        tokens = latest.request.prompt + self.table.generated(latest)[:-1]
        self.waiting.appendleft(Job(latest.request, [latest], tokens, resumed=True))
