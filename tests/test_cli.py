"""What a user meets at the command line: help, one-line errors, interruption, closed pipes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import hadal
from hadal.cli import build_parser, main
from hadal.errors import UserError
from hadal.files import JsonLines
from hadal.library.record import write_run

COMMAND = [sys.executable, "-P", "-m", "hadal"]


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, **settings)  # type: ignore[call-overload]


@pytest.mark.parametrize("command", sorted(build_parser()[1]))
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"hadal {command}" in text and "Example:" in text
    assert max(map(len, text.splitlines())) <= 100


def test_without_arguments_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in build_parser()[1])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hadal {hadal.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quikstart"], ["'quikstart'", "Did you mean quickstart?"]),
        (["xyz"], ["'xyz'", "hadal --help"]),
        (["--foo"], ["'--foo'", "hadal --help"]),
        (["quickstart", "--seed", "x"], ["--seed", "'x'", "whole number"]),
        (["quickstart", "--seed", "-1"], ["--seed", "'-1'"]),
        (["quickstart", "--seed"], ["--seed", "expected one argument"]),
        (["quickstart", "--minutes", "0"], ["--minutes", "'0'"]),
        (["quickstart", "--minutes", "nan"], ["--minutes", "'nan'"]),
        (["quickstart", "--minutes", "inf"], ["--minutes", "'inf'"]),
        (["quickstart", "--threads", "0"], ["--threads", "'0'"]),
        (["quickstart", "--arch", "mamba"], ["--arch", "dense", "deepseek"]),
        (["quickstart", "--sed", "1"], ["'--sed'", "Did you mean --seed?"]),
        (["quickstart", "--set", "steps"], ["--set", "KEY=VALUE"]),
        (["train"], ["RECIPE"]),
        (["ask", "runs/x"], ["question"]),
        (["ask", "runs/x", "q", "--think", "--direct"], ["--direct", "--think"]),
        (["tasks", "shw"], ["shw", "show"]),
        (["chat", "a", "b"], ["'b'", "hadal chat --help"]),
    ],
)
def test_a_mistake_gives_one_line_and_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hadal: ") and err.count("\n") == 1
    assert [word for word in words if word not in err] == []


def test_a_user_error_is_one_line_whatever_its_parts() -> None:
    assert str(UserError("The file\nis broken.", "Write it\tanew.")) == "The file is broken. Write it anew."
    assert str(UserError("The disk is full.")) == "The disk is full."


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "doctor"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("hadal: The disk is full") and done.stderr.count("\n") == 1


def test_ctrl_c_is_one_line_and_status_130() -> None:
    process = subprocess.Popen(
        [*COMMAND, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if " gpu " in line:  # from here on it measures for a second
            break
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.stderr.read().strip() == "hadal: stopped"
    assert process.wait(timeout=30) == 130


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    """Only what a user can mend is put into one line."""
    program = "import hadal.cli as cli\ncli.doctor = lambda options: 1 / 0\ncli.main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_the_tests_take_paths_of_the_callers_folder(tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text("def test_a(): pass\ndef test_b(): assert False\n")
    done = run("test", "-q", "-p", "no:cacheprovider", "check.py::test_a", cwd=tmp_path)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
    done = run("test", "-q", "-p", "no:cacheprovider", "check.py", cwd=tmp_path)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout


def test_tasks_are_listed_shown_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(names) >= 5 and "sums" in names
    assert main(["tasks", "show", "sums", "-n", "3", "--difficulty", "2"]) == 0
    out = capsys.readouterr().out
    assert [out.count(word) for word in ("question ", "thought ", "answer ")] == [3, 3, 3]
    assert main(["tasks", "validate", "sums"]) == 0
    assert capsys.readouterr().out.split() == ["sums", "holds"]


@pytest.mark.parametrize("words", [["sms", "Did you mean sums?"], ["sums --difficulty 99", "range is"]])
def test_a_wrong_task_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show", *words[0].split()]) == 2
    err = capsys.readouterr().err
    assert words[1] in err and err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters_stops_no_command(encoding: str, tmp_path: Path) -> None:
    task, run_folder = tmp_path / "日本.jsonl", tmp_path / "rün"
    task.write_text('{"prompt": "日本の首都は？", "answer": "東京"}\n{"prompt": "ﬁn – ü?", "answer": "é"}\n')
    write_run(run_folder, {"name": "日本", "status": "complete"})
    samples = [{"text": "日本→", "reward": 1.0, "note": "é"}, {"text": "b", "reward": 0.0, "note": ""}]
    JsonLines(run_folder / "rollouts" / "grpo-000006.jsonl").append(
        {"task": "sums", "difficulty": 1, "prompt": "日本 – é", "answer": "5", "samples": samples}
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C"}
    for command in (["tasks", "show", str(task)], ["rollouts", str(run_folder)], ["ask", "nöwhere", "–"]):
        done = subprocess.run([*COMMAND, *command], capture_output=True, env=environment, timeout=60)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (2 if command[0] == "ask" else 0)
        assert b"?" in done.stdout or command[0] == "ask"
