"""Chunked logits and checkpointed layers change what is kept in memory, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.deepseek.router import routers
from hadal.models.dense.config import DenseConfig
from hadal.train import losses
from hadal.train.corpus import Batch
from hadal.train.losses import head_log_probabilities, pretraining_loss

MODELS: dict[str, ModelConfig] = {
    "dense": DenseConfig(96, 32, 3, intermediate_size=64, head_dim=8, max_position_embeddings=64),
    "deepseek": DeepseekConfig(
        96, 32, 3, intermediate_size=64, moe_intermediate_size=16, kv_lora_rank=16, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=8, max_position_embeddings=64, num_nextn_predict_layers=1, aux_loss_alpha=0.01,
    ),
}  # fmt: skip
FORBIDDEN = torch.tensor([3, 90, 91])


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 90, (3, 20), generator=generator)
    return Batch(ids, (torch.rand(3, 20, generator=generator) < 0.6).float())


@pytest.mark.parametrize("rows", [1, 3, 7, 50])
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_equal_the_plain_form_and_its_gradients(rows: int, frozen: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(50, 16, dtype=torch.float64, generator=generator).requires_grad_(not frozen)
    targets = torch.randint(4, 50, (23,), generator=generator)
    upstream = torch.randn(23, dtype=torch.float64, generator=generator)
    forbidden = torch.tensor([0, 3])
    inputs = [hidden] if frozen else [hidden, weight]
    logits = (hidden @ weight.T).index_fill(1, forbidden, float("-inf"))
    expected = -F.cross_entropy(logits, targets, reduction="none")
    found, entropies = head_log_probabilities(hidden, weight, targets, forbidden, rows, with_entropy=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    probabilities = torch.softmax(logits.detach(), -1)
    literal = [-sum(float(p) * math.log(p) for p in row if p > 0) for row in probabilities]
    torch.testing.assert_close(entropies, torch.tensor(literal, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((found * upstream).sum(), inputs)
    theirs = torch.autograd.grad((expected * upstream).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_all_logits_never_exist_at_once() -> None:
    """The largest tensor that the pass keeps or makes has the chunk's rows, by a look at every operation's result."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest[0] = max(largest[0], tensor.numel())
            return out

    hidden, weight = torch.randn(512, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    targets = torch.randint(1000, (512,))
    with Watch():
        head_log_probabilities(hidden, weight, targets, torch.tensor([0]), rows=16)[0].sum().backward()
    assert largest[0] == 16 * 1000
    with Watch():
        F.cross_entropy(F.linear(hidden, weight), targets).backward()
    assert largest[0] == 512 * 1000


@pytest.mark.parametrize("chunk", [5 * 96, 1000 * 96])
@pytest.mark.parametrize("name", MODELS)
def test_many_logits_take_a_way_of_their_own(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(MODELS[name])
    model.initialise(0)
    pretraining_loss(model, batch(), FORBIDDEN, 0.3)[0].backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(losses, "MANY_LOGITS", 0)
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(losses, "log_probabilities", None)  # the other way
    pretraining_loss(model, batch(), FORBIDDEN, 0.3)[0].backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[n], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_checkpointed_layers_give_the_same_bits_and_count_loads_once(name: str) -> None:
    model = build(MODELS[name])
    model.initialise(0)

    def run() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        model.zero_grad()
        for router in routers(model):
            router.load.zero_()
        pretraining_loss(model, batch(), FORBIDDEN, 0.3)[0].backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return grads, [router.load.clone() for router in routers(model)]

    grads, loads = run()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        run()
        plain = sum(saved)
        saved.clear()
        model.checkpoint_activations = True
        again, loads_again = run()
    assert sum(saved) < plain
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(loads, loads_again, strict=True))
    assert name == "dense" or all(int(load.sum()) > 0 for load in loads)
