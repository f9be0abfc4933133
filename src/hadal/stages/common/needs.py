"""What a stage will need, told before it starts: memory and time, from configs alone.

Each kind says what it does (its `needs`); how much memory and how long that takes is here, in a `Scene`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hadal.cost.flops import cache_bytes, forward_flops, mean_context, parameters, training_flops
from hadal.cost.memory import LIBRARIES, MATMUL_SHARE, Memory, Pass, training_memory, training_seconds
from hadal.engine.config import EngineConfig
from hadal.engine.kv.buckets import bucket_size
from hadal.engine.kv.pool import prefill_size
from hadal.engine.kv.prefix import BLOCK
from hadal.engine.memory import LEAST, SHARE, WIDEST
from hadal.machine.device import free_on_gpu
from hadal.machine.memory import available_memory
from hadal.models.config import ModelConfig
from hadal.models.lora import LoraConfig, adapted_size, adapter_size
from hadal.stages import CHECKPOINT, RunConfig, Stage
from hadal.stages.common.run import padded
from hadal.train.optim import OptimizerConfig, kept

RESPONSE_TOKENS = 40
"""Mean response of a model that is grown here, from finished runs; only the forecast of the time depends on it."""
LENGTH_SHARE = 0.5
"""Of max_tokens, what a response of another model comes to; the same."""
SAMPLING_SHARE = 0.25
"""Of the measured rate of matrix products, what sampling in large batches comes to."""


class Rates(Protocol):
    """How long work takes: seconds of each."""

    def corpus(self, shape: ModelConfig, tokens: int, length: int) -> float:
        """Training on so many tokens in rows of `length`."""
        ...

    def training(
        self, shape: ModelConfig, rows: int, limit: int, prompt: int = 0, again: bool = False, adapters: bool = False
    ) -> float:
        """Training on so many responses of at most `limit` tokens; `prompt`: tokens before each that are computed
        with it, and not once for many."""
        ...

    def sampling(self, shape: ModelConfig, responses: int, limit: int, prompt: int) -> float:
        """Sampling so many responses of at most `limit` tokens to prompts of `prompt`."""
        ...


@dataclass(frozen=True)
class MeasuredRates:
    """Of a model small enough to be tried: seconds of a sampled token and of a trained one."""

    sampled_token: float
    trained_token: float

    def corpus(self, shape: ModelConfig, tokens: int, length: int) -> float:
        return tokens * self.trained_token

    def training(
        self, shape: ModelConfig, rows: int, limit: int, prompt: int = 0, again: bool = False, adapters: bool = False
    ) -> float:
        return rows * RESPONSE_TOKENS * (2 if prompt else 1) * self.trained_token  # questions are about as long

    def sampling(self, shape: ModelConfig, responses: int, limit: int, prompt: int) -> float:
        return responses * RESPONSE_TOKENS * self.sampled_token


@dataclass(frozen=True)
class ComputedRates:
    """Of any model, by its FLOPs at `rate` FLOP/s of matrix products."""

    rate: float

    def corpus(self, shape: ModelConfig, tokens: int, length: int) -> float:
        return tokens * training_flops(shape, mean_context(length)) / (MATMUL_SHARE * self.rate)

    def training(
        self, shape: ModelConfig, rows: int, limit: int, prompt: int = 0, again: bool = False, adapters: bool = False
    ) -> float:
        length = int(prompt + limit * LENGTH_SHARE) or 1
        return training_seconds(shape, rows * length, length, self.rate, again, adapters)

    def sampling(self, shape: ModelConfig, responses: int, limit: int, prompt: int) -> float:
        length = prompt + limit * LENGTH_SHARE
        return responses * length * forward_flops(shape, mean_context(int(length))) / (SAMPLING_SHARE * self.rate)


@dataclass(frozen=True)
class Needs:
    """What a stage will take, and the settings (`KEY=VALUE` of its table) that make its memory less."""

    memory: Memory
    seconds: float
    ways: Sequence[str] = field(default_factory=list)


class Trained(Protocol):
    """What the configs of stages that train a model have in common."""

    @property
    def lora(self) -> LoraConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def checkpoint_activations(self) -> bool: ...


@dataclass(frozen=True)
class Scene:
    """What a stage's needs follow from, beside its own numbers.

    shape: of the recipe's checkpoint, where there is one; vocabulary: tokens of the tokenizer; prompt: tokens of the
    longest problem; free: bytes that the process may still take, of which an engine's cache takes no more than its
    share.
    """

    run: RunConfig
    shape: ModelConfig | None
    vocabulary: int
    prompt: int
    rates: Rates
    free: int | None = None

    @property
    def value_bytes(self) -> int:
        return 4 if self.run.dtype == "float32" else 2

    def shape_of(self, name: str) -> ModelConfig:
        """The shape of the model that a stage leaves, or of the checkpoint."""
        if name == CHECKPOINT:
            assert self.shape is not None, "the recipe was checked"
            return self.shape
        stage = self.run.stage(name)
        grown: ModelConfig | None = stage.config.grows(padded(self.vocabulary))
        return grown if grown is not None else self.shape_of(stage.source)

    def made(self, names: Sequence[str]) -> Mapping[str, Stage]:
        """The stages among the sources of a stage's conversations; the others are files."""
        return {stage.name: stage for stage in self.run.stages if stage.name in names}

    def trained(
        self, config: Trained, shape: ModelConfig, passes: Sequence[Pass], logit_bytes: int
    ) -> tuple[Memory, int, int]:
        """Of training alone; bytes of what is trained; and of the matrices that adapters are merged into, where there
        are adapters: to be sampled from, and in the checkpoint that the stage leaves."""
        lora, width = config.lora, self.value_bytes
        adapters = adapter_size(shape, lora) if lora.rank else 0
        merged = width * adapted_size(shape, lora) if lora.rank else 0
        again = config.checkpoint_activations
        memory = training_memory(shape, width, passes, again, adapters, logit_bytes, kept(config.optimizer))
        return memory.beside({}, {"saving": merged}), width * (adapters or parameters(shape).total), merged

    def asking_memory(self, shape: ModelConfig, prompts: int, samples: int, max_tokens: int) -> Memory:
        """Of a model that is only asked."""
        sampled = LIBRARIES + self.sampling_memory(shape, prompts, samples, max_tokens)
        return Memory({"weights": self.value_bytes * parameters(shape).total}, {"sampling": sampled})

    def sampling_memory(self, shape: ModelConfig, prompts: int, samples: int, max_tokens: int) -> int:
        """Bytes that an engine takes for so many requests: its cache, what it reads prompts with, and logits."""
        config, value_bytes = EngineConfig(), self.value_bytes
        rows = min(config.rows, prompts * samples)
        last = bucket_size(self.prompt + max_tokens)
        first = bucket_size(min(self.prompt + max_tokens, self.prompt + config.reserve))
        chunk = config.chunk
        if self.run.device == "cpu":
            chunk = min(chunk, max(WIDEST // (2 * shape.intermediate_size * value_bytes), LEAST))
        together = min(prompts, max(1, chunk // self.prompt))
        reading = together * prefill_size(self.prompt)
        runs = rows * (last + (first if first < last else 0))  # those that grow move, and for a moment have both
        if together < prompts:
            runs += rows * first // 2  # they come a few at a time, and get room to spare
        kept = prompts * (self.prompt // BLOCK * BLOCK)
        cache = int((runs + reading + kept) * cache_bytes(shape, value_bytes))
        if self.free is not None:
            cache = min(cache, int(SHARE * self.free))
        logits = rows * shape.vocab_size * (4 if value_bytes == 4 else 6)
        return cache + max(logits, 4 * shape.intermediate_size * value_bytes * min(chunk, reading))


def memory_left(device: str) -> int | None:
    """Bytes that training may still take on `cpu` or `cuda`; None where the system does not say."""
    return available_memory() if device == "cpu" else free_on_gpu()


def training_ways(config: Trained, key: str) -> list[str]:
    """Settings that make training smaller; `key`: of the tokens of a pass."""
    found = [] if config.lora.rank else ["lora.rank=16"]
    found += [] if config.checkpoint_activations else ["checkpoint_activations=true"]
    return [*found, f"{key}={max(256, getattr(config, key) // 4)}"]
