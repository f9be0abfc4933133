"""Sampling groups of responses, scoring them, and what an update computes on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hadal.errors import UserError
from hadal.models.balance import Counted
from hadal.models.cache import Continuations, SharedPrefix
from hadal.models.decoder import Decoder
from hadal.rewards import Response, RewardConfig, score_group
from hadal.rollout import Query, Rollout, Sample, SamplingParams, require, sample_all
from hadal.tasks import Problem, Reward, Task
from hadal.train.losses import policy


@dataclass(frozen=True)
class Group:
    """A problem, the prompt it became, its samples and what each earned."""

    task: str
    problem: Problem
    prompt: list[int]
    samples: list[Sample]
    rewards: list[Reward]

    @property
    def texts(self) -> list[str]:
        """The responses in full."""
        return [sample.response for sample in self.samples]

    @property
    def success(self) -> float:
        """The share of right answers; neither partial credit nor shaping of the reward changes it."""
        return sum(r.right for r in self.rewards) / len(self.rewards)


def sample_groups(
    rollout: Rollout,
    tasks: Mapping[str, Task],
    problems: Sequence[tuple[str, Problem]],
    params: SamplingParams,
    config: RewardConfig,
    judge: Rollout | None = None,
) -> list[Group]:
    """params.n scored samples for each (task name, problem), from the weights that are trained. judge: the model
    that rewards ask.

    UserError for a source that does not give what an update is computed from, and for a problem that cannot be asked.
    """
    require(rollout, "RL", ids=True, logprobs=True, weights=True)
    queries = [
        Query([{"role": "user", "content": problem.prompt}], each)
        for (_, problem), each in zip(problems, params.spread(len(problems)), strict=True)
    ]
    limit = params.max_tokens or rollout.context or 0
    groups = []
    for (name, problem), samples in zip(problems, sample_all(rollout, queries), strict=True):
        if samples[0].refused:
            raise UserError(f"{name}: {samples[0].error}")
        responses = [Response(sample.response, sample.token_ids, limit) for sample in samples]
        rewards = score_group(tasks[name], problem, responses, config, judge)
        groups.append(Group(name, problem, samples[0].prompt_ids, samples, rewards))
    return groups


@dataclass(frozen=True)
class Rows:
    """Responses as token rows for a policy update, and the prompts that they continue, each once.

    A row begins with the last token of its prompt, so that every sampled token is predicted from the row itself.
    N counts the sampled tokens, row by row.
    """

    prompts: Tensor  # [P, S] all but the last token of each prompt, aligned at their ends
    start: Tensor  # [P] unused columns at the front of each prompt
    prompt: Tensor  # [B] which prompt a row continues
    inputs: Tensor  # [B, T]
    mask: Tensor  # [B, T], where a sampled token comes next
    targets: Tensor  # [N] the sampled tokens
    old_logprobs: Tensor  # [N]
    advantages: Tensor  # [N]
    samples: list[Sample]  # [B] what the rows were made of

    def to(self, device: torch.device) -> Rows:
        """The same on a device."""
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """Tokens that a pass over the rows computes, padding included."""
        return self.prompts.numel() + self.inputs.numel()


def pack(items: Sequence[tuple[list[int], Sample, float]], pad_id: int, tokens: int) -> list[Rows]:
    """(prompt, sample, advantage) as micro-batches of at most about `tokens` padded response tokens, by length."""
    ordered = sorted(items, key=lambda item: len(item[1].token_ids))
    out, begin = [], 0
    while begin < len(ordered):
        end = begin + 1
        while end < len(ordered):
            if len(ordered[end][1].token_ids) * (end + 1 - begin) > tokens:
                break
            end += 1
        out.append(_rows(ordered[begin:end], pad_id))
        begin = end
    return out


def _rows(items: Sequence[tuple[list[int], Sample, float]], pad_id: int) -> Rows:
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(prompt) for prompt, _, _ in items))}
    prefix = max(len(prompt) for prompt in number) - 1
    prompts = torch.full((len(number), prefix), pad_id)
    start = torch.tensor([prefix + 1 - len(prompt) for prompt in number])
    for known, i in number.items():
        prompts[i, int(start[i]) :] = torch.tensor(known[:-1], dtype=torch.long)
    width = max(len(sample.token_ids) for _, sample, _ in items)
    inputs = torch.full((len(items), width), pad_id)
    mask = torch.zeros(len(items), width, dtype=torch.bool)
    targets: list[int] = []
    old: list[float] = []
    advantages: list[float] = []
    for i, (prompt, sample, advantage) in enumerate(items):
        ids = sample.token_ids
        inputs[i, : len(ids)] = torch.tensor([prompt[-1], *ids[:-1]])
        mask[i, : len(ids)] = True
        targets += ids
        old += sample.logprobs
        advantages += [advantage] * len(ids)
    rows = torch.tensor([number[tuple(prompt)] for prompt, _, _ in items])
    samples = [sample for _, sample, _ in items]
    return Rows(
        prompts, start, rows, inputs, mask, torch.tensor(targets), torch.tensor(old), torch.tensor(advantages), samples
    )


def counted_rows(rows: Rows, responses: int) -> tuple[Counted, Counted]:
    """What of prompts and rows counts in experts' balance losses, of an update of so many responses.

    A response weighs 1 / responses; its prompt, which is read once for all that share it, has of that as large a part
    as it has tokens.
    """
    width = rows.prompts.shape[1]
    prompt_B, response_B = (width - rows.start)[rows.prompt], rows.mask.sum(1)
    share_B = response_B / (prompt_B + response_B) / responses
    share_P = share_B.new_zeros(len(rows.start)).index_add_(0, rows.prompt, 1 / responses - share_B)
    real_PS = torch.arange(width, device=rows.start.device) >= rows.start[:, None]
    prompts, answers = Counted.of(real_PS), Counted.of(rows.mask)
    return replace(prompts, weight_S=share_P), replace(answers, weight_S=share_B)


def hidden_rows(model: Decoder, rows: Rows, responses: int) -> Tensor:
    """Hidden states [N, D] that each sampled token is predicted from."""
    of_prompts, of_rows = counted_rows(rows, responses)
    if rows.prompts.shape[1]:
        prefix = SharedPrefix(rows.start)
        model(rows.prompts, prefix, counted=of_prompts)
        hidden = model(rows.inputs, Continuations(prefix, rows.prompt), counted=of_rows)
    else:  # prompts of a single token, which stands in the rows
        hidden = model(rows.inputs, counted=of_rows)
    return hidden[rows.mask]


def predict_rows(
    model: Decoder, rows: Rows, forbidden: Tensor, temperature: float = 1.0, responses: int = 0
) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of each sampled token, and the entropy [N], of the distribution that it was drawn from.

    `forbidden` ids have no probability. responses: of the whole update; 0: the rows are all of it.
    """
    hidden = hidden_rows(model, rows, responses or len(rows.inputs))
    return policy(model, hidden if temperature == 1 else hidden / temperature, rows.targets, forbidden)
