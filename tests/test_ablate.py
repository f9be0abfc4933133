"""Variants side by side: what is shared is run once, differences are paired, and a stopped one carries on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import write_recipe

from hadal.cli import main
from hadal.errors import UserError
from hadal.evaluate.statistics import paired_difference
from hadal.files import JsonLines
from hadal.library.record import read_run
from hadal.recipe.ablate import variants_of


def test_variants_are_all_combinations() -> None:
    found = variants_of(["grpo.algorithm=grpo,dapo", "grpo.samples=8, 16"])
    assert [v.name for v in found] == ["grpo+8", "grpo+16", "dapo+8", "dapo+16"]
    assert found[1].settings == ("grpo.algorithm=grpo", "grpo.samples=16")


@pytest.mark.parametrize("vary", ["grpo.samples=8", "grpo.samples=", "grpo.samples=8,8", "grpo.samples=8,"])
def test_a_single_value_is_no_ablation(vary: str) -> None:
    with pytest.raises(UserError, match="does not name two different values"):
        variants_of([vary])


def test_a_paired_interval_is_that_of_the_normal_approximation() -> None:
    """One seed, one task, n problems: mean and 1.96 standard errors of the differences."""
    values = [1.0] * 60 + [-1.0] * 20 + [0.0] * 120
    mean = sum(values) / 200
    error = (sum((v - mean) ** 2 for v in values) / 200 / 200) ** 0.5
    found = paired_difference([[values]])
    assert found["difference"] == pytest.approx(0.2) and (found["n"], found["seeds"]) == (200, 1)
    assert found["low"] == pytest.approx(mean - 1.96 * error, abs=0.01)
    assert found["high"] == pytest.approx(mean + 1.96 * error, abs=0.01)


def test_seeds_that_disagree_widen_the_interval() -> None:
    alike = paired_difference([[[1.0, 0.0] * 50]] * 3)
    apart = paired_difference([[[1.0, 0.0] * 50], [[1.0] * 100], [[0.0] * 100]])
    assert alike["difference"] == apart["difference"] == 0.5
    assert apart["high"] - apart["low"] > 2 * (alike["high"] - alike["low"])


def test_an_ablation_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    command = ["ablate", str(recipe), "--trust", "--vary", "grpo.algorithm=grpo,dr_grpo", "--out", str(out)]
    command += ["--problems", "10", "--seeds", "1", "--set", "pretrain.steps=40", "--set", "grpo.updates=3"]
    assert main(command) == 0
    first, second = (out / "seed0" / name for name in ("grpo", "dr_grpo"))
    assert "Taken over from" in capsys.readouterr().out
    assert [read_run(run)["config"]["stage"]["grpo"]["algorithm"] for run in (first, second)] == ["grpo", "dr_grpo"]

    def of(run: Path, stage: str) -> list[str]:
        return [json.dumps(line) for line in JsonLines(run / "metrics.jsonl").read() if line["stage"] == stage]

    assert of(first, "pretrain") == of(second, "pretrain") != []
    assert of(first, "grpo") and of(second, "grpo")
    shared = [(run / "stages" / "pretrain" / "model.safetensors").read_bytes() for run in (first, second)]
    assert shared[0] == shared[1]

    report = json.loads((out / "ablation.json").read_bytes())
    answers = [json.loads((out / "seed0" / f"{name}.json").read_bytes())["right"] for name in ("grpo", "dr_grpo")]
    assert len(answers[0]["letters"]) == 10
    shares = [{task: sum(right) / len(right) for task, right in own.items()} for own in answers]
    entry = report["variants"]["dr_grpo"]
    assert entry["difference"]["difference"] == pytest.approx(sum(shares[1][t] - shares[0][t] for t in shares[0]) / 2)
    assert "difference" not in report["variants"]["grpo"] and report["first"] == "grpo"
    text = (out / "ablation.md").read_text()
    assert "| dr_grpo |" in text and "| letters |" in text

    # Carried on: the second variant's RL is lost, the rest stays
    (out / "seed0" / "dr_grpo.json").unlink()
    record = json.loads((second / "run.json").read_bytes())
    (second / "run.json").write_text(json.dumps({**record, "status": "running"}))
    for stage in ("grpo", "evaluate-rl"):
        (second / "stages" / stage / "result.json").unlink()
    before = (first / "run.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (first / "run.json").stat().st_mtime_ns == before
    assert json.loads((out / "ablation.json").read_bytes())["variants"]["dr_grpo"]["accuracy"] == entry["accuracy"]

    capsys.readouterr()
    assert main([*command, "--problems", "11"]) == 2
    assert "holds another ablation" in capsys.readouterr().err
    wrong = ["--vary", "grpo.algorithm=grpo,drgrpo", "--out", str(tmp_path / "other")]
    assert main(["ablate", str(recipe), "--trust", *wrong]) == 2
    assert "Did you mean dr_grpo?" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_differs_early_is_not_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    command = ["ablate", str(recipe), "--trust", "--vary", "pretrain.steps=20,30", "--out", str(tmp_path / "out")]
    assert main([*command, "--problems", "4", "--seeds", "1", "--set", "grpo.updates=1"]) == 0
    assert "Taken over" not in capsys.readouterr().out
    metrics = [JsonLines(tmp_path / "out" / "seed0" / n / "metrics.jsonl").read() for n in ("20", "30")]
    steps = [max(line["step"] for line in lines if line["stage"] == "pretrain") for lines in metrics]
    assert steps[1] == steps[0] + 10
