"""The divergence from a teacher and its gradient, against a slow loop over single conversations and tokens."""

from __future__ import annotations

import math

import pytest
import torch

from hadal.models.build import build
from hadal.models.dense.config import DenseConfig
from hadal.models.dense.network import Dense
from hadal.train import distillation
from hadal.train.conversations import Conversation, packed
from hadal.train.distillation import distillation_loss

FORBIDDEN = torch.tensor([3, 11])
TALKS = [
    Conversation([1, 5, 7, 9, 2], [(2, 5)]),
    Conversation([1, 6, 4, 8, 10, 12, 2], [(3, 5), (6, 7)]),
    Conversation([1, 2], [(1, 2)]),
]


def model(seed: int) -> Dense:
    made = build(DenseConfig(17, 16, 2, 4, 2, head_dim=4, intermediate_size=32)).double()
    made.initialise(seed)
    with torch.no_grad():
        for parameter in made.parameters():  # far from uniform, so that the two differ
            parameter.mul_(3.0)
    assert isinstance(made, Dense)
    return made


def slowly(student: Dense, teacher: Dense, reverse: bool) -> torch.Tensor:
    """The mean over learnt tokens of sum_v first(v) (log first(v) - log second(v)), one number after the other."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for talk in TALKS:
        ids = torch.tensor([talk.ids])
        rows = {"student": student.logits(student(ids))[0]}
        with torch.no_grad():
            rows["teacher"] = teacher.logits(teacher(ids))[0]
        for begin, end in talk.spans:
            for position in range(begin, end):
                logs = {}
                for name, row in rows.items():
                    allowed = [v for v in range(17) if v not in FORBIDDEN.tolist()]
                    norm = sum(torch.exp(row[position - 1, v]) for v in allowed)
                    logs[name] = {v: row[position - 1, v] - torch.log(norm) for v in allowed}
                first, second = ("student", "teacher") if reverse else ("teacher", "student")
                for v in logs[first]:
                    total = total + torch.exp(logs[first][v]) * (logs[first][v] - logs[second][v])
                count += 1
    return total / count


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk", [1 << 25, 40])
def test_value_and_gradient_are_those_of_a_slow_loop(
    reverse: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", chunk)  # 40 logits: two tokens at a time
    student, teacher = model(1), model(2)
    expected = slowly(student, teacher, reverse)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    (batch,) = packed(TALKS, 64, 0)
    loss, told = distillation_loss(student, teacher, batch, FORBIDDEN, reverse)
    loss.backward()
    assert expected.item() > 0.05 and math.isclose(loss.item(), expected.item(), abs_tol=1e-9)
    assert told.item() == loss.item()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and torch.allclose(parameter.grad, gradients[name], atol=1e-9), name
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    student, teacher = model(1), model(1)
    (batch,) = packed(TALKS, 64, 0)
    for reverse in (False, True):
        loss, _ = distillation_loss(student, teacher, batch, FORBIDDEN, reverse)
        loss.backward()
        assert abs(loss.item()) < 1e-12
        assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-12
