"""Rewards: each part is what its paper says, weights combine them, and accuracy alone changes nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import extending
import pytest
import torch
from small_run import COIN
from test_remote_sampler import Server, completion
from test_rl import grown
from updates import rl_update

from hadal import rewards as rewards_room
from hadal.cli import main
from hadal.errors import UserError
from hadal.recipe.config import load_recipe_data, read_recipe
from hadal.rewards import Response, read_rewards, score_group
from hadal.rewards.format import format_reward
from hadal.rewards.language import language_share
from hadal.rewards.length import length_rewards
from hadal.rewards.overlong import overlong_penalty
from hadal.rewards.repetition import repetition_penalty
from hadal.rollout import Query, Sample
from hadal.sandbox import Limits, Sandbox, check_asserts
from hadal.stages import reject
from hadal.tasks import BUILT_IN
from hadal.tasks.code import MBPP, HumanEval
from hadal.train.curriculum import Curriculum
from hadal.train.rl import RLConfig, draw_groups


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
    plain = score_group(task, problem, responses, read_rewards({}))
    assert [r.total for r in plain] == [1, 1, 0, 0] and all(list(r.parts) == ["accuracy"] for r in plain)
    weights = {"accuracy": 1.0, "format": 0.5, "language": 0.25, "length": 0.125, "overlong": 2.0, "repetition": 4.0}
    config = read_rewards({**weights, "overlong_tokens": 10, "repetition_ngram": 2})
    rewards = score_group(task, problem, responses, config)
    assert [r.parts["format"] for r in rewards] == [1, 0, 1, 0]
    assert [r.parts["language"] for r in rewards] == [1, 0, 0, 1]
    assert [r.parts["overlong"] for r in rewards] == [0, 0, -0.5, -1]
    assert [r.parts["length"] for r in rewards] == pytest.approx([0.5, 1 / 6, -1 / 6, -0.5])
    assert [r.parts["repetition"] for r in rewards] == [0, 0, 0, 0]
    assert [r.note for r in rewards] == [r.note for r in plain]
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
        (reward,) = score_group(task, problem, [response], read_rewards({"tests": 0.5}))
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
        config = read_rewards({"tests": 0.5})
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
    drawn = list(reject.draw(run, "reject", reject.Config(problems=2)))  # type: ignore[arg-type]
    for problem in [*(group.problem for group in groups), *drawn]:
        assert problem.prompt.count("assert") == 2 and problem.meta["tests"].count("assert") == 3
    assert task.generate(0, "held_out", 1).prompt.count("assert") == 3


def test_where_there_are_no_tests_the_part_is_the_verdict() -> None:
    task = BUILT_IN["sums"]()
    problem = task.recognise("What is 3 + 4?")
    assert problem is not None
    responses = [Response(text, [1], 9) for text in ("7", "8")]
    rewards = score_group(task, problem, responses, read_rewards({"tests": 1.0}))
    assert [reward.parts["tests"] for reward in rewards] == [1, 0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"accuracy": -1.0}, "accuracy is -1.0"),
        ({"accuracy": 0.0}, "All weights"),
        ({"target_language": "xx"}, "target_language is 'xx'"),
        ({"overlong_tokens": 0}, "overlong_tokens is 0"),
        ({"speed": 1.0}, "rewards.speed"),
        ({"format": 2e6}, "format is 2000000.0"),
        ({"judge": 1.0}, "endpoint is not set"),
        ({"judge": 1.0, "endpoint": "host"}, "endpoint is 'host'"),
        ({"judge": 1.0, "endpoint": "http://host"}, "endpoint_model is not"),
        ({"endpoint": 3}, "rewards.endpoint is 3"),
    ],
)
def test_weights_that_make_no_sense_are_named(setting: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_recipe({"tasks": ["sums"], "grpo": {"rewards": setting}})


def test_updates_log_the_parts_and_the_curriculum_follows_accuracy_alone() -> None:
    updates = []
    for rewards in ({}, {"format": 0.5, "repetition": 1.0, "repetition_ngram": 1}):
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


def test_a_run_from_before_parts_were_files_is_read_as_it_was() -> None:
    """Its resolved config names every weight and setting that there was."""
    old = {"accuracy": 1.0, "format": 0.5, "language": 0.0, "length": 0.0, "overlong": 0.0, "repetition": 0.0,
           "tests": 0.0, "target_language": "de", "overlong_tokens": 32, "repetition_ngram": 8}  # fmt: skip
    new = read_recipe({"tasks": ["sums"], "grpo": {"rewards": {"format": 0.5, "target_language": "de"}}})
    assert read_recipe({"tasks": ["sums"], "grpo": {"rewards": old}}) == new
    assert new.to_dict()["stage"]["grpo"]["rewards"].items() >= old.items(), "defaults are frozen with the rest"
    assert read_recipe(new.to_dict()) == new


def test_one_more_file_is_one_more_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extending.add_module(rewards_room, "cosine", extending.example("A reward"), tmp_path, monkeypatch)
    (table,) = re.findall(r"```toml\n\[grpo.rewards\]\n(.*?)```", extending.section("A reward"), re.S)
    settings = [f"grpo.rewards.{line}" for line in table.splitlines()]
    config = read_recipe(load_recipe_data("tiny", settings)).stage("grpo").config
    task = BUILT_IN["sums"]()
    problem = task.recognise("What is 3 + 4?")
    assert problem is not None
    responses = [Response(text, [1] * n, 20) for text in ("7", "8") for n in (0, 5, 20)]
    found = score_group(task, problem, responses, config.reward_config())

    def cos_fn(t: float, T: float, low: float, high: float) -> float:
        """As the paper has it."""
        return low + 0.5 * (high - low) * (1 + math.cos(t * math.pi / T))

    for response, one in zip(responses, found, strict=True):
        ends = (1.0, 2.0) if one.right else (0.0, -2.0)  # at the limit, and at no length
        assert one.total == pytest.approx(cos_fn(len(response.token_ids), 20, *ends))
    llm, optimizer = grown()
    tasks = {"letters": BUILT_IN["letters"]()}
    small = RLConfig(prompts=4, samples=4, max_tokens=12, rewards=config.rewards)
    assert "reward_cosine" in rl_update(llm, optimizer, tasks, Curriculum(tasks), small, 0, 0).metrics


# A judge


class Says:
    """A model that says what it was told to, to one question after the other."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = texts, [""]

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Sample]]:
        given = list(zip(enumerate(queries), self.texts, strict=True))
        self.asked = [query.prompt[0]["content"] for (_, query), _ in given]  # type: ignore[index]
        for (number, _), text in reversed(given):  # answers come as they come
            yield number, 0, Sample([], [], text, "stop", counted=5)


JUDGED = {"accuracy": 0.0, "judge": 2.0, "endpoint": "http://host", "endpoint_model": "m"}


def judged(texts: list[str], judge: Says) -> list[float]:
    task = BUILT_IN["sums"]()
    problem = task.recognise("What is 3 + 4?")
    assert problem is not None
    responses = [Response(text, [1], 9) for text in texts]
    return [reward.parts["judge"] for reward in score_group(task, problem, responses, read_rewards(JUDGED), judge)]


def test_a_judge_reads_the_answer_alone_and_its_mark_is_the_reward() -> None:
    judge = Says("<think>3?</think>Fine.\n\n7", "0/10")
    assert judged(["<think>secret</think> It is 7.", "<think> 7", "</reply>8</reply>"], judge) == [0.7, 0.0, 0.0]
    first, second = judge.asked
    assert "What is 3 + 4?" in first and "\n7\n</answer>" in first and "\nIt is 7.\n</reply>" in first
    assert "secret" not in first and second.count("</reply>") == 1 and "\n8\n</reply>" in second


@pytest.mark.parametrize(
    ("said", "mark"),
    [("8", 0.8), ("**8**", 0.8), ("Mark: 8/10.", 0.8), ("2.5", 0.25), ("10", 1), ("11", None), ("-3", None), ("", None),
     ("<think>8", None), ("good", None), ("8 of 10 say so, yes", None)],
)  # fmt: skip
def test_a_reply_without_a_mark_neither_helps_nor_harms(said: str, mark: float | None) -> None:
    assert judged(["a", "b", "c"], Says("4", said, "6")) == [0.4, 0.5 if mark is None else mark, 0.6]


def test_a_stage_asks_the_judge_that_its_recipe_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return completion("9" if "heads" in body["messages"][0]["content"].split("<reply>")[1] else "3")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HADAL_JUDGE_KEY", "key")
    server = Server(reply)
    Path("coin.py").write_text(COIN)
    Path("small.toml").write_text(f"""
tasks = ["coin.py"]
threads = 1
dtype = "float32"
model = {{ hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 64 }}
corpus = {{ tokens = 384 }}
[pretrain]
steps = 90
extra_rounds = 0
warmup = 5
margin = -1.0
check_problems = 8
max_tokens = 12
optimizer = {{ lr = 0.004, muon_lr = 0.02 }}
[grpo]
updates = 2
prompts = 2
samples = 4
max_tokens = 12
held_out_problems = 2
rewards = {{ judge = 0.5, endpoint = "{server.url}", endpoint_model = "m", judge_tokens = 7 }}
[stage]
base = {{ kind = "pretrain" }}
rl = {{ kind = "grpo", from = "base" }}
""")
    try:
        assert main(["train", "small.toml", "--trust", "--out", "run"]) == 0
    finally:
        server.stop()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    marks = [line["reward_judge"] for line in lines if "reward_judge" in line]
    assert len(marks) == 2 and all(0 < mark <= 0.9 for mark in marks)
    assert {(body["model"], body["max_tokens"]) for body in server.asked} == {("m", 7)}
    assert server.headers[0]["Authorization"] == "Bearer key"
