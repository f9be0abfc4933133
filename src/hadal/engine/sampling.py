"""From logits to tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hadal.errors import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. temperature 0 is greedy; top_p keeps the smallest set with that much probability."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    thinking: bool | None = None
    """True: the thought is opened; False: it is forbidden; None: the model chooses."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UserError(f"temperature is {self.temperature}.", "Give 0 (greedy) to 100.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}.", "Give a number above 0 and up to 1.")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}.", "Give at least 1.")


def keep_top_p(probabilities_NV: Tensor, top_p: float) -> Tensor:
    """The distribution cut to its smallest most likely set of mass `top_p` (arXiv 1904.09751), not renormalised."""
    ordered, index = probabilities_NV.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities_NV).scatter_(1, index, ordered.masked_fill(before >= top_p, 0.0))


def draw(logits_NV: Tensor, params: SamplingParams, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [N], and their log-probabilities [N] under the distribution they were drawn from.

    One uniform number a row goes through the inverse distribution function, so a token is a fixed function
    of the logits and that number. Greedy tokens carry the log-probability at temperature 1.
    """
    if params.temperature == 0:
        tokens = logits_NV.argmax(-1)
        return tokens, torch.log_softmax(logits_NV, -1).gather(1, tokens[:, None])[:, 0]
    probabilities = torch.softmax(logits_NV / params.temperature if params.temperature != 1 else logits_NV, -1)
    if params.top_p < 1:
        probabilities = keep_top_p(probabilities, params.top_p)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniform_N[:, None] * total, right=True)[:, 0]
    # A uniform of nearly 1 can round past the end: fall back on the last id that has any mass.
    last = probabilities.shape[1] - 1 - probabilities.flip(-1).gt(0).int().argmax(-1)
    tokens = torch.minimum(tokens, last)
    return tokens, (probabilities.gather(1, tokens[:, None]) / total)[:, 0].log()
