"""Sampling beside training: how old a batch is, that nothing hangs on who is faster, and faults of either side."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import replace

import pytest
import torch

from hadal.engine import LLM
from hadal.errors import UserError
from hadal.models.build import build
from hadal.models.decoder import Decoder
from hadal.models.dense.config import DenseConfig
from hadal.tasks import BUILT_IN
from hadal.tasks.words import build_tokenizer
from hadal.train.curriculum import Curriculum
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.overlap import Ahead
from hadal.train.rl import Batch, RLConfig, draw_batch, sampler_mismatch, train_on

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = RLConfig(prompts=4, samples=8, max_tokens=12, options={"count_all": True, "kl": 0.01})
UPDATES = 4


def copied(model: Decoder) -> Decoder:
    return copy.deepcopy(model).eval().requires_grad_(False)


class Grown:
    def __init__(self) -> None:
        task = BUILT_IN["letters"]()
        task.judge = lambda problem, answer: "e" in answer  # so that random weights are right at times
        self.tasks = {"letters": task}
        self.tokenizer = build_tokenizer(list(self.tasks.values()))
        model = build(DenseConfig(self.tokenizer.size, 32, 2, 2, 1, 16, 64))
        model.initialise(0)
        self.optimizer = FlatOptimizer(model, OptimizerConfig(lr=3e-3, muon_lr=0.0))
        self.llm, self.curriculum = LLM(model, self.tokenizer), Curriculum(self.tasks)
        self.reference = copied(model)
        self.sampler = LLM(copied(model), self.tokenizer)

    def draw(self, llm: LLM, step: int) -> Batch:
        batch = draw_batch(llm, self.tasks, self.curriculum, CONFIG, 0, step)
        return replace(batch, mismatch=sampler_mismatch(llm, batch, CONFIG))

    def train(self, batch: Batch, step: int) -> dict[str, float]:
        return train_on(self.llm, self.optimizer, batch, CONFIG, 0, step, reference=self.reference).metrics


def drawn(batch: Batch) -> list[list[int]]:
    return [sample.token_ids for group in batch.groups for sample in group.samples]


def test_each_batch_is_drawn_with_the_weights_before_the_last_update() -> None:
    slow = Grown()  # one after the other, with copies that are kept of the weights
    older, expected = [copied(slow.llm.model)], []
    for step in range(UPDATES):
        batch = replace(slow.draw(LLM(older[max(0, step - 1)], slow.tokenizer), step), stale=min(step, 1))
        expected.append((drawn(batch), slow.train(batch, step)))
        older.append(copied(slow.llm.model))

    for late in (0.0, 0.3):  # the sampling thread before the training one, and behind it
        grown = Grown()

        def draw(llm: LLM, step: int, grown: Grown = grown, late: float = late) -> Batch:
            time.sleep(late)
            return grown.draw(llm, step)

        ahead, found = Ahead(grown.sampler, draw, threads=1), []
        for step in range(UPDATES):
            batch = ahead.take(step)
            assert batch.stale == min(step, 1)
            with ahead.beside(grown.llm.model, step + 1):
                metrics = grown.train(batch, step)
            found.append((drawn(batch), metrics))
        assert found == expected
        assert torch.equal(grown.optimizer.master, slow.optimizer.master)
    first, second = expected[0][1], expected[1][1]
    assert second["drift"] > 1e-4 and "drift" not in first  # the lag is there to be seen, and is no mismatch
    assert 0 < first["mismatch"] < 1e-5 and 0 < second["mismatch"] < 1e-5


def test_threads_are_shared_between_the_two() -> None:
    grown, seen = Grown(), []

    def draw(llm: LLM, step: int) -> Batch:
        seen.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return Batch([], torch.zeros(0), 0.0)

    torch.set_num_threads(3)
    ahead = Ahead(grown.sampler, draw, torch.get_num_threads())
    ahead.take(0)
    with ahead.beside(grown.llm.model, 1):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 3
    assert seen == [(True, 1), (False, 1)]  # the same number for the first batch, whose bits may depend on it


def test_a_fault_of_sampling_stops_the_stage() -> None:
    def draw(llm: LLM, step: int) -> Batch:
        raise UserError("The scorer is gone.")

    grown = Grown()
    ahead = Ahead(grown.sampler, draw, threads=1)
    with pytest.raises(UserError, match="scorer is gone"), ahead.beside(grown.llm.model, 1):
        pass


def test_a_stop_does_not_wait_for_samples() -> None:
    going = threading.Event()

    def draw(llm: LLM, step: int) -> Batch:
        going.wait(30)
        return Batch([], torch.zeros(0), 0.0)

    grown = Grown()
    ahead, began = Ahead(grown.sampler, draw, threads=1), time.monotonic()
    with pytest.raises(KeyboardInterrupt), ahead.beside(grown.llm.model, 1):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10
    going.set()
