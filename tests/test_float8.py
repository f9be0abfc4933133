"""Weights that stay in DeepSeek's FP8 blocks: the same model as the one they are multiplied out to.

The product of FP8 blocks needs a GPU's tensor cores. What is asked of it here is checked by a literal one that holds
its caller to the layouts that cuBLAS documents.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from other_device import HERE, OtherDevice
from safetensors.torch import load_file, save_file
from torch import Tensor

from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import save_model
from hadal.engine import LLM, EngineConfig, SamplingParams, llm
from hadal.errors import UserError
from hadal.machine.device import WORTH_MOVING
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.models.float8 import Float8Experts, Float8Linear
from hadal.ops import float8
from hadal.ops.exact import exactly
from hadal.ops.experts import grouped_linear
from hadal.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENIZER = Tokenizer.from_words(["strawberry"])
SIZE = -(-TOKENIZER.size // 64) * 64
MODELS: dict[str, ModelConfig] = {
    "dense": DenseConfig(SIZE, 256, 2, 2, 1, 128, 384, attention_bias=True),
    "deepseek": DeepseekConfig(
        SIZE, 256, 2, 2, 384, 128, n_routed_experts=8, num_experts_per_tok=2, kv_lora_rank=64, qk_nope_head_dim=96,
        qk_rope_head_dim=32, v_head_dim=128,
    ),
}  # fmt: skip


def write(folder: Path, config: ModelConfig) -> None:
    """A checkpoint in the released FP8 layout."""
    model = build(config)
    model.initialise(0)
    save_model(folder, config, model.state_dict())
    stored: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("proj.weight") and "embed" not in name:
            whole = F.pad(tensor, (0, -tensor.shape[1] % 128, 0, -tensor.shape[0] % 128))
            raw, scale = float8.quantise_blocks(whole)
            stored[name] = raw[: tensor.shape[0], : tensor.shape[1]].contiguous()
            stored[name + "_scale_inv"] = scale
        else:
            stored[name] = tensor.clone()
    save_file(stored, folder / "model.safetensors")
    data = json.loads((folder / "config.json").read_text())
    data["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(data))
    TOKENIZER.save(folder)


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    write(path, MODELS[request.param])
    return path


def kept(model: Decoder) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Float8Linear | Float8Experts)]


def test_a_model_in_fp8_is_the_one_it_is_multiplied_out_to(folder: Path) -> None:
    ids = torch.arange(30).view(2, 15) % SIZE
    for dtype in (torch.float32, torch.bfloat16):
        plain, model = load_model(folder, dtype).eval(), load_model(folder, dtype, keep_float8=True).eval()
        with torch.no_grad():
            assert torch.equal(model(ids), plain(ids))
        names = kept(model)
        assert len(names) >= 8 and all(not name.endswith(("kv_b_proj", "head", "embed")) for name in names)
        bytes_plain, bytes_kept = (sum(t.nbytes for t in m.state_dict().values()) for m in (plain, model))
        assert bytes_kept < 0.75 * bytes_plain, "mostly embedding here"
        assert any("experts" in name for name in names) == isinstance(plain.config, DeepseekConfig)


def test_a_matrix_that_ends_within_a_block_is_multiplied_out(tmp_path: Path) -> None:
    write(tmp_path, MODELS["deepseek"])  # its kv_a_proj_with_mqa has 64 + 32 rows
    names = kept(load_model(tmp_path, keep_float8=True))
    assert not any("kv_a_proj" in name for name in names) and "layers.0.attention.o_proj" in names


def test_the_engine_samples_the_same_and_on_another_device(folder: Path) -> None:
    prompts = [TOKENIZER.chat([{"role": "user", "content": text}]) for text in ("hi", "How many r in strawberry?")]
    params = SamplingParams(max_tokens=10, seed=3, n=2)

    def sampled(model: Decoder, exact: bool = True) -> list[list[list[int]]]:
        engine = LLM(model.eval(), TOKENIZER, EngineConfig(cache_bytes=20_000_000, exact=exact))
        return [[sample.token_ids for sample in output.outputs] for output in engine.generate(prompts, params)]

    expected = sampled(load_model(folder))
    assert sampled(load_model(folder, keep_float8=True)) == expected
    assert sampled(load_model(folder, keep_float8=True), exact=False) == expected
    with OtherDevice():
        assert sampled(load_model(folder, keep_float8=True).to(HERE)) == expected


def test_few_rows_get_their_own_experts_and_exact_ones_always_the_same_way() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 256, 128)
    raws, scales = zip(*(float8.quantise_blocks(matrix) for matrix in weight), strict=True)
    stack = float8.Float8Stack(torch.stack(raws), float8.aligned(torch.stack(scales)))
    whole = float8.dequantise(stack.raw_EOK, stack.scale, torch.float32)
    assert (whole - weight).norm() < 0.03 * weight.norm()
    for ends in ([0, 0, 2, 2, 3, 4], [1, 1, 1, 1, 1, 1], [2, 4, 6, 8, 9, 9]):
        ends_E = torch.tensor(ends, dtype=torch.int32)
        x = torch.randn(ends[-1], 128)
        expected = grouped_linear(x, whole, ends_E)
        assert torch.allclose(stack.linear(x, ends_E), expected, atol=1e-4)
        with exactly(True):
            assert torch.equal(stack.linear(x, ends_E), expected)


def literal_scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, kind_a: object, scale_b: Tensor, kind_b: object, output_dtype: torch.dtype
) -> Tensor:
    """What F.scaled_mm gives for groups of 1 x 128 and blocks of 128 x 128, in the layouts that cuBLAS asks for."""
    assert (kind_a, kind_b) == (F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128)
    (M, K), (_, N) = a.shape, b.shape
    assert a.dtype == b.dtype == torch.float8_e4m3fn and scale_a.dtype == scale_b.dtype == torch.float32
    assert M % 4 == 0 and N % 16 == 0 and K % 128 == 0
    assert a.stride() == (K, 1) and b.stride() == (1, K)
    columns = K // 128 + -(K // 128) % 4
    assert scale_a.shape == (M, K // 128) and scale_a.stride() == (1, M)
    assert scale_b.shape == (columns, N // 128) and scale_b.stride() == (1, columns)
    out = torch.zeros(M, N)
    for k in range(K // 128):
        part = slice(128 * k, 128 * (k + 1))
        scale = scale_a[:, k, None] * scale_b[k].repeat_interleave(128)
        out += scale * (a[:, part].float() @ b[part].float())
    return out.to(output_dtype)


def test_the_product_of_blocks_is_asked_for_as_cublas_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    float8.multiplies.cache_clear()
    assert not float8.multiplies(cpu)
    float8.multiplies.cache_clear()
    monkeypatch.setattr(F, "scaled_mm", lambda a, b, *rest, **named: torch.zeros(len(a), b.shape[1]))
    assert not float8.multiplies(cpu), "a product that is wrong"
    float8.multiplies.cache_clear()
    monkeypatch.setattr(F, "scaled_mm", literal_scaled_mm)
    try:
        assert float8.multiplies(cpu)
        torch.manual_seed(0)
        weight = torch.randn(384, 640)
        raw, scale = float8.quantise_blocks(weight)
        for rows in (1, 4, 6, 33):
            x = torch.randn(rows, 640, dtype=torch.bfloat16)
            x[0] *= 1000  # an outlier changes no other row
            y = float8.float8_linear(x, raw, float8.aligned(scale))
            expected = x.float() @ float8.dequantise(raw, scale, torch.float32).t()
            error = (y.float() - expected).norm(dim=1) / expected.norm(dim=1)
            assert y.shape == expected.shape and y.dtype == x.dtype and 1e-3 < error.max() < 0.05
    finally:
        float8.multiplies.cache_clear()


def test_zeros_stay_zeros_and_a_nan_stays_in_its_row() -> None:
    x = torch.randn(4, 256)
    x[1], x[2, 5], x[3, :128] = 0, float("nan"), 0
    raw, scale = float8.quantise_rows(x)
    back = raw.float() * scale.repeat_interleave(128, dim=1)
    assert torch.allclose(back[0], x[0], rtol=0.07, atol=0.01) and (back[1] == 0).all() and (back[3, :128] == 0).all()
    assert back[2].isnan().any() and not back[[0, 1, 3]].isnan().any()
    raw, scale = float8.quantise_blocks(torch.zeros(128, 128))
    assert (float8.dequantise(raw, scale, torch.float32) == 0).all()


def test_fp8_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, MODELS["dense"])
    stored = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    stored[name].view(torch.uint8)[3, 4] = 255
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} holds values that are not finite"):
        load_model(tmp_path, keep_float8=True)


def test_fp8_stays_only_where_a_gpu_multiplies_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not llm.stays_float8(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(llm, "multiplies", lambda device: device.type == "cuda")
    assert not llm.stays_float8(folder), "a small model stays on the CPU"
    monkeypatch.setattr(llm, "stored_in_float8", lambda folder: WORTH_MOVING)
    assert llm.stays_float8(folder)
    monkeypatch.setattr(llm, "multiplies", lambda device: False)
    assert not llm.stays_float8(folder)
