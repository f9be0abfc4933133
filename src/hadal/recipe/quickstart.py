"""`hadal quickstart`: from random weights to a model that has taught itself to think, in one resumable command.

It is a shipped recipe of four stages, stretched by one dial. How a recipe runs is in `runner.py`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from hadal.recipe.config import load_recipe_data, read_recipe
from hadal.recipe.runner import grow
from hadal.stages.common.view import View

TEST_PRESET_MINUTES = 4
"""Fewer minutes than this choose the small preset that tests use."""
LADDER: tuple[tuple[float, dict[str, int]], ...] = (
    (30.0, {}),
    (200.0, {"hidden_size": 192, "num_hidden_layers": 5, "num_attention_heads": 6, "intermediate_size": 576}),
    (1e9, {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 768}),
)
"""Up to so many minutes, this size instead of the recipe's."""


def size_for(minutes: float) -> dict[str, int]:
    """The model's shape, where so many minutes are worth another than the recipe's."""
    return next(size for most, size in LADDER if minutes <= most)


def quickstart(
    seed: int, minutes: float, out: Path | None, arch: str | None, task: Path | None, fresh: bool, view: View,
    overrides: Sequence[str] = (), threads: int | None = None,
) -> Path:  # fmt: skip
    """Grow a model, or carry on, or do nothing where it is grown already; returns the run folder.

    UserError for a folder that belongs to another request, and for whatever is wrong with the input.
    """
    settings = [f"model.{key}={value}" for key, value in size_for(minutes).items()]
    settings.append(f"seed={seed}")
    command = ["hadal", "quickstart", "--seed", str(seed), "--minutes", f"{minutes:g}"]
    if arch is not None:
        settings.append(f'arch="{arch}"')
        command += ["--arch", arch]
    if task is not None:
        settings.append(f"tasks={json.dumps([str(Path(task).resolve())], ensure_ascii=False)}")
        command += ["--task", str(task)]
    if threads is not None:
        settings.append(f"threads={threads}")
    name = "tiny" if minutes < TEST_PRESET_MINUTES else "quickstart"
    # The check whether a task is ready lets responses be as long as practice will.
    room = [word.replace("grpo.", "pretrain.", 1) for word in overrides if word.startswith("grpo.max_tokens=")]
    recipe = read_recipe(load_recipe_data(name, [*settings, *room, *overrides]))
    own = f"{Path(task).stem}-" if task else ""
    folder = Path(out) if out else Path("runs") / f"{own}{recipe.arch}-seed{recipe.seed}"
    command += [word for override in overrides for word in ("--set", override)]
    return grow(recipe, folder, view, minutes, fresh, shlex.join([*command, "--out", str(folder)]))
