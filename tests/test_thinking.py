"""Who decides whether a response thinks, and what it does then: on tokenizers with a token for it and without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_policy import allow
from tokenizer_families import QWEN2, R1, write_tokenizer

from hadal.engine import LLM
from hadal.evaluate.suite import ask
from hadal.models.build import build
from hadal.models.dense.config import Qwen2Config
from hadal.rewards import read_rewards
from hadal.rollout import Query, Sample, SamplingParams
from hadal.tasks import BUILT_IN, Problem, Reward, Task
from hadal.text.parse import TokenParser, parse_response
from hadal.text.tokenizer import Tokenizer
from hadal.train.conversations import Encoder
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.rl import Batch, RLConfig, train_on
from hadal.train.rollouts import Group, sample_groups

QWEN2_OPENS = QWEN2.replace("assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif")
FORMS = {"qwen2": ("qwen2", QWEN2), "qwen2-opens": ("qwen2", QWEN2_OPENS), "r1": ("r1", R1), "qwen3": ("qwen3", None)}
OPENED = {"qwen2": False, "qwen2-opens": True, "r1": True, "qwen3": False}
ASKED = [{"role": "user", "content": "Is <think> a word?"}]


def tokenizer(folder: Path, form: str) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(folder / form, *FORMS[form]))


def policy(folder: Path, form: str, says: str = "") -> LLM:
    """A random model over a form's tokenizer; it says the tokens of `says` alone, where that is given."""
    own = tokenizer(folder, form)
    model = build(Qwen2Config(448, 32, 1, 2, 1, head_dim=16, intermediate_size=64, max_position_embeddings=512))
    model.initialise(0)
    llm = LLM(model, own)
    if says:
        allow(llm, own.encode(says))
    return llm


def every_answer_is_right() -> Task:
    task = BUILT_IN["letters"]()
    task.judge = lambda problem, text: True  # type: ignore[method-assign]
    return task


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_tells_whether_it_has_opened_the_thought(form: str, tmp_path: Path) -> None:
    own = tokenizer(tmp_path, form)
    assert own.in_thought(own.chat(ASKED)) == OPENED[form]
    assert not own.in_thought(own.chat(ASKED, thinking=False))
    assert own.opening(own.chat(ASKED)) == "<think>" * OPENED[form]


@pytest.mark.parametrize("form", FORMS)
def test_the_share_that_thinks_is_told_by_what_a_response_says(form: str, tmp_path: Path) -> None:
    """Two of four think: in control tokens where there are such, else spelled; an empty thought is none."""
    llm = policy(tmp_path, form)
    own = llm.tokenizer
    opened = OPENED[form]

    def spelled(text: str) -> list[int]:
        out: list[int] = []
        for part in text.replace("<think>", "\0<think>\0").replace("</think>", "\0</think>\0").split("\0"):
            out += [own.controls[part]] if part in own.controls else own.encode(part)
        return out

    texts = ["<think>a b</think> c", "<think>d", "e f", "<think>\n</think>g"]
    if opened:  # the mark stands in the prompt; what is never closed is thought as well
        texts = ["a b</think> c", "d", "</think>e f", "\n</think>g"]
    problem = Problem("How many?", "1", meta={"task": "letters", "difficulty": 1})
    prompt = own.chat([{"role": "user", "content": problem.prompt}])
    samples = [
        Sample(spelled(text), [-1.0] * len(spelled(text)), text, "stop", opening=own.opening(prompt)) for text in texts
    ]
    rewards = [Reward(0.0, {"accuracy": 0.0}, "")] * 4
    group = Group("letters", problem, prompt, samples, rewards)
    optimizer = FlatOptimizer(llm.model, OptimizerConfig(muon_lr=0.0))
    result = train_on(llm, optimizer, Batch([group], torch.zeros(1, 4), 0.0), RLConfig(algorithm="grpo"), 0, 0)
    assert result.metrics["thinking_share"] == 0.5
    for text, sample in zip(texts, samples, strict=True):  # and a reader of tokens sees the same
        parser = TokenParser(own, opened)
        parser.feed_ids(sample.token_ids)
        parser.finish()
        assert parser.parsed.thinks == parse_response(own.opening(prompt) + text).thinks


@pytest.mark.parametrize("form", FORMS)
def test_a_thought_that_the_chat_form_opens_and_nobody_closes_is_no_answer(form: str, tmp_path: Path) -> None:
    """In RL's rewards, in held-out evaluation and in `eval`: two letters are all answer or all thought."""
    llm, task = policy(tmp_path, form, "ab"), every_answer_is_right()
    tasks = {task.name: task}
    problems = [task.generate(i, "train", 3) for i in range(2)]
    params = SamplingParams(max_tokens=2, seed=1, n=2, logprobs=0)
    groups = sample_groups(llm, tasks, [(task.name, p) for p in problems], params, read_rewards({}))
    verdicts = ask(llm, tasks, problems, params)
    expected = float(not OPENED[form])
    assert [r.total for g in groups for r in g.rewards] == [expected] * 4
    assert [float(v.right) for vs in verdicts for v in vs] == [expected] * 4
    assert [v.thinks for vs in verdicts for v in vs] == [OPENED[form]] * 4
    queries = [Query([{"role": "user", "content": p.prompt}], params, range(2)) for p in problems]
    replies = [sample.response for _, _, sample in llm.sample(queries)]
    assert [parse_response(text).thinks for text in replies] == [OPENED[form]] * 4


@pytest.mark.parametrize("form", FORMS)
def test_a_thought_is_trained_on_once_and_behind_its_mark(form: str, tmp_path: Path) -> None:
    own = tokenizer(tmp_path, form)
    (talk,) = Encoder(own).encode([*ASKED, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNo."}])
    behind = own.decode(talk.ids, special=True).rpartition("word?")[2]
    assert behind.count("<think>") == behind.count("</think>") == 1
    parsed = parse_response(behind[behind.index("<think>") :])
    assert parsed.thought == "hm" and parsed.answer.startswith("No.")
