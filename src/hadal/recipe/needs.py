"""What a recipe on a checkpoint will need, told before it starts: memory and time of each stage, from configs alone.

A model that is grown here is measured instead (`calibrate.py`): it is small enough to be tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hadal.configs.models import ModelConfig
from hadal.cost.flops import cache_bytes, forward_flops, mean_context, parameters
from hadal.cost.memory import (
    LIBRARIES,
    PLAIN,
    PROCESS,
    Memory,
    Pass,
    available_memory,
    gigabytes,
    resident_memory,
    training_memory,
    training_seconds,
)
from hadal.engine.config import EngineConfig
from hadal.engine.lanes import run_size
from hadal.engine.memory import LEAST, SHARE, WIDEST
from hadal.engine.prefix import BLOCK
from hadal.engine.runs import reading_size
from hadal.errors import UserError
from hadal.models.checkpoint import load_config
from hadal.models.lora import adapted_size, adapter_size
from hadal.ops.device import free_on_gpu, pick
from hadal.ops.speed import fastest_dtype, matmul_rates
from hadal.recipe.calibrate import Plan
from hadal.recipe.config import Recipe
from hadal.stages import CHECKPOINT, Stage
from hadal.stages.common.view import View
from hadal.stages.distill import Config as DistillConfig
from hadal.stages.evaluate import Config as ExamConfig
from hadal.stages.grpo import Config as GrpoConfig
from hadal.stages.pretrain import Config as PretrainStage
from hadal.stages.reject import TOGETHER
from hadal.stages.reject import Config as RejectConfig
from hadal.stages.sft import SftConfig
from hadal.tasks import Task
from hadal.text.tokenizer import Tokenizer

DRAWN = 16
"""Problems of each task whose length in chat form is looked at."""
KL_BYTES = 28
"""Of each logit of a chunk, what the divergence of two models' distributions holds at its most: seven of float32."""
POLICY_BYTES = 8
"""The same of log-probabilities with their entropy."""
LENGTH_SHARE = 0.5
"""Of max_tokens, what a response comes to; only the forecast of the time depends on it."""
SAMPLING_SHARE = 0.25
"""Of the measured rate of matrix products, what sampling in large batches comes to."""


def settle(
    recipe: Recipe, folder: Path, tasks: Mapping[str, Task], tokenizer: Tokenizer, view: View
) -> tuple[Recipe, Plan]:
    """Decide device, threads and dtype, tell what each stage needs; UserError where the memory is not there."""
    recipe = replace(recipe, threads=recipe.threads or torch.get_num_threads())
    torch.set_num_threads(recipe.threads)
    shape = load_config(folder)
    recipe = replace(recipe, device=pick(recipe.device, parameters(shape).total))
    rates = matmul_rates(0.5, recipe.device)
    if recipe.dtype == "auto":
        recipe = replace(recipe, dtype=fastest_dtype(rates))
    free = memory_left(recipe.device)
    prompt = longest_prompt(tasks.values(), tokenizer)
    process = resident_memory() if recipe.device == "cpu" else 0
    needs = Needs(recipe, shape, tokenizer.size, prompt, process, free)
    seconds: dict[str, float] = {}
    for stage in recipe.stages:
        seconds[stage.name] = stage_seconds(stage, shape, rates[recipe.dtype], len(recipe.tasks), recipe, prompt)
        memory = needs.of(stage)
        view.note(f"{stage.name}: {memory.describe()}; about {seconds[stage.name] / 60:,.1f} minutes.")
        if free is not None and memory.total - process > free:
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


def longest_prompt(tasks: Iterable[Task], tokenizer: Tokenizer) -> int:
    """Tokens of the longest of some problems in the tokenizer's chat form."""
    problems = (task.generate(i, "train", task.default_difficulty) for task in tasks for i in range(DRAWN))
    return max(len(tokenizer.chat([{"role": "user", "content": problem.prompt}])) for problem in problems)


@dataclass(frozen=True)
class Needs:
    """The memory of a recipe's stages.

    shape, vocabulary: of the checkpoint's model and tokenizer; prompt: tokens of the longest problem; process: bytes
    that this process holds before a stage begins; free: bytes that it may still take, of which an engine's cache takes
    no more than its share.
    """

    recipe: Recipe
    shape: ModelConfig
    vocabulary: int
    prompt: int
    process: int = 0
    free: int | None = None

    @property
    def value_bytes(self) -> int:
        return 4 if self.recipe.dtype == "float32" else 2

    def of(self, stage: Stage) -> Memory:
        """Those of a stage."""
        config = stage.config
        shape = self.shape_of(stage.name if isinstance(config, PretrainStage) else stage.source or CHECKPOINT)
        if isinstance(config, GrpoConfig):
            found = self._rl(config, shape)
        elif isinstance(config, SftConfig):
            found = self._tuning(config, shape)
        elif isinstance(config, PretrainStage):
            one = Pass(max(1, config.corpus.tokens // PLAIN), PLAIN)
            found = training_memory(shape, self.value_bytes, [one], muon=config.optimizer.muon_lr > 0)
            checked = config.check_problems * len(self.recipe.tasks)
            found = found.beside({}, {"sampling": self.sampling(shape, checked, 1, config.max_tokens)})
        elif isinstance(config, RejectConfig) and not stage.source:
            found = Memory({}, {})  # the teacher is elsewhere
        else:
            asked = min(TOGETHER, config.problems) if isinstance(config, RejectConfig) else config.problems
            sampled = LIBRARIES + self.sampling(shape, asked, config.samples, config.max_tokens)
            found = Memory({"weights": self.value_bytes * parameters(shape).total}, {"sampling": sampled})
        return found.beside({PROCESS: self.process})

    def _rl(self, config: GrpoConfig, shape: ModelConfig) -> Memory:
        options = config.settings
        responses = config.prompts * config.samples * (options.max_draws if options.count_all else 1)
        passes = self.rl_passes(config, -(-responses // config.minibatches))
        found, trained, merged = self._trained(config, shape, passes, POLICY_BYTES)
        sampled = self.sampling(shape, config.prompts, config.samples, config.max_tokens)
        watched = self.sampling(shape, config.held_out_problems * len(self.recipe.tasks), 1, config.max_tokens)
        peaks = {"sampling": max(sampled, watched)}
        if config.overlap:
            peaks["sampling beside training"] = sampled + found.peaks["training"]
        ahead = merged + trained if config.overlap else 0
        copies = {"what is sampled from": merged + ahead, "the reference": trained if options.kl else 0}
        return found.beside(copies, peaks)

    def _tuning(self, config: SftConfig, shape: ModelConfig) -> Memory:
        method = config.method if isinstance(config, DistillConfig) else ""
        taught = method in ("logits", "on-policy")
        found, _, merged = self._trained(config, shape, [self.sft_pass(config, shape)], KL_BYTES if taught else 4)
        if isinstance(config, DistillConfig) and taught:
            found = found.beside({"the teacher": self.value_bytes * parameters(self.shape_of(config.teacher)).total})
        if isinstance(config, DistillConfig) and method == "on-policy":
            sampled = self.sampling(shape, config.prompts, config.samples, config.max_tokens)
            found = found.beside({"what is sampled from": merged}, {"sampling": sampled})
        return found

    def _trained(
        self, config: GrpoConfig | SftConfig, shape: ModelConfig, passes: Sequence[Pass], logit_bytes: int
    ) -> tuple[Memory, int, int]:
        """Of training alone; bytes of what is trained; and of the matrices that adapters are merged into, where there
        are adapters: to be sampled from, and in the checkpoint that the stage leaves."""
        lora, width = config.lora, self.value_bytes
        adapters = adapter_size(shape, lora) if lora.rank else 0
        merged = width * adapted_size(shape, lora) if lora.rank else 0
        again, muon = config.checkpoint_activations, config.optimizer.muon_lr > 0
        memory = training_memory(shape, width, passes, again, adapters, logit_bytes, muon)
        return memory.beside({}, {"saving": merged}), width * (adapters or parameters(shape).total), merged

    def shape_of(self, name: str) -> ModelConfig:
        """The shape of the model that a stage leaves, or of the checkpoint."""
        stage = next((stage for stage in self.recipe.stages if stage.name == name), None)
        if stage is None:
            return self.shape
        if isinstance(stage.config, PretrainStage):
            return stage.config.model.model_config(stage.config.arch, -(-self.vocabulary // 64) * 64)
        return self.shape_of(stage.source)

    def rl_passes(self, config: GrpoConfig, responses: int) -> list[Pass]:
        """Passes among which the largest is, of an update by so many responses (`hadal.train.rollouts.pack`).

        The longest responses that can be; so short ones that a pass takes all; and the longest that attention keeps
        weights of.
        """
        longest = max(1, min(config.max_tokens, self.shape.max_position_embeddings - self.prompt))
        found = []
        for length in {longest, min(longest, max(1, config.micro_tokens // responses)), min(longest, PLAIN)}:
            rows = min(responses, max(1, config.micro_tokens // length))
            found.append(Pass(rows, length, self.prompt, min(rows, config.prompts)))
        return found

    def sft_pass(self, config: SftConfig, shape: ModelConfig) -> Pass:
        """The largest pass over conversations, no longer than a prompt and an answer where stages make them."""
        tokens = min(config.pass_tokens, shape.max_position_embeddings)
        longest, count = tokens, 1 << 30
        if isinstance(config, DistillConfig) and config.method == "on-policy":
            longest, count = self.prompt + config.max_tokens, config.prompts * config.samples
        else:
            made = {stage.name: stage.config for stage in self.recipe.stages}
            sources = [made.get(name) for name in getattr(config, "data", ())]
            limits = [source.max_tokens for source in sources if isinstance(source, RejectConfig)]
            if limits and len(limits) == len(sources):
                longest = self.prompt + max(limits)
        return Pass(max(1, min(count, config.pass_tokens // longest)), min(longest, shape.max_position_embeddings))

    def sampling(self, shape: ModelConfig, prompts: int, samples: int, max_tokens: int) -> int:
        """Bytes that an engine takes for so many requests: its cache, what it reads prompts with, and logits."""
        config, value_bytes = EngineConfig(), self.value_bytes
        rows = min(config.rows, prompts * samples)
        last = run_size(self.prompt + max_tokens)
        first = run_size(min(self.prompt + max_tokens, self.prompt + config.room))
        chunk = config.chunk
        if self.recipe.device == "cpu":
            chunk = min(chunk, max(WIDEST // (2 * shape.intermediate_size * value_bytes), LEAST))
        together = min(prompts, max(1, chunk // self.prompt))
        reading = together * reading_size(self.prompt)
        runs = rows * (last + (first if first < last else 0))  # those that grow move, and for a moment have both
        if together < prompts:
            runs += rows * first // 2  # they come a few at a time, and get room to spare
        kept = prompts * (self.prompt // BLOCK * BLOCK)
        cache = int((runs + reading + kept) * cache_bytes(shape, value_bytes))
        if self.free is not None:
            cache = min(cache, int(SHARE * self.free))
        logits = rows * shape.vocab_size * (4 if value_bytes == 4 else 6)
        return cache + max(logits, 4 * shape.intermediate_size * value_bytes * min(chunk, reading))


def stage_seconds(
    stage: Stage, shape: ModelConfig, rate: float, tasks: int, recipe: Recipe, prompt: int
) -> float:
    """A rough time for a stage, at `rate` FLOP/s of matrix products."""
    config = stage.config

    def sampling(responses: int, limit: int) -> float:
        length = prompt + limit * LENGTH_SHARE
        return responses * length * forward_flops(shape, mean_context(int(length))) / (SAMPLING_SHARE * rate)

    def training(rows: int, limit: int) -> float:
        length = int(prompt + limit * LENGTH_SHARE)
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
    found = ["--set dtype=bfloat16"] if recipe.dtype == "float32" else []
    if isinstance(config, GrpoConfig | SftConfig):
        found = ([] if config.lora.rank else [f"{name}.lora.rank=16"]) + found
        found += [] if config.checkpoint_activations else [f"{name}.checkpoint_activations=true"]
        key = "micro_tokens" if isinstance(config, GrpoConfig) else "pass_tokens"
        found.append(f"{name}.{key}={max(256, getattr(config, key) // 4)}")
    return found or ["a smaller model"]
