"""Gradients that are not finite: in every trainer such an update is left out, told and counted; too many end it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_chain import write_chain
from torch import Tensor

from hadal.cli import main
from hadal.stages import distill, pretrain, sft
from hadal.train import rl

STAGES = {"base": pretrain, "dev1": sft, "on-logits": distill, "on-policy": distill, "r1-zero": rl}
"""A stage of each kind of trainer, and the module whose loss is spoilt."""
LOSSES = {pretrain: "pretraining_loss", sft: "pretraining_loss", distill: "distillation_loss", rl: "total"}
FEWER = {
    "reject.problems": 12, "sft.epochs": 5, "distill.epochs": 8, "distill.updates": 10, "grpo.updates": 10,
    "grpo.options.kl": 0.01,  # so that RL has a gradient in every update
}  # fmt: skip


def spoil(stage: str, passes: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of some of a trainer's passes NaN, counted from the stage's first."""
    module = STAGES[stage]
    name, count = LOSSES[module], 0
    honest = getattr(module, name)

    def loss(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        found = honest(*arguments, **more)
        factor = float("nan") if count - 1 in passes else 1.0
        return found * factor if isinstance(found, Tensor) else (found[0] * factor, *found[1:])

    monkeypatch.setattr(module, name, loss)


def run(stage: str, folder: Path) -> int:
    """The chain down to a stage, as short as it can be, from the base."""
    recipe = write_chain(folder)
    before, _, stages = recipe.read_text().partition("[stage]\n")
    needed = {"base", stage} if stage in ("base", "r1-zero") else {"base", "cold-start", "student", stage}
    chain = "\n".join(line for line in stages.splitlines() if line.split(" = ")[0] in needed)
    for name, other in (('from = "r1-zero"', 'from = "base"'), ('"r1"', '"base"'), ("answers", "cold-start")):
        chain = chain.replace(name, other)
    recipe.write_text(before.replace('publish = "r1"\n', "") + "[stage]\n" + chain + "\n")
    steps = [] if stage == "r1-zero" else ["--set", "pretrain.steps=20"]  # whose base must know its task a little
    words = [word for key, value in FEWER.items() for word in ("--set", f"{key}={value}")]
    return main(["train", str(recipe), "--out", str(folder / "run"), "--trust", *words, *steps])


def lines_of(stage: str, folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stage", STAGES)
def test_such_an_update_is_told_and_counted_and_several_in_a_row_end_the_stage(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second update is spoilt, and all from one on that the stage has come to nevertheless."""
    again = 11 if stage == "base" else 4  # pre-training writes every tenth line
    spoil(stage, {1, *range(again, 10_000)}, monkeypatch)
    assert run(stage, tmp_path) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"hadal: {stage}: the last 5 gradients, up to update {again + 5}, were not finite.")
    assert err.count("\n") == 1
    lines = lines_of(stage, tmp_path)
    alarms = [line["step"] for line in lines if line.get("alarm") == "not_finite"]
    assert alarms == ([2] if stage == "r1-zero" else [2, again + 1, again + 3])  # RL says it once in 100 updates
    assert f"{stage}, update 2: " in out
    told = {line["step"]: line.get("left_out", 0) for line in lines if "grad_norm" in line}
    assert all(told[step] == (step > 1) for step in told if step <= again)
    assert not (tmp_path / "run/stages" / stage / "result.json").exists()
