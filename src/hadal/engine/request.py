"""Requests, the sequences that they become, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from hadal.engine.params import SamplingParams

Finish = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Sample:
    """One response. logprobs: of its tokens, where the request asked for them; finish_reason: how it ended."""

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: Finish
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    """At each place the likeliest tokens, where the request asked for them."""
    forced: list[int] = field(default_factory=list)
    """Places of tokens that the model did not choose: the end of a thought whose budget was used up."""
    error: str = ""
    generation: int = field(default=0, compare=False)
    """Of the weights (`Decoder.generation`) that its prompt was read with."""


@dataclass(frozen=True)
class RequestOutput:
    """The samples of one prompt; error: why there are none."""

    prompt_token_ids: list[int]
    outputs: list[Sample]
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed again."""
    error: str = ""


class Sequence:
    """One sample of a request on its way. `slot`: its place in the table while it runs, else -1."""

    def __init__(self, request: Request, index: int) -> None:
        self.request, self.index = request, index
        self.slot, self.generation = -1, 0
        self.sample: Sample | None = None

    @property
    def key(self) -> int:
        """64 bits that, with a position, decide each draw."""
        digest = blake2b(self.request.digest + self.index.to_bytes(4, "little"), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


class Request:
    """A prompt and how to answer it."""

    def __init__(
        self, number: int, prompt: list[int], params: SamplingParams, seed: int, limit: int, salt: str = ""
    ) -> None:
        self.number = number  # in the order of arrival
        self.prompt, self.params, self.seed, self.limit, self.salt = prompt, params, seed, limit, salt
        self.digest = blake2b(f"{seed} {prompt}".encode(), digest_size=16).digest()
        self.sequences = [Sequence(self, index) for index in range(params.n)]
        self.cached = 0

    @property
    def done(self) -> bool:
        return all(sequence.sample is not None for sequence in self.sequences)

    def output(self) -> RequestOutput:
        """What came of it."""
        samples = [sequence.sample for sequence in self.sequences if sequence.sample is not None]
        return RequestOutput(self.prompt, samples, self.cached)
