"""Data sets of Python problems with tests: HumanEval and MBPP.

The code that a model writes runs in the sandbox (`hadal.sandbox`), or in what is handed in for it.
"""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hadal.rng import Rng
from hadal.sandbox import Sandbox, check_asserts, free_names
from hadal.tasks.answers import Verdict
from hadal.tasks.base import Problem, Split
from hadal.tasks.code_blocks import code_of, fenced, joined, without_demos
from hadal.tasks.datasets import DataSet, RowError, field
from hadal.tasks.rows import HubFile, Row
from hadal.text.parse import parse_response

Names = tuple[str, ...] | None
RunTests = Callable[[str, str, Names], tuple[bool, str]]
"""(program, tests, what the tests have of the program) -> (whether the tests passed, a note)."""


class CodeTask(DataSet):
    """A problem's meta holds `tests`, Python that raises where the program is wrong, and `names`, what they call of it.

    Tests hold all else that they need: they run in a process of their own, where the program is not.
    """

    def __init__(self, path: Path | None = None, run_tests: RunTests | None = None) -> None:
        super().__init__(path)
        self.run_tests = run_tests or run_in_sandbox

    def wanted(self, problem: Problem) -> set[str]:
        """The names that the tests expect a program to define."""
        return set(problem.meta.get("names") or free_names(problem.meta["tests"]))

    def program(self, problem: Problem, code: str) -> str:
        """What is run before the tests, from the code of a reply."""
        return code

    def canonical(self, problem: Problem, answer: str) -> str:
        """The program without its comments and layout."""
        code = code_of(answer, self.wanted(problem))
        try:
            return "" if code is None else ast.unparse(ast.parse(code))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return code or ""

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        """UserError where nothing here isolates a program."""
        code = code_of(answer, self.wanted(problem))
        if code is None:
            return Verdict(False, "no Python in the answer")
        return Verdict(*self.run_tests(self.program(problem, code), problem.meta["tests"], problem.meta.get("names")))

    def tests_passed(self, problem: Problem, response: str) -> float:
        """Each assertion that the prompt does not show counts as a test and is run by itself; none is run after one
        that hangs."""
        parsed = parse_response(response)
        code = code_of(parsed.answer, self.wanted(problem)) if parsed.closed else None
        if code is None:
            return 0.0
        tests, passed = separate(problem.meta.get("not_shown", problem.meta["tests"])), 0
        for test in tests:
            right, note = self.run_tests(self.program(problem, code), test, problem.meta.get("names"))
            passed += right
            if note.startswith("timeout"):
                break
        return passed / len(tests)


def separate(tests: str) -> list[str]:
    """Tests with all but one of their assertions left out, for each of them: those of the function `check`, as in
    HumanEval, or of the module. A loop of assertions is one."""
    tree = ast.parse(tests)
    checks = [node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    body = checks[0] if checks else tree.body
    whole = list(body)
    asserting = [node for node in whole if not isinstance(node, ast.FunctionDef | ast.ClassDef)
                 and any(isinstance(part, ast.Assert) for part in ast.walk(node))]  # fmt: skip
    found = []
    for kept in asserting:
        body[:] = [node for node in whole if node is kept or node not in asserting]
        found.append(ast.unparse(tree))
    return found or [tests]


@functools.cache
def _sandbox() -> Sandbox:
    """The one that all tasks share."""
    return Sandbox()


def run_in_sandbox(program: str, tests: str, names: Names) -> tuple[bool, str]:
    """`RunTests` by this machine's sandbox."""
    verdict = check_asserts(_sandbox(), program, tests, names=names)
    return verdict.ok, verdict.note


class HumanEval(CodeTask):
    """Chen et al. 2021, arXiv 2107.03374: 164 functions to complete."""

    name = "humaneval"
    about = "Python functions from their docstrings (HumanEval)"
    held_out = (HubFile("openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet"),)

    def read(self, row: Row, split: Split) -> Problem:
        head, entry = field(row, "prompt"), field(row, "entry_point")
        before, found, _ = head.rpartition(f"def {entry}(")
        tests = f"{before}\n{field(row, 'test')}\n\ncheck({entry})\n"  # which may call the prompt's own helpers
        if not found:
            raise RowError(f"its prompt has no function {entry}")
        try:
            ast.parse(tests)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise RowError("its test, after what its prompt has before the function, is not valid Python") from None
        prompt = f"Complete this function. Give all of it in one block of Python.\n\n{fenced(head)}"
        meta = {
            "before": before,
            "head": head,
            "entry_point": entry,
            "tests": tests,
            "names": (entry,),
        }
        return Problem(prompt, fenced(head + field(row, "canonical_solution")), meta)

    def program(self, problem: Problem, code: str) -> str:
        """The reply's function behind the imports and helpers of the prompt; a bare body behind the whole prompt."""
        entry, head = problem.meta["entry_point"], problem.meta["head"]
        if re.search(rf"^\s*(?:async\s+)?def\s+{entry}\b|^{entry}\s*=", code, re.MULTILINE):
            return joined(problem.meta["before"], code)
        if not re.match(r"[ \t]", code.lstrip("\n")):
            code = textwrap.indent(code, "    ")
        return without_demos(head + code, {entry})


class MBPP(CodeTask):
    """Austin et al. 2021, arXiv 2108.07732: task ids 11 to 510 are the test set, 601 to 974 the training set."""

    name = "mbpp"
    about = "short Python programs from a sentence and three tests (MBPP)"
    train = (HubFile("google-research-datasets/mbpp", "full/train-00000-of-00001.parquet"),)
    held_out = (HubFile("google-research-datasets/mbpp", "full/test-00000-of-00001.parquet"),)
    _ids = {"train": range(601, 975), "held_out": range(11, 511)}

    def _files(self, split: Split) -> list[Path]:
        # The original is a single file, in which only the ids tell training and test problems apart.
        return [self.path] if self.path is not None and self.path.is_file() else super()._files(split)

    def read(self, row: Row, split: Split) -> Problem | None:
        number = field(row, "task_id")
        if not number.isdecimal():
            raise RowError(f"its task_id {number!r} is not a number")
        if int(number) not in self._ids[split]:
            return None
        tests = row.get("test_list")
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise RowError("its test_list is not a list of tests")
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        code = field(row, "code")
        imports, names = called(code, "\n".join([setup, *tests]))
        text = field(row, "text", "prompt").strip()
        setup = _lines(*imports, setup)
        meta = {"text": text, "names": names, "setup": setup, "test_list": tests, "tests": setup + _lines(*tests)}
        return Problem(self.prompt(text, "\n".join(tests)), fenced(code), meta)

    def for_reward(self, problem: Problem) -> Problem:
        """With one of the tests, the same one each time, not in the prompt: or a table of the tests would be right."""
        tests, text = problem.meta["test_list"], problem.meta["text"]
        place = Rng(self.name, "not shown", text).below(len(tests))
        shown = tests[:place] + tests[place + 1 :]
        if shown:
            prompt = self.prompt(text, "\n".join(shown))
        else:
            prompt = self.prompt(text, headers(code_of(problem.answer) or ""), "define this")
        not_shown = problem.meta["setup"] + _lines(tests[place])
        return replace(problem, prompt=prompt, meta=problem.meta | {"not_shown": not_shown})

    def prompt(self, text: str, shown: str, asked: str = "pass these tests") -> str:
        """The question, with the tests that it shows."""
        return (
            f"{text}\nYour program has to {asked}:\n\n{fenced(shown)}\n\nGive all of it in one block of Python."
        )


def _lines(*parts: str) -> str:
    return "".join(f"{part}\n" for part in parts if part.strip())


def called(code: str, tests: str) -> tuple[list[str], Names]:
    """Of a reference solution what its tests use: the imports, which are for the tests to do themselves, and the names
    that it defines; None where those cannot be told."""
    try:
        body, tree = ast.parse(code).body, ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [], None
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imports, names = [], list[str]()
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            wanted = [each for each in node.names if (each.asname or each.name).partition(".")[0] in used]
            if wanted:
                node.names = wanted
                imports.append(ast.unparse(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names += [node.name] if node.name in used else []
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            names += [each.id for each in targets if isinstance(each, ast.Name) and each.id in used]
    return imports, tuple(dict.fromkeys(names)) or None


def headers(code: str) -> str:
    """The first line of each function of a program."""
    return "\n".join(
        f"def {node.name}({ast.unparse(node.args)}): ..."
        for node in ast.parse(code).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
