"""A recipe: a run's stages and every number that decides how it ends, typed, read from TOML and frozen in run.json.

Its table `stage` names the stages in order, each with a `kind` and the stage whose model it begins `from`. A table
named after a kind holds for all stages of it, and a stage's own table changes single values. A recipe that names no
stages has the quickstart's: pretrain, evaluate-base, grpo, evaluate-rl.
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

from hadal.errors import UserError
from hadal.machine.device import DEVICES
from hadal.ranges import check_ranges
from hadal.reading import apply_override, nearest, read_dataclass, read_value, shown
from hadal.stages import CHECKPOINT, Before, RunConfig, Stage, find, names
from hadal.stages.pretrain import SizeConfig
from hadal.tasks import DATA_SETS, files_of
from hadal.train.corpus import CorpusConfig

QUICKSTART: dict[str, dict[str, str]] = {
    "pretrain": {"kind": "pretrain"},
    "evaluate-base": {"kind": "evaluate", "from": "pretrain"},
    "grpo": {"kind": "grpo", "from": "pretrain"},
    "evaluate-rl": {"kind": "evaluate", "from": "grpo"},
}
"""The stages of a recipe that names none."""
ONCE = {"dtype": "auto", "device": "auto", "seed": 0, "threads": 0}
"""What is set once, for the whole recipe. In run.json, stages that fine-tune had it before, at these values."""
SEEDS = ("stage", "run")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")


@dataclass(frozen=True)
class Recipe(RunConfig):
    """A whole run. Two runs with equal recipes (threads included) on one machine end in equal weights."""

    arch: str = "dense"
    """This and the next two are what stages that grow a model have, unless they say otherwise."""
    model: SizeConfig = field(default_factory=SizeConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}.", nearest(self.dtype, ("auto", "float32", "bfloat16")))
        if self.device not in DEVICES:
            raise UserError(f"device is {self.device!r}.", nearest(self.device, DEVICES))
        if self.seeds not in SEEDS:
            raise UserError(f"seeds is {self.seeds!r}.", nearest(self.seeds, SEEDS))
        if not self.tasks:
            raise UserError("The recipe has no tasks.", "Name at least one.")
        check_ranges(self)
        self.model.check(self.arch)
        if self.stages:  # a recipe is read in two parts
            _check_chain(self)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data; `read_recipe` takes it back."""
        data = asdict(self)
        del data["stages"]
        for key, default in (("checkpoint", ""), ("publish", ""), ("device", "auto")):
            if data[key] == default:
                del data[key]
        data["stage"] = {
            s.name: {"kind": s.kind} | ({"from": s.source} if s.source else {}) | asdict(s.config) for s in self.stages
        }
        return data


def _check_chain(recipe: Recipe) -> None:
    """UserError for a stage that needs what no stage before it leaves, or that its kind refuses."""
    before = Before(recipe.tasks, models=[CHECKPOINT] if recipe.checkpoint else [])
    for stage in recipe.stages:
        kind = find(stage.kind)
        check_ranges(stage.config, f"{stage.where}.")
        before.need_tasks(getattr(stage.config, "tasks", ()), stage.where)
        kind.check(stage, before)
        before.add(stage, kind.LEAVES)
    if recipe.publish:
        before.need_model(recipe.publish, "publish")
    if not [name for name in before.models if name != CHECKPOINT]:
        kinds = [kind for kind in names() if find(kind).LEAVES == "model"]
        raise UserError("No stage of the recipe leaves a model.", f"These kinds do: {', '.join(kinds)}.")


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
        data = _with_stages(data)
    known = [f.name for f in fields(Recipe) if f.name != "stages"]
    _check_keys(data, [*known, *names(), "stage"], "")
    recipe = read_dataclass(Recipe, {key: data[key] for key in data if key in known and key != "publish"}, "")
    publish = read_value(str, data.get("publish", ""), "publish")
    return replace(recipe, stages=_read_stages(data, recipe), publish=publish)


def read_frozen(data: dict[str, Any]) -> Recipe:
    """The same of what a run has frozen; one that says nothing of its seeds is from before they went by stage."""
    return read_recipe({"seeds": "run", **data})


def _with_stages(data: dict[str, Any]) -> dict[str, Any]:
    """The tables of a recipe that names no stages: it has the quickstart's, examined in depth."""
    tables = {name: data.get(name, {}) for name in ("pretrain", "grpo", "evaluate")}
    chosen: dict[str, dict[str, Any]] = {
        "pretrain": {key: value for key, value in _table(tables["grpo"]).items() if key == "max_tokens"},
        "grpo": {},
        "evaluate": {
            "problems": 500, "samples": 1, "mode_problems": 250, "level_problems": 100, "pass_problems": 24,
            "max_tokens": 320,
        },
    }  # fmt: skip
    merged = {name: {**chosen[name], **table} if isinstance(table, dict) else table for name, table in tables.items()}
    return {**data, **merged, "stage": {name: dict(table) for name, table in QUICKSTART.items()}}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _check_keys(table: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"Unknown key {where}{key}.", nearest(key, known))


def _of_kinds(data: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """By kind, the numbers that a stage of it has where its own table says nothing."""
    shared = {name: getattr(recipe, name) for name in ("arch", "model", "corpus")}
    found = {}
    for name in names():
        kind: type[Any] = find(name).Config
        has = {f.name for f in fields(kind)}
        base = kind(**{key: value for key, value in shared.items() if key in has})
        found[name] = read_dataclass(kind, data.get(name, {}), name, base)
        check_ranges(found[name], f"{name}.")
    return found


def _read_stages(data: dict[str, Any], recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe. With an [evaluate] table, an evaluation follows each stage that leaves a model."""
    tables = data["stage"]
    if not isinstance(tables, dict):
        raise UserError(f"stage is {shown(tables)}.", "Stages are tables: [stage.base].")
    if not tables:
        raise UserError("The recipe has no stages.", "Name at least one: [stage.base].")
    of_kind = _of_kinds(data, recipe)
    stages = [_read_stage(name, table, of_kind) for name, table in tables.items()]
    if "evaluate" in data:
        watched = {stage.source for stage in stages if stage.kind == "evaluate"}
        for place, stage in reversed(list(enumerate(stages, 1))):
            if find(stage.kind).LEAVES == "model" and stage.name not in watched:
                stages.insert(place, Stage(f"evaluate-{stage.name}", "evaluate", stage.name, of_kind["evaluate"]))
    return tuple(stages)


def _read_stage(name: str, table: Any, of_kind: dict[str, Any]) -> Stage:
    where = f"stage.{name}"
    if not _NAME.fullmatch(name):
        raise UserError(f"A stage is named {shown(name)}.", "Use small letters, digits and dashes.")
    if not isinstance(table, dict):
        raise UserError(f"{where} is {shown(table)}.", "It must be a table of keys and values.")
    kind, source = table.get("kind", ""), table.get("from", "")
    if not isinstance(kind, str) or kind not in of_kind:
        raise UserError(f"{where}.kind is {shown(kind)}.", nearest(kind if isinstance(kind, str) else "", of_kind))
    if not isinstance(source, str):
        raise UserError(f"{where}.from is {shown(source)}.", "It must be the name of a stage.")
    config = type(of_kind[kind])
    known = ["kind", "from", *(f.name for f in fields(config))]
    table = {key: value for key, value in table.items() if key in known or ONCE.get(key) != value}
    for key in table:
        if key in ONCE and key not in known:
            raise UserError(f"{where}.{key} is set.", "It is set once, for the whole recipe.")
    _check_keys(table, known, f"{where}.")
    numbers = {key: value for key, value in table.items() if key not in ("kind", "from")}
    try:
        return Stage(name, kind, source, read_dataclass(config, numbers, where, of_kind[kind]))
    except UserError as error:
        inside = error.cause.startswith((where, f"Unknown key {where}"))
        raise UserError(error.cause if inside else f"{where}: {error.cause}", error.remedy) from None


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
        raise UserError(f"Recipe {name} is nested too deeply.", "A recipe nests tables at most two deep.") from None
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
