"""Rejection sampling: a teacher's answers, of which the right and readable ones become conversations to learn from.

The teacher is a stage's model, or one behind an address. Every answer is stored as it comes, so a stage that is
stopped asks for nothing twice. Worked thoughts of the tasks and conversations without a thought can be mixed in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from hadal import stages
from hadal.cost.memory import Memory
from hadal.engine.remote import RemoteRollout
from hadal.errors import UserError
from hadal.files import JsonLines, write_text
from hadal.rewards.format import format_reward
from hadal.rewards.language import SCRIPTS, language_share
from hadal.rewards.repetition import repetition_penalty
from hadal.rng import Rng
from hadal.rollout import Query, SamplingParams, sample_all
from hadal.stages import Before, Stage
from hadal.stages.common.needs import Needs, Scene
from hadal.stages.common.run import Run
from hadal.stages.sft import DATA
from hadal.tasks import Problem, Task
from hadal.text.parse import parse_response
from hadal.text.tokenizer import END_THINK, THINK, Tokenizer

LEAVES = "data"
ANSWERS = "answers.jsonl"
"""A line for each problem: its number, the problem and all that was answered, kept and not."""
TOGETHER = 64
"""Problems that a model is asked at once, and that a kill costs at most."""
NGRAM = 8
TEACHER_KEY = "HADAL_TEACHER_KEY"
"""The environment variable that holds the key of a teacher behind an address, where it asks for one."""
ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds before such a teacher is asked a second time; twice as long before each further one


@dataclass(frozen=True)
class Config(stages.Config):
    """Rejection sampling: which answers are drawn, and which of them become conversations to learn from."""

    RANGES: ClassVar[dict[str, str]] = {"problems": "[0, 10000000]"}

    tasks: list[str] = field(default_factory=list)
    problems: int = 600
    samples: int = 8
    keep: int = 2
    """Of a problem's right and readable answers, at most so many."""
    levels_past_gold: int = 4
    """Difficulties above the gold limit that problems are drawn from."""
    thinking: bool = True
    """Whether the thought is opened for the model, where its tokenizer has a token for that; else it chooses."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 160
    language: str = "en"
    least_language: float = 1.0
    """The share of a thought's words that must be of the language."""
    most_repetition: float = 0.3
    """The share of eight-token pieces that may have come before."""
    gold: int = 0
    """Worked thoughts of the tasks themselves, of the easier half of their levels."""
    plain: int = 0
    """Conversations without a thought, from `plain_tasks`."""
    plain_tasks: list[str] = field(default_factory=lambda: ["talk"])
    endpoint: str = ""
    """The address of a teacher instead of a stage's model: `https://host/v1`, spoken to as OpenAI's chat API."""
    endpoint_model: str = ""

    @property
    def conversations(self) -> int:
        """How many it may come to leave."""
        return self.problems * self.keep + self.gold + self.plain

    def __post_init__(self) -> None:
        if self.language not in SCRIPTS:
            raise UserError(f"language is {self.language!r}.", f"Known: {', '.join(sorted(SCRIPTS))}.")
        if self.problems and self.keep > self.samples:
            raise UserError(f"keep is {self.keep}, of {self.samples} samples.", "Keep at most as many as are drawn.")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise UserError(f"endpoint is {self.endpoint!r}.", "Give an address such as https://host/v1.")
        if self.endpoint and not self.endpoint_model:
            raise UserError("endpoint is set and endpoint_model is not.", "Name the teacher's model.")
        if not (self.problems or self.gold or self.plain):
            raise UserError("problems, gold and plain are all 0.", "Nothing would be left to learn from.")


def check(stage: Stage, before: Before) -> None:
    """There is one teacher, or none where nothing is asked."""
    config: Config = stage.config
    if stage.source:
        before.need_model(stage.source, f"{stage.where}.from")
    if config.problems and bool(stage.source) == bool(config.endpoint):
        who = "two teachers" if stage.source else "nobody"
        raise UserError(f"{stage.where} samples from {who}.", "Give either from or endpoint.")
    before.need_tasks(config.plain_tasks if config.plain else [], stage.where)


def needs(stage: Stage, scene: Scene) -> Needs:
    """A model that samples; nothing worth telling where the teacher is elsewhere."""
    config: Config = stage.config
    if not stage.source:
        return Needs(Memory({}, {}), 0.0)
    shape = scene.shape_of(stage.source)
    memory = scene.asking_memory(shape, min(TOGETHER, config.problems), config.samples, config.max_tokens)
    responses = config.problems * config.samples
    return Needs(memory, scene.rates.sampling(shape, responses, config.max_tokens, scene.prompt))


def run_stage(run: Run, stage: Stage) -> None:
    """Sample, keep what is right and readable, mix; leaves the answers and `data.jsonl`."""
    config: Config = stage.config
    run.metrics.truncate_after(-1, stage.name)
    stored = JsonLines(run.stage_folder(stage.name) / ANSWERS)
    problems = list(draw(run, stage.name, config))
    answers: dict[int, list[str]] = {line["number"]: line["answers"] for line in stored.read()}
    run.view.stage(stage.name, max(1, len(problems)), f"{len(problems)} problems, {config.samples} answers each")
    missing = {number: problem for number, problem in enumerate(problems) if number not in answers}
    ask = _ask_endpoint if config.endpoint else _ask_model
    for number, answer in ask(run, stage.name, stage.source, config, missing):
        problem, answers[number] = problems[number], answer
        stored.append({"number": number, "task": problem.meta["task"], "prompt": problem.prompt, "answers": answer})
        if len(answers) % TOGETHER == 0 or len(answers) == len(problems):
            run.enter_books(stage.name)
            run.view.step(stage.name, len(answers), {"cost_usd": run.cost_so_far()})
    kept, fell = select(run, config, problems, [answers[number] for number in range(len(problems))])
    worked, talks = list(gold(run, stage.name, config)), list(plain(run, stage.name, config))
    lines = [
        json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
        for asked, said in [*kept, *worked, *talks]
    ]
    write_text(run.stage_folder(stage.name) / DATA, "".join(f"{line}\n" for line in lines))
    given = sum(map(len, answers.values()))
    counts = {"answers": given, "kept": len(kept), **fell, "gold": len(worked), "plain": len(talks)}
    run.metrics.append({"stage": stage.name, "step": len(problems), **counts})
    run.view.note(f"{stage.name}: of {given:,} answers {len(kept):,} are kept; {len(lines):,} conversations.")
    run.finish(stage.name, counts)


def draw(run: Run, stage: str, config: Config) -> Iterator[Problem]:
    """The problems that are asked: tasks in turn, all levels alike."""
    rng, names = Rng("reject", run.seed_of(stage)), list(run.tasks)
    for i in range(config.problems):
        task = run.tasks[names[i % len(names)]]
        top = min(task.difficulties.stop - 1, task.gold_limit + config.levels_past_gold)
        level = rng.between(task.difficulties.start, max(task.difficulties.start, top))
        yield task.for_reward(task.generate(rng.bits(), "train", level))


def _ask_model(
    run: Run, stage: str, source: str, config: Config, problems: Mapping[int, Problem]
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
    run: Run, stage: str, source: str, config: Config, problems: Mapping[int, Problem]
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


def readable(text: str, tokenizer: Tokenizer, config: Config) -> bool:
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
    run: Run, config: Config, problems: Sequence[Problem], answers: Sequence[Sequence[str]]
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


def gold(run: Run, stage: str, config: Config) -> Iterator[tuple[str, str]]:
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


def plain(run: Run, stage: str, config: Config) -> Iterator[tuple[str, str]]:
    """Conversations without a thought."""
    rng, tasks = Rng("plain", run.seed_of(stage)), run.named(config.plain_tasks) if config.plain else []
    for i in range(config.plain):
        task: Task = tasks[i % len(tasks)]
        problem = task.generate(rng.bits(), "train", rng.choice(task.difficulties))
        yield problem.prompt, f" {problem.answer}"
