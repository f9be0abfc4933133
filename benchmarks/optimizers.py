"""The loss that optimisers come to in a fixed number of pre-training steps, and the time that a step takes.

    python benchmarks/optimizers.py muon_lr=0.01 muon_lr=0 [--steps 1000] [--seeds 3] [--quick]

Each argument is one side: settings of `[pretrain.optimizer]`, separated by commas. All sides train the quickstart's
model from the same weights on the same batches, one seed after the other, the rate falling to zero as it does there.
The loss is the mean over batches that none was trained on. Sides take turns at the steps, so that a machine that slows
down slows all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import islice
from typing import Any

import prepared  # noqa: F401
import torch
from common import arguments

from hadal.engine.sampler import forbidden_ids
from hadal.models.build import build
from hadal.recipe.config import load_recipe_data, read_recipe
from hadal.stages.common.run import VOCABULARY_MULTIPLE
from hadal.stages.pretrain import Config as Pretrain
from hadal.tasks import load_tasks
from hadal.tasks.words import build_tokenizer
from hadal.train.corpus import batches
from hadal.train.losses import pretraining_loss
from hadal.train.optim import build_optimizer

UNSEEN = 1 << 20
"""The seed of batches that the loss is told of."""


class Side:
    """A model that one optimiser trains."""

    def __init__(self, settings: str, seed: int, steps: int) -> None:
        chosen = [f"pretrain.optimizer.{setting}" for setting in settings.split(",") if setting]
        self.recipe = read_recipe(load_recipe_data("quickstart", [*chosen, f"pretrain.steps={steps}"]))
        self.pretrain: Pretrain = self.recipe.stage("pretrain").config
        self.tasks = list(load_tasks(self.recipe.tasks).values())
        self.tokenizer = build_tokenizer(self.tasks)
        vocabulary = -(-self.tokenizer.size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        self.model = build(self.pretrain.model.model_config(self.pretrain.arch, vocabulary))
        self.model.initialise(seed)
        self.forbidden = forbidden_ids(self.tokenizer, self.model)
        self.optimizer = build_optimizer(self.model, self.pretrain.optimizer)
        self.stream = self.batches(seed)
        self.seconds: list[float] = []
        self.updates: list[float] = []

    def batches(self, seed: int) -> Any:
        return batches(self.tasks, self.tokenizer, self.pretrain.corpus, seed, 0)

    def step(self, number: int) -> None:
        batch = next(self.stream)
        began = time.perf_counter()
        pretraining_loss(self.model, batch, self.forbidden)[0].backward()
        middle = time.perf_counter()
        self.optimizer.step(self.pretrain.rate(number))
        end = time.perf_counter()
        self.seconds.append(end - began)
        self.updates.append(end - middle)

    @torch.no_grad()
    def loss(self, count: int) -> float:
        unseen = islice(self.batches(UNSEEN), count)
        return statistics.mean(float(pretraining_loss(self.model, b, self.forbidden)[1]) for b in unseen)


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sides", nargs="+", metavar="SETTINGS", help="of an optimiser, as name=flat,muon_lr=0.02")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)


def main() -> None:
    args = arguments(__doc__, more=more)
    steps, seeds = (60, 1) if args.quick else (args.steps, args.seeds)
    losses: dict[str, list[float]] = {side: [] for side in args.sides}
    seconds: dict[str, list[float]] = {side: [] for side in args.sides}
    updates: dict[str, list[float]] = {side: [] for side in args.sides}
    for seed in range(seeds):
        sides = {settings: Side(settings, seed, steps) for settings in args.sides}
        for number in range(steps):
            for side in sides.values():
                side.step(number)
        for settings, side in sides.items():
            losses[settings].append(side.loss(16 if args.quick else 64))
            seconds[settings] += side.seconds
            updates[settings] += side.updates
            print(f"seed {seed}, {settings}: loss {losses[settings][-1]:.4f}", flush=True)
    parameters = sum(p.numel() for p in next(iter(sides.values())).model.parameters())
    print(f"\n{parameters:,} parameters, {steps:,} steps, {torch.get_num_threads()} thread(s)")
    print("| optimiser | loss (mean, standard deviation) | by seed | from the first | ms a step | the optimiser's |")
    print("|---|---|---|---|---|---|")
    first = losses[args.sides[0]]
    for name, found in losses.items():
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        apart = ", ".join(f"{a - b:+.4f}" for a, b in zip(found, first, strict=True))
        step, update = (1000 * statistics.median(times[name]) for times in (seconds, updates))
        each = ", ".join(f"{loss:.4f}" for loss in found)
        print(f"| {name} | {statistics.mean(found):.4f}, {spread:.4f} | {each} | {apart} | {step:.1f} | {update:.2f} |")
    if args.json:
        data = {"steps": steps, "losses": losses, "seconds": seconds, "updates": updates}
        args.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
