"""The run folder: files are whole or absent, JSON lines resume exactly, a broken folder names its remedy."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hadal.errors import UserError
from hadal.files import JsonLines, write_json, write_text
from hadal.library.record import RUN_VERSION, count_parameters, open_run, read_run, write_run


def make_run(run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    write_run(
        run, {"name": run.name, "arch": "dense", "seed": 0, "status": "complete", "config": {"tasks": []}}
    )
    (run / "config.json").write_text("{}")
    (run / "tokenizer.json").write_text("{}")
    save_file({"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float32)}, run / "model.safetensors")
    return run


def test_a_finished_run_opens(tmp_path):
    run = make_run(tmp_path / "r")
    record = open_run(run)
    assert record["hadal_run"] == RUN_VERSION and record["name"] == "r"
    assert count_parameters(run) == 17


def cut_weights(run):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def no_weights(run):
    (run / "model.safetensors").write_bytes(b"not a checkpoint")


def wrong_header(run):
    (run / "model.safetensors").write_bytes((9).to_bytes(8, "little") + b'{"a": 1} ')


@pytest.mark.parametrize(
    ("harm", "cause", "remedy"),
    [
        (lambda run: write_run(run, {"status": "running"}), "not finished", "the command that began it"),
        (lambda run: write_json(run / "run.json", {"hadal_run": 99}), "format 99", "--fresh"),
        (lambda run: write_json(run / "run.json", {"x": 1}), "not written by hadal", "quickstart"),
        (lambda run: write_json(run / "run.json", [1]), "not written by hadal", "quickstart"),
        (lambda run: (run / "run.json").write_text('{"hadal_run": 1, "na'), "damaged", "--fresh"),
        (lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"), "damaged", "--fresh"),
        (lambda run: (run / "run.json").write_text("[" * 100_000), "damaged", "--fresh"),
        (lambda run: (run / "run.json").unlink(), "no run.json", "quickstart"),
        (lambda run: (run / "tokenizer.json").unlink(), "no tokenizer.json", "--fresh"),
        (lambda run: (run / "model.safetensors").unlink(), "no model.safetensors", "--fresh"),
        (cut_weights, "model.safetensors cannot be read", "--fresh"),
        (no_weights, "model.safetensors cannot be read", "--fresh"),
        (wrong_header, "model.safetensors cannot be read", "--fresh"),
    ],
)
def test_a_broken_run_names_cause_and_remedy(tmp_path, harm, cause, remedy):
    run = make_run(tmp_path / "r")
    harm(run)
    with pytest.raises(UserError) as raised:
        open_run(run)
    assert cause in raised.value.cause
    assert remedy in raised.value.remedy
    assert "\n" not in str(raised.value)


COMMANDS = {
    "hadal train mine.toml --set 'a=\"b\"' --out r": "Start anew: {} --fresh",
    "hadal quickstart --minutes 10 --out r": "Start anew: {} --fresh",
    "hadal sft model data.jsonl --out r": "Remove {run} and start anew: {}",
    "hadal ablate mine.toml --vary a=1,2 --out o": "Remove {run} and start anew: {}",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("harm", ["cut", "zeros", "version"])
def test_a_damaged_record_names_the_command_that_made_it(tmp_path, command, harm):
    run = make_run(tmp_path / "r")
    record = {"name": "r", "status": "complete", "command": command, "request": {"recipe": {"tasks": ["sums"] * 9}}}
    write_run(run, record)
    path = run / "run.json"
    if harm == "version":
        path.write_text(path.read_text().replace('"hadal_run": 1', '"hadal_run": 99'))
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[:-40] + (b"" if harm == "cut" else b"\0" * 40))
    with pytest.raises(UserError) as raised:
        read_run(run)
    assert COMMANDS[command].format(command, run=run) in raised.value.remedy


def test_a_record_that_is_gone_names_no_command_that_did_not_make_it(tmp_path):
    run = make_run(tmp_path / "r")
    (run / "run.json").write_bytes(b"\0" * 500)
    with pytest.raises(UserError, match="damaged") as raised:
        read_run(run)
    assert "quickstart" not in raised.value.remedy and "the command that began it" in raised.value.remedy
    write_json(run / "report.json", {"command": "hadal train r1 --out r"})
    with pytest.raises(UserError, match="hadal train r1 --out r --fresh"):
        read_run(run)


def test_a_damaged_model_is_restored_where_its_stages_are(tmp_path):
    """The command alone does it: with --fresh all that was learnt would go."""
    run = make_run(tmp_path / "r")
    write_run(run, {"status": "complete", "command": "hadal train r1 --out r"})
    cut_weights(run)
    with pytest.raises(UserError, match="hadal train r1 --out r --fresh"):
        open_run(run)
    (run / "stages").mkdir()
    with pytest.raises(UserError) as raised:
        open_run(run)
    assert raised.value.remedy == "Restore it: hadal train r1 --out r"


def test_a_missing_run_points_to_quickstart(tmp_path):
    with pytest.raises(UserError, match="hadal quickstart"):
        read_run(tmp_path / "nowhere")


def test_numbers_that_json_lacks_become_null(tmp_path):
    write_json(
        tmp_path / "x.json", {"a": float("nan"), "b": [np.float64("inf"), np.int64(3)], "c": Path("d")}
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 3], "c": "d"}


def test_write_replaces_whole_and_leaves_nothing_beside(tmp_path):
    write_text(tmp_path / "sub" / "x", "old")
    write_text(tmp_path / "sub" / "x", "new \ud800")
    assert (tmp_path / "sub" / "x").read_text() == "new ?"
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["x"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "x", "old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left") as raised:
        write_text(tmp_path / "x", "new")
    assert str(tmp_path) in raised.value.cause
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write x in"):
        write_text(tmp_path / "file" / "x", "")
    with pytest.raises(UserError, match="cannot write m.jsonl in"):
        JsonLines(tmp_path / "file" / "m.jsonl").append({})


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A limit on file size stands in for the full disk: the kernel refuses in the middle of a line."""
    program = """
import resource, signal, sys
from hadal.errors import UserError
from hadal.files import JsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
lines = JsonLines(sys.argv[1])
try:
    for step in range(50):
        lines.append({"step": step})
except UserError as error:
    print(error)
"""
    path = tmp_path / "m.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in done.stdout
    assert path.read_text().endswith("\n")
    assert JsonLines(path).read() == [{"step": step} for step in range(len(path.read_text().splitlines()))]


def test_lines_continue_as_if_never_stopped(tmp_path):
    def write(lines, stage, steps):
        for step in steps:
            lines.append({"stage": stage, "step": step, "loss": step / 3})

    whole = JsonLines(tmp_path / "whole.jsonl")
    write(whole, "pretrain", range(1, 6))
    write(whole, "grpo", range(1, 9))
    stopped = JsonLines(tmp_path / "stopped.jsonl")
    write(stopped, "pretrain", range(1, 6))
    write(stopped, "grpo", range(1, 7))
    with stopped.path.open("ab") as file:
        file.write(b'{"stage": "grpo", "st')  # killed in the middle of a line
    resumed = JsonLines(stopped.path)
    resumed.truncate_after(4, "grpo")
    write(resumed, "grpo", range(5, 9))
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    resumed.truncate_after(0, "grpo")
    assert [record["stage"] for record in resumed.read()] == ["pretrain"] * 5
    resumed.truncate_after(0)
    assert resumed.path.read_bytes() == b""
    JsonLines(tmp_path / "absent.jsonl").truncate_after(3)
    assert JsonLines(tmp_path / "absent.jsonl").read() == []


def test_a_torn_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    assert JsonLines(path).read() == [{"step": 1}]
    JsonLines(path).append({"step": 2})
    assert JsonLines(path).read() == [{"step": 1}, {"step": 2}]


def test_a_line_nested_without_end_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"a": 1}\n' + "[" * 100_000 + "\n")
    with pytest.raises(UserError, match="damaged at line 2"):
        JsonLines(tmp_path / "m.jsonl").read()


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\nrubbish\n')
    with pytest.raises(UserError, match="line 2"):
        JsonLines(path).read()
    with pytest.raises(UserError, match="line 2"):
        JsonLines(path).truncate_after(1)
