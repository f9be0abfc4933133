"""How samples are drawn, named as vLLM's users know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from hadal.errors import UserError
from hadal.reading import nearest

MOST_SAMPLES = 1024
MOST_STOPS = 16
LONGEST_STOP = 1024  # bytes
MOST_LOGPROBS = 50
COLDEST = 1e-6
"""The lowest temperature above 0: logits divided by less could leave float32."""
MOST_BIAS = 100

Allowed = Callable[[Sequence[int]], Any]
"""From the tokens generated so far to a mask (a bool tensor [V]) of the next ones that are allowed; None: all."""


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of a request are drawn. UserError for what cannot be meant.

    temperature 0 is greedy. Filters apply in this order: penalties and bias, temperature, top_k, top_p, min_p.
    The same seed gives the same tokens to the same prompt, whatever else runs beside it; None draws a new seed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    """Keep the smallest most likely set with this probability (arXiv 1904.09751)."""
    max_tokens: int | None = None
    """Fewer where the model's context ends before. None: up to its end, or that of the cache (`Engine.longest`)."""
    seed: int | None = None
    thinking: bool | None = None
    """True: the thought is opened; False: it is forbidden; None: the model chooses."""
    n: int = 1
    top_k: int = 0
    """Keep that many of the most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest (arXiv 2407.01082)."""
    stop: str | Sequence[str] = ()
    """Texts that end the response and are cut from it."""
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """0: of the tokens drawn; k: also of the k likeliest at each place; None: of none."""
    logprobs_of: Literal["model", "sampled"] = "model"
    """The model's own distribution at temperature 1, or the one that tokens were drawn from."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    thinking_budget: int | None = None
    """Tokens that a thought may have; then it is closed and the answer begins."""
    allowed: Allowed | None = None
    """Constrained output: called before every token of the request."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        self._check_numbers()
        self._check_lists()
        if self.logprobs_of not in ("model", "sampled"):
            raise UserError(f"logprobs_of is {self.logprobs_of!r}.", "Give model or sampled.")
        if self.thinking is False and self.thinking_budget:
            raise UserError("thinking is off and thinking_budget is set.", "Give one of the two.")

    def _check_numbers(self) -> None:
        ranges = {
            "temperature": (0, 100), "top_p": (0, 1), "min_p": (0, 1), "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2), "repetition_penalty": (0.01, 100), "n": (1, MOST_SAMPLES), "top_k": (0, None),
            "max_tokens": (1, None), "thinking_budget": (0, None), "logprobs": (0, MOST_LOGPROBS),
            "seed": (-(1 << 63), (1 << 64) - 1),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            whole = name in ("n", "top_k", "max_tokens", "thinking_budget", "logprobs", "seed")
            if value is None and name in ("max_tokens", "thinking_budget", "logprobs", "seed"):
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise UserError(f"{name} is {value!r}.", f"Give a {'whole ' if whole else ''}number.")
            if not low <= value <= (float("inf") if high is None else high):
                remedy = f"Give {low} or more." if high is None else f"Give {low} to {high}."
                raise UserError(f"{name} is {value}.", remedy)
        if self.top_p == 0:
            raise UserError("top_p is 0.", "Give a number above 0 and up to 1.")
        if 0 < self.temperature < COLDEST:
            raise UserError(f"temperature is {self.temperature}.", f"Give 0, which is greedy, or at least {COLDEST}.")

    def _check_lists(self) -> None:
        for name in ("stop", "stop_token_ids"):
            if not isinstance(getattr(self, name), Sequence):
                raise UserError(f"{name} is {getattr(self, name)!r}.", "Give a list.")
        if len(self.stop) > MOST_STOPS:
            raise UserError(f"There are {len(self.stop)} stop texts.", f"{MOST_STOPS} is the limit.")
        for text in self.stop:
            if not isinstance(text, str) or not 0 < _bytes(text) <= LONGEST_STOP:
                raise UserError("A stop text is empty, too long, or not text.", f"Give 1 to {LONGEST_STOP} bytes.")
        bias = {} if self.logit_bias is None else self.logit_bias
        if not isinstance(bias, Mapping):
            raise UserError(f"logit_bias is {bias!r}.", "Give numbers by token id.")
        for value in bias.values():
            if not isinstance(value, (int, float)) or not abs(value) <= MOST_BIAS:
                raise UserError(f"logit_bias has the value {value!r}.", f"Give {-MOST_BIAS} to {MOST_BIAS}.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SamplingParams:
        """From a mapping; UserError names a setting that does not exist."""
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise UserError(f"There is no sampling setting {name!r}.", nearest(name, names))
        return cls(**settings)

    @property
    def processes_logits(self) -> bool:
        """Whether logits change with what was generated or by token."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)
        return penalties or bool(self.logit_bias) or self.allowed is not None

    def spread(self, count: int) -> list[SamplingParams]:
        """The same settings for `count` requests, each with a seed of its own: equal prompts get different samples."""
        if self.seed is None:
            return [self] * count
        return [replace(self, seed=(self.seed + i) % (1 << 63)) for i in range(count)]


def _bytes(text: str) -> int:
    """The length of a text in UTF-8; 0 of what has no form there."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0
