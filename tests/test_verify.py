"""`hadal verify` on small random checkpoints: it holds where all is right and says what is wrong where not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizer_families import write_tokenizer

from hadal.cli import main
from hadal.engine import LLM
from hadal.evaluate.verify import check_gsm8k, verdict, verify

ITEMS = [
    {"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n:,}"} for n in range(700, 1000)
]


def checkpoint(folder: Path, family: str) -> Path:
    write_tokenizer(folder, family)
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    common = dict(
        vocab_size=size + 3, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    if family == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common, head_dim=12))
    else:
        config = transformers.DeepseekV3Config(
            **{**common, "num_key_value_heads": 4}, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12,
            qk_rope_head_dim=8, v_head_dim=10, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
            moe_intermediate_size=20, first_k_dense_replace=1, n_group=1, topk_group=1,
        )  # fmt: skip
        model = transformers.DeepseekV3ForCausalLM(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: checkpoint(tmp_path_factory.mktemp(family), family) for family in ("qwen3", "r1")}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gsm8k") / "test.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return file


@pytest.mark.parametrize("family", ["qwen3", "r1"])
def test_a_sound_model_holds(family: str, folders: dict[str, Path], problems: Path) -> None:
    checks = verify(str(folders[family]), items=2, max_tokens=4, gsm8k=problems)
    assert [(c.name, c.status) for c in checks] == [
        ("tokens", "holds"), ("chat", "holds"), ("logits", "holds"), ("gsm8k", "not checked"),
    ]  # fmt: skip
    assert "0 of 2 right" in checks[-1].detail and "no figure" in checks[-1].detail
    assert verdict(checks) == "holds as far as it was checked" and verdict(checks[:3]) == "holds"


def test_bfloat16_is_held_to_its_own_bound(folders: dict[str, Path]) -> None:
    logits = verify(str(folders["qwen3"]), dtype=torch.bfloat16, items=0)[-1]
    assert logits.status == "holds" and 1e-4 < logits.figures["relative_l2"] < 5e-2


def test_wrong_weights_fail(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is handed other weights than hadal: one matrix in one layer is a little off."""
    import hadal.evaluate.verify as module

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folders["qwen3"].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    state = load_file(broken / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    original = module._reference_logits
    monkeypatch.setattr(module, "_reference_logits", lambda t, folder, p, d: original(t, broken, p, d))
    checks = verify(str(folders["qwen3"]), items=0)
    assert [c.status for c in checks] == ["holds", "holds", "fails"] and verdict(checks) == "fails"


def test_the_command_prints_a_verdict(
    folders: dict[str, Path], problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(folders["r1"]), "--gsm8k", str(problems), "--items", "1", "--max-tokens", "2"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-5:]] == ["tokens", "chat", "logits", "gsm8k", "verdict"]
    assert main([*arguments, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["verdict"] == "holds as far as it was checked" and len(out["checks"]) == 4
    assert main(["verify", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_another_tokenizer_fails(folders: dict[str, Path], tmp_path: Path) -> None:
    """Here only the end token is another."""
    for path in folders["qwen3"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|endoftext|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    from hadal.evaluate.verify import check_tokens
    from hadal.text.tokenizer import Tokenizer

    reference = transformers.AutoTokenizer.from_pretrained(folders["qwen3"])
    check = check_tokens(Tokenizer.load(tmp_path), reference)
    assert check.status == "fails" and "end token" in check.detail


def test_gsm8k_is_compared_where_a_figure_is_published(folders: dict[str, Path], problems: Path) -> None:
    llm = LLM.load(folders["qwen3"])
    low = check_gsm8k(llm, 20, 2, problems, published=(0.9, "its card"))
    assert low.status == "fails" and "published 90.0% (its card)" in low.detail and "cut off" in low.detail
    assert check_gsm8k(llm, 20, 2, problems, published=(0.01, "its card")).status == "holds"
