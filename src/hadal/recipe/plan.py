"""What a recipe will need, told before it starts: what it leaves open is decided, and each stage says what it takes.

A model that is grown here is measured (`calibrate.py`): it is small enough to be tried. What a checkpoint takes is
computed. Times are only ever measured here; what follows counts steps and tokens, so a run that is stopped and carried
on ends where an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from hadal.checkpoints.load import load_config
from hadal.cost.flops import parameters
from hadal.cost.memory import PROCESS, Memory, gigabytes
from hadal.errors import UserError
from hadal.library.find import find_model
from hadal.machine.device import pick
from hadal.machine.memory import resident_memory
from hadal.machine.speed import fastest_dtype, matmul_rates
from hadal.recipe.calibrate import fastest_threads, measured_rates
from hadal.recipe.config import Recipe
from hadal.stages import find
from hadal.stages.common.needs import ComputedRates, Needs, Rates, Scene, memory_left
from hadal.stages.common.view import View
from hadal.tasks import Task
from hadal.text.tokenizer import Tokenizer

DRAWN = 16
"""Problems of each task whose length in chat form is looked at."""


@dataclass(frozen=True)
class Plan:
    """Forecast seconds by stage, and the rates that they come from."""

    seconds: dict[str, float]
    rates: dict[str, float]

    def expectation(self, recipe: Recipe, minutes: float | None) -> str:
        """What the user is told before the run begins."""
        total = sum(self.seconds.values())
        length = f"about {total / 60:.0f} minutes" if total >= 90 else f"about {total:.0f} seconds"
        text = f"Expect {length}: {len(recipe.stages)} stages."
        if minutes is not None and total > minutes * 60 * 1.15:
            text += f" {minutes:g} minutes would be too few on this machine for the effect to show."
        return text


def decide(
    recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer, minutes: float | None, view: View
) -> tuple[Recipe, Plan]:
    """The recipe with device, threads, dtype and budgets decided, and what it will take.

    minutes: stretch the budgets to fill them. UserError where the memory is not there.
    """
    shape = load_config(find_model(recipe.checkpoint)) if recipe.checkpoint else None
    recipe = replace(recipe, device=pick(recipe.device, parameters(shape).total if shape is not None else 0))
    prompt, memory = longest_prompt(tasks.values(), tokenizer), Room(recipe.device)

    def needs(recipe: Recipe, rates: Rates) -> dict[str, Needs]:
        scene = Scene(recipe, shape, tokenizer.size, prompt, rates, memory.free)
        return {stage.name: find(stage.kind).needs(stage, scene) for stage in recipe.stages}

    if shape is None:  # before the model is built, to be measured
        memory.check(recipe, needs(recipe, ComputedRates(1.0)))
        recipe = replace(recipe, threads=recipe.threads or fastest_threads(recipe, tasks, tokenizer))
    else:
        recipe = replace(recipe, threads=recipe.threads or torch.get_num_threads())
    torch.set_num_threads(recipe.threads)
    where = "the GPU" if recipe.device == "cuda" else f"{recipe.threads} thread{'s' * (recipe.threads > 1)}"
    speeds = matmul_rates(0.5, recipe.device) if shape is not None or recipe.dtype == "auto" else {}
    if recipe.dtype == "auto":
        recipe = replace(recipe, dtype=fastest_dtype(speeds))
        view.note(
            f"Computing in {recipe.dtype} on {where}: matrices at {speeds['float32'] / 1e9:.0f} GFLOP/s in float32, "
            f"{speeds['bfloat16'] / 1e9:.0f} in bfloat16."
        )
    rates: Rates = measured_rates(recipe, tasks, tokenizer) if shape is None else ComputedRates(speeds[recipe.dtype])
    found = needs(recipe, rates)
    if minutes is not None:
        recipe = stretched(recipe, found, minutes)
        found = needs(recipe, rates)
    if shape is not None:
        for name, need in found.items():
            view.note(f"{name}: {memory.of(need).describe()}; about {need.seconds / 60:,.1f} minutes.")
        there = f", {gigabytes(memory.free)} of memory are free" if memory.free is not None else ""
        view.note(f"In {recipe.dtype} on {where}{there}.")
    memory.check(recipe, found)
    return recipe, Plan({name: need.seconds for name, need in found.items()}, dict(vars(rates)))


class Room:
    """The memory that there is on a device as a run begins."""

    def __init__(self, device: str) -> None:
        self.free = memory_left(device)
        self.process = resident_memory() if device == "cpu" else 0

    def of(self, need: Needs) -> Memory:
        """A stage's, with what the process holds already."""
        return need.memory.beside({PROCESS: self.process})

    def check(self, recipe: Recipe, needs: Mapping[str, Needs]) -> None:
        """UserError for a stage that needs more."""
        for name, need in needs.items():
            if self.free is not None and need.memory.total > self.free:
                ways = [f"--set stage.{name}.{way}" for way in need.ways]
                ways += ["--set dtype=bfloat16"] if recipe.dtype == "float32" else []
                raise UserError(
                    f"{name} needs about {gigabytes(self.of(need).total)} of memory, and {gigabytes(self.free)} are "
                    "free.",
                    f"To need less: {', '.join(ways) or 'a smaller model'}.",
                )


def longest_prompt(tasks: Iterable[Task], tokenizer: Tokenizer) -> int:
    """Tokens of the longest of some problems in the tokenizer's chat form."""
    problems = (task.generate(i, "train", task.default_difficulty) for task in tasks for i in range(DRAWN))
    return max(len(tokenizer.chat([{"role": "user", "content": problem.prompt}])) for problem in problems)


def stretched(recipe: Recipe, needs: Mapping[str, Needs], minutes: float) -> Recipe:
    """The recipe with budgets that fill the minutes, and never below its own."""
    seconds = {name: need.seconds for name, need in needs.items()}
    learning = sum(seconds[stage.name] for stage in recipe.stages if stage.config.stretched(2.0) != stage.config)
    if not learning:
        return recipe
    factor = (minutes * 60 - (sum(seconds.values()) - learning)) / learning
    if factor <= 1.2:
        return recipe
    return replace(recipe, stages=tuple(replace(s, config=s.config.stretched(factor)) for s in recipe.stages))
