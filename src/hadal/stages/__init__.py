"""Stages of a recipe: each kind is one file here, found by its name.

A stage is a function from artefacts to artefacts: it reads what earlier ones left in the run folder, and leaves its own
result there. Such a file has `Config`, `LEAVES`, `check`, `needs` and `run_stage`, and nothing has to be told of it;
docs/extending.md adds one as an example. Which stages a run has, and in which order, is its recipe's business
(`hadal.recipe`); what stages work with is in `common/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, Self

from hadal.errors import UserError
from hadal.models.config import ModelConfig
from hadal.reading import nearest

CHECKPOINT = "checkpoint"
"""What stages begin from where the recipe names a checkpoint."""


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: its name, its kind, the stage whose model it begins from ("" for none), its numbers."""

    name: str
    kind: str
    source: str
    config: Any

    @property
    def where(self) -> str:
        """How a message names its table."""
        return f"stage.{self.name}"


@dataclass(frozen=True)
class RunConfig:
    """A run's stages, and what holds for all of them."""

    tasks: list[str]
    seed: int = 0
    seeds: str = "stage"
    """What a stage's draws go by beside the seed: its name (`stage`), or what they did before that was so (`run`)."""
    threads: int = 0
    dtype: str = "auto"
    device: str = "auto"
    """`cpu` or `cuda`; left open, a checkpoint of some size goes to a GPU and what is grown here stays on the CPU."""
    checkpoint: str = ""
    """A folder or a Hugging Face id that stages begin `from = "checkpoint"`; its tokenizer is the run's."""
    publish: str = ""
    """The stage whose model the run folder holds in the end; the last one that leaves a model."""
    stages: tuple[Stage, ...] = ()

    @property
    def final(self) -> str:
        """The stage whose model is published."""
        return self.publish or [stage.name for stage in self.stages if find(stage.kind).LEAVES == "model"][-1]

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


@dataclass(frozen=True)
class Before:
    """What a stage finds: the recipe's tasks, and which stages are before it, by what they leave."""

    tasks: Sequence[str]
    stages: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)

    def need_model(self, name: str, key: str) -> None:
        """UserError, about the setting `key`, unless a stage of that name is before this one and leaves a model."""
        self._need(name, self.models, key, "model")

    def need_data(self, name: str, key: str) -> None:
        """The same of conversations."""
        self._need(name, self.data, key, "data")

    def need_tasks(self, names: Sequence[str], where: str) -> None:
        """UserError for a task that is not among the recipe's."""
        for name in names:
            if name not in self.tasks:
                raise UserError(f"{where} names the task {name!r}.", nearest(name, self.tasks))

    def _need(self, name: str, names: Sequence[str], key: str, what: str) -> None:
        if name not in names:
            why = f"leaves no {what}" if name in self.stages else "is not a stage before it"
            remedy = nearest(name, names) if names else f"No stage before it leaves a {what}."
            raise UserError(f"{key} is {name!r}, which {why}.", remedy)

    def add(self, stage: Stage, leaves: str) -> None:
        """Go on to the stage behind this one."""
        self.stages.append(stage.name)
        found = {"model": self.models, "data": self.data}.get(leaves)
        if found is not None:
            found.append(stage.name)


@dataclass(frozen=True)
class Config:
    """What every kind's own `Config`, which holds each number that decides how such a stage ends, is derived from.

    Some fields mean the same wherever they are: `tasks` (of the recipe's; none stands for all of them), `data` (stages
    that left conversations, and files of JSON lines), `lora` (adapters that are trained instead of the model) and
    `max_tokens` (of a response), which a kind that leaves data has.
    """

    @property
    def conversations(self) -> int:
        """How many such a stage may come to leave."""
        return 0

    def grows(self, vocabulary: int) -> ModelConfig | None:
        """The shape of the model that such a stage makes from nothing; None where it begins from another's."""
        return None

    def stretched(self, factor: float) -> Self:
        """The same with `factor` times as much to learn; a kind that learns nothing stays as it is."""
        return self


class Kind(Protocol):
    """A file of this package."""

    Config: type[Config]
    LEAVES: str
    """`model`: a checkpoint, from which other stages can begin; `data`: conversations; `figures`: neither."""

    def check(self, stage: Stage, before: Before) -> None:
        """UserError, in one line, for a stage that cannot be done. That its numbers are in their ranges
        (`ranges.py`) and its `tasks` among the recipe's is looked at for all kinds."""
        ...

    def needs(self, stage: Stage, scene: Any) -> Any:
        """The memory and time that it will take, as `common.needs.Needs`, in a `common.needs.Scene`."""
        ...

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
