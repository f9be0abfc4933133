"""Supervised fine-tuning: a model, or adapters on it, trained on conversations, with the loss on answers alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hadal import stages
from hadal.cost.memory import Pass
from hadal.engine.sampler import forbidden_ids
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.models.lora import LoraConfig
from hadal.rng import Rng
from hadal.stages import Before, Stage
from hadal.stages.common.needs import Needs, Scene, training_ways
from hadal.stages.common.run import Run, RunFiles
from hadal.stages.common.watch import tell_left_out
from hadal.train.conversations import Conversation, epoch_batches, packed, read_conversations
from hadal.train.corpus import Batch
from hadal.train.losses import pretraining_loss
from hadal.train.optim import Optimizer, OptimizerConfig, build_optimizer

LEAVES = "model"
DATA = "data.jsonl"
"""Where a stage leaves conversations."""

Objective = Callable[[Decoder, Batch], tuple[Tensor, Tensor]]
"""From a model and a batch to (what is minimised: its part of the update; the mean loss of a learnt token)."""


@dataclass(frozen=True)
class Config(stages.Config):
    """Every number that decides how a fine-tuning ends."""

    data: list[str] = field(default_factory=list)
    """Stages that left conversations (`reject`), and files of JSON lines; in one mixture."""
    epochs: int = 2
    batch_tokens: int = 16_384
    """Tokens of an update."""
    pass_tokens: int = 4096
    """Of a forward and backward pass; memory depends on it, the result does not but for rounding."""
    warmup_share: float = 0.03
    checkpoint_activations: bool = False
    checkpoint_every: int = 50
    mtp_weight: float = 0.1
    """Of the loss of a multi-token prediction module, if the model has one and all of it is trained."""
    router_bias_rate: float = 0.0
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=0.0, muon_lr=0.0, beta2=0.999, eps=1e-8)
    )
    """lr 0 stands for 1e-5, and for 2e-4 of adapters."""

    def __post_init__(self) -> None:
        if self.router_bias_rate and self.lora.rank:
            raise UserError("Adapters leave the routers' biases as they are.", "Leave router_bias_rate at 0.")

    @property
    def lr(self) -> float:
        """The highest learning rate."""
        return self.optimizer.lr or (2e-4 if self.lora.rank else 1e-5)

    def with_lr(self) -> OptimizerConfig:
        """The optimiser's numbers, the learning rate decided."""
        return replace(self.optimizer, lr=self.lr)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate's factor at step `step`, the first being 0: up, then down to 0 in a straight line."""
        warmup = max(1, round(self.warmup_share * steps))
        return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def check(stage: Stage, before: Before) -> None:
    """It has a model and conversations."""
    before.need_model(stage.source, f"{stage.where}.from")
    check_data(stage, before)


def check_data(stage: Stage, before: Before) -> None:
    """UserError unless `data` names stages before this one that leave conversations, or files."""
    if not stage.config.data:
        known = ", ".join(before.data)
        raise UserError(f"{stage.where} has no data.", f"Name a stage of kind reject ({known}) or a file.")
    for name in stage.config.data:
        if not name.endswith(".jsonl"):
            before.need_data(name, f"{stage.where}.data")


def needs(stage: Stage, scene: Scene, logit_bytes: int = 4) -> Needs:
    """Passes over conversations, no longer than a prompt and an answer where other stages make them.

    logit_bytes: of each logit of a chunk, what the loss holds at its most.
    """
    config: Config = stage.config
    shape = scene.shape_of(stage.source)
    made = [source.config for source in scene.made(config.data).values()]
    tokens = min(config.pass_tokens, shape.max_position_embeddings)
    longest = tokens
    if made and len(made) == len(set(config.data)):
        longest = scene.prompt + max(source.max_tokens for source in made)
    one = Pass(max(1, config.pass_tokens // longest), min(longest, shape.max_position_embeddings))
    memory, _, _ = scene.trained(config, shape, [one], logit_bytes)
    rows, limit = sum(source.conversations for source in made), max((s.max_tokens for s in made), default=512)
    again, adapters = config.checkpoint_activations, bool(config.lora.rank)
    seconds = scene.rates.training(shape, rows * config.epochs, limit, scene.prompt, again, adapters)
    return Needs(memory, seconds, training_ways(config, "pass_tokens"))


def batches(conversations: Sequence[Conversation], config: Config, seed: int) -> list[list[int]]:
    """The conversations of every update, over all epochs."""
    lengths = [len(c.ids) for c in conversations]
    return [b for e in range(config.epochs) for b in epoch_batches(lengths, config.batch_tokens, seed, e)]


def sft(
    run: RunFiles, model: Decoder, conversations: Sequence[Conversation], forbidden: Tensor, pad_id: int,
    config: Config, stage: str, dtype: torch.dtype, seed: int, objective: Objective | None = None,
) -> Optimizer:  # fmt: skip
    """Train the parameters of `model` that ask for gradients; they are left in float32.

    forbidden: ids that get no probability, as in sampling. dtype: of the computation. objective: what is minimised, by
    default the loss of the answers' tokens. Stopped at any moment it carries on from its newest whole checkpoint, to
    the same bits.
    """
    mtp_weight = 0.0 if config.lora.rank else config.mtp_weight
    objective = objective or (lambda model, batch: pretraining_loss(model, batch, forbidden, mtp_weight))
    optimizer = build_optimizer(model, config.with_lr(), dtype)
    state = run.saved_state(stage)
    run.restore(stage, state, model, optimizer)
    plan = batches(conversations, config, seed)
    begin = state.step if state else 0
    del state
    learnt = sum(c.learnt for c in conversations)
    run.view.stage(stage, len(plan), f"{len(conversations):,} conversations, {learnt:,} tokens of answers")
    model.train()
    model.checkpoint_activations = config.checkpoint_activations
    for step in range(begin, len(plan)):
        began = time.perf_counter()
        seed_dropout(config.lora, seed, step)
        chosen = [conversations[i] for i in plan[step]]
        loss = gradients(model, chosen, objective, pad_id, config)
        scale = config.rate(step, len(plan))
        norm = optimizer.step(scale)
        loads = [layer for layer in model.load_metrics() if layer["load_max"]]  # some layers may not be trained here
        model.after_update(config.router_bias_rate)
        tokens = sum(len(c.ids) for c in chosen)
        for conversation in chosen:
            run.count_trained(len(conversation.ids), len(conversation.ids), 2 / 3 if config.lora.rank else 1.0)
        done = step + 1
        seconds = time.perf_counter() - began
        line = {"stage": stage, "step": done, "loss": loss, "rate": scale * config.lr, "grad_norm": norm}
        run.metrics.append(line | optimizer.figures | ({"experts": loads} if loads else {}))
        tell_left_out(run, stage, done, optimizer)
        pace = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
        run.timing.append({"stage": stage, "step": done, **pace})
        run.view.step(
            stage, done, {"loss": loss, "tokens_per_second": tokens / seconds, "cost_usd": run.cost_so_far()}
        )
        if done % config.checkpoint_every == 0 and done < len(plan):
            run.checkpoint(stage, done, model, optimizer, {})
    optimizer.hand_over()
    model.eval()
    return optimizer


def seed_dropout(lora: LoraConfig, seed: int, step: int) -> None:
    """Let what adapters drop in an update depend on nothing before it: who carries on drops the same."""
    if lora.dropout:
        torch.manual_seed(Rng("dropout", seed, step).bits() >> 1)


def gradients(
    model: Decoder, chosen: Sequence[Conversation], objective: Objective, pad_id: int, config: Config
) -> float:
    """Add up the gradients of an update, in passes; returns the mean loss of a learnt token."""
    passes = packed(chosen, config.pass_tokens, pad_id)
    loss = 0.0
    for batch in passes:
        value, next_token = objective(model, batch.to(model.device))
        value.backward()
        loss += float(next_token) * batch.part.learnt
    return loss


def run_stage(run: Run, stage: Stage) -> None:
    """Fine-tune the model that another stage left on what stages and files hold."""
    config: Config = stage.config
    conversations, _ = gather(run, config.data)
    model = run.stage_model(stage.source)
    forbidden = forbidden_ids(run.tokenizer, model)
    seed = run.seed_of(stage.name)
    optimizer = sft(run, model, conversations, forbidden, run.tokenizer.pad_id, config, stage.name, run.dtype, seed)
    run.save_stage_model(stage.name, model, optimizer)
    run.finish(stage.name, {"conversations": len(conversations)})


def gather(run: Run, names: Sequence[str]) -> tuple[list[Conversation], int]:
    """The conversations of stages and files, and how many were left out because they are too long."""
    found: list[Conversation] = []
    left_out = 0
    for name in names:
        path = Path(name) if name.endswith(".jsonl") else run.stage_folder(name) / DATA
        kept, skipped = read_conversations(path, run.tokenizer, run.model_config.max_position_embeddings)
        found += kept
        left_out += skipped
    return found, left_out
