"""The pre-training corpus: worked thoughts up to each task's gold limit, bare answers everywhere.

Batch number s is a function of the seed and s alone, so a resumed run reads on where it stopped without any
state. Documents of a pool of batches are sorted by length, so that rows of a batch need little padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hadal.tasks import Problem, Rng, Task
from hadal.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class CorpusConfig:
    """What share of documents think, early and late; how fast difficulty grows rare; tokens in a batch."""

    thinking_share: float = 0.6
    late_thinking_share: float = 0.15
    checking_share: float = 0.1
    gold_decay: float = 0.75
    """A gold thought one step harder is this much rarer."""
    tokens: int = 1536
    pool: int = 16


@dataclass(frozen=True)
class Batch:
    """ids [B, T]; loss counts where mask [B, T] is set: position t is then predicted from those before."""

    ids: Tensor
    mask: Tensor


def rare_difficulty(rng: Rng, levels: range, decay: float) -> int:
    """A difficulty from `levels`, each step up `decay` times as likely as the one below."""
    weights = [decay**i for i in range(len(levels))]
    point = rng.random() * sum(weights)
    for level, weight in zip(levels, weights, strict=True):
        point -= weight
        if point < 0:
            return level
    return levels[-1]


def document(task: Task, rng: Rng, thinks: bool, config: CorpusConfig) -> tuple[str, str | None, str]:
    """(question, thought or None, answer) of a training problem."""
    levels = task.difficulties
    if thinks:
        levels = range(levels.start, min(levels.stop, task.gold_limit + 1))
    problem: Problem = task.generate(rng.bits(), "train", rare_difficulty(rng, levels, config.gold_decay))
    thought = problem.thought if thinks else None
    if thought is not None and rng.random() < config.checking_share:
        thought = f"{thought} check{thought}"
    return problem.prompt, thought, f" {problem.answer}"


def encode_documents(
    tokenizer: Tokenizer, documents: Sequence[tuple[str, str | None, str]]
) -> list[tuple[list[int], int]]:
    """(ids, length of the prompt) of each document in the chat form, end token included."""
    flat = tokenizer.encode_batch([text for d in documents for text in (d[0], d[1] or "", d[2])])
    out = []
    for i, (_, thought, _) in enumerate(documents):
        question, thinking, answer = flat[3 * i : 3 * i + 3]
        prompt = [tokenizer.bos_id, tokenizer.user_id, *question, tokenizer.assistant_id]
        response = [*answer, tokenizer.eos_id]
        if thought is not None:
            response = [tokenizer.think_id, *thinking, tokenizer.end_think_id, *response]
        out.append((prompt + response, len(prompt)))
    return out


def pad(rows: Sequence[tuple[list[int], int]], pad_id: int) -> Batch:
    """Rows of (ids, prompt length) as one batch; loss on what follows the prompt."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, prompt : len(row)] = True
    return Batch(ids, mask)


def batches(
    tasks: Sequence[Task], tokenizer: Tokenizer, config: CorpusConfig, seed: int, start: int, late_from: int
) -> Iterator[Batch]:
    """Batches number start, start + 1, ...; from number `late_from` on most documents answer at once."""
    number = start
    while True:
        pool = number // config.pool
        for batch in _pool(tasks, tokenizer, config, seed, pool, late_from)[number % config.pool :]:
            yield batch
            number += 1


def _pool(
    tasks: Sequence[Task], tokenizer: Tokenizer, config: CorpusConfig, seed: int, pool: int, late_from: int
) -> list[Batch]:
    rng = Rng("corpus", seed, pool)
    late = pool * config.pool >= late_from
    share = config.late_thinking_share if late else config.thinking_share
    rows: list[tuple[list[int], int]] = []
    budget = config.tokens * config.pool
    while budget > 0:
        drawn = [document(rng.choice(tasks), rng, rng.random() < share, config) for _ in range(128)]
        fresh = encode_documents(tokenizer, drawn)
        rows += fresh
        budget -= sum(len(ids) for ids, _ in fresh)
    rows.sort(key=lambda row: len(row[0]))
    # Cut the sorted rows into `pool` batches of about equal tokens, in random order.
    share_tokens = sum(len(ids) for ids, _ in rows) / config.pool
    groups: list[list[tuple[list[int], int]]] = [[] for _ in range(config.pool)]
    seen = 0.0
    for row in rows:
        groups[min(int(seen / share_tokens), config.pool - 1)].append(row)
        seen += len(row[0])
    filled = [group for group in groups if group]
    while len(filled) < config.pool:  # a single row longer than a batch can leave one empty
        filled.append(filled[-1])
    return [pad(group, tokenizer.pad_id) for group in rng.sample(filled, len(filled))]
