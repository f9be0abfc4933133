"""A chain of stages that is killed and carried on ends where an uninterrupted one ends, whichever stage it was in."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_chain import outcome, write_chain

HERE = Path(__file__).parent
QUIET = {**os.environ, "OMP_WAIT_POLICY": "passive", "NO_COLOR": "1"}


class Lab:
    """Runs the small chain again and again in one folder, with faults."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "run"
        self.arguments = ["train", str(write_chain(folder)), "--trust", "--out", str(self.out)]

    def __call__(self, kind: str, *moments: int | str) -> list[dict[str, Any]]:
        words = [str(self.out), kind, *map(str, moments), "--", *self.arguments]
        program = [sys.executable, "-P", str(HERE / "small_run.py"), *words]
        done = subprocess.run(program, capture_output=True, text=True, timeout=1200, env=QUIET)
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    def outcome(self, number: int) -> dict[str, bytes]:
        return outcome(self.out.with_name(f"run-{number}"))


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
