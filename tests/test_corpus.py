"""The pre-training corpus and its loss: what is weighed how, and that a batch depends on its number alone."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from hadal.models.build import build
from hadal.models.dense.config import DenseConfig
from hadal.stages.pretrain import Config as PretrainConfig
from hadal.tasks import BUILT_IN, Rng
from hadal.tasks.words import build_tokenizer
from hadal.train.corpus import Batch, CorpusConfig, batches, document
from hadal.train.losses import pretraining_loss

TASKS = [BUILT_IN[name]() for name in ("letters", "clock")]
TOKENIZER = build_tokenizer(TASKS)


def test_the_first_token_is_weighed_as_if_few_documents_thought() -> None:
    config = CorpusConfig(thinking_share=0.75, habit_share=0.1)
    thinking = total = 0.0
    for batch in islice(batches(TASKS, TOKENIZER, config, 0, 0), 48):
        for ids, weight in zip(batch.ids, batch.weight, strict=True):
            first = int((weight > 0).nonzero()[0])
            assert int(ids[first - 1]) == TOKENIZER.assistant_id
            last = int((weight > 0).nonzero()[-1])
            assert int(ids[last]) == TOKENIZER.eos_id
            assert (weight[first + 1 : last + 1] == 1).all()
            assert not weight[:first].any() and not weight[last + 1 :].any()
            total += float(weight[first])
            thinking += float(weight[first]) * (int(ids[first]) == TOKENIZER.think_id)
    assert thinking / total == pytest.approx(0.1, abs=0.01)


def test_a_batch_is_a_function_of_its_number() -> None:
    config = CorpusConfig(tokens=400, pool=4)
    straight = list(islice(batches(TASKS, TOKENIZER, config, 3, 0), 11))
    resumed = list(islice(batches(TASKS, TOKENIZER, config, 3, 6), 5))
    for a, b in zip(straight[6:], resumed, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.weight, b.weight)
        assert a.positions is not None and b.positions is not None and torch.equal(a.positions, b.positions)


def test_positions_rise_and_have_gaps_now_and_then() -> None:
    config = CorpusConfig(gap_share=0.1, longest_gap=5)
    steps = [b.positions.diff(dim=1).flatten() for b in islice(batches(TASKS, TOKENIZER, config, 0, 0), 16)]  # type: ignore[union-attr]
    step = torch.cat(steps)
    assert int(step.min()) == 1 and int(step.max()) == 6
    assert float((step > 1).double().mean()) == pytest.approx(0.1, abs=0.01)


def test_no_thought_above_the_gold_limit_and_few_near_it() -> None:
    config = CorpusConfig()
    task = BUILT_IN["sums"]()
    lengths = []
    for i in range(2000):
        question, thought, _ = document(task, Rng("gold", i), True, config)
        terms = 1 + sum(question.count(sign) for sign in (" + ", " - "))
        assert thought is not None and terms <= task.gold_limit
        lengths.append(terms)
    assert 0 < lengths.count(task.gold_limit) < lengths.count(2) / 3


def test_the_loss_is_the_weighted_mean_over_positions() -> None:
    model = build(DenseConfig(40, 32, 1, 2, 1, 16, 64)).double()
    model.initialise(0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40, (3, 6), generator=generator)
    weight = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, 0.0]).repeat(3, 1)
    weight[1, 2] = 4.0
    positions = torch.arange(6) + torch.randint(0, 2, (3, 6), generator=generator).cumsum(1)
    loss, shown = pretraining_loss(model, Batch(ids, weight, positions), torch.tensor([0]))
    total = 0.0
    for b in range(3):
        for t in range(1, 6):
            hidden = model(ids[b : b + 1, :t], positions_BT=positions[b : b + 1, :t])[0, -1]
            logits = model.logits(hidden)
            logits[0] = float("-inf")
            target = int(ids[b, t])
            total -= float(weight[b, t]) * float(torch.log_softmax(logits, 0)[target].detach())
    assert float(loss.detach()) == pytest.approx(total / float(weight[:, 1:].sum()), rel=1e-9)
    assert float(shown) == float(loss.detach())


def test_the_rate_falls_to_zero_and_begins_again_at_half_in_a_further_round() -> None:
    config = PretrainConfig(steps=100, decay_share=0.5, extra_steps=10, warmup=4)
    rates = [config.rate(step) for step in range(120)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[50] == 1.0 and rates[75] == 0.5 and rates[99] == pytest.approx(0.02)
    assert rates[100] == rates[110] == 0.5 and rates[109] == pytest.approx(0.05)
