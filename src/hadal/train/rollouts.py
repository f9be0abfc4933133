"""Sampling groups of responses and scoring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hadal.engine import LLM, Sample, SamplingParams
from hadal.tasks import Problem, Reward, Task
from hadal.text.tokenizer import THINK


@dataclass(frozen=True)
class Group:
    """A problem, the prompt it became, its samples and what each earned."""

    task: str
    problem: Problem
    prompt: list[int]
    samples: list[Sample]
    rewards: list[Reward]

    @property
    def success(self) -> float:
        """Mean reward of the group."""
        return sum(r.total for r in self.rewards) / len(self.rewards)


def sample_groups(
    llm: LLM,
    tasks: Mapping[str, Task],
    problems: Sequence[tuple[str, Problem]],
    params: SamplingParams,
    n: int,
) -> list[Group]:
    """n scored samples for each (task name, problem)."""
    prompts = [llm.tokenizer.chat([{"role": "user", "content": p.prompt}], params.thinking) for _, p in problems]
    opening = THINK if params.thinking else ""
    groups = []
    for (name, problem), output in zip(problems, llm.generate(prompts, params, n), strict=True):
        rewards = [tasks[name].score(problem, opening + s.text) for s in output.outputs]
        groups.append(Group(name, problem, output.prompt_token_ids, output.outputs, rewards))
    return groups


@dataclass(frozen=True)
class Rows:
    """Token rows for a policy update, padded at their ends. N counts the masked positions, row by row."""

    ids: Tensor  # [B, T]
    mask: Tensor  # [B, T], the sampled tokens
    old_logprobs: Tensor  # [N]
    advantages: Tensor  # [N]


def pack(items: Sequence[tuple[list[int], Sample, float]], pad_id: int, tokens: int) -> list[Rows]:
    """(prompt, sample, advantage) as micro-batches of at most about `tokens` padded tokens, by length."""
    ordered = sorted(items, key=lambda item: len(item[0]) + len(item[1].token_ids))
    out, begin = [], 0
    while begin < len(ordered):
        end = begin + 1
        while end < len(ordered):
            width = len(ordered[end][0]) + len(ordered[end][1].token_ids)
            if width * (end + 1 - begin) > tokens:
                break
            end += 1
        out.append(_rows(ordered[begin:end], pad_id))
        begin = end
    return out


def _rows(items: Sequence[tuple[list[int], Sample, float]], pad_id: int) -> Rows:
    width = max(len(prompt) + len(sample.token_ids) for prompt, sample, _ in items)
    ids = torch.full((len(items), width), pad_id)
    mask = torch.zeros(len(items), width, dtype=torch.bool)
    old: list[float] = []
    advantages: list[float] = []
    for i, (prompt, sample, advantage) in enumerate(items):
        row = prompt + sample.token_ids
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, len(prompt) : len(row)] = True
        old += sample.logprobs
        advantages += [advantage] * len(sample.token_ids)
    return Rows(ids, mask, torch.tensor(old), torch.tensor(advantages))
