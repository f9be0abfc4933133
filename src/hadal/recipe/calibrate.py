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
from hadal.stages.common.run import VOCABULARY_MULTIPLE
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
MEASURED_PROMPTS, MEASURED_SAMPLES = 30, 16
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
        text = f"Expect {length}: {len(recipe.stages)} stages."
        if minutes is not None and total > minutes * 60 * 1.15:
            text += f" {minutes:g} minutes would be too few on this machine for the effect to show."
        return text


def size_for(minutes: float) -> dict[str, int]:
    """The model's shape, where so many minutes are worth another than the recipe's."""
    return next(size for most, size in LADDER if minutes <= most)


def _grown(recipe: Recipe) -> Stage:
    """The first stage that grows a model: what is measured, is measured of it."""
    return next(stage for stage in recipe.stages if stage.config.grows(1) is not None)


def _step_seconds(recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer, llm: LLM) -> tuple[float, float]:
    """Seconds of a training step and of a trained token, the first step left out."""
    config = _grown(recipe).config
    optimizer = Optimizer(llm.model, config.optimizer, getattr(torch, recipe.dtype))
    stream = batches(list(tasks.values()), tokenizer, config.corpus, recipe.seed, 0)
    seconds, tokens = 0.0, 0
    for number in range(MEASURED_STEPS):
        batch = next(stream).to(llm.model.device)
        began = time.perf_counter()
        loss, _ = pretraining_loss(llm.model, batch, llm.forbidden, config.mtp_weight)
        loss.backward()
        optimizer.step(0.0)
        if number > 0:
            seconds += time.perf_counter() - began
            tokens += batch.ids.numel()
    return seconds / (MEASURED_STEPS - 1), seconds / tokens


def _new_engine(recipe: Recipe, tokenizer: Tokenizer) -> LLM:
    model = build(_grown(recipe).config.grows(-(-tokenizer.size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE))
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
    prompts = [tokenizer.chat([{"role": "user", "content": "What is 3 + 4?"}])] * MEASURED_PROMPTS
    began = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(max_tokens=16, seed=0, n=MEASURED_SAMPLES).spread(len(prompts)))
    made = sum(len(s.token_ids) for o in outputs for s in o.outputs)
    return Plan(step, (time.perf_counter() - began) / made, trained_token, {})


def forecast(recipe: Recipe, plan: Plan) -> dict[str, float]:
    """Seconds by stage that the measured rates give for a recipe."""
    return {stage.name: _stage_seconds(stage, plan, len(recipe.tasks), recipe) for stage in recipe.stages}


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
        asked = config.problems * config.samples + 7 * config.mode_problems + 12 * config.level_problems
        asked += config.pass_problems * config.pass_samples
        return tasks * asked * RESPONSE_TOKENS * plan.sampled_token
    if isinstance(config, DistillConfig) and config.method == "on-policy":
        return config.updates * config.prompts * config.samples * both
    sources = {s.name: s.config for s in recipe.stages}
    drawn = [c for name in config.data if isinstance(c := sources.get(name), RejectConfig)]
    rows = sum(c.problems * c.keep + c.gold + c.plain for c in drawn)
    return config.epochs * rows * 2 * RESPONSE_TOKENS * plan.trained_token  # with their questions


def scale_recipe(recipe: Recipe, plan: Plan, minutes: float | None) -> tuple[Recipe, Plan]:
    """The recipe with budgets that fill the minutes, where given, and never below those of the recipe file."""
    seconds = forecast(recipe, plan)
    learning = sum(seconds[s.name] for s in recipe.stages if s.config.stretched(2.0) != s.config)
    if minutes is not None and learning:
        factor = (minutes * 60 - (sum(seconds.values()) - learning)) / learning
        if factor > 1.2:
            stages = tuple(replace(stage, config=stage.config.stretched(factor)) for stage in recipe.stages)
            recipe = replace(recipe, stages=stages)
    return recipe, replace(plan, seconds=forecast(recipe, plan))
