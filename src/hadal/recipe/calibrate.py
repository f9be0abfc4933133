"""A few seconds of measurement, of a model that is small enough to be tried: threads, and the rates of a forecast."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from hadal.engine import LLM
from hadal.machine.cores import cores
from hadal.machine.device import place
from hadal.models.build import build
from hadal.recipe.config import Recipe
from hadal.rollout import Query, SamplingParams, sample_all
from hadal.stages import Stage
from hadal.stages.common.needs import MeasuredRates
from hadal.stages.common.run import padded
from hadal.tasks import Task
from hadal.text.tokenizer import Tokenizer
from hadal.train.corpus import batches
from hadal.train.losses import pretraining_loss
from hadal.train.optim import build_optimizer

MEASURED_STEPS = 6
MEASURED_PROMPTS, MEASURED_SAMPLES = 30, 16


def _grown(recipe: Recipe) -> Stage:
    """The first stage that grows a model: what is measured, is measured of it."""
    return next(stage for stage in recipe.stages if stage.config.grows(1) is not None)


def _step_seconds(recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer, llm: LLM) -> tuple[float, float]:
    """Seconds of a training step and of a trained token, the first step left out."""
    config = _grown(recipe).config
    optimizer = build_optimizer(llm.model, config.optimizer, getattr(torch, recipe.dtype))
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
    model = build(_grown(recipe).config.grows(padded(tokenizer.size)))
    model.initialise(recipe.seed)
    return LLM(model.to(place(recipe.device)), tokenizer)


def fastest_threads(recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer) -> int:
    """How many threads train fastest: small models gain little from many cores, and lose by too many."""
    recipe = replace(recipe, dtype="float32") if recipe.dtype == "auto" else recipe
    threads = cores()
    best, fastest = threads, float("inf")
    while threads >= 1:
        torch.set_num_threads(threads)
        seconds, _ = _step_seconds(recipe, tasks, tokenizer, _new_engine(recipe, tokenizer))
        if seconds > fastest:
            break
        best, fastest = threads, seconds
        threads //= 2
    return best


def measured_rates(recipe: Recipe, tasks: Mapping[str, Task], tokenizer: Tokenizer) -> MeasuredRates:
    """Measure a few steps of training and of sampling at the recipe's size."""
    llm = _new_engine(recipe, tokenizer)
    _, trained_token = _step_seconds(recipe, tasks, tokenizer, llm)
    params = SamplingParams(max_tokens=16, seed=0, n=MEASURED_SAMPLES).spread(MEASURED_PROMPTS)
    began = time.perf_counter()
    groups = sample_all(llm, [Query([{"role": "user", "content": "What is 3 + 4?"}], each) for each in params])
    made = sum(len(sample.token_ids) for group in groups for sample in group)
    return MeasuredRates((time.perf_counter() - began) / made, trained_token)
