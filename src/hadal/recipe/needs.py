"""What a recipe on a checkpoint will need, told before it starts: memory and time of each stage, from configs alone.

A model that is grown here is measured instead (`calibrate.py`): it is small enough to be tried.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from hadal.configs.models import ModelConfig
from hadal.cost.flops import cache_bytes, forward_flops, mean_context, parameters
from hadal.cost.memory import TrainingMemory, available_memory, gigabytes, training_memory, training_seconds
from hadal.errors import UserError
from hadal.models.checkpoint import load_config
from hadal.models.lora import adapter_size
from hadal.ops.device import free_on_gpu, pick
from hadal.ops.speed import fastest_dtype, matmul_rates
from hadal.recipe.calibrate import Plan
from hadal.recipe.config import Recipe
from hadal.recipe.kinds import DistillConfig, ExamConfig, GrpoConfig, RejectConfig, SftConfig, Stage
from hadal.recipe.view import View

PROMPT_TOKENS = 128
"""Of a question in its chat form, as GSM8K's are at most times."""
LENGTH_SHARE = 0.5
"""Of max_tokens, what a response comes to; only the forecast of the time depends on it."""
SAMPLING_SHARE = 0.25
"""Of the measured rate of matrix products, what sampling in large batches comes to."""


def settle(recipe: Recipe, folder: Path, view: View) -> tuple[Recipe, Plan]:
    """Decide device, threads and dtype, tell what each stage needs; UserError where the memory is not there."""
    recipe = replace(recipe, threads=recipe.threads or torch.get_num_threads())
    torch.set_num_threads(recipe.threads)
    shape = load_config(folder)
    recipe = replace(recipe, device=pick(recipe.device, parameters(shape).total))
    rates = matmul_rates(0.5, recipe.device)
    if recipe.dtype == "auto":
        recipe = replace(recipe, dtype=fastest_dtype(rates))
    free = memory_left(recipe.device)
    seconds: dict[str, float] = {}
    for stage in recipe.stages:
        seconds[stage.name] = stage_seconds(stage, shape, rates[recipe.dtype], len(recipe.tasks), recipe)
        memory, cache = stage_memory(stage, shape, recipe.dtype)
        parts = [memory.describe()] if memory else []
        parts += [f"up to {gigabytes(cache)} for the cache of samples"] if cache else []
        view.note(f"{stage.name}: {', '.join(parts)}; about {seconds[stage.name] / 60:,.1f} minutes.")
        if memory and free is not None and memory.total > free:
            raise UserError(
                f"{stage.name} needs about {gigabytes(memory.total)} of memory, and {gigabytes(free)} are free.",
                f"What makes it less: {', '.join(ways(stage, recipe))}.",
            )
    there = f", {gigabytes(free)} of memory are free" if free is not None else ""
    where = "the GPU" if recipe.device == "cuda" else f"{recipe.threads} thread{'s' * (recipe.threads > 1)}"
    view.note(f"In {recipe.dtype} on {where}{there}.")
    return recipe, Plan(0.0, 0.0, 0.0, seconds)


def memory_left(device: str) -> int | None:
    """Bytes that training may still take on `cpu` or `cuda`; None where the system does not say."""
    return available_memory() if device == "cpu" else free_on_gpu()


def stage_memory(stage: Stage, shape: ModelConfig, dtype: str) -> tuple[TrainingMemory | None, int]:
    """The memory of a stage's largest training pass (None where it trains nothing), and what sampling takes besides:
    its cache, and its copy of the model where it overlaps with training."""
    config, value_bytes = stage.config, 4 if dtype == "float32" else 2
    lora = getattr(config, "lora", None)
    adapters = adapter_size(shape, lora) if lora is not None and lora.rank else 0
    cache = 0
    if isinstance(config, GrpoConfig | RejectConfig | ExamConfig):
        together = config.prompts if isinstance(config, GrpoConfig) else 64
        length = PROMPT_TOKENS + config.max_tokens
        cache = int(together * config.samples * length * cache_bytes(shape, value_bytes))
    if isinstance(config, GrpoConfig):
        cache += value_bytes * parameters(shape).total if config.overlap else 0
        rows = max(1, config.micro_tokens // config.max_tokens)
        length, again = PROMPT_TOKENS + config.max_tokens, config.checkpoint_activations
        return training_memory(shape, value_bytes, rows, length, again, adapters), cache
    if isinstance(config, SftConfig):
        length = min(config.pass_tokens, shape.max_position_embeddings)
        rows = max(1, config.pass_tokens // length)
        return training_memory(shape, value_bytes, rows, length, config.checkpoint_activations, adapters), cache
    return None, cache


def stage_seconds(stage: Stage, shape: ModelConfig, rate: float, tasks: int, recipe: Recipe) -> float:
    """A rough time for a stage, at `rate` FLOP/s of matrix products."""
    config = stage.config

    def sampling(responses: int, limit: int) -> float:
        length = PROMPT_TOKENS + limit * LENGTH_SHARE
        return responses * length * forward_flops(shape, mean_context(int(length))) / (SAMPLING_SHARE * rate)

    def training(rows: int, limit: int) -> float:
        length = int(PROMPT_TOKENS + limit * LENGTH_SHARE)
        again, adapters = config.checkpoint_activations, bool(config.lora.rank)
        return training_seconds(shape, rows * length, length, rate, again, adapters)

    if isinstance(config, GrpoConfig):
        rows = config.updates * config.prompts * config.samples
        watched = -(-config.updates // config.held_out_every) * config.held_out_problems * tasks
        return sampling(rows + watched, config.max_tokens) + training(rows * config.epochs, config.max_tokens)
    if isinstance(config, RejectConfig):
        return sampling(config.problems * config.samples, config.max_tokens)
    if isinstance(config, ExamConfig):
        return sampling(tasks * config.problems * config.samples, config.max_tokens)
    if isinstance(config, DistillConfig) and config.method == "on-policy":
        rows = config.updates * config.prompts * config.samples
        return sampling(rows, config.max_tokens) + 2 * training(rows, config.max_tokens)
    drawn = [s.config for s in recipe.stages if s.name in config.data and isinstance(s.config, RejectConfig)]
    rows = sum(c.problems * c.keep + c.gold + c.plain for c in drawn)
    return training(rows * config.epochs, max((c.max_tokens for c in drawn), default=512))


def ways(stage: Stage, recipe: Recipe) -> list[str]:
    """Settings that make a stage smaller."""
    config, name = stage.config, f"--set stage.{stage.name}"
    found = [] if config.lora.rank else [f"{name}.lora.rank=16"]
    found += ["--set dtype=bfloat16"] if recipe.dtype == "float32" else []
    found += [] if config.checkpoint_activations else [f"{name}.checkpoint_activations=true"]
    if isinstance(config, GrpoConfig):
        found.append(f"{name}.micro_tokens={max(256, config.micro_tokens // 4)}")
    else:
        found.append(f"{name}.pass_tokens={max(256, config.pass_tokens // 4)}")
    return found
