"""`hadal eval`: its statistics against counting everything, its folder against kills, and its lines for bad input."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_rl import grown

from hadal.checkpoints.save import save_model
from hadal.cli import main
from hadal.errors import UserError
from hadal.evaluate import statistics
from hadal.evaluate.fewshot import FewShot
from hadal.evaluate.results import figures_of, results
from hadal.evaluate.run import Subject, evaluate
from hadal.evaluate.samples import Progress, Settings, choose_problems, read_evaluation
from hadal.evaluate.statistics import compare, consensus, intervals, pass_at_k, sign_flip
from hadal.files import append_line
from hadal.rollout import Query, SamplingParams
from hadal.tasks import Problem, load_tasks
from hadal.tasks.choice import GPQA
from hadal.tasks.code import MBPP
from hadal.terminal.evaluation import Meter

# ------------------------------------------------------------------------------------- statistics


def test_pass_at_k_is_what_counting_all_draws_gives() -> None:
    for n, right in itertools.product(range(1, 9), range(9)):
        if right > n:
            continue
        samples = [i < right for i in range(n)]
        for k in range(1, n + 1):
            draws = list(itertools.combinations(samples, k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def votes(right: int, wrong: list[int], unanswered: int) -> list[float]:
    """cons@k by counting every subset, and every way to decide a tie."""
    given: list[str | None] = ["right"] * right + [None] * unanswered
    given += [f"wrong {i}" for i, size in enumerate(wrong) for _ in range(size)]
    chances = []
    for k in range(1, len(given) + 1):
        draws = list(itertools.combinations(given, k))
        won = 0.0
        for draw in draws:
            counts = Counter(vote for vote in draw if vote is not None)
            first = [vote for vote in counts if counts[vote] == max(counts.values())]
            won += first.count("right") / len(first) if first else 0
        chances.append(won / len(draws))
    return chances


@pytest.mark.parametrize(
    ("right", "wrong", "unanswered"),
    [
        (1, [], 0), (0, [2, 1], 0), (0, [], 3), (2, [2], 0), (2, [1, 1], 1), (1, [1, 1, 1, 1], 2), (3, [4, 2], 0),
        (4, [3, 3], 1), (2, [3, 1, 1], 3), (5, [], 4), (3, [3, 3, 1], 0), (1, [5, 2], 1),
    ],
)  # fmt: skip
def test_cons_at_k_is_what_counting_all_draws_gives(right: int, wrong: list[int], unanswered: int) -> None:
    assert consensus(right, wrong, unanswered) == pytest.approx(votes(right, wrong, unanswered))


def test_figures_of_a_problem() -> None:
    def sample(right: bool, vote: str, tokens: int | None = 10, truncated: bool = False) -> dict[str, object]:
        return {"right": right, "vote": vote, "tokens": tokens, "truncated": truncated, "thinks": True, "format": right}

    found = figures_of([sample(True, "7"), sample(True, "07"), sample(False, "8"), sample(False, "", 30, True)])
    assert found == {
        "pass@1": 0.5, "pass@2": 1 - 1 / 6, "pass@4": 1.0, "cons@2": pytest.approx(votes(2, [1], 1)[1]),
        "cons@4": 1.0, "tokens": 15, "truncated": 0.25, "thinks": 1.0, "format": 0.5, "unanswered": 0.25, "tied": 0.0,
    }  # fmt: skip
    tied = figures_of([sample(True, "7"), sample(False, "8")])
    assert tied["tied"] == 1 and tied["cons@2"] == 0.5
    nobody = figures_of([sample(False, ""), sample(False, "", None)])
    assert nobody["tied"] == 0 and nobody["cons@2"] == 0 and nobody["unanswered"] == 1 and "tokens" not in nobody


def coverage(problems: int, mean: float, samples: int, rounds: int) -> float:
    """How often the interval holds the truth, where problems differ: each has a chance of its own (beta)."""
    rng = np.random.default_rng(problems)
    held = 0
    for number in range(rounds):
        chances = rng.beta(1.5 * mean, 1.5 * (1 - mean), problems)
        values = rng.binomial(samples, chances)[:, None] / samples
        (found,) = intervals([values], [True], number)
        held += found["low"] <= mean <= found["high"]
    return held / rounds


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 2000)
    for problems, mean in ((40, 0.5), (100, 0.2)):
        assert 0.90 <= coverage(problems, mean, 4, 150) <= 0.99  # 150 rounds: two standard errors are 3.6%


@pytest.mark.long
def test_intervals_hold_the_truth_over_sizes_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 2000)
    for problems, mean, samples in itertools.product((20, 50, 200), (0.05, 0.3, 0.5, 0.9), (1, 8)):
        few = problems * min(mean, 1 - mean) < 5  # so few problems are right, or wrong, that their spread is a guess
        held = coverage(problems, mean, samples, 500)
        assert 0.87 <= held <= 1.0 if few else 0.92 <= held <= 0.99, (problems, mean, samples, held)


def test_samples_of_a_problem_are_no_independent_witnesses() -> None:
    """64 samples that all agree are worth one: the interval is as wide as with one sample."""
    rng = np.random.default_rng(1)
    one = rng.binomial(1, 0.5, 60)[:, None].astype(float)
    (found,) = intervals([one], [True])
    width = found["high"] - found["low"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 60), rel=0.1)


def test_where_all_agree_the_interval_is_not_empty() -> None:
    (found,) = intervals([np.ones((30, 1))], [True])
    assert found["value"] == found["high"] == 1 and 0.85 < found["low"] < 0.9  # Wilson: 1 / (1 + z^2 / 30) = .886


def test_the_mean_gives_each_task_the_same_weight() -> None:
    rng = np.random.default_rng(2)
    groups = [rng.binomial(1, p, (n, 1)).astype(float) for p, n in ((0.9, 400), (0.1, 50))]
    (found,) = intervals(groups)
    assert found["value"] == pytest.approx((groups[0].mean() + groups[1].mean()) / 2)
    error = np.sqrt(sum(values.var() / len(values) for values in groups)) / 2
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_the_permutation_test_is_what_trying_all_signs_gives() -> None:
    rng = np.random.default_rng(3)
    for n in (1, 2, 5, 10):
        differences = rng.normal(0.4, 1, n).round(1)
        moved = differences[differences != 0]
        sums = [abs(sum(s * d for s, d in zip(signs, moved, strict=True))) for signs in
                itertools.product((1, -1), repeat=len(moved))]  # fmt: skip
        expected = sum(total >= abs(moved.sum()) - 1e-9 for total in sums) / len(sums)
        assert sign_flip(differences) == pytest.approx(expected)
    assert sign_flip(np.zeros(5)) == 1.0
    many = rng.normal(0.08, 1, 400)
    z = abs(many.sum()) / math.sqrt((many**2).sum())  # with so many signs their sum is normal
    assert sign_flip(many) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)


def test_a_paired_comparison_sees_what_two_intervals_cannot() -> None:
    rng = np.random.default_rng(4)
    hard = rng.uniform(0, 0.8, 150)
    before, after = hard + rng.normal(0, 0.02, 150), hard + 0.05 + rng.normal(0, 0.02, 150)
    one, other = (intervals([side[:, None]])[0] for side in (before, after))
    assert one["high"] > other["low"]
    (found,) = compare([(after - before)[:, None]])
    assert 0.035 < found["low"] < found["high"] < 0.065 and found["p"] < 1e-4


# ------------------------------------------------------------------------------------- problems and prompts

GSM = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(30)]


def write_gsm(folder: Path) -> str:
    folder.mkdir()
    for side, rows in {"train": GSM[:10], "test": GSM[10:]}.items():
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"gsm8k:{folder}"


def test_problems_are_different_and_held_out(tmp_path: Path) -> None:
    (gsm,) = load_tasks([write_gsm(tmp_path / "gsm")]).values()
    assert len(choose_problems(gsm, Settings())) == 20  # all there are
    assert choose_problems(gsm, Settings(problems=5)) == choose_problems(gsm, Settings())[:5]
    (sums,) = load_tasks(["sums"]).values()
    problems = choose_problems(sums, Settings(difficulty="hardest"))
    assert len({p.meta["key"] for p in problems}) == 200 and {p.meta["difficulty"] for p in problems} == {16}
    assert all(sums.side(p.meta["key"]) == "held_out" for p in problems)
    with pytest.raises(UserError, match="range is 2 to 16"):
        choose_problems(sums, Settings(difficulty=17))


def test_worked_examples_are_training_problems_and_what_follows_is_read(tmp_path: Path) -> None:
    (gsm,) = load_tasks([write_gsm(tmp_path / "gsm")]).values()
    problem = choose_problems(gsm, Settings())[0]
    shots = FewShot(gsm, 3, 1, None)
    prompt = shots.prompt(problem)
    assert prompt.count("Question:") == 4 and prompt.count("\nAnswer: ") == 3 and prompt.endswith("\nThought:")
    assert not any(row["question"] in prompt.split(problem.prompt)[0] for row in GSM[10:])
    text = shots.response(f" Twice.\nAnswer: {problem.answer}\n\nQuestion: What is 3?")
    assert text == f"<think> Twice.</think>{problem.answer}" and gsm.score(problem, text).total == 1
    assert gsm.score(problem, shots.response(f" It is {problem.answer}")).total == 0  # it came to no answer
    direct = FewShot(gsm, 2, 1, thinking=False)
    assert "Thought:" not in direct.prompt(problem) and direct.prompt(problem).endswith("\nAnswer:")
    assert direct.response(" 7 \n\nQuestion:") == "7"
    with pytest.raises(UserError, match="has 10 training problems"):
        FewShot(gsm, 11, 1, None)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("sums", "7", "+7."), ("sort", "So 7", "so  7."), ("units", "6 ft 1 in", "73 in"),
        ("dates", "7 March 2051", "2051-03-07"), ("knights", "Ben and Anna", "anna, ben"),
        ("knights", "none", "Nobody"),
    ],
)  # fmt: skip
def test_votes_are_counted_by_meaning(name: str, one: str, other: str) -> None:
    (task,) = load_tasks([name]).values()
    problem = task.generate(0, "train", task.default_difficulty)
    if name == "units":
        problem.meta["fields"] |= {"big": "ft", "small": "in"}
    assert task.canonical(problem, one) == task.canonical(problem, other) != task.canonical(problem, "8 things")


def test_votes_on_maths_and_choices_and_code(tmp_path: Path) -> None:
    (gsm,) = load_tasks([write_gsm(tmp_path / "gsm")]).values()
    problem = choose_problems(gsm, Settings())[0]
    forms = ["So it is 1,234.00", "\\boxed{1234}", "#### 1234", "The answer is $1{,}234$."]
    assert {gsm.canonical(problem, form) for form in forms} == {"1234"}
    assert gsm.canonical(problem, "\\boxed{3/4}") == gsm.canonical(problem, "0.75") != gsm.canonical(problem, "")
    (tmp_path / "a.jsonl").write_text('{"question": "?", "choices": ["red", "blue"], "answer": "red"}\n')
    gpqa = GPQA(tmp_path / "a.jsonl")
    (choice,) = gpqa.problems("held_out")
    right, wrong = (next(k for k, v in choice.meta["options"].items() if v == word) for word in ("red", "blue"))
    assert gpqa.canonical(choice, "The answer is blue.") == gpqa.canonical(choice, f"**Answer: ({wrong})**") == wrong
    assert gpqa.canonical(choice, "either") == "" and gpqa.canonical(choice, right) == right
    codes = ["python\nx = 1  # one", "\n\nx  =  1", "python\nx = 2", "\nx = = 1"]
    task = Problem("Set x.", "", {"tests": "assert x == 1"})
    one, same, other, broken = (MBPP().canonical(task, f"So:\n```{code}\n```\nDone.") for code in codes)
    assert one == same and len({one, other, broken, ""}) == 4 and MBPP().canonical(task, "no idea") == ""


# ------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model's checkpoint; what it answers is noise, and the same noise each time."""
    folder = tmp_path_factory.mktemp("model")
    llm = grown()[0]
    save_model(folder, llm.model.config, llm.model.state_dict())
    llm.tokenizer.save(folder)
    return str(folder)


@pytest.fixture
def task(tmp_path: Path) -> str:
    """One that noise is right on now and then."""
    file = tmp_path / "letter.py"
    file.write_text(
        "from hadal.tasks import Problem\n"
        "difficulties = range(1, 4)\n"
        "def generate(rng, difficulty):\n"
        "    a, b = rng.sample('bcfgjklpqrstuvwxyz', 2)\n"
        "    return Problem(f'Say {a} or {b}, number {rng.below(1000)}', f'{a}{b}', {'letters': [a, b]})\n"
        "def score(problem, answer):\n"
        "    if answer == 'hang': return [0 for _ in iter(int, 1)]\n"
        "    return bool(set(answer) & set(problem.meta['letters'])) and problem.answer[0] in problem.prompt\n"
    )
    return str(file)


def run(*words: object) -> int:
    return main(["eval", *map(str, words)])


SMALL = ("--problems", 12, "--samples", 3, "--max-tokens", 6, "--dtype", "float32")


def test_a_model_is_measured_and_compared(
    model: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(model, "--tasks", f"{task},letters", *SMALL, "--out", out, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == json.loads((out / "results.json").read_text())
    assert "72 of 72 samples" in captured.err
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len({(s["problem"], s["sample"]) for s in samples}) == 72
    right = [s["right"] for s in samples if s["task"] == "letter"]
    figures = found["tasks"]["letter"]["figures"]
    assert figures["pass@1"]["value"] == pytest.approx(sum(right) / 36) and 0 < sum(right) < 36
    assert figures["pass@1"]["low"] < figures["pass@1"]["value"] < figures["pass@1"]["high"]
    assert found["tasks"]["letter"]["problems"] == 12 and found["model"]["name"] == model
    assert "| letter | 2 | 12 |" in (out / "results.md").read_text()
    page = (out / "results.html").read_text()
    assert page.count("<svg") == 5 and "<script" not in page and "http" not in page.replace("http-equiv", "")

    # Another setting has a folder of its own, and is compared on the same problems.
    warm = tmp_path / "warm"
    assert run(model, "--tasks", task, *SMALL, "--temperature", 2, "--out", warm, "--against", out) == 0
    assert "letter  12" in capsys.readouterr().out
    other = json.loads((warm / "results.json").read_text())["against"]
    assert other["settings_that_differ"]["temperature"] == [2.0, 0.6]
    entry = other["tasks"]["letter"]["figures"]["pass@1"]
    assert entry["other"] == figures["pass@1"]["value"] and entry["difference"] == entry["value"] - entry["other"]
    # Asked again with OTHER as a model: it is evaluated beside, and is the same as itself.
    assert run(model, "--tasks", task, *SMALL, "--out", tmp_path / "self", "--against", model) == 0
    entry = json.loads((tmp_path / "self" / "results.json").read_text())["against"]["mean"]["pass@1"]
    assert entry["difference"] == 0 and entry["p"] == 1
    capsys.readouterr()
    assert run(out, "--failures") == 0
    shown = capsys.readouterr().out
    wrong = {s["problem"] for s in samples if not s["right"]}
    assert shown.count("\nquestion  ") == len(wrong) and f"{len(wrong)} of 24 problems" in shown


def test_marks_are_averaged_and_broken_scorers_are_counted(
    model: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise is half right by its length; on some lengths the scorer raises, or returns what is no score."""
    text = Path(task).read_text().split("def score")[0]
    Path(task).write_text(
        text + "def score(problem, answer):\n"
        "    marks = {8: 1, 9: float('nan'), 10: None, 11: '1', 12: 0.5, 13: 0.5, 14: 0.5}\n"
        "    return answer == problem.answer or marks.get(len(answer), 0) / (len(answer) != 15)\n"
    )
    out = tmp_path / "out"
    assert run(model, "--tasks", f"{task},letters", *SMALL, "--out", out) == 0
    shown = capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    own = [s for s in samples if s["task"] == "letter"]
    broke = [s for s in own if s["broke"]]
    assert 0 < len(broke) < 36 and all("the scorer broke off" in s["note"] and not s["right"] for s in broke)
    assert {s["score"] for s in own} >= {0, 0.5} and all(s["right"] == (s["score"] == 1) for s in own)
    figures = found["tasks"]["letter"]["figures"]
    mean = sum(s["score"] for s in own) / 36
    assert figures["score"]["value"] == pytest.approx(mean) and mean > figures["pass@1"]["value"]
    assert found["tasks"]["letter"]["scorer_broke"] == len(broke) and found["tasks"]["letters"]["scorer_broke"] == 0
    sentence = f"The scorer of letter failed on {len(broke)} of 36 answers"
    for place in (shown, (out / "results.md").read_text(), (out / "results.html").read_text()):
        assert sentence in place and "score" in place and "of letters failed" not in place

    # A folder from before there were marks still gives its figures.
    lines = [{k: v for k, v in s.items() if k not in ("score", "broke")} for s in samples]
    (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    older = results(read_evaluation(out))
    assert older["tasks"]["letter"]["figures"]["pass@1"] == figures["pass@1"] and "score" not in older["mean"]


KILLER = """
import os, signal, sys, time
import hadal.evaluate.run
from hadal.cli import main
words, samples, before = sys.argv[3:], os.path.join(sys.argv[-1], "samples.jsonl"), 0
for more in map(int, sys.argv[1:3]):  # bytes of samples, at which it is killed
    child = os.fork()
    if child == 0:
        main(words)
        os._exit(0)
    size = 0
    while size < before + more and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.001)
        size = os.path.getsize(samples) if os.path.exists(samples) else 0
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = os.path.getsize(samples)
    print(before)
"""


def test_a_base_model_is_shown_worked_examples(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    name = write_gsm(tmp_path / "gsm")
    assert run(model, "--tasks", name, "--shots", 2, "--samples", 1, "--max-tokens", 8, "--out", out) == 0
    evaluation = read_evaluation(out)
    assert len(evaluation.samples) == 20 and all(s["text"].startswith("<think>") for s in evaluation.samples)
    assert sum(s["truncated"] for s in evaluation.samples) > 10  # noise seldom comes to an end in 8 tokens


def test_progress_says_how_fast_it_is_and_what_is_left() -> None:
    stream = io.StringIO()
    meter = Meter(stream)
    meter("runs/a\x1b[2J", Progress(20, 800, 0, 0))
    assert stream.getvalue() == "runs/a: 20 of 800 samples\n"
    line = meter.line(Progress(120, 800, 100, 2500), 10.0)
    assert line == "runs/a: 120 of 800 samples, 10/s, 250 tokens/s, 1:08 left"


def test_what_was_killed_carries_on_and_ends_the_same(model: str, task: str, tmp_path: Path) -> None:
    words = [model, "--tasks", f"{task},letters", "--problems", "24", "--samples", "3", "--max-tokens", "40",
             "--dtype", "float32", "--out"]  # fmt: skip
    assert run(*words, tmp_path / "whole") == 0
    expected = (tmp_path / "whole" / "results.json").read_bytes()
    killed = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLER, "1", "2000", "eval", *words, str(killed)],
                          env=environment, capture_output=True, text=True, check=True)  # fmt: skip
    sizes = [int(size) for size in done.stdout.split()]
    assert 0 < sizes[0] < sizes[1] < (tmp_path / "whole" / "samples.jsonl").stat().st_size
    with (killed / "samples.jsonl").open("r+b") as file:
        file.truncate(sizes[1] - 7)  # a power cut tears the last line
    with pytest.raises(UserError, match="lacks"):
        results(read_evaluation(killed))
    assert run(*words, killed) == 0
    assert (killed / "results.json").read_bytes() == expected
    lines = [sorted((f / "samples.jsonl").read_text().splitlines()) for f in (killed, tmp_path / "whole")]
    assert lines[0] == lines[1]


def test_an_answer_that_the_context_ends_is_told_before(tmp_path: Path) -> None:
    llm, told = grown()[0], []
    asked = Subject("small", {"kind": "weights", "name": "small"}, lambda say: llm)
    settings = Settings(samples=1, problems=1, max_tokens=llm.engine.context + 1)
    evaluate(asked, ["letters"], settings, tmp_path / "out", say=told.append)
    assert told == [f"The model reads {llm.engine.context:,} tokens, question and answer: "
                    f"an answer of {llm.engine.context + 1:,} ends there."]  # fmt: skip


def test_a_disk_that_is_full_holds_whole_lines(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "samples.jsonl").open("ab", buffering=0) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a write beyond is cut short, and the next fails
        try:
            with pytest.raises(OSError):
                for number in range(100):
                    append_line(file, {"problem": number, "text": "x" * 30})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        append_line(file, {"problem": 7})
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines[:-1]] == list(range(len(lines) - 1)) and lines[-1] == {"problem": 7}


def test_a_question_that_is_too_long_costs_its_own_and_all_of_them_are_an_error() -> None:
    llm = grown()[0]
    params = SamplingParams(max_tokens=4, seed=3, n=3)
    long, short = (Query([{"role": "user", "content": text}], params, [0, 2]) for text in ("e " * 9000, "How many e?"))
    found = {(n, i): reply for n, i, reply in llm.sample([long, short])}
    assert found.keys() == {(n, i) for n in (0, 1) for i in (0, 2)}
    assert found[0, 0].finish_reason == "error" and "tokens" in found[0, 0].error
    # Sample 2 is the same whichever others are wanted.
    (whole,) = llm.generate([llm.tokenizer.chat(short.prompt)], params)  # type: ignore[arg-type]
    assert [found[1, i].text for i in (0, 2)] == [whole.outputs[i].text for i in (0, 2)]
    with pytest.raises(UserError, match="tokens"):
        list(llm.sample([long, long]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MODEL"], "--tasks"),
        (["MODEL", "--tasks", "summs"], "Did you mean sums?"),
        (["nowhere", "--tasks", "sums"], "There is no folder nowhere"),
        (["MODEL/..", "--tasks", "sums"], "holds no weights"),
        (["MODEL", "--tasks", "sums", "--samples", "0"], "at least 1"),
        (["MODEL", "--tasks", "sums", "--top-p", "1.5"], "above 1"),
        (["MODEL", "--tasks", "sums", "--difficulty", "99"], "range is 2 to 16"),
        (["MODEL", "--tasks", "sums", "--difficulty", "hard"], "not a whole number"),
        (["MODEL", "--tasks", "sums", "--model", "x"], "is for servers"),
        (["MODEL", "--tasks", "letters", "--think", "--direct"], "not allowed with"),
        (["MODEL", "--tasks", "gsm8k:nowhere.jsonl"], "nowhere.jsonl"),
        (["MODEL", "--tasks", "letters", "--out", "MODEL"], "holds other files"),
        (["MODEL", "--tasks", "letters", "--dtype", "float32", "--out", "OUT"], "differs in settings samples (3 there"),
        (["MODEL", "--tasks", "sums", "--dtype", "float32", "--out", "OUT"], "differs in tasks letters"),
        (["MODEL", "--tasks", "letters", "--against", "nowhere"], "There is no folder nowhere"),
        (["OUT", "--tasks", "letters"], "is an evaluation"),
        (["OUT", "--against", "MODEL"], "is a model"),
        (["http://127.0.0.1:9/v1", "--tasks", "letters"], "--model NAME"),
        (["http://127.0.0.1:9/v1", "--tasks", "letters", "--model", "x"], "cannot be reached"),
        (["http://", "--tasks", "letters", "--model", "x"], "not the address"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    words: list[str], said: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    if "OUT" in words:
        assert run(model, "--tasks", "letters", *SMALL, "--out", out) == 0
    capsys.readouterr()
    place = {"MODEL": model, "MODEL/..": str(Path(model).parent), "OUT": str(out)}
    assert run(*(place.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hadal: ") and said in error
