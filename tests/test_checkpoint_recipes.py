"""Recipes on checkpoints, from beginning to end, on small random models of Qwen2's shape.

The rows here are made up. With HADAL_TEST_DATA, a folder that holds gsm8k/, both run on the real GSM8K as well, where a
random model can learn nothing: what is shown there is that every part fits the others.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from local_server import served
from safetensors.torch import load_file
from tokenizer_families import write_tokenizer

from hadal.checkpoints.save import save_model
from hadal.cli import main
from hadal.models.build import build
from hadal.models.dense.config import Qwen2Config

DATA = Path(os.environ.get("HADAL_TEST_DATA", "/nowhere"))
SMALL = {"stage.rl.rollouts_every": 2, "grpo.held_out_every": 4, "grpo.held_out_problems": 10, "threads": 1}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checkpoint(folder: Path, family: str = "qwen3") -> Path:
    config = Qwen2Config(448, 64, 2, 4, 2, head_dim=16, intermediate_size=128, max_position_embeddings=2048)
    model = build(config)
    model.initialise(0)
    save_model(folder, config, model.state_dict())
    write_tokenizer(folder, family)
    return folder


def answer(number: int, answers: list[int]) -> int:
    """One of the answers, and nothing in the number tells which."""
    return random.Random(number).choice(answers)


def rows(folder: Path, answers: list[int]) -> Path:
    """Questions by number; the same on both sides, with other numbers."""
    folder.mkdir()
    for name, begin, count in (("train", 0, 60), ("test", 100, 20)):
        lines = [
            json.dumps({"question": f"Number {n}?", "answer": f"It is so.\n#### {answer(n, answers)}"})
            for n in range(begin, begin + count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class Served(BaseHTTPRequestHandler):
    """A teacher that says `The answer is N.` with the N of the question's row, after a wrong one now and then."""

    answers: list[int] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = int("".join(c for c in body["messages"][0]["content"].split("?")[0] if c.isdigit()) or 0)
        right = answer(number, type(self).answers)
        said = {"content": f"The answer is {right if body['seed'] % 2 else 99}."}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": said}]}).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with served(Served) as server:
        yield f"{server.address}/v1"


def train(recipe: str, out: Path, settings: dict[str, Any]) -> int:
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return main(["train", recipe, "--out", str(out), *words])


def score(run: Path, stage: str) -> float:
    result = json.loads((run / "stages" / stage / "result.json").read_text())
    return float(result["tasks"]["gsm8k"]["accuracy"])


def test_a_teacher_is_distilled_and_then_practice_makes_it_right(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random model learns to say 7 or 8 from a teacher; RL where 7 is right alone makes it say 7."""
    Served.answers = [7, 8]
    base, even = checkpoint(Path("base")), rows(Path("even"), [7, 8])
    settings = {
        "checkpoint": str(base), "tasks": [f"gsm8k:{even}"], "reject.endpoint": address, "reject.problems": 80,
        "reject.samples": 2, "reject.max_tokens": 32, "distill.batch_tokens": 512, "distill.epochs": 30,
        "distill.optimizer.lr": 3e-3, "evaluate.problems": 20, "evaluate.samples": 4, "evaluate.max_tokens": 16,
        "threads": 1, "dtype": "float32",
    }  # fmt: skip
    assert train("distill-gsm8k", Path("taught"), settings) == 0
    said = capsys.readouterr().out
    assert "distilled: " in said and " (weights" in said and "minutes" in said  # told before it starts
    assert said.index("minutes.") < said.index("conversations, ")
    assert score(Path("taught"), "before") < 0.1 and 0.3 < score(Path("taught"), "evaluate-distilled") < 0.7
    kept = [json.loads(line) for line in Path("taught/stages/answers/data.jsonl").read_text().splitlines()]
    assert kept and not [line for line in kept if "99" in line["messages"][1]["content"]]

    sevens = rows(Path("sevens"), [7])
    small = {
        "checkpoint": "taught", "tasks": [f"gsm8k:{sevens}"], "grpo.updates": 8, "grpo.prompts": 6, "grpo.samples": 8,
        "grpo.max_tokens": 16, "grpo.optimizer.lr": 2e-3, "grpo.checkpoint_every": 4, "evaluate.problems": 20,
        "evaluate.samples": 4, "evaluate.max_tokens": 16, "dtype": "float32", **SMALL,
    }  # fmt: skip
    assert train("qwen-gsm8k", Path("full"), small) == 0
    lora = {"grpo.lora.rank": 8, "grpo.optimizer.lr": 5e-3, "grpo.updates": 20}
    assert train("qwen-gsm8k", Path("adapted"), {**small, **lora}) == 0
    for run, gain in ((Path("full"), 0.15), (Path("adapted"), 0.05)):  # adapters learn more slowly
        before, after = score(run, "before"), score(run, "evaluate-rl")
        assert 0.2 < before < 0.8 and after > before + gain, (run, before, after)
    weights = load_file("adapted/model.safetensors")
    assert weights.keys() == load_file("taught/model.safetensors").keys()  # adapters are merged
    assert Path("adapted/tokenizer.json").read_bytes() == Path("base/tokenizer.json").read_bytes()


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("family", ["qwen2", "llama3"])
def test_a_tokenizer_without_a_token_for_thoughts_is_trained_all_the_same(family: str, lora: int) -> None:
    """Rewarded for what random answers differ in, RL moves the weights, update after update; none of them thinks."""
    base = checkpoint(Path("base"), family)
    settings = {
        "checkpoint": str(base), "tasks": [f"gsm8k:{rows(Path('rows'), [7])}"], "grpo.updates": 3, "grpo.prompts": 2,
        "grpo.samples": 16, "grpo.max_tokens": 16, "grpo.optimizer.lr": 1e-3, "grpo.lora.rank": lora,
        "grpo.rewards.repetition": 1.0, "grpo.rewards.repetition_ngram": 1, "evaluate.problems": 2,
        "evaluate.max_tokens": 8, "dtype": "float32", **SMALL,
    }  # fmt: skip
    assert train("qwen-gsm8k", Path("run"), settings) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["stage"] == "rl" and "grad_norm" in line]
    assert len(updates) == 3 and all(line["grad_norm"] > 0 and line["thinking_share"] == 0 for line in updates)
    before, after = load_file("base/model.safetensors"), load_file("run/model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_rejection_sampling_leaves_the_choice_to_a_model_without_a_token_for_thoughts(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = """
        checkpoint = "base"
        tasks = ["gsm8k:rows"]
        [stage]
        answers = { kind = "reject", from = "checkpoint", problems = 2, samples = 1, keep = 1, gold = 2 }
        taught = { kind = "sft", from = "checkpoint", data = ["answers"], epochs = 1 }
    """
    checkpoint(Path("base"), family)
    rows(Path("rows"), [7])
    Path("recipe.toml").write_text("\n".join(line.strip() for line in recipe.splitlines()))
    assert train("recipe.toml", Path("run"), {"threads": 1, "dtype": "float32"}) == 0
    assert ("the model chooses" in capsys.readouterr().out) == (family == "qwen2")
    stored = [json.loads(line) for line in Path("run/stages/answers/answers.jsonl").read_text().splitlines()]
    assert all(line["answers"][0].startswith("<think>") == (family == "qwen3") for line in stored)


def test_what_does_not_fit_is_said_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hadal.stages.common import needs

    monkeypatch.setattr(needs, "available_memory", lambda: 300_000_000)
    settings = {"checkpoint": str(checkpoint(Path("base"))), "tasks": [f"gsm8k:{rows(Path('rows'), [7])}"]}
    settings |= {"dtype": "float32", "grpo.micro_tokens": 1 << 17}
    assert train("qwen-gsm8k", Path("run"), settings) == 2
    err = capsys.readouterr().err
    assert err.startswith("hadal: rl needs about") and err.count("\n") == 1
    assert "--set stage.rl.lora.rank=16" in err and "300 MB are free" in err


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "mamba"}'), "mamba"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
    ],
)
def test_a_checkpoint_of_another_kind_is_one_line(harm: Any, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    harm(checkpoint(Path("base")))
    settings = {"checkpoint": "base", "tasks": [f"gsm8k:{rows(Path('rows'), [7])}"], "threads": 1, "dtype": "float32"}
    assert train("qwen-gsm8k", Path("run"), settings) == 2
    err = capsys.readouterr().err
    assert err.startswith("hadal: ") and err.count("\n") == 1 and word in err


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="HADAL_TEST_DATA names no folder with gsm8k/")
def test_both_run_on_the_real_gsm8k(address: str) -> None:
    Served.answers = [7]
    base = checkpoint(Path("base"))
    common = {
        "checkpoint": str(base), "tasks": [f"gsm8k:{DATA / 'gsm8k'}"], "evaluate.problems": 12, "evaluate.samples": 1,
        "evaluate.max_tokens": 24, "threads": 1, "dtype": "float32",
    }  # fmt: skip
    rl = {"grpo.updates": 2, "grpo.prompts": 4, "grpo.samples": 4, "grpo.max_tokens": 24, "grpo.held_out_problems": 4}
    assert train("qwen-gsm8k", Path("rl"), {**common, **rl}) == 0
    teach = {"reject.endpoint": address, "reject.problems": 40, "reject.samples": 2, "reject.gold": 20}
    assert train("distill-gsm8k", Path("taught"), {**common, **teach, "distill.epochs": 1}) == 0
    for run in (Path("rl"), Path("taught")):
        assert (run / "model.safetensors").is_file() and (run / "report.html").is_file()
