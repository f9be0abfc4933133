"""Supervised fine-tuning: a model, or adapters on it, trained on conversations, with the loss on answers alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.models.deepseek import routers
from hadal.models.lora import LoraConfig
from hadal.recipe.run import RunFiles
from hadal.tasks.base import Rng
from hadal.train.conversations import Conversation, epoch_batches, packed
from hadal.train.losses import pretraining_loss
from hadal.train.optim import Optimizer, OptimizerConfig

STAGE = "sft"


@dataclass(frozen=True)
class SftConfig:
    """Every number that decides how a fine-tuning ends."""

    epochs: int = 2
    batch_tokens: int = 16_384
    """Tokens of an update."""
    pass_tokens: int = 4096
    """Of a forward and backward pass; memory depends on it, the result does not but for rounding."""
    warmup_share: float = 0.03
    dtype: str = "auto"
    seed: int = 0
    threads: int = 0
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
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}.", "Known are auto, float32 and bfloat16.")
        for name in ("epochs", "batch_tokens", "pass_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}.", "It must be at least 1.")
        if not 0 <= self.warmup_share < 1:
            raise UserError(f"warmup_share is {self.warmup_share}.", "It must be at least 0 and below 1.")
        if self.router_bias_rate and self.lora.rank:
            raise UserError("Adapters leave the routers' biases as they are.", "Leave router_bias_rate at 0.")

    @property
    def lr(self) -> float:
        """The highest learning rate."""
        return self.optimizer.lr or (2e-4 if self.lora.rank else 1e-5)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain data."""
        return asdict(self)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate's factor at step `step`, the first being 0: up, then down to 0 in a straight line."""
        warmup = max(1, round(self.warmup_share * steps))
        return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def batches(conversations: Sequence[Conversation], config: SftConfig) -> list[list[int]]:
    """The conversations of every update, over all epochs."""
    lengths = [len(c.ids) for c in conversations]
    return [b for e in range(config.epochs) for b in epoch_batches(lengths, config.batch_tokens, config.seed, e)]


def sft(
    run: RunFiles, model: Decoder, conversations: Sequence[Conversation], forbidden: Tensor, pad_id: int,
    config: SftConfig,
) -> None:  # fmt: skip
    """Train the parameters of `model` that ask for gradients; they are left in float32.

    forbidden: ids that get no probability, as in sampling. Stopped at any moment it carries on from its newest whole
    checkpoint, to the same bits.
    """
    dtype = getattr(torch, config.dtype)
    optimizer = Optimizer(model, OptimizerConfig(**{**asdict(config.optimizer), "lr": config.lr}), dtype)
    state = run.saved_state(STAGE)
    run.restore(STAGE, state, model, optimizer)
    plan = batches(conversations, config)
    begin = state.step if state else 0
    del state
    learnt = sum(c.learnt for c in conversations)
    run.view.stage(STAGE, len(plan), f"{len(conversations):,} conversations, {learnt:,} tokens of answers")
    model.train()
    model.checkpoint_activations = config.checkpoint_activations
    for step in range(begin, len(plan)):
        began = time.perf_counter()
        if config.lora.dropout:
            torch.manual_seed(Rng("dropout", config.seed, step).bits() >> 1)
        chosen = [conversations[i] for i in plan[step]]
        loss = _gradients(model, chosen, forbidden, pad_id, config)
        scale = config.rate(step, len(plan))
        norm = optimizer.step(scale)
        loads = [layer for layer in model.load_metrics() if layer["load_max"]]  # some layers may not be trained here
        model.after_update(config.router_bias_rate)
        tokens = sum(len(c.ids) for c in chosen)
        for conversation in chosen:
            run.count_trained(len(conversation.ids), len(conversation.ids), 2 / 3 if config.lora.rank else 1.0)
        done = step + 1
        if not norm < float("inf"):
            run.view.note(f"The gradient of update {done} is not finite: the update is left out.")
        seconds = time.perf_counter() - began
        line = {"stage": STAGE, "step": done, "loss": loss, "rate": scale * config.lr, "grad_norm": norm}
        run.metrics.append(line | ({"experts": loads} if loads else {}))
        pace = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
        run.timing.append({"stage": STAGE, "step": done, **pace})
        run.view.step(
            STAGE, done, {"loss": loss, "tokens_per_second": tokens / seconds, "cost_usd": run.cost_so_far()}
        )
        if done % config.checkpoint_every == 0 and done < len(plan):
            run.checkpoint(STAGE, done, model, optimizer, {})
    masters = optimizer.masters(model)
    for name, parameter in model.named_parameters():
        if name in masters:
            parameter.grad, parameter.data = None, masters[name]
    model.eval()


def _gradients(
    model: Decoder, chosen: Sequence[Conversation], forbidden: Tensor, pad_id: int, config: SftConfig
) -> float:
    """Add up the gradients of an update, in passes; returns the mean loss of a learnt token."""
    passes = packed(chosen, config.pass_tokens, pad_id)
    total = float(sum(batch.weight.sum() for batch in passes))
    for router in routers(model):
        router.balance_share = 1 / len(passes)
    loss = 0.0
    for batch in passes:
        share = float(batch.weight.sum()) / total
        value, next_token = pretraining_loss(model, batch, forbidden, 0.0 if config.lora.rank else config.mtp_weight)
        (value * share).backward()
        loss += float(next_token) * share
    return loss
