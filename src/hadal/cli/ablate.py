"""The command `hadal ablate`."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from hadal.cli.arguments import Add, add_overrides, assignment, whole


def add_ablate(add: Add) -> None:
    command = add(
        "ablate",
        ablate,
        "Run a recipe's variants side by side on several seeds, and report paired differences",
        "  hadal ablate recipe.toml --vary grpo.algorithm=grpo,dapo,dr_grpo --seeds 3 --out runs/algorithms\n\n"
        "What the variants of a seed have in common is run once. Stopped at any moment, the same\n"
        "command carries on; with more --seeds it adds those.",
    )
    command.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file of stages")
    command.add_argument(
        "--vary", type=assignment, action="append", required=True, metavar="KEY=A,B",
        help="a setting and its values, the first being what others are compared with; several give all combinations",
    )  # fmt: skip
    command.add_argument(
        "--seeds", type=whole(1), default=3, metavar="N", help="how many, starting at the recipe's (default: 3)"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the runs and the report")
    command.add_argument(
        "--problems", type=whole(1), default=200, metavar="N", help="held-out problems a task (default: 200)"
    )
    add_overrides(command)
    command.add_argument("--trust", action="store_true", help="let the recipe run the Python files it names as tasks")
    command.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")


def ablate(options: argparse.Namespace) -> None:
    from hadal.recipe.ablate import ablate
    from hadal.terminal.view import make_view

    with closing(make_view(json=options.json)) as view:
        ablate(
            options.recipe, options.out, options.vary, options.seeds, options.problems, view, options.overrides,
            options.trust,
        )  # fmt: skip
