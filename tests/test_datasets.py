"""Data sets as tasks: from files of every kind and from the hub, their sides apart, their faults named.

The rows here are made up. With HADAL_TEST_DATA, a folder that holds gsm8k/ and humaneval/, the real ones are read too.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from local_server import served

from hadal.cli import main
from hadal.errors import UserError
from hadal.tasks import DATA_SETS, Problem, load_tasks
from hadal.tasks.choice import GPQA, choose
from hadal.tasks.code import MBPP, CodeTask, HumanEval
from hadal.tasks.code_blocks import code_of
from hadal.tasks.datasets import DataSet
from hadal.tasks.maths import AIME24, GSM8K, MATH, MATH500
from hadal.tasks.rows import Row, read_rows

SUMS = [
    {"question": f"What is {n} and {n}?", "answer": f"It is {n}+{n} = <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n:,}"}
    for n in range(700, 720)
]
MATHS: list[Row] = [
    {"problem": f"Half of ${n}$?", "level": f"Level {1 + n % 5}", "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$."}
    for n in range(1, 21, 2)
]
CHOICES: list[Row] = [
    {
        "Question": f"Which is the largest of these, number {n}?",
        "Correct Answer": f"{n + 9}\n",
        "Incorrect Answer 1": f"{n + 1}",
        "Incorrect Answer 2": f"{n + 2}",
        "Incorrect Answer 3": f"{n + 3}",
    }
    for n in range(40)
]
FUNCTIONS: list[Row] = [
    {
        "task_id": "X/0",
        "entry_point": "thrice",
        "prompt": 'from math import prod\n\n\ndef twice(x):\n    return 2 * x\n\n\ndef thrice(x):\n    """3 x"""\n',
        "canonical_solution": "    return twice(x) + x\n",
        "test": "def check(candidate):\n    assert candidate(5) == 15\n    assert twice(1) == 2\n",
    }
]
PROGRAMS: list[Row] = [
    {
        "task_id": n,
        "text": f"Write add to add {n}.",
        "code": f"def add(x):\n    return x + {n}",
        "test_list": [f"assert add(1) == {n + 1}"],
    }
    for n in (5, 11, 510, 511, 601, 974)
]


def lines(rows: list[Row], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_here(program: str, tests: str, names: tuple[str, ...] | None = None) -> tuple[bool, str]:
    """Runs the programs of this file, which are trusted."""
    try:
        exec(f"{program}\n{tests}", {"__name__": "program"})
    except Exception as error:
        return False, type(error).__name__
    return True, ""


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_rows_are_the_same_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"test.{kind}"
    if kind == "jsonl":
        lines(SUMS, path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("\n\n".join(map(json.dumps, SUMS)).encode()))
    elif kind == "json":
        path.write_text(json.dumps(SUMS))
    elif kind == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["question", "answer"])
            writer.writeheader()
            writer.writerows(SUMS)
    else:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(SUMS), path)
    assert [row for _, row in read_rows(path)] == SUMS
    assert len(GSM8K(path).problems("held_out")) == len(SUMS)


CUT_OFF = gzip.compress(json.dumps(SUMS[0]).encode() + b"\n", mtime=0)[:-9]
"""Without the time of day, which would give each process that collects the tests another name for one."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "a"\n', "line 1 is not JSON"),
        ("a.jsonl", b'\n{"question": "a", "answer": "b"}\n', r"line 2, is not a problem of gsm8k: .* ####"),
        ("a.jsonl", b'{"question": "a", "answer": "b #### c"}\n', "'c' is not a number"),
        ("a.jsonl", b'{"question": " ", "answer": "b #### 3"}\n', "no question"),
        ("a.jsonl", b'{"question": ["a"], "answer": "b #### 3"}\n', "no question"),
        ("a.jsonl", b"[1]\n", "not a table of names"),
        ("a.jsonl", b"\xff\xfe\n", "is UTF-16 text"),
        ("a.jsonl", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", CUT_OFF, "cannot be read"),
        ("a.json", b"{}", "is not a list"),
        ("a.csv", b"question,answer\nx\n", "no answer"),
        ("a.txt", b"", "an unknown kind"),
        ("a.pkl", b"", "an unknown kind"),
    ],
)
def test_a_broken_file_is_named_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        GSM8K(path).problems("held_out")
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        GSM8K(tmp_path / "none.jsonl").problems("held_out")
    with pytest.raises(UserError, match="no test file"):
        GSM8K(tmp_path).problems("held_out")
    task = AIME24(lines([{"problem": "1 + 1?", "answer": 2}], tmp_path / "aime.jsonl"))
    assert task.problems("train") == []
    with pytest.raises(UserError, match="aime24 has no training problems"):
        task.generate(0, "train", 1)
    with pytest.raises(UserError, match="Did you mean math500"):
        load_tasks(["math50"])


# ------------------------------------------------------------------------------------- sides and order


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines(SUMS[:14], tmp_path / "train.jsonl")
    lines(SUMS[12:], tmp_path / "test.jsonl")
    return tmp_path


def test_a_training_problem_that_is_a_test_problem_is_left_out(folder: Path) -> None:
    task = load_tasks([f"gsm8k:{folder}"])["gsm8k"]
    assert isinstance(task, DataSet)
    train, test = task.problems("train"), task.problems("held_out")
    assert [p.answer for p in test] == [f"{2 * n:,}" for n in range(712, 720)]
    assert [p.answer for p in train] == [f"{2 * n:,}" for n in range(700, 712)]
    assert not {p.meta["key"] for p in train} & {p.meta["key"] for p in test}
    task.validate()


def test_seeds_walk_through_all_problems(folder: Path) -> None:
    task = GSM8K(folder)
    for start in (0, 3 << 32, (1 << 63) + 5):
        found = [task.generate(start + i, "train", 1) for i in range(12)]
        assert sorted(p.prompt for p in found) == sorted(p.prompt for p in task.problems("train"))
    assert found != task.problems("train")  # shuffled
    assert found == [GSM8K(folder).generate((1 << 63) + 5 + i, "train", 1) for i in range(12)]


def test_one_file_is_a_test_set_unless_its_name_says_train(tmp_path: Path) -> None:
    test, train = GSM8K(lines(SUMS, tmp_path / "mine.jsonl")), GSM8K(lines(SUMS, tmp_path / "train_a.jsonl"))
    assert [len(test.problems(side)) for side in ("train", "held_out")] == [0, 20]
    assert [len(train.problems(side)) for side in ("train", "held_out")] == [20, 0]


# ------------------------------------------------------------------------------------- the sets


def test_gsm8k_is_posed_as_r1_is_asked_and_scored_behind_the_thought(folder: Path) -> None:
    problem = GSM8K(folder).problems("train")[0]
    assert problem.prompt == (
        "What is 700 and 700?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert problem.thought == "\nIt is 700+700 = 1400.\n" and problem.answer == "1,400"
    score = GSM8K(folder).score
    assert score(problem, "<think>\nhm\n</think>\n\nIt is \\boxed{1400}.").total == 1
    assert score(problem, "It is \\boxed{1400}.").total == 1
    for response, note in {
        "<think>\\boxed{1400}</think>": "no answer",
        "<think>\\boxed{1400}": "the thought was not closed",
        "<think>\\boxed{1400}</think> \\boxed{1401}": "a different number",
        "<think>x</think> \\boxed{7 \\cdot 200}": "not a plain number",
        "<think>x</think> 1400 or 1500": "not a single number",
    }.items():
        reward = score(problem, response)
        assert (reward.total, reward.parts, reward.note) == (0, {"accuracy": 0}, note)


def test_math_has_levels_and_takes_its_answers_from_the_solutions(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    rows = [*MATHS, {"problem": "?", "level": "Level ?", "solution": "$\\boxed{(1,2)}$"}]
    task = MATH(lines(rows, tmp_path / "test.jsonl"))
    assert [len({task.generate(i, "held_out", d).prompt for i in range(50)}) for d in range(1, 6)] == [2, 4, 6, 8, 11]
    problem = task.problems("held_out")[2]
    assert problem.answer == "\\frac{5}{2}" and problem.meta["difficulty"] == 1
    assert task.score(problem, "<think>a</think> \\boxed{2.5}").total == 1
    assert task.score(problem, "<think>a</think> \\boxed{\\sqrt{25/4}}").total == 1
    assert task.score(problem, "<think>a</think> \\boxed{\\sqrt{25/3}}").note == "a different value or form"
    task.validate()
    with pytest.raises(UserError, match="neither an answer nor"):
        MATH(lines([{"problem": "1?", "solution": "1"}], tmp_path / "b.jsonl")).problems("held_out")
    row = {"problem": "1?", "answer": "x", "level": 3, "subject": "Algebra", "unique_id": "a"}
    assert MATH500(lines([row], tmp_path / "c.jsonl")).problems("held_out")[0].meta["difficulty"] == 3


def test_math_asks_for_math_verify_before_anything_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hadal\[maths\]"):
        load_tasks([f"math:{tmp_path}"])


def test_choices_are_shuffled_once_and_judged_by_letter_or_wording(tmp_path: Path) -> None:
    path = lines(CHOICES, tmp_path / "gpqa.jsonl")
    task = GPQA(path)
    problems = task.problems("held_out")
    assert {p.answer for p in problems} == set("ABCD")
    assert [p.prompt for p in problems] == [p.prompt for p in GPQA(path).problems("held_out")]
    problem = problems[0]
    assert "one of ABCD" in problem.prompt and f"\n{problem.answer}) 9" in problem.prompt
    assert task.score(problem, f"<think>A B C D</think> So.\nAnswer: {problem.answer}").total == 1
    assert task.score(problem, "<think>a</think> \\boxed{9}").total == 1
    other = "ABCD".replace(problem.answer, "")[0]
    assert task.score(problem, f"<think>{problem.answer}</think> {other}").note == f"chose {other}"
    task.validate()


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"), ("**Answer: B**", "B"), ("Answer: (B)", "B"), ("\\boxed{B}", "B"), ("B", "B"),
        ("(B).", "B"), ("\\boxed{\\text{(B)}}", "B"), ("B) red", "B"), ("The answer is red.", "B"),
        ("The correct answer is option B.", "B"),
        ("Answer: A or B", None), ("A, B", None), ("\\boxed{AB}", None), ("E", None), ("b", None), ("", None),
        ("A photon is blue", None), ("Bed", None), ("red or blue", None),
    ],
)  # fmt: skip
def test_a_choice_is_read(text: str, letter: str | None) -> None:
    assert choose(text, {"A": "blue", "B": "red", "C": "green"}) == letter


@pytest.mark.parametrize(
    "row",
    [
        {"question": "?", "choices": ["a", "b"], "answer": "b"},
        {"question": "?", "choices": ["a", "b"], "answer": "B"},
        {"question": "?", "choices": ["a", "b"], "answer": 1},
    ],
)
def test_choices_of_ones_own(row: Row, tmp_path: Path) -> None:
    (problem,) = GPQA(lines([row], tmp_path / "a.jsonl")).problems("held_out")
    assert problem.meta["options"][problem.answer] == "b"


@pytest.mark.parametrize("change", [{"answer": "c"}, {"answer": 2}, {"answer": None}, {"choices": ["b", "b"]},
                                    {"choices": "ab"}, {"choices": ["b"]}])  # fmt: skip
def test_faulty_choices_are_refused(change: Row, tmp_path: Path) -> None:
    row = {"question": "?", "choices": ["a", "b"], "answer": "b"} | change
    with pytest.raises(UserError, match="choices"):
        GPQA(lines([row], tmp_path / "a.jsonl")).problems("held_out")


# ------------------------------------------------------------------------------------- code


def test_code_runs_in_the_sandbox(tmp_path: Path) -> None:
    task = HumanEval(lines(FUNCTIONS, tmp_path / "a.jsonl"))
    (problem,) = task.problems("held_out")
    assert task.score(problem, problem.answer).total == 1
    spy = tmp_path / "seen"
    thief = f"```python\nopen({str(spy)!r}, 'w').write('out')\ndef thrice(x):\n    return 3 * x\n```"
    assert task.score(problem, thief).total == 0 and not spy.exists()
    task.validate()


def test_a_function_is_run_behind_the_imports_and_helpers_of_its_prompt(tmp_path: Path) -> None:
    task = HumanEval(lines(FUNCTIONS, tmp_path / "a.jsonl"), run_here)
    (problem,) = task.problems("held_out")
    task.validate()
    for answer, right in {
        "Here:\n```python\ndef thrice(x):\n    return prod([3, x])\n```\nDone.": True,
        "```python\n    return twice(x) + x\n```": True,  # the body alone, as a base model completes it
        "def thrice(x):\n    return 3 * x\n": True,
        "```python\ndef thrice(x):\n    return 4 * x\n```": False,
        "```python\ndef thrice(x):\n    pass\n```": False,
        "```python\ndef thrice(x:\n```": False,
        "I cannot do it.": False,
    }.items():
        assert task.score(problem, f"<think>hm</think>{answer}").total == right, answer
    assert task.score(problem, f"<think>{problem.answer}</think>").total == 0


def test_mbpp_knows_its_sides_by_their_ids(tmp_path: Path) -> None:
    task = MBPP(lines(PROGRAMS, tmp_path / "mbpp.jsonl"), run_here)
    numbers = [[p.prompt.split(".")[0].split()[-1] for p in task.problems(side)] for side in ("train", "held_out")]
    assert numbers == [["601", "974"], ["11", "510"]]
    problem = task.problems("held_out")[0]
    assert "assert add(1) == 12" in problem.prompt
    assert task.score(problem, "```py\ndef add(x): return x + 11\n```").total == 1
    assert task.score(problem, "```py\ndef add(x): return x + 12\n```").note == "AssertionError"
    task.validate()
    with pytest.raises(UserError, match="list of tests"):
        MBPP(lines([PROGRAMS[1] | {"test_list": []}], tmp_path / "b.jsonl")).problems("held_out")


def test_tests_hold_all_that_they_need_but_what_the_program_defines(tmp_path: Path) -> None:
    """In HumanEval the helpers of the prompt, in MBPP the imports of the solution; a builtin's name is the program's
    where the solution defines it."""
    cheat = "def twice(x): return 2\ndef thrice(x): return 15"
    task: CodeTask = HumanEval(lines(FUNCTIONS, tmp_path / "a.jsonl"))
    (problem,) = task.problems("held_out")
    assert problem.meta["names"] == ("thrice",) and task.verdict(problem, problem.answer).right
    assert "def twice" in problem.meta["tests"] and task.verdict(problem, f"```\n{cheat}\n```").right
    row = {
        "task_id": 11, "text": "Sum",
        "code": "import math, sys\nclass Pair:\n    n = 1\ndef sum(x): return math.sqrt(x)",
        "test_list": ["assert math.isclose(sum(4), 2)", "assert len([sum(9)]) == Pair().n"],
    }  # fmt: skip
    task = MBPP(lines([row], tmp_path / "b.jsonl"))
    (problem,) = task.problems("held_out")
    assert set(problem.meta["names"]) == {"sum", "Pair"} and problem.meta["tests"].startswith("import math\nassert")
    assert task.verdict(problem, problem.answer).right
    lying = "import math\nmath.isclose = len = lambda *a, **k: 1\nclass Pair:\n    n = 1\ndef sum(x): return 0"
    assert not task.verdict(problem, f"```\n{lying}\n```").right
    with pytest.raises(UserError, match="is not valid Python"):
        HumanEval(lines([FUNCTIONS[0] | {"test": "def check("}], tmp_path / "c.jsonl")).problems("held_out")


# ------------------------------------------------------------------------------------- the hub


class Hub(BaseHTTPRequestHandler):
    """A stand-in that speaks the hub's protocol for files of data sets to huggingface_hub itself."""

    files: dict[str, bytes] = {}
    gated = "Idavidrein/gpqa"

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        name = self.path.removeprefix("/datasets/").replace("/resolve/main/", ":")
        headers, body, status = {}, self.files.get(name, b""), 200
        if name.startswith(self.gated):
            status, headers = 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask"}
        elif name not in self.files:
            status, headers = 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "none"}
        else:
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    Hub.files = {}
    with served(Hub) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield Hub.files


def test_aime_comes_from_the_hub_once(hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub["math-ai/aime25:test.jsonl"] = b'{"problem": "What is 3 times 23?", "answer": "069", "id": "0"}\n'
    task = load_tasks(["aime25"])["aime25"]
    problem = task.generate(0, "held_out", 1)
    assert problem.prompt.startswith("What is 3 times 23?") and task.score(problem, "\\boxed{69}").total == 1
    monkeypatch.setattr(Hub, "do_GET", lambda self: self.send_error(500))  # from now on the cache has it
    assert load_tasks(["aime25"])["aime25"].generate(0, "held_out", 1) == problem


def test_gsm8k_comes_from_the_hub_as_parquet(hub: dict[str, bytes], tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for side, rows in (("train", SUMS[:14]), ("test", SUMS[12:])):
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / side)
        hub[f"openai/gsm8k:main/{side}-00000-of-00001.parquet"] = (tmp_path / side).read_bytes()
    task = GSM8K()
    assert len(task.problems("train")) == 12 and len(task.problems("held_out")) == 8


def test_what_the_hub_refuses_is_said_in_one_line(hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="gated.*Ask for access at .*/datasets/Idavidrein/gpqa"):
        GPQA().problems("held_out")
    with pytest.raises(UserError, match="cannot be downloaded.*give a local file"):
        GSM8K().problems("held_out")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # it tries for half a minute
    with pytest.raises(UserError, match="cannot be downloaded"):
        GSM8K().problems("held_out")


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"hadal\[data\]"):
        GSM8K(tmp_path).problems("held_out")


def test_the_command_shows_and_validates_a_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "validate", f"gsm8k:{folder}"]) == 0
    assert "gsm8k        holds" in capsys.readouterr().out
    assert main(["tasks", "show", f"gsm8k:{folder}", "-n", "2"]) == 0
    assert capsys.readouterr().out.count("question") == 2
    (folder / "test.jsonl").write_text("{}\n")
    assert main(["tasks", "validate", f"gsm8k:{folder}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_set_has_a_name_of_its_own_and_says_what_it_is() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text()
    for name, kind in DATA_SETS.items():
        assert kind.name == name and kind.about and f"| `{name}` |" in documented
        for file in (*kind.train, *kind.held_out):
            assert file.repository in documented


# ------------------------------------------------------------------------------------- the real ones

DATA = Path(os.environ.get("HADAL_TEST_DATA", "/nowhere"))


def responses(problem: Problem, row: Row) -> list[str]:
    """The reference solution as it is, and its number in a box behind the solution as the thought."""
    return [
        f"<think>{problem.thought}</think>{row['answer']}",
        f"<think>{problem.thought}</think>\n\\boxed{{{problem.answer}}}",
        row["answer"],
    ]


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="HADAL_TEST_DATA names no folder with gsm8k")
def test_all_reference_solutions_of_gsm8k_are_right() -> None:
    task = GSM8K(DATA / "gsm8k")
    solutions = 0
    for side, file in (("train", "train.jsonl"), ("held_out", "test.jsonl")):
        rows = [json.loads(line) for line in (DATA / "gsm8k" / file).read_text().splitlines()]
        for problem, row in zip(task.problems("train" if side == "train" else "held_out"), rows, strict=True):
            assert row["question"].strip() in problem.prompt
            for response in responses(problem, row):
                assert task.score(problem, response).total == 1, row
            wrong = f"<think>{row['answer']}</think>\\boxed{{{problem.answer}1}}"
            assert task.score(problem, wrong).total == 0
            solutions += 1
    assert solutions == 8792


@pytest.mark.skipif(not (DATA / "humaneval").is_dir(), reason="HADAL_TEST_DATA names no folder with humaneval")
def test_humaneval_is_read_whole() -> None:
    task: CodeTask = HumanEval(DATA / "humaneval" / "HumanEval.jsonl.gz")
    problems = task.problems("held_out")
    assert len(problems) == 164
    for problem in problems:
        code = code_of(problem.answer)
        assert code is not None and f"def {problem.meta['entry_point']}(" in code
        compile(f"{task.program(problem, code)}\n{problem.meta['tests']}", "program", "exec")
