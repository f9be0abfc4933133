"""What can be read in one sitting: no file over 500 lines, no class over 250; and the engine's step is three calls."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hadal.engine import Engine

SOURCE = Path(__file__).resolve().parent.parent / "src" / "hadal"
FILE, CLASS = 500, 250


def too_long(name: str, source: str) -> Iterator[str]:
    """What of a file is longer than it may be."""
    lines = len(source.splitlines())
    if lines > FILE:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if (lines := (node.end_lineno or first) - first + 1) > CLASS:
                yield f"{name}: class {node.name} has {lines} lines"


def test_files_and_classes_can_be_read_in_one_sitting() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert files
    assert [fault for path in files for fault in too_long(str(path.relative_to(SOURCE)), path.read_text())] == []


def test_the_rule_sees_long_files_and_classes() -> None:
    body = "    x = 1\n" * CLASS
    assert list(too_long("a.py", f"class A:\n{body}")) == [f"a.py: class A has {CLASS + 1} lines"]
    assert list(too_long("a.py", f"class A:\n{body[:-10]}")) == []
    assert list(too_long("a.py", "x = 1\n" * (FILE + 1))) == [f"a.py: {FILE + 1} lines"]


def test_a_step_is_schedule_run_and_outputs_and_nothing_else() -> None:
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(Engine.step))).body
    assert isinstance(function, ast.FunctionDef)
    calls = [ast.unparse(node.func) for line in function.body for node in ast.walk(line) if isinstance(node, ast.Call)]
    assert calls == ["self.scheduler.schedule", "self.runner.run", "self.outputs.process"]
    assert all(isinstance(line, ast.Assign | ast.Expr) for line in function.body), "no branch, no loop"
