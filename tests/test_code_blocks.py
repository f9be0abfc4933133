"""The program in a reply: a right one is right however it is fenced, and whatever stands around and behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hadal.sandbox import Sandbox, check_asserts
from hadal.tasks.code import MBPP, HumanEval
from hadal.tasks.code_blocks import code_of, missing_names, without_demos

RIGHT = "def thrice(x):\n    return twice(x) + x"
WRONG = "def thrice(x):\n    return 7"


def block(code: str, info: str = "python") -> str:
    return f"```{info}\n{code}\n```"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HumanEval, MBPP]]:
    """A function to complete, with a helper in its prompt, and a program from a sentence; run in the real sandbox."""
    folder = tmp_path_factory.mktemp("code")
    head = (
        'from typing import List\n\n\ndef twice(x):\n    return 2 * x\n\n\ndef thrice(x: int) -> int:\n    """3 x"""\n'
    )
    function = {
        "task_id": "X/0", "entry_point": "thrice", "prompt": head, "canonical_solution": "    return twice(x) + x\n",
        "test": "def check(candidate):\n    assert candidate(5) == 15\n    assert candidate(0) == 0\n",
    }  # fmt: skip
    program = {
        "task_id": 11, "text": "Write thrice.", "code": "def thrice(x):\n    return 3 * x",
        "test_list": ["assert thrice(5) == 15", "assert isinstance(thrice(0), int)"],
    }  # fmt: skip
    (folder / "a.jsonl").write_text(json.dumps(function) + "\n")
    (folder / "b.jsonl").write_text(json.dumps(program) + "\n")
    with Sandbox() as sandbox:

        def run(program: str, tests: str, names: tuple[str, ...] | None) -> tuple[bool, str]:
            verdict = check_asserts(sandbox, program, tests, names=names)
            return verdict.ok, verdict.note

        yield HumanEval(folder / "a.jsonl", run), MBPP(folder / "b.jsonl", run)


FENCES = {
    "a title": block(RIGHT, 'python title="solution.py"'),
    "a version": block(RIGHT, "python3.11"),
    "py3": block(RIGHT, "py3"),
    "capitals": block(RIGHT, "Python"),
    "braces": block(RIGHT, "{.python .numberLines}"),
    "a file name": block(RIGHT, "thrice.py"),
    "ipython": block(RIGHT, "ipython3"),
    "spaces": block(RIGHT, "  python  "),
    "tildes": f"~~~python\n{RIGHT}\n~~~",
    "no tag": block(RIGHT, ""),
    "no end": f"Here:\n```python\n{RIGHT}\n",
    "no end, then prose": f"```python\n{RIGHT}\n\nThis adds x to its double, which is right.",
    "no end, then another block": f"```python\n{RIGHT}\n\n```text\n15\n```",
    "no end, then usage": f"```python\n{RIGHT}\nprint(thrice(5))\n",
    "windows lines": block(RIGHT).replace("\n", "\r\n"),
    "indented": "1. Write it:\n\n   ```python\n   def thrice(x):\n       return twice(x) + x\n   ```\n2. Done.",
    "in a list": "- ```python\n  def thrice(x):\n      return twice(x) + x\n  ```",
    "behind prose": f"The function is ```python\n{RIGHT}\n```",
    "behind a colon": f"The function is: ```\n{RIGHT}\n```",
    "end on the last line": f"```python\n{RIGHT}```",
    "none": f"The function doubles and adds.\n\n{RIGHT}\n\nIt takes constant time.",
    "none, prose alike": f"from the above follows\n\nimport of x\n\n{RIGHT}\n\nclass of functions it is.",
    "none, beside a block of output": f"{RIGHT}\n\nIt prints:\n\n```\n15\n```",
    "in a docstring": '```python\ndef thrice(x):\n  """3 x\n\n  ```\n  >>> thrice(1)\n  3\n  ```\n\n'
    '  ```python\n  thrice(2)\n'
    '  ```\n  """\n  return 3 * x\n```\nand\n```\n3\n```',
    "more backticks": f"````python\n{RIGHT}\n````",
}  # fmt: skip
ADDS = "def thrice(x):\n    return add(x, add(x, x))"
ADD = "def add(a, b):\n    return a + b"
STUB = "def thrice(x: int) -> int:\n    pass"
TEST = "def test_thrice():\n    assert thrice(5) == 16\n\ntest_thrice()"
AROUND = {
    "output": [RIGHT, ("", "15")],
    "output that is no Python": [RIGHT, ("", "thrice(5) is 15")],
    "output as text": [RIGHT, ("text", "15")],
    "usage": [RIGHT, "print(thrice(5))"],
    "usage that fails": [RIGHT, "assert thrice(5) == 16"],
    "usage that imports": [RIGHT, "from solution import thrice\nthrice(1)"],
    "tests": [RIGHT, TEST],
    "a shell": [("bash", "pip install numpy"), RIGHT, ("sh", "python a.py")],
    "a first try": [WRONG, RIGHT],
    "the question": [STUB, RIGHT],
    "the question behind": [RIGHT, STUB.replace("pass", "...")],
    "helpers before": [ADD, ADDS],
    "helpers behind": [ADDS, "from operator import add\nprint(add(1, 1))"],
    "helpers of helpers": ["import operator", ADD.replace("a + b", "operator.add(a, b)"), ADDS, "thrice(1)"],
    "a prompt sign": [f"{RIGHT}\n\n>>> thrice(5)\n15"],
    "another language": [RIGHT, ("javascript", "function thrice(x) { return 4 * x }")],
}
DEMOS = {
    "main": 'if __name__ == "__main__":\n    print(thrice(int(input())))',
    "main that fails": 'if "__main__" == __name__:\n    assert thrice(5) == 16',
    "main with an else": 'if __name__ != "__main__":\n    raise ValueError\nelse:\n    LIMIT = 1',
    "input": 'n = int(input("n: "))\nprint(thrice(n))',
    "exit": "print(thrice(1))\nexit()",
    "quit": "quit()",
    "sys.exit": "import sys\nsys.exit(thrice(0))",
    "a wrong assert": "assert thrice(5) == 16",
    "an error": "print(thrice([1], [2]))",
    "a loop": "x = 1\nwhile True:\n    x = thrice(x)",
    "a loop over cases": "for x, want in [(1, 3), (2, 7)]:\n    assert thrice(x) == want, x",
    "unittest": "import unittest\n\nclass T(unittest.TestCase):\n    def test(self):\n"
    "        self.assertEqual(thrice(1), 4)\n\n"
    "unittest.main()",
    "a file": "with open('numbers.txt') as file:\n    for line in file:\n        print(thrice(int(line)))",
    "try": "try:\n    x = float(input())\nexcept ValueError:\n    exit(1)",
    "on one line": "print(thrice(input())); exit()",
    "a match": "match input():\n    case 'a':\n        exit()",
    "a package": "import nowhere_to_be_found as nowhere\nnowhere.run(thrice)",
    "a package of tests": "import nowhere\n@nowhere.mark\ndef test_thrice():\n    assert thrice(1) == 3",
}  # fmt: skip


@pytest.mark.parametrize("name", FENCES)
def test_a_right_program_is_right_in_any_fence(name: str, tasks: tuple[HumanEval, MBPP]) -> None:
    judged(FENCES[name], tasks, 1)
    judged(FENCES[name].replace("+ x", "+ x + 1").replace("3 * x", "4 * x"), tasks, 0)


@pytest.mark.parametrize("name", AROUND)
def test_a_right_program_is_right_among_other_blocks(name: str, tasks: tuple[HumanEval, MBPP]) -> None:
    pieces = [("python", piece) if isinstance(piece, str) else piece for piece in AROUND[name]]
    judged("\nSo:\n".join(block(code, info) for info, code in pieces), tasks, 1)


@pytest.mark.parametrize("name", DEMOS)
@pytest.mark.parametrize(
    "form", ["{}\n\n{}", "```python\n{}\n\n{}\n```", "```python\n{}\n```\nSo:\n```python\n{}\n```"]
)
def test_what_shows_a_program_off_behind_it_is_not_run(name: str, form: str, tasks: tuple[HumanEval, MBPP]) -> None:
    judged(form.format(RIGHT, DEMOS[name]), tasks, 1)


def judged(answer: str, tasks: tuple[HumanEval, MBPP], expected: float) -> None:
    (function,), (program,) = (task.problems("held_out") for task in tasks)
    assert tasks[0].score(function, f"<think>hm</think>{answer}").total == expected, code_of(answer, ["thrice"])
    whole = answer.replace("twice(x)", "2 * x")
    reward = tasks[1].score(program, whole)
    assert reward.total == expected, (reward.note, code_of(whole, ["thrice"]))


@pytest.mark.parametrize(
    "code",
    [
        "memo = {}\ndef thrice(x):\n    return memo.setdefault(x, 3 * x)",
        "def thrice(x):\n    return table[x]\n\ntable = [3 * i for i in range(10)]",
        "def thrice(x):\n    return table[x]\n\nN = 3\ntable = []\nfor i in range(9):\n    table.append(N * i)",
        "def thrice(x):\n    return table[x]\n\ntable = {}\nfor i in range(9):\n    table[i] = 3 * i\nprint(table)",
        "def thrice(x):\n    return x * FACTOR\n\nimport operator\nFACTOR = operator.add(1, 2)",
        "def thrice(x):\n    return inner(x)\n\ndef inner(x):\n    return 3 * x\n\nprint(thrice(1))",
        "thrice = lambda x: 3 * x\nprint(thrice(input()))",
        "def triple(x):\n    return 3 * x\n\nthrice = triple",
        "import functools\n@functools.cache\ndef thrice(x):\n    return x and thrice(x - 1) + 3\n\n"
        "thrice.cache_clear()",
        "try:\n    import numpy_of_nowhere as np\nexcept ImportError:\n    np = None\n\ndef thrice(x):\n"
        "    return 3 * x",
        "import sys\nsys.setrecursionlimit(10_000)\n\ndef thrice(x):\n    return 3 * x",
        "class Number(int):\n    def thrice(self):\n        return 3 * self\n\ndef thrice(x):\n"
        "    return int(Number(x).thrice())",
        "from __future__ import annotations\n\ndef thrice(x: Nowhere) -> Nowhere:\n    return 3 * x",
        "global_count = 0\ndef thrice(x):\n    global global_count\n    global_count += 1\n    return 3 * x\n\n"
        "global_count = 5",
    ],
)
def test_what_a_program_needs_is_kept(code: str, tasks: tuple[HumanEval, MBPP]) -> None:
    judged(block(code), tasks, 1)


@pytest.mark.parametrize(
    "body",
    ["    return twice(x) + x", "return twice(x) + x", "    y = twice(x)\n    return x + y\n\nprint(thrice(input()))"],
)
def test_a_body_alone_continues_the_prompt(body: str, tasks: tuple[HumanEval, MBPP]) -> None:
    (function,) = tasks[0].problems("held_out")
    reward = tasks[0].score(function, block(body))
    assert reward.total == 1, reward.note


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\na\n```\nand\n```python\nb\n```", "b\n"),
        ("```text\nno\n```\nso\n```python\nyes\n```\nprose", "yes\n"),
        ("```python\nyes\n```\nIt prints\n```text\nno\n```", "yes\n"),
        ("~~~~py\na = '''\n```\n'''\n~~~~", "a = '''\n```\n'''\n"),
        ("```python\ncut off", None),
        ("```text\nno\n```", None),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("So define f.", None),
        ("", None),
        ("(" * 10_000 + "def ", None),
        ("```python\nx = = 1\n```", "x = = 1\n"),
        ("Use ```python fences.\ndef f(): return 1", "def f(): return 1"),
    ],
)
def test_without_wanted_names_the_last_block_is_taken(answer: str, code: str | None) -> None:
    assert code_of(answer) == code


def test_the_names_that_tests_want_are_known() -> None:
    assert missing_names("import math\nassert math.isclose(area(Circle(2)), len([x for x in y]))") == {
        "area",
        "Circle",
        "y",
    }
    assert missing_names("assert (") == set()


def test_nothing_is_written_anew_where_nothing_is_left_out() -> None:
    code = "def f(x):  # a remark\n    return   x\n"
    assert without_demos(code, ["f"]) == code and without_demos("def f(:", ["f"]) == "def f(:"
    assert "print" not in without_demos(code + "print(f(1))\n", ["f"])


PIECES = st.sampled_from(
    "``` ```python ```\n ~~~ \n def thrice(x): return x import from ( ) [ ] ''' \"\"\" # if __name__ == "
    "'__main__': else: input() exit() \\ \0 \ud800 class async lambda : ; @ 1+ - -not await x=y, *a x[0].y= é 🦑 \t"
    .split(" ") + ["\n", " ", "    "]
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(st.lists(PIECES, max_size=60).map("".join))
def test_no_reply_breaks_it(answer: str) -> None:
    for wanted in ([], ["thrice"]):
        found = code_of(answer, wanted)
        assert found is None or isinstance(found, str)


@pytest.mark.parametrize(
    "piece",
    [
        "```python\n",
        "```\n",
        "def thrice(x): return x\n",
        "(",
        "x = 1\n",
        "'''\n",
        "if x:\n ",
        "@",
        "import a\n",
        "-",
        "a.",
    ],
)
def test_long_replies_are_no_deep_ones(piece: str) -> None:
    for answer in (
        piece * 1500,
        "```python\n" + piece * 1500,
        f"```python\ndef thrice(x):\n    return {piece * 1500}1\n```",
    ):
        code_of(answer, ["thrice"])  # or it is a RecursionError
