"""A whole update of RL without the stage around it. Not a test itself."""

from __future__ import annotations

from collections.abc import Mapping

from hadal.engine import LLM
from hadal.models.decoder import Decoder
from hadal.tasks import Task
from hadal.train.curriculum import Curriculum
from hadal.train.optim import Optimizer
from hadal.train.rl import RLConfig, UpdateResult, draw_batch, train_on


def rl_update(
    llm: LLM, optimizer: Optimizer, tasks: Mapping[str, Task], curriculum: Curriculum, config: RLConfig,
    seed: int, step: int, scale: float = 1.0, reference: Decoder | None = None,
) -> UpdateResult:  # fmt: skip
    """Sample a batch with the live weights, score it, and take the algorithm's step on it."""
    batch = draw_batch(llm, tasks, curriculum, config, seed, step)
    return train_on(llm, optimizer, batch, config, seed, step, scale, reference)
