"""The command `hadal rollouts`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hadal.cli.arguments import Add, whole


def add_rollouts(add: Add) -> None:
    command = add(
        "rollouts",
        rollouts,
        "Look through what RL sampled: prompts, samples, what each earned",
        "  hadal rollouts runs/r1\n  hadal rollouts runs/r1 --stage r1-zero --step 20 --task sums\n"
        "  hadal rollouts runs/r1 --stage r1-zero --step 100 --against 20",
    )
    command.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    command.add_argument("--stage", metavar="NAME", help="default: the last RL stage")
    command.add_argument("--step", type=whole(0), metavar="N", help="after which update (default: the last)")
    command.add_argument("--task", metavar="NAME", help="only groups of this task")
    command.add_argument("--group", type=whole(1), metavar="K", help="only the K-th of them")
    command.add_argument("--against", type=whole(0), metavar="N", help="what changed since update N, task by task")
    command.add_argument("--all", action="store_true", help="all samples of a group, not the best and worst alone")


def rollouts(options: argparse.Namespace) -> None:
    from hadal.terminal.rollouts import rollouts

    rollouts(
        options.folder, options.stage, options.step, options.task, options.group, options.against, options.all
    )
