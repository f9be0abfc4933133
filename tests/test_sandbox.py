"""The sandbox as its users see it: results, limits, tests of programs, and what happens when something is lost."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from escapes import processes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hadal.errors import UserError
from hadal.sandbox import Job, Limits, Result, Sandbox, check_asserts, check_stdin, layers, same_output
from hadal.sandbox.child import Child, ChildEnded, ChildLate
from hadal.sandbox.inside import seccomp, tree
from hadal.sandbox.result import STATUSES, result_from

here = pytest.mark.skipif(not layers.isolates(layers.chosen()), reason="nothing here isolates a program")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(places=2, limits=Limits(seconds=5)) as made:
        yield made


# ------------------------------------------------------------------------------------- results


@here
@pytest.mark.parametrize(
    ("program", "status", "code", "out", "err"),
    [
        ("print(input()[::-1])", "ok", 0, "cba\n", ""),
        ("import sys; sys.exit(3)", "error", 3, "", ""),
        ("import sys; print('a'); sys.exit('why')", "error", 1, "a\n", "why\n"),
        ("raise SystemExit", "ok", 0, "", ""),
        ("print('no", "error", 1, "", "SyntaxError"),
        ("def f():\n    return 1 // 0\nf()", "error", 1, "", 'File "program.py", line 2, in f\n    return 1 // 0'),
        ("x = bytearray(1 << 40)", "memory", 1, "", "MemoryError"),
        ("while True: pass", "timeout", None, "", ""),
        ("import os; os.abort()", "error", -signal.SIGABRT, "", ""),
        ("if __name__ == '__main__': print(__name__)", "ok", 0, "__main__\n", ""),
        ("import atexit; atexit.register(print, 'late'); print('soon')", "ok", 0, "soon\nlate\n", ""),
        ("import threading; threading.Thread(target=print, args=('t',)).start()", "ok", 0, "t\n", ""),
        ("print('\\u00e4\\ud800'.encode('utf-8', 'surrogatepass'))", "ok", 0, "b'", ""),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", "ok", 0, "\ufffd", ""),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(1))", "ok", 0, "A(x=1)\n", ""),
        ("import asyncio\nasync def f(): return 7\nprint(asyncio.run(f()))", "ok", 0, "7\n", ""),
        ("open('a', 'w').write('b'); print(open('a').read())", "ok", 0, "b\n", ""),
        ("import tempfile; print(len(tempfile.mkdtemp()) > 3)", "ok", 0, "True\n", ""),
        ("a\0b", "error", 1, "", "null bytes"),
        ("import sys; print([name for name in sys.modules if 'inside' in name])", "ok", 0, "[]\n", ""),
    ],
)
def test_a_program_ends_as_python_would_end_it(
    sandbox: Sandbox, program: str, status: str, code: int | None, out: str, err: str
) -> None:
    result = sandbox.run(program, stdin="abc\n", limits=Limits(seconds=1, cpu_seconds=2))
    assert result.status == status, result
    assert code is None or result.exit_code == code
    assert result.stdout.startswith(out) and err in result.stderr
    assert result.layers == layers.chosen() and bool(result.note) == (status != "ok")
    assert 0 < result.seconds < 4 and 1 << 20 < result.peak_memory < 1 << 30


@here
def test_sizes_and_times_are_measured(sandbox: Sandbox) -> None:
    small = sandbox.run("import time; time.sleep(0.3)")
    large = sandbox.run("x = b'x' * (100 << 20)")
    assert 0.3 <= small.seconds < 2
    assert 98 << 20 <= large.peak_memory - small.peak_memory < 110 << 20  # shared pages count otherwise


@here
def test_limits_are_the_callers(sandbox: Sandbox) -> None:
    assert sandbox.run("x = bytearray(100 << 20)", limits=Limits(memory=64 << 20)).status == "memory"
    assert sandbox.run("x = bytearray(100 << 20)", limits=Limits(memory=256 << 20)).ok
    assert sandbox.run("print('x' * 2000)", limits=Limits(output=1000)).status == "output"
    long = sandbox.run("print('x' * 2000)", limits=Limits(output=1000))
    assert long.stdout == "x" * 1000
    cpu = sandbox.run("while True: pass", limits=Limits(seconds=60, cpu_seconds=1))
    assert cpu.status == "timeout" and "processor" in cpu.note
    with pytest.raises(ValueError, match="seconds"):
        Limits(seconds=0)


@here
def test_large_inputs_and_outputs_pass_whole(sandbox: Sandbox) -> None:
    text = "".join(f"{number}\n" for number in range(200_000))
    result = sandbox.run("import sys; sys.stdout.write(sys.stdin.read())", stdin=text, limits=Limits(output=4 << 20))
    assert result.ok and result.stdout == text
    tests = "assert f(1) == 2\n" + "assert 'a test of a megabyte'\n" * 33_000
    assert sandbox.run("def f(x): return x + 1", tests=tests).ok
    assert sandbox.run("x" * (17 << 20)).status == "refused"


@here
def test_hashes_are_the_same_in_every_run(sandbox: Sandbox) -> None:
    jobs = [Job("import random; print(hash('a'), list({'a', 'b', 'c'})); print(random.random())")] * 6
    printed = [result.stdout.splitlines() for result in sandbox.map(jobs)]
    assert len({lines[0] for lines in printed}) == 1 and len({lines[1] for lines in printed}) == 6


@here
def test_both_places_work_at_once_and_results_keep_their_order(sandbox: Sandbox) -> None:
    start = time.monotonic()
    results = list(sandbox.map([Job(f"import time; time.sleep(0.5); print({n})") for n in range(4)]))
    assert [result.stdout for result in results] == ["0\n", "1\n", "2\n", "3\n"]
    assert time.monotonic() - start < 1.9


# ------------------------------------------------------------------------------------- tests of programs


@here
def test_programs_are_held_to_what_they_print(sandbox: Sandbox) -> None:
    program = "n = int(input())\nprint(n * n, ' ')\nassert n < 9"
    assert check_stdin(sandbox, program, [("2", "4"), ("3", "9\n\n")]).ok
    wrong = check_stdin(sandbox, program, [("2", "4"), ("3", "8"), ("4", "16")])
    assert (wrong.passed, wrong.total, wrong.ok) == (1, 3, False) and "test 2: the output" in wrong.note
    raised = check_stdin(sandbox, program, [("9", "81  ")])
    assert raised.passed == 0 and "error" in raised.note
    assert not check_stdin(sandbox, program, []).ok


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [("a\n", "a", True), ("a  \nb", "a\nb\n\n", True), ("a\n\nb", "a\nb", False), (" a", "a", False), ("", "\n", True)],
)
def test_what_counts_as_the_same_output(given: str, expected: str, same: bool) -> None:
    assert same_output(given, expected) is same


@here
@pytest.mark.parametrize(
    ("program", "ok"),
    [
        ("def f(x): return x + 1", True),
        ("def f(x): return x", False),
        ("def g(x): return x + 1", False),
        ("raise SystemExit(0)\ndef f(x): return x + 1", False),
        ("def f(x): return x + 1\nraise SystemExit(0)", True),
        ("def f(x): return x + 1\nprint(f(int(input())))", True),
        ("def f(x): return x + 1\nexit()", True),
        ("def f(x): return x + 1\nprint(f(5", False),
        ("def f(x): return x + 1\nassert f(1) == 3, 'a test of its own that is wrong'", True),
        ("def f(x): return x + 1\nif __name__ == '__main__':\n    while True: pass", True),
        ("def f(x): return x + 1\nimport unittest\nunittest.main()", True),
        ("def f(x): return g(x) + 1\nraise SystemExit\ndef g(x): return x", False),
        ("f = lambda x: x + 1", True),
        ("import os\ndef f(x): os._exit(0)", False),
        ("import sys\ndef f(x): sys.exit(0)", False),
        ("def f(x): return x + 1\nif __name__ == '__main__': print('main')", True),
        ("def f(x):\n    while True: pass", False),
    ],
)
def test_programs_are_held_to_asserts(sandbox: Sandbox, program: str, ok: bool) -> None:
    verdict = check_asserts(sandbox, program, "assert f(1) == 2\nassert f(2) == 3", Limits(seconds=1))
    assert verdict.ok is ok and bool(verdict.note) is not ok


def humaneval() -> list[dict[str, str]]:
    """From the file that HADAL_HUMANEVAL names: HumanEval.jsonl.gz."""
    if not (name := os.environ.get("HADAL_HUMANEVAL")):
        pytest.skip("HADAL_HUMANEVAL names no HumanEval.jsonl.gz")
    with gzip.open(name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@here
def test_humaneval_passes_with_its_solutions_and_fails_without() -> None:
    problems = humaneval()
    before = [each["prompt"].rpartition(f"def {each['entry_point']}(")[0] for each in problems]
    tests = [f"{own}\n{each['test']}\ncheck({each['entry_point']})\n"
             for own, each in zip(before, problems, strict=True)]  # fmt: skip
    start = time.monotonic()
    with Sandbox(places=2) as sandbox:
        for body, right in (("canonical_solution", 164), (None, 0)):
            programs = [each["prompt"] + (each[body] if body else "    pass\n") for each in problems]
            jobs = [Job(program, tests=test) for program, test in zip(programs, tests, strict=True)]
            assert sum(result.ok for result in sandbox.map(jobs)) == right
    assert time.monotonic() - start < 15


# ------------------------------------------------------------------------------------- losses


def keeper_of(sandbox: Sandbox) -> int:
    keeper = sandbox._places._all[0].keeper
    assert keeper is not None
    return keeper.process.pid


@here
def test_a_keeper_that_is_lost_between_jobs_costs_no_job() -> None:
    with Sandbox(places=1) as sandbox:
        assert sandbox.run("print(1)").ok
        first = keeper_of(sandbox)
        os.killpg(first, signal.SIGKILL)
        time.sleep(0.5)
        assert sandbox.run("print(1)").ok and keeper_of(sandbox) != first


@here
def test_a_keeper_that_is_lost_in_a_job_costs_that_job_alone() -> None:
    with Sandbox(places=1) as sandbox:
        assert sandbox.run("print(1)").ok
        threading.Timer(0.5, os.killpg, (keeper_of(sandbox), signal.SIGKILL)).start()
        lost = sandbox.run("import time; time.sleep(30)")
        assert lost.status == "error" and "lost" in lost.note
        assert sandbox.run("print(1)").ok


@here
def test_a_job_that_is_ended_at_any_moment_leaves_nothing_in_the_pipe() -> None:
    """What it had not read would be taken for the next job."""
    with Sandbox(places=1) as sandbox:
        for step in range(24):
            limits = Limits(seconds=1e-4 + step / 1e3)
            early = sandbox.run("def f(x): return x", tests="assert f(1) == 2", limits=limits)
            assert early.status in ("timeout", "error"), early
            assert check_asserts(sandbox, "def f(x): return x", "assert f(3) == 3").ok


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="root alone may read this process's memory")
def test_a_job_finds_nothing_of_the_ones_before_in_its_memory() -> None:
    """Its memory is its keeper's: here without layers, so that it can look."""
    look = (
        "import os, re\nfound = set()\n"
        "for line in open('/proc/self/maps'):\n"
        "    start, end = (int(part, 16) for part in line.split()[0].split('-'))\n"
        "    memory = os.open('/proc/self/mem', os.O_RDONLY)\n"
        "    try: found |= set(re.findall(rb'sesame-(\\d+)', os.pread(memory, end - start, start)))\n"
        "    except (OSError, OverflowError): pass\n"
        "    os.close(memory)\nprint(sorted(found))\n"
    )
    with Sandbox(places=1, only=(), allow_unsandboxed=True) as sandbox:
        own = sandbox.run(look + "mine = 'sesame-0'")
        assert own.stdout == "[b'0']\n", own
        for _ in range(3):
            failed = sandbox.run("import sys\ndef f(x):\n    print('sesame-1', file=sys.stderr)\n    return 'sesame-2'",
                                 stdin="sesame-3", tests="assert f('sesame-4') == 'sesame-5', 'sesame-6'")  # fmt: skip
            assert "sesame-6" in failed.note and "sesame-1" in failed.stderr
            sandbox.run("print('sesame-7')")
        assert sandbox.run(look).stdout == "[]\n"
        during = sandbox.run(look + "def f(x):\n    exec(look, globals())\n    return len(found)\nlook = " + repr(look),
                             tests="assert f('sesame-8') == 1, 'sesame-9'", names=("f",))  # fmt: skip
        assert during.ok and during.stdout == "[]\n[b'8']\n", during


@here
@pytest.mark.parametrize("only", [None, ("landlock", "seccomp")])
def test_nothing_outlives_the_one_who_asked(only: tuple[str, ...] | None, tmp_path: Path) -> None:
    """It is killed in the middle of a job, and has no time to clean."""
    if only and not set(only) <= set(layers.chosen()):
        pytest.skip("no Landlock here")
    program = (
        f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n"
        f"from hadal.sandbox import *\nbox = Sandbox(2, only={only})\nprint(box.run('print(1)').status, flush=True)\n"
        "box.run('import time; open(\"a\", \"w\").write(\"b\"); time.sleep(60)', limits=Limits(seconds=60))"
    )
    tmp_path.chmod(0o711)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ok\n"
    time.sleep(0.8)
    assert processes_of(tmp_path)
    process.kill()
    process.wait()
    end = time.monotonic() + 5
    while processes_of(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


@here
def test_a_closed_sandbox_says_so_and_ends_what_runs() -> None:
    sandbox = Sandbox(places=1)
    threading.Timer(0.7, sandbox.close).start()
    assert sandbox.run("import time; time.sleep(9)").status == "error"
    sandbox.close()
    with pytest.raises(ValueError, match="closed"):
        sandbox.run("print(1)")


def test_where_nothing_isolates_it_refuses_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for only in ((), ("landlock",), ("seccomp",), ("namespaces",)):
        with pytest.raises(UserError, match="isolates"):
            Sandbox(only=only)
    monkeypatch.setattr(layers, "chosen", lambda: ())  # as on a machine that has none
    with pytest.raises(UserError, match="unsandboxed"):
        Sandbox()
    with Sandbox(places=1, allow_unsandboxed=True) as sandbox:
        assert sandbox.run("print(6 * 7)") .stdout == "42\n"
        assert sandbox.run("while True: pass", limits=Limits(seconds=0.5)).status == "timeout"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux finds a descendant that left its group")
def test_unsandboxed_descendants_are_found_whatever_group_they_moved_to(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        time.sleep(1.5); open({str(mark)!r}, 'w')\n    os._exit(0)\n"
        "os.wait(); print('left')"
    )
    with Sandbox(places=1, only=(), allow_unsandboxed=True) as sandbox:
        result = sandbox.run(program)
        assert result.ok and result.stdout == "left\n" and result.seconds < 1.4
    time.sleep(1.8)
    assert not mark.exists()


# ------------------------------------------------------------------------------------- hostile words


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)
FIELDS = ["status", "exit_code", "stdout", "stderr", "seconds", "peak", "note"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values | st.sampled_from(STATUSES)) | json_values)
@settings(max_examples=150, deadline=None)
def test_a_report_is_a_result_or_a_value_error(message: Any) -> None:
    try:
        result = result_from(message, Limits(output=10), ("landlock",))
    except ValueError:
        return
    assert isinstance(result, Result) and result.status in STATUSES and result.layers == ("landlock",)
    assert max(map(len, (result.stdout, result.stderr, result.note))) <= 10


@given(st.binary(max_size=64), st.booleans())
@settings(max_examples=25, deadline=None)
def test_what_a_child_says_is_a_message_or_a_loss(said: bytes, framed: bool) -> None:
    data = len(said).to_bytes(8, "little") + said if framed else said
    child = Child([sys.executable, "-S", "-c", f"import os; os.write(1, {data!r})"], os.environ, "/")
    try:
        got = child.receive(5, 1 << 16)
        assert framed and got == json.loads(said)
    except ChildEnded:
        pass
    finally:
        child.kill()


def test_a_child_that_promises_too_much_or_nests_too_deep_is_lost() -> None:
    for body in ("(1 << 62).to_bytes(8, 'little')", "(100000).to_bytes(8, 'little') + b'[' * 100000"):
        child = Child([sys.executable, "-S", "-c", f"import os; os.write(1, {body})"], os.environ, "/")
        with pytest.raises(ChildEnded):
            child.receive(5, 1 << 20)
        child.kill()
    late = Child(["sleep", "30"], os.environ, "/")
    with pytest.raises(ChildLate):
        late.receive(0.1, 100)
    assert late.kill() == -signal.SIGKILL


@here
@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_whatever_a_program_writes_anywhere_the_verdict_is_the_keepers(said: bytes) -> None:
    """To stdout, stderr, the sandbox's own channel and that of the tests, before it fails."""
    program = (
        f"import os\nfor fd in (1, 2, 3, 4):\n    try: os.write(fd, {said!r})\n    except OSError: pass\nos._exit(5)"
    )
    for tests in (None, "pass"):
        result = _fuzzed().run(program, tests=tests, limits=Limits(seconds=3))
        assert (result.status, result.exit_code) == ("error", 5)
        assert result.stdout == result.stderr == said.decode("utf-8", "replace")


_kept: list[Sandbox] = []


def _fuzzed() -> Sandbox:
    if not _kept:
        _kept.append(Sandbox(places=1))
    return _kept[0]


@pytest.fixture(scope="module", autouse=True)
def _close_fuzzed() -> Iterator[None]:
    yield
    while _kept:
        _kept.pop().close()


# ------------------------------------------------------------------------------------- parts


def test_the_numbers_of_system_calls_are_the_kernels() -> None:
    """Against the C headers, where they are installed."""
    headers = {0: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 1: "/usr/include/asm-generic/unistd.h"}
    compared = 0
    for column, path in headers.items():
        if not Path(path).exists():
            continue
        known = {}
        for line in Path(path).read_text().splitlines():
            words = line.split()
            if len(words) == 3 and words[0] == "#define" and words[2].isdigit():
                known[words[1].removeprefix("__NR3264_").removeprefix("__NR_")] = int(words[2])
        known.setdefault("newfstatat", known.get("fstatat", -1))
        table = {name: each[column] for name, each in (*seccomp._FREE.items(), *seccomp._bounded(1).items())}
        for name, number in table.items():
            if number is not None:
                assert known[name] == number, (path, name)
                compared += 1
    if not compared:
        pytest.skip("no headers here")


@pytest.mark.parametrize("machine", [0, 1])
def test_the_filter_is_what_the_table_says(machine: int) -> None:
    """Run by a slow literal interpreter of the kernel's filter machine."""
    program = seccomp.program(77, machine)
    arch = (0xC000003E, 0xC00000B7)[machine]

    def decide(number: int, *arguments: int, arch: int = arch) -> int:
        words = {0: number, 4: arch}
        for i, argument in enumerate(arguments):
            words[16 + 8 * i] = argument & 0xFFFFFFFF
        at, value = 0, 0
        while True:
            code, yes, no, operand = program[at]
            at += 1
            if code == 0x20:
                value = words.get(operand, 0)
            elif code == 0x54:
                value &= operand
            elif code == 0x06:
                return operand
            else:
                at += yes if (value == operand if code == 0x15 else value > operand) else no

    allow, eperm, enosys = 0x7FFF0000, 0x50001, 0x50026
    openat, clone, kill, socket, socketpair, fcntl = ((257, 56, 62, 41, 53, 72), (56, 220, 129, 198, 199, 25))[machine]
    thread, sigchld = 0x3D0F00, 17
    assert decide(openat, 0, 0, os.O_RDONLY) == decide(openat, 0, 0, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) == allow
    assert decide(openat, 0, 0, os.O_RDONLY | os.O_TRUNC) == decide(openat, 0, 0, 3) == eperm
    assert decide(clone, thread) == allow
    assert decide(clone, sigchld) == decide(clone, thread | 0x10000000) == eperm and decide(435) == enosys
    assert decide(kill, 77) == allow and {decide(kill, pid) for pid in (0, 1, 76, -1)} == {eperm}
    assert decide(socket, 1, 1) == eperm
    assert decide(socketpair, 1, 1 | os.O_CLOEXEC) == allow
    assert decide(socketpair, 1, 2) == decide(socketpair, 2, 1) == eperm
    assert decide(fcntl, 0, 3) == allow and decide(fcntl, 0, 8) == decide(fcntl, 0, 10) == eperm
    assert decide(0x40000000 + openat) == enosys and decide(openat, arch=0x40000003) == 0x80000000
    free = {numbers[machine] for numbers in seccomp._FREE.values()} - {None}
    bounded = {each[machine] for each in seccomp._bounded(77).values()} - {None}
    for number in range(463):
        if number not in bounded and number != 435:
            assert decide(number) == (allow if number in free else eperm), number


def test_a_hostile_tree_is_measured_and_removed(tmp_path: Path) -> None:
    os.symlink("/etc", tmp_path / "link")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "hidden").chmod(0)
    assert tree.bytes_below(str(tmp_path), 1 << 30) >= (100_000 if os.getuid() == 0 else 1 << 30)
    here, depth = os.open(tmp_path, os.O_RDONLY), 2000
    for _ in range(depth):
        os.mkdir("d" * 50, dir_fd=here)
        inner = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert tree.bytes_below(str(tmp_path), 1 << 30) == 1 << 30, "too deep to look into counts as too much"
    tree.remove_below(str(tmp_path))
    assert os.listdir(tmp_path) == [] and os.listdir("/etc")
