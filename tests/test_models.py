"""The networks' parts against slow plain forms, caches, initialisation, balancing, and broken files.

Whole models are held to transformers in `test_parity.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import save_model
from hadal.errors import UserError
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.deepseek.network import Deepseek
from hadal.models.deepseek.router import routers, update_router_biases
from hadal.models.dense.config import DenseConfig
from hadal.ops.attention import plain_swiglu, swiglu
from hadal.ops.experts import grouped_linear, loop_linear, plain_experts, routed_experts, takes_grouped
from hadal.ops.norm import (
    both_halves,
    norm_rotate,
    plain_norm_rotate,
    plain_rms_norm,
    plain_rotate,
    plain_rotate_pairs,
    rms_norm,
    rotary_tables,
    rotate,
    rotate_pairs,
)
from hadal.ops.rope import YarnScaling
from hadal.train.corpus import Batch
from hadal.train.losses import pretraining_loss
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer

VOCABULARY = 61
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
}
DENSE = DenseConfig(**SMALL, head_dim=16, intermediate_size=48, rope_theta=500.0)
DEEPSEEK = DeepseekConfig(
    **SMALL, intermediate_size=48, moe_intermediate_size=16, kv_lora_rank=24, qk_nope_head_dim=12,
    qk_rope_head_dim=8, v_head_dim=10,
)  # fmt: skip
CONFIGS: dict[str, ModelConfig] = {
    "dense": DENSE,
    "dense-untied": DenseConfig(**SMALL, num_key_value_heads=4, tie_word_embeddings=False, rms_norm_eps=1e-5),
    "deepseek": DEEPSEEK,
    "deepseek-rich": DeepseekConfig(
        **SMALL, intermediate_size=48, moe_intermediate_size=16, q_lora_rank=20, kv_lora_rank=24,
        qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, tie_word_embeddings=False, n_group=4, topk_group=2,
        n_shared_experts=2, num_experts_per_tok=3, routed_scaling_factor=2.5, first_k_dense_replace=0,
        rms_norm_eps=1e-5,
    ),
}  # fmt: skip


def fresh(config: ModelConfig, seed: int = 0) -> Decoder:
    """An initialised model; router biases are moved off zero, so that they matter."""
    model = build(config)
    model.initialise(seed)
    for i, router in enumerate(routers(model)):
        bias = router.e_score_correction_bias
        bias.copy_(torch.linspace(-0.2, 0.2, len(bias)).roll(i))
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def test_hadal_reads_back_every_bit_that_it_saved(config: ModelConfig, tmp_path: Path) -> None:
    model = fresh(config)
    save_model(tmp_path, config, model.state_dict())
    loaded = load_model(tmp_path)
    assert loaded.config == config
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[12], [5, 7], [4, 1, 1, 6], [1] * 12])
def test_cached_decoding_equals_one_pass(config: ModelConfig, chunks: list[int]) -> None:
    """Ragged rows are aligned at their ends; the prompt comes in chunks, then single tokens follow."""
    model = fresh(config).eval()
    lengths, more = [12, 3, 7], 6
    rows = [tokens(length + more, seed=i) for i, length in enumerate(lengths)]
    width = max(lengths)
    start = torch.tensor([width - length for length in lengths])
    padded = torch.zeros(len(rows), width + more, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, start[i] :] = row
    cache = model.new_cache(start, width + more)
    parts, begin = [], 0
    for size in [*chunks, *[1] * more]:
        parts.append(model(padded[:, begin : begin + size], cache))
        begin += size
    hidden = torch.cat(parts, dim=1)
    for i, row in enumerate(rows):
        torch.testing.assert_close(hidden[i, start[i] :], model(row[None])[0], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_at_the_end_changes_nothing(config: ModelConfig) -> None:
    model = fresh(config).eval()
    ids = tokens(2, 10)
    torch.testing.assert_close(model(ids)[:, :7], model(ids[:, :7]), atol=2e-5, rtol=1e-5)


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def _tables() -> tuple[Tensor, Tensor]:
    cos, sin = rotary_tables(5, 6, 100.0)
    return cos[:, None].double(), sin[:, None].double()


def _scaled_tables() -> tuple[Tensor, Tensor]:
    """As YaRN makes them, with a factor on both."""
    cos, sin = rotary_tables(5, 6, 100.0, YarnScaling(4.0, 16, attention_factor=1.3))
    return cos[:, None].double(), sin[:, None].double()


PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "rms_norm": (lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: plain_rms_norm(x, w, 1e-6), ((2, 5, 6), (6,))),
    "norm_rotate": (
        lambda x, w: norm_rotate(x, w, *both_halves(*_tables()), 1e-6),
        lambda x, w: plain_norm_rotate(x, w, *_tables(), 1e-6),
        ((2, 5, 3, 6), (3, 6)),
    ),
    "rotate": (
        lambda x: rotate(x, *both_halves(*_scaled_tables())),
        lambda x: plain_rotate(x, *_scaled_tables()),
        ((2, 5, 3, 6),),
    ),
    "rotate_pairs": (
        lambda x: rotate_pairs(x, *_tables()), lambda x: plain_rotate_pairs(x, *_tables()), ((2, 5, 3, 9),),
    ),
    "swiglu": (swiglu, plain_swiglu, ((2, 5, 8),)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_operators_with_their_own_backward_equal_the_plain_ones(name: str) -> None:
    fast, plain, shapes = PAIRS[name]
    inputs = [doubles(*shape, seed=i) for i, shape in enumerate(shapes)]
    ours, reference = fast(*inputs), plain(*inputs)
    torch.testing.assert_close(ours, reference, atol=1e-10, rtol=0)
    upstream = doubles(*ours.shape, seed=9).detach()
    for mine, right in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(reference, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, right, atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(fast, inputs)


def test_rotary_pairs_are_complex_products() -> None:
    """The released code rotates by multiplying consecutive pairs, as complex numbers, by e^(i position theta)."""
    x = doubles(5, 1, 6).detach()
    cos, sin = _tables()
    turned = torch.view_as_complex(x.view(5, 1, 3, 2)) * torch.complex(cos, sin)
    torch.testing.assert_close(rotate_pairs(x, cos, sin), torch.cat([turned.real, turned.imag], dim=-1))


@pytest.mark.parametrize("case", ["balanced", "one expert unused", "all on two experts", "one token"])
def test_routed_experts_equal_a_loop_over_experts(case: str) -> None:
    E, P, D, I = 5, 2, 6, 4
    N = 1 if case == "one token" else 17
    scores = doubles(N, E).detach()
    if case == "one expert unused":
        scores[:, 3] = -100
    if case == "all on two experts":
        scores[:, 1:3] += 100
    expert = scores.topk(P, dim=1)[1]
    inputs = [doubles(N, D, seed=1), doubles(N, P, seed=2), doubles(E, 2 * I, D, seed=3), doubles(E, D, I, seed=4)]

    def fast(x: Tensor, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return routed_experts(x, expert, weight, up, down)

    x, weight, up, down = inputs
    ours, reference = fast(*inputs), plain_experts(x, expert, weight, up, down)
    torch.testing.assert_close(ours, reference, atol=1e-10, rtol=0)
    upstream = doubles(N, D, seed=9).detach()
    for mine, right in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(reference, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, right, atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(fast, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [(16, 24), (10, 24), (16, 7)], ids=str)
def test_the_grouped_product_equals_one_product_after_the_other(dtype: torch.dtype, widths: tuple[int, int]) -> None:
    K, O = widths
    loads = [3, 0, 9, 1, 0]
    ends = torch.tensor(loads).cumsum(0).int()
    # An odd offset in memory: the optimiser lays parameters end to end.
    x = doubles(13 * K + 1, seed=1).detach().to(dtype)[1:].view(13, K).requires_grad_()
    weight = doubles(5 * O * K + 1, seed=2).detach().to(dtype)[1:].view(5, O, K).requires_grad_()
    assert takes_grouped(x, weight) == (K * x.itemsize % 16 == O * x.itemsize % 16 == 0)
    reference = torch.cat([part @ matrix.t() for part, matrix in zip(x.split(loads), weight, strict=True)])
    upstream = doubles(13, O, seed=3).detach().to(dtype)
    wanted = [reference, *torch.autograd.grad(reference, (x, weight), upstream)]
    for form in (grouped_linear, loop_linear):
        out = form(x, weight, ends)
        for mine, right in zip([out, *torch.autograd.grad(out, (x, weight), upstream)], wanted, strict=True):
            torch.testing.assert_close(mine, right, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-2)
        assert grouped_linear(x[:0], weight, torch.zeros(5, dtype=torch.int32)).shape == (0, O)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(config: ModelConfig) -> None:
    one, same, other = fresh(config, 3), fresh(config, 3), fresh(config, 4)
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.dim() < 2 or not torch.equal(a, c), name


def test_initial_matrices_keep_the_scale_of_their_inputs() -> None:
    config = DeepseekConfig(VOCABULARY, num_hidden_layers=2, q_lora_rank=64, moe_intermediate_size=64)
    named = dict(fresh(config).named_parameters())
    for name, width, scale in (
        ("layers.1.mlp.experts.gate_up_proj", 128, 1.0),
        ("layers.1.mlp.experts.down_proj", 64, 0.5),  # two branches a layer, two layers
        ("layers.1.attention.kv_b_proj.weight", 64, 1.0),
        ("layers.1.attention.o_proj.weight", 128, 0.5),
    ):
        assert float(named[name].detach().std()) == pytest.approx(scale * width**-0.5, rel=0.05), name
    assert float(named["embed.weight"].detach().std()) == pytest.approx(config.initializer_range, rel=0.05)


def test_two_passes_over_the_experts_give_the_same_bits() -> None:
    model = fresh(CONFIGS["deepseek-rich"])
    ids = tokens(4, 20)
    grads = []
    for _ in range(2):
        model.zero_grad()
        pretraining_loss(model, Batch(ids, torch.ones(4, 20)), torch.tensor([0]))[0].backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_router_biases_move_against_the_load() -> None:
    model = fresh(DEEPSEEK)
    ids = tokens(8, 30)
    model.eval()(ids)
    with torch.no_grad():
        model.train()(ids)
    assert all(router.load.sum() == 0 for router in routers(model))  # sampling and evaluation are not counted
    model(ids)
    model(ids)
    before = [router.e_score_correction_bias.clone() for router in routers(model)]
    loads = [router.load.clone() for router in routers(model)]
    assert [int(load.sum()) for load in loads] == [2 * ids.numel() * DEEPSEEK.num_experts_per_tok] * 2
    update_router_biases(model, 0.01)
    for router, old, load in zip(routers(model), before, loads, strict=True):
        change = router.e_score_correction_bias - old
        assert (change[load > load.double().mean()] < 0).all() and (change[load < load.double().mean()] > 0).all()
        torch.testing.assert_close(change[change != 0].abs(), torch.full_like(change[change != 0], 0.01))
        assert router.load.sum() == 0


def test_balancing_evens_out_the_load() -> None:
    model = fresh(DEEPSEEK)
    ids = tokens(16, 30)

    def imbalance() -> float:
        model(ids)
        return max(float(router.load.max() / router.load.double().mean()) for router in routers(model))

    first = imbalance()
    for _ in range(200):
        update_router_biases(model, 0.005)
        model(ids)
    update_router_biases(model, 0.005)
    assert imbalance() < 1.2 < first


def test_router_state_comes_back() -> None:
    model, other = fresh(DEEPSEEK), build(DEEPSEEK)
    state = {name: tensor.clone() for name, tensor in model.extra_state().items()}
    assert len(state) == 2
    other.load_extra_state(state)
    for a, b in zip(routers(model), routers(other), strict=True):
        assert torch.equal(a.e_score_correction_bias, b.e_score_correction_bias)
    assert fresh(DENSE).extra_state() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_optimiser_trains_stacked_experts(dtype: torch.dtype) -> None:
    model = fresh(DEEPSEEK)
    optimizer = FlatOptimizer(model, OptimizerConfig(), dtype)
    before = {name: value.clone() for name, value in optimizer.masters().items()}
    ids = tokens(8, 20)
    losses = []
    for _ in range(24):
        loss, _ = pretraining_loss(model, Batch(ids, torch.ones(8, 20)), torch.tensor([0]))
        loss.backward()
        optimizer.step()
        model.after_update(0.001)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    for name, value in optimizer.masters().items():
        assert value.shape == before[name].shape and not torch.equal(value, before[name]), name
    assert all(router.e_score_correction_bias.dtype == torch.float32 for router in routers(model))


MTP = DeepseekConfig(**SMALL, intermediate_size=48, moe_intermediate_size=16, num_nextn_predict_layers=1)


def test_the_prediction_module_is_released_as_one_more_layer(tmp_path: Path) -> None:
    """transformers runs the block of the module as its layer N; the rest is written out here from the paper."""
    model = fresh(MTP)
    assert isinstance(model, Deepseek)
    save_model(tmp_path, MTP, model.state_dict())
    longer = transformers.AutoConfig.from_pretrained(tmp_path, num_hidden_layers=4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, config=longer, dtype=torch.float32)
    disk = {
        name.removeprefix("model.layers.3."): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if name.startswith("model.layers.3.")
    }
    ids = tokens(2, 12)
    with torch.no_grad():
        hidden = model(ids)
        ours = model.mtp_hidden(hidden[:, :-1], ids[:, 1:])
        embedded = theirs.model.embed_tokens(ids[:, 1:])
        parts = [(embedded, "enorm.weight"), (hidden[:, :-1], "hnorm.weight")]
        joined = torch.cat([plain_rms_norm(x, disk[name], 1e-6) for x, name in parts], dim=-1)
        x = joined @ disk["eh_proj.weight"].T
        positions = torch.arange(11)[None]
        causal = torch.full((11, 11), float("-inf")).triu(1)[None, None]
        x = theirs.model.layers[3](
            x, attention_mask=causal, position_embeddings=theirs.model.rotary_emb(x, positions), position_ids=positions
        )
        expected = plain_rms_norm(x, disk["shared_head.norm.weight"], 1e-6)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    loaded = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_the_prediction_module_learns() -> None:
    model = fresh(MTP)
    assert isinstance(model, Deepseek)
    ids = tokens(2, 12)
    hidden = model(ids)
    logits = model.logits(model.mtp_hidden(hidden[:, :-2], ids[:, 1:-1]))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0 or name == "norm.weight", name


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(tmp_path, DENSE, fresh(DENSE).state_dict())
    return tmp_path


def _refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_model(folder)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


def _rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    released = {name: tensor.clone() for name, tensor in load_file(path).items()}  # the file stays mapped else
    change(released)
    save_file(released, path)


def test_a_truncated_file_is_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        _refused(checkpoint, "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    _refused(checkpoint, name)
    shutil.rmtree(checkpoint)
    _refused(checkpoint, "config.json")


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    _rewrite(checkpoint, lambda released: released.__delitem__(name))
    _refused(checkpoint, "model.safetensors", name)


def test_a_tensor_too_many_is_named(checkpoint: Path) -> None:
    _rewrite(checkpoint, lambda released: released.update(stranger=torch.zeros(2)))
    _refused(checkpoint, "model.safetensors", "stranger")


@pytest.mark.parametrize("shape", [(7, 32), (48,), (48, 31), (96, 16), (48, 32, 1)])
def test_a_tensor_of_another_shape_is_named(checkpoint: Path, shape: tuple[int, ...]) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    _rewrite(checkpoint, lambda released: released.update({name: torch.zeros(shape)}))
    _refused(checkpoint, "model.safetensors", name)


def test_swapped_rows_between_joined_tensors_are_noticed(checkpoint: Path) -> None:
    """gate and up, or q and k, lie in one matrix inside: their sum fitting is not enough."""
    layer = "model.layers.0.mlp."
    wrong = {layer + "gate_proj.weight": torch.zeros(40, 32), layer + "up_proj.weight": torch.zeros(56, 32)}
    _rewrite(checkpoint, lambda released: released.update(wrong))
    _refused(checkpoint, "model.safetensors", layer + "gate_proj.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(checkpoint: Path, value: float) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def spoil(released: dict[str, Tensor]) -> None:
        released[name][3, 4] = value

    _rewrite(checkpoint, spoil)
    _refused(checkpoint, "model.safetensors", name)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "config.json"),
        ("[]", "config.json"),
        ("\xff", "config.json"),
        ("{}", "model_type"),
        ('{"model_type": "gpt2"}', "gpt2"),
        ('{"model_type": "qwen3"}', "vocab_size"),
    ],
)
def test_a_config_that_is_none_is_refused(checkpoint: Path, text: str, word: str) -> None:
    (checkpoint / "config.json").write_bytes(text.encode("latin-1"))
    _refused(checkpoint, word)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_a_config_that_hadal_cannot_run_is_refused(checkpoint: Path, change: dict[str, object], word: str) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    _refused(checkpoint, word)


def test_a_broken_expert_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, DEEPSEEK, fresh(DEEPSEEK).state_dict())
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    _rewrite(tmp_path, lambda released: released.update({name: torch.zeros(16, 31)}))
    _refused(tmp_path, name)
    _rewrite(tmp_path, lambda released: released.__delitem__(name))
    _refused(tmp_path, name)
