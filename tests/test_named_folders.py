"""Folders that a user names: what lies there is never written over or removed, and what is written may be read."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_checkpoint import DENSE, fresh, same_weights

from hadal.checkpoints.adapters import save_adapter
from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import convert, save_model
from hadal.cli import main
from hadal.errors import UserError
from hadal.files import JsonLines, write_text
from hadal.models.lora import LoraConfig, attach
from hadal.tasks.words import build_tokenizer
from hadal.train.state import State, StateFolder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_model(tmp_path / "source", DENSE, fresh(DENSE).state_dict())
    return tmp_path / "source"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Conversion


@pytest.mark.parametrize("what", ["model", "shards", "run", "notes", "hidden", "folder"])
def test_a_conversion_leaves_what_lies_in_its_target(what: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    if what in ("model", "shards"):
        save_model(target, DENSE, fresh(DENSE, 1).state_dict(), shard_bytes=30_000 if what == "shards" else 1 << 30)
    elif what == "folder":
        (target / "stages").mkdir()
    else:
        name = {"run": "run.json", "notes": "notes.txt", "hidden": ".keep"}[what]
        (target / name).write_text('{"hadal_run": 1}')
    before = contents(target)
    with pytest.raises(UserError, match="is not empty") as error:
        convert(source, target, torch.bfloat16)
    assert str(target) in str(error.value) and error.value.remedy
    assert contents(target) == before and target.is_dir()


def test_a_conversion_into_a_file_is_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["model", "convert", str(source), str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and (tmp_path / "file").read_text() == "mine"


KILLED = """
import os, sys
from pathlib import Path
import torch
from hadal.checkpoints.save import convert
source, target, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
moment = 0
while True:
    moment += 1
    if (child := os.fork()) == 0:
        left = moment
        def hook(event, arguments):
            global left
            changes = event in ("os.rename", "os.remove", "os.mkdir") or (event == "open" and "w" in str(arguments[1]))
            if changes and str(arguments[0]).startswith(str(target)):
                left -= 1
                if left == 0:
                    os._exit(9)
        sys.addaudithook(hook)
        convert(source, target, torch.bfloat16, 15_000)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended == 0 or moment == last:
        print(moment if ended else -moment)
        break
    convert(source, target, torch.bfloat16, 15_000)
    target.rename(target.with_name(f"{target.name}-{moment}"))
"""


def test_a_killed_conversion_is_done_again_and_never_half_there(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    convert(source, tmp_path / "whole", torch.bfloat16, 15_000)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(target), "99"], capture_output=True, text=True, check=True
    )
    moments = -int(done.stdout)
    assert moments > 6
    for moment in range(1, moments):
        assert contents(tmp_path / f"target-{moment}") == contents(tmp_path / "whole"), moment


def test_a_killed_conversion_is_not_taken_for_another(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    subprocess.run([sys.executable, "-c", KILLED, str(source), str(target), "1"], check=True, capture_output=True)
    other = tmp_path / "other"
    save_model(other, DENSE, fresh(DENSE, 1).state_dict())
    subprocess.run([sys.executable, "-c", KILLED, str(source), str(target), "4"], check=False, capture_output=True)
    left = contents(target)
    assert left
    with pytest.raises(UserError, match="is not empty"):
        convert(other, target, torch.bfloat16, 15_000)
    with pytest.raises(UserError, match="is not empty"):
        convert(source, target, torch.float32, 15_000)
    assert contents(target) == left
    convert(source, target, torch.bfloat16, 15_000)
    assert same_weights(load_model(target), load_model(source, torch.bfloat16).float())


# Every other command that writes where the user says


FINE_TUNED = {"hadal_run": 1, "kind": "sft", "status": "complete", "request": {"model": "m"}, "config": {}}
GROWN = {"hadal_run": 1, "arch": "dense", "status": "complete", "request": {"recipe": {}}, "config": {}}


def filled(folder: Path, record: dict[str, object] | None) -> Path:
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "report.md", "results.json", "metrics.jsonl", "ablation.json"):
        (folder / name).write_text("{}")
    (folder / "stages").mkdir()
    (folder / "stages" / "kept").write_text("mine")
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record))
    return folder


def commands(source: Path, folder: Path) -> dict[str, list[str]]:
    data = folder.with_name("data.jsonl")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data.write_text(json.dumps({"messages": talk}) + "\n")
    tokenizer = build_tokenizer([])
    save_model(source, config := replace(DENSE, vocab_size=tokenizer.size), fresh(config).state_dict())
    tokenizer.save(source)
    out = ["--out", str(folder)]
    return {
        "quickstart": ["quickstart", "--minutes", "1", *out, "--no-chat"],
        "train": ["train", "tiny", *out],
        "sft": ["sft", str(source), str(data), *out],
        "ablate": ["ablate", "tiny", "--vary", "seed=1,2", *out],
        "eval": ["eval", str(source), "--tasks", "sums", "--problems", "1", *out],
    }


@pytest.mark.parametrize("name", ["quickstart", "train", "sft", "ablate", "eval"])
@pytest.mark.parametrize("kind", ["other", "fine-tuned", "grown", "file"])
def test_a_folder_of_something_else_is_refused_and_left(
    name: str, kind: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "grown" and name in ("quickstart", "train"):
        return  # a run of other settings, which test_resume has
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("mine")
    else:
        filled(folder, {"other": None, "fine-tuned": FINE_TUNED, "grown": GROWN}[kind])
    for fresh_start in ([], ["--fresh"]) if name in ("quickstart", "train") else ([],):
        before = contents(folder) if kind != "file" else folder.read_text()
        assert main([*commands(source, folder)[name], *fresh_start]) == 2
        err = capsys.readouterr().err
        assert err.startswith("hadal: ") and err.count("\n") == 1 and str(folder) in err
        assert before == (contents(folder) if kind != "file" else folder.read_text())


# What others may read


def written(folder: Path) -> None:
    model = fresh(DENSE)
    save_model(folder / "one", DENSE, model.state_dict())
    save_model(folder / "shards", DENSE, model.state_dict(), shard_bytes=30_000)
    convert(folder / "one", folder / "converted", torch.bfloat16)
    build_tokenizer([]).save(folder / "one")
    write_text(folder / "text", "a")
    JsonLines(folder / "lines.jsonl").append({})
    StateFolder(folder / "state").save(State(1, {"a": torch.ones(3)}, {}))
    attach(model, LoraConfig(2), 0)
    save_adapter(folder / "adapter", model, LoraConfig(2), "base")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_says(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        written(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) > 8
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
