"""Stages of a recipe: each kind is one file here, found by its name.

A stage is a function from artefacts to artefacts: it reads what earlier ones left in the run folder, and leaves its own
result there. Which stages a run has, and in which order, is its recipe's business (`hadal.recipe`); what stages work
with is in `common/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from hadal.configs.models import ModelConfig
from hadal.configs.reading import nearest
from hadal.errors import UserError

CHECKPOINT = "checkpoint"
"""What stages begin from where the recipe names a checkpoint."""


@dataclass(frozen=True)
class RunConfig:
    """What a recipe says for all of its stages."""

    tasks: list[str]
    seed: int = 0
    threads: int = 0
    dtype: str = "auto"
    device: str = "auto"
    """`cpu` or `cuda`; left open, a checkpoint of some size goes to a GPU and what is grown here stays on the CPU."""
    checkpoint: str = ""
    """A folder or a Hugging Face id that stages begin `from = "checkpoint"`; its tokenizer is the run's."""


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: its name, its kind, the stage whose model it begins from ("" for none), its numbers."""

    name: str
    kind: str
    source: str
    config: Any


@dataclass(frozen=True)
class Config:
    """What every kind's own `Config`, which holds each number that decides how such a stage ends, is derived from.

    Some fields mean the same wherever they are: `tasks` (of the recipe's; none stands for all of them), `data` (stages
    that left conversations, and files of JSON lines) and `lora` (adapters that are trained instead of the model).
    """

    def grows(self, vocabulary: int) -> ModelConfig | None:
        """The shape of the model that such a stage makes from nothing; None where it begins from another's."""
        return None


class Kind(Protocol):
    """A file of this package."""

    Config: type[Config]
    LEAVES: str
    """`model`: a checkpoint, from which other stages can begin; `data`: conversations; `figures`: neither."""

    def run_stage(self, run: Any, stage: Stage) -> None:
        """Do the stage, or carry it on; the last that it does is `run.finish` (a `common.run.Run`)."""
        ...


def names() -> list[str]:
    """All kinds that there are."""
    return sorted(module.name for module in iter_modules(__path__) if not module.ispkg)


def find(kind: str) -> Kind:
    """The kind of that name; UserError where there is none."""
    if kind not in (known := names()):
        raise UserError(f"There is no kind of stage {kind!r}.", nearest(kind, known))
    return import_module(f"{__name__}.{kind}")
