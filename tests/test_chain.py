"""Recipes as chains of stages: how they are read, what is wrong with them, and what their own kinds of stage do."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from local_server import served
from small_chain import CHAIN, write_chain

from hadal.cli import main
from hadal.errors import UserError
from hadal.evaluate.reflection import reflections
from hadal.evaluate.statistics import proportion
from hadal.evaluate.suite import Verdict
from hadal.recipe.config import load_recipe_data, read_recipe, to_toml
from hadal.report.comparison import difference
from hadal.rewards.language import language_share
from hadal.stages import reject as rejection
from hadal.stages.evaluate import agreed, clean, measure
from hadal.stages.reject import Config as RejectConfig
from hadal.stages.reject import readable
from hadal.tasks import Problem, Rng, load_tasks
from hadal.tasks.words import build_tokenizer
from hadal.train.corpus import FOREIGN, CorpusConfig, document

SHIPPED = ["r1", "r1-zero", "distill", "tiny-r1", "tiny-r1-zero", "tiny-distill", "qwen-gsm8k", "distill-gsm8k"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# How they are read


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_chains_are_read_and_written_alike(name: str) -> None:
    recipe = read_recipe(load_recipe_data(name))
    assert recipe.stages and read_recipe(tomllib.loads(to_toml(recipe.to_dict()))) == recipe


def test_a_stages_own_table_changes_single_values_of_its_kinds() -> None:
    recipe = read_recipe(load_recipe_data("r1", ["grpo.optimizer.lr=0.5", "stage.dev2.optimizer.clip=2.0"]))
    stages = {stage.name: stage.config for stage in recipe.stages}
    zero, dev2 = stages["r1-zero"], stages["dev2"]
    assert (zero.optimizer.lr, zero.optimizer.clip, zero.updates, zero.rewards["language"]) == (0.5, 1, 100, 0)
    assert (dev2.optimizer.lr, dev2.optimizer.clip, dev2.updates, dev2.rewards["language"]) == (0.5, 2, 80, 0.2)
    assert stages["student"].model.hidden_size == 96 and stages["student"].model.num_attention_heads == 4
    assert stages["student"].corpus == stages["base"].corpus and stages["base"].corpus.foreign_share == 0.4


def test_an_evaluation_follows_each_stage_that_leaves_a_model() -> None:
    names = [stage.name for stage in read_recipe(load_recipe_data("r1")).stages]
    assert names[:5] == ["base", "evaluate-base", "r1-zero", "evaluate-r1-zero", "cold-start"]
    assert "evaluate-cold-start" not in names and names[-1] == "evaluate-student-rl"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stage.dev1.kindd=3", ["stage.dev1.kindd", "Did you mean kind?"]),
        ("stage.dev1.epocs=3", ["stage.dev1.epocs", "Did you mean epochs?"]),
        ("sft.epocs=3", ["sft.epocs", "Did you mean epochs?"]),
        ("stage.dev1.kind=stf", ["stage.dev1.kind is 'stf'", "Did you mean sft?"]),
        ("stage.dev1.from=bas", ["stage.dev1.from is 'bas'", "Did you mean base?"]),
        ("stage.dev1.from=r1", ["stage.dev1.from is 'r1', which is not a stage before it"]),
        ("stage.dev1.from=cold-start", ["which leaves no model"]),
        ('stage.dev1.data=["base"]', ["stage.dev1.data is 'base'", "leaves no data"]),
        ('stage.dev1.data=["cold-stat"]', ["'cold-stat'", "Did you mean cold-start?"]),
        ("stage.dev1.data=[]", ["stage.dev1 has no data"]),
        ("stage.dev1.seed=3", ["stage.dev1", "seed", "whole recipe"]),
        ("stage.base.from=r1", ["stage.base.from is 'r1'", "leave it out"]),
        ("stage.on-logits.teacher=r2", ["stage.on-logits.teacher is 'r2'", "Did you mean r1?"]),
        ("stage.on-logits.method=logit", ["stage.on-logits", "Did you mean logits?"]),
        ('stage.on-policy.data=["answers"]', ["stage.on-policy has data"]),
        ('stage.r1-zero.tasks=["lettters"]', ["stage.r1-zero names the task 'lettters'", "Did you mean letters?"]),
        ("stage.cold-start.endpoint=http://x/v1", ["stage.cold-start", "endpoint_model"]),
        ("stage.cold-start.keep=5", ["stage.cold-start", "keep is 5"]),
        ('stage.talks.plain_tasks=["tallk"]', ["stage.talks", "'tallk'", "Did you mean talk?"]),
        ("stage.r1-zero.decay_share=0", ["stage.r1-zero.decay_share", "above 0"]),
        ("stage.r1-zero.prompts=0", ["stage.r1-zero.prompts is 0", "at least 1"]),
        ("stage.student.model.num_attention_heads=5", ["stage.student.model.hidden_size", "5 heads"]),
        ("stage.student.corpus.habit_share=1.5", ["stage.student.corpus.habit_share", "above 0 and below 1"]),
        ("publish=r2", ["publish is 'r2'", "Did you mean r1?"]),
        ("publish=cold-start", ["publish is 'cold-start'", "leaves no model"]),
        ('stage={"../up" = {kind="pretrain"}}', ["'../up'", "small letters"]),
        ("stage=3", ["stage is 3", "[stage.base]"]),
        ("stages=3", ["Unknown key stages", "Did you mean stage?"]),
        ("rejct.problems=3", ["Unknown key rejct", "Did you mean reject?"]),
        ('tasks=["letters", "talkk"]', ["talk"]),
    ],
)
def test_a_wrong_chain_is_one_line(setting: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_chain(Path("."))
    assert main(["train", str(recipe), "--trust", "--out", "run", "--set", setting]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hadal: ") and err.count("\n") == 1
    assert [word for word in words if word not in err] == [], err
    assert not Path("run").exists()


def test_a_recipe_that_leaves_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="leaves a model"):
        read_recipe({"tasks": ["talk"], "stage": {"data": {"kind": "reject", "problems": 0, "plain": 3}}})


def test_another_chain_does_not_carry_a_run_on(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_chain(Path("."))
    Path("run").mkdir()
    request = {"recipe": {**tomllib.loads(CHAIN), "seed": 0}, "minutes": None, "task_files": {}}
    record = {"hadal_run": 1, "status": "running", "request": request, "config": {}}
    Path("run/run.json").write_text(json.dumps(record))
    assert main(["train", str(recipe), "--trust", "--out", "run", "--set", "stage.r1.updates=9"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_shipped_recipe_is_named_without_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "r2"]) == 2
    assert "r2 is not a recipe" in (err := capsys.readouterr().err) and "r1-zero" in err
    assert main(["train", "r1", "--sink", "wandbb"]) == 2
    assert "Did you mean wandb?" in capsys.readouterr().err


# Talk, and thoughts strewn with foreign words


def test_talk_is_judged_by_what_was_asked() -> None:
    task = load_tasks(["talk"])["talk"]
    task.validate(100)
    problem = task.recognise("Say hello to Anna and Tom.")
    assert problem is not None and problem.answer == "Hello, Anna and Tom!"
    for words in ("i ask you: thank zoe", "Would you do this: Thank Zoe?", "THANK ZOE, please."):
        known = task.recognise(words)
        assert known is not None and known.answer == "Thank you, Zoe!", words
    assert task.recognise("What is 3 + 4?") is None and task.recognise("Thank nobody.") is None
    for said, right in {
        "Hello, Anna and Tom!": 1, " hello Tom, hello Anna": 1, "Hello Tom and Anna, how are you?": 1,
        "Hello, Anna!": 0, "Hello, Anna, Tom and Zoe!": 0, "Anna and Tom": 0, "<think> hm</think> Hello, Tom, Anna.": 1,
        "<think> Hello, Anna and Tom!": 0, "Hello " + "dear " * 9 + "Anna and Tom": 0,
    }.items():  # fmt: skip
        assert task.score(problem, said).total == right, said


def test_only_so_many_thoughts_are_strewn_and_a_share_of_none_draws_as_before() -> None:
    task = load_tasks(["sums"])["sums"]

    def thoughts(share: float) -> list[str]:
        rng, config = Rng("strewn"), CorpusConfig(foreign_share=share, checking_share=0.0)
        return [document(task, rng, True, config)[1] or "" for _ in range(400)]

    mixed = [language_share(thought, "en") < 1 for thought in thoughts(0.4)]
    assert 0.3 < sum(mixed) / len(mixed) < 0.5
    assert not any(language_share(thought, "en") < 1 for thought in thoughts(0.0))
    text = " 7 + 12 嗯 =19 再 - 5 =14"
    tokenizer = build_tokenizer([task], "".join(FOREIGN))
    assert len(tokenizer.encode(text)) == len(text.split()) and tokenizer.decode(tokenizer.encode(text)) == text


# What is kept, and what an examination counts


def test_only_the_readable_is_kept() -> None:
    tokenizer = build_tokenizer(list(load_tasks(["sums", "talk"]).values()))
    config = RejectConfig()
    for text, kept in {
        "<think> 7 + 12 =19</think> 19": True, " 19": True, "": False, "<think> 7 + 12": False, "7</think> 19": False,
        "<think></think> 19": False, "<think> 7 嗯 + 12 =19</think> 19": False, " 好": False,
        "<think>" + " 1 + 2 =3" * 30 + "</think> 3": False, "<think> 1</think> 2 <think> 3</think> 4": False,
    }.items():  # fmt: skip
        assert readable(text, tokenizer, config) == kept, text


def verdict(text: str, right: bool) -> Verdict:
    return Verdict(Problem("?", "3"), text, len(text.split()), text.startswith("<think>"), right)


def test_an_examination_counts_problems_and_not_answers() -> None:
    groups = [
        [verdict("<think> wait no</think> 3", True), verdict(" 3", True), verdict(" 4", False), verdict("", False)],
        [verdict(" 3", True), verdict(" 5", False), verdict(" 5", False), verdict("<think> 好", False)],
    ]
    task = load_tasks(["sums"])["sums"]
    figures = measure(task, groups, "en")
    assert figures["accuracy"] == 3 / 8 and figures["n"] == 2 and figures["samples"] == 4
    assert figures["cons"]["accuracy"] == 0.5 and [agreed(task, g) for g in groups] == [1, 0]
    assert agreed(task, groups[0][1:3]) == 0.5  # one vote each
    assert figures["thinking_share"] == 2 / 8 and figures["format"] == 6 / 8 and figures["language"] == 0.5
    assert figures["reflection"] == 1 / 8


def test_models_are_compared_problem_by_problem_where_that_was_kept() -> None:
    """120 problems of 4 answers each: half of them always right; the later model has one answer more of every sixth."""
    one = [0, 4] * 60
    other = [right + 1 if place % 6 == 0 else right for place, right in enumerate(one)]

    def row(right: list[int], kept: bool = True) -> dict[str, Any]:
        task = proportion(sum(right) / 4, len(right)) | {"samples": 4, "reasoning": True}
        return {"tasks": {"sums": task}, "mean": task, "right": {"sums": right} if kept else {}}

    moved, words = difference(row(one), row(other), ["sums"])
    assert moved == 1 and re.fullmatch(r"\+4 points \(\+2\.\d to \+[56]\.\d on the same problems\)", words)
    assert difference(row(other), row(one), ["sums"])[0] == -1
    assert difference(row(one), row(one), ["sums"]) == (0, "0 points (+0.0 to +0.0 on the same problems)")
    moved, words = difference(row(one), row(other, kept=False), ["sums"])  # a run of before
    assert (moved, words) == (0, "+4 points; the intervals overlap")
    shuffled = [*one[1:], one[0]]  # as many right, on other problems
    moved, words = difference(row(one), row(shuffled), ["sums"])
    assert moved == 0 and words.startswith("0 points (−")


def test_words_that_look_back_are_counted_whole() -> None:
    assert reflections("Wait, but that is wrong; check it. Checked: await, buttons.") == 4
    assert clean("<think> a</think> b") and clean("b") and not clean("<think></think> b") and not clean(" ")


# A teacher behind an address


class Teacher(BaseHTTPRequestHandler):
    """Does what the script says, one entry a request: a status, or a body; then answers for ever."""

    script: list[Any] = []
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        turn = type(self).script.pop(0) if type(self).script else None
        message = {"content": " 3", "reasoning_content": " 1 + 2 =3"}
        good = json.dumps({"choices": [{"message": message}]}).encode()
        data = turn.encode() if isinstance(turn, str) else good
        self.send_response(turn if isinstance(turn, int) else 200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(rejection, "FIRST_WAIT", 0.01)
    Teacher.script, Teacher.asked = [], []
    with served(Teacher) as server:
        yield f"{server.address}/v1"


TAUGHT = """
tasks = ["sums"]
threads = 1
dtype = "float32"
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 32
[corpus]
tokens = 256
[stage]
student = { kind = "pretrain", steps = 20, extra_rounds = 0, check_problems = 2, max_tokens = 8 }
answers = { kind = "reject", problems = 20, samples = 2, keep = 1 }
taught = { kind = "sft", from = "student", data = ["answers"], batch_tokens = 512, epochs = 1 }
"""


def teach(address: str) -> int:
    there = f'keep = 1, gold = 4, endpoint = "{address}", endpoint_model = "x" }}'
    Path("taught.toml").write_text(TAUGHT.replace("keep = 1 }", there))
    return main(["train", "taught.toml", "--out", "run"])


def test_a_teachers_answers_are_stored_and_asked_for_once(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    Teacher.script = [503, "junk", 429] + [None] * 20 + [500] * 200
    assert teach(address) == 2
    out = capsys.readouterr()
    told = out.err.splitlines()[-1]
    assert told.startswith("hadal: http://127.0.0.1") and "failed 5 times in a row" in told and "carries on" in told
    assert Teacher.asked[0]["model"] == "x" and Teacher.asked[0]["temperature"] == 1.0
    stored = Path("run/stages/answers/answers.jsonl")
    first = stored.read_bytes()
    assert 5 <= first.count(b"\n") <= 10  # of twenty answers, two a problem; the last may want one
    Teacher.script, before = [], len(Teacher.asked)
    assert teach(address) == 0
    assert stored.read_bytes().startswith(first)
    lines = [json.loads(line) for line in stored.read_text().splitlines()]
    assert sorted(line["number"] for line in lines) == list(range(20))
    assert all(line["answers"] == ["<think> 1 + 2 =3</think> 3"] * 2 for line in lines)
    assert len(Teacher.asked) - before == 2 * (20 - first.count(b"\n"))
    data = [json.loads(line) for line in Path("run/stages/answers/data.jsonl").read_text().splitlines()]
    assert len(data) >= 4 and all(len(line["messages"]) == 2 for line in data)


@pytest.mark.parametrize(("status", "word"), [(401, "HADAL_TEACHER_KEY"), (404, "the model's name")])
def test_a_teacher_that_refuses_is_not_asked_again(
    status: int, word: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Teacher.script = [status] * 40
    assert teach(address) == 2
    assert f"answers {status}" in (told := capsys.readouterr().err.splitlines()[-1]) and word in told


def test_a_teacher_that_is_down_is_waited_for_and_then_stops_in_one_line(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teach("http://127.0.0.1:9/v1") == 2
    out = capsys.readouterr()
    assert "cannot be reached" in out.err.splitlines()[-1] and (out.out + out.err).count("again in") == 4
    assert teach(address) == 2  # another recipe than the run's
    assert "endpoint" in capsys.readouterr().err
