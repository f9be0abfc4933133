"""A few updates on released checkpoints whose tokenizers have no token for a thought: all of it, and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from real_models import QWEN, SMOLLM2, real_model
from safetensors import safe_open

from hadal.cli import main

pytestmark = pytest.mark.real
QUESTIONS = [{"question": f"What is {n} + 1?", "answer": f"It is {n} + 1.\n#### {n + 1}"} for n in range(40)]


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize(("name", "task"), [(SMOLLM2, "sums"), (QWEN, "gsm8k:rows")])
def test_reinforcement_moves_the_weights(
    name: str, task: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qwen-gsm8k's own recipe, at 2 prompts x 2 samples x 16 tokens."""
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    for side, part in (("train", QUESTIONS[:30]), ("test", QUESTIONS[30:])):
        Path(f"rows/{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    settings: dict[str, Any] = {
        "checkpoint": str(real_model(name)), "tasks": [task], "grpo.updates": 3, "grpo.prompts": 2, "grpo.samples": 2,
        "grpo.max_tokens": 16, "grpo.micro_tokens": 64, "grpo.held_out_problems": 2, "grpo.optimizer.lr": 1e-4,
        "grpo.lora.rank": rank, "grpo.rewards.repetition": 1.0, "grpo.rewards.repetition_ngram": 1,
        "evaluate.problems": 2, "evaluate.max_tokens": 16, "dtype": "bfloat16",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    assert main(["train", "qwen-gsm8k", "--out", "run", *words]) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["stage"] == "rl" and "grad_norm" in line]
    assert len(updates) == 3 and all(line["grad_norm"] > 0 for line in updates)
    assert all(line["thinking_share"] == 0 for line in updates)
    before, after = (safe_open(folder / "model.safetensors", "pt") for folder in (real_model(name), Path("run")))
    assert set(before.keys()) == set(after.keys())
    moved = [key for key in after.keys() if not torch.equal(before.get_tensor(key), after.get_tensor(key))]
    assert any("q_proj" in key for key in moved)
