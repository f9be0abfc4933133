"""The one dial: from minutes and a few seconds of measurement to steps and sizes, frozen before the run begins.

Times are only ever measured here. What follows counts steps and tokens, so a run that is stopped and carried on
ends where an uninterrupted one would.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from hadal.engine import LLM, SamplingParams
from hadal.models.checkpoint import build
from hadal.ops.device import place
from hadal.recipe.config import Recipe
from hadal.stages import Stage
from hadal.stages.distill import Config as DistillConfig
from hadal.stages.evaluate import Config as ExamConfig
from hadal.stages.grpo import Config as GrpoConfig
from hadal.stages.pretrain import Config as PretrainStage
from hadal.stages.reject import Config as RejectConfig
from hadal.tasks import Task
from hadal.text.tokenizer import Tokenizer
from hadal.train.corpus import batches
from hadal.train.losses import pretraining_loss
from hadal.train.optim import Optimizer

MEASURED_STEPS = 6
RESPONSE_TOKENS = 40
"""Mean response during RL, from finished runs; only the forecast of the time depends on it."""
LADDER: tuple[tuple[float, dict[str, int]], ...] = (
    (30.0, {}),
    (200.0, {"hidden_size": 192, "num_hidden_layers": 5, "num_attention_heads": 6, "intermediate_size": 576}),
    (1e9, {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 768}),
)
"""Up to so many minutes, this size instead of the recipe's."""


@dataclass(frozen=True)
class Plan:
    """Measured seconds of a pre-training step, of a sampled token and of a trained one, and the forecast by stage."""

    step: float
    sampled_token: float
    trained_token: float
    seconds: dict[str, float]

    def expectation(self, recipe: Recipe, minutes: float | None) -> str:
        """What the user is told before the run begins."""
        total = sum(self.seconds.values())
        length = f"about {total / 60:.0f} minutes" if total >= 90 else f"about {total:.0f} seconds"
        if recipe.stages:
            return f"Expect {length}: {len(recipe.stages)} stages."
        text = (
            f"Expect {length}: {recipe.pretrain.steps:,} steps of "
            f"pre-training and {recipe.grpo.updates} updates of reinforcement learning."
        )
        if minutes is not None and total > minutes * 60 * 1.15:
            text += f" {minutes:g} minutes would be too few on this machine for the effect to show."
        return text


def size_for(minutes: float) -> dict[str, int]:
    """The model's shape, where so many minutes are worth another than the recipe's."""
    return next(size for most, size in LADDER if minutes <= most)


def _step_seconds(recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer, llm: LLM) -> tuple[float, float]:
    """Seconds of a training step and of a trained token, the first step left out."""
    optimizer = Optimizer(llm.model, recipe.pretrain.optimizer, getattr(torch, recipe.dtype))
    stream = batches(list(tasks.values()), tokenizer, recipe.corpus, recipe.seed, 0)
    seconds, tokens = 0.0, 0
    for number in range(MEASURED_STEPS):
        batch = next(stream).to(llm.model.device)
        began = time.perf_counter()
        loss, _ = pretraining_loss(llm.model, batch, llm.forbidden, recipe.pretrain.mtp_weight)
        loss.backward()
        optimizer.step(0.0)
        if number > 0:
            seconds += time.perf_counter() - began
            tokens += batch.ids.numel()
    return seconds / (MEASURED_STEPS - 1), seconds / tokens


def _new_engine(recipe: Recipe, tokenizer: Tokenizer) -> LLM:
    model = build(recipe.model.model_config(recipe.arch, -(-tokenizer.size // 64) * 64))
    model.initialise(recipe.seed)
    return LLM(model.to(place(recipe.device)), tokenizer)


def fastest_threads(recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer) -> int:
    """How many threads train fastest: small models gain little from many cores, and lose by too many."""
    recipe = replace(recipe, dtype="float32") if recipe.dtype == "auto" else recipe
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    best, fastest = threads, float("inf")
    while threads >= 1:
        torch.set_num_threads(threads)
        seconds, _ = _step_seconds(recipe, tasks, tokenizer, _new_engine(recipe, tokenizer))
        if seconds > fastest:
            break
        best, fastest = threads, seconds
        threads //= 2
    return best


def calibrate(recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer) -> Plan:
    """Measure a few steps of training and of sampling at the recipe's size."""
    llm = _new_engine(recipe, tokenizer)
    step, trained_token = _step_seconds(recipe, tasks, tokenizer, llm)
    prompts = [tokenizer.chat([{"role": "user", "content": "What is 3 + 4?"}])] * recipe.grpo.prompts
    began = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(max_tokens=16, seed=0, n=recipe.grpo.samples).spread(len(prompts)))
    made = sum(len(s.token_ids) for o in outputs for s in o.outputs)
    return Plan(step, (time.perf_counter() - began) / made, trained_token, {})


def forecast(recipe: Recipe, plan: Plan) -> dict[str, float]:
    """Seconds by stage that the measured rates give for a recipe."""
    n = len(recipe.tasks)
    if recipe.stages:
        return {stage.name: _stage_seconds(stage, plan, n, recipe) for stage in recipe.stages}
    update = recipe.grpo.prompts * recipe.grpo.samples * RESPONSE_TOKENS
    e = recipe.evaluate
    responses = n * (e.problems + 7 * e.mode_problems + e.pass_problems * e.pass_samples + 12 * e.level_problems)
    evaluation = responses * RESPONSE_TOKENS * plan.sampled_token
    return {
        "pretrain": recipe.pretrain.steps * plan.step,
        "evaluate-base": evaluation,
        "grpo": recipe.grpo.updates * update * (plan.sampled_token + plan.trained_token),
        "evaluate-rl": evaluation,
    }


def _stage_seconds(stage: Stage, plan: Plan, tasks: int, recipe: Recipe) -> float:
    """The same for a stage of a chain, as if every response had the usual length and every model the recipe's size."""
    config = stage.config
    both = RESPONSE_TOKENS * (plan.sampled_token + plan.trained_token)
    if isinstance(config, PretrainStage):
        return config.steps * plan.step
    if isinstance(config, GrpoConfig):
        return config.updates * config.prompts * config.samples * both
    if isinstance(config, RejectConfig):
        return config.problems * config.samples * RESPONSE_TOKENS * plan.sampled_token
    if isinstance(config, ExamConfig):
        return tasks * config.problems * config.samples * RESPONSE_TOKENS * plan.sampled_token
    if isinstance(config, DistillConfig) and config.method == "on-policy":
        return config.updates * config.prompts * config.samples * both
    sources = {s.name: s.config for s in recipe.stages}
    drawn = [c for name in config.data if isinstance(c := sources.get(name), RejectConfig)]
    rows = sum(c.problems * c.keep + c.gold + c.plain for c in drawn)
    return config.epochs * rows * 2 * RESPONSE_TOKENS * plan.trained_token  # with their questions


def scale_recipe(recipe: Recipe, plan: Plan, minutes: float | None) -> tuple[Recipe, Plan]:
    """The recipe with budgets that fill the minutes, where given, and never below those of the recipe file."""
    seconds = forecast(recipe, plan)
    if recipe.stages:
        return recipe, replace(plan, seconds=seconds)
    fixed = seconds["evaluate-base"] + seconds["evaluate-rl"]
    factor = ((minutes or 0.0) * 60 - fixed) / (seconds["pretrain"] + seconds["grpo"])
    if factor > 1.2:
        recipe = replace(
            recipe,
            pretrain=replace(recipe.pretrain, steps=int(recipe.pretrain.steps * factor)),
            grpo=replace(recipe.grpo, updates=int(recipe.grpo.updates * factor)),
        )
    return recipe, replace(plan, seconds=forecast(recipe, plan))
