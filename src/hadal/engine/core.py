"""The engine: `step` schedules, runs the model, and takes the outputs.

A prompt is prefilled once for all its samples, in chunks; then each sample gets a row of the KV cache and they decode
together. In exact mode (the default) neither company nor memory changes a single bit of what a request gets.
Read first: `scheduler.py`, `runner.py`, `outputs.py`; then `kv/pool.py`, who holds how much of the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as List

import torch

from hadal.cost.memory import gigabytes
from hadal.engine.config import EngineConfig
from hadal.engine.kv.buckets import bucket_size
from hadal.engine.kv.pool import Pool
from hadal.engine.memory import cache_budget
from hadal.engine.outputs import Outputs
from hadal.engine.promise import inexact
from hadal.engine.request import Prepared, Request, Sequence
from hadal.engine.runner import Runner
from hadal.engine.sampler import Sampler, forbidden_ids
from hadal.engine.scheduler import Scheduler
from hadal.engine.speculation import Drafts
from hadal.engine.table import Table
from hadal.engine.weights import Weights
from hadal.engine.work import Job
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.rollout import SamplingParams
from hadal.text.length import TooLong
from hadal.text.tokenizer import Tokenizer


class Engine:
    """Requests in, tokens out. Not thread-safe: one thread adds, steps and aborts."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        self.tokenizer, self.config = tokenizer, config or EngineConfig()
        self.weights = Weights(model, self.config.check_weights)
        self.model = model = self.weights.model
        like = model.norm.weight  # the embedding of a packed model may be narrower than what it computes in
        self.forbidden = forbidden_ids(tokenizer, model)
        self.context = model.config.max_position_embeddings
        self.sampler = Sampler(tokenizer, self.forbidden)
        self.table = Table(like.device)
        self.drafts = Drafts(
            self.config.speculate, self.config.draft, model, self.table, self.sampler, self.config.exact
        )
        widths = model.cache_widths(ahead=self.drafts.predictor is not None)
        self.token_bytes = sum(heads * width for layer in widths for heads, width in layer) * model.dtype.itemsize
        budget = cache_budget(self.config.cache_bytes) // self.token_bytes
        self.kv = Pool(budget, 1 + self.drafts.count, widths, like)
        self.scheduler = Scheduler(self.config, self.weights, self.kv, self.table)
        self.runner = Runner(self.config, self.weights, self.table, self.drafts, self.scheduler.start)
        self.outputs = Outputs(
            self.config, tokenizer, self.weights, self.kv, self.table, self.sampler, self.drafts
        )
        self._requests = 0

    @property
    def waiting(self) -> deque[Job]:
        """What waits for its prefill, in order."""
        return self.scheduler.waiting

    @property
    def longest(self) -> int:
        """The most tokens that a request can have, prompt and answer: what the model reads, or the cache holds."""
        return max(min(self.context, self.kv.longest()), 0)

    def inexact(self) -> str:
        """Why a request's bits may depend on its company here, in words; empty where exactness is promised."""
        return inexact(self.model) if self.config.exact else "exact=False was asked for"

    def budget(self) -> str:
        """The memory of the cache in words, and what it holds of one request or of all."""
        holds = max(self.kv.longest(), 0)
        share = "" if self.config.cache_bytes is not None else ", half of what is free"
        less = f", fewer than the {self.context:,} that the model reads" if holds < self.context else ""
        return f"The cache may take {gigabytes(self.kv.budget * self.token_bytes)}{share}: {holds:,} tokens{less}."

    # ---------------------------------------------------------------------------------- requests

    def prepare(self, prompt: List[int], params: SamplingParams) -> Prepared:
        """A prompt, checked and ready for `submit`. UserError for what cannot be answered. From any thread.

        What a request asks for it gets, however little memory there is: it waits for its turn, and where it would not
        fit alone it is refused. The end of the model's context ends it too, and without max_tokens that of the cache.
        """
        prompt = list(prompt)
        if params.thinking and not self.tokenizer.in_thought(prompt):
            prompt.append(self.tokenizer.think_id)
        vocabulary = self.model.config.vocab_size
        if not prompt:
            raise UserError("The prompt is empty.", "Give it at least one token.")
        if not all(isinstance(i, int) and 0 <= i < vocabulary for i in prompt):
            raise UserError(f"The prompt holds ids outside 0 to {vocabulary - 1}.", "Is it another model's?")
        if len(prompt) >= self.context:
            cause = f"The prompt has {len(prompt)} tokens, the model reads {self.context}."
            raise TooLong(cause, "Shorten it.", "prompt")
        for name, ids in (("logit_bias", params.logit_bias or {}), ("stop_token_ids", params.stop_token_ids)):
            if not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
                raise UserError(f"{name} holds ids outside 0 to {vocabulary - 1}.", "Is it another model's?")
        if params.thinking_budget is not None:
            _ = self.tokenizer.end_think_id  # says so where there is none
        limit = self._limit(len(prompt), params)
        return Prepared(prompt, params, limit, self.tokenizer.in_thought(prompt))

    def submit(self, prepared: Prepared, seed: int, salt: str = "", wanted: List[int] | None = None) -> Request:
        """Queue a request for the samples that are wanted, None for all; salt keeps prefixes of users apart."""
        self._requests += 1
        request = Request(self._requests, prepared, seed, salt, wanted)
        self.waiting.append(Job(request, list(request.sequences), request.prompt))
        return request

    def add(self, prompt: List[int], params: SamplingParams, seed: int, salt: str = "") -> Request:
        """`submit` what `prepare` makes of a prompt."""
        return self.submit(self.prepare(prompt, params), seed, salt)

    def _limit(self, length: int, params: SamplingParams) -> int:
        """How many tokens a sample may have; UserError where the cache does not hold them."""
        holds = self.kv.longest()
        left = self.context - length
        wanted = left if params.max_tokens is None else min(params.max_tokens, left)
        needed = length + (1 if params.max_tokens is None else wanted)
        if needed > holds:
            cause = f"The prompt has {length:,} tokens"
            cause += "" if params.max_tokens is None else f" and max_tokens is {params.max_tokens:,}"
            size = gigabytes(self.kv.budget * self.token_bytes)
            enough = bucket_size(needed + self.kv.lookahead)
            raise TooLong(
                f"{cause}: the cache of {size} holds {max(holds, 0):,} for a request.",
                f"Ask for less, or free memory for a cache of {gigabytes(enough * self.token_bytes)}.",
                "prompt" if params.max_tokens is None or length >= holds else "max_tokens",
                of_memory=True,
            )
        return min(wanted, holds - length)

    def abort(self, request: Request) -> None:
        """Drop what is left of a request."""
        self.scheduler.drop(request)
        for sequence in request.sequences:
            if sequence.sample is None:
                self.outputs.finish(sequence, "abort")

    def answer_now(self, request: Request) -> None:
        """Close the open thoughts of a running request: their next token is `</think>`."""
        for sequence in request.sequences:
            if sequence.slot >= 0:
                self.table.budget[sequence.slot] = 0

    def progress(self, sequence: Sequence, begin: int) -> tuple[list[int], list[float], list[dict[int, float]]]:
        """A running sequence's tokens from a place on, and their log-probabilities where these are wanted."""
        return self.outputs.progress(sequence, begin)

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work()

    @torch.no_grad()
    def step(self) -> None:
        """Prefill a chunk of prompts, or decode a token for each running sequence; by turns where both wait."""
        work = self.scheduler.schedule()
        computed = self.runner.run(work)
        self.outputs.process(computed)

    def release(self) -> None:
        """Give back the memory of rows, where nothing is under way."""
        if not self.has_work():
            self.kv.buckets.clear()
