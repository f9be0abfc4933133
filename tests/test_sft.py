"""`hadal sft` on small random checkpoints of three families: it learns, resumes, refuses, leaves what others open."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizer_families import write_tokenizer

from hadal.checkpoints.save import save_model
from hadal.cli import main
from hadal.cost.ledger import Ledger, totals
from hadal.engine import LLM, SamplingParams
from hadal.library.shipped import shipped
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import LlamaConfig, Qwen2Config
from hadal.models.lora import LoraConfig
from hadal.recipe.finetune import SftConfig, finetune
from hadal.terminal.view import PlainView
from hadal.text.tokenizer import Tokenizer
from hadal.train.optim import OptimizerConfig

COMMON: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 448}
SHAPES: dict[str, tuple[ModelConfig, str]] = {
    "qwen2": (Qwen2Config(**COMMON, head_dim=16, max_position_embeddings=128), "qwen3"),
    "llama": (LlamaConfig(**COMMON, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False), "llama3"),
    "deepseek_v3": (
        DeepseekConfig(
            **COMMON, moe_intermediate_size=32, n_routed_experts=4, q_lora_rank=32, kv_lora_rank=32,
            qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, max_position_embeddings=128,
            num_nextn_predict_layers=1,
        ),
        "r1",
    ),
}  # fmt: skip
CAPITALS = {"France": "Paris", "Peru": "Lima", "Chad": "Cairo", "Cuba": "Oslo", "Mali": "Rome", "Iran": "Bern"}
FRAMES = [
    "What is the capital of {}?", "{}: its capital?", "Name the capital of {}.", "The capital of {} is", "capital {}",
    "Tell me of {}.", "{}!", "Which city leads {}?", "And {}?", "I am in {}. Where do I go?",
]  # fmt: skip
HELD = [(FRAMES[i % 10], list(CAPITALS)[i % 6]) for i in range(6)]  # pairs of a frame and a country, never trained on


def data(path: Path, count: int = 200) -> Path:
    pairs = [(f, c) for f in FRAMES for c in CAPITALS if (f, c) not in HELD]
    with path.open("w") as file:
        for i in range(count):
            frame, country = pairs[i % len(pairs)]
            answer = f"It is {CAPITALS[country]}."
            turns = [{"role": "user", "content": frame.format(country)}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def checkpoint(folder: Path, name: str) -> Path:
    config, form = SHAPES[name]
    model = build(config)
    model.initialise(0)
    save_model(folder, config, model.state_dict())
    write_tokenizer(folder, form)
    return folder


def right(folder: Path | str) -> float:
    """The share of held-out questions that are answered with the right city."""
    llm = LLM.load(folder)
    prompts = [llm.tokenizer.chat([{"role": "user", "content": frame.format(country)}]) for frame, country in HELD]
    if llm.tokenizer.in_thought(prompts[0]):
        asked = [[{"role": "user", "content": frame.format(country)}] for frame, country in HELD]
        prompts = [llm.tokenizer.chat(messages, thinking=False) for messages in asked]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24))
    answers = [f"It is {CAPITALS[country]}." for _, country in HELD]
    return sum(o.outputs[0].text.strip() == a for o, a in zip(outputs, answers, strict=True)) / len(HELD)


FULL = SftConfig(
    epochs=16, batch_tokens=512, dtype="float32", optimizer=OptimizerConfig(lr=3e-3, muon_lr=0.0, beta2=0.99, eps=1e-8)
)
LORA = replace(FULL, epochs=24, lora=LoraConfig(16, 64, targets=["o_proj", "gate_proj", "up_proj", "down_proj"]))


class Told(PlainView):
    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(sys.stdout)

    def _say(self, line: str) -> None:
        self.lines.append(line)


SHOWN = {("qwen2", "full"), ("llama", "merged"), ("deepseek_v3", "lora")}
"""Of all families and ways those that the default tests take; the others are as slow and marked long."""


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=[] if (name, way) in SHOWN else pytest.mark.long)
        for name in SHAPES for way in ("full", "lora", "merged")
    ],
)  # fmt: skip
def test_it_learns_what_it_is_shown(name: str, way: str, tmp_path: Path) -> None:
    base, out, view = checkpoint(tmp_path / "base", name), tmp_path / "out", Told()
    assert right(base) == 0
    config = FULL if way == "full" else LORA
    if name == "deepseek_v3" and way != "full":
        targets = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", *LORA.lora.targets]
        config = replace(config, lora=replace(config.lora, targets=targets))
    if way == "merged":
        config = replace(config, checkpoint_activations=True)
    before = (base / "model.safetensors").read_bytes()
    finetune(str(base), data(tmp_path / "data.jsonl"), out, config, view, way == "merged")
    assert right(out) >= 5 / 6
    assert (base / "model.safetensors").read_bytes() == before
    assert any("Memory: about" in line for line in view.lines) and any("minutes" in line for line in view.lines)
    assert (out / "adapter_model.safetensors").is_file() == (way == "lora")
    record = totals(Ledger(out / "ledger.jsonl").read(), "sft")  # one for each checkpoint, and the last
    assert record.stage == "sft" and record.tokens_trained > 1000 and record.flops > 0
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        mixtures = [] if name != "deepseek_v3" else [1, 2] if way == "full" else [1]  # 2: the prediction module
        assert [layer["layer"] for layer in line.get("experts", [])] == mixtures
    if way != "lora":
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        assert transformers.AutoTokenizer.from_pretrained(out).chat_template
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            ours = LLM.load(out).model
            assert float((theirs(ids).logits - ours.logits(ours(ids))).abs().max()) < 1e-3


def test_bfloat16_keeps_masters_and_saves_bfloat16(tmp_path: Path) -> None:
    base, out = checkpoint(tmp_path / "base", "deepseek_v3"), tmp_path / "out"
    finetune(str(base), data(tmp_path / "data.jsonl", 20), out, replace(FULL, dtype="bfloat16", epochs=1), Told())
    from safetensors.torch import load_file

    saved = load_file(out / "model.safetensors")
    kinds = {str(t.dtype): n for n, t in saved.items()}
    assert set(kinds) == {"torch.bfloat16", "torch.float32"}
    assert all(t.dtype == torch.bfloat16 for n, t in saved.items() if not n.endswith("e_score_correction_bias"))
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


# As a command


def arguments(base: Path, out: Path, file: Path, *more: str) -> list[str]:
    fixed = ["--dtype", "float32", "--batch-tokens", "512", "--set", "threads=1"]
    return ["sft", str(base), str(file), "--out", str(out), *fixed, *more]


@pytest.mark.parametrize(
    "more", [pytest.param([], marks=pytest.mark.long), ["--lora", "4", "--set", "lora.dropout=0.1"]]
)
def test_killed_and_carried_on_it_ends_in_the_same_bits(more: list[str], tmp_path: Path) -> None:
    base, file = checkpoint(tmp_path / "base", "qwen2"), data(tmp_path / "data.jsonl")
    settings = ["--epochs", "4", "--set", "checkpoint_every=4", *more]
    command = [sys.executable, "-P", "-m", "hadal"]

    def run(out: Path, kill_at: int | None) -> None:
        process = subprocess.Popen(
            [*command, *arguments(base, out, file, *settings)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while kill_at is not None and process.poll() is None:
            path = out / "metrics.jsonl"
            if path.is_file() and path.read_bytes().count(b"\n") >= kill_at:
                process.kill()
            time.sleep(0.002)
        _, errors = process.communicate()
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL), errors

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, None)
    lines = (whole / "metrics.jsonl").read_bytes().count(b"\n")
    for moment in (6, lines - 6):
        run(killed, moment)
    run(killed, None)
    weights = "adapter_model.safetensors" if more else "model.safetensors"
    for name in (weights, "metrics.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not (killed / "stages" / "sft" / "state").exists()


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("hadal: ") and error.count("\n") == 1, error
    return error


def test_mistakes_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, file, out = checkpoint(tmp_path / "base", "qwen2"), data(tmp_path / "data.jsonl", 5), tmp_path / "out"
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "pirate", "content": "x"}]}\n')
    assert "role 'pirate'" in refusal(capsys, *arguments(base, out, tmp_path / "bad.jsonl"))
    assert "There is no folder" in refusal(capsys, *arguments(tmp_path / "nowhere", out, file))
    mistyped = arguments(base, out, file, "--set", "lora.rnk=3")
    assert "Unknown key lora.rnk. Did you mean rank?" in refusal(capsys, *mistyped)
    moving = arguments(base, out, file, "--lora", "2", "--set", "router_bias_rate=0.1")
    assert "Leave router_bias_rate at 0" in refusal(capsys, *moving)
    assert "is the model itself" in refusal(capsys, *arguments(base, base, file))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert "is not empty and holds no run" in refusal(capsys, *arguments(base, other, file))
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_a_folder_keeps_to_its_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, file, out = checkpoint(tmp_path / "base", "qwen2"), data(tmp_path / "data.jsonl", 20), tmp_path / "out"
    words = arguments(base, out, file, "--lora", "2", "--epochs", "1")
    assert main(words) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "is done already" in capsys.readouterr().out
    assert "holds a run with other settings (config.seed 0 instead of 1)" in refusal(capsys, *words, "--seed", "1")
    data(file, 21)
    assert "holds a run with other settings (data" in refusal(capsys, *words)
    # its adapters are asked and refused like a model
    assert main(["ask", str(out), "And Peru?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "And Peru?"
    assert "holds adapters, not a model" in refusal(capsys, *arguments(out, tmp_path / "more", file))
    shutil.rmtree(base)
    assert "There is no folder" in refusal(capsys, "ask", str(out), "And Peru?")
    checkpoint(base, "deepseek_v3")
    assert "Is it an adapter of another model?" in refusal(capsys, "ask", str(out), "And Peru?")


def test_memory_that_is_not_there_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tokenizer(tmp_path / "base", "llama3")
    (base / "config.json").write_text(json.dumps(shipped("r1-distill-llama-70b")))  # and no weights at all
    file, out = data(tmp_path / "data.jsonl", 20), tmp_path / "out"
    assert main(arguments(base, out, file)) == 2
    told = capsys.readouterr()
    needed = re.search(r"needs about (\d+\.\d) GB", told.err)
    assert needed and 16 * 70.55 < float(needed[1]) < 1500, told.err  # 16 bytes a parameter, and what passes need
    assert "--checkpoint-activations, --lora 16, --dtype bfloat16" in told.err and told.err.count("\n") == 1
    assert "Memory: about" in told.out and "minutes" in told.out
    assert not list(out.glob("*.safetensors"))
    mistyped = arguments(base, out, file, "--lora", "2", "--set", 'lora.targets=["q_prj"]')
    assert "no linear layer 'q_prj'" in refusal(capsys, *mistyped)


def test_plain_checkpoints_are_asked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = checkpoint(tmp_path / "base", "llama")  # whose tokenizer knows no thoughts
    assert main(["ask", str(base), "And Peru?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["thought"] is None


def test_generation_stops_at_every_end_id(tmp_path: Path) -> None:
    """An end that generation_config.json names beside the tokenizer's own ends a response, too."""
    base = checkpoint(tmp_path / "base", "qwen2")
    llm = LLM.load(base)
    prompt = llm.tokenizer.chat([{"role": "user", "content": "And Peru?"}])
    (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8))
    drawn = output.outputs[0].token_ids
    assert output.outputs[0].finish_reason == "length"
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [llm.tokenizer.eos_id, drawn[0]]}))
    again = LLM.load(base)
    assert again.tokenizer.eos_ids == Tokenizer.load(base).eos_ids == {llm.tokenizer.eos_id, drawn[0]}
    (output,) = again.generate([prompt], SamplingParams(temperature=0, max_tokens=8))
    assert output.outputs[0].token_ids == drawn[:1] and output.outputs[0].finish_reason == "stop"
    assert list(again.stream(prompt, SamplingParams(temperature=0, max_tokens=8))) == []


MEASURE = """
import sys, json
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
import hadal.recipe.finetune as f
from hadal.machine.memory import peak_memory_bytes
from hadal.recipe.finetune import SftConfig
from hadal.models.lora import LoraConfig
from hadal.reading import read_dataclass
from hadal.terminal.view import JsonView
base, data, out, settings = sys.argv[1:]
config = replace(read_dataclass(SftConfig, json.loads(settings), ""), threads=1)
torch.nn.functional.linear(torch.ones(512, 512), torch.ones(512, 512))
seen = {}
plain = f.needs
f.needs = lambda *a: seen.setdefault("needs", plain(*a))
f.finetune(base, Path(data), Path(out), config, JsonView(sys.stderr))
print(json.dumps([seen["needs"].total, peak_memory_bytes()]))
"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["qwen2", "deepseek_v3"])
def test_the_memory_that_is_told_is_the_memory_that_is_taken(name: str, tmp_path: Path) -> None:
    """The forecast against the peak of a process of its own, for a model of some 30M parameters."""
    config, form = SHAPES[name]
    bigger: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 8, "vocab_size": 20_000}
    bigger |= {"intermediate_size": 1024, "max_position_embeddings": 2048}
    if name == "qwen2":
        bigger |= {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}
    else:
        bigger |= {"moe_intermediate_size": 256, "kv_lora_rank": 128, "q_lora_rank": 192, "num_nextn_predict_layers": 0}
    config = replace(config, **bigger)
    model = build(config)
    model.initialise(0)
    base = tmp_path / "base"
    save_model(base, config, model.state_dict())
    write_tokenizer(base, form)
    file = tmp_path / "data.jsonl"
    turns = [{"role": "user", "content": "a b c " * 40}, {"role": "assistant", "content": "d e f " * 40}]
    file.write_text((json.dumps({"messages": turns}) + "\n") * 16)
    ratios = {}
    for label, settings in {
        "full": {}, "full, checkpointed": {"checkpoint_activations": True}, "lora": {"lora": {"rank": 16}},
        "lora, checkpointed": {"lora": {"rank": 16}, "checkpoint_activations": True},
        "full, bfloat16": {"dtype": "bfloat16"},
    }.items():  # fmt: skip
        fixed = {"dtype": "float32", "epochs": 1, "batch_tokens": 4096, "pass_tokens": 2048, "checkpoint_every": 2}
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(base), str(file), str(tmp_path / label), json.dumps(fixed | settings)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told, taken = json.loads(done.stdout)
        ratios[label] = taken / told
        print(f"{name}, {label}: told {told / 1e6:.0f} MB, taken {taken / 1e6:.0f} MB, ratio {taken / told:.2f}")
    assert all(0.7 < ratio < 1.2 for ratio in ratios.values()), ratios
