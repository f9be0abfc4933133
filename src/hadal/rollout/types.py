"""What is asked, what comes back, and what a source of samples says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from hadal.errors import UserError
from hadal.rollout.params import SamplingParams

Finish = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Query:
    """A conversation to answer, or a text or token ids to continue, params.n times.

    wanted: which of those samples are wanted, None for all. Sample i of a seed is the same whichever others are wanted,
    where the source is exact.
    """

    prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]
    params: SamplingParams
    wanted: Sequence[int] | None = None

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        """The conversation; None for a text or ids."""
        if isinstance(self.prompt, str):
            return None
        messages = [dict(message) for message in self.prompt if isinstance(message, Mapping)]
        return messages if len(messages) == len(self.prompt) else None

    @property
    def indices(self) -> list[int]:
        """The samples that are wanted."""
        return list(range(self.params.n) if self.wanted is None else self.wanted)


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
    prompt_ids: list[int] = field(default_factory=list, compare=False, repr=False)
    """The prompt as the model read it, from a source that gives ids."""
    opening: str = ""
    """What of the response stands in the prompt: the mark of a thought that is opened there."""
    counted: int | None = None
    """Its tokens, where a source tells their number and not which they are."""
    trace: Mapping[str, Any] | None = field(default=None, compare=False)
    """What else was recorded of its tokens, by name: the experts that each was routed to, the positions selected."""

    @property
    def response(self) -> str:
        """The response in full: the thought, its tags and the answer."""
        return self.opening + self.text

    @property
    def tokens(self) -> int | None:
        """How many tokens it has; None where nobody counted."""
        return len(self.token_ids) if self.token_ids or self.error else self.counted

    @property
    def refused(self) -> bool:
        """Whether its query could not be answered at all."""
        return bool(self.error) and not self.token_ids


class Rollout(Protocol):
    """A source of samples, which answers many queries at once."""

    @property
    def gives_ids(self) -> bool:
        """Whether samples have `token_ids` and `prompt_ids`."""

    @property
    def gives_logprobs(self) -> bool:
        """Whether samples have the log-probabilities that params.logprobs asks for."""

    @property
    def takes_weights(self) -> bool:
        """Whether it samples from the weights that are being trained, from each update on."""

    @property
    def context(self) -> int | None:
        """Tokens that the model reads, prompt and response; None where nobody knows."""

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Sample]]:
        """(number of the query, number of the sample, sample) for each that is wanted, as they come. UserError where
        nothing can be answered; a query that alone cannot be has the error in its samples."""


class Scorer(Protocol):
    """Says what responses are worth, by a model that it asks: the `Rollout` that it is made with."""

    def score(self, question: str, gold: str, responses: Sequence[str]) -> list[float]:
        """A number for each response to a question, in full; gold: the right answer, empty where nobody knows it."""


def require(rollout: Rollout, who: str, ids: bool = False, logprobs: bool = False, weights: bool = False) -> None:
    """UserError for a source that does not give what `who` cannot do without."""
    needs = (
        (ids, rollout.gives_ids, "token ids"),
        (logprobs, rollout.gives_logprobs, "log-probabilities"),
        (weights, rollout.takes_weights, "samples of the weights that are trained"),
    )
    lacking = [what for needed, given, what in needs if needed and not given]
    if lacking:
        raise UserError(f"{who} needs {' and '.join(lacking)}, which this source does not give.", "Sample locally.")


def sample_all(rollout: Rollout, queries: Iterable[Query]) -> list[list[Sample]]:
    """The wanted samples of each query, in order."""
    asked = list(queries)
    found: list[dict[int, Sample]] = [{} for _ in asked]
    for number, index, sample in rollout.sample(asked):
        found[number][index] = sample
    return [[samples[index] for index in query.indices] for query, samples in zip(asked, found, strict=True)]
