"""The one dial: from minutes and a few seconds of measurement to steps and sizes, frozen before the run begins.

Times are only ever measured here. What follows counts steps and tokens, so a run that is stopped and carried on
ends where an uninterrupted one would.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hadal.engine import LLM, SamplingParams
from hadal.models.checkpoint import build
from hadal.recipe.config import Recipe
from hadal.tasks import Task
from hadal.text.tokenizer import Tokenizer
from hadal.train.corpus import batches
from hadal.train.losses import cross_entropy, predict
from hadal.train.optim import Optimizer

MEASURED_STEPS = 6
RESPONSE_TOKENS = 40
"""Mean response during RL, from finished runs; only the forecast of the time depends on it."""
LADDER: tuple[tuple[float, dict[str, int]], ...] = ((30.0, {}), (200.0, {"hidden_size": 192, "num_hidden_layers": 5, "num_attention_heads": 6, "intermediate_size": 576}),
          (1e9, {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 768}))  # fmt: skip
"""Up to so many minutes, this size."""


@dataclass(frozen=True)
class Plan:
    """Measured seconds of a pre-training step, of a sampled token and of a trained one, and the forecast by stage."""

    step: float
    sampled_token: float
    trained_token: float
    seconds: dict[str, float]

    def expectation(self, recipe: Recipe, minutes: float) -> str:
        """What the user is told before the run begins."""
        total = sum(self.seconds.values())
        text = (
            f"Expect about {total / 60:.0f} minutes: {recipe.pretrain.steps + recipe.pretrain.decay_steps} steps of "
            f"pre-training and {recipe.grpo.updates} updates of reinforcement learning."
        )
        if total > minutes * 60 * 1.15:
            text += f" {minutes:g} minutes would be too few on this machine for the effect to show."
        return text


def calibrate(recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer) -> Plan:
    """Measure a few steps of training and of sampling at the recipe's size."""
    import torch

    config = recipe.model.model_config(recipe.arch, -(-tokenizer.size // 64) * 64)
    model = build(config)
    model.initialise(recipe.seed)
    optimizer = Optimizer(model, recipe.pretrain.optimizer, getattr(torch, recipe.dtype))
    llm = LLM(model, tokenizer)
    stream = batches(list(tasks.values()), tokenizer, recipe.corpus, recipe.seed, 0, 1 << 60)
    times = []
    tokens = 0
    for _ in range(MEASURED_STEPS):
        began = time.perf_counter()
        batch = next(stream)
        logits, targets = predict(model, batch.ids, batch.mask, llm.forbidden)
        cross_entropy(logits, targets).backward()
        optimizer.step(0.0)
        times.append(time.perf_counter() - began)
        tokens += batch.ids.numel()
    step = sum(times[1:]) / len(times[1:])
    prompts = [tokenizer.chat([{"role": "user", "content": "What is 3 + 4?"}])] * recipe.grpo.prompts
    began = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(max_tokens=16), recipe.grpo.samples)
    made = sum(len(s.token_ids) for o in outputs for s in o.outputs)
    return Plan(step, (time.perf_counter() - began) / made, step * MEASURED_STEPS / tokens, {})


def forecast(recipe: Recipe, plan: Plan) -> dict[str, float]:
    """Seconds by stage that the measured rates give for a recipe."""
    n = len(recipe.tasks)
    update = recipe.grpo.prompts * recipe.grpo.samples * RESPONSE_TOKENS
    e = recipe.evaluate
    responses = n * (e.problems + 7 * e.mode_problems + e.pass_problems * e.pass_samples + 12 * e.level_problems)
    evaluation = responses * RESPONSE_TOKENS * plan.sampled_token
    return {
        "pretrain": (recipe.pretrain.steps + recipe.pretrain.decay_steps) * plan.step,
        "evaluate-base": evaluation,
        "grpo": recipe.grpo.updates * update * (plan.sampled_token + plan.trained_token),
        "evaluate-rl": evaluation,
    }


def scale_recipe(recipe: Recipe, plan: Plan, minutes: float) -> tuple[Recipe, Plan]:
    """The recipe with budgets that fill the minutes, never below those that the recipe file gives."""
    seconds = forecast(recipe, plan)
    fixed = seconds["evaluate-base"] + seconds["evaluate-rl"]
    factor = (minutes * 60 - fixed) / (seconds["pretrain"] + seconds["grpo"])
    if factor > 1.2:
        recipe = replace(
            recipe,
            pretrain=replace(
                recipe.pretrain,
                steps=int(recipe.pretrain.steps * factor),
                decay_steps=int(recipe.pretrain.decay_steps * factor),
            ),
            grpo=replace(recipe.grpo, updates=int(recipe.grpo.updates * factor)),
        )
    return recipe, replace(plan, seconds=forecast(recipe, plan))
