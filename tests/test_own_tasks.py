"""Tasks of one's own: a Python file or JSON lines are tasks, and what is wrong with them is named before training."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import extending
import pytest
from test_rl import grown
from updates import rl_update

from hadal.cli import main
from hadal.errors import UserError
from hadal.tasks import load_tasks
from hadal.train.curriculum import Curriculum
from hadal.train.rl import RLConfig


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text("from hadal.tasks import Problem\n" + textwrap.dedent(text))
    return str(path)


GOOD = """
difficulties = range(1, 4)
def generate(rng, difficulty):
    n = rng.below(1000)
    return Problem(f"Double {n}", str(2 * n), thought=f"{n} + {n}")
"""


def test_a_file_of_ones_own_is_a_task(tmp_path: Path) -> None:
    (task,) = load_tasks([write(tmp_path, GOOD)]).values()
    task.validate()
    problem = task.generate(0, "train", 2)
    assert task.score(problem, f"<think>x</think> {problem.answer}").total == 1
    assert task.generate(0, "train", 2) == problem


def test_the_docs_file_is_a_task(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(extending.example("A task"))
    (task,) = load_tasks([str(tmp_path / "mine.py")]).values()
    task.validate()
    problem = task.generate(0, "train", 2)
    low, high = problem.meta["key"].split()
    answers = [f"<think>x</think> {answer}" for answer in (high, low, "7", f"{high} {low}")]
    assert [r.total for r in task.score_all(problem, answers)] == [1, 0.1, 0, 0]
    llm, optimizer = grown()
    tasks = {task.name: task}
    result = rl_update(llm, optimizer, tasks, Curriculum(tasks), RLConfig(prompts=2, samples=4, max_tokens=8), 0, 0)
    assert {group.task for group in result.groups} == {"mine"}


NO_SCORES = {
    "float('nan')": "it returned nan", "float('inf')": "it returned inf", "-float('inf')": "it returned -inf",
    "-1": "it returned -1", "2": "it returned 2", "1.001": "it returned 1.001", "-0.5": "it returned -0.5",
    "'0'": "it returned '0'", "'1'": "it returned '1'", "''": "it returned ''", "None": "it returned None",
    "[]": "it returned []", "(1,)": "it returned (1,)", "1j": "it returned 1j", "score": "it returned <function sco",
    "__import__('numpy').array([1.0])": "it returned array([1.])",
}  # fmt: skip
"""What a scorer may not return, and how it is named."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def generate(:", "not valid Python"),
        ("x = 1", "no function generate"),
        ("def generate(rng, d): return None", "no difficulties"),
        ("1/0", "ZeroDivisionError"),
        ("difficulties = range(1, 3)\ndef generate(rng, d): return 7", "returned int"),
        ("difficulties = range(1, 3)\ndef generate(rng, d): return Problem('', '1')", "prompt"),
        ("difficulties = range(1, 3)\ndef generate(rng, d): return {}[d]", "KeyError"),
        ("import random\n" + GOOD.replace("rng.below(1000)", "random.randrange(1000)"), "same rng"),
        (GOOD + "\ndef score(problem, answer): return int(answer) == 3", "score"),
        (GOOD + "\ndef score(problem, answer): return False", "gold answer"),
        (GOOD + "\ndef score(problem, answer): return True", "counts as right"),
        (GOOD.replace("rng.below(1000)", "3"), "found no"),
        (GOOD.replace("rng.below(1000)", "rng.below(30) // 5"), "too few different problems"),
        (GOOD.replace("str(2 * n),", "str(2 * n), {'key': str(rng.bits())},"), "on both sides"),
        (GOOD + "\ndef score(problem, answer): return answer.isdigit()", "lets wrong answers pass"),
        (GOOD + "\ndef score(problem, answer): return answer.startswith(problem.answer)\n"
         "def near_misses(problem, rng): return [problem.answer + '0']", "wrong answer '.*0' counts as right"),
        (GOOD + "\nscore_seconds = 'long'", "score_seconds is 'long'"),
        *((GOOD + f"\nright_at = {bar}", f"right_at is {bar}") for bar in ("0", "1.5", "True", "'all'", "-1")),
        *(
            (f"{GOOD}\ndef score(problem, answer): return {value} if answer == problem.answer else 0", re.escape(named))
            for value, named in NO_SCORES.items()
        ),
        (GOOD + "\ndef score(problem, answer): return 0.5 * (answer == problem.answer)", "scores 0.5 and not 1"),
        (GOOD + "\nright_at = 0.6\ndef score(problem, answer): return 0.5 * (answer == problem.answer)",
         "scores 0.5 and not 0.6"),
        (GOOD + "\ndef near_misses(problem, rng): return 1/0", "near_misses raised ZeroDivisionError"),
    ],
)  # fmt: skip
def test_faults_of_ones_own_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        for task in load_tasks([write(tmp_path, text)]).values():
            task.validate()
    assert "mine" in str(error.value)


BREAKS = GOOD + """
import os
def score(problem, answer):
    if answer == "hang": return all(x == 0 for x in iter(int, 1))
    if answer == "sleep": __import__("time").sleep(1000)
    if answer == "eat": return len(bytearray(1 << 40)) > 0
    if answer == "grow": return len([bytes(1 << 24) for _ in iter(int, 1)])
    if answer == "die": os._exit(3)
    if answer == "leave": raise SystemExit
    return int(answer) == int(problem.answer)
near_misses = lambda problem, rng: []
score_seconds = 1.0
"""


def test_a_scorer_that_breaks_costs_the_answer_and_not_the_run(tmp_path: Path) -> None:
    (task,) = load_tasks([write(tmp_path, BREAKS)]).values()
    problem = task.generate(0, "train", 2)
    for answer, reason in {
        "hang": "no answer in 1 s", "sleep": "no answer in 1 s", "eat": "bytes", "grow": "bytes|no answer",
        "die": "process ended", "leave": "SystemExit", "seven": r"ValueError.*line \d+",
    }.items():  # fmt: skip
        reward = task.score(problem, answer)
        assert reward.total == 0 and re.search(f"the scorer broke off: .*({reason})", reward.note), (answer, reward)
        assert task.score(problem, problem.answer).total == 1  # and the next one is judged as ever
    with pytest.raises(UserError, match="score broke off on the answer 'no idea': ValueError"):
        task.validate()


PARTIAL = GOOD + """
from fractions import Fraction
import numpy
def score(problem, answer):
    return {
        "half": 0.5, "most": 0.8, "true": True, "false": False, "one": 1, "none": 0, "sum": sum([0.1] * 10),
        "third": Fraction(1, 3), "numpy": numpy.float32(0.5), "yes": numpy.bool_(True), "zero": numpy.array(0.25),
        "bad": float("nan"), "text": "1",
    }.get(answer, answer == problem.answer)
"""


@pytest.mark.parametrize(("bar", "right"), [("", "true one sum yes"), ("right_at = 0.8", "most true one sum yes")])
def test_a_scorer_gives_marks_and_a_bar_says_what_is_right(tmp_path: Path, bar: str, right: str) -> None:
    (task,) = load_tasks([write(tmp_path, PARTIAL + bar)]).values()
    task.validate()
    problem = task.generate(0, "train", 2)
    marks = {
        "half": 0.5, "most": 0.8, "true": 1, "false": 0, "one": 1, "none": 0, "sum": 1, "third": 1 / 3, "numpy": 0.5,
        "yes": 1, "zero": 0.25, "bad": 0, "text": 0,
    }  # fmt: skip
    rewards = dict(zip(marks, task.score_all(problem, list(marks)), strict=True))
    assert {name: reward.total for name, reward in rewards.items()} == pytest.approx(marks)
    assert [name for name, reward in rewards.items() if reward.right] == right.split()
    assert [name for name, reward in rewards.items() if reward.broke] == ["bad", "text"]
    assert "it returned nan" in rewards["bad"].note and rewards["half"].note == "scored 0.5"


def test_marks_are_learnt_from_and_success_counts_what_is_right(tmp_path: Path) -> None:
    """What noise says earns marks by its length."""
    text = GOOD + "\ndef score(problem, answer): return {0: 'none', 1: 1}.get(len(answer) % 5, len(answer) % 5 / 5)\n"
    (task,) = load_tasks([write(tmp_path, text)]).values()
    llm, optimizer = grown()
    tasks, config = {task.name: task}, RLConfig(prompts=3, samples=12, max_tokens=12)
    curriculum = Curriculum(tasks)
    result = rl_update(llm, optimizer, tasks, curriculum, config, 0, 0)
    rewards = [reward for group in result.groups for reward in group.rewards]
    partial = [reward for reward in rewards if 0 < reward.total < 1]
    assert partial and not any(reward.right for reward in partial)
    assert result.metrics["reward"] == pytest.approx(sum(reward.total for reward in rewards) / 36)
    assert result.metrics["kept_groups"] > 0 and result.metrics["grad_norm"] > 0
    assert [group.success for group in result.groups] == [
        sum(reward.total == 1 for reward in group.rewards) / 12 for group in result.groups
    ]
    broke = sum(reward.broke for reward in rewards)
    assert 0 < broke and result.metrics["scorer_broke"] == pytest.approx(broke / 36)


def test_equal_answers_are_judged_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = GOOD + f"""
def score(problem, answer):
    open({str(log)!r}, "a").write(answer + "\\n")
    return answer == problem.answer
"""
    (task,) = load_tasks([write(tmp_path, text)]).values()
    problem = task.generate(0, "train", 2)
    responses = [problem.answer, "<think>a</think> 8", "<think>b</think>8", "<think>8", "<think>c</think>"]
    responses.append(responses[0])
    rewards = task.score_all(problem, responses)
    assert rewards == [task.score(problem, response) for response in responses]
    assert [r.total for r in rewards] == [1, 0, 0, 0, 0, 1]
    assert log.read_text().split()[:2] == [problem.answer, "8"] and len(log.read_text().split()) == 2 + 4


def test_reinforcement_goes_on_where_a_scorer_hangs(tmp_path: Path) -> None:
    """Random weights say all sorts of things; the scorer hangs on some of them."""
    text = GOOD + "\ndef score(problem, answer):\n    while 'a' in answer: pass\n    return 'e' in answer\n"
    (task,) = load_tasks([write(tmp_path, text + "score_seconds = 0.3\n")]).values()
    llm, optimizer = grown()
    tasks = {task.name: task}
    result = rl_update(llm, optimizer, tasks, Curriculum(tasks), RLConfig(prompts=2, samples=8, max_tokens=8), 0, 0)
    rewards = [reward for group in result.groups for reward in group.rewards]
    broke = [reward for reward in rewards if "no answer in 0.3 s" in reward.note]
    assert 0 < len(broke) < len(rewards) and not any(reward.total for reward in broke)


def test_meta_that_the_scorer_would_see_changed_is_refused(tmp_path: Path) -> None:
    scorer = "\ndef score(problem, answer): return answer == problem.answer\n"
    text = GOOD.replace("str(2 * n),", "str(2 * n), {'pair': (n, n)},")
    load_tasks([write(tmp_path, text)])["mine"].validate()  # without a scorer nothing is sent anywhere
    with pytest.raises(UserError, match="'pair' in a problem's meta"):
        load_tasks([write(tmp_path, text + scorer)])["mine"].validate()


def test_the_shipped_examples_are_sound() -> None:
    folder = Path(__file__).parent.parent / "examples"
    for path in sorted(folder.glob("*.py")):
        for task in load_tasks([str(path)]).values():
            task.validate()




ROWS = [{"prompt": f"What is {n} plus {n}?", "answer": 2 * n, "difficulty": 1 + n // 20} for n in range(40)]


def write_rows(folder: Path, rows: list[object]) -> str:
    path = folder / "mine.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_json_lines_are_a_task(tmp_path: Path) -> None:
    (task,) = load_tasks([write_rows(tmp_path, [*ROWS, ""])]).values()
    task.validate()
    assert task.name == "mine" and task.difficulties == range(1, 3)
    for level in (1, 2):
        sides = [{task.generate(i, side, level).prompt for i in range(400)} for side in ("train", "held_out")]
        assert [len(side) for side in sides] == [17, 3] and not sides[0] & sides[1]  # one in eight, rounded up
        assert all(int(prompt.split()[2]) // 20 == level - 1 for side in sides for prompt in side)
    problem = task.generate(3, "train", 2)
    assert problem == task.generate(3, "train", 2)
    assert task.score(problem, f"<think>x</think> {problem.answer}").total == 1
    assert task.score(problem, f"<think>x</think> {problem.answer}1").total == 0


def test_spellings_of_a_question_lie_on_one_side(tmp_path: Path) -> None:
    texts = ("How many is {}?", "HOW many is {}")
    rows = [{"prompt": text.format(n), "answer": n} for n in range(60) for text in texts]
    (task,) = load_tasks([write_rows(tmp_path, rows)]).values()
    task.validate()
    drawn = {side: [task.generate(i, side, 1) for i in range(900)] for side in ("train", "held_out")}
    sides = [{problem.prompt.lower().rstrip("?") for problem in problems} for problems in drawn.values()]
    assert [len(side) for side in sides] == [52, 8] and not sides[0] & sides[1]


def test_a_scorer_may_lie_beside_json_lines(tmp_path: Path) -> None:
    name = write_rows(tmp_path, ROWS)
    scorer = "about = 'doubles'\ndef score(problem, answer):\n    return answer.isdigit() and int(answer) == int({})\n"
    (tmp_path / "mine.py").write_text(scorer.format("problem.answer"))
    (task,) = load_tasks([name]).values()
    task.validate()
    assert task.about == "doubles"
    problem = task.generate(0, "train", 1)
    assert task.score(problem, f"0{problem.answer}").total == 1
    (tmp_path / "mine.py").write_text(scorer.format("answer"))
    with pytest.raises(UserError, match="lets wrong answers pass"):
        load_tasks([name])["mine"].validate()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no problems"),
        (["{"], "line 1 is not JSON"),
        (["[" * 100_000], "line 1 is not JSON"),
        ([ROWS[0], [1]], "line 2 is not a JSON object"),
        ([{"answer": "1"}], "line 1: prompt is None"),
        ([{"prompt": "a", "answer": " "}], "line 1: answer is ' '"),
        ([{"prompt": "a", "answer": True}], "line 1: answer is True"),
        ([{"prompt": "a", "answer": "b", "thought": 3}], "thought is 3"),
        ([{"prompt": "a", "answer": "b", "difficulty": "hard"}], "difficulty is 'hard'"),
        ([{"prompt": "a", "answer": "b", "difficulty": -1}], "difficulty is -1"),
        ([ROWS[0]], "there are 1 problems of difficulty 1"),
        ([*ROWS, {"prompt": "a", "answer": "b", "difficulty": 9}], "0 problems of difficulty 3"),
        ([*ROWS, {"prompt": "What is 3  plus 3?", "answer": "6"}], "lines 4 and 41 ask the same, with the same answer"),
        ([*ROWS, {"prompt": "What is 3 plus 3?\n", "answer": "7"}], "lines 4 and 41 ask the same, with another answer"),
        (ROWS[:8], "too few different problems"),
    ],
)  # fmt: skip
def test_faults_of_json_lines_are_named(tmp_path: Path, rows: list[object], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_tasks([write_rows(tmp_path, rows)])["mine"].validate()
    assert "mine" in str(error.value) and "\n" not in str(error.value)


def test_own_tasks_are_shown_and_checked_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [write(tmp_path, GOOD), write_rows(tmp_path, ROWS)]
    (tmp_path / "mine.py").rename(tmp_path / "double.py")  # or it would be the scorer of mine.jsonl
    names[0] = str(tmp_path / "double.py")
    assert main(["tasks", "validate", *names]) == 0
    assert capsys.readouterr().out.split() == ["double", "holds", "mine", "holds"]
    for name in names:
        assert main(["tasks", "show", name, "-n", "4"]) == 0
        assert capsys.readouterr().out.count("question ") == 4
    Path(names[1]).write_text('{"prompt": 3}\n')
    assert main(["tasks", "validate", names[1]]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_scorer_beside_json_lines_is_not_run_by_a_recipe_that_is_not_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path, ROWS)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "recipe.toml").write_text('tasks = ["mine.jsonl"]\n')
    assert main(["train", str(tmp_path / "recipe.toml"), "--dry-run"]) == 2
    assert "mine.py" in (err := capsys.readouterr().err) and "--trust" in err and err.count("\n") == 1
    assert not (tmp_path / "ran").exists()
