"""A recipe: a run's stages and every number that decides how it ends, typed, read from TOML and frozen in run.json.

Its table `stage` names the stages in order, each with a `kind` and the stage whose model it begins `from`. A table
named after a kind holds for all stages of it, and a stage's own table changes single values. A recipe without stages
is the quickstart's: pretrain, evaluate-base, grpo, evaluate-rl.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

from hadal.configs.reading import apply_override, nearest, read_dataclass, read_value
from hadal.errors import UserError
from hadal.evaluate.suite import EvaluationConfig
from hadal.ops.device import DEVICES
from hadal.recipe.kinds import (
    KINDS,
    LEAVE_A_MODEL,
    SUITE,
    DistillConfig,
    GrpoConfig,
    PretrainConfig,
    PretrainStage,
    RejectConfig,
    SftStage,
    SizeConfig,
    Stage,
)
from hadal.train.corpus import CorpusConfig

CHECKPOINT = "checkpoint"
"""What stages begin from where the recipe names a checkpoint."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")


@dataclass(frozen=True)
class Recipe:
    """A whole run. Two runs with equal recipes (threads included) on one machine end in equal weights."""

    tasks: list[str]
    arch: str = "dense"
    seed: int = 0
    threads: int = 0
    dtype: str = "auto"
    device: str = "auto"
    """`cpu` or `cuda`; left open, a checkpoint of some size goes to a GPU and what is grown here stays on the CPU."""
    checkpoint: str = ""
    """A folder or a Hugging Face id that stages begin `from = "checkpoint"`; its tokenizer is the run's."""
    publish: str = ""
    """The stage whose model the run folder holds in the end; the last one that leaves a model."""
    model: SizeConfig = field(default_factory=SizeConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}.", nearest(self.dtype, ("auto", "float32", "bfloat16")))
        if self.device not in DEVICES:
            raise UserError(f"device is {self.device!r}.", nearest(self.device, DEVICES))
        if not self.tasks:
            raise UserError("The recipe has no tasks.", "Name at least one.")
        _check_numbers(self.to_dict(), "")
        self.model.check(self.arch)
        for stage in self.chain:
            where = f"stage.{stage.name}." if self.stages else f"{stage.name}."
            config = stage.config
            if isinstance(config, GrpoConfig | PretrainConfig) and not 0 < config.decay_share <= 1:
                raise UserError(f"{where}decay_share is {config.decay_share}.", "It must be above 0 and at most 1.")
            if isinstance(config, PretrainStage):
                config.model.check(config.arch, where if self.stages else "")
                for name in ("thinking_share", "habit_share"):
                    if not 0 < (share := getattr(config.corpus, name)) < 1:
                        at = f"{where if self.stages else ''}corpus.{name}"
                        raise UserError(f"{at} is {share}.", "It must be between 0 and 1.")
        _check_chain(self)

    @property
    def chain(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        if self.stages:
            return self.stages
        own = {f.name: getattr(self.pretrain, f.name) for f in fields(PretrainConfig)}
        pretrain = PretrainStage(
            **own, arch=self.arch, max_tokens=self.grpo.max_tokens, model=self.model, corpus=self.corpus
        )
        return (
            Stage("pretrain", "pretrain", "", pretrain),
            Stage("evaluate-base", SUITE, "pretrain", self.evaluate),
            Stage("grpo", "grpo", "pretrain", self.grpo),
            Stage("evaluate-rl", SUITE, "grpo", self.evaluate),
        )

    @property
    def final(self) -> str:
        """The stage whose model is published."""
        return self.publish or [stage.name for stage in self.chain if stage.kind in LEAVE_A_MODEL][-1]

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data; `read_recipe` takes it back."""
        data = asdict(self)
        del data["stages"]
        for key, default in (("checkpoint", ""), ("publish", ""), ("device", "auto")):
            if data[key] == default:
                del data[key]
        if self.stages:
            for kind in ("pretrain", "grpo", "evaluate"):
                del data[kind]  # each stage has its own
            data["stage"] = {
                s.name: {"kind": s.kind} | ({"from": s.source} if s.source else {}) | asdict(s.config)
                for s in self.stages
            }
        return data


def _check_chain(recipe: Recipe) -> None:
    """UserError for a stage that needs what no stage before it leaves."""
    models: list[str] = [CHECKPOINT] if recipe.checkpoint else []
    data: list[str] = []
    before: list[str] = []

    def known(name: str, names: list[str], key: str, what: str) -> None:
        if name not in names:
            why = f"leaves no {what}" if name in before else "is no stage before it"
            remedy = nearest(name, names) if names else f"No stage before it leaves a {what}."
            raise UserError(f"{key} is {name!r}, which {why}.", remedy)

    for stage in recipe.chain:
        where, config = f"stage.{stage.name}", stage.config
        if stage.kind == "pretrain":
            if stage.source:
                raise UserError(f"{where}.from is {stage.source!r}.", "Pre-training begins from nothing: leave it out.")
        elif stage.source or not isinstance(config, RejectConfig):
            known(stage.source, models, f"{where}.from", "model")
        if isinstance(config, RejectConfig) and config.problems and bool(stage.source) == bool(config.endpoint):
            raise UserError(
                f"{where} samples from {'two teachers' if stage.source else 'nobody'}.", "Give either from or endpoint."
            )
        if isinstance(config, SftStage) and not (isinstance(config, DistillConfig) and config.method == "on-policy"):
            if not config.data:
                raise UserError(f"{where} has no data.", f"Name a stage of kind reject ({', '.join(data)}) or a file.")
            for name in config.data:
                if not name.endswith(".jsonl"):
                    known(name, data, f"{where}.data", "data")
        if isinstance(config, DistillConfig) and config.method != "samples":
            known(config.teacher, models, f"{where}.teacher", "model")
            if config.method == "on-policy" and config.data:
                raise UserError(f"{where} has data.", "On-policy the student's own samples are the data: leave it out.")
        plain = config.plain_tasks if isinstance(config, RejectConfig) and config.plain else []
        for task in [*getattr(config, "tasks", ()), *plain]:
            if task not in recipe.tasks:
                raise UserError(f"{where} names the task {task!r}.", nearest(task, recipe.tasks))
        before.append(stage.name)
        if stage.kind in LEAVE_A_MODEL:
            models.append(stage.name)
        if stage.kind == "reject":
            data.append(stage.name)
    if recipe.publish:
        known(recipe.publish, models, "publish", "model")
    if not [name for name in models if name != CHECKPOINT]:
        raise UserError("No stage of the recipe leaves a model.", f"Such are {', '.join(LEAVE_A_MODEL)}.")


MAY_BE_ZERO = {
    "seed", "threads", "num_nextn_predict_layers", "extra_rounds", "levels_past_gold", "pass_problems", "rank", "gold",
    "plain",
}  # fmt: skip


def _check_numbers(table: dict[str, Any], where: str) -> None:
    """UserError for a whole number that is too small and a number that is none."""
    for key, value in table.items():
        least = 0 if key in MAY_BE_ZERO or (key == "problems" and ("gold" in table or "plain" in table)) else 1
        if isinstance(value, dict):
            _check_numbers(value, f"{where}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise UserError(f"{where}{key} is {value}.", f"It must be at least {least}.")
        elif isinstance(value, float) and not isfinite(value):
            raise UserError(f"{where}{key} is {value}.", "It must be a finite number.")


def to_toml(data: dict[str, Any], where: str = "") -> str:
    """Tables of numbers, text and lists in TOML; None has no form there and is left out."""
    plain = {key: value for key, value in data.items() if not isinstance(value, dict) and value is not None}
    text = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plain.items())
    for key, value in data.items():
        if isinstance(value, dict):
            text += f"\n[{where}{key}]\n" + to_toml(value, f"{where}{key}.")
    return text


def with_task_files(recipe: Recipe, places: Mapping[str, str]) -> Recipe:
    """The recipe with its task files named by their places, wherever it names them."""

    def placed(names: list[str]) -> list[str]:
        return [places.get(name, name) for name in names]

    def of(config: Any) -> Any:
        keys = [key for key in ("tasks", "plain_tasks") if hasattr(config, key)]
        return replace(config, **{key: placed(getattr(config, key)) for key in keys})

    stages = tuple(replace(stage, config=of(stage.config)) for stage in recipe.stages)
    return replace(recipe, tasks=placed(recipe.tasks), stages=stages)


def _with_options(grpo: dict[str, Any]) -> dict[str, Any]:
    """The table of a run from before algorithms had options of their own: three of them stood beside it."""
    once = {"baseline": 1.0, "clip_low": 0.2, "clip_high": 0.28}
    changed = {key: grpo[key] for key, default in once.items() if grpo.get(key, default) != default}
    rest = {key: value for key, value in grpo.items() if key not in once}
    return {**rest, "options": {**changed, **rest.get("options", {})}} if changed else rest


def read_recipe(data: dict[str, Any]) -> Recipe:
    """A recipe from plain data."""
    if isinstance(data.get("grpo"), dict):
        data = {**data, "grpo": _with_options(data["grpo"])}
    if "stages" in data:
        raise UserError("Unknown key stages.", "Did you mean stage?")
    if "stage" not in data:
        return read_dataclass(Recipe, data, "")
    whole = {key: value for key, value in data.items() if key not in (*KINDS, "stage", "publish")}
    _check_keys(whole, [*(f.name for f in fields(Recipe) if f.name != "stages"), *KINDS, "stage"], "")
    recipe = read_dataclass(Recipe, whole, "")
    publish = read_value(str, data.get("publish", ""), "publish")
    return replace(recipe, stages=_read_stages(data, recipe), publish=publish)


def _check_keys(table: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"Unknown key {where}{key}.", nearest(key, known))


def _read_stages(data: dict[str, Any], recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe. With an [evaluate] table, an evaluation follows each stage that leaves a model."""
    tables = data["stage"]
    if not isinstance(tables, dict):
        raise UserError(f"stage is {tables!r}.", "Stages are tables: [stage.base].")
    of_kind = {kind: read_dataclass(type_, data.get(kind, {}), kind) for kind, type_ in KINDS.items()}
    shared = PretrainStage(arch=recipe.arch, model=recipe.model, corpus=recipe.corpus)
    of_kind["pretrain"] = read_dataclass(PretrainStage, data.get("pretrain", {}), "pretrain", shared)
    stages: list[Stage] = []
    for name, table in tables.items():
        where = f"stage.{name}"
        if not _NAME.fullmatch(name):
            raise UserError(f"A stage is named {name!r}.", "Use small letters, digits and dashes.")
        if not isinstance(table, dict):
            raise UserError(f"{where} is {table!r}.", "It must be a table of keys and values.")
        kind, source = table.get("kind", ""), table.get("from", "")
        if kind not in KINDS:
            raise UserError(f"{where}.kind is {kind!r}.", nearest(str(kind), KINDS))
        if not isinstance(source, str):
            raise UserError(f"{where}.from is {source!r}.", "It must be the name of a stage.")
        _check_keys(table, ["kind", "from", *(f.name for f in fields(KINDS[kind]))], f"{where}.")
        numbers = {key: value for key, value in table.items() if key not in ("kind", "from")}
        try:
            stages.append(Stage(name, kind, source, read_dataclass(KINDS[kind], numbers, where, of_kind[kind])))
        except UserError as error:
            inside = error.cause.startswith((where, f"Unknown key {where}"))
            raise UserError(error.cause if inside else f"{where}: {error.cause}", error.remedy) from None
    if "evaluate" in data:
        watched = {stage.source for stage in stages if stage.kind == "evaluate"}
        for place, stage in reversed(list(enumerate(stages, 1))):
            if stage.kind in LEAVE_A_MODEL and stage.name not in watched:
                stages.insert(place, Stage(f"evaluate-{stage.name}", "evaluate", stage.name, of_kind["evaluate"]))
    return tuple(stages)


def recipe_file(name: str | Path) -> Path:
    """The file of a recipe: a path that ends in .toml, or a shipped recipe by its bare name."""
    path = Path(name)
    if path.suffix == ".toml":
        return path
    shipped = {Path(entry.name).stem: entry for entry in resources.files("hadal.recipes").iterdir()}
    if str(name) not in shipped:
        ships = sorted(word for word in shipped if not word.startswith(("tiny", "__")))
        raise UserError(f"{name} is not a recipe.", f"Give the path of a TOML file, or one of {', '.join(ships)}.")
    return Path(str(shipped[str(name)]))


def load_recipe_data(name: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a recipe file, or of a shipped recipe by its bare name, with `--set` applied."""
    path = Path(name)
    try:
        text = recipe_file(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Recipe {name} cannot be read ({(error.strerror or str(error)).lower()}).") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"Recipe {name} is not valid TOML: {error}.") from None
    for assignment in overrides:
        apply_override(data, assignment)
    return data
