"""What tests of a program are told and what they cannot be told; programs that try to pass them all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cheats import CHEATS, RIGHT, TESTS, Cheat
from hypothesis import given, settings
from hypothesis import strategies as st

from hadal.sandbox import Limits, Sandbox, check_asserts, layers
from hadal.sandbox.inside import plain

pytestmark = pytest.mark.skipif(not layers.isolates(layers.chosen()), reason="nothing here isolates a program")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(places=1) as made:
        yield made


PLAIN = [None, True, 0, -1, 10**400, -(2**63), 0.5, float("inf"), -0.0, 1j, "", "\u00e4\ud800\0", b"\xff\0", [], (), {},
         set(), frozenset(), [1, (2, [3.0, {"a": {4: None}}])], {(1, 2): [b"x"], None: {5, "y"}}, {frozenset({1})},
         int, dict]  # fmt: skip


def test_plain_values_come_through_as_they_are(sandbox: Sandbox) -> None:
    """Both ways, of the same types, not a number included."""
    alike = "def alike(a, b): return type(a) is type(b) and repr(a) == repr(b)\n"
    tests = "".join(f"assert alike(f({value!r}), {value!r}), {value!r}\n" for value in PLAIN if type(value) is not type
                    and value not in (set(), frozenset()) and repr(value) not in ("inf",))  # fmt: skip
    tests += "assert alike(f(set()), set()) and alike(f(float('inf')), float('inf')) and f(int) is int\n"
    tests += "assert f(a=1, b=[2]) == {'a': 1, 'b': [2]} and str(f(float('nan'))) == 'nan'\n"
    verdict = check_asserts(sandbox, "def f(*a, **k): return a[0] if a else k", alike + tests, names=("f",))
    assert verdict.ok, verdict


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("from collections import *\ndef f(x): return Counter(x)",
         "assert type(f('aab')) is dict and f('aab')['a'] == 2"),
        ("from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\ndef f(x): return P(x)",
         "assert f(1) == (1,)"),
        ("from enum import IntEnum\nclass E(IntEnum):\n    A = 3\ndef f(x): return E(x)",
         "assert f(3) == 3"),
        ("def f(x):\n    yield from range(x)", "assert f(3) != [0, 1, 2] and list(f(3)) == [0, 1, 2]"),
        ("def f(x): return map(str, x)", "assert list(f([1])) == ['1']"),
        ("def f(x): return sum(x)", "assert f(n for n in (1, 2)) == 3 and f(map(int, '12')) == 3"),
        ("def f(x): return lambda y: x + y", "assert f(1)(2) == 3"),
        ("class N:\n    def __init__(self, v): self.v, self.l = v, None\n"
         "def d(n): return 0 if n is None else 1 + d(n.l)",
         "root = N(1)\nroot.l = N(2)\nassert d(root) == 2 and root.l.v == 2 and root.l is not None"),
        ("class C:\n    n = 0\n    def up(self, by=1):\n        self.n += by\n        return self.n",
         "c = C()\nassert c.up() == 1 and c.up(by=2) == 3 and c.n == 3"),
        ("LIMIT = 7\ndef f(x): return [int, x]", "assert f(LIMIT) == [int, 7]"),
        ("def sum(a, b): return a - b", "assert sum(5, 3) == 2"),
        ("def f(x): raise KeyError(x)",
         "try:\n    f('a')\n    assert False\nexcept KeyError as e:\n    assert str(e) == \"'a'\""),
        ("class E(ValueError): pass\ndef f(x): raise E(x, 2)",
         "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert e.args == (1, 2)"),
        ("class E(Exception): pass\ndef f(x): raise E(f)", "try:\n    f(1)\nexcept Exception as e:\n    pass"),
        ("def f(x): return x.decode('ascii')",
         "try:\n    f(b'\\xff')\nexcept UnicodeDecodeError as e:\n    assert e.start == 0"),
        ("import random\ndef f(x):\n    random.seed(1)\n    print(x)\n    return x",
         "import random\nrandom.seed(2)\na = random.random()\nrandom.seed(2)\nf(1)\nassert random.random() == a"),
    ],
)  # fmt: skip
def test_what_tests_do_with_a_program(sandbox: Sandbox, program: str, tests: str) -> None:
    names = ("sum",) if "sum(a" in program else None
    verdict = check_asserts(sandbox, program, tests, names=names)
    assert verdict.ok, verdict


@pytest.mark.parametrize(
    ("program", "tests", "status", "note"),
    [
        ("def f(x): return x", "assert f(1) == 2", "error", "AssertionError (assert f(1) == 2)"),
        ("def f(x): return x", "for n in (1, 2):\n    assert f(n) == 1, n", "error",
         "AssertionError: 2 (assert f(n) == 1, n)"),
        ("def f(x): return 10 ** 5000", "assert f(1) == 1, f(1)", "error",
         "AssertionError: it cannot be written (assert f(1) == 1, f(1))"),
        ("def f(x): return x.y", "f(1)", "error", "AttributeError: 'int' object has no attribute 'y' (f(1))"),
        ("def g(x): return x", "assert f(1)", "error", "NameError: name 'f' is not defined (assert f(1))"),
        ("def f(x): return x", "assert f(1", "error", "SyntaxError: '(' was never closed (tests.py, line 1)"),
        ("def f(x): return x", "raise SystemExit(0)", "error", "SystemExit: 0 (raise SystemExit(0))"),
        ("def f(x): return x", "import os\nos._exit(0)", "error", "its tests left with exit status 0"),
        ("import sys\ndef f(x): sys.exit(x)", "f(0)", "error", "the program ended in its tests"),
        ("import sys\ndef f(x): sys.exit(x)", "f(3)", "error", "exit status 3"),
        ("import os\ndef f(x): os.abort()", "f(0)", "error", "ended by signal 6"),
        ("def f(x): return x", "while True: f(1)", "timeout", "ran for more than 1 s"),
        ("def f(x): return bytearray(1 << 40)", "f(1)", "memory", "asked for more than 536870912 bytes"),
        ("def f(x): return x", "bytearray(1 << 40)", "memory", "asked for more than 536870912 bytes"),
        ("def f(x): return x", "assert f(print)", "error",
         "TypeError: a test hands the program something that cannot be sent: a builtin_function_or_method cannot be "
         "sent (assert f(print))"),
        ("import datetime\ndef f(x): return datetime.date(1, 1, x)", "assert f(1) == 1", "error",
         "TypeError: the program gave a date, which tests cannot compare: plain values alone are sent (assert f(1) "
         "== 1)"),
    ],
)  # fmt: skip
def test_a_note_says_how_tests_failed(sandbox: Sandbox, program: str, tests: str, status: str, note: str) -> None:
    result = sandbox.run(program, tests=tests, limits=Limits(seconds=1), names=("f",))
    assert (result.status, result.note) == (status, note)
    assert result.exit_code not in (0, None) or "ended in its tests" in note
    assert not result.ok


def test_tests_have_no_folder_and_no_way_out(sandbox: Sandbox, tmp_path: Path) -> None:
    """They come from data sets, and are trusted no more than programs."""
    (tmp_path / "key").write_text("secret")
    tmp_path.chmod(0o777)
    for act in (f"open({str(tmp_path / 'key')!r})", "open('a', 'w')", "import os; os.fork()",
                "import socket; socket.socket()", "import os; os.kill(os.getppid(), 9)"):  # fmt: skip
        verdict = check_asserts(sandbox, "def f(x): return x", f"assert f(1) == 1\n{act}")
        assert not verdict.ok and "Error" in verdict.note and "Assertion" not in verdict.note, (act, verdict)


def kinds(value: Any) -> Any:
    """The types of a value's parts."""
    if isinstance(value, dict):
        return [dict, *((kinds(key), kinds(value)) for key, value in value.items())]
    if isinstance(value, list | tuple):
        return [type(value), *map(kinds, value)]
    return type(value), len(value) if isinstance(value, set | frozenset) else repr(value)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text() | st.binary() | st.sampled_from([int, str]),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text() | st.integers(), inner),
                            st.sets(st.integers()), st.frozensets(st.text())), max_leaves=8))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_plain_values_are_read_as_they_were_written(value: Any) -> None:
    data = plain.encode(value, lambda _: 1 // 0)
    read = plain.decode(data, lambda *_: 1 // 0)
    assert read == value and kinds(read) == kinds(value)
    for cut in range(len(data)):
        with pytest.raises(plain.Malformed):
            plain.decode(data[:cut], lambda *_: 1 // 0)


@given(st.binary(max_size=60) | st.lists(st.sampled_from(
    [b"l", b"t", b"s", b"z", b"d", b"n", b"i", b"u", b"f", b"c", b"b", b"k", b"r", b"N", b"T", b"\1\0\0\0", b"\2\0\0\0",
     b"\xff\xff\xff\xff", b"u\4\0\0\0eval", b"u\3\0\0\0int"]), max_size=30).map(b"".join))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_plain_value_or_malformed(data: bytes) -> None:
    try:
        value = plain.decode(data, lambda index, kind: None)
    except plain.Malformed:
        return
    assert type(value) in (*plain.TYPES.values(), type(None), type, type(iter([])))


# ------------------------------------------------------------------------------------- cheats


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_a_cheat_earns_nothing(sandbox: Sandbox, cheat: Cheat) -> None:
    limits = Limits(seconds=cheat.seconds, cpu_seconds=5)
    verdict = check_asserts(sandbox, cheat.text, cheat.tests, limits, names=("f",))
    assert not verdict.ok and verdict.note, verdict
    assert check_asserts(sandbox, "def f(x): return x", "assert f([1, 2.5]) == [1, 2.5]").ok, "it left something"
    assert not check_asserts(sandbox, "def f(x): return x", "assert f(1) == 2").ok


@pytest.mark.long
@pytest.mark.parametrize("way", ["landlock,seccomp", "namespaces,seccomp", "bubblewrap,landlock,seccomp"])
def test_a_cheat_earns_nothing_whatever_holds_it(way: str) -> None:
    held = way.split(",")
    if any(layers.available()[layer] is not None for layer in held):
        pytest.skip(f"not to be had here: {layers.available()}")
    with Sandbox(places=1, only=held) as sandbox:
        for cheat in CHEATS:
            limits = Limits(seconds=cheat.seconds, cpu_seconds=5)
            assert not check_asserts(sandbox, cheat.text, cheat.tests, limits, names=("f",)).ok, cheat.name
            assert check_asserts(sandbox, "def f(x): return x", "assert f([1, 2.5]) == [1, 2.5]").ok, cheat.name


def test_the_tests_of_the_cheats_can_be_passed(sandbox: Sandbox) -> None:
    for tests, right in {(cheat.tests, cheat.right) for cheat in CHEATS if cheat.right is not RIGHT} | {(TESTS, RIGHT)}:
        verdict = check_asserts(sandbox, right, tests, names=("f",))
        assert verdict.ok, (tests, verdict)
    assert len({cheat.name for cheat in CHEATS}) == len(CHEATS) >= 28
