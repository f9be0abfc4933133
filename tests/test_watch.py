"""The watch on RL names each planted fault, and says nothing of runs that are well."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_policy import allow, allowed, small_policy
from updates import rl_update

from hadal.files import plain
from hadal.stages.common.watch import AGAIN, RULES, WINDOW, Watch
from hadal.tasks import BUILT_IN
from hadal.train import algorithms, rl
from hadal.train.curriculum import Curriculum
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.rl import RLConfig
from hadal.train.rollouts import Group

torch.set_num_threads(1)
SMALL = RLConfig(prompts=4, samples=8, max_tokens=8)
LR = 3e-3


class Lab:
    """A real run on a tiny policy: an answer is right if it holds the letter e, or as `judge` says."""

    def __init__(self, judge: Callable[[str], bool] = lambda text: "e" in text, lr: float = LR) -> None:
        self.llm = small_policy()
        self.optimizer = FlatOptimizer(self.llm.model, OptimizerConfig(lr=lr, muon_lr=0.0))
        task = BUILT_IN["letters"]()
        task.judge = lambda problem, text: judge(text)  # type: ignore[method-assign]
        self.tasks = {"letters": task}
        self.step = 0
        self.lines: list[dict[str, Any]] = []

    def sharpen(self, factor: float) -> None:
        """Multiply the logits."""
        with torch.no_grad():
            self.llm.model.head_weight().mul_(factor)
        self.llm.model.changed()

    def never_end(self) -> None:
        """Forbid the end of a response."""
        allow(self.llm, [i for i in allowed(self.llm) if i != self.llm.tokenizer.eos_id])

    def run(self, config: RLConfig = SMALL, updates: int = WINDOW, watch: Watch | None = None) -> list[dict[str, Any]]:
        """The alarms of so many more updates."""
        watch = watch or Watch("grpo", config, 100, self.lines)
        found = []
        for _ in range(updates):
            result = rl_update(self.llm, self.optimizer, self.tasks, Curriculum(self.tasks), config, 0, self.step)
            self.step += 1
            line = plain({"stage": "grpo", "step": self.step, **result.metrics})
            found += watch.look(line, result.groups)
            self.lines.append(line)
        return found


def kinds(alarms: list[dict[str, Any]]) -> list[str]:
    return [alarm["alarm"] for alarm in alarms]


def test_a_small_run_that_learns_raises_no_alarm() -> None:
    lab = Lab(lambda text: text.strip()[:1] == "e", lr=2e-3)
    assert lab.run(replace(SMALL, prompts=8), 20) == []
    assert lab.lines[-1]["reward"] > lab.lines[0]["reward"] + 0.2


@pytest.mark.parametrize("run", ["dense", "dense-earlier", "deepseek"])
def test_healthy_runs_raise_no_alarm(run: str) -> None:
    """Metrics of whole quickstart runs, 120 updates each."""
    text = gzip.decompress((Path(__file__).parent / "data" / "rl_metrics.json.gz").read_bytes())
    lines = json.loads(text)[run]
    assert sum("reward" in line for line in lines) == 120 and sum("held_out" in line for line in lines) == 6
    watch = Watch("grpo", RLConfig(), 250)
    assert [alarm for line in lines for alarm in watch.look(line, [])] == []


def test_nothing_right() -> None:
    (alarm,) = Lab(lambda text: False).run()
    assert alarm["alarm"] == "nothing_right" and "nothing to reinforce" in alarm["text"] and alarm["step"] == WINDOW


def test_everything_right() -> None:
    lab = Lab(lambda text: text.strip()[:1] == "e", lr=1e-2)  # learnt to the full
    (alarm,) = [a for a in lab.run(updates=3 * WINDOW) if a["alarm"] == "all_right"]
    assert lab.lines[-1]["all_right"] == 1 and "nothing left to learn" in alarm["text"]


def test_a_format_that_is_never_matched_is_told_with_an_example() -> None:
    config = replace(SMALL, rewards={"format": 1.0})
    (alarm,) = Lab(lambda text: False).run(config)
    assert alarm["alarm"] == "format_unmatched"
    assert "cold start" in alarm["text"] and len(alarm["text"].split("An example: ")[1]) > 2


def test_all_responses_truncated() -> None:
    lab = Lab(lambda text: False)
    lab.never_end()
    (alarm,) = lab.run()
    assert alarm["alarm"] == "truncated" and "max_tokens = 8" in alarm["text"]


def test_advantages_that_are_all_zero() -> None:
    """So cold that the samples of a group are the same, right for some questions and wrong for others."""
    lab = Lab()
    answers: dict[str, bool] = {}
    task = lab.tasks["letters"]
    task.judge = lambda problem, text: answers.setdefault(problem.prompt, len(answers) % 2 == 0)  # type: ignore[method-assign]
    (alarm,) = [a for a in lab.run(replace(SMALL, temperature=1e-3)) if a["alarm"] != "entropy_collapsed"]
    assert alarm["alarm"] == "advantages_zero" and "temperature" in alarm["text"]
    assert 0.2 < lab.lines[-1]["reward"] < 0.8


BROKEN = """
from hadal.train.algorithms import Options
from hadal.train.algorithms.expert_iteration import advantages
def loss(tokens, options):
    return tokens.logprobs * {factor}
"""


@pytest.mark.parametrize(("factor", "expected"), [("0", "gradient_zero"), ("float('nan')", "not_finite")])
def test_a_gradient_that_is_zero_or_not_finite(
    factor: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "broken_" + expected
    (tmp_path / f"{name}.py").write_text(BROKEN.format(factor=factor))
    monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(tmp_path)])
    alarms = Lab().run(replace(SMALL, algorithm=name))
    assert kinds(alarms) == [expected]
    assert alarms[0]["step"] == (WINDOW if expected == "gradient_zero" else 1)


def test_entropy_that_collapses() -> None:
    lab = Lab()
    assert lab.run() == []
    lab.sharpen(3000.0)
    assert "entropy_collapsed" in kinds(lab.run()) and lab.lines[-1]["kept_groups"] == 0


def test_entropy_that_explodes() -> None:
    """A policy sure of itself in the beginning, and noise in the end."""
    lab = Lab(lr=1e-9)
    lab.sharpen(60.0)
    assert "entropy_exploded" not in kinds(lab.run())
    lab.sharpen(1 / 600)
    (alarm,) = [alarm for alarm in lab.run() if alarm["alarm"] == "entropy_exploded"]
    assert "learning rate" in alarm["text"] and lab.lines[-1]["entropy"] > 1.7  # ln 6 at most


def test_a_sampler_and_a_trainer_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights change between sampling and training, as with an engine that was not brought up to date."""
    lab = Lab()
    draw = rl.draw_groups

    def stale(*arguments: Any, **more: Any) -> list[Group]:
        groups = draw(*arguments, **more)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(lab.step)
            lab.optimizer.master.add_(torch.randn(lab.optimizer.master.shape, generator=generator), alpha=0.1)
        return groups

    monkeypatch.setattr(rl, "draw_groups", stale)
    (alarm,) = [a for a in lab.run(SMALL) if a["alarm"] == "mismatch"]
    assert "importance_cap" in alarm["text"] and lab.lines[-1]["mismatch"] > 0.1


def test_languages_that_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the thoughts' words are Chinese, of an English question; of a Chinese one they would be at home."""
    lab = Lab()
    draw = rl.draw_groups
    question = ""

    def foreign(*arguments: Any, **more: Any) -> list[Group]:
        groups = draw(*arguments, **more)
        return [
            replace(
                group,
                problem=replace(group.problem, prompt=question or group.problem.prompt),
                samples=[replace(s, text="<think>so 我们 count 字母</think> e") for s in group.samples],
            )
            for group in groups
        ]

    monkeypatch.setattr(rl, "draw_groups", foreign)
    (alarm,) = lab.run(SMALL)
    assert alarm["alarm"] == "languages_mixed" and "67%" in alarm["text"]
    question = "数一数"
    assert Lab().run(SMALL) == []


def test_length_that_explodes() -> None:
    """From some update on no response ends before the limit, and no more is earned."""
    lab = Lab(lambda text: text.strip()[:1] in "aeiou", lr=1e-9)
    config = replace(SMALL, max_tokens=60)
    watch = Watch("grpo", config, 100)
    assert lab.run(config, 3 * WINDOW, watch) == []
    lab.never_end()
    assert kinds(lab.run(config, 2, watch)) == ["length_explodes"]


def test_a_reward_that_is_hacked() -> None:
    """The reward of a real run rises; on the monitored problems, which ask for something else, it gets worse."""
    lab = Lab(lambda text: text.strip()[:1] == "e", lr=1e-3)
    config = replace(SMALL, prompts=8)
    watch = Watch("grpo", config, 250)
    found = []
    for share in (0.6, 0.58, 0.3):
        found += lab.run(config, 10, watch)
        found += watch.look({"stage": "grpo", "step": lab.step, "held_out": {"letters": share}}, [])
    (alarm,) = found
    assert alarm["alarm"] == "reward_hacked" and alarm["step"] == 30
    assert "from 60% to 30%" in alarm["text"] and "checkpoint of step 10" in alarm["text"]


def test_what_is_told_does_not_depend_on_being_carried_on() -> None:
    lab = Lab(lambda text: False)
    whole = Watch("grpo", SMALL, 100)
    told = lab.run(SMALL, WINDOW + 4, whole)
    assert len(told) == 1
    for cut in (3, WINDOW, WINDOW + 2):
        lines = lab.lines[:cut] + [alarm for alarm in told if alarm["step"] <= cut]
        resumed = Watch("grpo", SMALL, 100, lines)
        after = [alarm for line in lab.lines[cut:] for alarm in resumed.look(line, [])]
        assert after == [alarm for alarm in told if alarm["step"] > cut]
    later = [{**lab.lines[-1], "step": WINDOW + n} for n in (AGAIN - 1, AGAIN)]
    assert [len(whole.look(line, [])) for line in later] == [0, 1]


def test_every_rule_gives_a_cause_and_a_remedy() -> None:
    source = (Path(__file__).parent.parent / "docs" / "algorithms.md").read_text()
    assert all(f"`{name}`" in source for name in RULES)
