"""The engine's loop: `step` reads a part of the waiting prompts or generates one more token for all that run.

A prompt is read once for all its samples, in chunks, in a lane of its own; then each sample gets a run in a lane and
they decode together. When memory runs out the sequence that came last is put off and read again later. In exact
mode (the default) none of this changes a single bit of what a request gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as List

import torch
from torch import Tensor

from hadal.cost.memory import gigabytes
from hadal.engine.config import EngineConfig
from hadal.engine.drafts import Drafts
from hadal.engine.graphs import Graphs, can_record, cuda_recorder
from hadal.engine.jobs import Job, Reading
from hadal.engine.lanes import Lane, Pass, run_size
from hadal.engine.memory import cache_budget, chunk_size
from hadal.engine.params import SamplingParams
from hadal.engine.prefix import BLOCK, PrefixStore
from hadal.engine.promise import inexact
from hadal.engine.request import Finish, Request, Sample, Sequence
from hadal.engine.runs import PADDING, Runs, reading_size
from hadal.engine.sampler import Choice, Sampler, forbidden_ids
from hadal.engine.table import Table
from hadal.engine.weights import Weights
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.models.packed import stable_in
from hadal.ops.exact import exactly, padded_rows
from hadal.text.length import TooLong
from hadal.text.tokenizer import Tokenizer


class Engine:
    """Requests in, tokens out. Not thread-safe: one thread adds, steps and aborts."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        self.tokenizer, self.config = tokenizer, config or EngineConfig()
        self.weights = Weights(model, self.config.check_weights)
        self.model = model = self.weights.model
        like = model.norm.weight  # the embedding of a packed model may be narrower than what it computes in
        self.device = like.device
        self.forbidden = forbidden_ids(tokenizer, model)
        self.ends = torch.tensor(sorted(tokenizer.eos_ids), device=self.device)
        self.sampler = Sampler(tokenizer, self.forbidden)
        self.table = Table(self.device)
        self.waiting: deque[Job] = deque()
        self.reading: Reading | None = None
        self.context = model.config.max_position_embeddings
        self.drafts = Drafts(
            self.config.speculate, self.config.draft, model, self.table, self.sampler, self.config.exact
        )
        widths = model.cache_widths(ahead=self.drafts.predictor is not None)
        self.column_bytes = sum(heads * width for layer in widths for heads, width in layer) * model.dtype.itemsize
        budget = cache_budget(self.config.cache_bytes) // self.column_bytes
        self.runs = Runs(budget, 1 + self.drafts.count, widths, like)
        self.chunk = chunk_size(self.config.chunk, model)
        self.stable = stable_in(model) if self.config.exact else lambda count: count
        self.graphs = self._recordings()
        self._requests = 0
        self._read_last = False
        self._top: dict[int, list[dict[int, float]]] = {}

    def _recordings(self) -> Graphs | None:
        on_gpu = self.device.type == "cuda"
        wanted = on_gpu if self.config.graphs is None else self.config.graphs
        if not wanted or not can_record(self.model, self.config.exact):
            return None
        record = cuda_recorder() if on_gpu else lambda work: work  # elsewhere a step is only done again
        return Graphs(self.model, self.context, self.config.exact, self.stable, record)

    @property
    def longest(self) -> int:
        """The most tokens that a request can have, prompt and answer: what the model reads, or the cache holds."""
        return max(min(self.context, self.runs.longest()), 0)

    def inexact(self) -> str:
        """Why a request's bits may depend on its company here, in words; empty where exactness is promised."""
        return inexact(self.model) if self.config.exact else "exact=False was asked for"

    def budget(self) -> str:
        """The memory of the cache in words, and what it holds of one request or of all."""
        holds = max(self.runs.longest(), 0)
        share = "" if self.config.cache_bytes is not None else ", half of what is free"
        less = f", fewer than the {self.context:,} that the model reads" if holds < self.context else ""
        return f"The cache may take {gigabytes(self.runs.budget * self.column_bytes)}{share}: {holds:,} tokens{less}."

    # ---------------------------------------------------------------------------------- requests

    def add(self, prompt: List[int], params: SamplingParams, seed: int, salt: str = "") -> Request:
        """Queue a request. UserError for one that cannot be answered; salt keeps prefixes of users apart.

        What it asks for it gets, however little memory there is: it waits for its turn, and where it would not fit
        alone it is refused. The end of the model's context ends it too, and without max_tokens that of the cache.
        """
        prompt = list(prompt)
        if params.thinking and not self.tokenizer.in_thought(prompt):
            prompt.append(self.tokenizer.think_id)
        self.check(prompt, params)
        limit = self._limit(len(prompt), params)
        self._requests += 1
        request = Request(self._requests, prompt, params, seed, limit, salt)
        self.waiting.append(Job(request, list(request.sequences), prompt))
        return request

    def _limit(self, length: int, params: SamplingParams) -> int:
        """How many tokens a sample may have; UserError where the cache does not hold them."""
        holds = self.runs.longest()
        left = self.context - length
        wanted = left if params.max_tokens is None else min(params.max_tokens, left)
        needed = length + (1 if params.max_tokens is None else wanted)
        if needed > holds:
            cause = f"The prompt has {length:,} tokens"
            cause += "" if params.max_tokens is None else f" and max_tokens is {params.max_tokens:,}"
            room = gigabytes(self.runs.budget * self.column_bytes)
            enough = run_size(needed + self.runs.overhang)
            raise TooLong(
                f"{cause}: the cache of {room} holds {max(holds, 0):,} for a request.",
                f"Ask for less, or free memory for a cache of {gigabytes(enough * self.column_bytes)}.",
                "prompt" if params.max_tokens is None or length >= holds else "max_tokens",
                of_memory=True,
            )
        return min(wanted, holds - length)

    def check(self, prompt: List[int], params: SamplingParams) -> None:
        """UserError for a prompt that the model cannot read, and for settings that do not fit it. From any thread."""
        vocabulary = self.model.config.vocab_size
        if not prompt:
            raise UserError("The prompt is empty.", "Give it at least one token.")
        if not all(isinstance(i, int) and 0 <= i < vocabulary for i in prompt):
            raise UserError(f"The prompt holds ids outside of 0 to {vocabulary - 1}.", "Is it another model's?")
        if len(prompt) >= self.context:
            cause = f"The prompt has {len(prompt)} tokens, the model reads {self.context}."
            raise TooLong(cause, "Shorten it.", "prompt")
        for name, ids in (("logit_bias", params.logit_bias or {}), ("stop_token_ids", params.stop_token_ids)):
            if not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
                raise UserError(f"{name} holds ids outside of 0 to {vocabulary - 1}.", "Is it another model's?")
        if params.thinking_budget is not None:
            _ = self.tokenizer.end_think_id  # says so where there is none
        self._limit(len(prompt), params)

    def abort(self, request: Request) -> None:
        """Drop what is left of a request."""
        self.waiting = deque(job for job in self.waiting if job.request is not request)
        if self.reading is not None:
            for job in self.reading.jobs:
                if job.request is request:
                    job.sequences = []
            if not any(job.sequences for job in self.reading.jobs):
                self.reading = self.runs.reading = None
        for sequence in request.sequences:
            if sequence.sample is None:
                if sequence.slot >= 0:
                    self.runs.drop_one(sequence.slot, self.table.length)
                self._finish(sequence, "abort")

    def answer_now(self, request: Request) -> None:
        """Close the open thoughts of a running request: their next token is `</think>`."""
        for sequence in request.sequences:
            if sequence.slot >= 0:
                self.table.budget[sequence.slot] = 0

    def progress(self, sequence: Sequence, begin: int) -> tuple[list[int], list[float], list[dict[int, float]]]:
        """A running sequence's tokens from a place on, and their log-probabilities where these are wanted."""
        tokens = self.table.generated(sequence, begin)
        if not tokens or sequence.request.params.logprobs is None:
            return tokens, [], []
        slot = sequence.slot
        logprobs = self.table.logprobs[slot, begin : begin + len(tokens)].tolist()
        return tokens, logprobs, self._top.get(slot, [])[begin:]

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting) or self.reading is not None or self.runs.running > 0

    # ---------------------------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self) -> None:
        """Read a chunk of prompts, or generate a token for each running sequence; by turns where both wait."""
        if self.weights.renew():
            self.runs.store.clear()
            if self.graphs is not None:
                self.graphs.refresh(moved=self.weights.copied)
        with exactly(self.config.exact):
            if self.reading is None and self.waiting and not (self.runs.running and self._read_last):
                self._admit()
            if self.reading is not None and not (self.runs.running and self._read_last):
                self._read_last = True
                self._read()
            elif self.runs.running:
                self._read_last = False
                self._decode()

    def release(self) -> None:
        """Give back the memory of runs, where nothing is under way."""
        if not self.has_work():
            self.runs.lanes.clear()

    # ---------------------------------------------------------------------------------- reading prompts

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
        # The last token is always computed: what comes next is read from it.
        hits = [self.runs.store.find(job.keys[: (len(job.tokens) - 1) // BLOCK]) for job in jobs]
        own = rows == 1 and self.runs.is_free(needed)
        self.runs.reading = lane = self.runs.new_lane(needed if own else reading_size(width))
        lane.resize(len(jobs))
        for row, (job, hit) in enumerate(zip(jobs, hits, strict=True)):
            self.runs.store.read(job.keys[:hit], lane, row)
            if not job.resumed:
                job.request.cached = max(job.request.cached, hit * BLOCK)
        done = torch.tensor([hit * BLOCK for hit in hits], device=self.device)
        total = torch.tensor([len(job.tokens) for job in jobs], device=self.device)
        last = self.model.norm.weight.new_zeros(len(jobs), self.model.config.hidden_size)
        self.reading = Reading(jobs, lane, done, total, last, self.weights.generation, own)

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

    def _read(self) -> None:
        """One chunk of the prompts that are being read; when it was the last, their sequences begin to run."""
        r = self.reading
        assert r is not None
        left = int((r.total - r.done).max())
        most = max(self.chunk // len(r.jobs) // PADDING, 1) * PADDING
        tokens = min(-(-left // PADDING) * PADDING, most)
        # A row that is done is padding, which has to stay inside the lane.
        begin = torch.minimum(r.done, torch.tensor(r.lane.size - tokens, device=self.device)).clamp(min=0)
        ids = torch.zeros(len(r.jobs), tokens, dtype=torch.long, device=self.device)
        for row, (job, start) in enumerate(zip(r.jobs, begin.tolist(), strict=True)):
            part = job.tokens[start : start + tokens]
            ids[row, : len(part)] = torch.tensor(part, device=self.device)
        N = len(r.jobs)
        spare = padded_rows(N, tokens, self.stable) - N
        columns = Pass([r.lane], [begin], self.context, self.config.exact, spare)
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
        if bool((r.done == r.total).all()):
            self._start(r)

    def _start(self, r: Reading) -> None:
        """Give the sequences of prompts that are read their runs, as many as fit, and their first token."""
        self.reading = None
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
        fresh: list[Tensor] = []
        sources: list[Tensor] = []
        for size, who in sorted(joining.items()):
            lane = self.runs.lane(size)
            new = [sequence for sequence, _ in who if sequence.slot < 0]
            for sequence in new:
                sequence.generation = r.generation
            self.table.add(new, [self.tokenizer.in_thought(sequence.request.prompt) for sequence in new])
            slots = torch.tensor([sequence.slot for sequence, _ in who], device=self.device)
            source = torch.tensor([row for _, row in who], device=self.device)
            columns = int(r.total[source].max())
            if r.own and len(lane) == 0:
                self.runs.adopt(r.lane, slots, columns)
            else:
                self.runs.reserve(lane, len(who))
                lane.join(slots, r.lane, source, columns)
            self.table.length[slots] = r.total[source]
            begins = self.table.made[slots] == 0
            fresh.append(slots[begins])
            sources.append(source[begins])
        self.runs.reading = None
        if fresh:
            slots, source = torch.cat(fresh), torch.cat(sources)
            if len(slots):
                self._first_tokens(slots, r.last[source])

    def _first_tokens(self, slots: Tensor, hidden_ND: Tensor) -> None:
        """The token behind each prompt, from the hidden state of the prompt's last one."""
        N = len(slots)
        spare = self.stable(N) - N
        logits = self.model.logits(torch.cat([hidden_ND, hidden_ND.new_zeros(spare, hidden_ND.shape[1])]))
        self._advance(slots, logits[:N])
        self.drafts.predict(
            self.runs, slots, hidden_ND[:, None], self.table.length[slots] - 1, torch.ones_like(slots)
        )

    # ---------------------------------------------------------------------------------- decoding

    def _decode(self) -> None:
        """One token more for every running sequence, and those behind it that were guessed."""
        while not self.runs.grow(self.table.length):
            self._put_off()
        if not self.runs.running:  # not even alone it has both its runs at once: it is read again in the longer one
            return
        lanes = self.runs.busy()
        slots = self.runs.slots()
        guessed = self.drafts.guess(slots)
        ids = torch.cat([self.table.last_tokens(slots)[:, None], guessed.clamp(min=0)], dim=1)
        N, T = ids.shape
        lengths = [self.table.length[lane.slots] for lane in lanes]
        replayed = self.graphs.run(lanes, ids, lengths) if self.graphs is not None else None
        hidden, logits = self._pass(lanes, ids, lengths) if replayed is None else replayed
        begin = torch.cat(lengths)
        checked = torch.zeros_like(begin)
        # All sequences are asked for one token, and those that were guessed right for the next.
        rows = torch.arange(N, device=self.device)
        alive: Tensor | slice = slice(N)
        for place in range(T):
            self.table.length[slots[alive]] += 1
            checked[alive] += 1
            tokens, gone = self._advance(slots[alive], logits[alive, place])
            if place + 1 == T:
                break
            right = (guessed[alive, place] == tokens) & ~gone
            self.drafts.accepted += int(right.sum())
            alive = going = rows[alive][right]
            if len(going) == 0:
                break
        self.drafts.predict(self.runs, slots, hidden[:N], begin, checked)

    def _pass(self, lanes: List[Lane], ids_NT: Tensor, lengths: List[Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states and logits of a step, with spare rows behind those of the lanes, that exactness may need."""
        N, T = ids_NT.shape
        spare = padded_rows(N, T, self.stable) - N
        if spare:
            ids_NT = torch.cat([ids_NT, ids_NT.new_zeros(spare, T)])
        hidden = self.model(ids_NT, Pass(lanes, lengths, self.context, self.config.exact, spare))
        return hidden, self.model.logits(hidden.flatten(0, 1)).view(N + spare, T, -1)

    def _advance(self, slots: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a token for each slot, note it, and finish what has come to its end; tokens and who has ended."""
        choice = self.sampler.choose(self.table, slots, logits_NV)
        return choice.tokens, self._note(slots, choice)

    def _note(self, slots: Tensor, choice: Choice) -> Tensor:
        table = self.table
        places = table.record(slots, choice.tokens, choice.forced)
        table.logprobs[slots, places] = choice.logprobs
        self.sampler.account(table, slots, choice.tokens)
        for row, likeliest in choice.top.items():
            self._top.setdefault(int(slots[row]), []).append(likeliest)
        ended = torch.isin(choice.tokens, self.ends) & table.ends[slots]
        full = table.made[slots] >= table.limit[slots]
        gone = ended | full | choice.broken | choice.empty
        careful = table.careful[slots]
        stopped = self._stopped(slots, careful & ~gone) if bool(careful.any()) else {}
        if stopped:
            gone[list(stopped)] = True
        rows = gone.nonzero()[:, 0].tolist()
        if not rows:
            return gone
        leaving = torch.zeros(len(table.sequences), dtype=torch.bool, device=self.device)
        leaving[slots[gone]] = True
        if self.config.keep_replies:
            self._keep_replies(leaving)
        self.runs.drop(leaving, table.length)
        known = (slots, ended, choice.broken, choice.empty)
        facts = zip(rows, *(fact[rows].tolist() for fact in known), strict=True)
        for row, slot, ended_, broken, empty in facts:
            sequence = table.sequences[slot]
            assert sequence is not None
            if broken:
                self._finish(sequence, "error", error="The model gives no numbers here: is its checkpoint damaged?")
            elif empty:
                self._finish(sequence, "error", error="The request's mask or bias leaves no token here: loosen it.")
            else:
                self._finish(sequence, "stop" if ended_ or row in stopped else "length", stopped.get(row))
        return gone

    def _stopped(self, slots: Tensor, watched: Tensor) -> dict[int, str | None]:
        """Rows that one of their own stops has ended, with the text in front of it (None: all of it)."""
        out: dict[int, str | None] = {}
        for row in watched.nonzero()[:, 0].tolist():
            sequence = self.table.sequences[int(slots[row])]
            assert sequence is not None
            params = sequence.request.params
            if int(self.table.last_tokens(slots[row : row + 1])) in params.stop_token_ids:
                out[row] = None
            elif params.stop:
                tokens = self.table.generated(sequence)
                reach = max(len(text.encode()) for text in params.stop) + 8  # a token has at least one byte
                tail = self.tokenizer.decode(tokens[-reach:], special=True)
                if any(text in tail for text in params.stop):
                    whole = self.tokenizer.decode(tokens, special=True)
                    ends = [whole.find(text) for text in params.stop if text in whole]
                    if ends:
                        out[row] = whole[: min(ends)]
        return out

    def _keep_replies(self, leaving: Tensor) -> None:
        """Keep the blocks of sequences that end, for the turn that follows."""
        for lane in self.runs.busy():
            for row in leaving[lane.slots].nonzero()[:, 0].tolist():
                sequence = self.table.sequences[int(lane.slots[row])]
                assert sequence is not None
                if sequence.generation != self.weights.generation:
                    continue
                tokens = sequence.request.prompt + self.table.generated(sequence)
                keys = PrefixStore.keys(tokens[: int(self.table.length[sequence.slot])], sequence.request.salt)
                self.runs.store.write(keys, lane, row)
        self.runs.make_room(0)

    def _finish(self, sequence: Sequence, how: Finish, text: str | None = None, error: str = "") -> None:
        """Make the sample of a sequence that has ended and free its slot."""
        table, slot = self.table, sequence.slot
        if slot < 0:
            sequence.sample = Sample([], [], "", how, error=error)
            return
        made = int(table.made[slot])
        tokens = table.generated(sequence)
        params = sequence.request.params
        logprobs = table.logprobs[slot, :made].tolist() if params.logprobs is not None else []
        if text is None:
            ended = how == "stop" and bool(tokens) and tokens[-1] in self.tokenizer.eos_ids
            text = self.tokenizer.decode(tokens[:-1] if ended else tokens, special=True)
        forced = table.forced[slot, :made].nonzero()[:, 0].tolist()
        top = self._top.pop(slot, [])
        sequence.sample = Sample(tokens, logprobs, text, how, top, forced, error, sequence.generation)
        table.drop(sequence)

    # ---------------------------------------------------------------------------------- growing and putting off

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
