"""What a model is asked and what comes back, the same for models here and upstream, and the list of those served."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hadal.cost.prices import R1, ApiPrice, HourPrice
from hadal.engine.request import Prepared
from hadal.server.faults import Refusal

EFFORTS = ("low", "high", "max")
"""DeepSeek's degrees of effort; other names are mapped to them (`EFFORT_NAMES`)."""
EFFORT_NAMES = {
    "minimal": "low", "low": "low", "medium": "high", "high": "high", "xhigh": "high", "max": "max", "ultra": "max",
}  # fmt: skip
EFFORT_BUDGETS: dict[str, int | None] = {"low": 1024, "high": 8192, "max": None}
"""Tokens that a thought may have: the models here were not trained to think in degrees."""


@dataclass(frozen=True)
class Ask:
    """One request. Either `messages` (roles system, user and assistant, text contents) or a `prompt` to go on from.

    sampling: the settings that were given, by the names of `SamplingParams`; what is absent is the model's default.
    resume: token ids of an answer to go on with. user: keeps cached prefixes apart. may_move: whether a `moved` delta
    may tell of a thought that only its end shows. prepared: what a model of this machine reads, encoded and checked by
    `ready`.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    prompt: str | Sequence[int] | None = None
    thinking: bool | None = None
    effort: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    resume: Sequence[int] = ()
    user: str = ""
    may_move: bool = False
    prepared: Prepared | None = None

    @property
    def n(self) -> int:
        return int(self.sampling.get("n", 1))


@dataclass(frozen=True)
class Delta:
    """A piece of sample `index`. `moved`, where the ask allows it: all of it so far is thought, which `text` holds.

    tokens: how many came since the last delta; ids: of them, where known; logprobs: of them, in OpenAI's form.
    """

    index: int
    kind: Literal["thought", "answer", "moved"]
    text: str
    tokens: int = 0
    ids: Sequence[int] = ()
    logprobs: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Phase:
    """The prompt is being read, or has been queued (again)."""

    name: Literal["queued", "reading"]


@dataclass(frozen=True)
class End:
    """A sample has ended. response: all of it with its tags, as a task's scorer reads it."""

    index: int
    finish_reason: str
    thought: str | None
    answer: str
    response: str
    cut_thought: bool = False


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, all samples together; estimated: an upstream gave no counts."""

    prompt: int
    cached: int
    completion: int
    reasoning: int
    estimated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """In DeepSeek's form, with OpenAI's details."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_cache_hit_tokens": self.cached,
            "prompt_cache_miss_tokens": self.prompt - self.cached,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


Event = Delta | Phase | End | Usage


class Control:
    """A caller's hand on a request that runs: `answer_now` closes its thoughts."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()

    def answer_now(self) -> None:
        self.wanted.set()


@dataclass(frozen=True)
class Card:
    """What the page needs to know of a model to offer the right switches."""

    id: str
    name: str
    source: Literal["local", "upstream"]
    group: str
    about: str
    created: int
    context: int | None = None
    max_tokens: int | None = None
    thinking: Literal["optional", "always", "never", "unknown"] = "unknown"
    efforts: tuple[str, ...] = ()
    budget: bool = False
    answer_now: bool = False
    can_continue: bool = False
    single_turn: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    price: ApiPrice | HourPrice | None = None
    ok: bool = True
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in ("can_continue", "price", "created")}
        return {**kept, "continue": self.can_continue, "price": self._price()}

    def _price(self) -> dict[str, Any] | None:
        match self.price:
            case ApiPrice() as p:
                return {"hit": p.hit, "miss": p.miss, "output": p.output, "hour": None, "note": p.source}
            case HourPrice() as p:
                return {"hit": None, "miss": None, "output": None, "hour": p.usd, "note": p.source}
        return None

    def cost(self, usage: Usage, seconds: float) -> dict[str, Any]:
        """Dollars for an answer: by tokens, or by its share of the machine's seconds; and at R1's launch price."""
        usd, note = None, "no price is known; give one with --price"
        match self.price:
            case ApiPrice() as p:
                usd, note = p.cost(usage.prompt, usage.completion, usage.cached), p.source
            case HourPrice() as p:
                usd, note = p.cost(seconds), p.source
        return {"usd": usd, "note": note, "r1_usd": R1.cost(usage.prompt, usage.completion, usage.cached)}


class Model(ABC):
    """A model that is served. `ready` says at once what it cannot do; `answer` is left to stop the request."""

    card: Card

    @abstractmethod
    async def ready(self, ask: Ask) -> Ask:
        """The request, read as far as it has to be before it can be answered. Refusal for one it cannot honour."""

    @abstractmethod
    def answer(self, ask: Ask, control: Control | None = None) -> AsyncGenerator[Event]:
        """Deltas as they come, an `End` for each sample, last the `Usage`. Refusal where it cannot begin or go on."""

    def close(self) -> None:  # noqa: B027  (only a model of this machine has something to stop)
        """Stop what runs."""


class Models:
    """The models served, by id. An upstream's list may change: `refresh` asks for it again."""

    def __init__(self, local: Sequence[Model], upstreams: Sequence[Any] = ()) -> None:
        self.local = list(local)
        self.upstreams = list(upstreams)

    def all(self) -> list[Model]:
        return [*self.local, *(model for upstream in self.upstreams for model in upstream.models)]

    async def refresh(self) -> None:
        await asyncio.gather(*(upstream.refresh() for upstream in self.upstreams))

    def get(self, wanted: str | None) -> Model:
        """The model of an id, or of the last part of one where that is clear; the first one for None."""
        models = self.all()
        if wanted is None and models:
            return models[0]
        found = [m for m in models if m.card.id == wanted] or [m for m in models if m.card.name == wanted]
        if len(found) == 1:
            return found[0]
        known = ", ".join(m.card.id for m in models[:8]) or "none"
        word = "no model" if not found else "more than one model"
        raise Refusal(404, f"There is {word} {wanted!r} here. Known: {known}.", "model")

    def pairs(self) -> list[tuple[str, str]]:
        """Which models stand side by side: a run's base and the run itself, else the first two."""
        ids = [m.card.id for m in self.all()]
        runs = [(f"{name}:base", name) for name in ids if f"{name}:base" in ids]
        return runs or ([(ids[0], ids[1])] if len(ids) > 1 else [])

    async def close(self) -> None:
        for model in self.local:
            await asyncio.to_thread(model.close)
        for upstream in self.upstreams:
            await upstream.close()
