"""Runs a recipe or carries it on: set-up, stages, publication. `hadal train` and `hadal quickstart` both end here.

The folder of a run says by its `run.json` how far it is: `preparing` (nothing is trained; the set-up is done
again), `running` (what was measured is frozen; stages carry on) or `complete`. Read `run.py` next.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hadal.cost.prices import LAPTOP
from hadal.errors import UserError
from hadal.files import digest_of, write_bytes
from hadal.library.find import find_model
from hadal.library.record import open_run, write_run
from hadal.recipe.claim import alone_in, check_same, disk_trouble_told, existing
from hadal.recipe.config import (
    Recipe,
    load_recipe_data,
    read_frozen,
    read_recipe,
    recipe_file,
    to_toml,
    with_task_files,
)
from hadal.recipe.inherit import decided, take_over
from hadal.recipe.plan import decide
from hadal.recipe.sides import write_evaluation
from hadal.recipe.sinks import ToldLines, check_sinks
from hadal.report.run import write_report
from hadal.stages import find
from hadal.stages.common.run import PUBLISHED, DamagedModel, Run, checkpoint_digest
from hadal.stages.common.view import View
from hadal.stages.pretrain import has_thoughts
from hadal.tasks import Task, files_of, load_tasks
from hadal.tasks.words import build_tokenizer
from hadal.text.tokenizer import Tokenizer
from hadal.train.corpus import FOREIGN

OWN_FILES = (
    *PUBLISHED, "metrics.jsonl", "timing.jsonl", "ledger.jsonl", "evaluation.json",
    "report.json", "report.md", "report.html", "rollouts", "stages",
)  # fmt: skip
"""What a run writes beside run.json; nothing else is ever removed from its folder."""


def train(
    recipe_path: Path, out: Path | None, overrides: Sequence[str], dry_run: bool, view: View,
    trust: bool = False, fresh: bool = False, sinks: Sequence[str] = (), seed: int | None = None,
) -> Path | None:  # fmt: skip
    """Run or resume a recipe, a TOML file or a shipped one by its name, with just the budgets it states; returns the
    run folder.

    seed: instead of the recipe's; the folder is then named after it as well, beside those of other seeds.
    sinks: where metrics also go (`sinks.py`).
    dry_run: print the recipe with everything decided that a run would freeze, and what it would cost; write nothing.
    trust: let a recipe run the Python files that it names as tasks. UserError for whatever is wrong with the input.
    """
    check_sinks(sinks)
    name = recipe_file(recipe_path).stem
    if seed is not None:
        overrides, name = [*overrides, f"seed={seed}"], f"{name}-seed{seed}"
    recipe = read_file(recipe_path, overrides, trust)
    if dry_run:
        print(plan_of(recipe, view), end="", flush=True)
        return None
    folder = out or Path("runs") / name
    code = [name for name in recipe.tasks for file in files_of(name) if file.suffix == ".py"]
    command = ["hadal", "train", str(recipe_path), *(["--trust"] if code else []), *_settings(overrides)]
    return grow(recipe, folder, view, fresh=fresh, command=shlex.join([*command, "--out", str(folder)]), sinks=sinks)


def read_file(recipe_path: Path, overrides: Sequence[str], trust: bool) -> Recipe:
    """The recipe in a TOML file, its task files named by their places. UserError for its Python files without trust."""
    recipe = read_recipe(load_recipe_data(recipe_path, overrides))
    places = {name: str(Path(name).resolve()) for name in recipe.tasks if files_of(name)}
    named = load_recipe_data(recipe_path).get("tasks")
    own = named if isinstance(named, list) else []  # what --set names, the user has typed
    code = [file for name in places if name in own for file in files_of(name) if file.suffix == ".py"]
    if code and not trust:
        raise UserError(
            f"{recipe_path} names the Python file {code[0]}, which would run as you.",
            "Read it, and add --trust if you trust it.",
        )
    return with_task_files(recipe, places)


def plan_of(recipe: Recipe, view: View) -> str:
    """The recipe as a run would freeze it, in TOML, headed by what it would cost."""
    tasks = _load_and_check(recipe)
    _check_data(recipe)
    recipe, plan = decide(recipe, tasks, tokenizer_of(recipe, tasks), None, view)
    lines = [f"{stage}: {seconds:,.0f} s, ${LAPTOP.cost(seconds):.2g}" for stage, seconds in plan.seconds.items()]
    total = sum(plan.seconds.values())
    lines.append(f"in all about {total / 60:,.1f} minutes, ${LAPTOP.cost(total):.2g} ({LAPTOP.source})")
    data = recipe.to_dict()
    if all(stage.config.grows(1) is None for stage in recipe.stages):
        data = {key: value for key, value in data.items() if key not in ("arch", "model", "corpus")}
    return "".join(f"# {line}\n" for line in lines) + "\n" + to_toml(data)


def grow(
    recipe: Recipe, folder: Path, view: View, minutes: float | None = None, fresh: bool = False,
    command: str = "", sinks: Sequence[str] = (), like: Path | None = None,
) -> Path:  # fmt: skip
    """Run a recipe in a folder, or carry on there, or do nothing where it is finished; returns the folder.

    minutes: stretch the recipe's budgets to fill them. command: what the user typed, kept for the reader of the run.
    like: a run of a recipe that differs in later stages alone, whose first stages are taken over.
    """
    tasks = _load_and_check(recipe)
    if fresh or not (folder / "run.json").exists():  # a run that has begun may be past the need of them
        _check_data(recipe)
    request = {"recipe": _wanted(recipe), "minutes": minutes, "task_files": _file_digests(recipe)}
    with alone_in(folder), disk_trouble_told(folder):
        record = existing(folder, fresh)
        if record is None:
            record = _prepare(folder, recipe, tasks, minutes, request, view, command, like)
        else:
            asked = read_recipe(record["request"]["recipe"])  # a setting that came later has its default
            check_same(folder, {**record["request"], "recipe": _wanted(asked)}, request)
            if record["status"] != "complete":
                view.note(f"Carrying on in {folder}.")
        frozen = read_frozen(record["config"])
        if recipe.threads not in (0, frozen.threads):
            view.note(f"This run began with --threads {frozen.threads} and keeps to it, so that it ends the same.")
        run = Run(folder, frozen, tasks, Tokenizer.load(folder), view)
        if record["status"] == "complete" and _is_whole(run):
            view.note(f"{folder} is grown already. --fresh starts anew.")
            return folder
        torch.set_num_threads(frozen.threads)
        if sinks:
            run.metrics = ToldLines(run.metrics.path, sinks, folder, record["config"])
        report = _finish(run, record)
        view.close()  # so that the last stage is told before the result
        view.note(f"{report['headline']}. See {folder / 'report.html'}.")
    return folder


def run_stages(run: Run) -> None:
    """Every stage that has not finished, in order. One whose model is damaged is finished once more."""
    while (stage := next((s for s in run.recipe.stages if run.result(s.name) is None), None)) is not None:
        try:
            run.begin(stage)
            find(stage.kind).run_stage(run, stage)
        except DamagedModel as damage:
            _reopen(run, damage.stage)
        except KeyboardInterrupt:
            run.enter_books(stage.name)
            raise


def _finish(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """Stages, publication, report."""
    run_stages(run)
    while True:
        try:
            publish(run)
            break
        except DamagedModel as damage:
            _reopen(run, damage.stage)
            run_stages(run)
    write_evaluation(run)
    report = write_report(run.folder)
    write_run(run.folder, {**record, "status": "complete"})
    return report


def _reopen(run: Run, stage: str) -> None:
    run.view.note(f"The model that {stage} left is damaged: its last part is done again.")
    run.reopen(stage)


def publish(run: Run) -> None:
    """Copy the final stage's checkpoint to the run folder itself, each file whole or not at all."""
    final = run.recipe.final
    run.check_model(final)
    for name in PUBLISHED:
        write_bytes(run.folder / name, (run.stage_folder(final) / name).read_bytes())


def _is_whole(run: Run) -> bool:
    """Whether a finished run's checkpoint is what its last stage left; if not, it is published again."""
    result = run.result(run.recipe.final)
    if result is None:  # someone made room: what can be checked are the headers
        open_run(run.folder)
        return True
    if checkpoint_digest(run.folder) == result["checkpoint"]:
        return True
    run.view.note(f"The model in {run.folder} is damaged: it is restored from the last stage.")
    return False


# Set-up


def _prepare(
    folder: Path, recipe: Recipe, tasks: dict[str, Task], minutes: float | None, request: dict[str, Any], view: View,
    command: str, like: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Set a run up; what an earlier run or an interrupted set-up left of its own is removed."""
    record = {
        "name": folder.resolve().name, "arch": recipe.arch, "seed": recipe.seed, "minutes": minutes,
        "status": "preparing", "command": command, "request": request,
    }  # fmt: skip
    write_run(folder, record)
    _clear(folder)
    for task in tasks.values():
        if not recipe.checkpoint and not has_thoughts(task):
            view.note(
                f"{task.name} has no thoughts, so there is nothing to learn thinking from: the model learns to answer "
                "at once, and reinforcement learning sharpens that."
            )
    tokenizer = tokenizer_of(recipe, tasks)
    if like is None:
        recipe, measured = decide(recipe, tasks, tokenizer, minutes, view)
        view.note(measured.expectation(recipe, minutes))
        plan = asdict(measured)
    else:
        recipe, plan = decided(recipe, like)
        if taken := take_over(folder, recipe, like):
            view.note(f"Taken over from {like}: {', '.join(taken)}.")
    tokenizer.save(folder)
    if recipe.checkpoint and (ends := find_model(recipe.checkpoint) / "generation_config.json").is_file():
        write_bytes(folder / ends.name, ends.read_bytes())
    record |= {"status": "running", "config": recipe.to_dict(), "plan": plan}
    write_run(folder, record)
    return record


def _wanted(recipe: Recipe) -> dict[str, Any]:
    """What a request is known by: all but the threads, since a run keeps those that it began with."""
    return {key: value for key, value in recipe.to_dict().items() if key != "threads"}


def tokenizer_of(recipe: Recipe, tasks: dict[str, Task]) -> Tokenizer:
    """The checkpoint's tokenizer, or one whose words are those of the tasks."""
    if recipe.checkpoint:
        return Tokenizer.load(find_model(recipe.checkpoint))
    return build_tokenizer(list(tasks.values()), "".join(FOREIGN) if recipe.corpus.foreign_share else "")


def _load_and_check(recipe: Recipe) -> dict[str, Task]:
    tasks = load_tasks(recipe.tasks)
    for task in tasks.values():
        task.validate()
    return tasks


def _check_data(recipe: Recipe) -> None:
    """UserError for a file of conversations that is not there: a stage comes to it after hours."""
    for stage in recipe.stages:
        for name in getattr(stage.config, "data", ()):
            if name.endswith(".jsonl") and not Path(name).is_file():
                raise UserError(f"stage.{stage.name}.data: there is no file {name}.", "Give a file of JSON lines.")


def _file_digests(recipe: Recipe) -> dict[str, str]:
    """A digest of each task file: a run is carried on with the tasks that it began with, or not at all."""
    files = [file for name in recipe.tasks for file in files_of(name)]
    return {str(file): digest_of(file) for file in files}


def _clear(folder: Path) -> None:
    """Remove what a run wrote beside run.json, temporary files of a killed one included."""
    for name in OWN_FILES:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        for path in (folder / name, folder / f"{name}.part", folder / f".{name}.part"):
            path.unlink(missing_ok=True)


def _settings(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]
