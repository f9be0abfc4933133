"""What a run says of itself is true: of one from a checkpoint, of one without a gain, of one that never thinks."""

from __future__ import annotations

import io
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from real_models import QWEN, real_model
from rich.console import Console
from test_checkpoint_recipes import checkpoint, rows, train

from hadal.evaluate.statistics import proportion
from hadal.library.record import is_grown, origin, write_run
from hadal.models import packed
from hadal.models.dense.config import Qwen2Config
from hadal.recipe.config import read_recipe
from hadal.report.comparison import headline
from hadal.report.examined import examined
from hadal.report.findings import skill_finding, wilson
from hadal.report.run import gather
from hadal.report.words import setting
from hadal.stages.grpo import Config as GrpoConfig
from hadal.stages.grpo import _about
from hadal.stages.pretrain import none_ready
from hadal.tasks import load_tasks
from hadal.terminal.chat import Chat
from hadal.terminal.model import Model

GROWN = ("random numbers", "grown", "Grown", "Grow it", "knows nothing", "It is tiny", "learned to think", "dense")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RL on a checkpoint of random weights: it never thinks, and nothing is gained."""
    folder = tmp_path_factory.mktemp("from-checkpoint")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert train("qwen-gsm8k", Path("run"), settings_of_run()) == 0
    finally:
        os.chdir(before)
    return folder / "run"


def settings_of_run() -> dict[str, Any]:
    base = checkpoint(Path("base"))
    return {
        "checkpoint": str(base), "tasks": [f"gsm8k:{rows(Path('rows'), [7])}"], "grpo.updates": 1, "grpo.prompts": 2,
        "grpo.samples": 2, "grpo.max_tokens": 8, "grpo.held_out_problems": 4, "evaluate.problems": 6,
        "evaluate.max_tokens": 8, "threads": 1, "dtype": "float32",
    }  # fmt: skip


def conversation(model: Model, lines: list[str]) -> tuple[str, Chat]:
    stream = io.StringIO()
    chat = Chat(model, Console(file=stream, width=100, highlight=False))
    chat.greet()
    feed = iter(lines)

    def read() -> str:
        try:
            return next(feed)
        except StopIteration:
            raise EOFError from None

    chat.loop(read)
    return stream.getvalue(), chat


# A run from a checkpoint


def test_the_report_of_a_run_from_a_checkpoint_says_so(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["origin"] == "base" and report["headline"].startswith("No gain is shown: from 0% (checkpoint)")
    for name in ("report.md", "report.html"):
        text = (run / name).read_text()
        assert "A model of the family qwen2" in text and "trained from base" in text, name
        assert [word for word in GROWN if word in text] == [], name
        assert "hadal train qwen-gsm8k" in text


def test_the_chat_with_a_run_from_a_checkpoint_says_nothing_of_growing(run: Path) -> None:
    model = Model(run)
    shown, chat = conversation(model, ["What is the capital of France?", "/help", "/new"])
    assert not model.is_grown and model.converses and chat.examples == []
    assert "Answers of task gsm8k:rows cannot be checked: There is no file rows." in shown  # it lies elsewhere
    assert [word for word in GROWN if word in shown] == []
    assert "It has the conversation before it" in shown and "on its own" not in shown


def test_a_dry_run_on_a_checkpoint_shows_no_model_and_corpus_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from hadal.cli import main

    words = [w for key, value in settings_of_run().items() for w in ("--set", f"{key}={json.dumps(value)}")]
    assert main(["train", "qwen-gsm8k", "--dry-run", *words]) == 0
    data = tomllib.loads(capsys.readouterr().out)
    assert data.keys() & {"arch", "model", "corpus"} == set() and data["checkpoint"] == "base"
    assert read_recipe(data).stages[1].config.updates == 1


@pytest.mark.parametrize(
    ("config", "comes_from"),
    [
        ({"tasks": []}, ""),
        ({"checkpoint": "m", "stage": {"a": {"kind": "grpo", "from": "checkpoint"}}}, "m"),
        ({"checkpoint": "m", "stage": {"a": {"kind": "sft", "from": "checkpoint"}, "b": {"kind": "grpo", "from": "a"},
                                       "c": {"kind": "evaluate", "from": "b"}}}, "m"),
        ({"checkpoint": "m", "stage": {"a": {"kind": "pretrain"}, "b": {"kind": "distill", "from": "a"}}}, ""),
        ({"checkpoint": "m", "publish": "a", "stage": {"a": {"kind": "pretrain"},
                                                       "b": {"kind": "grpo", "from": "checkpoint"}}}, ""),
        ({"stage": {"a": {"kind": "pretrain"}, "b": {"kind": "grpo", "from": "a"}}}, ""),
    ],
)  # fmt: skip
def test_a_runs_model_comes_from_where_its_stages_begin(config: dict[str, Any], comes_from: str) -> None:
    record = {"arch": "dense", "config": config}
    assert origin(record) == comes_from and is_grown(record) == (not comes_from)


def test_a_run_on_a_gpu_is_not_told_of_cpu_threads(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert "on 1 CPU thread" in setting(report)
    assert "on a GPU" in setting({**report, "device": "cuda"}) and "CPU" not in setting({**report, "device": "cuda"})


# Headlines


def row(name: str, right: list[int], share: float, samples: int = 1) -> dict[str, Any]:
    n = len(right)
    task = proportion(sum(right) / samples, n) | {
        "samples": samples, "reasoning": True, "length": 9.0, "format": 1.0, "language": None,
        "thinking_share": share, "reflection": 0.0, "cons": proportion(sum(right), n), "about": "", "difficulty": 1,
    }  # fmt: skip
    return {"of": name, "tasks": {"t": task}, "mean": task, "right": {"t": right}, "responses": {"t": []}}


def chain(tmp_path: Path, first: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    for name, result in (("before", first), ("after", last)):
        (tmp_path / "stages" / name).mkdir(parents=True)
        (tmp_path / "stages" / name / "result.json").write_text(json.dumps(result))
    stages = {
        "before": {"kind": "evaluate", "from": "checkpoint"}, "rl": {"kind": "grpo", "from": "checkpoint"},
        "after": {"kind": "evaluate", "from": "rl"},
    }  # fmt: skip
    write_run(tmp_path, {"name": "chain", "config": {"stage": stages, "publish": "rl"}})
    return gather(tmp_path)


@pytest.mark.parametrize(
    ("right", "shares", "words"),
    [
        (90, (0.0, 0.0), "It got better"),
        (90, (1.0, 1.0), "It got better"),
        (90, (0.0, 0.2), "It got better"),
        (90, (0.05, 0.95), "It learned to think"),
        (10, (0.0, 0.0), "No gain is shown"),
        (2, (0.0, 0.9), "It got worse"),
    ],
)
def test_who_does_not_think_has_not_learned_to_reason(
    right: int, shares: tuple[float, float], words: str, tmp_path: Path
) -> None:
    first = row("checkpoint", [1] * 10 + [0] * 90, shares[0])
    report = chain(tmp_path, first, row("rl", [1] * right + [0] * (100 - right), shares[1]))
    assert report["headline"].startswith(words)


def test_a_headline_says_what_the_findings_say(tmp_path: Path) -> None:
    """Problem by problem a gain shows where intervals side by side overlap: then both say so."""
    report = chain(tmp_path, row("checkpoint", [1] * 50 + [0] * 50, 0.0), row("rl", [1] * 60 + [0] * 40, 0.0))
    assert report["findings"][0]["verdict"] == "higher" and report["headline"].startswith("It got better")


@pytest.mark.parametrize(
    ("share", "words"), [(0.03, "It got better"), (0.4, "It got better"), (0.9, "It learned to think")]
)
def test_a_thought_now_and_then_is_no_headline(share: float, words: str) -> None:
    base = wilson(0.3, 2500) | {"thinking_share": 0.0}
    after = wilson(0.8, 2500) | {"thinking_share": share}
    evaluation = {"tasks": {"t": {"base": base, "rl": after}}, "mean": {"base": base, "rl": after}}
    assert headline(examined(Path("no-such-run"), {}, evaluation), "rl").startswith(words)


# Notes


def test_answers_learnt_by_heart_are_not_told_to_take_more_minutes() -> None:
    tasks = load_tasks(["talk"])
    told = none_ready(tasks, {"talk": {"thinking": 0.0, "direct": 1.0}})
    assert "100% of the time" in told and "harder problems" in told and "minutes" not in told
    told = none_ready(load_tasks(["sums"]), {"sums": {"thinking": 0.1, "direct": 0.2}})
    assert "thinking did not pay yet" in told and "more steps" in told
    told = none_ready(load_tasks(["sums"]), {"sums": {"thinking": 1.0, "direct": 1.0}})
    assert "nothing left to find" in told and "harder problems" in told


def test_rl_is_announced_with_all_that_it_rewards() -> None:
    assert "nothing else is told" in _about(GrpoConfig())
    recipe = read_recipe({"tasks": ["sums"], "grpo": {"rewards": {"format": 0.2}, "algorithm": "dapo"}})
    told = _about(recipe.stage("grpo").config)
    assert "nothing else" not in told and re.search("accuracy, format, overlong", told)


def test_a_task_without_thoughts_is_not_said_to_have_worked_ones() -> None:
    levels = [{"difficulty": d, **wilson(0.9 if d < 3 else 0.1, 100)} for d in range(1, 5)]
    side = {"by_difficulty": levels, "frontier": 2.5}
    told = skill_finding({"t": {"gold_limit": None, "base": side, "rl": side}}).sentences[0]
    assert "worked thoughts" not in told


def test_a_form_is_not_called_the_fastest_where_another_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Qwen2Config(448, 64, 2, 4, 2, head_dim=16, intermediate_size=128)
    for others, mean in (([0.6, 3.0], True), ([1.1, 3.0], False), ([0.99, 1.4], False)):
        monkeypatch.setattr(packed, "measure", lambda *_, o=others: {"bfloat16": [1.0, 1.0], "float16": o})
        reason = packed.choose(shape, torch.bfloat16).reason
        assert ("in the mean" in reason) == mean, reason


# Conversations


def test_a_conversation_is_kept_until_the_context_is_full(run: Path) -> None:
    model = Model(run)
    ids, forgotten = model.prompt("What is my name?", None, [])
    _, chat = conversation(model, ["My name is Bob.", "What is my name?"])
    first, second = chat.replies
    first.answer = "Hello Bob!"
    ids, forgotten = model.prompt("What is my name?", None, [first])
    text = model.llm.tokenizer.decode(ids, special=True)
    assert forgotten == 0 and text.index("My name is Bob.") < text.index("Hello Bob!") < text.index("What is my name?")
    first.answer = "no " * 1800
    ids, forgotten = model.prompt("What is my name?", None, [first, second])
    assert forgotten >= 1 and "Bob" not in model.llm.tokenizer.decode(ids)
    shown, chat = conversation(model, ["a", "/new", "b"])
    assert [reply.question for reply in chat.replies] == ["b"]


@pytest.mark.real
def test_a_real_model_knows_what_it_was_told() -> None:
    model = Model(real_model(QWEN))
    _, chat = conversation(model, ["My name is Bob. Please remember it.", "What is my name?"])
    assert "Bob" in chat.replies[1].answer, chat.replies
