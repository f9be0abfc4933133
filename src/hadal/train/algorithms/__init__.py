"""Ways to turn rewards into a gradient: each is one short pure file here, found by its name.

Such a file has `Options`, `advantages` and `loss`, and nothing has to be told of it; docs/extending.md adds one as an
example. What any of them may be combined with (how tokens are weighed, a penalty for leaving a reference, truncated
importance sampling, further draws) is an option of all, and the update's business (`hadal.train.rl`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

import torch
from torch import Tensor

from hadal.errors import UserError
from hadal.reading import nearest, read_dataclass

MEANS = ("token", "sequence", "constant")


@dataclass(frozen=True)
class Options:
    """What every algorithm offers; a file's own `Options` adds to these, and may set other defaults."""

    mean: str = "token"
    """What a token weighs: the same as all tokens of the minibatch (token), as all of its response, each response
    weighing the same (sequence), or as all that there was room for (constant)."""
    count_all: bool = False
    """Whether samples of no advantage count in that mean; else they are left out of it."""
    kl: float = 0.0
    """Weight of the k3 estimate of the divergence from the reference, a copy of the policy."""
    kl_unbiased: bool = False
    """Whether that estimate is weighed by the ratio, so that its gradient is the divergence's too (DeepSeek-V3.2)."""
    reference_every: int = 400
    """Updates after which the reference is replaced by the policy."""
    importance_cap: float = 0.0
    """Truncated importance sampling: a token counts by how much likelier the trainer holds it than the sampler did, at
    most this. 0: off; the sampler's log-probabilities are then the old policy's."""
    max_draws: int = 1
    """How often problems are drawn for an update, at most, until as many groups as asked for have an advantage."""
    overlong: float = 0.0
    """The last share of the tokens allowed over which a reward falls by up to 1; 0: off."""

    def __post_init__(self) -> None:
        if self.mean not in MEANS:
            raise UserError(f"mean is {self.mean!r}.", nearest(self.mean, MEANS))
        for name in ("kl", "importance_cap", "overlong"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}.", "It must be a number of at least 0.")
        for name in ("reference_every", "max_draws"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}.", "It must be at least 1.")


@dataclass(frozen=True)
class Tokens:
    """The N sampled tokens of a micro-batch, response by response, none cut in two."""

    logprobs: Tensor
    """[N] of the policy, with gradient."""
    old_logprobs: Tensor
    """[N] of the policy that sampled, or as the trainer holds it where importance sampling is on."""
    advantages: Tensor
    """[N] of each token's response."""
    response: Tensor
    """[N] which response a token belongs to, counted from 0."""

    @property
    def lengths(self) -> Tensor:
        """[N] tokens of each token's response."""
        return torch.bincount(self.response)[self.response]

    def response_sums(self, values_N: Tensor) -> Tensor:
        """[N] the sum of `values` over each token's response."""
        sums = values_N.new_zeros(int(self.response.max()) + 1)
        return sums.index_add(0, self.response, values_N)[self.response]


class Algorithm(Protocol):
    """A file of this package. `rewards` are [P, G], G samples of P prompts, as are the advantages."""

    Options: type[Options]

    def advantages(self, rewards_PG: Tensor, options: Any) -> Tensor:
        """What each sample is worth, [P, G]. A sample of 0 teaches nothing."""
        ...

    def loss(self, tokens: Tokens, options: Any) -> Tensor:
        """What is minimised, by token [N]; `mean` says what each weighs. Linear in the advantages."""
        ...


def names() -> list[str]:
    """All that there are."""
    return sorted(module.name for module in iter_modules(__path__))


def find(name: str) -> Algorithm:
    """The algorithm of that name; UserError where there is none."""
    if name not in (known := names()):
        raise UserError(f"There is no algorithm {name!r}.", nearest(name, known))
    return import_module(f"{__name__}.{name}")


def read_options(name: str, given: Mapping[str, Any]) -> Options:
    """The algorithm's options: those given, the others as it wants them. UserError for what it does not have."""
    return read_dataclass(find(name).Options, dict(given), "options")


def divergence(tokens: Tokens, reference_N: Tensor, unbiased: bool) -> Tensor:
    """k3, the never negative estimate [N] of the divergence from the reference (DeepSeekMath, equation 4)."""
    ahead = reference_N - tokens.logprobs
    k3 = torch.exp(ahead) - ahead - 1
    return k3 * torch.exp(tokens.logprobs - tokens.old_logprobs) if unbiased else k3


def total(terms_N: Tensor, tokens: Tokens, mean: str, counted: int, responses: int, limit: int) -> Tensor:
    """This micro-batch's part of the minibatch's mean.

    counted: tokens of the minibatch; responses: how many they are of; limit: tokens that each might have had.
    """
    if mean == "token":
        return terms_N.sum() / counted
    if mean == "sequence":
        return (terms_N / tokens.lengths).sum() / responses
    return terms_N.sum() / (responses * limit)
