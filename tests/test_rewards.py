"""Rewards: each part is what its paper says, weights combine them, and accuracy alone changes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_rl import grown

from hadal.errors import UserError
from hadal.recipe.config import read_recipe
from hadal.rewards import Response, RewardConfig, score_group
from hadal.rewards.language import language_share
from hadal.rewards.shape import format_reward, length_rewards, overlong_penalty, repetition_penalty
from hadal.sandbox import Limits, Sandbox, check_asserts
from hadal.stages import reject
from hadal.tasks import BUILT_IN
from hadal.tasks.code import MBPP, HumanEval
from hadal.train.curriculum import Curriculum
from hadal.train.rl import RLConfig, draw_groups, rl_update


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think> hm </think> 7", 1), ("\n<think>hm</think>7", 1), ("7", 0), ("<think></think> 7", 0),
        ("<think> hm </think>", 0), ("<think> hm </think> \n", 0), ("<think> hm 7", 0), ("hm </think> 7", 0),
        ("so <think> hm </think> 7", 0), ("<think> a </think> b </think> 7", 0), ("</think> hm <think> 7", 0),
        ("<think> a <think> b </think> 7", 0), ("", 0),
    ],
)  # fmt: skip
def test_the_format_is_one_thought_and_one_answer(text: str, value: float) -> None:
    assert format_reward(text) == value


@pytest.mark.parametrize(
    ("thought", "language", "share"),
    [
        ("so the answer is 7", "en", 1), ("so 答案 is 7", "en", 2 / 4), ("so 答案 is 7", "zh", 2 / 4),
        ("это значит x", "ru", 2 / 3), ("答案是七", "zh", 1), ("答えは七", "ja", 1), ("1 + 2 =3", "en", 1),
        ("1 + 2 =3", "zh", 1), ("", "en", 0), ("  \n", "en", 0), ("naïve café", "fr", 1), ("don't", "en", 1),
        ("x答y", "en", 2 / 3),
    ],
)  # fmt: skip
def test_the_language_reward_is_the_share_of_words(thought: str, language: str, share: float) -> None:
    assert language_share(thought, language) == pytest.approx(share)


def test_the_overlong_penalty_falls_over_the_last_tokens() -> None:
    """DAPO, equation 13, written out case by case."""
    for tokens in range(0, 120):
        limit, buffer = 100, 20
        if tokens <= limit - buffer:
            expected = 0.0
        elif tokens <= limit:
            expected = ((limit - buffer) - tokens) / buffer
        else:
            expected = -1.0
        assert overlong_penalty(tokens, limit, buffer) == pytest.approx(expected)


def test_length_rewards_prefer_short_right_answers() -> None:
    assert length_rewards([10, 20, 30], [True, True, True]) == [0.5, 0.0, -0.5]
    assert length_rewards([10, 20, 30], [False, False, False]) == [0.0, 0.0, -0.5]
    assert length_rewards([7, 7], [True, False]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("ids", "n", "value"),
    [([1, 2, 3, 4], 2, 0), ([1, 2, 1, 2], 2, -1 / 3), ([5] * 11, 2, -0.9), ([1], 2, 0), ([], 2, 0), ([1, 1], 1, -0.5)],
)
def test_the_repetition_penalty_is_the_share_of_repeated_pieces(ids: list[int], n: int, value: float) -> None:
    assert repetition_penalty(ids, n) == pytest.approx(value)


def test_parts_are_kept_apart_and_added_by_weight() -> None:
    task = BUILT_IN["sums"]()
    problem = task.recognise("What is 3 + 4?")
    assert problem is not None
    texts = ["<think> 3 + 4 =7</think> 7", "7", "<think> три 3 + 4 =8</think> 8", "<think> 3 3 3 3"]
    responses = [Response(text, list(range(5 * i)), 20) for i, text in enumerate(texts, 1)]
    plain = score_group(task, problem, responses, RewardConfig())
    assert [r.total for r in plain] == [1, 1, 0, 0] and all(list(r.parts) == ["accuracy"] for r in plain)
    config = RewardConfig(1.0, 0.5, 0.25, 0.125, 2.0, 4.0, overlong_tokens=10, repetition_ngram=2)
    rewards = score_group(task, problem, responses, config)
    assert [r.parts["format"] for r in rewards] == [1, 0, 1, 0]
    assert [r.parts["language"] for r in rewards] == [1, 0, 0, 1]
    assert [r.parts["overlong"] for r in rewards] == [0, 0, -0.5, -1]
    assert [r.parts["length"] for r in rewards] == pytest.approx([0.5, 1 / 6, -1 / 6, -0.5])
    assert [r.parts["repetition"] for r in rewards] == [0, 0, 0, 0]
    assert [r.note for r in rewards] == [r.note for r in plain]
    weights = {"accuracy": 1.0, "format": 0.5, "language": 0.25, "length": 0.125, "overlong": 2.0, "repetition": 4.0}
    for reward in rewards:
        assert reward.total == pytest.approx(sum(weights[name] * value for name, value in reward.parts.items()))


CHECK = """
METADATA = {'n': 1}

def check(candidate):
    big = candidate(10)
    assert candidate(1) == 1
    assert candidate(2) == 4, "two"
    assert big == 100 and METADATA['n'] == 1
    for n in (3, 4):
        assert candidate(n) == n * n
"""


@pytest.mark.parametrize(
    ("body", "share"),
    [
        ("return x * x", 1), ("return 2 ** x", 1 / 4), ("return x * x if x < 5 else 0", 3 / 4),
        ("return x * x if x != 4 else 0", 3 / 4), ("return 1 if x == 1 else undefined", 0), ("return -1", 0),
        ("return x * (", 0), ("while x > 2: pass\n    return x * x", 0),
    ],
)  # fmt: skip
def test_tests_are_counted_one_by_one(body: str, share: float, tmp_path: Path) -> None:
    solution = {"prompt": "def square(x):\n", "canonical_solution": "    return x * x"}
    row = {"entry_point": "square", "test": CHECK, **solution}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")

    def run_briefly(program: str, tests: str, names: tuple[str, ...] | None) -> tuple[bool, str]:
        verdict = check_asserts(sandbox, program, tests, Limits(seconds=1.0), names)
        return verdict.ok, verdict.note

    with Sandbox() as sandbox:
        task = HumanEval(tmp_path / "a.jsonl", run_briefly)
        (problem,) = task.problems("held_out")
        response = Response(f"<think>hm</think>```python\ndef square(x):\n    {body}\n```", [1], 10)
        (reward,) = score_group(task, problem, [response], RewardConfig(tests=0.5))
    assert reward.parts == {"accuracy": float(share == 1), "tests": share}
    assert reward.total == reward.parts["accuracy"] + share / 2


def mbpp(tmp_path: Path, tests: list[str] | None = None) -> MBPP:
    """One training problem, 601, and one test problem, 11, with these tests."""
    tests = tests or ["assert square(3) == 9", "assert square(5) == 25", "assert square(-7) == 49"]
    rows = [{"task_id": n, "text": f"Square {n}.", "code": "def square(x):\n    return x * x", "test_list": tests}
            for n in (601, 11)]  # fmt: skip
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return MBPP(tmp_path / "mbpp.jsonl")


def test_a_table_of_the_tests_that_the_prompt_shows_earns_nothing(tmp_path: Path) -> None:
    task = mbpp(tmp_path)
    measured = task.generate(0, "train", 1)
    rewarded = task.for_reward(measured)
    assert rewarded == task.for_reward(task.generate(0, "train", 1)), "another test was held back"
    for problem, shown, earns in ((measured, 3, 1), (rewarded, 2, 0)):
        table = dict(re.findall(r"square\((-?\d+)\) == (\d+)", problem.prompt))
        assert len(table) == shown
        program = f"def square(x):\n    return {{{', '.join(f'{k}: {v}' for k, v in table.items())}}}.get(x)"
        texts = [f"<think>hm</think>```python\n{code}\n```" for code in (program, "def square(x): return x ** 2")]
        config = RewardConfig(tests=0.5)
        cheat, right = score_group(task, problem, [Response(text, [1], 9) for text in texts], config)
        assert cheat.parts == {"accuracy": earns, "tests": earns}
        assert right.parts == {"accuracy": 1, "tests": 1}


def test_where_there_is_one_test_a_rewarded_prompt_has_the_header_alone(tmp_path: Path) -> None:
    task = mbpp(tmp_path, ["assert square(3) == 9"])
    problem = task.generate(0, "train", 1)
    assert "assert square(3) == 9" in problem.prompt
    prompt = task.for_reward(problem).prompt
    assert "assert" not in prompt and "def square(x): ..." in prompt


def test_rl_and_rejection_hold_a_test_back_and_eval_does_not(tmp_path: Path) -> None:
    task = mbpp(tmp_path)
    tasks = {"mbpp": task}
    llm, _ = grown()
    groups = draw_groups(llm, tasks, Curriculum(tasks), RLConfig(prompts=2, samples=2, max_tokens=2), 0, 0)
    run = SimpleNamespace(seed_of=lambda stage: 0, tasks=tasks)
    drawn = list(reject.draw(run, "reject", reject.RejectConfig(problems=2)))  # type: ignore[arg-type]
    for problem in [*(group.problem for group in groups), *drawn]:
        assert problem.prompt.count("assert") == 2 and problem.meta["tests"].count("assert") == 3
    assert task.generate(0, "held_out", 1).prompt.count("assert") == 3


def test_where_there_are_no_tests_the_part_is_the_verdict() -> None:
    task = BUILT_IN["sums"]()
    problem = task.recognise("What is 3 + 4?")
    assert problem is not None
    rewards = score_group(task, problem, [Response(text, [1], 9) for text in ("7", "8")], RewardConfig(tests=1.0))
    assert [reward.parts["tests"] for reward in rewards] == [1, 0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"accuracy": -1.0}, "accuracy is -1.0"),
        ({"accuracy": 0.0}, "All weights"),
        ({"target_language": "xx"}, "target_language is 'xx'"),
        ({"overlong_tokens": 0}, "overlong_tokens is 0"),
        ({"speed": 1.0}, "rewards.speed"),
    ],
)
def test_weights_that_make_no_sense_are_named(setting: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_recipe({"tasks": ["sums"], "grpo": {"rewards": setting}})


def test_updates_log_the_parts_and_the_curriculum_follows_accuracy_alone() -> None:
    updates = []
    for rewards in (RewardConfig(), RewardConfig(format=0.5, repetition=1.0, repetition_ngram=1)):
        llm, optimizer = grown()
        tasks = {"letters": BUILT_IN["letters"]()}
        curriculum = Curriculum(tasks)
        config = RLConfig(prompts=4, samples=4, max_tokens=12, rewards=rewards)
        updates.append((rl_update(llm, optimizer, tasks, curriculum, config, 0, 0), curriculum, optimizer))
    (plain, first, one), (shaped, second, two) = updates
    assert not any(name.startswith("reward_") for name in plain.metrics)
    metrics = shaped.metrics
    assert metrics["reward_accuracy"] == plain.metrics["reward"] and metrics["reward_repetition"] < 0
    total = metrics["reward_accuracy"] + 0.5 * metrics["reward_format"] + metrics["reward_repetition"]
    assert metrics["reward"] == pytest.approx(total, abs=1e-6)
    assert first.rates == second.rates
    assert not torch.equal(one.master, two.master)  # the samples are the same, what they earned is not
