"""On released checkpoints: RL takes the memory that it was told to take, and adapters are sampled from as fast as none.

    HADAL_REAL_MODELS=DIR ./hadal test -m real tests/test_real_needs.py

All parameters of the 0.5B take up to 20 GB: where less is free, that case is skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from real_models import BOTH, real_model

from hadal.checkpoints.load import load_model
from hadal.engine import LLM, SamplingParams
from hadal.machine.memory import available_memory
from hadal.models.lora import LoraConfig, adapted_modules, attach
from hadal.text.tokenizer import Tokenizer

pytestmark = pytest.mark.real
UPDATES = 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("name", BOTH)
def test_rl_takes_the_memory_that_is_told(name: str, rank: int, dtype: str, tmp_path: Path) -> None:
    """Three updates of 4 prompts x 4 samples x 128 tokens, rewarded for what differs at any rate: not repeating."""
    settings = {
        "checkpoint": str(real_model(name)), "tasks": ["sums"], "grpo.updates": UPDATES, "grpo.prompts": 4,
        "grpo.samples": 4, "grpo.max_tokens": 128, "grpo.held_out_problems": 16, "evaluate.problems": 16,
        "evaluate.max_tokens": 128, "grpo.rewards.repetition": 1.0, "grpo.rewards.repetition_ngram": 1,
        "grpo.lora.rank": rank, "dtype": dtype,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-P", "-m", "hadal", "train", "qwen-gsm8k", "--out", str(tmp_path / "run"), "--json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    if "are free" in done.stderr:
        pytest.skip(f"{done.stderr.strip()} ({available_memory()} bytes are free)")
    assert done.returncode == 0, done.stderr
    notes = [json.loads(line).get("text", "") for line in done.stdout.splitlines()]
    (said,) = [note.split()[1:3] for note in notes if note.startswith("rl: ")]
    told = float(said[0]) * {"GB": 1e9, "MB": 1e6}[said[1]]
    ledger = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    taken = max(line["peak_memory_bytes"] for line in ledger)
    print(f"{name}, rank {rank}, {dtype}: told {told / 1e9:.2f} GB, taken {taken / 1e9:.2f} GB, {taken / told:.2f}")
    assert 0.75 <= taken / told <= 1.25
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in metrics if line["stage"] == "rl" and "grad_norm" in line]
    assert len(updates) == UPDATES and all(line["grad_norm"] > 0 for line in updates)
    assert all(line["mismatch"] < (1e-3 if dtype == "float32" else 0.1) for line in updates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", BOTH)
def test_adapters_are_sampled_from_as_fast_as_none(name: str, dtype: torch.dtype) -> None:
    """At most 1.2 times as long, merging after an update included; by the time of the CPU, the least of three turns."""
    folder = real_model(name)
    tokenizer = Tokenizer.load(folder)
    question = [{"role": "user", "content": "What is 12 + 30? Explain every step."}]
    prompts = [tokenizer.chat(question) for _ in range(4)]
    params = SamplingParams(max_tokens=64, n=4, seed=0, ignore_eos=True, logprobs=0, logprobs_of="sampled")
    full = load_model(folder, dtype).eval()
    adapted = load_model(folder, dtype).eval()
    attach(adapted, LoraConfig(16), 0)
    with torch.no_grad():
        for _, module in adapted_modules(adapted):
            for matrix in module.lora_B.values():
                matrix.normal_(std=1e-3)
    least: dict[str, float] = {}
    engines = {"full": LLM(full, tokenizer), "adapters": LLM(adapted, tokenizer)}
    for turn in range(4):
        for kind, llm in engines.items():
            llm.model.changed()  # as after an update
            began = time.process_time()
            llm.generate(prompts, params.spread(len(prompts)))
            taken = time.process_time() - began
            if turn:  # the first is warm-up
                least[kind] = min(taken, least.get(kind, taken))
    print(f"{name}, {dtype}: {least}, {least['adapters'] / least['full']:.2f}")
    assert least["adapters"] <= 1.2 * least["full"]
