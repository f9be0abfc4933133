"""FLOPs and parameters against the published totals and against what transformers and torch count."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hadal.cost.flops import (
    cache_bytes,
    forward_flops,
    mean_context,
    parameters,
    plain_cache_bytes,
    training_flops,
)
from hadal.cost.ledger import Ledger, LedgerRecord, by_stage, totals
from hadal.cost.prices import LAPTOP, O1, R1
from hadal.engine.memory import cache_budget
from hadal.errors import UserError
from hadal.machine import memory
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig, DeepseekV2Config
from hadal.models.dense.config import DenseConfig, LlamaConfig
from hadal.models.families import from_dict

MLA = dict(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, tie_word_embeddings=False)
V3 = DeepseekConfig(
    hidden_size=7168, num_hidden_layers=61, num_attention_heads=128, intermediate_size=18432,
    vocab_size=129280, q_lora_rank=1536, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8,
    moe_intermediate_size=2048, first_k_dense_replace=3, num_nextn_predict_layers=1, **MLA,
)  # fmt: skip
V2 = DeepseekV2Config(
    hidden_size=5120, num_hidden_layers=60, num_attention_heads=128, intermediate_size=12288,
    vocab_size=102400, q_lora_rank=1536, n_routed_experts=160, n_shared_experts=2, num_experts_per_tok=6,
    moe_intermediate_size=1536, first_k_dense_replace=1, **MLA,
)  # fmt: skip
V2_LITE = DeepseekV2Config(
    hidden_size=2048, num_hidden_layers=27, num_attention_heads=16, intermediate_size=10944,
    vocab_size=102400, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
    moe_intermediate_size=1408, first_k_dense_replace=1, **MLA,
)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "total", "active", "cache"),
    # Totals: sums of the released shapes. Active: as the reports round them. Cache: V3's is also in arXiv 2505.09343.
    [(V3, 671.03e9, "37", 70_272), (V2, 235.74e9, "21", 69_120), (V2_LITE, 15.71e9, "2", 31_104)],
    ids=["V3", "V2", "V2-Lite"],
)
def test_sizes_of_released_models(shape: ModelConfig, total: float, active: str, cache: int) -> None:
    counted = parameters(shape)
    assert counted.total == pytest.approx(total, abs=0.005e9) == sum(counted.parts.values())
    digits = len(active.partition(".")[2])
    assert f"{counted.active / 1e9:.{digits}f}" == active
    assert cache_bytes(shape) == cache


def test_grouped_queries_shrink_the_cache() -> None:
    """Llama-3.1-405B: 516.096 KB a token, 16 query heads to a key (arXiv 2505.09343, Table 1)."""
    llama = LlamaConfig(128256, 16384, 126, 128, num_key_value_heads=8, head_dim=128, intermediate_size=53248)
    assert cache_bytes(llama) == 516_096
    assert plain_cache_bytes(llama) == 16 * 516_096


def test_multi_token_prediction_of_v3_has_the_published_size() -> None:
    assert parameters(V3).mtp == pytest.approx(11.5e9, rel=0.015)  # README_WEIGHTS: 11.5B unique parameters


def tiny(kind: str) -> torch.nn.Module:
    """A small model of transformers', which knows nothing of hadal."""
    transformers = pytest.importorskip("transformers")
    common = dict(
        vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    if kind == "qwen3":
        config = transformers.Qwen3Config(
            **common, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True
        )
        return transformers.Qwen3ForCausalLM(config)
    config = transformers.DeepseekV3Config(
        **common, num_key_value_heads=4, q_lora_rank=24 if kind == "deepseek_v3" else None, kv_lora_rank=16,
        qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, moe_intermediate_size=20, first_k_dense_replace=1, n_group=1, topk_group=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


@pytest.mark.parametrize("kind", ["qwen3", "deepseek_v3", "deepseek_v3 without q_lora"])
def test_parameters_equal_those_of_a_real_module(kind: str) -> None:
    model = tiny(kind)
    assert parameters(from_dict(model.config.to_dict())).total == sum(p.numel() for p in model.parameters())


def test_forward_flops_equal_those_that_torch_counts() -> None:
    """A dense model: torch counts every product of the eager forward, over all length x length scores."""
    model, length = tiny("qwen3"), 11
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(length)[None] % 97, use_cache=False)
    assert length * forward_flops(from_dict(model.config.to_dict()), context=length) == counter.get_total_flops()


def test_forward_flops_of_latent_attention_and_experts_equal_a_count_by_hand() -> None:
    """One MLA layer with experts, multiplications written out and counted by torch."""
    s = DeepseekConfig(
        hidden_size=20, num_hidden_layers=1, num_attention_heads=3, intermediate_size=1, vocab_size=31,
        q_lora_rank=7, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=5,
        n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=9, first_k_dense_replace=0,
    )  # fmt: skip
    length = 10

    def product(x: torch.Tensor, outputs: int) -> torch.Tensor:
        return x @ torch.ones(x.shape[-1], outputs)

    with FlopCounterMode(display=False) as counter:
        x = torch.ones(length, 20)
        q = product(product(x, 7), 3 * 6).view(length, 3, 6).transpose(0, 1)
        latent = product(x, 6 + 2)
        kv = product(latent[:, :6], 3 * (4 + 5)).view(length, 3, 9).transpose(0, 1)
        k = torch.cat([kv[..., :4], latent[:, 6:].expand(3, length, 2)], -1)
        mixed = (q @ k.mT) @ kv[..., 4:]
        x = product(mixed.transpose(0, 1).reshape(length, 15), 20)
        product(x, 8)  # router
        for _ in range(2 + 1):
            product(product(x, 9), 1)  # gate, then as many FLOPs in the two others
            product(x, 9)
            product(torch.ones(length, 9), 20)
        product(x, 31)
    spare = (
        3 * 2 * length * 9
    )  # the three products with one column above, there only to use the gate's output
    assert length * forward_flops(s, context=length) == counter.get_total_flops() - spare


def test_training_is_three_forwards_and_causality_halves_attention() -> None:
    shape = DenseConfig(100, 64, 2, 4, 4, 16, 128)
    assert training_flops(shape, 33) == 3 * forward_flops(shape, 33)
    lengths = range(1, 9)
    assert mean_context(8) == sum(lengths) / 8
    mean = sum(forward_flops(shape, n) for n in lengths) / 8
    assert forward_flops(shape, mean_context(8)) == pytest.approx(mean)


def test_multi_token_prediction_costs_one_more_layer_and_head() -> None:
    extra = replace(V3, num_hidden_layers=27)
    plain, longer = extra.without_mtp(), replace(extra.without_mtp(), num_hidden_layers=28)
    head, projection = 2 * 7168 * 129280, 2 * 7168 * 14336
    difference = training_flops(extra, 100) - training_flops(plain, 100)
    layer = training_flops(longer, 100) - training_flops(plain, 100)
    assert difference == pytest.approx(layer + 3 * (head + projection))


def test_api_prices_reproduce_the_published_day() -> None:
    """DeepSeek's own sum for 24 hours at R1's prices: $562,027 for 608B in, 342B of it cached, 168B out."""
    assert R1.cost(608 * 10**9, 168 * 10**9, cached_tokens=342 * 10**9) == pytest.approx(562_027, rel=2e-3)
    assert O1.cost(1_000_000, 1_000_000) == 75.0
    with pytest.raises(ValueError, match="cached"):
        R1.cost(10, 10, cached_tokens=11)


def test_a_laptop_hour_is_its_electricity() -> None:
    assert LAPTOP.cost(3600) == pytest.approx(0.03 * 0.30)
    assert "30 W" in LAPTOP.source and "0.3" in LAPTOP.source


def record(stage: str, seconds: float = 10.0, peak: int = 5) -> LedgerRecord:
    return LedgerRecord(stage, 100, 20, 1e9, seconds, peak, seconds * 0.009 / 3600, 0.009, "assumed")


def test_the_ledger_reads_back_what_was_appended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.read() == []
    ledger.append(record("pretrain"))
    ledger.append(record("grpo", 3.0, 9))
    assert ledger.read() == [record("pretrain"), record("grpo", 3.0, 9)]
    keys = {
        "ledger", "stage", "tokens_trained", "tokens_sampled", "flops", "seconds", "peak_memory_bytes",
        "cost_usd", "price_per_hour", "price_source",
    }  # fmt: skip
    assert set(json.loads(ledger.path.read_text().splitlines()[0])) == keys


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(record("pretrain"))
    with ledger.path.open("a") as file:
        file.write('{"ledger": 1, "stage": "gr')
    assert ledger.read() == [record("pretrain")]
    ledger.append(record("grpo"))
    assert ledger.read() == [record("pretrain"), record("grpo")]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"ledger": 2}', "version 2"),
        ("nonsense", "line 2"),
        ('{"ledger": 1, "stage": "x"}', "line 2"),
        ("[]", "line 2"),
    ],
)
def test_a_damaged_or_foreign_ledger_is_named(tmp_path: Path, line: str, cause: str) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(record("pretrain"))
    with ledger.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=cause):
        ledger.read()


def test_totals_add_up_over_stages_and_restarts() -> None:
    records = [record("pretrain", 10, 5), record("grpo", 4, 7), record("pretrain", 6, 3)]
    total = totals(records)
    assert (total.seconds, total.tokens_trained, total.tokens_sampled, total.flops) == (20, 300, 60, 3e9)
    assert total.peak_memory_bytes == 7
    assert total.price_per_hour == pytest.approx(0.009)
    stages = by_stage(records)
    assert list(stages) == ["pretrain", "grpo"]
    assert (stages["pretrain"].seconds, stages["pretrain"].peak_memory_bytes) == (16, 5)
    assert totals([]).cost_usd == 0


def test_a_priced_record_costs_its_time() -> None:
    priced = LedgerRecord.priced("grpo", seconds=7200, tokens_sampled=5)
    assert priced.cost_usd == pytest.approx(2 * LAPTOP.usd)
    assert priced.price_per_hour == LAPTOP.usd and LAPTOP.date in priced.price_source


def test_peak_memory_remembers_what_was_held() -> None:
    """In a process of its own, since this one's peak lies behind it."""
    program = (
        "from hadal.machine.memory import peak_memory_bytes as peak\n"
        "before = peak(); held = bytearray(b'x') * 300_000_000; del held; print(before, peak())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 100e6
    assert 290e6 < after - before < 330e6


def test_the_cache_heeds_a_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = cache_budget(None)  # no container
    assert free > 300e6 and cache_budget(7) == 7
    (tmp_path / "memory.current").write_text("500000000\n")
    (tmp_path / "memory.stat").write_text("anon 400000000\ninactive_file 100000000\n")
    for limit, budget in (("800000000", 200_000_000), ("max", None)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert cache_budget(None) == budget if budget else cache_budget(None) == pytest.approx(free, rel=0.5)
