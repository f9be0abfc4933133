"""Model files: shards, dtypes, FP8 blocks, what is wrong with a file, and the memory that loading takes."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hadal.checkpoints import save
from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import convert, save_model
from hadal.errors import UserError
from hadal.models.build import build, outline
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig, Qwen2Config

SMALL: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
DENSE = DenseConfig(**SMALL, head_dim=16, intermediate_size=48)
MIXTURE = DeepseekConfig(
    **SMALL, intermediate_size=48, moe_intermediate_size=16, kv_lora_rank=24, num_nextn_predict_layers=1,
    tie_word_embeddings=False,
)  # fmt: skip
CONFIGS = {"dense": DENSE, "mixture": MIXTURE}
INDEX = "model.safetensors.index.json"


def fresh(config: ModelConfig, seed: int = 0) -> Decoder:
    model = build(config)
    model.initialise(seed)
    return model


def same_weights(model: Decoder, other: Decoder) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", CONFIGS)
def test_shards_hold_the_model_and_replace_what_was_there(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model = fresh(config)
    save_model(tmp_path, config, model.state_dict(), shard_bytes=30_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert {path.name for path in shards} == set(index["weight_map"].values())
    sizes = [sum(t.nbytes for t in load_file(path).values()) for path in shards]
    assert max(sizes) <= 30_000 and sum(sizes) == index["metadata"]["total_size"]
    assert same_weights(model, load_model(tmp_path))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model.logits(model(ids)), atol=1e-4, rtol=0)
    save_model(tmp_path, config, fresh(config, 1).state_dict())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    save_model(tmp_path, config, model.state_dict(), shard_bytes=60_000)
    assert not (tmp_path / "model.safetensors").exists() and same_weights(model, load_model(tmp_path))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_stored_and_loaded_as_any_other(
    stored: torch.dtype, wanted: torch.dtype, tmp_path: Path
) -> None:
    model = fresh(MIXTURE)
    router = model.layers[1].mlp.gate
    router.e_score_correction_bias.copy_(torch.linspace(-0.1, 0.1, 8))
    state = {k: v if k.endswith("correction_bias") else v.to(stored) for k, v in model.state_dict().items()}
    save_model(tmp_path, MIXTURE, state)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    loaded = load_model(tmp_path, wanted)
    for name, tensor in loaded.state_dict().items():
        kept = name.endswith("correction_bias")  # its steps are too small for bf16
        assert tensor.dtype == (torch.float32 if kept else wanted)
        assert torch.equal(tensor, state[name] if kept else state[name].to(wanted)), name
    assert loaded.logits(loaded(torch.arange(1, 9)[None])).isfinite().all()


def test_a_model_is_outlined_without_random_weights() -> None:
    before = torch.random.get_rng_state()
    fresh(DENSE)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(tensor.is_meta for tensor in outline(DENSE).parameters())


def test_companions_and_special_ids_are_carried_over(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    save_model(source, DENSE, fresh(DENSE).state_dict())
    data = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(data | {"eos_token_id": [1, 5], "auto_map": {"A": "b.py"}}))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "modeling_x.py"):
        (source / name).write_text(f'"{name}"')
    save_model(target, DENSE, fresh(DENSE, 1).state_dict(), source)
    assert {path.name for path in target.iterdir()} == {
        "config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    data = json.loads((target / "config.json").read_text())
    assert data["eos_token_id"] == [1, 5] and "auto_map" not in data


def test_an_interrupted_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fresh(DENSE)
    save_model(tmp_path, DENSE, old.state_dict(), shard_bytes=30_000)
    calls = 0

    write = save.save_tensors

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(save, "save_tensors", full)
    with pytest.raises(OSError, match="space"):
        save_model(tmp_path, DENSE, fresh(DENSE, 1).state_dict(), shard_bytes=30_000)
    assert not list(tmp_path.glob("*.part")) and same_weights(old, load_model(tmp_path))


def literal_fp8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(FP8 values, scales, what they stand for) of a matrix, element by element.

    Each block of 128 x 128 has the scale that takes its greatest value to 448, the greatest of e4m3.
    """
    rows, columns = weight.shape
    places = [(i, j) for i in range(rows) for j in range(columns)]
    given, scales = weight.tolist(), torch.zeros(math.ceil(rows / 128), math.ceil(columns / 128)).tolist()
    for i, j in places:
        scales[i // 128][j // 128] = max(scales[i // 128][j // 128], abs(given[i][j]) / 448)
    stored = torch.tensor(scales)
    scales = stored.tolist()
    values = torch.tensor([given[i][j] / scales[i // 128][j // 128] for i, j in places])
    values = values.to(torch.float8_e4m3fn).view(rows, columns)
    wide = values.float().tolist()
    meant = torch.tensor([wide[i][j] * scales[i // 128][j // 128] for i, j in places]).view(rows, columns)
    return values, stored, meant


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A small V3 in the released FP8 layout, and what its tensors stand for; no shape is a multiple of 128."""
    config = DeepseekConfig(
        61, 144, 2, 4, 150, 24, n_routed_experts=2, num_experts_per_tok=1, kv_lora_rank=20, q_lora_rank=136,
        qk_nope_head_dim=28, v_head_dim=33, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("fp8")
    save_model(folder, config, fresh(config).state_dict())
    released = load_file(folder / "model.safetensors")
    meant, stored = {}, {}
    for name, tensor in released.items():
        tensor = tensor.clone()
        if "proj" in name:
            stored[name], stored[name + "_scale_inv"], meant[name] = literal_fp8(tensor)
        else:
            stored[name] = tensor if name.endswith("correction_bias") else tensor.bfloat16()
            meant[name] = stored[name].float()
    save_file(stored, folder / "model.safetensors")
    data = json.loads((folder / "config.json").read_text())
    data["quantization_config"] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
        "scale_fmt": "ue8m0",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(data))
    return folder, meant


def test_fp8_blocks_are_what_they_stand_for(fp8: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, meant = fp8
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(folder, dtype)
        save_model(tmp_path, model.config, model.state_dict())
        released = load_file(tmp_path / "model.safetensors")
        assert released.keys() == meant.keys()
        for name, tensor in meant.items():
            assert torch.equal(released[name].float(), tensor.to(released[name].dtype).float()), name


def test_fp8_becomes_bf16_in_shards_that_transformers_opens(
    fp8: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    folder, meant = fp8
    convert(folder, tmp_path, torch.bfloat16, shard_bytes=200_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    data = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in data and data["dtype"] == "bfloat16"
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    o_proj = theirs.model.layers[1].self_attn.o_proj.weight
    assert torch.equal(o_proj, meant["model.layers.1.self_attn.o_proj.weight"].bfloat16().float())
    model = load_model(tmp_path)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(ids)), theirs(ids).logits, atol=1e-4, rtol=0)


def test_shards_are_merged_and_a_model_is_not_converted_onto_itself(tmp_path: Path) -> None:
    model = fresh(MIXTURE)
    save_model(tmp_path / "shards", MIXTURE, model.state_dict(), shard_bytes=30_000)
    (tmp_path / "shards" / "tokenizer.json").write_text("{}")
    convert(tmp_path / "shards", tmp_path / "one", torch.float32)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    assert same_weights(model, load_model(tmp_path / "one"))
    with pytest.raises(UserError, match="one"):
        convert(tmp_path / "one", tmp_path / "one", torch.bfloat16)


# What is wrong with a folder


def refused(act: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        act()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    save_model(tmp_path, DENSE, fresh(DENSE).state_dict(), shard_bytes=30_000)
    return tmp_path


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def test_a_truncated_shard_is_named(shards: Path) -> None:
    path = sorted(shards.glob("*.safetensors"))[1]
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(lambda: load_model(shards), path.name, "download")
    path.write_bytes(whole + b"\0")
    refused(lambda: load_model(shards), path.name)


def test_an_index_that_is_wrong_is_named(shards: Path) -> None:
    path = shards / INDEX
    index = json.loads(path.read_text())
    last = sorted(shards.glob("*.safetensors"))[-1]
    name = "model.norm.weight"
    last.rename(shards / "aside")
    refused(lambda: load_model(shards), INDEX, last.name, "missing", "again")
    (shards / "aside").rename(last)
    for change, words in (
        ({name: "../other.safetensors"}, [INDEX, "../other.safetensors"]),
        ({name: "pytorch_model-00001.bin"}, [INDEX, "pytorch_model-00001.bin"]),
        ({name: 3}, [INDEX]),
        ({"model.stranger": last.name}, [last.name, "model.stranger"]),
    ):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | change}))
        refused(lambda: load_model(shards), *words)
    for text in ("{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": [1]}', "[" * 100_000, '{"a": ' * 100_000):
        path.write_text(text)
        refused(lambda: load_model(shards), INDEX)
    del index["weight_map"][name]
    path.write_text(json.dumps(index))
    refused(lambda: load_model(shards), last.name, name)


def test_a_tensor_too_many_too_few_or_of_another_shape_is_named(shards: Path) -> None:
    path = next(p for p in shards.glob("*.safetensors") if "model.norm.weight" in load_file(p))
    index = json.loads((shards / INDEX).read_text())
    whole = path.read_bytes()
    rewrite(path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    refused(lambda: load_model(shards), path.name, "model.norm.weight", "(31,)", "config")
    path.write_bytes(whole)
    rewrite(path, lambda tensors: tensors.update(stranger=torch.ones(3)))
    index["weight_map"]["stranger"] = path.name
    (shards / INDEX).write_text(json.dumps(index))
    refused(lambda: load_model(shards), path.name, "stranger")
    path.write_bytes(whole)
    rewrite(path, lambda tensors: tensors.pop("model.norm.weight"))
    del index["weight_map"]["stranger"], index["weight_map"]["model.norm.weight"]
    (shards / INDEX).write_text(json.dumps(index))
    refused(lambda: load_model(shards), INDEX, "model.norm.weight")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_named_and_nothing_is_written(
    shards: Path, value: float, dtype: torch.dtype
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    path = next(p for p in shards.glob("*.safetensors") if name in load_file(p))
    rewrite(path, lambda tensors: tensors[name][3].fill_(value))
    refused(lambda: load_model(shards, dtype), path.name, name, "finite", "download")
    target = shards / "target"
    refused(lambda: convert(shards, target, dtype, shard_bytes=20_000), path.name, name)
    assert not list(target.iterdir())


def test_values_beyond_a_dtype_are_not_called_broken(tmp_path: Path) -> None:
    save_model(tmp_path, DENSE, fresh(DENSE).state_dict())
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite(tmp_path / "model.safetensors", lambda tensors: tensors[name].fill_(1e6))
    refused(lambda: load_model(tmp_path, torch.float16), "model.safetensors", name, "float16", "wider")
    load_model(tmp_path, torch.bfloat16)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    save_model(tmp_path, DENSE, fresh(DENSE).state_dict())
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(lambda: load_model(tmp_path), "pytorch_model.bin", "pickle", "safetensors")


def test_an_unknown_family_is_named(shards: Path) -> None:
    data = json.loads((shards / "config.json").read_text())
    (shards / "config.json").write_text(json.dumps(data | {"model_type": "gpt_neox"}))
    refused(lambda: load_model(shards), "config.json", "gpt_neox", "deepseek_v3")


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "bytes"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "malformed"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "ends"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "malformed"),
        ({"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}, "malformed"),
        ({"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}, "malformed"),
        ({"dtype": "F32", "shape": [1]}, "data_offsets"),
        ({"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}, "I32"),
        ({"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}, "malformed"),
        ([], "model.safetensors"),
    ],
)
def test_a_hostile_header_is_not_believed(tmp_path: Path, entry: Any, word: str) -> None:
    save_model(tmp_path, DENSE, fresh(DENSE).state_dict())
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    refused(lambda: load_model(tmp_path), "model.safetensors", word)


def test_names_that_cannot_be_shown_are_refused_in_one_line(shards: Path) -> None:
    path = sorted(shards.glob("*.safetensors"))[0]
    rewrite(path, lambda tensors: tensors.update({"two\nlines": torch.ones(1)}))
    refused(lambda: load_model(shards), path.name, "lines")
    index = json.loads((shards / INDEX).read_text())
    (shards / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"x": "two\nlines.safetensors"}}))
    refused(lambda: load_model(shards), INDEX, "lines.safetensors")


def test_a_header_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    save_model(tmp_path, DENSE, fresh(DENSE).state_dict())
    for length in (2**63, 2**40):
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        refused(lambda: load_model(tmp_path), "model.safetensors", "header")
    deep = b'{"x":' + b"[" * 100_000
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    refused(lambda: load_model(tmp_path), "model.safetensors")


def test_other_quantisations_are_refused_by_name(fp8: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    shutil.copytree(fp8[0], tmp_path / "model")
    folder = tmp_path / "model"
    data = json.loads((folder / "config.json").read_text())
    for change, word in (
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "64"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}, "e5m2"),
        ("awq", "awq"),
    ):
        (folder / "config.json").write_text(json.dumps(data | {"quantization_config": change}))
        refused(lambda: load_model(folder), "config.json", word)
    (folder / "config.json").write_text(json.dumps(data))
    name = "model.layers.0.self_attn.o_proj.weight"
    rewrite(folder / "model.safetensors", lambda tensors: tensors.update({name + "_scale_inv": torch.ones(1, 1)}))
    refused(lambda: load_model(folder), "model.safetensors", name + "_scale_inv")
    rewrite(folder / "model.safetensors", lambda tensors: tensors.pop(name + "_scale_inv"))
    refused(lambda: load_model(folder), "model.safetensors", name)


def test_the_prediction_module_may_be_left_out_whole_and_its_copies_must_be_copies(tmp_path: Path) -> None:
    save_model(tmp_path, MIXTURE, fresh(MIXTURE).state_dict())
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    name = "model.layers.2.shared_head.head.weight"
    rewrite(path, lambda tensors: tensors[name][0, 0].add_(1))
    refused(lambda: load_model(tmp_path), "model.safetensors", name, "lm_head.weight")
    path.write_bytes(whole)
    rewrite(path, lambda tensors: tensors.pop(name))  # not every tool writes them
    assert load_model(tmp_path).config == MIXTURE
    rewrite(path, lambda tensors: tensors.pop("model.layers.2.enorm.weight"))
    refused(lambda: load_model(tmp_path), "model.layers.2.enorm.weight")
    rewrite(path, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("model.layers.2.")])
    loaded = load_model(tmp_path)
    assert isinstance(loaded.config, DeepseekConfig) and loaded.config.num_nextn_predict_layers == 0


def test_a_head_beside_a_tied_embedding_must_be_its_copy(tmp_path: Path) -> None:
    """transformers takes a head that differs for the model's own, whatever config.json says."""
    save_model(tmp_path, DENSE, fresh(DENSE).state_dict())
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    rewrite(path, lambda tensors: tensors.update({head: tensors[embedding].clone()}))
    assert same_weights(load_model(tmp_path), fresh(DENSE))
    rewrite(path, lambda tensors: tensors[head][3, 5].add_(0.5))
    refused(lambda: load_model(tmp_path), "model.safetensors", head, embedding, "tie_word_embeddings")
    rewrite(path, lambda tensors: tensors.update({head: torch.ones(60, 32)}))
    refused(lambda: load_model(tmp_path), "model.safetensors", head, "(60, 32)")
    generator = torch.Generator().manual_seed(5)
    rewrite(path, lambda tensors: tensors.update({head: torch.randn(61, 32, generator=generator)}))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))  # as the line says
    model, ids = load_model(tmp_path), torch.arange(1, 20)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(ids)), theirs(ids).logits, atol=1e-4, rtol=0)


HALF_BILLION = Qwen2Config(151936, 896, 24, 14, 2, 64, 4864, 32768, 1e6)
MEASURE = """
import sys
from pathlib import Path
import torch
from hadal.checkpoints.load import load_model
model = load_model(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(sum(p.nbytes for p in model.parameters()), int(peak.split()[1]) * 1024)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_loading_holds_one_copy(stored: torch.dtype, tmp_path: Path) -> None:
    """The 0.5B shape in four shards, read in its own dtype and in the other."""
    shapes = outline(HALF_BILLION).state_dict()
    values = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(stored)
    state = {
        name: values.repeat(-(-like.numel() // len(values)))[: like.numel()].view(like.shape)
        for name, like in shapes.items()
    }
    total = sum(tensor.nbytes for tensor in state.values())
    save_model(tmp_path, HALF_BILLION, state, shard_bytes=int(total / 3.6))
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    for dtype in ("bfloat16", "float32"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path), dtype], capture_output=True, text=True, check=True
        )
        weights, peak = (int(word) for word in done.stdout.split())
        print(f"{stored} read as {dtype}: weights {weights / 1e6:.0f} MB, VmHWM {peak / 1e6:.0f} MB")
        assert peak < 1.15 * weights + 500e6
