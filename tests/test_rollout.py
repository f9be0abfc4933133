"""Whoever samples asks a `Rollout`: any source will do that gives what is needed, and what is lacking is one line."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from serving import QUESTION, make_run
from test_engine_exact import TOKENIZER, make

from hadal.engine import LLM, Engine, EngineConfig
from hadal.engine.remote import RemoteRollout
from hadal.errors import UserError
from hadal.evaluate.samples import Asking, Progress, Settings
from hadal.evaluate.suite import ask
from hadal.evaluate.verify import check_gsm8k
from hadal.rollout import Query, Rollout, Sample, SamplingParams, require, sample_all
from hadal.server.local import load
from hadal.server.models import Ask, End
from hadal.tasks import BUILT_IN, Problem
from hadal.text.tokenizer import Tokenizer
from hadal.train.rl import RLConfig
from hadal.train.rollouts import sample_groups

SOURCE = Path(__file__).resolve().parent.parent / "src" / "hadal"
PARAMS = SamplingParams(max_tokens=5, seed=3, n=2, logprobs=0)
LETTERS = BUILT_IN["letters"]()


def problems(count: int) -> list[Problem]:
    return [LETTERS.generate(i, "held_out", LETTERS.default_difficulty) for i in range(count)]


@dataclass
class Canned:
    """A source that says the same to everything, the last samples first; with ids where it gives any."""

    text: str
    gives_ids: bool = False
    gives_logprobs: bool = False
    takes_weights: bool = False
    context: int | None = None
    asked: list[Query] = field(default_factory=list)

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Sample]]:
        self.asked = list(queries)
        ids = [7, 8, 9] if self.gives_ids else []
        for number in reversed(range(len(self.asked))):
            for index in reversed(self.asked[number].indices):
                counted = None if ids else 3
                yield number, index, Sample(ids, [-1.0] * len(ids), self.text, "stop", prompt_ids=ids, counted=counted)


# Any source will do


def test_held_out_evaluation_needs_text_alone() -> None:
    asked = problems(2)
    source = Canned(f"<think>so</think> {asked[0].answer}")
    verdicts = ask(source, {"letters": LETTERS}, asked, PARAMS)
    assert [[v.right for v in group] for group in verdicts] == [[v.answer == asked[0].answer] * 2 for v in asked]
    assert all(v.thinks and v.tokens == 3 for group in verdicts for v in group)
    assert [query.params.seed for query in source.asked] == [3, 4], "each problem has a seed of its own"


def test_an_evaluation_needs_text_alone(tmp_path: Path) -> None:
    asking = Asking({"letters": LETTERS}, Settings(samples=3, problems=2))
    source, told = Canned("no idea"), list[Progress]()
    found = asking.run(lambda: source, tmp_path / "out", {"name": "canned"}, told.append)
    assert found.complete and len(found.samples) == 6 and told[-1].done == 6 and told[-1].tokens == 18
    assert {(s["text"], s["tokens"], s["right"]) for s in found.samples} == {("no idea", 3, False)}


def test_verify_asks_any_source(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"question": "What is 3 + 4?", "answer": "3 + 4 = 7\\n#### 7"}\n')
    assert "1 of 1 right" in check_gsm8k(Canned("<think>3 + 4</think>The answer is 7"), 1, 9, file).detail


def test_rl_learns_from_any_source_of_ids_and_log_probabilities() -> None:
    (problem,) = problems(1)
    source = Canned(problem.answer, gives_ids=True, gives_logprobs=True, takes_weights=True)
    (group,) = sample_groups(source, {"letters": LETTERS}, [("letters", problem)], PARAMS, RLConfig().reward_config())
    assert group.prompt == [7, 8, 9] and group.success == 1 and group.texts == [problem.answer] * 2


@pytest.mark.parametrize(
    ("gives", "lacks"),
    [
        ({"gives_logprobs": True, "takes_weights": True}, "token ids"),
        ({"gives_ids": True, "takes_weights": True}, "log-probabilities"),
        ({"gives_ids": True, "gives_logprobs": True}, "samples of the weights that are trained"),
        ({}, "token ids and log-probabilities and samples of the weights that are trained"),
    ],
)
def test_rl_refuses_a_source_that_lacks_something_in_one_line(gives: dict[str, bool], lacks: str) -> None:
    source = Canned("7", **gives)
    with pytest.raises(UserError) as refused:
        sample_groups(source, {"letters": LETTERS}, [("letters", problems(1)[0])], PARAMS, RLConfig().reward_config())
    assert str(refused.value).startswith(f"RL needs {lacks}, which") and "\n" not in str(refused.value)
    assert not source.asked, "it is refused before anything is asked"


def test_a_server_gives_text_alone_and_the_engine_everything() -> None:
    remote: Rollout = RemoteRollout("http://localhost:1/v1", "r1")
    local: Rollout = LLM(make("dense"), TOKENIZER)
    require(remote, "Evaluation")
    for kind in ("ids", "logprobs", "weights"):
        require(local, "RL", **{kind: True})
        with pytest.raises(UserError, match="RL needs"):
            require(remote, "RL", **{kind: True})


# The engine as a rollout


def test_samples_of_queries_are_those_of_requests() -> None:
    llm = LLM(make("dense"), TOKENIZER)
    messages = [{"role": "user", "content": "How many e?"}]
    ids = TOKENIZER.encode("one two three")
    prompts = [TOKENIZER.chat(messages), [TOKENIZER.bos_id, *ids], ids]
    expected = [output.outputs for output in llm.generate(prompts, PARAMS)]
    queries = [Query(messages, PARAMS), Query("one two three", PARAMS), Query(ids, PARAMS)]
    found = sample_all(llm, queries)
    assert found == expected
    assert [samples[0].prompt_ids for samples in found] == prompts
    some = sample_all(llm, [replace(query, wanted=[1]) for query in queries])
    assert some == [[samples[1]] for samples in expected], "a sample is the same without those beside it"


def test_a_sample_says_which_weights_its_prompt_was_read_with() -> None:
    llm = LLM(make("dense"), TOKENIZER)
    query = Query([{"role": "user", "content": "How many e?"}], PARAMS)
    first = sample_all(llm, [query])[0][0].generation
    llm.model.changed()
    assert sample_all(llm, [query])[0][0].generation == first + 1 == llm.model.generation


def test_whoever_stops_listening_leaves_nothing_behind() -> None:
    llm = LLM(make("dense"), TOKENIZER)
    coming = llm.sample([Query("one two three", replace(PARAMS, seed=i, max_tokens=2 + 3 * i)) for i in range(3)])
    number, _, _ = next(coming)
    assert number == 0
    coming.close()  # type: ignore[attr-defined]
    engine = llm.engine
    assert not engine.has_work() and engine.kv.used() == 0 and len(engine.table.free) == len(engine.table.sequences)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often prompts are encoded and checked."""
    calls: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        right = getattr(owner, name)

        def called(self: Any, *args: Any, **more: Any) -> Any:
            calls[name] += 1
            return right(self, *args, **more)

        monkeypatch.setattr(owner, name, called)

    for owner, name in ((Tokenizer, "chat"), (Engine, "prepare"), (Engine, "submit")):
        count(owner, name)
    return calls


def test_a_chat_prompt_is_encoded_once_and_checked_once(tmp_path: Path, counted: Counter[str]) -> None:
    """For all its samples, in a rollout and in a request to the server."""
    sample_all(LLM(make("dense"), TOKENIZER), [Query([{"role": "user", "content": "How many e?"}], PARAMS)])
    assert counted == {"chat": 1, "prepare": 1, "submit": 1}
    counted.clear()
    folder = str(make_run(tmp_path / "run"))
    models = load(folder, config=EngineConfig(), waiting=8, most_tokens=None, say=lambda line: None)

    async def answered() -> list[Any]:
        wanted = Ask([{"role": "user", "content": QUESTION}], thinking=True, sampling={"n": 3, "max_tokens": 4})
        ready = await models[0].ready(wanted)
        return [event async for event in models[0].answer(ready)]

    try:
        events = asyncio.run(answered())
    finally:
        for model in models:
            model.close()
    assert sum(isinstance(event, End) for event in events) == 3
    assert counted == {"chat": 1, "prepare": 1, "submit": 1}


# The house


def test_the_types_need_no_torch() -> None:
    program = "import sys, hadal.rollout\nprint({'torch', 'numpy', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env={"PYTHONPATH": str(SOURCE.parent)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "set()"


FACES = {"server/local.py": {"AsyncEngine", "Request"}, "server/models.py": {"Prepared"}}
"""What streams an answer to a reader as it is drawn, and what of the engine's requests it needs for that."""
REQUESTS = {"Engine", "AsyncEngine", "Prepared", "Request", "RequestOutput", "Sequence", "Prompt"}
"""What asks an engine past its `Rollout`."""


def past_the_rollout(path: str, source: str) -> list[str]:
    """What a file outside of the engine does to get samples otherwise."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hadal.engine"):
            names = {alias.name for alias in node.names}
            found += [f"{path} imports {name}" for name in sorted(names & REQUESTS - FACES.get(path, set()))]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = ast.unparse(node.func.value)
            if node.func.attr in ("generate", "chat") and asked.split(".")[-1] in ("llm", "engine", "model", "teacher"):
                found.append(f"{path} calls {asked}.{node.func.attr}")
    return found


def test_whoever_samples_asks_a_rollout() -> None:
    paths = [path.relative_to(SOURCE) for path in sorted(SOURCE.rglob("*.py"))]
    files = {str(path): (SOURCE / path).read_text() for path in paths if path.parts[0] != "engine"}
    assert [fault for path, source in files.items() for fault in past_the_rollout(path, source)] == []
    for path, names in FACES.items():
        assert all(name in files[path] for name in names), f"{path} needs less than it is allowed"


@pytest.mark.parametrize(
    "source",
    ["from hadal.engine import LLM, RequestOutput", "from hadal.engine.core import Engine", "llm.generate([p], q)",
     "def f(run):\n    return run.llm.chat(messages)"],
)  # fmt: skip
def test_the_rule_sees_who_asks_past_a_rollout(source: str) -> None:
    assert past_the_rollout("train/loop.py", source)
    assert not past_the_rollout("train/loop.py", "sample_all(llm, queries)\ntask.generate(0, 'train', 1)")
