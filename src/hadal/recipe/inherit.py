"""What a run can take over from another that differs in later stages alone: what that decided, and its first stages."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from hadal.files import write_text
from hadal.library.record import read_run
from hadal.recipe.config import Recipe, read_recipe

COMMON = ("tasks", "arch", "seed", "dtype", "threads", "checkpoint", "model", "corpus")
LOGS = ("metrics.jsonl", "timing.jsonl", "ledger.jsonl")


def decided(recipe: Recipe, other: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with what the other run measured (threads, dtype), and that run's plan."""
    record = read_run(other)
    frozen = read_recipe(record["config"])
    return replace(recipe, threads=frozen.threads, dtype=frozen.dtype, device=frozen.device), record["plan"]


def take_over(folder: Path, recipe: Recipe, other: Path) -> list[str]:
    """Copy the finished stages that the recipe has in common with the other run, with their logs; returns their names.

    Stages are alike up to the first that differs in anything: what comes behind it began from another model.
    """
    theirs = read_recipe(read_run(other)["config"])
    if any(getattr(recipe, key) != getattr(theirs, key) for key in COMMON):
        return []
    names: list[str] = []
    for ours, their in zip(recipe.chain, theirs.chain, strict=False):
        source = other / "stages" / their.name
        if ours != their or not (source / "result.json").is_file():
            break
        shutil.copytree(source, folder / "stages" / ours.name, ignore=shutil.ignore_patterns("state"))
        for path in (other / "rollouts").glob(f"{their.name}-[0-9]*.jsonl"):
            (folder / "rollouts").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "rollouts" / path.name)
        names.append(ours.name)
    for log in LOGS:
        lines = (other / log).read_text(encoding="utf-8").split("\n")[:-1] if (other / log).exists() else []
        kept = [line for line in lines if json.loads(line).get("stage") in names]
        write_text(folder / log, "".join(line + "\n" for line in kept))
    return names
