"""The forms of attention against a loop over queries, and long passes against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from hadal.cost import memory
from hadal.models.checkpoint import build, save_model
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.ops.attention import (
    BLOCK,
    LONG,
    blockwise_attend,
    causal_bias,
    fused_attend,
    plain_attend,
    single_attend,
)

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


def literal(q: Tensor, k: Tensor, v: Tensor, starts: list[int], scale: float) -> Tensor:
    """One query after the other, over the columns that it sees."""
    B, tokens, H, _ = q.shape
    J, S = k.shape[1:3]
    rows = []
    for b in range(B):
        for t in range(tokens):
            here = S - tokens + t
            seen = slice(min(starts[b], here), here + 1)
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
    starts, bias = [0, 0], causal_bias(tokens, torch.float64, torch.device("cpu"))
    if ragged:
        starts = [3, S - tokens + 2]
        bias = torch.full((2, tokens, S), float("-inf"), dtype=torch.float64)
        for b, start in enumerate(starts):
            for t in range(tokens):
                bias[b, t, min(start, S - tokens + t) : S - tokens + t + 1] = 0
    upstream = torch.randn(2, tokens, H * V, generator=generator, dtype=torch.float64)
    reference = literal(q, k, v, starts, 0.3)
    wanted = [reference, *torch.autograd.grad(reference, (q, k, v), upstream)]
    forms: list[Callable[..., Tensor]] = [plain_attend, blockwise_attend, fused_attend]
    forms += [single_attend] if tokens == 1 else []
    for form in forms:
        out = form(q, k, v, bias, 0.3)
        for mine, right in zip([out, *torch.autograd.grad(out, (q, k, v), upstream)], wanted, strict=True):
            torch.testing.assert_close(mine, right, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_give_the_same_bits_twice_and_keep_the_dtype(dtype: torch.dtype) -> None:
    bias = causal_bias(T, dtype, torch.device("cpu"))
    results = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(shape, generator=generator).to(dtype).requires_grad_()
            for shape in ((2, T, 4, 8), (2, 2, T, 8), (2, 2, T, 8))
        ]
        out = blockwise_attend(*inputs, bias, 0.3)
        results.append([out, *torch.autograd.grad(out.sum(), inputs)])
        exact = plain_attend(*(x.detach().double() for x in inputs), bias.double(), 0.3)
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
