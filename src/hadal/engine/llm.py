"""The engine: prompts in, samples out, through the same modules that training runs.

Rows decode together, one contiguous cache, prompts aligned at their ends. Rows that have ended are dropped
from the batch as soon as enough of them have gathered; samples of one prompt share its prefill.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hadal.engine.sampling import SamplingParams, draw
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.models.hub import resolve
from hadal.models.lora import open_model
from hadal.text.tokenizer import THINK, Tokenizer

MAX_ROWS = 1024
ROOM = 32  # columns by which the cache grows


@dataclass(frozen=True)
class Sample:
    """One response. logprobs are those of the distribution that was sampled from; finish_reason is stop or length."""

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str


@dataclass(frozen=True)
class RequestOutput:
    """The samples of one prompt."""

    prompt_token_ids: list[int]
    outputs: list[Sample]


class LLM:
    """A model, its tokenizer, and the loop that samples from them."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        vocabulary = model.config.vocab_size
        never = [*tokenizer.forbidden_ids, *range(tokenizer.size, vocabulary)]
        self.forbidden = torch.tensor(never, dtype=torch.long)
        """Ids that mean nothing in a response; sampling and training both give them no probability."""
        self.ends = torch.tensor(sorted(tokenizer.eos_ids))
        """Ids that end a response."""

    @classmethod
    def load(cls, folder: Path | str, dtype: torch.dtype = torch.float32) -> LLM:
        """The model of a run folder, checkpoint folder or Hugging Face id, or of adapters, merged into their base."""
        folder = resolve(folder)
        return cls(open_model(folder, dtype).eval(), Tokenizer.load(folder))

    def _blocked(self, params: SamplingParams) -> Tensor:
        if params.thinking is False and (think_id := self.tokenizer.controls.get(THINK)) is not None:
            return torch.cat([self.forbidden, torch.tensor([think_id])])
        return self.forbidden

    def _limits(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[int]:
        """How many tokens each prompt may be answered with."""
        longest = max(len(p) for p in prompts)
        if longest >= self.model.config.max_position_embeddings:
            raise UserError(
                f"The prompt has {longest} tokens, the model reads {self.model.config.max_position_embeddings}.",
                "Shorten it.",
            )
        return [min(params.max_tokens, self.model.config.max_position_embeddings - len(p)) for p in prompts]

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], params: SamplingParams, n: int = 1) -> list[RequestOutput]:
        """n samples for each prompt (token ids). The same arguments give the same samples."""
        if not prompts:
            return []
        if not all(prompts):
            raise UserError("A prompt is empty.", "Give it at least one token.")
        if params.thinking:
            prompts = [p if self.tokenizer.in_thought(p) else [*p, self.tokenizer.think_id] for p in prompts]
        generator = torch.Generator().manual_seed(params.seed)
        outputs: list[RequestOutput] = []
        share = max(1, MAX_ROWS // n)
        for begin in range(0, len(prompts), share):
            part = list(prompts[begin : begin + share])
            ids, logprobs, lengths = self._decode(part, n, params, generator)
            for i, prompt in enumerate(part):
                samples = [self._sample(ids[r], logprobs[r], int(lengths[r])) for r in range(i * n, (i + 1) * n)]
                outputs.append(RequestOutput(prompt, samples))
        return outputs

    def _sample(self, ids: Tensor, logprobs: Tensor, length: int) -> Sample:
        tokens = ids[:length].tolist()
        ended = bool(tokens) and tokens[-1] in self.tokenizer.eos_ids
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens, special=True)
        return Sample(tokens, logprobs[:length].tolist(), text, "stop" if ended else "length")

    def _decode(
        self, prompts: list[list[int]], n: int, params: SamplingParams, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        limits = torch.tensor(self._limits(prompts, params)).repeat_interleave(n)
        limit = int(limits.max())
        blocked = self._blocked(params)
        width = max(len(p) for p in prompts)
        start = torch.tensor([width - len(p) for p in prompts])
        ids = torch.full((len(prompts), width), self.tokenizer.pad_id)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
        cache = self.model.new_cache(start, width)
        hidden = self.model(ids, cache)[:, -1]
        rows = len(prompts) * n
        if n > 1:
            repeat = torch.arange(len(prompts)).repeat_interleave(n)
            cache.select(repeat)
            hidden = hidden[repeat]
        tokens = torch.full((rows, limit), self.tokenizer.pad_id)
        logprobs = torch.zeros(rows, limit)
        lengths = limits.clone()
        alive = torch.arange(rows)  # which row of the output each row of the batch is
        going = torch.ones(rows, dtype=torch.bool)
        for t in range(limit):
            logits = self.model.logits(hidden).index_fill_(1, blocked, float("-inf"))
            # Drawn for all rows, ended or not: what a row gets does not depend on who is still in the batch.
            uniform = torch.rand(rows, generator=generator)
            token, logprob = draw(logits, params, uniform[alive])
            at = alive[going]
            tokens[at, t], logprobs[at, t] = token[going], logprob[going]
            ended = going & torch.isin(token, self.ends)
            lengths[alive[ended]] = t + 1
            full = limits[alive] == t + 1  # at the model's last position, or at max_tokens
            going = going & ~ended & ~full
            left = int(going.sum())
            if left == 0:
                break
            if left <= 0.85 * len(alive) or full.any():
                kept = going.nonzero()[:, 0]
                cache.select(kept)
                alive, token, going = alive[kept], token[kept], going[kept]
            if cache.length == cache.capacity:
                cache.grow(cache.capacity + ROOM)
            hidden = self.model(token[:, None], cache)[:, 0]
        return tokens, logprobs, lengths

    @torch.no_grad()
    def stream(self, prompt: list[int], params: SamplingParams) -> Iterator[int]:
        """The tokens of one sample as they are drawn, without the end token."""
        if not prompt:
            raise UserError("The prompt is empty.", "Give it at least one token.")
        if params.thinking and not self.tokenizer.in_thought(prompt):
            prompt = [*prompt, self.tokenizer.think_id]
        (limit,) = self._limits([prompt], params)
        blocked = self._blocked(params)
        generator = torch.Generator().manual_seed(params.seed)
        cache = self.model.new_cache(torch.zeros(1, dtype=torch.long), len(prompt) + ROOM)
        hidden = self.model(torch.tensor([prompt]), cache)[:, -1]
        for _ in range(limit):
            logits = self.model.logits(hidden).index_fill_(1, blocked, float("-inf"))
            token, _ = draw(logits, params, torch.rand(1, generator=generator))
            if int(token) in self.tokenizer.eos_ids:
                return
            yield int(token)
            if cache.length == cache.capacity:
                cache.grow(cache.capacity + ROOM)
            hidden = self.model(token[:, None], cache)[:, 0]
