"""The pre-training corpus: worked thoughts up to each task's gold limit, bare answers everywhere.

Most documents think, since thoughts are what there is to learn; but the first token of a response, which decides
between thinking and answering at once, is weighted as if few did. So the base answers at once by habit, and every
step still teaches it to think.

Batch number s is a function of the seed and s alone, so a resumed run reads on where it stopped without any
state. Documents of a pool of batches are sorted by length, so that rows of a batch need little padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hadal.rng import Rng
from hadal.tasks import Problem, Task
from hadal.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class CorpusConfig:
    """What share of documents think, how often the base is to think by itself, how fast difficulty grows rare."""

    thinking_share: float = 0.8
    habit_share: float = 0.12
    """The share of thinking documents that the first token of a response is weighted to."""
    checking_share: float = 0.1
    gold_decay: float = 0.75
    """A gold thought one step harder is this much rarer."""
    foreign_share: float = 0.0
    """Thoughts that are strewn with words of another script: a base that has read such mixes languages when it thinks,
    as DeepSeek-R1-Zero does."""
    tokens: int = 1536
    """Of a batch."""
    pool: int = 16
    gap_share: float = 0.03
    """How often a position is followed by a gap, so that distances tell nothing and places are found by content."""
    longest_gap: int = 12


@dataclass(frozen=True)
class Part:
    """What of an update a batch is, where the gradients of several are added up."""

    learnt: float = 1.0
    """Its share of the weight of all tokens that are learnt."""
    ahead: float = 1.0
    """The same of those that multi-token prediction learns."""
    sequences: int = 0
    """How many the update has; 0: the batch is all of it."""


@dataclass(frozen=True)
class Batch:
    """ids [B, T], standing at positions [B, T] (None: one after the other); predicting token t from those before
    counts weight [B, T] in the loss, 0 on prompts and pads. documents [B, T] numbers the documents of packed rows."""

    ids: Tensor
    weight: Tensor
    positions: Tensor | None = None
    documents: Tensor | None = None
    part: Part = Part()

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved: dict[str, Any] = {name: t.to(device) for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **moved)

    def ahead(self) -> Tensor:
        """Where [B, T - 2] the token after the next one is learnt, and of the same document."""
        after = self.weight[:, 2:] > 0
        return after if self.documents is None else after & (self.documents[:, 2:] == self.documents[:, :-2])


FOREIGN = (" 嗯", " 好", " 再")


def strewn(thought: str, rng: Rng) -> str:
    """The thought with one to three foreign words between its own."""
    pieces = thought.split(" ")
    for _ in range(rng.between(1, 3)):
        place = rng.between(1, len(pieces) - 1)
        pieces[place] += rng.choice(FOREIGN)
    return " ".join(pieces)


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
    thinks = thinks and task.gold_limit >= levels.start  # else the task has no thoughts at any level
    if thinks:
        levels = range(levels.start, min(levels.stop, task.gold_limit + 1))
    problem: Problem = task.generate(rng.bits(), "train", rare_difficulty(rng, levels, config.gold_decay))
    thought = problem.thought if thinks else None
    if thought is not None and rng.random() < config.checking_share:
        thought = f"{thought} check{thought}"
    if thought and config.foreign_share and rng.random() < config.foreign_share:
        thought = strewn(thought, rng)
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


def pad(rows: Sequence[tuple[list[int], int]], tokenizer: Tokenizer, config: CorpusConfig, rng: Rng) -> Batch:
    """Rows of (ids, prompt length) as one batch.

    Positions have random gaps (in the spirit of randomised positional encodings, arXiv 2305.16843): without them a
    small model learns at which distance a thought of D steps ends, and ends there whatever the question holds.
    """
    thinking = config.habit_share / config.thinking_share
    direct = (1 - config.habit_share) / (1 - config.thinking_share)
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_id)
    weight = torch.zeros(len(rows), width)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weight[i, prompt : len(row)] = 1.0
        weight[i, prompt] = thinking if row[prompt] == tokenizer.think_id else direct
    generator = torch.Generator().manual_seed(rng.bits() >> 1)
    gap = torch.randint(1, config.longest_gap + 1, ids.shape, generator=generator)
    gap *= torch.rand(ids.shape, generator=generator) < config.gap_share
    return Batch(ids, weight, torch.arange(width) + gap.cumsum(1))


def batches(
    tasks: Sequence[Task], tokenizer: Tokenizer, config: CorpusConfig, seed: int, start: int
) -> Iterator[Batch]:
    """Batches number start, start + 1, ... without end."""
    number = start
    while True:
        for batch in _pool(tasks, tokenizer, config, seed, number // config.pool)[number % config.pool :]:
            yield batch
            number += 1


def _pool(
    tasks: Sequence[Task], tokenizer: Tokenizer, config: CorpusConfig, seed: int, pool: int
) -> list[Batch]:
    rng = Rng("corpus", seed, pool)
    rows: list[tuple[list[int], int]] = []
    budget = config.tokens * config.pool
    while budget > 0:
        drawn = [
            document(rng.choice(tasks), rng, rng.random() < config.thinking_share, config) for _ in range(128)
        ]
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
    return [pad(group, tokenizer, config, rng) for group in rng.sample(filled, len(filled))]
