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
from pathlib import Path
from typing import Any

from hadal.configs.ranges import check_ranges
from hadal.configs.reading import apply_override, nearest, read_dataclass, read_value, shown
from hadal.errors import UserError
from hadal.ops.device import DEVICES
from hadal.stages import CHECKPOINT, Before, RunConfig, Stage, find, names
from hadal.stages.grpo import Config as GrpoConfig
from hadal.stages.pretrain import Config as PretrainStage
from hadal.stages.pretrain import PretrainConfig, SizeConfig
from hadal.stages.suite import Config as EvaluationConfig
from hadal.tasks import DATA_SETS, files_of
from hadal.train.corpus import CorpusConfig

SUITE = "suite"
"""The quickstart's own kind of evaluation, before and after RL."""
KINDS = {kind: find(kind).Config for kind in names() if kind != SUITE}
"""The kinds of stage that a recipe can name."""
LEAVE_A_MODEL = tuple(kind for kind in KINDS if find(kind).LEAVES == "model")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")


@dataclass(frozen=True)
class Recipe(RunConfig):
    """A whole run. Two runs with equal recipes (threads included) on one machine end in equal weights."""

    arch: str = "dense"
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
        check_ranges(self, besides=("pretrain", "grpo", "evaluate") if self.stages else ())
        self.model.check(self.arch)
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
    """UserError for a stage that needs what no stage before it leaves, or that its kind refuses."""
    before = Before(recipe.tasks, models=[CHECKPOINT] if recipe.checkpoint else [])
    for stage in recipe.chain:
        kind = find(stage.kind)
        if recipe.stages:
            check_ranges(stage.config, f"{stage.where}.")
        before.need_tasks(getattr(stage.config, "tasks", ()), stage.where)
        kind.check(stage, before)
        before.add(stage, kind.LEAVES)
    if recipe.publish:
        before.need_model(recipe.publish, "publish")
    if not [name for name in before.models if name != CHECKPOINT]:
        raise UserError("No stage of the recipe leaves a model.", f"Such are {', '.join(LEAVE_A_MODEL)}.")


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
        raise UserError(f"stage is {shown(tables)}.", "Stages are tables: [stage.base].")
    if not tables:
        raise UserError("The recipe has no stages.", "Name at least one: [stage.base].")
    of_kind = {kind: read_dataclass(type_, data.get(kind, {}), kind) for kind, type_ in KINDS.items()}
    shared = PretrainStage(arch=recipe.arch, model=recipe.model, corpus=recipe.corpus)
    of_kind["pretrain"] = read_dataclass(PretrainStage, data.get("pretrain", {}), "pretrain", shared)
    stages: list[Stage] = []
    for name, table in tables.items():
        where = f"stage.{name}"
        if not _NAME.fullmatch(name):
            raise UserError(f"A stage is named {shown(name)}.", "Use small letters, digits and dashes.")
        if not isinstance(table, dict):
            raise UserError(f"{where} is {shown(table)}.", "It must be a table of keys and values.")
        kind, source = table.get("kind", ""), table.get("from", "")
        if not isinstance(kind, str) or kind not in KINDS:
            raise UserError(f"{where}.kind is {shown(kind)}.", nearest(kind if isinstance(kind, str) else "", KINDS))
        if not isinstance(source, str):
            raise UserError(f"{where}.from is {shown(source)}.", "It must be the name of a stage.")
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
    """The tables of a recipe file, or of a shipped recipe by its bare name, with `--set` applied.

    Paths in the file are of what lies beside it, those in `--set` of what lies in the working folder.
    """
    path = recipe_file(name)
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"Recipe {name} cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except RecursionError:
        raise UserError(f"Recipe {name} is nested too deeply.", "A recipe has tables in tables at most.") from None
    except ValueError as error:  # no TOML, no text, or a number of thousands of digits
        raise UserError(f"Recipe {name} is not valid TOML: {' '.join(str(error).split())}.") from None
    data = _beside(data, path.parent)
    for assignment in overrides:
        apply_override(data, assignment)
    return data


def _beside(value: Any, folder: Path, key: str = "") -> Any:
    """The tables of a recipe file with its paths as they are from the working folder."""
    if isinstance(value, dict):
        return {name: _beside(item, folder, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_beside(item, folder, key) for item in value]
    if not isinstance(value, str) or key not in ("tasks", "plain_tasks", "data", "checkpoint"):
        return value
    if key in ("tasks", "plain_tasks") and files_of(value):
        return str((folder / value).resolve())
    if folder.resolve() == Path.cwd():
        return value
    head, colon, place = value.partition(":")
    if key in ("tasks", "plain_tasks") and head in DATA_SETS and colon:
        return f"{head}:{(folder / place).resolve()}"
    is_path = value.endswith(".jsonl") if key == "data" else value.startswith(".") or (folder / value).is_dir()
    return str((folder / value).resolve()) if key in ("data", "checkpoint") and is_path else value
