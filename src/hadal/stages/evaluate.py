"""The examination after a stage: held-out problems, several samples each, in the figures of R1's stage table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hadal import stages
from hadal.engine import SamplingParams
from hadal.evaluate.reflection import reflections
from hadal.evaluate.statistics import consensus, mean_of, proportion
from hadal.evaluate.suite import Depth, Verdict, ask, held_out, in_depth
from hadal.rewards.format import format_reward
from hadal.rewards.language import language_share
from hadal.stages import Before, Stage
from hadal.stages.common.needs import Needs, Scene
from hadal.stages.common.run import Run
from hadal.stages.pretrain import has_thoughts
from hadal.tasks import Task
from hadal.text.parse import parse_response
from hadal.text.tokenizer import END_THINK, THINK

LEAVES = "figures"
SHOWN = 24
"""Problems of each task whose first answers are kept, to be set side by side."""


@dataclass(frozen=True)
class Config(stages.Config, Depth):
    """What a model is asked: held-out problems of every task at its default difficulty, and in depth where asked."""

    tasks: list[str] = field(default_factory=list)
    problems: int = 100
    samples: int = 8
    """Of each problem: pass@1 is their mean, cons@k the answer that most of them give."""
    temperature: float = 1.0
    top_p: float = 1.0
    language: str = "en"


def check(stage: Stage, before: Before) -> None:
    """It has a model."""
    before.need_model(stage.source, f"{stage.where}.from")


def needs(stage: Stage, scene: Scene) -> Needs:
    """A model that samples."""
    config: Config = stage.config
    shape = scene.shape_of(stage.source)
    memory = scene.asking_memory(shape, config.problems, config.samples, config.max_tokens)
    responses = config.problems * config.samples + config.responses
    asked = len(scene.run.tasks) * responses
    return Needs(memory, scene.rates.sampling(shape, asked, config.max_tokens, scene.prompt))


def run_stage(run: Run, stage: Stage) -> None:
    """Examine the model that another stage left, with the same problems and seeds after every stage."""
    config: Config = stage.config
    llm = run.engine(run.load(stage.source, run.dtype).eval())
    about = f"{config.problems} held-out problems a task, {config.samples} answers each"
    run.view.stage(stage.name, len(run.tasks) + config.parts, about)
    done = 0

    def progress(what: str) -> None:
        nonlocal done
        done += 1
        run.view.step(stage.name, done, {"doing": what, "cost_usd": run.cost_so_far()})

    params = SamplingParams(
        config.temperature, config.top_p, config.max_tokens, run.recipe.seed, n=config.samples
    )
    figures: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    right: dict[str, list[int]] = {}
    for name, task in run.tasks.items():
        problems = held_out(task, task.default_difficulty, config.problems)
        groups = ask(llm, run.tasks, problems, params)
        reasoning = has_thoughts(task)
        told = {"about": task.about, "difficulty": task.default_difficulty, "reasoning": reasoning}
        told["gold_limit"] = task.gold_limit if reasoning else None
        figures[name] = told | measure(task, groups, config.language)
        right[name] = [sum(v.right for v in g) for g in groups]  # so that models can be compared problem by problem
        shown[name] = [
            {"question": g[0].problem.prompt, "gold": g[0].problem.answer, "text": g[0].text, "right": g[0].right}
            for g in groups[:SHOWN]
        ]
        progress(name)
    for name, further in in_depth(llm, run.tasks, config, run.recipe.seed, progress).items():
        figures[name] |= further
    result = {"of": stage.source, "tasks": figures, "mean": mean(figures), "right": right, "responses": shown}
    run.finish(stage.name, result)


def measure(task: Task, groups: Sequence[Sequence[Verdict]], language: str) -> dict[str, Any]:
    """What a task's answers come to: accuracy (pass@1) and cons@k as shares of the problems, the rest of all answers.

    Intervals count problems, not answers: answers to one problem are not independent.
    """
    every = [verdict for group in groups for verdict in group]
    thoughts = [v.text for v in every if v.thinks]
    share = sum(language_share(parse_response(t).thought or "", language) for t in thoughts) / max(1, len(thoughts))
    return {
        **proportion(sum(sum(v.right for v in g) / len(g) for g in groups), len(groups)),
        "cons": proportion(sum(agreed(task, g) for g in groups), len(groups)),
        "samples": len(groups[0]),
        "length": sum(v.tokens for v in every) / len(every),
        "thinking_share": len(thoughts) / len(every),
        "format": sum(clean(v.text) for v in every) / len(every),
        "language": share if thoughts else None,
        "reflection": sum(map(reflections, thoughts)) / len(every),
    }


def agreed(task: Task, group: Sequence[Verdict]) -> float:
    """Whether the answer that most samples give is right (cons@k); a tie counts as the chance of a lot."""
    wrong: Counter[str] = Counter()
    for verdict in group:
        parsed = parse_response(verdict.text)
        if not verdict.right and parsed.closed and (vote := task.canonical(verdict.problem, parsed.answer)):
            wrong[vote] += 1
    right = sum(v.right for v in group)
    return consensus(right, list(wrong.values()), len(group) - right - wrong.total())[-1]


def clean(text: str) -> bool:
    """A thought and an answer behind it, or an answer alone; nothing left open, nothing twice."""
    return bool(format_reward(text)) if THINK in text or END_THINK in text else bool(text.strip())


def mean(figures: dict[str, Any]) -> dict[str, Any]:
    """The unweighted mean of the tasks that are to be reasoned about, where there are such; with its interval."""
    rows = [row for row in figures.values() if row["reasoning"]] or list(figures.values())
    out = mean_of(rows) | {"cons": mean_of([row["cons"] for row in rows]), "samples": rows[0]["samples"]}
    for key in ("length", "thinking_share", "format", "language", "reflection"):
        values = [row[key] for row in rows if row[key] is not None]
        out[key] = sum(values) / len(values) if values else None
    for key in ("accuracy_thinking", "accuracy_direct"):
        if key in rows[0]:
            out[key] = sum(row[key] for row in rows) / len(rows)
    return out
