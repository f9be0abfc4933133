"""Families whose layers differ, through all that serves and trains them: windows, layers without positions, Gemma 3."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from promised import needs_promise
from test_engine_exact import PARAMS, PROMPTS, TOKENIZER, VOCABULARY

from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import save_model
from hadal.cost.flops import cache_bytes, forward_flops, parameters
from hadal.engine import LLM, EngineConfig
from hadal.engine.kv.buckets import Bucket
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.dense.config import DenseConfig, MistralConfig, SmolLM3Config
from hadal.models.families import families, family_of
from hadal.models.gemma3.config import Gemma3Config
from hadal.models.lora import LoraConfig, attach, merge
from hadal.models.packed import packed_copy

SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 160, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS: dict[str, ModelConfig] = {
    "mistral": MistralConfig(**SIZE, sliding_window=37),
    "smollm3": SmolLM3Config(**SIZE, no_rope_layers=(1, 0, 1)),
    "gemma3": Gemma3Config(**SIZE, sliding_window=21, sliding_window_pattern=2, query_pre_attn_scalar=20),
}


@cache
def made(name: str) -> Decoder:
    model = build(CONFIGS[name])
    model.initialise(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.changed()
    return model.eval()


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Decoder:
    return made(request.param)


def sampled(model: Decoder, prompts: list[list[int]], **config: Any) -> list[Any]:
    return [output.outputs for output in LLM(model, TOKENIZER, EngineConfig(**config)).generate(prompts, PARAMS)]


@pytest.mark.parametrize(
    "config", [{}, {"chunk": 16}, {"rows": 3}, {"speculate": "ngram"}, {"keep_replies": True, "chunk": 48},
               {"graphs": True}],
)  # fmt: skip
def test_in_the_engine_company_and_chunks_change_no_bit(model: Decoder, config: dict[str, Any]) -> None:
    needs_promise(model)
    alone = [sampled(model, [prompt])[0] for prompt in PROMPTS]
    assert sampled(model, PROMPTS, **config) == alone


def test_long_prompts_in_pieces_are_those_read_at_once(model: Decoder) -> None:
    """Past the lengths at which attention goes block by block, and leaves out columns behind a window."""
    needs_promise(model)
    prompts = [(prompt * 200)[:length] for prompt, length in zip(PROMPTS, (440, 301, 139), strict=False)]
    whole = sampled(model, prompts)
    assert whole == sampled(model, prompts, chunk=64) == [sampled(model, [prompt])[0] for prompt in prompts]


def test_greedy_tokens_are_those_of_a_loop_without_a_cache(model: Decoder) -> None:
    params = replace(PARAMS, temperature=0, n=1, max_tokens=12)
    for prompt, output in zip(PROMPTS, LLM(model, TOKENIZER).generate(PROMPTS, params), strict=True):
        ids = list(prompt)
        for token in output.outputs[0].token_ids:
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([ids]))[0, -1])
            logits[[*TOKENIZER.forbidden_ids, *range(TOKENIZER.size, VOCABULARY)]] = float("-inf")
            assert token == int(logits.argmax())
            ids.append(token)


@torch.no_grad()
def test_packed_saved_and_adapted_it_is_the_same_model(model: Decoder, tmp_path: Path) -> None:
    ids = torch.tensor([PROMPTS[2]])
    wanted = model(ids)
    packed, _ = packed_copy(model, "float32:plain")
    torch.testing.assert_close(packed(ids), wanted)
    save_model(tmp_path, model.config, model.state_dict())
    loaded = load_model(tmp_path).eval()
    assert torch.equal(loaded(ids), wanted) and loaded.config == model.config
    half = load_model(tmp_path, torch.bfloat16).eval()
    assert half(ids).dtype == torch.bfloat16
    assert float((half(ids).float() - wanted).norm() / wanted.norm()) < 0.05
    attach(loaded, LoraConfig(rank=2), 0)
    parts = {site.rsplit(".", 1)[1] for site, module in loaded.named_modules() if hasattr(module, "lora_A")}
    assert parts == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    for name, parameter in loaded.named_parameters():
        if ".lora_B" in name:
            parameter.fill_(0.02)
    adapted = loaded(ids)
    merge(loaded)
    torch.testing.assert_close(loaded(ids), adapted, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(adapted, wanted)


def test_checkpointed_activations_and_documents_give_the_same_gradients(model: Decoder) -> None:
    ids = torch.tensor([PROMPTS[2] + PROMPTS[4], PROMPTS[4] + PROMPTS[2]])
    documents = torch.arange(ids.shape[1]).expand(2, -1) // 100
    positions = torch.arange(ids.shape[1]).expand(2, -1) % 100
    results = []
    for checkpointed in (False, True):
        model.train()
        model.checkpoint_activations = checkpointed
        hidden = model(ids, positions_BT=positions, documents_BT=documents)
        results.append(torch.autograd.grad(hidden.square().mean(), list(model.parameters())))
        model.checkpoint_activations = False
        model.eval()
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    with torch.no_grad():
        alone = torch.cat([model(ids[:, begin : begin + 100]) for begin in range(0, ids.shape[1], 100)], dim=1)
        packed = model(ids, positions_BT=positions, documents_BT=documents)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


def test_parameters_and_cache_are_those_that_are_there(model: Decoder) -> None:
    assert parameters(model.config).total == sum(p.numel() for p in model.parameters())
    assert cache_bytes(model.config, 4) == 4 * sum(J * C for layer in model.cache_widths() for J, C in layer)


def test_a_window_is_cheaper_only_where_it_hides_something() -> None:
    windowed = MistralConfig(**SIZE, sliding_window=37)
    free = replace(windowed, sliding_window=None)
    assert forward_flops(windowed, 37) == forward_flops(free, 37)
    scores = 3 * 2 * 6 * 2 * 16  # of one position in all layers
    assert forward_flops(free, 100) - forward_flops(windowed, 100) == scores * (100 - 37)


def test_layers_of_different_widths_lie_in_one_lane() -> None:
    wide, narrow = ((2, 8), (2, 6)), ((1, 4),)
    bucket = Bucket(64, [wide, narrow, wide, narrow, narrow], torch.zeros(1))
    bucket.resize(3)
    assert [[tuple(kept.shape) for kept, _ in layer] for layer in bucket.layers] == [
        [(3, heads, 64, width) for heads, width in kind] for kind in (wide, narrow, wide, narrow, narrow)
    ]
    for number, layer in enumerate(bucket.layers):
        for _, columns in layer:
            columns.fill_(number)
    assert [float(kept.mean()) for layer in bucket.layers for kept, _ in layer] == [0, 0, 1, 2, 2, 3, 4]


def test_every_kind_of_layer_is_tried_for_the_promise() -> None:
    assert made("mistral").distinct_layers() == [0]
    assert made("smollm3").distinct_layers() == made("gemma3").distinct_layers() == [0, 1]


def test_a_model_type_belongs_to_one_family() -> None:
    types = [kind.model_type for family in families().values() for kind in family.types]
    assert len(types) == len(set(types))
    for family in families().values():
        assert all(family_of(kind(64)) is family for kind in family.types)
    assert type(build(DenseConfig(64, 16, 1, 2, 1, 8, 16))).__module__ == "hadal.models.dense.network"
