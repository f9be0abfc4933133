"""Does reinforcement learning teach anything that its critic could not have had for the same compute?

From the base of a finished run, at the FLOPs that its RL stage used and with the same data (no gold thought above
D for anyone):

- nothing;
- more pre-training;
- expert iteration: supervised training on the base's own verified samples, drawn once, with the curriculum;
- online expert iteration: the same, but the samples are drawn anew from the model as it learns (RL's own loop
  without its wrong samples: the strictest control).

All are then made to think, greedily, on the same held-out problems at each difficulty. Prints a table and writes
every figure.

    python benchmarks/critic.py runs/dense-seed0 --problems 500 --json critic-seed0.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import prepared  # noqa: F401
import torch

from hadal.evaluate.statistics import crossing
from hadal.evaluate.suite import EvaluationConfig, frontier_points
from hadal.library.record import read_run
from hadal.models.decoder import Decoder
from hadal.recipe.config import GrpoConfig, read_recipe
from hadal.recipe.run import Run
from hadal.tasks import Rng, Task, load_tasks
from hadal.terminal.view import make_view
from hadal.text.tokenizer import Tokenizer
from hadal.train.corpus import batches
from hadal.train.curriculum import Curriculum
from hadal.train.losses import pretraining_loss
from hadal.train.optim import Optimizer, OptimizerConfig
from hadal.train.rl import draw_groups, rl_update
from hadal.train.rollouts import pack, predict_rows

ARMS = ("nothing", "pretraining", "expert_iteration", "online_expert_iteration", "grpo")


def open_source(folder: Path, threads: int | None) -> Run:
    """The finished run, its books kept apart from the original's."""
    record = read_run(folder)
    recipe = read_recipe(record["config"])
    torch.set_num_threads(threads or recipe.threads)
    run = Run(folder, recipe, load_tasks(recipe.tasks), Tokenizer.load(folder), make_view(json=False))
    return run


def rl_flops(run: Run) -> float:
    """What the run's RL stage used, from its ledger."""
    return sum(r.flops for r in run.ledger.read() if r.stage == "grpo")


def more_pretraining(run: Run, budget: float) -> Decoder:
    """The base trained on, on new batches of the corpus, its rate falling from full to zero."""
    config = run.recipe.pretrain
    model = run.stage_model("pretrain").train()
    optimizer = Optimizer(model, config.optimizer, run.dtype)
    llm = run.engine(model)
    first = 1_000_000  # batches that pre-training never reached
    used = 0.0
    stream = batches(list(run.tasks.values()), run.tokenizer, run.recipe.corpus, run.recipe.seed, first)
    for number, batch in enumerate(stream):
        loss, _ = pretraining_loss(model, batch, llm.forbidden, config.mtp_weight)
        loss.backward()
        optimizer.step(min(1.0, (number + 1) / config.warmup) * (1 - used / budget))
        model.after_update(config.router_bias_rate)
        run.count_trained(batch.ids.numel(), batch.ids.shape[1])
        used = run.books.flops
        if used >= budget:
            return model
    raise AssertionError("the corpus has no end")


def ready_tasks(run: Run) -> dict[str, Task]:
    """The tasks that the run's RL practised."""
    ready = (run.result("pretrain") or {})["readiness"]
    return {name: task for name, task in run.tasks.items() if ready[name]["ready"]}


def own_samples(run: Run, budget: float, config: GrpoConfig) -> Decoder:
    """Supervised training on the base's own verified thoughts: half of the budget to draw them, half to learn.

    It is made to think: left to itself the base would spend the budget on answering at once, right by luck.
    """
    model = run.stage_model("pretrain").train()
    optimizer = Optimizer(model, config.optimizer, run.dtype)
    llm = run.engine(model)
    tasks = ready_tasks(run)
    curriculum = Curriculum(tasks)
    right = []
    for step in count():
        for group in draw_groups(llm, tasks, curriculum, config, run.recipe.seed, step, thinking=True):
            kept = {tuple(s.token_ids): s for s, r in zip(group.samples, group.rewards, strict=True) if r.total > 0.5}
            right += [(group.prompt, sample, 1.0) for sample in kept.values()]
        if run.books.flops >= budget / 2:
            break
    rng = Rng("own samples", run.recipe.seed)
    size = config.prompts * config.samples // 2
    began = run.books.flops
    for _ in count():
        order = rng.sample(right, len(right))
        for begin in range(0, len(order) - size + 1, size):
            share = (run.books.flops - began) / (budget - began)
            part = order[begin : begin + size]
            tokens = sum(len(sample.token_ids) for _, sample, _ in part)
            for rows in pack(part, llm.tokenizer.pad_id, config.micro_tokens):
                logprobs, _ = predict_rows(model, rows, llm.forbidden)
                (-logprobs.sum() / tokens).backward()
                run.count_trained(rows.tokens, rows.prompts.shape[1] + rows.inputs.shape[1])
            optimizer.step(config.rate(min(share, 1.0)))
            model.after_update(0.0)
            if run.books.flops >= budget:
                return model
    raise AssertionError("counting has no end")


def reinforce(run: Run, budget: float, config: GrpoConfig) -> Decoder:
    """RL or expert iteration from the base, until the budget is used."""
    model = run.stage_model("pretrain").train()
    optimizer = Optimizer(model, config.optimizer, run.dtype)
    llm = run.engine(model)
    tasks = ready_tasks(run)
    curriculum = Curriculum(tasks)
    for step in count():
        scale = config.rate(min(run.books.flops / budget, 1.0))
        result = rl_update(llm, optimizer, tasks, curriculum, config, run.recipe.seed, step, scale)
        model.after_update(0.0)
        length = sum(len(g.prompt) + len(g.samples[0].token_ids) for g in result.groups) // len(result.groups)
        run.count_trained(result.tokens_trained, length)
        if run.books.flops >= budget:
            return model
    raise AssertionError("counting has no end")


def arms(run: Run, names: list[str], expert: GrpoConfig) -> dict[str, dict[str, Any]]:
    """Train each control; returns its model and what it cost."""
    budget = rl_flops(run)
    out: dict[str, dict[str, Any]] = {}
    for name in names:
        run.books.flops = 0.0
        began = time.perf_counter()
        if name == "nothing":
            model = run.stage_model("pretrain")
        elif name == "pretraining":
            model = more_pretraining(run, budget)
        elif name == "expert_iteration":
            model = own_samples(run, budget, expert)
        elif name == "online_expert_iteration":
            model = reinforce(run, budget, expert)
        else:
            model = run.stage_model("grpo")
            run.books.flops = budget
        out[name] = {"model": model, "flops": run.books.flops, "seconds": time.perf_counter() - began}
        print(f"{name}: {run.books.flops:.3g} FLOPs, {out[name]['seconds']:.0f} s", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--arms", default=",".join(ARMS), help="which to compare (default: all)")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems a level")
    parser.add_argument("--levels", type=int, default=8, help="levels above D to look at")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ei-lr", type=float, help="learning rate of both forms of expert iteration (default: RL's)")
    parser.add_argument("--ei-epochs", type=int, default=1)
    parser.add_argument("--ei-minibatches", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few problems: a minute on a run of the preset `tiny`")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    run = open_source(options.run, options.threads)
    problems = 20 if options.quick else options.problems
    rl = run.recipe.grpo
    expert = replace(
        rl,
        algorithm="expert_iteration",
        epochs=options.ei_epochs,
        minibatches=options.ei_minibatches,
        optimizer=OptimizerConfig(**{**vars(rl.optimizer), "lr": options.ei_lr or rl.optimizer.lr}),
    )
    trained = arms(run, options.arms.split(","), expert)
    config = EvaluationConfig(
        level_problems=problems, levels_past_gold=options.levels, max_tokens=run.recipe.evaluate.max_tokens
    )
    result: dict[str, Any] = {"run": options.run.name, "seed": run.recipe.seed, "arms": {}, "tasks": {}}
    for name, arm in trained.items():
        result["arms"][name] = {"flops": arm["flops"], "seconds": arm["seconds"]}
        llm = run.engine(arm["model"].to(run.dtype).eval())
        for task_name, task in run.tasks.items():
            points = frontier_points(llm, run.tasks, task, config, run.recipe.seed)
            entry = result["tasks"].setdefault(task_name, {"gold_limit": task.gold_limit, "arms": {}})
            frontier = crossing([(p["difficulty"], p["accuracy"]) for p in points])
            entry["arms"][name] = {"by_difficulty": points, "frontier": frontier}
    for task_name, entry in result["tasks"].items():
        print(f"\n{task_name} (D = {entry['gold_limit']}), greedy, made to think, n = {problems} a level")
        levels = sorted({p["difficulty"] for arm in entry["arms"].values() for p in arm["by_difficulty"]})
        print(f"{'':24}" + "".join(f"{level:>14}" for level in levels) + "  frontier")
        for name, arm in entry["arms"].items():
            cells = {
                p["difficulty"]: f"{p['accuracy']:.2f} [{p['low']:.2f},{p['high']:.2f}]" for p in arm["by_difficulty"]
            }
            shown = "-" if arm["frontier"] is None else f"{arm['frontier']:.1f}"
            print(f"{name:24}" + "".join(f"{cells.get(level, ''):>16}" for level in levels) + f"  {shown}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
