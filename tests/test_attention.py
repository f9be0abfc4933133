"""The forms of attention against a loop over queries, and long passes against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hadal.checkpoints.save import save_model
from hadal.cost import memory
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig, MistralConfig
from hadal.models.gemma3.config import Gemma3Config
from hadal.ops.attention import (
    BLOCK,
    LONG,
    blockwise_attend,
    fused_attend,
    plain_attend,
    single_attend,
)
from hadal.ops.mask import Mask

T = LONG + BLOCK // 2  # past the length at which `attend` changes its form, and no multiple of its blocks
CASES = {
    "grouped queries": (T, T, 4, 2, 8, 8, False),
    "narrower values": (T, T, 3, 3, 12, 6, False),
    "columns before": (70, 105, 4, 1, 8, 8, True),
    "padded fronts": (T, T, 2, 2, 8, 4, True),
    "one block": (5, 9, 2, 1, 4, 4, True),
    "one query": (1, 9, 4, 2, 8, 6, True),
    "one column": (1, 1, 4, 2, 8, 6, False),
}


def literal(q: Tensor, k: Tensor, v: Tensor, columns: Callable[[int, int], list[int]], scale: float) -> Tensor:
    """One query after the other, over the columns that it sees: those of a row and the column that it stands at."""
    B, tokens, H, _ = q.shape
    J, S = k.shape[1:3]
    rows = []
    for b in range(B):
        for t in range(tokens):
            seen = columns(b, S - tokens + t)
            for h in range(H):
                j = h * J // H
                rows.append(torch.softmax(scale * (k[b, j, seen] @ q[b, t, h]), dim=0) @ v[b, j, seen])
    return torch.stack(rows).view(B, tokens, -1)


@pytest.mark.parametrize("case", CASES)
def test_every_form_of_attention_equals_a_loop_over_queries(case: str) -> None:
    tokens, S, H, J, K, V, ragged = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    q, k, v = normal(2, tokens, H, K), normal(2, J, S, K), normal(2, J, S, V)
    starts = [3, S - tokens + 2] if ragged else [0, 0]
    mask = Mask(tokens, S, start=torch.tensor(starts) if ragged else None)
    upstream = torch.randn(2, tokens, H * V, generator=generator, dtype=torch.float64)
    reference = literal(q, k, v, lambda b, here: list(range(min(starts[b], here), here + 1)), 0.3)
    wanted = [reference, *torch.autograd.grad(reference, (q, k, v), upstream)]
    forms: list[Callable[..., Tensor]] = [plain_attend, blockwise_attend, fused_attend]
    forms += [single_attend] if tokens == 1 else []
    for form in forms:
        out = form(q, k, v, mask, 0.3)
        for mine, right in zip([out, *torch.autograd.grad(out, (q, k, v), upstream)], wanted, strict=True):
            torch.testing.assert_close(mine, right, atol=1e-10, rtol=0)


LENGTHS = {"whole": 1 << 22, "built block by block": 0}


@pytest.mark.parametrize("whole", LENGTHS)
@pytest.mark.parametrize("kind", ["window", "window in chunks", "window of one", "documents", "documents and window",
                                  "index", "window of ragged rows", "window behind padding"])  # fmt: skip
def test_described_masks_hide_what_a_loop_leaves_out(
    kind: str, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hadal.ops.mask.WHOLE", LENGTHS[whole])
    monkeypatch.setattr("hadal.ops.attention.FUSED", LENGTHS[whole])
    generator = torch.Generator().manual_seed(0)
    tokens, S = (T, T + 150) if kind in ("window in chunks", "window of ragged rows") else (T, T)
    window = {"window of one": 1, "documents and window": 9}.get(kind, 30 if "window" in kind else 0)
    q, k, v = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, tokens, 4, 6), (2, 2, S, 6), (2, 2, S, 5))
    )
    mask, lengths, starts = Mask(tokens, S), [S - tokens] * 2, [0, 0]
    documents = torch.zeros(2, tokens, dtype=torch.long)
    index = torch.stack([torch.randint(0, here + 1, (2, 7), generator=generator) for here in range(tokens)], dim=1)
    if "documents" in kind:
        documents = (torch.arange(tokens) // torch.tensor([[50], [77]])).long()
        mask = Mask(tokens, S, documents=documents)
    elif kind == "index":
        mask = mask.choosing(index)
    elif kind == "window of ragged rows":
        lengths = [100, 150]
        mask = Mask(tokens, S, at=torch.tensor(lengths)[:, None] + torch.arange(tokens))
    elif kind == "window behind padding":
        starts = [0, 40]
        mask = Mask(tokens, S, start=torch.tensor(starts))
    mask = mask.within(window)

    def columns(b: int, last: int) -> list[int]:
        t = last - (S - tokens)
        here = lengths[b] + t
        seen = [s for s in range(starts[b], here + 1) if not window or s > here - window] or [here]
        if "documents" in kind:
            seen = [s for s in seen if documents[b, s] == documents[b, t]]
        return [s for s in seen if s in index[b, t].tolist()] if kind == "index" else seen

    upstream = torch.randn(2, tokens, 4 * 5, generator=generator, dtype=torch.float64)
    reference = literal(q, k, v, columns, 0.3)
    wanted = [reference, *torch.autograd.grad(reference, (q, k, v), upstream)]
    for form in (plain_attend, blockwise_attend, fused_attend):
        out = form(q, k, v, mask, 0.3)
        for mine, right in zip([out, *torch.autograd.grad(out, (q, k, v), upstream)], wanted, strict=True):
            torch.testing.assert_close(mine, right, atol=1e-10, rtol=0)


def built_before(kind: str, tokens: int, before: int, x: Tensor) -> Tensor:
    """The additive masks as they were built whole, before they were described."""
    end = before + tokens
    column, start = torch.arange(end), torch.tensor([0, 2, before + 1])
    if kind == "a pass on its own":
        return torch.full((tokens, tokens), float("-inf"), dtype=x.dtype).triu_(1)
    if kind == "documents":
        bias = torch.full((tokens, tokens), float("-inf"), dtype=x.dtype).triu_(1)
        numbers = torch.arange(tokens) // torch.tensor([[3], [5]])
        return bias.masked_fill(numbers[:, :, None] != numbers[:, None, :], float("-inf"))
    if kind == "lanes":
        hidden = column > (start[:, None] + torch.arange(tokens))[:, :, None]
        return torch.zeros(hidden.shape, dtype=x.dtype).masked_fill_(hidden, -torch.inf)
    query = column[before:, None]
    seen = column <= query
    if kind == "padded":
        seen = seen & (column >= start[:, None, None])
        seen |= column == query
    return torch.zeros(seen.shape, dtype=x.dtype).masked_fill_(~seen, float("-inf"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "before"), [(1, 0), (1, 6), (9, 0), (9, 4)])
def test_described_masks_are_those_that_were_built(tokens: int, before: int, dtype: torch.dtype) -> None:
    x, start = torch.zeros(1, dtype=dtype), torch.tensor([0, 2, before + 1])
    cases = {
        "a pass on its own": Mask(tokens, tokens),
        "documents": Mask(tokens, tokens, documents=torch.arange(tokens) // torch.tensor([[3], [5]])),
        "lanes": Mask(tokens, before + tokens, at=start[:, None] + torch.arange(tokens)),
        "columns before": Mask(tokens, before + tokens),
        "padded": Mask(tokens, before + tokens, start=start),
    }
    for kind, mask in cases.items():
        bias = mask.bias(x)
        wanted = built_before(kind, tokens, before, x)
        assert bias.dtype == dtype and bias.shape == wanted.shape and torch.equal(bias, wanted), kind
        part = mask.bias(x, tokens // 2, tokens, 1, None)
        assert torch.equal(part, wanted[..., tokens // 2 :, 1:])


def test_no_mask_of_a_long_pass_is_built_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """16,384 queries would have 268 million numbers; a block of queries has as many as it multiplies."""
    tokens = 1 << 14
    largest = 0
    inner = Mask._build

    def build_and_count(self: Mask, *args: Any) -> Tensor:
        nonlocal largest
        bias = inner(self, *args)
        largest = max(largest, bias.numel())
        return bias

    monkeypatch.setattr(Mask, "_build", build_and_count)
    q, k = torch.randn(1, tokens, 1, 4), torch.randn(1, 1, tokens, 4)
    for mask in (Mask(tokens, tokens), Mask(tokens, tokens).within(200)):
        with torch.no_grad():
            blockwise_attend(q, k, k, mask, 0.5)
        assert 0 < largest <= BLOCK * (200 + 2 * 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_give_the_same_bits_twice_and_keep_the_dtype(dtype: torch.dtype) -> None:
    mask = Mask(T, T)
    results = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(shape, generator=generator).to(dtype).requires_grad_()
            for shape in ((2, T, 4, 8), (2, 2, T, 8), (2, 2, T, 8))
        ]
        out = blockwise_attend(*inputs, mask, 0.3)
        results.append([out, *torch.autograd.grad(out.sum(), inputs)])
        exact = plain_attend(*(x.detach().double() for x in inputs), mask, 0.3)
        torch.testing.assert_close(out.double(), exact, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0)
    assert all(torch.equal(a, b) and a.dtype == dtype for a, b in zip(*results, strict=True))


def test_the_forecast_of_memory_knows_the_forms() -> None:
    assert (memory.PLAIN, memory.BLOCK) == (LONG, BLOCK)


LONG_CONFIGS: dict[str, ModelConfig] = {
    "dense": DenseConfig(61, 32, 2, 4, 2, head_dim=16, intermediate_size=48, max_position_embeddings=256),
    "deepseek": DeepseekConfig(
        61, 32, 2, 4, 48, 16, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10,
        max_position_embeddings=256,
    ),
    "mistral": MistralConfig(61, 32, 2, 4, 2, 16, 48, max_position_embeddings=256, sliding_window=40),
    "gemma3": Gemma3Config(
        61, 32, 3, 4, 2, 16, 48, max_position_embeddings=256, sliding_window=20, sliding_window_pattern=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", LONG_CONFIGS)
def test_long_passes_equal_transformers(family: str, tmp_path: Path) -> None:
    config = LONG_CONFIGS[family]
    model = build(config)
    model.initialise(0)
    save_model(tmp_path, config, model.state_dict())
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(1, 61, (2, 200), generator=torch.Generator().manual_seed(1))
    reference = peer(ids)
    logits = model.logits(model(ids))
    torch.testing.assert_close(logits, reference.logits, atol=1e-4, rtol=0)
    cache = model.new_cache(torch.zeros(2, dtype=torch.long), 200)
    with torch.no_grad():
        cached = torch.cat([model(part, cache) for part in ids.split([30, 150, 1, 19], dim=1)], dim=1)
    torch.testing.assert_close(model.logits(cached), reference.logits, atol=1e-4, rtol=0)
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    logits.backward(upstream)
    reference.logits.backward(upstream)
    mine, right = model.embed.weight.grad, peer.get_input_embeddings().weight.grad
    torch.testing.assert_close(mine, right, atol=1e-4 * float(right.abs().max()), rtol=0)
