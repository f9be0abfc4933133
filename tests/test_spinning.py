"""Threads that wait spin for long where the cores are free, and briefly while other programs have them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hadal.machine import environment, spinning

# Two threads that wait for each other all the time; says whether idle ones are counted in, ten times a second.
PROGRAM = """
import threading, time
from hadal.machine.environment import prepare
prepare()
import torch
torch.set_num_threads(2)
def tell():
    while True:
        print("crowd" in {thread.name for thread in threading.enumerate()}, flush=True)
        time.sleep(0.1)
x = torch.rand(1 << 17)
x.exp()
threading.Thread(target=tell, daemon=True).start()
while True:
    x.exp()
"""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def openmp() -> bool:
    """Whether torch brings GNU's OpenMP."""
    import torch

    return any((Path(torch.__file__).parent / "lib").glob("libgomp*"))


def pinned(cores: set[int]) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, cores)


@pytest.mark.skipif(not spinning.can_watch() or not openmp(), reason="no GNU OpenMP, or no word of the scheduler")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core is always crowded")
def test_idle_threads_are_counted_in_while_another_program_has_a_core() -> None:
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    source = str(Path(environment.__file__).parents[2])
    free = {name: value for name, value in os.environ.items() if name not in WAITING} | {"PYTHONPATH": source}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM], env=free, stdout=subprocess.PIPE, text=True, preexec_fn=pinned(cores)
    ) as process:
        # Other tests may be at work on these cores: more programs make it sure.
        busy = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=pinned(cores)) for _ in range(3)
        ]
        try:
            assert process.stdout
            end = time.monotonic() + 60
            while process.stdout.readline() != "True\n":
                assert time.monotonic() < end and process.poll() is None, "no idle threads were counted in"
        finally:
            for each in (process, *busy):
                each.kill()
            for each in busy:
                each.wait()


def test_a_crowd_comes_and_goes() -> None:
    program = """
from hadal.machine import spinning
import os, time, torch
def threads():
    return len(os.listdir("/proc/self/task"))
torch.rand(1 << 17).exp()
library = spinning._library()
before = threads()
crowd = spinning.Crowd(library)
while threads() < before + 1 + library.omp_get_num_procs():
    time.sleep(0.01)
crowd.leave()
while threads() > before:
    time.sleep(0.01)
"""
    if not openmp() or not spinning.TASKS.exists():
        pytest.skip("no GNU OpenMP")
    subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_a_users_own_word_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(spinning, "can_watch", lambda: True)
    monkeypatch.setattr(spinning, "start", lambda: started.append(True))
    monkeypatch.setattr(environment, "settings", dict)
    for other in WAITING:
        monkeypatch.delenv(other, raising=False)
    environment.prepare()
    assert len(started) == 1
    monkeypatch.setenv(name, "1000" if name == "GOMP_SPINCOUNT" else "passive")
    environment.prepare()
    assert len(started) == 1


def test_where_the_scheduler_tells_nothing_the_limit_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spinning, "can_watch", lambda: False)
    for other in WAITING:
        monkeypatch.delenv(other, raising=False)
    assert environment.settings()["GOMP_SPINCOUNT"] == str(environment.SPINS)
