"""Supervised fine-tuning: a model, or adapters on it, trained on conversations, with the loss on answers alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from hadal.engine.sampler import forbidden_ids
from hadal.models.decoder import Decoder
from hadal.models.lora import LoraConfig
from hadal.recipe.kinds import SftConfig, SftStage
from hadal.recipe.run import Run, RunFiles
from hadal.recipe.watch import tell_left_out
from hadal.rng import Rng
from hadal.train.conversations import Conversation, epoch_batches, packed, read_conversations
from hadal.train.corpus import Batch
from hadal.train.losses import pretraining_loss
from hadal.train.optim import Optimizer, build_optimizer

STAGE = "sft"
DATA = "data.jsonl"
"""Where a stage leaves conversations."""

Objective = Callable[[Decoder, Batch], tuple[Tensor, Tensor]]
"""From a model and a batch to (what is minimised: its part of the update; the mean loss of a learnt token)."""


def batches(conversations: Sequence[Conversation], config: SftConfig) -> list[list[int]]:
    """The conversations of every update, over all epochs."""
    lengths = [len(c.ids) for c in conversations]
    return [b for e in range(config.epochs) for b in epoch_batches(lengths, config.batch_tokens, config.seed, e)]


def sft(
    run: RunFiles, model: Decoder, conversations: Sequence[Conversation], forbidden: Tensor, pad_id: int,
    config: SftConfig, stage: str = STAGE, objective: Objective | None = None,
) -> Optimizer:  # fmt: skip
    """Train the parameters of `model` that ask for gradients; they are left in float32.

    forbidden: ids that get no probability, as in sampling. objective: what is minimised; by default the loss of the
    answers' tokens. Stopped at any moment it carries on from its newest whole checkpoint, to the same bits.
    """
    mtp_weight = 0.0 if config.lora.rank else config.mtp_weight
    objective = objective or (lambda model, batch: pretraining_loss(model, batch, forbidden, mtp_weight))
    dtype = getattr(torch, config.dtype)
    optimizer = build_optimizer(model, config.with_lr(), dtype)
    state = run.saved_state(stage)
    run.restore(stage, state, model, optimizer)
    plan = batches(conversations, config)
    begin = state.step if state else 0
    del state
    learnt = sum(c.learnt for c in conversations)
    run.view.stage(stage, len(plan), f"{len(conversations):,} conversations, {learnt:,} tokens of answers")
    model.train()
    model.checkpoint_activations = config.checkpoint_activations
    for step in range(begin, len(plan)):
        began = time.perf_counter()
        seed_dropout(config.lora, config.seed, step)
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
    model: Decoder, chosen: Sequence[Conversation], objective: Objective, pad_id: int, config: SftConfig
) -> float:
    """Add up the gradients of an update, in passes; returns the mean loss of a learnt token."""
    passes = packed(chosen, config.pass_tokens, pad_id)
    loss = 0.0
    for batch in passes:
        value, next_token = objective(model, batch.to(model.device))
        value.backward()
        loss += float(next_token) * batch.part.learnt
    return loss


def sft_stage(run: Run, stage: str, source: str, config: SftStage) -> None:
    """Fine-tune the model that stage `source` left on what other stages and files hold."""
    conversations, _ = gather(run, config.data)
    model = run.stage_model(source)
    forbidden = forbidden_ids(run.tokenizer, model)
    numbers = settled(run, stage, config)
    optimizer = sft(run, model, conversations, forbidden, run.tokenizer.pad_id, numbers, stage)
    run.save_stage_model(stage, model, optimizer)
    run.finish(stage, {"conversations": len(conversations)})


def settled(run: Run, stage: str, config: SftStage) -> SftConfig:
    """A stage's numbers as `sft` takes them, with the run's dtype and a seed of the stage's own."""
    own = {f.name: getattr(config, f.name) for f in fields(SftConfig)}
    return replace(SftConfig(**own), dtype=run.recipe.dtype, seed=run.seed_of(stage))


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
