"""Functions that hang, eat memory or die cost their own call and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hadal.errors import UserError
from hadal.sandbox import Workers

SCORER = """
import os, signal, sys, threading, time

def score(how, value=None):
    if how == "hang": time.sleep(1000)
    if how == "hang deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: 10 ** 10_000_000 % 7
    if how == "memory": return len(bytearray(value))
    if how == "raise": raise ValueError("no\\nsuch\\nthing")
    if how == "exit": sys.exit(3)
    if how == "die": os._exit(4)
    if how == "segfault": os.kill(os.getpid(), signal.SIGSEGV)
    if how == "object": return object()
    if how == "nest":
        deep = []
        for _ in range(100_000): deep = [deep]
        return deep
    if how == "print":
        print("noise"); sys.stderr.write("noise"); os.write(1, b"noise"); return "quiet"
    if how == "read": return sys.stdin.read()
    if how == "thread": return threading.current_thread() is threading.main_thread()
    if how == "pid": return os.getpid()
    if how == "child": return __import__("subprocess").Popen(["sleep", "1000"]).pid
    return value
"""


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("scorer") / "mine.py"
    file.write_text(SCORER)
    return f"{file}:score"


@pytest.fixture(scope="module")
def workers(scorer: str) -> Iterator[Workers]:
    with Workers(scorer, places=1, seconds=1.0, memory=200 << 20) as made:
        yield made


@pytest.mark.parametrize(
    ("how", "value", "note"),
    [
        ("hang", None, "no answer in 1 s"),
        ("hang deaf", None, "no answer in 1 s"),
        ("memory", 1 << 30, "asked for more than 209715200 bytes"),
        ("raise", None, "ValueError: no such thing"),
        ("exit", None, "SystemExit: 3"),
        ("die", None, "its process ended"),
        ("segfault", None, "its process ended"),
        ("object", None, "its value is not JSON: TypeError"),
        ("nest", None, "its value is not JSON: RecursionError"),
    ],
)
def test_a_failure_costs_one_call(workers: Workers, how: str, value: int | None, note: str) -> None:
    if how == "memory" and sys.platform != "linux":
        pytest.skip("only Linux holds a process to a size")
    outcome = workers.call(how, value)
    assert not outcome.ok and outcome.value is None and outcome.note.startswith(note), outcome
    assert outcome.seconds < 1.5
    assert workers.call("give", [1, "\u00e4", None]).value == [1, "\u00e4", None]


def test_what_a_function_needs_is_there(workers: Workers) -> None:
    assert workers.call("print").value == "quiet" and workers.call("read").value == ""
    assert workers.call("thread").value is True
    assert workers.call("memory", 100 << 20).value == 100 << 20
    same = [workers.call("pid").value for _ in range(3)]
    assert len(set(same)) == 1 and same[0] != os.getpid(), "a worker lives on from call to call"
    assert workers.call("give", "x" * (5 << 20)).value == "x" * (5 << 20)


def test_children_of_a_call_that_is_killed_end_with_it(workers: Workers) -> None:
    child = workers.call("child").value
    assert not workers.call("hang").ok
    end = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and _state(child) != "Z" and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists() or _state(child) == "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_calls_are_spread_and_keep_their_order(scorer: str) -> None:
    with Workers(scorer, places=2, seconds=1.0) as workers:
        calls = [("give", 1), ("hang",), ("raise",), ("give", 2), ("die",), ("give", 3)]
        outcomes = list(workers.map(calls))
    assert [outcome.value for outcome in outcomes] == [1, None, None, 2, None, 3]


def test_a_function_of_a_module_is_named_by_its_path() -> None:
    with Workers("math:gcd", places=1) as workers:
        assert workers.call(12, 18).value == 6
        assert workers.call("a", 1).note.startswith("TypeError")
        with pytest.raises(TypeError):
            workers.call(object())
        with pytest.raises(ValueError):
            workers.call(float("nan"))


def test_what_cannot_be_loaded_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\ndef score(): pass\n")
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "dies.py").write_text("import os\nos._exit(1)\n")
    for function, start, match in [
        (f"{tmp_path}/broken.py:score", 60.0, "No module named 'nowhere_to_be_found'"),
        (f"{tmp_path}/none.py:score", 60.0, "No such file"),
        ("math:nothing", 60.0, "nothing"),
        (f"{tmp_path}/slow.py:score", 1.0, "no word from its process in 1 s"),
        (f"{tmp_path}/dies.py:score", 60.0, "does not load"),
    ]:
        with Workers(function, places=1, start_seconds=start) as workers, pytest.raises(UserError, match=match):
            workers.call()
    with pytest.raises(UserError, match="is not a function"):
        Workers("score")


@pytest.mark.parametrize("how", ["hang", "hang deaf"])
def test_a_worker_ends_with_the_one_who_asked(scorer: str, how: str) -> None:
    """It is killed in the middle of a call; a call that lets no other thread run is ended by the kernel later."""
    program = (
        f"from hadal.sandbox import Workers\nbox = Workers({scorer!r}, places=1, seconds=50)\n"
        f"print(box.call('pid').value, flush=True)\nbox.call({how!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    time.sleep(0.3)
    process.kill()
    process.wait()
    if how == "hang deaf":
        limit = next(line for line in Path(f"/proc/{worker}/limits").read_text().splitlines() if "cpu time" in line)
        assert 200 <= int(limit.split()[3]) <= 220
        os.kill(worker, 9)
    end = time.monotonic() + 5
    while _state(worker) != "Z" and time.monotonic() < end:
        time.sleep(0.02)
    assert _state(worker) == "Z"
