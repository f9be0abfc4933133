"""Tasks: answers are judged by meaning, sides never meet, wording never matters, everything comes from the seed."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path

import pytest

from hadal.errors import UserError
from hadal.tasks import BUILT_IN, Problem, Rng, load_tasks

ALL = sorted(BUILT_IN)


def brute_force(problem: Problem) -> set[str]:
    """Every right answer, found from the fields alone by a way of its own."""
    fields = problem.meta["fields"]
    if problem.meta["task"] == "sums":
        return {str(eval(fields["expression"], {"__builtins__": {}}))}
    if problem.meta["task"] == "letters":
        return {str(fields["word"].count(fields["letter"]))}
    if problem.meta["task"] == "sort":
        return {str(sorted(int(n) for n in fields["numbers"].split(", "))[int(fields["place"]) - 1])}
    if problem.meta["task"] == "clock":
        hours = int(fields["start"])
        for wait in "".join(c if c.isdigit() else " " for c in fields["waits"]).split():
            for _ in range(int(wait)):  # the hand goes round hour by hour
                hours = 1 if hours == 12 else hours + 1
        return {str(hours)}
    numbers = fields["numbers"].split(", ")
    answers = set()
    for signs in itertools.product("+-", repeat=len(numbers) - 1):
        text = numbers[0] + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
        if eval(text, {"__builtins__": {}}) == int(fields["target"]):
            answers.add(text)
    return answers


@pytest.mark.parametrize("name", ALL)
def test_gold_answers_are_what_brute_force_finds_and_score_one(name: str) -> None:
    task = BUILT_IN[name]()
    for i in range(150):
        level = task.difficulties[i % len(task.difficulties)]
        problem = task.generate(i, "train" if i % 2 else "held_out", level)
        right = brute_force(problem)
        assert problem.answer in right
        for answer in right:
            assert task.score(problem, f"<think> hm</think> {answer}").total == 1
            assert task.score(problem, answer).total == 1


@pytest.mark.parametrize("name", ALL)
def test_wrong_and_malformed_responses_score_nothing(name: str) -> None:
    task = BUILT_IN[name]()
    for i in range(60):
        problem = task.generate(i, "train", task.default_difficulty)
        right = brute_force(problem)
        other = task.generate(i + 1000, "train", task.default_difficulty).answer
        for answer in {other, problem.answer + "1", "-" + problem.answer, "", "ÿ", "</think>", "1 + 1"} - right:
            assert task.score(problem, f"<think> x</think> {answer}").total == 0
        assert task.score(problem, f"<think> {problem.answer}").total == 0  # a thought that never ends
        assert task.score(problem, f"<think> {problem.answer}</think>").total == 0  # a thought without an answer


def test_countdown_takes_any_right_expression_and_only_with_the_given_numbers() -> None:
    task = BUILT_IN["countdown"]()
    problem = task.recognise("Make 16 from 12, 7 and 3 using + and -.")
    assert problem is not None
    for answer, verdict in {
        "12 + 7 - 3": 1, "7 - 3 + 12": 1, "12+7-3": 1, "-3 + 7 + 12": 0, "16": 0, "12 + 4": 0, "12 + 7 - 3 + 0": 0,
        "12 + 7 + 3 - 3 - 3": 0, "__import__('os')": 0,
    }.items():  # fmt: skip
        assert task.score(problem, answer).total == verdict, answer


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_problem_and_wording_does_not_change_sides(name: str) -> None:
    task = BUILT_IN[name]()
    for i in range(50):
        problem = task.generate(i, "held_out", task.default_difficulty)
        assert problem == BUILT_IN[name]().generate(i, "held_out", task.default_difficulty)
        assert task.side(problem.meta["key"]) == "held_out"


def test_problems_are_the_same_on_every_machine() -> None:
    prompts = [BUILT_IN[name]().generate(2026, "train", BUILT_IN[name].default_difficulty).prompt for name in ALL]
    assert prompts == GOLDEN


GOLDEN = [
    "A clock shows 5. You wait 3, then 12, after that another 6, 11, 9, 10, then 4 hours. What does it show?"
    " Please be careful.",
    "How do you get 23 from 17, 11, 10, 8, 1 with + and -?",
    "Hol often does l occcur iv pleclosstro?",
    "From small to large, which of 48, 43, 1, 3, 86, 90, 2, 87, 89, 57, 10, 39 is number 2? Take your time.",
    "11 - 5 + 15 - 4 + 9 - 8 - 2 = ? Please be careful.",
]


@pytest.mark.parametrize("name", ALL)
def test_train_and_held_out_problems_never_meet(name: str) -> None:
    task = BUILT_IN[name]()
    keys: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for split, found in keys.items():
        for i in range(1000):
            level = task.difficulties[i % min(6, len(task.difficulties))]
            found.add(task.generate(i, split, level).meta["key"])  # type: ignore[arg-type]
    assert not keys["train"] & keys["held_out"]


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_train_and_held_out_problems_never_meet_in_a_million(name: str) -> None:
    task = BUILT_IN[name]()
    keys: dict[str, set[int]] = {"train": set(), "held_out": set()}
    levels = task.difficulties
    for i in range(180_000):
        keys["train"].add(hash(task.generate(i, "train", levels[i % len(levels)]).meta["key"]))
        if i % 9 == 0:
            keys["held_out"].add(hash(task.generate(i, "held_out", levels[i % len(levels)]).meta["key"]))
    assert not keys["train"] & keys["held_out"]


def test_twins_are_on_one_side() -> None:
    sums = BUILT_IN["sums"]()
    rng = Rng("twins")
    for _ in range(20):
        _, key = sums.draw(rng, 4)
        assert key == " ".join(map(str, sorted(map(int, key.split()))))  # order of the terms is not in the key


def test_strawberry_is_never_trained_on() -> None:
    letters = BUILT_IN["letters"]()
    assert letters.side("strawberry") == "held_out"
    assert all(letters.generate(i, "train", 10).meta["key"] != "strawberry" for i in range(2000))


@pytest.mark.parametrize("name", ALL)
def test_above_the_gold_limit_there_is_no_thought(name: str) -> None:
    task = BUILT_IN[name]()
    assert task.generate(1, "train", task.gold_limit).thought
    assert task.generate(1, "train", task.gold_limit + 1).thought is None


@pytest.mark.parametrize("name", ALL)
def test_questions_are_recognised_in_every_wording(name: str) -> None:
    task = BUILT_IN[name]()
    for i in range(40):
        for new in (False, True):
            problem = task.generate(i, "held_out", task.default_difficulty, new_phrasing=new)
            if problem.meta["slips"]:
                continue
            found = task.recognise(problem.prompt)
            assert found is not None and found.answer == problem.answer, problem.prompt
    assert task.recognise("Tell me a story.") is None


def test_the_last_wording_is_never_trained_on() -> None:
    for name in ALL:
        task = BUILT_IN[name]()
        start = task.phrasings[-1].split("{")[0]
        seen = {task.generate(i, "train", task.default_difficulty).prompt for i in range(300)}
        assert start and not any(prompt.startswith(start) for prompt in seen), name


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
        (GOOD + "\ndef score(problem, answer): return True", "scores above 0"),
        (GOOD.replace("rng.below(1000)", "3"), "found no"),
    ],
)  # fmt: skip
def test_faults_of_ones_own_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        for task in load_tasks([write(tmp_path, text)]).values():
            task.validate()
    assert "mine" in str(error.value)


def test_the_shipped_examples_are_sound() -> None:
    folder = Path(__file__).parent.parent / "examples"
    for path in sorted(folder.glob("*.py")):
        for task in load_tasks([str(path)]).values():
            task.validate()


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match="countdown"):
        load_tasks(["countdwn"])
