"""One update of reinforcement learning on checkable rewards: sample, score, weigh, train.

The loop around it (checkpoints, metrics, evaluation) is a stage's business; what turns rewards into a
gradient is an algorithm's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hadal.engine import LLM
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.rewards import RewardConfig, read_rewards
from hadal.rewards.language import foreign_share
from hadal.rng import Rng
from hadal.rollout import Rollout, Sample, SamplingParams
from hadal.tasks import Task
from hadal.text.parse import parse_response
from hadal.train.algorithms import Algorithm, Options, Tokens, divergence, find, read_options, total
from hadal.train.curriculum import Curriculum
from hadal.train.optim import Optimizer
from hadal.train.rollouts import Group, Rows, pack, predict_rows, sample_groups

Item = tuple[list[int], Sample, float]
"""A prompt, a response to it, and its advantage."""


@dataclass(frozen=True)
class RLConfig:
    """Sizes and knobs of an update."""

    algorithm: str = "dr_grpo"
    """The best at equal work on the quickstart (docs/log.md); hadal's own recipes ask for R1's."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the algorithm, where it shall not have its own way: `hadal.train.algorithms`."""
    prompts: int = 32
    samples: int = 16
    max_tokens: int = 160
    temperature: float = 1.0
    epochs: int = 1
    minibatches: int = 1
    micro_tokens: int = 4096
    rewards: dict[str, Any] = field(default_factory=dict)
    """What a response earns: weights and settings of its parts (`hadal.rewards`), completed by their defaults."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}.", "It must be above 0: RL learns from what differs.")
        read_options(self.algorithm, self.options)
        object.__setattr__(self, "rewards", read_rewards(self.rewards).table())  # so that defaults are frozen with it

    @property
    def settings(self) -> Options:
        """The options in full."""
        return read_options(self.algorithm, self.options)

    def reward_config(self) -> RewardConfig:
        """What a response earns, the algorithm's punishment of overlong ones included."""
        share, table = self.settings.overlong, self.rewards
        if share and not table["overlong"]:
            table = {**table, "overlong": 1.0, "overlong_tokens": max(1, round(share * self.max_tokens))}
        return read_rewards(table)


@dataclass(frozen=True)
class Batch:
    """Groups to learn from, with the advantages [P, G] of their samples.

    seconds: that drawing them took; stale: updates that the policy has had since; mismatch: of the weights that it was
    drawn with, where it was measured (`sampler_mismatch`).
    """

    groups: list[Group]
    advantages: Tensor
    seconds: float
    stale: int = 0
    mismatch: float | None = None


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
    rollout: Rollout, tasks: Mapping[str, Task], curriculum: Curriculum, config: RLConfig, seed: int, step: int,
    thinking: bool | None = None, again: int = 0, judge: Rollout | None = None,
) -> list[Group]:  # fmt: skip
    """A batch of scored groups at the difficulties that the curriculum asks for; it takes in how they went.

    thinking: as in SamplingParams; None leaves it to the model, as RL does. again: how often this step drew before.
    judge: the model that rewards ask, where the config names one that does.
    """
    rng = Rng("rl", seed, step, again) if again else Rng("rl", seed, step)
    names = list(tasks)
    problems = []
    for i in range(config.prompts):
        name = names[(i + step) % len(names)]
        level = curriculum.draw(name, rng)
        problems.append((name, tasks[name].for_reward(tasks[name].generate(rng.bits(), "train", level))))
    seed = rng.bits() >> 1
    params = SamplingParams(
        config.temperature, max_tokens=config.max_tokens, seed=seed, thinking=thinking, n=config.samples, logprobs=0,
        logprobs_of="sampled",
    )  # fmt: skip
    groups = sample_groups(rollout, tasks, problems, params, config.reward_config(), judge)
    for group in groups:
        curriculum.record(group.task, group.problem.meta["difficulty"], group.success)
    return groups


def draw_batch(
    rollout: Rollout, tasks: Mapping[str, Task], curriculum: Curriculum, config: RLConfig, seed: int, step: int,
    judge: Rollout | None = None,
) -> Batch:  # fmt: skip
    """Sample and score the groups of an update; where the options say so, again for those that teach nothing."""
    began = time.perf_counter()
    algorithm, options = find(config.algorithm), config.settings
    groups = draw_groups(rollout, tasks, curriculum, config, seed, step, judge=judge)
    advantages = _advantages(algorithm, options, groups)
    for again in range(1, options.max_draws):
        lacking = config.prompts - _taught(advantages)
        if lacking <= 0:
            break
        fewer = replace(config, prompts=lacking)
        more = draw_groups(rollout, tasks, curriculum, fewer, seed, step, again=again, judge=judge)
        groups += more
        advantages = torch.cat([advantages, _advantages(algorithm, options, more)])
    return Batch(groups, advantages, time.perf_counter() - began)


def train_on(
    llm: LLM, optimizer: Optimizer, batch: Batch, config: RLConfig, seed: int, step: int, scale: float = 1.0,
    reference: Decoder | None = None,
) -> UpdateResult:  # fmt: skip
    """Take the algorithm's step on a batch.

    reference: the policy that the options' `kl` keeps near; a step that asks for one without it is a bug.
    """
    began = time.perf_counter()
    algorithm, options = find(config.algorithm), config.settings
    groups, advantages = batch.groups, batch.advantages
    # A group whose samples all earned the same teaches nothing relative to itself: it is dropped.
    items = [
        (group.prompt, sample, float(advantage))
        for group, row in zip(groups, advantages, strict=True)
        for sample, advantage in zip(group.samples, row, strict=True)
        if advantage != 0 or options.count_all
    ]
    sums: dict[str, float] = defaultdict(float)
    trainer = Trainer(llm, config, algorithm, options, reference, sums)
    updates = 0
    rng = Rng("minibatches", seed, step)
    several = config.epochs * config.minibatches > 1
    behaviour = trainer.logprobs_now(items) if options.importance_cap and several else {}
    for epoch in range(config.epochs):
        order = rng.sample(items, len(items)) if config.minibatches > 1 else items
        size = -(-len(order) // config.minibatches)
        for begin in range(0, len(order), max(size, 1)):
            part = order[begin : begin + size]
            if trainer.add_gradients(part, behaviour, first=epoch == 0, unmoved=updates == 0):
                sums["grad_norm"] += optimizer.step(scale)
                updates += 1
    done = time.perf_counter()
    samples = [s for g in groups for s in g.samples]
    seen = max(sums["tokens"], 1)
    metrics = {
        "reward": float(_rewards(groups).mean()),
        "length": sum(len(s.token_ids) for s in samples) / len(samples),
        "thinking_share": sum(parse_response(text).thinks for g in groups for text in g.texts) / len(samples),
        "truncated": sum(s.finish_reason == "length" for s in samples) / len(samples),
        "kept_groups": _taught(advantages) / len(groups),
        "all_right": sum(g.success == 1 for g in groups) / len(groups),
        "all_wrong": sum(g.success == 0 for g in groups) / len(groups),
        "foreign": _foreign(groups, config.rewards["target_language"]),
        "entropy": sums["entropy"] / seen if sums["tokens"] else _sampled_entropy(samples),
    }
    mismatch = batch.mismatch
    if not batch.stale:
        known = sums["unmoved"] > 0  # else nothing was trained, and the policy is still the one that sampled
        mismatch = sums["mismatch"] / sums["unmoved"] if known else sampler_mismatch(llm, batch, config)
    metrics |= {"mismatch": mismatch} if mismatch is not None else {}
    if batch.stale or config.epochs * config.minibatches > 1:
        metrics["drift"] = sums["drift"] / seen
    metrics["grad_norm"] = sums["grad_norm"] / max(updates, 1)
    metrics |= {"kl": sums["kl"] / sums["unmoved"]} if "kl" in sums else {}
    metrics |= {"capped": sums["capped"] / seen} if "capped" in sums else {}
    metrics |= optimizer.figures
    if options.max_draws > 1:
        metrics["groups"] = len(groups)
    scored = [r for g in groups for r in g.rewards]
    if any(r.broke for r in scored):
        metrics["scorer_broke"] = sum(r.broke for r in scored) / len(scored)
    shown = sorted(scored[0].parts)
    if len(shown) > 1:  # else the reward says it all
        metrics |= {f"reward_{part}": sum(r.parts[part] for r in scored) / len(scored) for part in shown}
    return UpdateResult(
        metrics, groups, sum(len(s.token_ids) for s in samples), trainer.tokens, batch.seconds, done - began
    )


@torch.no_grad()
def sampler_mismatch(llm: LLM, batch: Batch, config: RLConfig) -> float:
    """How far sampler and trainer are apart with the weights that sampled, in nats a token, by the first group.

    Of a batch that is trained on later it has to be measured where it is drawn: the policy will have moved.
    """
    group = batch.groups[0]
    items = [(group.prompt, sample, 0.0) for sample in group.samples]
    away = tokens = 0.0
    for packed in pack(items, llm.tokenizer.pad_id, config.micro_tokens):
        rows = packed.to(llm.model.device)
        logprobs, _ = predict_rows(llm.model, rows, llm.forbidden, config.temperature)
        away += float((logprobs - rows.old_logprobs).abs().sum())
        tokens += len(rows.targets)
    return away / max(tokens, 1)


def _advantages(algorithm: Algorithm, options: Options, groups: list[Group]) -> Tensor:
    return algorithm.advantages(_rewards(groups), options)


def _rewards(groups: list[Group]) -> Tensor:
    return torch.tensor([[r.total for r in g.rewards] for g in groups])


def _sampled_entropy(samples: list[Sample]) -> float:
    """An estimate from the sampled tokens themselves, where nothing was trained that would tell."""
    return -sum(sum(s.logprobs) for s in samples) / max(1, sum(len(s.logprobs) for s in samples))


def _taught(advantages_PG: Tensor) -> int:
    """Groups with an advantage in them."""
    return int((advantages_PG != 0).any(dim=1).sum())


def _foreign(groups: list[Group], language: str) -> float:
    """Of each group's first thought, the share of words in a script that is not the language's nor the question's."""
    thoughts = [parse_response(group.texts[0]).thought or "" for group in groups]
    shares = [foreign_share(t, g.problem.prompt, language) for t, g in zip(thoughts, groups, strict=True)]
    return sum(shares) / len(shares)


class Trainer:
    """Adds up the gradients of minibatches, and figures in `sums`: of the first pass over each sample, and of those
    passes in which the policy is still what it was at the beginning of the update (`unmoved`)."""

    def __init__(
        self, llm: LLM, config: RLConfig, algorithm: Algorithm, options: Options, reference: Decoder | None,
        sums: dict[str, float],
    ) -> None:  # fmt: skip
        self.llm, self.config, self.algorithm, self.options = llm, config, algorithm, options
        self.reference, self.sums = reference, sums
        self.tokens = 0
        assert reference is not None or not options.kl

    def add_gradients(
        self, part: list[Item], behaviour: Mapping[int, Tensor], first: bool, unmoved: bool = True
    ) -> bool:
        """Those of a minibatch; False where nothing in it has any. behaviour: from `logprobs_now`, if needed."""
        options, config = self.options, self.config
        counted = sum(len(sample.token_ids) for _, sample, _ in part)
        felt = part if options.kl else [item for item in part if item[2] != 0]
        for rows in self._pack(felt):
            logprobs, entropy = self._predict(self.llm.model, rows, len(felt))
            old, advantages = rows.old_logprobs, rows.advantages
            if options.importance_cap:
                known = torch.cat([behaviour[id(s)] for s in rows.samples]) if behaviour else logprobs.detach()
                weight = torch.exp(known - old)
                advantages = advantages * weight.clamp(max=options.importance_cap)
                old = known
            tokens = Tokens(logprobs, old, advantages, rows.mask.nonzero()[:, 0])
            terms = self.algorithm.loss(tokens, options)
            if options.kl:
                assert self.reference is not None
                distance = divergence(tokens, self._look(self.reference, rows), options.kl_unbiased)
                terms = terms + options.kl * distance
            total(terms, tokens, options.mean, counted, len(part), config.max_tokens).backward()
            away = float((logprobs.detach() - rows.old_logprobs).abs().sum())
            if first:
                self.sums["entropy"] += float(entropy.sum())
                self.sums["drift"] += away
                self.sums["tokens"] += len(rows.targets)
                if options.importance_cap:
                    self.sums["capped"] += float((weight > options.importance_cap).sum())
            if unmoved:
                self.sums["mismatch"] += away
                self.sums["unmoved"] += len(rows.targets)
                if options.kl:
                    self.sums["kl"] += float(distance.detach().sum())
            self.tokens += rows.tokens
        return bool(felt)

    def logprobs_now(self, items: list[Item]) -> dict[int, Tensor]:
        """The trainer's log-probabilities of the tokens of each sample, by the sample's id()."""
        found: dict[int, Tensor] = {}
        for rows in self._pack(items):
            parts = self._look(self.llm.model, rows).split(rows.mask.sum(1).tolist())
            found |= {id(sample): part for sample, part in zip(rows.samples, parts, strict=True)}
        return found

    def _pack(self, items: list[Item]) -> Iterator[Rows]:
        for rows in pack(items, self.llm.tokenizer.pad_id, self.config.micro_tokens):
            yield rows.to(self.llm.model.device)

    @torch.no_grad()
    def _look(self, model: Decoder, rows: Rows) -> Tensor:
        self.tokens += rows.tokens // 3  # a forward pass costs a third of training
        return self._predict(model, rows)[0]

    def _predict(self, model: Decoder, rows: Rows, responses: int = 0) -> tuple[Tensor, Tensor]:
        return predict_rows(model, rows, self.llm.forbidden, self.config.temperature, responses)
