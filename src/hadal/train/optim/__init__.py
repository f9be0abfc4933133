"""Optimisers: each is one file here, found by its name; `flat`, AdamW and Muon in flat memory, is the laptop's.

Such a file has `Options`, `build` and `kept`, and nothing has to be told of it; docs/extending.md adds one as an
example. What they can build on is `hadal.train.masters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

import torch
from torch import Tensor

from hadal.cost.memory import Kept
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.reading import nearest, read_dataclass


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimiser, and the numbers that most have. `flat`: Muon on hidden matrices where muon_lr > 0, Adam on the
    rest (on everything where it is 0)."""

    name: str = "flat"
    lr: float = 3e-3
    muon_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-10
    momentum: float = 0.95
    weight_decay: float = 0.0
    """Of matrices: norms, biases and the embedding are left out, for which small is not simple."""
    clip: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    """Of the optimiser's own."""

    def __post_init__(self) -> None:
        read_options(self.name, self.options)


class Optimizer(Protocol):
    """Trains the parameters of a model that ask for gradients, and owns their float32 masters.

    Gradients add up, from pass to pass, until a step. Who takes one has written to the weights: the optimiser says so
    (`Decoder.changed`).
    """

    left_out: int
    """Updates that were left out since their gradient was not finite."""
    in_a_row: int
    """The last of them, without a finite one in between."""

    @property
    def names(self) -> Sequence[str]:
        """Of the parameters that are trained."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        ...

    @property
    def figures(self) -> dict[str, int]:
        """What a line of metrics has to say of updates that were left out: how many so far; nothing where none was."""
        ...

    def step(self, scale: float = 1.0) -> float:
        """One update at `scale` (the schedule's) times the configured learning rates; returns the gradient's norm
        before it is clipped.

        An update whose gradient is not finite is left out, and counted: it would destroy the weights for good.
        """
        ...

    def masters(self) -> dict[str, Tensor]:
        """The float32 value of each parameter that is trained, by its name in the model."""
        ...

    def hand_over(self) -> None:
        """Make the masters the model's parameters, in float32 and without gradients: nothing is trained any more."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs besides the config."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave, of the same config; gradients are forgotten."""
        ...


class OptimizerFile(Protocol):
    """A file of this package."""

    Options: type[Any]
    """A dataclass of the numbers that are the optimiser's own."""

    def build(self, model: Decoder, config: OptimizerConfig, dtype: torch.dtype) -> Optimizer:
        """The optimiser of a model, which computes in `dtype` from then on."""
        ...

    def kept(self, config: OptimizerConfig) -> Kept:
        """The memory that it takes beside weights, masters and gradients."""
        ...


def names() -> list[str]:
    """All that there are."""
    return sorted(module.name for module in iter_modules(__path__))


def find(name: str) -> OptimizerFile:
    """The optimiser's file of that name; UserError where there is none."""
    if name not in (known := names()):
        raise UserError(f"There is no optimiser {name!r}.", nearest(name, known))
    return import_module(f"{__name__}.{name}")


def read_options(name: str, given: Mapping[str, Any]) -> Any:
    """The `Options` of the optimiser of that name. UserError for what it does not have."""
    return read_dataclass(find(name).Options, dict(given), "options")


def build_optimizer(model: Decoder, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> Optimizer:
    """The optimiser that a config names, over what of the model asks for gradients."""
    return find(config.name).build(model, config, dtype)


def kept(config: OptimizerConfig) -> Kept:
    """The memory that the optimiser takes that a config names."""
    return find(config.name).kept(config)
