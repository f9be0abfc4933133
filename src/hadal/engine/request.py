"""Requests, the sequences that they become, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass
from hashlib import blake2b

from hadal.rollout import Sample, SamplingParams


@dataclass(frozen=True)
class Prepared:
    """A prompt that an engine has checked (`Engine.prepare`), and how it is to be answered."""

    prompt: list[int]
    params: SamplingParams
    limit: int
    """Tokens that a sample may have."""
    in_thought: bool
    """Whether the prompt opens a thought."""


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
    """A prompt and how to answer it. wanted: which of its params.n samples are, None for all."""

    def __init__(
        self, number: int, prepared: Prepared, seed: int, salt: str = "", wanted: List[int] | None = None
    ) -> None:
        self.number = number  # in the order of arrival
        self.prompt, self.params, self.limit = prepared.prompt, prepared.params, prepared.limit
        self.in_thought, self.seed, self.salt = prepared.in_thought, seed, salt
        self.digest = blake2b(f"{seed} {self.prompt}".encode(), digest_size=16).digest()
        self.sequences = [Sequence(self, index) for index in (range(self.params.n) if wanted is None else wanted)]
        self.cached = 0

    @property
    def done(self) -> bool:
        return all(sequence.sample is not None for sequence in self.sequences)

    def output(self) -> RequestOutput:
        """What came of it."""
        samples = [sequence.sample for sequence in self.sequences if sequence.sample is not None]
        return RequestOutput(self.prompt, samples, self.cached)
