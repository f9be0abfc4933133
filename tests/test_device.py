"""Models on another device than the CPU: every tensor is where it belongs, and what comes out is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from other_device import HERE, OtherDevice
from small_chain import write_chain

from hadal.cli import main
from hadal.engine import LLM, EngineConfig, SamplingParams
from hadal.errors import UserError
from hadal.machine import device
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.stages.common import run
from hadal.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENIZER = Tokenizer.from_words(["strawberry"])
SIZE = -(-TOKENIZER.size // 64) * 64
MODELS: dict[str, ModelConfig] = {
    "dense": DenseConfig(SIZE, 32, 2, 2, 1, 16, 64),
    "deepseek": DeepseekConfig(
        SIZE, 32, 2, 2, 64, 32, n_routed_experts=4, kv_lora_rank=16, num_nextn_predict_layers=1
    ),
}


def test_the_other_device_tells_where_tensors_mix() -> None:
    with OtherDevice():
        x = torch.ones(3, 4).to(HERE)
        weight = torch.nn.Parameter(torch.full((4, 2), 2.0).to(HERE))
        x[0] = 3
        (x @ weight).sum().backward()
        assert weight.grad is not None and weight.grad.cpu().tolist() == [[5.0, 5.0]] * 4
        assert x[[0, 2]].sum(1).tolist() == [12.0, 4.0] and x.t()[1].max().item() == 3
        with pytest.raises(RuntimeError, match="CPU tensors among"):
            x + torch.ones(3, 4)


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("speculate", [None, "ngram", "mtp"])
def test_the_engine_samples_the_same_on_another_device(arch: str, speculate: str | None) -> None:
    if speculate == "mtp" and arch == "dense":
        pytest.skip("it has no module that predicts")
    config = EngineConfig(speculate=speculate, cache_bytes=50_000_000)
    questions = ("How many r in strawberry?", "hi", "What is 3 + 4?")
    prompts = [TOKENIZER.chat([{"role": "user", "content": question}]) for question in questions]
    params = [
        SamplingParams(max_tokens=12, seed=i, n=2, logprobs=1, top_p=0.9, presence_penalty=0.3, thinking_budget=4)
        for i in range(3)
    ]

    def sampled(where: torch.device) -> list[list[list[int]]]:
        model = build(MODELS[arch])
        model.initialise(0)
        llm = LLM(model.eval().to(where), TOKENIZER, config)
        return [[sample.token_ids for sample in output.outputs] for output in llm.generate(prompts, params)]

    expected = sampled(torch.device("cpu"))
    with OtherDevice():
        assert sampled(HERE) == expected


@pytest.mark.long
def test_a_whole_chain_trains_the_same_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(write_chain(tmp_path))
    assert main(["train", recipe, "--trust", "--out", "cpu"]) == 0
    monkeypatch.setattr(run, "place", lambda device: HERE)
    with OtherDevice():
        assert main(["train", recipe, "--trust", "--out", "other"]) == 0

    def figures(folder: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]

    cpu, other = figures("cpu"), figures("other")
    assert [(line["stage"], line["step"]) for line in cpu] == [(line["stage"], line["step"]) for line in other]
    losses = [(a["loss"], b["loss"]) for a, b in zip(cpu, other, strict=True) if "loss" in a]
    assert len(losses) > 20 and all(a == pytest.approx(b, rel=1e-3) for a, b in losses)


def test_a_device_is_picked_by_size_and_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick("auto", 1 << 40) == "cpu"
    with pytest.raises(UserError, match="sees no GPU"):
        device.pick("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick("auto", 1 << 40) == "cuda" and device.pick("auto", 1_000_000) == "cpu"
    assert device.pick("cpu", 1 << 40) == "cpu" and device.pick("cuda", 0) == "cuda"
    assert str(device.place("cuda")) == "cuda" and str(device.place("auto")) == "cpu"
