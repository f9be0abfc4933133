"""Rejection sampling: a teacher's answers, of which the right and readable ones become conversations to learn from.

The teacher is a stage's model, or one behind an address. Every answer is stored as it comes, so a stage that is
stopped asks for nothing twice. Worked thoughts of the tasks and conversations without a thought can be mixed in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hadal.engine.remote import RemoteRollout
from hadal.files import JsonLines, write_text
from hadal.recipe.kinds import RejectConfig
from hadal.recipe.run import Run
from hadal.recipe.stages.sft import DATA
from hadal.rewards.format import format_reward
from hadal.rewards.language import language_share
from hadal.rewards.repetition import repetition_penalty
from hadal.rng import Rng
from hadal.rollout import Query, SamplingParams, sample_all
from hadal.tasks import Problem, Task
from hadal.text.parse import parse_response
from hadal.text.tokenizer import END_THINK, THINK, Tokenizer

ANSWERS = "answers.jsonl"
"""A line for each problem: its number, the problem and all that was answered, kept and not."""
TOGETHER = 64
"""Problems that a model is asked at once, and that a kill costs at most."""
NGRAM = 8
TEACHER_KEY = "HADAL_TEACHER_KEY"
"""The environment variable that holds the key of a teacher behind an address, where it asks for one."""
ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds before such a teacher is asked a second time; twice as long before each further one


def reject(run: Run, stage: str, source: str, config: RejectConfig) -> None:
    """Sample, keep what is right and readable, mix; leaves the answers and `data.jsonl`."""
    run.metrics.truncate_after(-1, stage)
    stored = JsonLines(run.stage_folder(stage) / ANSWERS)
    problems = list(draw(run, stage, config))
    answers: dict[int, list[str]] = {line["number"]: line["answers"] for line in stored.read()}
    run.view.stage(stage, max(1, len(problems)), f"{len(problems)} problems, {config.samples} answers each")
    missing = {number: problem for number, problem in enumerate(problems) if number not in answers}
    ask = _ask_endpoint if config.endpoint else _ask_model
    for number, answer in ask(run, stage, source, config, missing):
        problem, answers[number] = problems[number], answer
        stored.append({"number": number, "task": problem.meta["task"], "prompt": problem.prompt, "answers": answer})
        if len(answers) % TOGETHER == 0 or len(answers) == len(problems):
            run.enter_books(stage)
            run.view.step(stage, len(answers), {"cost_usd": run.cost_so_far()})
    kept, fell = select(run, config, problems, [answers[number] for number in range(len(problems))])
    worked, talks = list(gold(run, stage, config)), list(plain(run, stage, config))
    lines = [
        json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
        for asked, said in [*kept, *worked, *talks]
    ]
    write_text(run.stage_folder(stage) / DATA, "".join(f"{line}\n" for line in lines))
    given = sum(map(len, answers.values()))
    counts = {"answers": given, "kept": len(kept), **fell, "gold": len(worked), "plain": len(talks)}
    run.metrics.append({"stage": stage, "step": len(problems), **counts})
    run.view.note(f"{stage}: of {given:,} answers {len(kept):,} are kept; {len(lines):,} conversations.")
    run.finish(stage, counts)


def draw(run: Run, stage: str, config: RejectConfig) -> Iterator[Problem]:
    """The problems that are asked: tasks in turn, all levels alike."""
    rng, names = Rng("reject", run.seed_of(stage)), list(run.tasks)
    for i in range(config.problems):
        task = run.tasks[names[i % len(names)]]
        top = min(task.difficulties.stop - 1, task.gold_limit + config.levels_past_gold)
        level = rng.between(task.difficulties.start, max(task.difficulties.start, top))
        yield task.for_reward(task.generate(rng.bits(), "train", level))


def _ask_model(
    run: Run, stage: str, source: str, config: RejectConfig, problems: Mapping[int, Problem]
) -> Iterator[tuple[int, list[str]]]:
    """Numbers of the given problems with their answers, in order. A problem has a seed of its own, so that it matters
    nowhere with which others it is asked."""
    if not problems:
        return
    llm = run.engine(run.load(source, run.dtype).eval())
    thinking = True if config.thinking and THINK in llm.tokenizer.controls else None
    if config.thinking and not thinking:
        run.view.note(f"{stage}: the tokenizer has no token that opens a thought, so the model chooses.")
    params = SamplingParams(config.temperature, config.top_p, config.max_tokens, thinking=thinking, n=config.samples)
    numbers = list(problems)
    for at in range(0, len(numbers), TOGETHER):
        part = numbers[at : at + TOGETHER]
        queries = [
            Query([{"role": "user", "content": problems[i].prompt}], replace(params, seed=_seed(run, stage, i)))
            for i in part
        ]
        for number, samples in zip(part, sample_all(llm, queries), strict=True):
            yield number, [sample.response for sample in samples if not sample.refused]


def _ask_endpoint(
    run: Run, stage: str, source: str, config: RejectConfig, problems: Mapping[int, Problem]
) -> Iterator[tuple[int, list[str]]]:
    """The same of a server, each problem as soon as it has all of its answers. UserError where the server stays down,
    refuses, or talks nonsense."""
    params = SamplingParams(config.temperature, config.top_p, config.max_tokens, n=config.samples)
    teacher = RemoteRollout(
        config.endpoint, config.endpoint_model, TEACHER_KEY, attempts=ATTEMPTS, first_wait=FIRST_WAIT, patient=True,
        note=run.view.note,
    )  # fmt: skip
    numbers = list(problems)
    queries = (
        Query([{"role": "user", "content": problem.prompt}], replace(params, seed=_seed(run, stage, number)))
        for number, problem in problems.items()
    )  # fmt: skip
    found: dict[int, dict[int, str]] = {}
    for at, index, sample in teacher.sample(queries):
        texts = found.setdefault(at, {})
        texts[index] = sample.response
        if len(texts) == config.samples:
            yield numbers[at], [texts[i] for i in range(config.samples)]
            del found[at]


def _seed(run: Run, stage: str, number: int) -> int:
    return (run.seed_of(stage) + number) % (1 << 63)


def readable(text: str, tokenizer: Tokenizer, config: RejectConfig) -> bool:
    """A thought and an answer, each closed, or an answer alone; in one language; without going round in circles."""
    parsed = parse_response(text)
    if THINK in text or END_THINK in text:
        if not format_reward(text) or language_share(parsed.thought or "", config.language) < config.least_language:
            return False
    elif not text.strip() or language_share(text, config.language) < config.least_language:
        return False
    ids = tokenizer.encode(parsed.thought or text)
    return -repetition_penalty(ids, NGRAM) <= config.most_repetition


def select(
    run: Run, config: RejectConfig, problems: Sequence[Problem], answers: Sequence[Sequence[str]]
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(question, answer) of what is kept, and how many answers fell for which reason."""
    kept: list[tuple[str, str]] = []
    fell: Counter[str] = Counter({"wrong": 0, "unreadable": 0, "twice": 0})
    seen: set[tuple[str, str]] = set()
    for problem, texts in zip(problems, answers, strict=True):
        task, left = run.tasks[problem.meta["task"]], config.keep
        for text in texts:
            mark = (" ".join(problem.prompt.split()), " ".join(text.split()))
            if not task.score(problem, text).right:
                fell["wrong"] += 1
            elif not readable(text, run.tokenizer, config):
                fell["unreadable"] += 1
            elif mark in seen:
                fell["twice"] += 1
            elif left:
                seen.add(mark)
                kept.append((problem.prompt, text))
                left -= 1
    return kept, dict(fell)


def gold(run: Run, stage: str, config: RejectConfig) -> Iterator[tuple[str, str]]:
    """Worked thoughts of the easier half of each task's levels."""
    rng, tasks = Rng("gold", run.seed_of(stage)), list(run.tasks.values())
    given = 0
    for i in range(100 * config.gold):
        task = tasks[i % len(tasks)]
        last = max(task.difficulties.start, (task.difficulties.start + task.gold_limit) // 2)
        problem = task.generate(rng.bits(), "train", rng.between(task.difficulties.start, last))
        if problem.thought and given < config.gold:
            given += 1
            yield problem.prompt, f"{THINK}{problem.thought}{END_THINK} {problem.answer}"


def plain(run: Run, stage: str, config: RejectConfig) -> Iterator[tuple[str, str]]:
    """Conversations without a thought."""
    rng, tasks = Rng("plain", run.seed_of(stage)), run.named(config.plain_tasks) if config.plain else []
    for i in range(config.plain):
        task: Task = tasks[i % len(tasks)]
        problem = task.generate(rng.bits(), "train", rng.choice(task.difficulties))
        yield problem.prompt, f" {problem.answer}"
