"""Tasks: answers are judged by meaning, sides never meet, wording never matters, everything comes from the seed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest
from verifiers import RIGHT

from hadal.errors import UserError
from hadal.tasks import BUILT_IN, Problem, Rng, load_tasks
from hadal.tasks.arithmetic import Term, join
from hadal.tasks.sudoku import unnamed
from hadal.tasks.twins import without_names

ALL = sorted(BUILT_IN)


def mixed(name: str, n: int) -> Iterator[Problem]:
    """n problems of a task, of both sides and all difficulties."""
    task, rng = BUILT_IN[name](), Rng("mixed", name)
    for i in range(n):
        yield task.generate(i, "held_out" if i % 8 == 0 else "train", rng.choice(task.difficulties))


@pytest.mark.parametrize("name", ALL)
def test_gold_answers_score_one_and_five_near_misses_nothing(name: str) -> None:
    """A thousand problems; what is right and what truly differs is said by brute force, apart from the task."""
    task = BUILT_IN[name]()
    for i, problem in enumerate(mixed(name, 1000)):
        fields = problem.meta["fields"]
        assert RIGHT[name](fields, problem.answer), problem
        assert task.score(problem, f"<think> hm</think> {problem.answer}").total == 1, problem
        assert task.score(problem, problem.answer).total == 1
        wrong = task.near_misses(problem, Rng("test", i))
        assert len(set(wrong)) == 5, (wrong, problem)
        for answer in wrong:
            assert not RIGHT[name](fields, answer), (answer, problem)
            assert task.score(problem, f"<think> hm</think> {answer}").total == 0, (answer, problem)
        for response in ("", "<think></think>", f"<think> {problem.answer}", f"<think> {problem.answer}</think>"):
            assert task.score(problem, response).total == 0, (response, problem)


@pytest.mark.parametrize("name", ALL)
def test_any_answer_is_judged_as_brute_force_judges_it(name: str) -> None:
    """Answers of the task's own form, right now and then: those of other problems and pieces of the gold one."""
    task = BUILT_IN[name]()
    problems = list(mixed(name, 120))
    rng = Rng("others")
    for problem in problems:
        words = problem.answer.split()
        answers = {other.answer for other in rng.sample(problems, 12)}
        answers |= {" ".join(rng.sample(words, len(words))) for _ in range(4)} | {" ".join(words[1:]), "0", "a", "ÿ"}
        for answer in answers - {""}:
            verdict = RIGHT[name](problem.meta["fields"], answer)
            assert task.score(problem, answer).total == verdict, (answer, problem)


def test_countdown_takes_every_way_to_the_target() -> None:
    task = BUILT_IN["countdown"]()
    for problem in mixed("countdown", 60):
        numbers = problem.meta["fields"]["numbers"].split(", ")
        for signs in itertools.product("+-", repeat=len(numbers) - 1):
            text = numbers[0] + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
            right = eval(text, {"__builtins__": {}}) == int(problem.meta["fields"]["target"])
            assert task.score(problem, text).total == right, (text, problem)


MEANT = {
    "What is (3 + 4) * 2 - 9 / 3?": {"11": 1, "11.": 1, "11.0": 1, "+11": 1, "= 11": 0, "-11": 0, "eleven": 0},
    "Roads join a - b, b - d, a - c, c - d, d - e. What is a shortest way from a to e?": {
        "a b d e": 1, "a c d e": 1, "A -> B -> D -> E": 1, "a, b, d, e": 1, "a - c - d - e.": 1, "a to b to d to e": 1,
        "a b c d e": 0, "a b e": 0, "e d b a": 0, "a x d e": 0, "abde": 0, "a b d e e": 0, "": 0,
    },
    "Knights tell the truth, knaves lie. Anna says Ben and Carl are both knights. Ben says Anna is a knave. "
    "Carl says Ben is a knave. Who are the knights?": {
        "Carl": 0, "Ben": 1, "ben": 1, "Ben.": 1, "Ben, Ben": 0, "Anna, Ben": 0, "nobody": 0, "Ben and Zoe": 0,
    },
    "Fill in this 6x6 sudoku: 1 2 3 4 5 6 / 4 5 6 1 2 3 / 2 3 4 5 6 1 / 5 6 1 2 3 4 / 3 4 5 6 1 2 / _ 1 2 3 4 5": {
        "123456 456123 234561 561234 345612 612345": 1, "6": 0, "1234 3412 2143 4321": 0,
        "123456 456123 234561 561234 345612 112345": 0,
    },
    "Fill in this 4x4 sudoku: 1 _ 3 4 / 3 4 1 2 / 2 1 4 3 / 4 3 2 1": {
        "1 2 3 4 / 3 4 1 2 / 2 1 4 3 / 4 3 2 1": 1, "1234 3412 2143 4321": 1, "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1": 1,
        "2": 0, "1 1 3 4 / 3 4 1 2 / 2 1 4 3 / 4 3 2 1": 0, "1 2 3 4 / 3 4 1 2 / 2 1 4 3 / 4 3 2 1 0": 0,
    },
    "a = 3 for _ in range(2): a = a + 4 print(a) What does this print?": {"11": 1, "11.": 1, "a = 11": 0, "7": 0},
    "Take plan: reverse it, then drop the last letter. What do you have?": {
        "nal": 1, "NAL": 1, "'nal'": 1, "n a l": 1, "n-a-l.": 1, "nalp": 0, "lan": 0,
    },
    "Decode khoor: move each letter 3 back.": {"hello": 1, "Hello": 1, '"hello"': 1, "h e l l o": 1, "khoor": 0},
    "It is 28 February 2024. What is the date after 2 days?": {
        "1 March 2024": 1, "March 1, 2024": 1, "1st of March 2024": 1, "2024-03-01": 1, "1 Mar 2024": 1,
        "2 March 2024": 0, "1 March": 0, "1 March 2023": 0, "2024-01-03": 0, "1 M 2024": 0, "1 Ma 2024": 0,
    },
    "Add 3 ft 7 in, 29 in. How many ft and in is that?": {
        "6 ft 0 in": 1, "6 ft": 1, "72 in": 1, "5 feet and 12 inches": 1, "6ft 0in": 1, "2 yd": 0, "6": 0, "6 in": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("question", MEANT)
def test_answers_are_taken_as_they_are_meant(question: str) -> None:
    task, problem = next((t, p) for t in (kind() for kind in BUILT_IN.values()) if (p := t.recognise(question)))
    for answer, verdict in MEANT[question].items():
        assert task.score(problem, answer).total == verdict, answer


def test_a_sudoku_has_one_solution() -> None:
    def fillings(cells: list[str], size: int) -> int:
        if "_" not in cells:
            return 1
        wide = size // 2

        def box(i: int) -> tuple[int, int]:
            return i // (2 * size), i % size // wide

        i = cells.index("_")
        seen = {cells[j] for j in range(size * size) if j // size == i // size or j % size == i % size
                or box(j) == box(i)}  # fmt: skip
        fitting = [digit for digit in "123456"[:size] if digit not in seen]
        return sum(fillings([*cells[:i], digit, *cells[i + 1 :]], size) for digit in fitting)

    for problem in mixed("sudoku", 200):
        cells = problem.meta["fields"]["grid"].replace("/", "").split()
        assert fillings(cells, int(problem.meta["fields"]["size"][0])) == 1
        assert cells.count("_") == problem.meta["difficulty"]


def test_sums_and_products_in_another_order_or_nesting_are_twins() -> None:
    one, two, three = (Term(n, int(n), "", (n,)) for n in "123")
    keys = {join(join(a, op, b), op, c).key for op in "+*" for a, b, c in itertools.permutations((one, two, three))}
    assert keys == {"(1+2+3)", "(1*2*3)"} and join(one, "+", join(two, "+", three)).key in keys
    assert join(three, "-", one).key != join(one, "-", three).key


def test_renamed_problems_are_twins_and_other_problems_are_not() -> None:
    rng, keys = Rng("twins"), set()
    for _ in range(60):
        labels = ["end", "end", *[""] * 6]
        pairs = [tuple(rng.sample(range(8), 2)) for _ in range(10)]
        links = [(a, "-", (b,)) for pair in pairs for a, b in (pair, pair[::-1])]
        order = rng.sample(range(8), 8)
        renamed = [(order[a], kind, tuple(order[b] for b in others)) for a, kind, others in rng.sample(links, 20)]
        moved = [labels[order.index(i)] for i in range(8)]
        assert without_names(labels, links) == without_names(moved, renamed)
        keys.add(without_names(labels, links))
    assert len(keys) == 60
    puzzle = "1_34_41_21_34_21"
    assert unnamed(list(puzzle)) == unnamed(list(puzzle.translate(str.maketrans("1234", "3142"))))
    assert unnamed(list(puzzle)) != unnamed(list(puzzle[::-1]))


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_problem_and_wording_does_not_change_sides(name: str) -> None:
    task = BUILT_IN[name]()
    for i in range(50):
        problem = task.generate(i, "held_out", task.default_difficulty)
        assert problem == BUILT_IN[name]().generate(i, "held_out", task.default_difficulty)
        assert task.side(problem.meta["key"]) == "held_out"


def test_problems_are_the_same_on_every_machine() -> None:
    kinds = [BUILT_IN[name] for name in ("clock", "countdown", "letters", "sort", "sums")]
    assert [kind().generate(2026, "train", kind.default_difficulty).prompt for kind in kinds] == GOLDEN_PROMPTS


GOLDEN_PROMPTS = [
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
        for i in range(1000 if split == "train" else 150):
            level = task.difficulties[i % min(6, len(task.difficulties))]
            found.add(task.generate(i, split, level).meta["key"])  # type: ignore[arg-type]
    assert not keys["train"] & keys["held_out"]


@pytest.mark.parametrize("name", ALL)
def test_one_problem_in_eight_is_held_out(name: str) -> None:
    task, rng = BUILT_IN[name](), Rng("share", name)
    keys = {task.draw(rng, task.difficulties[i % len(task.difficulties)])[1] for i in range(2000)}
    share = sum(task.side(key) == "held_out" for key in keys) / len(keys)
    assert abs(share - 1 / 8) < 3.5 * (7 / 64 / len(keys)) ** 0.5, share


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


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match="countdown"):
        load_tasks(["countdwn"])


def digest(name: str) -> str:
    """Over 120 problems of both sides, all difficulties and both kinds of wording, with thoughts and keys."""
    task, hashed = BUILT_IN[name](), blake2b(digest_size=8)
    for i in range(120):
        level = task.difficulties[i % len(task.difficulties)]
        p = task.generate(i, "held_out" if i % 4 == 0 else "train", level, i % 3 == 0)
        hashed.update(f"{p.prompt}\x1f{p.answer}\x1f{p.thought}\x1f{p.meta['key']}\x1e".encode())
    return hashed.hexdigest()


GOLDEN = {
    "arithmetic": "e3821a4999164e11",
    "cipher": "9a7fb3f3059beaad",
    "clock": "7d0198d8e7082bcc",
    "countdown": "ccdfc053ee15c7df",
    "dates": "b17fa065faf7efd3",
    "knights": "f8889b3885a0ba46",
    "letters": "69443ddd949a35fb",
    "paths": "452d4a25f5e50fb7",
    "program": "157ace0f01a48a07",
    "sort": "b838889beb851e78",
    "strings": "015b695506e027e2",
    "sudoku": "c9cbebf652445ac2",
    "sums": "137be718bb6f3481",
    "units": "b0cc1b9ef611504b",
}
"""Published results rest on these streams: a task that changes them is another task."""


@pytest.mark.parametrize("seed", ["0", "7"])
def test_streams_are_those_that_were_published_whatever_the_hash_seed(seed: str) -> None:
    program = "from test_tasks import ALL, digest\nprint(*(f'{name} {digest(name)}' for name in ALL), sep='\\n')"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert dict(line.split() for line in done.stdout.splitlines()) == GOLDEN


def test_the_docs_show_the_tasks_as_they_are() -> None:
    text = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    examples = {row[0].strip("`"): row for row in rows if len(row) == 4 and row[0].strip("`") in BUILT_IN}
    dials = {row[0].strip("`"): row for row in rows if len(row) == 5}
    assert list(examples) == list(dials) == list(BUILT_IN)
    for name, (_, question, thought, answer) in examples.items():
        problem = BUILT_IN[name]().recognise(question.replace(" ⏎ ", "\n"))
        assert problem is not None and problem.thought is not None, name
        assert problem.thought.strip() == thought and problem.answer in answer, name
    for name, (_, _, levels, default, limit) in dials.items():
        task = BUILT_IN[name]()
        assert (levels, default, limit) == (
            f"{task.difficulties[0]}-{task.difficulties[-1]}", str(task.default_difficulty), str(task.gold_limit)
        )  # fmt: skip
