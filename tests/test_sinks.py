"""Where metrics also go: real loggers where they are installed, one clear line where not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hadal.errors import UserError
from hadal.recipe.sinks import ToldLines, check_sinks, numbers

LINES = [
    {"stage": "r1", "step": step, "reward": step / 4, "difficulty": {"sums": 7.0}, "note": "hm", "ready": True}
    for step in (1, 2)
]


def test_a_package_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "torch.utils.tensorboard", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    for name in ("wandb", "tensorboard", "trackio"):
        with pytest.raises(UserError, match=f"{name} is not installed") as raised:
            check_sinks([name])
        assert f"pip install {name}" in str(raised.value)
    with pytest.raises(UserError, match="Did you mean wandb"):
        check_sinks(["wandbb"])


def test_numbers_are_told_by_path_and_nothing_else() -> None:
    assert dict(numbers(LINES[0], "r1")) == {"r1/reward": 0.25, "r1/difficulty/sums": 7.0}


def test_without_sinks_lines_are_as_ever(tmp_path: Path) -> None:
    lines = ToldLines(tmp_path / "metrics.jsonl", [], tmp_path, {})
    for line in LINES:
        lines.append(line)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == LINES


def test_tensorboard_reads_what_it_was_told(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = ToldLines(tmp_path / "metrics.jsonl", ["tensorboard"], tmp_path, {"seed": 0})
    for line in LINES:
        lines.append(line)
    told = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    told.Reload()
    assert set(told.Tags()["scalars"]) == {"r1/reward", "r1/difficulty/sums"}
    assert [(event.step, event.value) for event in told.Scalars("r1/reward")] == [(1, 0.25), (2, 0.5)]


def test_wandb_takes_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = ToldLines(tmp_path / "metrics.jsonl", ["wandb"], tmp_path, {"seed": 0})
    for line in LINES:
        lines.append(line)
    assert wandb.run is not None and wandb.run.summary["r1/reward"] == 0.5
    wandb.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_trackio_reads_what_it_was_told_also_when_a_run_is_carried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    for place in ("one", "other"):  # two runs of one name stay two
        run = tmp_path / place / "run"
        run.mkdir(parents=True)
        for line in LINES:
            ToldLines(run / "metrics.jsonl", ["trackio"], run, {"seed": 0}).append(line)
            trackio.finish()
    names = storage.get_runs("hadal")
    assert len(names) == 2 and all(name.startswith("run-") for name in names)
    for name in names:
        logs = storage.get_logs("hadal", name)
        keys = ("step", "r1/reward", "r1/difficulty/sums")
        assert [[log[key] for key in keys] for log in logs] == [[1, 0.25, 7], [2, 0.5, 7]]
