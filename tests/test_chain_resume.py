"""A chain of stages that is killed and carried on ends where an uninterrupted one ends, whichever stage it was in."""

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_runs import QUIET, FaultyRuns
from small_chain import outcome, write_chain

from hadal.cli import main
from hadal.report import page as pages
from hadal.terminal.rollouts import Place, Rollouts, moved


class Lab(FaultyRuns):
    """The small chain."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, outcome, "train", str(write_chain(folder)), "--trust")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int, Path]:
    """An uninterrupted run: what it ends in, how many changes of files it makes, and where it lies."""
    lab = Lab(tmp_path_factory.mktemp("whole"))
    (run,) = lab("kill", 0)
    assert run["status"] == 0, run["text"]
    metrics = lab.outcome(1)["metrics.jsonl"].decode()
    # Else RL had nothing to weigh, and would end alike whatever was lost.
    assert re.search(r'"stage": "r1-zero".*"kept_groups": (0\.[1-9]|1)', metrics)
    return lab.outcome(1), run["changes"], lab.out.with_name("run-1")


def ends_alike(lab: Lab, kind: str, moments: list[int | str], expected: dict[str, bytes]) -> list[dict[str, Any]]:
    """Faults one after the other, then to the end, which must be the expected one; returns the stopped runs."""
    *stopped, last = lab(kind, *moments, 0)
    assert last["status"] == 0, last
    assert [name for name, data in lab.outcome(1).items() if data != expected.get(name)] == []
    assert lab.outcome(1).keys() == expected.keys()
    return stopped


def test_a_chain_killed_twice_ends_alike(whole: tuple[dict[str, bytes], int, Path], tmp_path: Path) -> None:
    expected, changes, _ = whole
    rng = random.Random(7)
    first = rng.randrange(4, changes // 2)
    stopped = ends_alike(Lab(tmp_path), "kill", [first, rng.randrange(4, changes // 2)], expected)
    assert [run["status"] for run in stopped] == [-signal.SIGKILL] * 2, stopped


@pytest.mark.long
def test_a_chain_killed_in_each_kind_of_stage_ends_alike(
    whole: tuple[dict[str, bytes], int, Path], tmp_path: Path
) -> None:
    """At its first step, when nothing of the stage is on disk but what was appended."""
    stages = ["r1-zero", "cold-start", "dev1", "on-logits", "on-policy"]
    stopped = ends_alike(Lab(tmp_path), "kill", list(stages), whole[0])
    assert [run["status"] for run in stopped] == [-signal.SIGKILL] * len(stages), stopped


def test_a_full_disk_stops_a_chain_cleanly(whole: tuple[dict[str, bytes], int, Path], tmp_path: Path) -> None:
    (stopped,) = ends_alike(Lab(tmp_path), "full", [whole[1] * 2 // 3], whole[0])
    last = stopped["text"].splitlines()[-1]
    assert stopped["status"] == 2 and last.startswith("hadal: ") and "no space left" in last, stopped


def test_a_damaged_checkpoint_of_a_stage_falls_back(whole: tuple[dict[str, bytes], int, Path], tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    (stopped,) = lab("kill", "evaluate-r1-zero")
    assert stopped["status"] == -signal.SIGKILL
    folder = lab.out / "stages" / "r1-zero"
    (folder / "result.json").unlink()  # as if the stage were in its last steps
    newest = sorted((folder / "state").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-8])
    (last,) = lab("kill", 0)
    assert last["status"] == 0, last
    assert "The checkpoint of r1-zero at step 3 is damaged: carrying on from step 2" in last["text"]
    assert lab.outcome(1)["model.safetensors"] == whole[0]["model.safetensors"]
    assert lab.outcome(1)["metrics.jsonl"] == whole[0]["metrics.jsonl"]


# What such a run ends with


def test_the_report_has_a_row_for_each_examined_model(whole: tuple[dict[str, bytes], int, Path]) -> None:
    run = whole[2]
    report = json.loads((run / "report.json").read_text())
    models = ["base", "r1-zero", "dev1", "dev3", "r1", "student", "on-samples", "on-logits", "on-policy"]
    assert [row["stage"] for row in report["rows"]] == models and report["final"] == "r1"
    for row in report["rows"]:
        result = json.loads((run / "stages" / f"evaluate-{row['stage']}" / "result.json").read_text())
        assert row["mean"] == result["mean"] and row["tasks"].keys() == {"letters", "coin", "talk"}
        assert row["mean"]["accuracy"] == result["tasks"]["letters"]["accuracy"]  # the one that is reasoned about
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert abs(report["flops"] - sum(line["flops"] for line in ledger)) < 1
    told = {finding["question"] for finding in report["findings"]}
    assert {"base → r1-zero", "dev3 → r1", "r1 against r1-zero", "student → on-policy"} <= told
    assert [s["stage"] for s in report["sampling"]] == ["cold-start", "talks", "answers"]
    for s in report["sampling"]:
        path = run / "stages" / s["stage"] / "data.jsonl"
        assert s["kept"] + s["gold"] + s["plain"] == len(path.read_text().splitlines())
        assert s["kept"] + s["wrong"] + s["unreadable"] + s["twice"] <= s["answers"]
    for name in ("report.md", "report.html"):
        page = (run / name).read_text()
        assert all(model in page for model in models) and "77.9" in page  # DeepSeek's row beside ours
    assert (run / "report.html").read_text().count("<svg") > 20


def test_hostile_text_stays_text_in_the_report(whole: tuple[dict[str, bytes], int, Path]) -> None:
    report = json.loads((whole[2] / "report.json").read_text())
    hostile = '<script>alert("x")</script>\x1b[2J\u202e```\n| a |'
    for example in report["examples"]:
        example.update(question=hostile, gold=hostile)
        example["said"] = [{**said, "text": hostile} for said in example["said"]]
    report["alarms"] = [{"stage": hostile, "step": 1, "text": hostile}]
    html, markdown = pages.as_html(report, []), pages.as_markdown(report)
    assert report["examples"] and "<script" not in html
    assert "\x1b" not in html + markdown and "\u202e" not in html + markdown
    assert "\n| a |" not in markdown.replace("```\n| a |", "")


def test_rollouts_are_shown_as_plain_text(
    whole: tuple[dict[str, bytes], int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = whole[2]
    groups = [json.loads(line) for line in (run / "rollouts" / "r1-zero-000002.jsonl").read_text().splitlines()]
    assert main(["rollouts", str(run), "--stage", "r1-zero", "--step", "2", "--all"]) == 0
    out = capsys.readouterr().out
    assert out.count("r1-zero, update 2, group ") == len(groups) == 4
    assert out.count("advantage ") == sum(len(group["samples"]) for group in groups)
    best = max(groups[0]["samples"], key=lambda s: s["reward"])
    mean = sum(s["reward"] for s in groups[0]["samples"]) / 6
    assert f"reward {best['reward']:g}  advantage {best['reward'] - mean:+.3f}" in out
    assert main(["rollouts", str(run), "--stage", "r1", "--step", "3", "--against", "2"]) == 0
    assert "r1, update 2 -> 3" in (out := capsys.readouterr().out) and out.count(" reward ") >= 1
    for words, told in {
        "--stage r1-zro": "Available: r1, r1-zero", "--step 9": "It did after 2, 3", "--group 99": "There are 1 to 4",
        "--stage r1-zero --task sums": "Available: coin",
    }.items():  # fmt: skip
        assert main(["rollouts", str(run), *words.split()]) == 2
        assert told in (err := capsys.readouterr().err) and err.count("\n") == 1, err
    assert main(["rollouts", str(run / "nowhere")]) == 2


def test_keys_move_through_rollouts(whole: tuple[dict[str, bytes], int, Path]) -> None:
    found = Rollouts(whole[2])
    for key, place in {
        "n": Place("r1", 3, 1), "p": Place("r1", 3, -1), "k": Place("r1", 2), "j": Place("r1", 3),
        "s": Place("r1-zero", 3), "x": Place("r1", 3),
    }.items():  # fmt: skip
        assert moved(found, Place("r1", 3), key) == place


# All of it, many times


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_a_chain_killed_at_a_random_moment_ends_alike(
    part: int, whole: tuple[dict[str, bytes], int, Path], tmp_path: Path
) -> None:
    expected, changes, _ = whole
    moment = random.Random(100 + part).randrange(1, changes)
    (stopped,) = ends_alike(Lab(tmp_path), "kill", [moment], expected)
    assert stopped["status"] == -signal.SIGKILL, stopped


@pytest.mark.long
def test_the_two_minute_preset_of_r1_killed_at_ten_random_moments(tmp_path: Path) -> None:
    settings = ["--set", "threads=1", "--set", 'dtype="float32"']
    command = [sys.executable, "-P", "-m", "hadal", "train", "tiny-r1", *settings]

    def go(out: Path, after: int | None) -> int:
        process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, env=QUIET)
        while after is not None and process.poll() is None:
            lines = (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0
            if lines >= after:
                process.kill()
        return process.wait()

    assert go(tmp_path / "whole", None) == 0
    expected = outcome(tmp_path / "whole")
    rng = random.Random(8)
    for moment in sorted(rng.sample(range(1, expected["metrics.jsonl"].count(b"\n") - 2), 10)):
        assert go(tmp_path / "killed", moment) == -signal.SIGKILL
    assert go(tmp_path / "killed", None) == 0
    assert outcome(tmp_path / "killed") == expected
