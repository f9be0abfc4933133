"""Optimisers: what their protocol promises; AdamW against torch's own, Muon against what it promises itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import extending
import pytest
import torch
from torch import Tensor, nn

from hadal.errors import UserError
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.recipe.config import read_recipe
from hadal.train import optim
from hadal.train.optim import OptimizerConfig, build_optimizer, kept
from hadal.train.optim.flat import FlatOptimizer, orthogonalise

SMALL = (61, 32, 2, 4)
DENSE = DenseConfig(*SMALL, head_dim=8, intermediate_size=48)
DEEPSEEK = DeepseekConfig(*SMALL, intermediate_size=48, moe_intermediate_size=16, kv_lora_rank=24)


def fresh(config: ModelConfig) -> Decoder:
    model = build(config)
    model.initialise(0)
    return model


def loss(model: Decoder, step: int) -> Tensor:
    ids = torch.randint(61, (4, 12), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model.logits(model(ids))[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("config", [DENSE, DEEPSEEK], ids=["dense", "deepseek"])
def test_adam_equals_torchs_adamw(config: ModelConfig, clip: float) -> None:
    ours, theirs = fresh(config), fresh(config)
    settings = OptimizerConfig(lr=1e-3, muon_lr=0.0, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1, clip=clip)
    optimizer = FlatOptimizer(ours, settings)
    decayed = [p for n, p in theirs.named_parameters() if p.dim() >= 2 and n != "embed.weight"]
    rest = [p for n, p in theirs.named_parameters() if p.dim() < 2 or n == "embed.weight"]
    reference = torch.optim.AdamW(
        [{"params": decayed}, {"params": rest, "weight_decay": 0.0}],
        1e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, foreach=False, fused=False,
    )  # fmt: skip
    for step, scale in enumerate((0.5, 1.0, 1.0, 0.25)):
        loss(ours, step).backward()
        norm = optimizer.step(scale)
        loss(theirs, step).backward()
        total = nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))
        for group in reference.param_groups:
            group["lr"] = 1e-3 * scale
        reference.step()
        reference.zero_grad()
        assert norm == pytest.approx(float(total), rel=1e-4)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_orthogonalised_matrices_keep_their_directions_at_about_equal_strength(shape: tuple[int, int, int]) -> None:
    """Muon's quintic iteration takes every singular value to about 0.7-1.2 and leaves the singular vectors."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = orthogonalise(x)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ out @ vh.mT
    diagonal = inside.diagonal(dim1=1, dim2=2)
    assert (diagonal[s > 0.02 * s.norm(dim=1, keepdim=True)] > 0.5).all() and (diagonal < 1.3).all()
    torch.testing.assert_close(inside - torch.diag_embed(diagonal), torch.zeros_like(inside), atol=1e-3, rtol=0)


def test_stacked_experts_are_orthogonalised_one_by_one() -> None:
    """An update of the stack is that of each expert's matrix alone."""
    model = fresh(DEEPSEEK)
    optimizer = FlatOptimizer(model, OptimizerConfig(muon_lr=0.02, clip=0.0))
    stack = dict(model.named_parameters())["layers.1.mlp.experts.down_proj"]
    before = stack.detach().clone()
    loss(model, 0).backward()
    assert stack.grad is not None
    grad = stack.grad.clone()
    optimizer.step()
    first = 1 - OptimizerConfig().momentum
    ahead = grad * (first + first * OptimizerConfig().momentum)  # Nesterov's look-ahead from zero momentum
    gain = max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
    for e, matrix in enumerate(ahead):
        expected = before[e] - 0.02 * gain * orthogonalise(matrix[None])[0]
        torch.testing.assert_close(stack[e].detach(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_optimiser_ends_in_the_same_bits(muon_lr: float, dtype: torch.dtype) -> None:
    settings = OptimizerConfig(muon_lr=muon_lr)
    model = fresh(DENSE)
    optimizer = FlatOptimizer(model, settings, dtype)
    for step in range(6):
        if step == 3:
            saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
        loss(model, step).backward()
        optimizer.step()
    again = fresh(DENSE)
    other = FlatOptimizer(again, settings, dtype)
    loss(again, 99).backward()  # a gradient from before must not leak into what is loaded
    other.load_state(saved)
    for step in range(3, 6):
        loss(again, step).backward()
        other.step()
    assert torch.equal(optimizer.master, other.master)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_left_out(value: float) -> None:
    model = fresh(DENSE)
    optimizer = FlatOptimizer(model, OptimizerConfig())
    before = optimizer.master.clone()
    loss(model, 0).backward()
    optimizer.grad[7] = value
    assert not optimizer.step() < float("inf")
    assert torch.equal(optimizer.master, before)
    assert optimizer.grad.abs().sum() == 0


def test_weight_decay_reaches_matrices_alone() -> None:
    """Not norms, biases and embeddings, whose size means something else; with a gradient of 0 nothing else moves."""
    model = fresh(replace(DENSE, tie_word_embeddings=False, attention_bias=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # biases begin at 0
    for muon_lr in (0.0, 0.02):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = FlatOptimizer(model, OptimizerConfig(lr=0.1, muon_lr=muon_lr, weight_decay=0.5))
        optimizer.step(scale=0.5)
        kept = {name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)}
        assert kept == {name for name, value in before.items() if value.dim() == 1 or name == "embed.weight"}
        for name in before.keys() - kept:
            rate = muon_lr if muon_lr and name != "head.weight" else 0.1
            expected = before[name] * (1 - 0.5 * rate * 0.5)
            torch.testing.assert_close(dict(model.named_parameters())[name].detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_many_passes_add_up_in_float32(tied: bool) -> None:
    """400 passes in bf16 give the sum of their gradients, of which each alone is far below its last bit."""
    model = fresh(replace(DENSE, tie_word_embeddings=tied))
    optimizer = FlatOptimizer(model, OptimizerConfig(muon_lr=0.0), torch.bfloat16)
    loss(model, 0).backward()
    once = optimizer.grad.float().clone()
    for _ in range(399):
        loss(model, 0).backward()
    torch.testing.assert_close(optimizer.grad.float(), 400 * once, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())  # nothing is held twice
    optimizer.step()
    assert optimizer.grad.abs().sum() == 0


def test_a_model_that_is_handed_over_is_its_optimisers_no_more() -> None:
    model = fresh(DENSE)
    optimizer = FlatOptimizer(model, OptimizerConfig(), torch.bfloat16)
    loss(model, 0).backward()
    optimizer.step()
    optimizer.hand_over()
    loss(model, 1).backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters())
    assert optimizer.grad.abs().sum() == 0


def test_updates_that_are_left_out_are_counted_also_where_a_run_is_carried_on() -> None:
    model = fresh(DENSE)
    optimizer = FlatOptimizer(model, OptimizerConfig())
    for value in (float("nan"), 1.0, float("nan"), float("inf")):
        optimizer.grad[7] = value
        optimizer.step()
    assert (optimizer.left_out, optimizer.in_a_row) == (3, 2)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    other = FlatOptimizer(fresh(DENSE), OptimizerConfig())
    other.load_state(state)
    assert (other.left_out, other.in_a_row) == (3, 2)
    del state["left_out"]  # as states were written before they were counted
    other.load_state(state)
    assert (other.left_out, other.in_a_row) == (0, 0)


# Whatever there is of optimisers, and one file more


@pytest.fixture
def lion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that docs/extending.md shows, beside the others."""
    extending.add_module(optim, "lion", extending.example("An optimiser"), tmp_path, monkeypatch)


ALL = [{"name": name, "muon_lr": rate} for name in optim.names() for rate in (0.0, 0.01)]
ALL += [{"name": "lion", "lr": 1e-3}, {"name": "lion", "lr": 1e-3, "options": {"cautious": True}}]


@pytest.mark.usefixtures("lion")
@pytest.mark.parametrize("numbers", ALL, ids=lambda numbers: "-".join(map(str, numbers.values())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_protocol_promises(numbers: dict[str, Any], dtype: torch.dtype) -> None:
    settings = OptimizerConfig(**numbers)
    model, ids = fresh(DENSE), 0
    first = float(loss(model, ids).detach())
    optimizer = build_optimizer(model, settings, dtype)
    assert optimizer.dtype == dtype and set(optimizer.names) == {name for name, _ in model.named_parameters()}
    generations = [model.generation]
    for _ in range(3):
        loss(model, ids).backward()
        assert 0 < optimizer.step(0.5) < float("inf")
        generations.append(model.generation)
    assert generations == sorted(set(generations)), "who takes a step has changed the weights"

    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    again = fresh(DENSE)
    other = build_optimizer(again, settings, dtype)
    other.load_state(state)
    for each, of in ((optimizer, model), (other, again)):
        for step in range(9):
            loss(of, ids).backward()
            each.step(0.5 if step else 1.0)
    masters, others = optimizer.masters(), other.masters()
    assert all(torch.equal(value, others[name]) for name, value in masters.items()), "it carries on to the same bits"
    assert float(loss(model, ids).detach()) < first - 0.1

    before = {name: value.clone() for name, value in masters.items()}
    (loss(model, ids) * float("nan")).backward()
    assert not optimizer.step() < float("inf") and (optimizer.left_out, optimizer.in_a_row) == (1, 1)
    assert all(torch.equal(value, before[name]) for name, value in optimizer.masters().items())
    assert optimizer.figures == {"left_out": 1} and other.figures == {}

    optimizer.hand_over()
    assert all(p.dtype == torch.float32 and torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.usefixtures("lion")
@pytest.mark.parametrize("numbers", ALL, ids=lambda numbers: "-".join(map(str, numbers.values())))
def test_the_memory_that_is_told_is_what_is_kept(numbers: dict[str, Any]) -> None:
    settings = OptimizerConfig(**numbers)
    model = fresh(DENSE)
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    matrices = sum(size for name, size in sizes.items() if not name.startswith(("embed", "head")))
    others = sum(p.numel() for p in model.parameters()) - matrices
    state = build_optimizer(model, settings).state()
    held = sum(tensor.numel() for name, tensor in state.items() if name not in ("master", "updates", "left_out"))
    assert held == kept(settings).matrices * matrices + kept(settings).others * others


@pytest.mark.usefixtures("lion")
@pytest.mark.parametrize("cautious", [False, True])
def test_one_more_file_is_one_more_optimiser(cautious: bool) -> None:
    """Lion, value by value, as its paper has it."""
    table = {"name": "lion", "lr": 0.01, "beta2": 0.99, "weight_decay": 0.1, "clip": 0.0}
    table["options"] = {"cautious": cautious}
    settings = read_recipe({"tasks": ["letters"], "grpo": {"optimizer": table}}).stage("grpo").config.optimizer
    model = fresh(DENSE)
    optimizer = build_optimizer(model, settings)
    expected = {name: value.clone() for name, value in optimizer.masters().items()}
    momentum = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step, scale in enumerate((0.5, 1.0, 0.25)):
        loss(model, step).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step(scale)
        for name, grad in gradients.items():
            change = (0.9 * momentum[name] + 0.1 * grad).sign()
            if cautious:
                change = torch.where(change.sign() == grad.sign(), change, 0.0)
            decay = 0.1 if grad.dim() > 1 and name != "embed.weight" else 0.0
            expected[name] = expected[name] * (1 - 0.01 * scale * decay) - 0.01 * scale * change
            momentum[name] = 0.99 * momentum[name] + 0.01 * grad
        for name, value in optimizer.masters().items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"name": "flatt"}, ["no optimiser 'flatt'", "Did you mean flat?"]),
        ({"options": {"split": 1}}, ["options.split"]),
        ({"options": 3}, ["options is 3", "table"]),
    ],
)
def test_what_an_optimiser_does_not_have_is_told(table: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe({"tasks": ["letters"], "grpo": {"optimizer": table}})
    assert all(words in f"{caught.value.cause} {caught.value.remedy}" for words in told), caught.value
