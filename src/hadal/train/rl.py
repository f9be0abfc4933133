"""One update of reinforcement learning on checkable rewards: sample, score, weigh, train.

The loop around it (checkpoints, metrics, evaluation) is a stage's business; what turns rewards into a
gradient is an algorithm's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from hadal.engine import LLM, SamplingParams
from hadal.rewards import PARTS, RewardConfig
from hadal.tasks import Rng, Task
from hadal.train.algorithms import ALGORITHMS
from hadal.train.curriculum import Curriculum
from hadal.train.losses import entropy, log_probabilities
from hadal.train.optim import Optimizer
from hadal.train.rollouts import Group, pack, predict_rows, sample_groups


@dataclass(frozen=True)
class RLConfig:
    """Sizes and knobs of an update."""

    algorithm: str = "grpo"
    prompts: int = 32
    samples: int = 16
    max_tokens: int = 160
    temperature: float = 1.0
    baseline: float = 1.0
    """How much of its group's mean reward is taken from a sample's own."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    epochs: int = 1
    minibatches: int = 1
    micro_tokens: int = 4096
    rewards: RewardConfig = field(default_factory=RewardConfig)


@dataclass(frozen=True)
class UpdateResult:
    """What an update did: metrics (deterministic), the groups, and counts for the books."""

    metrics: dict[str, float]
    groups: list[Group]
    tokens_sampled: int
    tokens_trained: int
    seconds_sampling: float
    seconds_training: float


def draw_groups(
    llm: LLM, tasks: Mapping[str, Task], curriculum: Curriculum, config: RLConfig, seed: int, step: int,
    thinking: bool | None = None,
) -> list[Group]:  # fmt: skip
    """A batch of scored groups at the difficulties that the curriculum asks for; it takes in how they went.

    thinking: as in SamplingParams; None leaves it to the model, as RL does.
    """
    rng = Rng("rl", seed, step)
    names = list(tasks)
    problems = []
    for i in range(config.prompts):
        name = names[(i + step) % len(names)]
        level = curriculum.draw(name, rng)
        problems.append((name, tasks[name].generate(rng.bits(), "train", level)))
    seed = rng.bits() >> 1
    params = SamplingParams(
        config.temperature, max_tokens=config.max_tokens, seed=seed, thinking=thinking, n=config.samples, logprobs=0,
        logprobs_of="sampled",
    )  # fmt: skip
    groups = sample_groups(llm, tasks, problems, params, config.rewards)
    for group in groups:
        curriculum.record(group.task, group.problem.meta["difficulty"], group.success)
    return groups


def rl_update(
    llm: LLM, optimizer: Optimizer, tasks: Mapping[str, Task], curriculum: Curriculum, config: RLConfig,
    seed: int, step: int, scale: float = 1.0,
) -> UpdateResult:  # fmt: skip
    """Sample a batch with the live weights, score it, and take the algorithm's step on it."""
    began = time.perf_counter()
    groups = draw_groups(llm, tasks, curriculum, config, seed, step)
    sampled = time.perf_counter()

    algorithm = ALGORITHMS[config.algorithm]
    rewards = torch.tensor([[r.total for r in g.rewards] for g in groups])
    advantages = algorithm.advantages(rewards, baseline=config.baseline)
    # A group whose samples all earned the same teaches nothing relative to itself: it is dropped.
    items = [
        (group.prompt, sample, float(advantage))
        for group, row in zip(groups, advantages, strict=True)
        for sample, advantage in zip(group.samples, row, strict=True)
        if advantage != 0
    ]
    kept = int((advantages != 0).any(dim=1).sum())
    sums: dict[str, float] = defaultdict(float)
    trained = 0
    updates = 0
    rng = Rng("minibatches", seed, step)
    for epoch in range(config.epochs):
        order = rng.sample(items, len(items)) if config.minibatches > 1 else items
        size = -(-len(order) // config.minibatches)
        for begin in range(0, len(order), max(size, 1)):
            part = order[begin : begin + size]
            tokens = sum(len(sample.token_ids) for _, sample, _ in part)
            for rows in pack(part, llm.tokenizer.pad_id, config.micro_tokens):
                logits = predict_rows(llm.model, rows, llm.forbidden)
                logprobs = log_probabilities(logits, rows.targets)
                terms = algorithm.loss(
                    logprobs,
                    rows.old_logprobs,
                    rows.advantages,
                    clip_low=config.clip_low,
                    clip_high=config.clip_high,
                )
                (terms.sum() / tokens).backward()
                if epoch == 0:
                    sums["entropy"] += float(entropy(logits).sum())
                    sums["mismatch"] += float((logprobs.detach() - rows.old_logprobs).abs().sum())
                    sums["tokens"] += len(rows.targets)
                trained += rows.tokens
            sums["grad_norm"] += optimizer.step(scale)
            updates += 1
    done = time.perf_counter()
    samples = [s for g in groups for s in g.samples]
    metrics = {
        "reward": float(rewards.mean()),
        "length": sum(len(s.token_ids) for s in samples) / len(samples),
        "thinking_share": sum(s.token_ids[:1] == [llm.tokenizer.think_id] for s in samples) / len(samples),
        "truncated": sum(s.finish_reason == "length" for s in samples) / len(samples),
        "kept_groups": kept / len(groups),
        "entropy": sums["entropy"] / max(sums["tokens"], 1),
        "mismatch": sums["mismatch"] / max(sums["tokens"], 1),
        "grad_norm": sums["grad_norm"] / max(updates, 1),
    }
    scored = [r for g in groups for r in g.rewards]
    shown = [part for part in PARTS if part in scored[0].parts]
    if len(shown) > 1:  # else the reward says it all
        metrics |= {f"reward_{part}": sum(r.parts[part] for r in scored) / len(scored) for part in shown}
    return UpdateResult(
        metrics, groups, sum(len(s.token_ids) for s in samples), trained, sampled - began, done - sampled
    )
