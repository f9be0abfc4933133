"""quickstart as its users meet it: what it leaves behind, what it does the second time, and whatever can go wrong.

The model is tiny and learns next to nothing; what is tested is everything around the learning.
"""

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import as_settings, outcome, write_recipe

from hadal.cli import main
from hadal.errors import UserError
from hadal.library.record import open_run
from hadal.models.checkpoint import load_model

BASE = ["quickstart", "--no-chat", "--minutes", "0.01"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return as_settings(write_recipe(tmp_path_factory.mktemp("recipe")))


@pytest.fixture(scope="module")
def grown(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("grown") / "run"
    assert main([*BASE, "--out", str(out), *settings]) == 0
    return out


@pytest.fixture
def copy(grown: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grown, tmp_path / "run"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def failed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends in status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("hadal: ") and err.count("\n") == 1, err
    return err


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_a_checkpoint_a_report_and_its_books(grown: Path) -> None:
    record = open_run(grown)
    assert (record["status"], record["arch"], record["seed"], record["minutes"]) == ("complete", "dense", 0, 0.01)
    assert record["config"]["threads"] == 1 and record["config"]["dtype"] == "float32"
    assert record["command"].startswith("hadal quickstart --seed 0 --minutes 0.01 ")
    assert load_model(grown).config.vocab_size % 64 == 0
    report = json.loads((grown / "report.json").read_text())
    wanted = {"accuracy", "low", "high", "n", "accuracy_thinking", "accuracy_direct", "length", "thinking_share"}
    for side in ("base", "rl"):
        assert wanted <= report["mean"][side].keys()
        assert all(wanted | {"frontier"} <= report["tasks"][name][side].keys() for name in ("letters", "coin"))
    ledger = [json.loads(line) for line in (grown / "ledger.jsonl").read_text().splitlines()]
    stages = ["pretrain", "evaluate-base", "grpo", "evaluate-rl"]
    assert list(dict.fromkeys(line["stage"] for line in ledger)) == stages
    assert report["seconds"] == pytest.approx(sum(line["seconds"] for line in ledger)) and report["cost_usd"] > 0
    assert all(line["tokens_sampled"] > 0 for line in ledger if line["stage"] != "pretrain")
    assert (grown / "report.html").is_file() and (grown / "report.md").is_file()
    assert not list(grown.rglob("*.part"))


def test_a_finished_run_is_not_run_again(
    grown: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything_in(grown)
    assert main([*BASE, "--out", str(grown), *settings]) == 0
    assert "grown already" in capsys.readouterr().out
    assert everything_in(grown) == before


def unfinish(run: Path, *stages: str) -> None:
    """As if it had been killed in the first of these stages, behind its last checkpoint."""
    edit(run / "run.json", status="running")
    for stage in stages:
        (run / "stages" / stage / "result.json").unlink()


def states(run: Path, stage: str) -> list[Path]:
    return sorted((run / "stages" / stage / "state").glob("*.safetensors"))


def last_state(run: Path) -> None:
    unfinish(run, "grpo", "evaluate-rl")
    flip(states(run, "grpo")[-1])


def last_state_cut(run: Path) -> None:
    unfinish(run, "grpo", "evaluate-rl")
    os.truncate(states(run, "grpo")[-1].with_suffix(".json"), 20)


def every_state(run: Path) -> None:
    unfinish(run, "grpo", "evaluate-rl")
    for path in states(run, "grpo"):
        flip(path)


def result(run: Path) -> None:
    unfinish(run)
    (run / "stages" / "grpo" / "result.json").write_text("{")


def base_model(run: Path) -> None:
    """Damaged before RL begins: its end is made again, and with it the curve that RL had begun."""
    unfinish(run, "grpo", "evaluate-rl")
    shutil.rmtree(run / "stages" / "grpo")
    flip(run / "stages" / "pretrain" / "model.safetensors")


def final_model(run: Path) -> None:
    flip(run / "model.safetensors")


def final_model_cut(run: Path) -> None:
    os.truncate(run / "model.safetensors", 1000)


def both_final_models(run: Path) -> None:
    flip(run / "model.safetensors")
    flip(run / "stages" / "grpo" / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (last_state, "The checkpoint of grpo at step 6 is damaged: carrying on from step 4."),
        (last_state_cut, "The checkpoint of grpo at step 6 is damaged: carrying on from step 4."),
        (every_state, "The checkpoint of grpo at step 6 is damaged: the stage begins anew."),
        (result, "Carrying on"),
        (base_model, "The model that pretrain left is damaged: its last part is done again."),
        (final_model, "is damaged: it is restored from the last stage."),
        (final_model_cut, "is damaged: it is restored from the last stage."),
        (both_final_models, "The model that grpo left is damaged: its last part is done again."),
    ],
)
def test_damage_is_told_and_mended(
    damage: Callable[[Path], None], told: str, copy: Path, grown: Path, settings: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    damage(copy)
    assert main([*BASE, "--out", str(copy), *settings]) == 0
    assert told in capsys.readouterr().out
    assert outcome(copy) == outcome(grown)
    assert open_run(copy)


def test_a_deleted_log_costs_no_training(
    copy: Path, grown: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    unfinish(copy, "grpo", "evaluate-rl")
    (copy / "metrics.jsonl").unlink()
    assert main([*BASE, "--out", str(copy), *settings]) == 0
    assert "metrics.jsonl has lost lines" in capsys.readouterr().out
    assert (copy / "model.safetensors").read_bytes() == (grown / "model.safetensors").read_bytes()


def test_an_unfinished_run_names_the_command_that_carries_it_on(copy: Path) -> None:
    unfinish(copy)
    with pytest.raises(UserError, match="hadal quickstart --seed 0 --minutes 0.01 --set"):
        open_run(copy)


def test_a_finished_model_without_its_stages_is_left_alone(
    copy: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "stages")
    assert main([*BASE, "--out", str(copy), *settings]) == 0
    assert "grown already" in capsys.readouterr().out
    os.truncate(copy / "model.safetensors", 1000)
    assert "--fresh" in failed([*BASE, "--out", str(copy), *settings], capsys)


def test_a_resumed_run_keeps_its_threads(
    copy: Path, grown: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    unfinish(copy, "grpo", "evaluate-rl")
    arguments = [*BASE, "--out", str(copy), *settings, "--set", "threads=2"]
    assert main(arguments) == 0
    assert "began with --threads 1 and keeps to it" in capsys.readouterr().out
    assert outcome(copy) == outcome(grown)


@pytest.mark.parametrize(
    ("extra", "difference"),
    [
        (["--set", "seed=1"], "seed 0 instead of 1"),
        (["--minutes", "0.02"], "minutes 0.01 instead of 0.02"),
        (["--set", "grpo.optimizer.lr=0.5"], "grpo.optimizer.lr 0.0002 instead of 0.5"),
        (["--set", 'tasks=["sums"]'], "instead of ['sums']"),
    ],
)
def test_other_settings_are_refused_by_name(
    extra: list[str], difference: str, grown: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything_in(grown)
    err = failed([*BASE, "--out", str(grown), *settings, *extra], capsys)
    assert difference in err and "--fresh" in err
    assert everything_in(grown) == before


def test_a_task_that_has_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = as_settings(write_recipe(tmp_path))
    arguments = [*BASE, "--out", str(tmp_path / "run"), *settings]
    assert main(arguments) == 0
    (tmp_path / "coin.py").write_text((tmp_path / "coin.py").read_text() + "\n# more\n")
    assert "coin.py has changed" in failed(arguments, capsys)


def test_fresh_starts_anew_and_leaves_what_is_not_its_own(
    copy: Path, grown: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "notes.txt").write_text("mine")
    edit(copy / "run.json", hadal_run=99, request={})
    (copy / "rollouts" / "grpo-000999.jsonl").write_text("of another run")
    arguments = [*BASE, "--out", str(copy), *settings]
    assert "format 99" in failed(arguments, capsys)
    assert main([*arguments, "--fresh"]) == 0
    assert (copy / "notes.txt").read_text() == "mine"
    (copy / "notes.txt").unlink()
    assert outcome(copy) == outcome(grown)


@pytest.mark.parametrize("extra", [[], ["--fresh"]])
def test_a_folder_of_something_else_is_left_alone(
    extra: list[str], settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "thesis.tex").write_text("years of work")
    arguments = [*BASE, "--out", str(tmp_path), *settings, *extra]
    assert "not empty and holds no run" in failed(arguments, capsys)
    (tmp_path / "run.json").write_text('{"distance": 10}')
    assert "not written by hadal" in failed(arguments, capsys)
    assert (tmp_path / "stages" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_an_unwritable_folder_is_one_line(
    place: str, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if place.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    (tmp_path / "file").write_text("")
    err = failed([*BASE, "--out", str(tmp_path / place), *settings], capsys)
    assert "cannot make the folder" in err and "--out" in err


def test_two_processes_do_not_work_in_one_folder(
    copy: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    handle = os.open(copy, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "Another process" in failed([*BASE, "--out", str(copy), *settings, "--fresh"], capsys)
    finally:
        os.close(handle)
    assert open_run(copy)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 400 kB, too small for the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk; test_resume.py fills one in another way")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    small_disk: Path, grown: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*BASE, "--out", str(small_disk / "run"), *settings]
    needed = sum(len(data) for data in everything_in(grown).values())
    for share in (0.5, 0.8, 4):
        assert "no space left" in failed(arguments, capsys).lower()
        size = f"remount,size={int(share * needed)}"
        subprocess.run(["mount", "-o", size, small_disk], check=True)
    assert main(arguments) == 0
    assert outcome(small_disk / "run") == outcome(grown)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def generate(:", ["not valid Python", "line 1"]),
        ("1 / 0", ["ZeroDivisionError", "line 1"]),
        ("difficulties = range(1, 3)", ["no function generate"]),
        ("difficulties = range(1, 3)\ndef generate(rng, difficulty):\n    return 1 / 0", ["generate raised", "line 3"]),
        (
            "from hadal.tasks import Problem\ndifficulties = range(1, 3)\n"
            "def generate(rng, difficulty):\n    return Problem(f'Say {rng.below(9999)}', 'a')\n"
            "def score(problem, answer):\n    return answer == 'b'",
            ["gold answer 'a' scores 0"],
        ),
    ],
)
def test_a_broken_task_is_named_before_anything_is_made(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(text)
    err = failed([*BASE, "--out", str(tmp_path / "run"), "--task", str(tmp_path / "mine.py")], capsys)
    assert [word for word in ["mine", *words] if word not in err] == [], err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([], "hadal: stopped; the same command carries on"),
        (["--fresh"], "hadal: stopped; the same command without --fresh carries on"),
    ],
)
def test_ctrl_c_says_how_to_carry_on(
    extra: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    assert main([*BASE, "--out", str(tmp_path / "run"), "--task", str(tmp_path / "mine.py"), *extra]) == 130
    assert capsys.readouterr().err == f"\n{words}\n"


def test_a_task_without_thoughts_says_so_and_is_trained_on(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its answers at once are right about half of the time, so RL takes it on; the run bears the task's name."""
    monkeypatch.chdir(tmp_path)
    coin = Path(settings[settings.index("--set") + 1].split('"')[3])
    without_tasks = [word for pair in zip(settings[::2], settings[1::2], strict=True) for word in pair
                     if not pair[1].startswith("tasks=")]  # fmt: skip
    more = ["--set", "pretrain.steps=60", "--set", "grpo.updates=2"]
    assert main([*BASE, "--task", str(coin), *without_tasks, *more]) == 0
    assert "coin has no thoughts" in capsys.readouterr().out
    run = tmp_path / "runs" / "coin-dense-seed0"
    ready = json.loads((run / "stages" / "pretrain" / "result.json").read_text())["readiness"]["coin"]
    assert ready["ready"] and 0 < ready["direct"] < 1 and ready["thinking"] <= ready["direct"]
    assert json.loads((run / "evaluation.json").read_text())["left_out"] == {}
    assert json.loads((run / "stages" / "grpo" / "result.json").read_text())["updates"] == 2


def test_in_a_narrow_terminal_without_colour(settings: list[str], tmp_path: Path) -> None:
    """A whole run in a terminal of 40 columns: no line is wider, no colour is set, the result is told."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    command = [sys.executable, "-P", "-m", "hadal", *BASE, "--out", str(tmp_path / "run"), *settings]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux tells the end of a terminal by an error
            break
        if not part:
            break
        seen += part
    os.close(leader)
    text = seen.decode()
    assert process.wait() == 0, text
    assert "Traceback" not in text and "report.html" in re.sub(r"\s", "", text)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|9[0-7]|38|48)[0-9;]*m", text)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 40
