"""The examination after a stage: held-out problems, several samples each, in the figures of R1's stage table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hadal.engine import SamplingParams
from hadal.evaluate.reflection import reflections
from hadal.evaluate.statistics import consensus, mean_of, proportion
from hadal.evaluate.suite import Verdict, ask, held_out
from hadal.recipe.kinds import ExamConfig
from hadal.recipe.run import Run
from hadal.recipe.stages.pretrain import has_thoughts
from hadal.rewards.language import language_share
from hadal.rewards.shape import format_reward
from hadal.tasks import Task
from hadal.text.parse import parse_response
from hadal.text.tokenizer import END_THINK, THINK

SHOWN = 24
"""Problems of each task whose first answers are kept, to be set side by side."""


def exam(run: Run, stage: str, source: str, config: ExamConfig) -> None:
    """Examine the model that stage `source` left, with the same problems and seeds after every stage."""
    llm = run.engine(run.load(source, run.dtype).eval())
    run.view.stage(stage, len(run.tasks), f"{config.problems} held-out problems a task, {config.samples} answers each")
    params = SamplingParams(
        config.temperature, config.top_p, config.max_tokens, run.recipe.seed, n=config.samples
    )
    figures: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    right: dict[str, list[int]] = {}
    for done, (name, task) in enumerate(run.tasks.items(), 1):
        problems = held_out(task, task.default_difficulty, config.problems)
        groups = ask(llm, run.tasks, problems, params)
        told = {"about": task.about, "difficulty": task.default_difficulty, "reasoning": bool(has_thoughts(task))}
        figures[name] = told | measure(task, groups, config.language)
        right[name] = [sum(v.right for v in g) for g in groups]  # so that models can be compared problem by problem
        shown[name] = [
            {"question": g[0].problem.prompt, "gold": g[0].problem.answer, "text": g[0].text, "right": g[0].right}
            for g in groups[:SHOWN]
        ]
        run.view.step(stage, done, {"doing": name, "cost_usd": run.cost_so_far()})
    run.finish(stage, {"of": source, "tasks": figures, "mean": mean(figures), "right": right, "responses": shown})


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
    return out
