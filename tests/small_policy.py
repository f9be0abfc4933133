"""A random policy over a handful of tokens, which ends its answers: RL on it learns in seconds. Not a test itself."""

from __future__ import annotations

import torch

from hadal.engine import LLM
from hadal.models.build import build
from hadal.models.dense.config import DenseConfig
from hadal.tasks import BUILT_IN, Task
from hadal.tasks.words import build_tokenizer


def small_policy(seed: int = 0, width: int = 32) -> LLM:
    """Says a, b, c, d and e, all as likely, and ends."""
    tokenizer = build_tokenizer([BUILT_IN["letters"]()])
    model = build(DenseConfig(tokenizer.size, width, 1, 2, 1, width // 2, 2 * width))
    model.initialise(seed)
    llm = LLM(model, tokenizer)
    words = [tokenizer.encode(f" {letter}") for letter in "abcde"]
    assert all(len(ids) == 1 for ids in words)
    allow(llm, [*(ids[0] for ids in words), tokenizer.eos_id])
    return llm


def allow(llm: LLM, ids: list[int]) -> None:
    """Give no other token any probability, in sampling and in training."""
    others = [i for i in range(llm.model.config.vocab_size) if i not in set(ids)]
    llm.engine.forbidden = llm.engine.sampler.forbidden = torch.tensor(others)


def allowed(llm: LLM) -> list[int]:
    """The tokens that it may say."""
    return sorted(set(range(llm.model.config.vocab_size)) - set(llm.forbidden.tolist()))


def says(letters: str) -> Task:
    """A task in which every answer that holds one of the letters is right."""
    task = BUILT_IN["letters"]()
    task.judge = lambda problem, text: any(letter in text for letter in letters)  # type: ignore[method-assign]
    return task
