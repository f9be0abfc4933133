"""A run that is stopped, at any moment and in any way, and carried on ends where an uninterrupted one ends."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_runs import QUIET, FaultyRuns
from small_run import as_settings, outcome, write_recipe

COMMAND = [sys.executable, "-P", "-m", "hadal"]
Outcome = dict[str, bytes]


class Lab(FaultyRuns):
    """The small recipe."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder, outcome, "train", str(write_recipe(folder)), "--trust", *arguments)


def killed_ends_as_whole(folder: Path, *settings: str) -> Lab:
    """A run with these settings, and one that is killed twice late in RL, end in the same bytes; returns the first."""
    labs = []
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        labs.append(Lab(folder / name, *(word for setting in settings for word in ("--set", setting))))
    lab, again = labs
    (whole,) = lab("kill", 0)
    runs = again("kill", whole["changes"] - 30, 12, 0)
    assert [run["status"] for run in runs] == [-signal.SIGKILL, -signal.SIGKILL, 0], runs
    assert lab.outcome(1) == again.outcome(1)
    return lab


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, int, Path]:
    """An uninterrupted run: what it ends in, how many changes of files it makes, and where it lies."""
    lab = Lab(tmp_path_factory.mktemp("whole"))
    (run,) = lab("kill", 0)
    assert run["status"] == 0, run["text"]
    metrics = lab.outcome(1)["metrics.jsonl"].decode()
    # Else RL had nothing to weigh, and would end alike whatever was lost.
    assert re.search(r'"kept_groups": (0\.[1-9]|1)', metrics)
    return lab.outcome(1), run["changes"], lab.out.with_name("run-1")


def check(lab: Lab, kind: str, chains: list[list[int]], expected: Outcome, stopped: Callable[[dict[str, Any]], bool]):
    """Run each chain of faults, then to the end; every end must be the expected one."""
    runs = iter(lab(kind, *(number for chain in chains for number in [*chain, 0])))
    for position, chain in enumerate(chains, 1):
        for number in chain:
            run = next(runs)
            assert stopped(run), (kind, number, run)
            assert "Traceback" not in run["text"]
        last = next(runs)
        assert last["status"] == 0, (kind, chain, last)
        assert {name for name, data in lab.outcome(position).items() if data != expected[name]} == set(), (kind, chain)


def test_a_kill_between_any_two_writes(whole: tuple[Outcome, int, Path], tmp_path: Path) -> None:
    expected, changes, _ = whole
    rng = random.Random(1)
    chains = [[rng.randrange(1, changes)], [changes // 3, changes // 3, changes // 4]]  # once, and again and again
    check(Lab(tmp_path), "kill", chains, expected, lambda run: run["status"] == -signal.SIGKILL)


def interrupted(run: dict[str, Any]) -> bool:
    return run["status"] == 130 and run["text"].endswith("\nhadal: stopped; the same command carries on\n")


def test_ctrl_c_between_any_two_writes(whole: tuple[Outcome, int, Path], tmp_path: Path) -> None:
    expected, changes, _ = whole
    rng = random.Random(2)
    chains = [[2], [rng.randrange(3, changes)]]
    check(Lab(tmp_path), "interrupt", chains, expected, interrupted)


def test_ctrl_c_in_each_stage(whole: tuple[Outcome, int, Path], tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    stages = ["pretrain", "evaluate-base", "grpo", "evaluate-rl"]
    *runs, last = lab("interrupt", *stages, 0)
    assert all(interrupted(run) for run in runs), runs
    assert last["status"] == 0, last
    assert lab.outcome(1) == whole[0]
    lines = (lab.out.with_name("run-1") / "ledger.jsonl").read_text().splitlines()
    entered = [json.loads(line)["stage"] for line in lines]
    assert [entered.count(stage) for stage in stages[1::2]] == [2, 2]  # what was spent until Ctrl-C is on the books


def test_a_disk_that_fills_at_any_write(whole: tuple[Outcome, int, Path], tmp_path: Path) -> None:
    expected, changes, _ = whole
    rng = random.Random(3)
    chains = [[rng.randrange(3, changes)] for _ in range(2)]

    def stopped(run: dict[str, Any]) -> bool:
        last = run["text"].splitlines()[-1]
        return run["status"] == 2 and last.startswith("hadal: ") and "no space left" in last

    check(Lab(tmp_path), "full", chains, expected, stopped)


@pytest.mark.long
@pytest.mark.parametrize("part", range(8))
def test_a_kill_between_each_two_writes(part: int, whole: tuple[Outcome, int, Path], tmp_path: Path) -> None:
    expected, changes, _ = whole
    chains = [[number] for number in range(1 + part, changes, 8)]
    check(Lab(tmp_path), "kill", chains, expected, lambda run: run["status"] == -signal.SIGKILL)


@pytest.mark.long
def test_experts_resume_too(tmp_path: Path) -> None:
    settings = ('arch="deepseek"', "model.num_nextn_predict_layers=1", "model.num_hidden_layers=2")
    lab = Lab(tmp_path, *(word for setting in settings for word in ("--set", setting)))
    runs = lab("kill", 0, 45, 120, 0)
    assert [run["status"] for run in runs] == [0, -signal.SIGKILL, -signal.SIGKILL, 0], runs
    assert lab.outcome(1) == lab.outcome(2)
    lines = [json.loads(line) for line in lab.outcome(1)["metrics.jsonl"].splitlines()]
    trained = [line for line in lines if line["stage"] == "pretrain" and "loss" in line]
    assert trained and all([layer["layer"] for layer in line["experts"]] == [1, 2] for line in trained)
    updates = [line for line in lines if line["stage"] == "grpo" and "reward" in line]
    assert any(line["kept_groups"] for line in updates)
    for line in updates:  # RL leaves the prediction module alone, and nothing is trained where no group is kept
        assert [layer["layer"] for layer in line.get("experts", [])] == ([1] if line["kept_groups"] else [])
    for layer in (layer for line in [*trained, *updates] for layer in line.get("experts", [])):
        assert 1 <= layer["load_max"] <= 4 / 2 and 0.5 <= layer["load_entropy"] <= 1 and 0 <= layer["load_dead"] <= 2


@pytest.mark.long
@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_reference_that_is_replaced_resumes_too(overlap: str, tmp_path: Path) -> None:
    settings = ("grpo.options.kl=0.1", "grpo.options.reference_every=3", "grpo.options.importance_cap=2.0",
                f"grpo.overlap={overlap}")  # fmt: skip
    lab = killed_ends_as_whole(tmp_path, *settings)
    lines = [json.loads(line) for line in lab.outcome(1)["metrics.jsonl"].splitlines()]
    distances = [line["kl"] for line in lines if line["stage"] == "grpo" and "kl" in line]
    assert len(distances) >= 4 and any(distances)
    stale = [line["stale"] for line in lines if line["stage"] == "grpo" and "stale" in line]
    assert stale == ([0] + [1] * (len(distances) - 1) if overlap == "true" else [])


# By the clock, in processes of their own, as users stop them


def start(out: Path, arguments: list[str]) -> subprocess.Popen[str]:
    command = [*COMMAND, "quickstart", "--no-chat", "--json", "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET)


def lines_of(out: Path) -> int:
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def run_with_kills(out: Path, arguments: list[str], moments: list[int], rng: random.Random) -> None:
    """Kill the run at a random time after its metrics have come to each of the given lengths, then let it end."""
    for moment in moments:
        process = start(out, arguments)
        while lines_of(out) < moment and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    process = start(out, arguments)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_quickstart_killed_at_two_random_moments(whole: tuple[Outcome, int, Path], tmp_path: Path) -> None:
    expected, _, folder = whole
    arguments = ["--minutes", "0.01", *as_settings(folder.parent / "small.toml")]
    rng = random.Random(4)
    length = expected["metrics.jsonl"].count(b"\n")
    moments = sorted(rng.sample(range(1, length - 2), 2))
    run_with_kills(tmp_path / "run", arguments, moments, rng)
    assert outcome(tmp_path / "run") == expected


@pytest.mark.long
def test_the_two_minute_preset_killed_at_ten_random_moments(tmp_path: Path) -> None:
    arguments = ["--minutes", "0.01", "--threads", "1", "--set", 'dtype="float32"']
    run_with_kills(tmp_path / "whole", arguments, [], random.Random(5))
    expected = outcome(tmp_path / "whole")
    rng = random.Random(6)
    moments = sorted(rng.sample(range(1, expected["metrics.jsonl"].count(b"\n") - 2), 10))
    run_with_kills(tmp_path / "killed", arguments, moments, rng)
    assert outcome(tmp_path / "killed") == expected
