"""`hadal quickstart`: from random weights to a model that has taught itself to think, in one resumable command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hadal.errors import UserError
from hadal.ops.speed import fastest_dtype, matmul_rates
from hadal.recipe.calibrate import Plan, calibrate, scale_recipe
from hadal.recipe.config import Recipe, load_recipe_data, read_recipe
from hadal.recipe.report import write_report
from hadal.recipe.run import Run
from hadal.recipe.run_folder import open_run, read_run, write_run
from hadal.recipe.stages.evaluate import evaluate_stage, write_evaluation
from hadal.recipe.stages.grpo import grpo
from hadal.recipe.stages.pretrain import pretrain
from hadal.recipe.view import View
from hadal.tasks import load_tasks
from hadal.tasks.words import build_tokenizer
from hadal.text.tokenizer import Tokenizer

STAGES = ("pretrain", "evaluate-base", "grpo", "evaluate-rl")
PUBLISHED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
TEST_PRESET_MINUTES = 4
"""Fewer minutes than this choose the small preset that tests use."""


def quickstart(
    seed: int, minutes: float, out: Path | None, arch: str | None, task: Path | None, fresh: bool, view: View,
    overrides: Sequence[str] = (), threads: int | None = None,
) -> Path:  # fmt: skip
    """Grow a model, or carry on, or do nothing where it is grown already; returns the run folder.

    UserError for a folder that belongs to another request, and for whatever is wrong with the input.
    """
    name = "tiny" if minutes < TEST_PRESET_MINUTES else "quickstart"
    data = load_recipe_data(name, overrides)
    data["seed"] = seed
    data["threads"] = threads or data.get("threads") or _cores()
    if arch:
        data["arch"] = arch
    if task is not None:
        data["tasks"] = [str(Path(task).resolve())]
    wanted = read_recipe(data)
    folder = Path(out) if out else Path("runs") / f"{wanted.arch}-seed{seed}"
    request = {"recipe": wanted.to_dict(), "minutes": minutes}
    if fresh and (folder / "run.json").exists():
        shutil.rmtree(folder)
    if (folder / "run.json").exists():
        record = read_run(folder)
        if record["request"] != request:
            raise UserError(
                f"{folder} holds a run of other settings ({_difference(record['request'], request)}).",
                "Give the same settings, another folder with --out, or --fresh to start anew.",
            )
        if record.get("status") == "complete":
            view.note(f"{folder} is grown already. --fresh starts anew.")
            open_run(folder)
            return folder
        view.note(f"Carrying on in {folder}.")
    else:
        record = _create(folder, wanted, minutes, request, view)
    recipe = read_recipe(record["config"])
    torch.set_num_threads(recipe.threads)
    run = Run(folder, recipe, load_tasks(recipe.tasks), Tokenizer.load(folder), view)
    run.planned = dict(record["plan"]["seconds"])
    run_stages(run)
    write_evaluation(run)
    for file in PUBLISHED:
        shutil.copyfile(run.stage_folder("grpo") / file, folder / (file + ".part"))
        os.replace(folder / (file + ".part"), folder / file)
    write_report(folder)
    write_run(folder, {**_without_version(record), "status": "complete"})
    return folder


def run_stages(run: Run) -> None:
    """Every stage that has not finished, in order."""
    for stage in STAGES:
        if run.result(stage) is not None:
            continue
        if stage == "pretrain":
            pretrain(run)
        elif stage == "grpo":
            grpo(run)
        else:
            evaluate_stage(run, stage, of="pretrain" if stage == "evaluate-base" else "grpo")


def _create(folder: Path, wanted: Recipe, minutes: float, request: dict[str, Any], view: View) -> dict[str, Any]:
    tasks = load_tasks(wanted.tasks)
    for task in tasks.values():
        task.validate()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {(error.strerror or str(error)).lower()}.",
            "Choose another with --out.",
        ) from None
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run.", "Choose another folder with --out.")
    torch.set_num_threads(wanted.threads)
    tokenizer = build_tokenizer(list(tasks.values()))
    data = wanted.to_dict()
    if wanted.dtype == "auto":
        rates = matmul_rates(1.0)
        data["dtype"] = fastest_dtype(rates)
        view.note(
            f"Computing in {data['dtype']} on {wanted.threads} threads: matrices at {rates['float32'] / 1e9:.0f} GFLOP/s "
            f"in float32, {rates['bfloat16'] / 1e9:.0f} in bfloat16."
        )
    plan: Plan = calibrate(read_recipe(data), tasks, tokenizer)
    recipe, plan = scale_recipe(read_recipe(data), plan, minutes)
    view.note(plan.expectation(recipe, minutes))
    tokenizer.save(folder)
    record = {
        "name": folder.name, "arch": recipe.arch, "seed": recipe.seed, "minutes": minutes, "status": "running",
        "request": request, "config": recipe.to_dict(), "plan": {"seconds": plan.seconds},
    }  # fmt: skip
    write_run(folder, record)
    return record


def _without_version(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "hadal_run"}


def _difference(old: dict[str, Any], new: dict[str, Any], where: str = "") -> str:
    """The first setting in which two requests differ, in words."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if a != b:
            if isinstance(a, dict) and isinstance(b, dict):
                return _difference(a, b, f"{where}{key}.")
            return f"{where}{key} {a} instead of {b}".removeprefix("recipe.")
    return ""
