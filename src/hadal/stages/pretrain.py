"""Pre-training: from random weights to a base that answers at once but knows how to think.

The rate falls to zero; where a task is not ready for RL by then (made to think it must beat made to answer), a
shorter round follows, up to a cap. Thinking is a skill that the base has and seldom uses: what R1-Zero's RL then
finds out is that it pays.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from hadal import stages
from hadal.cost.memory import PLAIN, Pass, training_memory
from hadal.engine import SamplingParams
from hadal.errors import UserError
from hadal.evaluate.suite import ask
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.reading import nearest
from hadal.stages import Before, Stage
from hadal.stages.common.needs import Needs, Scene
from hadal.stages.common.run import Run
from hadal.stages.common.watch import tell_left_out
from hadal.tasks import Problem, Task
from hadal.train.corpus import CorpusConfig, batches
from hadal.train.losses import pretraining_loss
from hadal.train.optim import OptimizerConfig, build_optimizer, kept

LEAVES = "model"
ARCHITECTURES = ("dense", "deepseek")


@dataclass(frozen=True)
class SizeConfig:
    """The model's shape; the vocabulary follows from the tasks."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 384
    moe_intermediate_size: int = 128
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    kv_lora_rank: int = 64
    num_nextn_predict_layers: int = 0

    def model_config(self, arch: str, vocab_size: int) -> ModelConfig:
        """The typed config of an architecture at this size."""
        width = self.hidden_size // self.num_attention_heads
        if arch == "dense":
            return DenseConfig(
                vocab_size,
                self.hidden_size,
                self.num_hidden_layers,
                self.num_attention_heads,
                self.num_key_value_heads,
                head_dim=width,
                intermediate_size=self.intermediate_size,
            )
        return DeepseekConfig(
            vocab_size,
            self.hidden_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.intermediate_size,
            self.moe_intermediate_size,
            n_routed_experts=self.n_routed_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=width,
            qk_rope_head_dim=width,
            v_head_dim=width,
            num_nextn_predict_layers=self.num_nextn_predict_layers,
        )

    def check(self, arch: str, where: str = "") -> None:
        """UserError for heads that do not fit, or no such architecture. where: the table that has both."""
        if arch not in ARCHITECTURES:
            raise UserError(f"{where}arch is {arch!r}.", nearest(arch, ARCHITECTURES))
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{where}model.hidden_size is {self.hidden_size}, not a multiple of {self.num_attention_heads} heads."
            )
        if arch == "dense" and self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"{where}model.num_attention_heads is {self.num_attention_heads}, not a multiple of "
                f"{self.num_key_value_heads} key and value heads."
            )


@dataclass(frozen=True)
class Config(stages.Config):
    """Steps at a rate that falls to zero, and shorter rounds of the same until every task is ready or a cap is met."""

    steps: int = 3000
    decay_share: float = 0.85
    """The last part of the steps, in which the rate falls to zero."""
    extra_steps: int = 600
    """Of a further round; its rate begins at half."""
    extra_rounds: int = 1
    warmup: int = 20
    check_problems: int = 64
    margin: float = 0.05
    """By how much thinking must beat answering for RL to have something to find."""
    checkpoint_every: int = 200
    router_bias_rate: float = 0.001
    mtp_weight: float = 0.1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    arch: str = "dense"
    tasks: list[str] = field(default_factory=list)
    """None stands for all of the recipe's; so in every kind."""
    max_tokens: int = 160
    """Of a response in the check whether tasks are ready."""
    model: SizeConfig = field(default_factory=SizeConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)

    def rate(self, step: int) -> float:
        """The learning rates' factor at step `step`, the first being 0."""
        if step >= self.steps:
            return 0.5 * (1 - (step - self.steps) % self.extra_steps / self.extra_steps)
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.decay_share * self.steps))

    def grows(self, vocabulary: int) -> ModelConfig:
        return self.model.model_config(self.arch, vocabulary)

    def stretched(self, factor: float) -> Self:
        return replace(self, steps=int(self.steps * factor))


def check(stage: Stage, before: Before) -> None:
    """It begins from nothing, with a model that can be built."""
    if stage.source:
        raise UserError(f"{stage.where}.from is {stage.source!r}.", "Pre-training begins from nothing: leave it out.")
    stage.config.model.check(stage.config.arch, f"{stage.where}.")


def needs(stage: Stage, scene: Scene) -> Needs:
    """Batches of the corpus, and the check whether tasks are ready."""
    config: Config = stage.config
    shape = scene.shape_of(stage.name)
    one = Pass(max(1, config.corpus.tokens // PLAIN), PLAIN)
    memory = training_memory(shape, scene.value_bytes, [one], kept=kept(config.optimizer))
    checked = config.check_problems * len(scene.run.tasks)
    memory = memory.beside({}, {"sampling": scene.sampling_memory(shape, checked, 1, config.max_tokens)})
    seconds = scene.rates.corpus(shape, config.steps * config.corpus.tokens, PLAIN)
    halves = {key: max(1, getattr(config.model, key) // 2) for key in ("num_hidden_layers", "intermediate_size")}
    return Needs(memory, seconds, [f"model.{key}={half}" for key, half in halves.items()])


def run_stage(run: Run, stage: Stage) -> None:
    """Train a model from nothing; leaves its checkpoint, and which tasks are ready."""
    config: Config = stage.config
    state = run.saved_state(stage.name)
    model = run.new_model()
    optimizer = build_optimizer(model, config.optimizer, run.dtype)
    run.restore(stage.name, state, model, optimizer)
    llm = run.engine(model)
    step, end = (state.step, state.numbers["end"]) if state else (0, config.steps)
    run.view.stage(stage.name, end, _about(run))
    stream = batches(list(run.tasks.values()), run.tokenizer, config.corpus, run.model_seed, step)
    began, tokens = time.perf_counter(), 0
    while True:
        if step == end:
            ready = readiness(run, model, config)
            run.metrics.append({"stage": stage.name, "step": step, "readiness": ready})
            behind = ", ".join(name for name, r in ready.items() if not r["ready"])
            if not behind or step >= config.steps + config.extra_rounds * config.extra_steps:
                break
            run.view.note(f"Not ready for RL: {behind}. {config.extra_steps} more steps.")
            end += config.extra_steps
            run.view.stage(stage.name, end, _about(run))
        batch = next(stream).to(model.device)
        scale = config.rate(step)
        loss, next_token = pretraining_loss(model, batch, llm.forbidden, config.mtp_weight)
        loss.backward()
        norm = optimizer.step(scale)
        loads = model.load_metrics() if (step + 1) % 10 == 0 else []
        model.after_update(config.router_bias_rate)
        step += 1
        tell_left_out(run, stage.name, step, optimizer)
        tokens += batch.ids.numel()
        run.count_trained(batch.ids.numel(), batch.ids.shape[1])
        if step % 10 == 0:
            seconds = time.perf_counter() - began
            value = float(next_token)
            line = {"stage": stage.name, "step": step, "loss": value, "rate": scale, "grad_norm": norm}
            run.metrics.append(line | optimizer.figures | ({"experts": loads} if loads else {}))
            run.timing.append(
                {
                    "stage": stage.name,
                    "step": step,
                    "seconds": seconds,
                    "tokens": tokens,
                    "tokens_per_second": tokens / seconds,
                }
            )
            run.view.step(
                stage.name,
                step,
                {"loss": value, "tokens_per_second": tokens / seconds, "cost_usd": run.cost_so_far()},
            )
            began, tokens = time.perf_counter(), 0
        if step % config.checkpoint_every == 0:
            run.checkpoint(stage.name, step, model, optimizer, {"end": end})

    run.view.step(stage.name, step, {"cost_usd": run.cost_so_far()})
    run.save_stage_model(stage.name, model, optimizer)
    left_out = {name: why_not_ready(run.tasks[name], rates) for name, rates in ready.items() if not rates["ready"]}
    run.finish(stage.name, {"steps": step, "readiness": ready, "left_out": left_out})


def _about(run: Run) -> str:
    size = sum(1 for _ in run.tasks)
    return f"learning to read, answer and think: {size} task{'s' if size != 1 else ''}, loss on responses"


@torch.no_grad()
def readiness(run: Run, model: Decoder, config: Config) -> dict[str, dict[str, Any]]:
    """For each task, on training problems at its default difficulty: made to think against made to answer.

    A task is ready where thinking beats answering, so that RL can find out. One that came without thoughts is
    ready where answering at once is sometimes right and not always: there RL can only sharpen that.
    """
    n, margin = config.check_problems, config.margin
    problems: list[Problem] = []
    for task in run.tasks.values():
        problems += [task.generate((9 << 32) + i, "train", task.default_difficulty) for i in range(n)]
    llm = run.engine(model)
    share: dict[str, dict[str, float]] = {name: {} for name in run.tasks}
    for kind, thinking in (("thinking", True), ("direct", False)):
        params = SamplingParams(max_tokens=config.max_tokens, seed=run.recipe.seed, thinking=thinking)
        verdicts = [v[0] for v in ask(llm, run.tasks, problems, params)]
        for i, name in enumerate(run.tasks):
            share[name][kind] = sum(v.right for v in verdicts[i * n : (i + 1) * n]) / n

    def ready(name: str) -> bool:
        thinking, direct = share[name]["thinking"], share[name]["direct"]
        return thinking > direct + margin if has_thoughts(run.tasks[name]) else 0 < direct < 1

    return {name: {**rates, "ready": ready(name)} for name, rates in share.items()}


def why_not_ready(task: Task, rates: Mapping[str, float]) -> str:
    """Why RL would find nothing in a task, from what `readiness` measured."""
    if not has_thoughts(task):
        return f"no thoughts to learn from, and answers at once are right {rates['direct']:.0%} of the time"
    ends = "there is nothing left to find" if rates["direct"] == 1 else "thinking did not pay yet"
    return f"made to think {rates['thinking']:.0%}, made to answer {rates['direct']:.0%}: {ends}"


def none_ready(tasks: Mapping[str, Task], measured: Mapping[str, Mapping[str, float]]) -> str:
    """What is told where no task is ready: each one's reason, and what would change it."""
    reasons = "; ".join(f"{name}: {why_not_ready(tasks[name], rates)}" for name, rates in measured.items())
    learnt = all(rates["direct"] == 1 for rates in measured.values())
    remedy = "Take harder problems." if learnt else "Give pre-training more steps, or hadal quickstart more --minutes."
    return f"No task is ready for RL, and the base stays as it is ({reasons}). {remedy}"


def has_thoughts(task: Task) -> bool:
    """Whether any of a task's training problems comes with a thought to learn from."""
    return any(task.generate(i, "train", level).thought for level in task.difficulties for i in range(4))
