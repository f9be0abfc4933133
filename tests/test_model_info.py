"""`hadal model`: figures from configs alone against published ones and transformers; checkpoints written anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import hadal
from hadal.cli import main
from hadal.library.info import model_info
from hadal.library.shipped import names, shipped
from hadal.models.families import from_dict

DISTILLED = {  # parameters of the released files, as the hub counts them
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "r1-distill-qwen-7b": 7_615_616_512,
    "r1-distill-qwen-14b": 14_770_033_664,
    "r1-distill-qwen-32b": 32_763_876_352,
    "r1-distill-llama-8b": 8_030_261_248,
    "r1-distill-llama-70b": 70_553_706_496,
}


@pytest.mark.parametrize(
    ("name", "total", "active", "cache"),
    [
        ("v3", 671.03, "37", 70_272),
        ("r1", 671.03, "37", 70_272),
        ("v2", 235.74, "21", 69_120),
        ("v2-lite", 15.71, "2", 31_104),
    ],
)
def test_released_deepseek_models(name: str, total: float, active: str, cache: int) -> None:
    info = model_info(name)
    assert f"{info['total_parameters'] / 1e9:.2f}" == f"{total:.2f}"
    assert f"{info['active_parameters'] / 1e9:.0f}" == active
    assert info["cache_bytes_per_token"] == cache


@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_models(name: str) -> None:
    info = model_info(f"deepseek-ai/DeepSeek-{name.upper()}")
    assert info["total_parameters"] == DISTILLED[name]
    assert info["memory_bytes"]["bfloat16"] == 2 * DISTILLED[name]


@pytest.mark.parametrize("name", [*DISTILLED, "v2-lite"])
def test_parameters_are_those_of_transformers(name: str) -> None:
    """The module of transformers, outlined from the same numbers without memory."""
    data = shipped(name)
    assert data is not None
    layers = 3  # of which at least one is dense and one of experts
    config = transformers.AutoConfig.for_model(**{**data, "num_hidden_layers": layers})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    ours = from_dict(data)
    from dataclasses import replace

    from hadal.cost.flops import parameters

    assert parameters(replace(ours, num_hidden_layers=layers)).total == sum(p.numel() for p in model.parameters())


def test_every_shipped_config_is_read_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(names()) == {"v2", "v2-lite", "v3", "r1", "v3.1", *DISTILLED}
    for name in names():
        data = shipped(name)
        assert data is not None and from_dict(data).vocab_size == data["vocab_size"]
        assert main(["model", "info", name]) == 0
        text = capsys.readouterr().out
        assert f"{model_info(name)['cache_bytes_per_token']:,} bytes" in text
        assert max(map(len, text.splitlines())) <= 110


def test_json_holds_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "info", "v3", "--context", "1000", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["context"] == 1000 and sum(info["parameters_by_part"].values()) == info["total_parameters"]
    # One token at position 1000, by hand: twice the weights that it meets, and attention in all 61 layers.
    met = info["active_parameters"] - info["parameters_by_part"]["norms"]
    assert info["flops_per_token"] == 2 * met + 61 * 2 * 1000 * 128 * (192 + 128)
    assert info["plain_cache_bytes_per_token"] == 2 * 61 * 128 * (192 + 128)
    assert info["training_flops_per_token"] > 3 * 2 * met
    fp8 = info["memory_bytes"]["float8"]
    assert info["total_parameters"] < fp8 < 1.01 * info["total_parameters"]


def test_it_needs_no_torch_and_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shipped("v2-lite")))
    program = "import sys; from hadal.cli import main; main(sys.argv[1:]); print({'torch', 'numpy'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(hadal.__file__).parent.parent)}
    for place in (tmp_path, tmp_path / "config.json"):
        done = subprocess.run(
            [sys.executable, "-c", program, "model", "info", str(place)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert "15.71B" in done.stdout and done.stdout.endswith("set()\n"), done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ("{}", "model_type"),
        ('{"model_type": "mamba"}', "'mamba'"),
        ('{"model_type": "qwen2", "vocab_size": 3}', "lacks"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_config_is_one_line(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert main(["model", "info", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "words"), [("v4", "Did you mean v3?"), ("no/such/place", "folder"), ("mine/config.json", "config.json")]
)
def test_an_unknown_model_is_one_line(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "info", name]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_convert_writes_what_transformers_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    arguments = ["model", "convert", str(tmp_path / "a"), str(tmp_path / "b"), "--shard", "10KB"]
    assert main(arguments) == 0
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 2 and not list((tmp_path / "b").glob("*.part"))
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}"
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert read.dtype == torch.bfloat16
    expected = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.state_dict().items())

    assert main(["model", "convert", str(tmp_path / "b"), str(tmp_path / "c"), "--dtype", "float32"]) == 0
    merged = load_file(tmp_path / "c" / "model.safetensors")
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name].float()) for name in merged)
    capsys.readouterr()
    assert main(["model", "convert", str(tmp_path / "c"), str(tmp_path / "c")]) == 2
    assert main(["model", "convert", str(tmp_path / "none"), str(tmp_path / "d")]) == 2
    assert capsys.readouterr().err.count("\n") == 2 and not (tmp_path / "d").exists()
