"""The evaluation of a grown model: what it does by itself, what it can do, and how far.

By itself: one sample at temperature 1, thinking or not as it likes. Can do: made to think and made to answer at
once, at three settings. How far: greedy and made to think, against difficulty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hadal.errors import UserError
from hadal.evaluate.statistics import crossing, mean_of_shares, pass_at_k, proportion
from hadal.rollout import Query, Rollout, Sample, SamplingParams, sample_all
from hadal.tasks import Problem, Task
from hadal.text.parse import parse_response


@dataclass(frozen=True)
class EvaluationConfig:
    """How many problems a task for each figure."""

    problems: int = 500
    mode_problems: int = 250
    level_problems: int = 100
    levels_past_gold: int = 12
    """Difficulties above the gold limit that the frontier looks at."""
    pass_problems: int = 24
    pass_samples: int = 64
    max_tokens: int = 320


MODES = {"sampled": (1.0, 1.0), "r1": (0.6, 0.95), "greedy": (0.0, 1.0)}
"""temperature and top-p: as in training; as R1 is evaluated; the most likely token."""


@dataclass(frozen=True)
class Verdict:
    """A problem, a response in full and whether it was right."""

    problem: Problem
    text: str
    tokens: int
    thinks: bool
    right: bool


def held_out(task: Task, difficulty: int, n: int, stream: int = 0, new_phrasing: bool = False) -> list[Problem]:
    """The first n different held-out problems of an evaluation stream (fewer where a level has no more)."""
    found: dict[str, Problem] = {}
    for i in range(4 * n):
        problem = task.generate((stream << 32) + i, "held_out", difficulty, new_phrasing)
        found.setdefault(problem.meta["key"], problem)
        if len(found) == n:
            break
    return list(found.values())


def ask(
    rollout: Rollout, tasks: Mapping[str, Task], problems: Sequence[Problem], params: SamplingParams
) -> list[list[Verdict]]:
    """params.n verdicts for each problem."""
    queries = [
        Query([{"role": "user", "content": problem.prompt}], each)
        for problem, each in zip(problems, params.spread(len(problems)), strict=True)
    ]

    def judge(problem: Problem, samples: Sequence[Sample]) -> list[Verdict]:
        task = tasks[problem.meta["task"]]
        if samples[0].refused:
            raise UserError(f"{task.name}: {samples[0].error}")
        out = []
        for sample in samples:
            text = sample.response
            right = task.score(problem, text).right
            out.append(Verdict(problem, text, sample.tokens or 0, parse_response(text).thinks, right))
        return out

    return [judge(p, samples) for p, samples in zip(problems, sample_all(rollout, queries), strict=True)]


def evaluate(
    rollout: Rollout,
    tasks: Mapping[str, Task],
    config: EvaluationConfig,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], dict[str, list[Verdict]]]:
    """Figures by task and their mean in the form of evaluation.json, and the verdicts of the natural mode."""
    limit = config.max_tokens
    by_task: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    natural: dict[str, list[Verdict]] = {}

    def run(problems: dict[str, list[Problem]], params: SamplingParams) -> dict[str, list[list[Verdict]]]:
        flat = [p for part in problems.values() for p in part]
        verdicts = iter(ask(rollout, tasks, flat, params))
        return {name: [next(verdicts) for _ in part] for name, part in problems.items()}

    def counts(groups: list[list[Verdict]]) -> tuple[int, int]:
        return sum(v[0].right for v in groups), len(groups)

    progress("by itself")
    main = {name: held_out(task, task.default_difficulty, config.problems) for name, task in tasks.items()}
    plain = run(main, SamplingParams(max_tokens=limit, seed=seed))
    for name, groups in plain.items():
        natural[name] = [g[0] for g in groups]
        by_task[name] |= proportion(*counts(groups))
        by_task[name]["length"] = sum(v.tokens for v in natural[name]) / len(natural[name])
        by_task[name]["thinking_share"] = sum(v.thinks for v in natural[name]) / len(natural[name])

    modes: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    few = {name: part[: config.mode_problems] for name, part in main.items()}
    mode_counts: dict[str, list[tuple[int, int]]] = {"thinking": [], "direct": []}
    for mode, (temperature, top_p) in MODES.items():
        for kind, thinking in (("thinking", True), ("direct", False)):
            progress(f"{mode}, {'made to think' if thinking else 'made to answer at once'}")
            params = SamplingParams(temperature, top_p, limit, seed, thinking)
            for name, groups in run(few, params).items():
                modes[name].setdefault(mode, {})[kind] = proportion(*counts(groups))
                if mode == "sampled":
                    by_task[name][f"accuracy_{kind}"] = modes[name][mode][kind]["accuracy"]
                    mode_counts[kind].append(counts(groups))
    for name in tasks:
        by_task[name]["modes"] = modes[name]

    progress("a wording never trained on")
    fresh = {
        name: held_out(task, task.default_difficulty, config.mode_problems, stream=1, new_phrasing=True)
        for name, task in tasks.items()
    }
    for name, groups in run(fresh, SamplingParams(max_tokens=limit, seed=seed)).items():
        by_task[name]["new_phrasing"] = proportion(*counts(groups))

    if config.pass_problems:
        progress(f"pass@k, {config.pass_samples} samples a problem")
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= config.pass_samples]
        hard = {
            name: held_out(task, task.default_difficulty, config.pass_problems, stream=2)
            for name, task in tasks.items()
        }
        for name, groups in run(hard, SamplingParams(max_tokens=limit, seed=seed, n=config.pass_samples)).items():
            right = [sum(v.right for v in g) for g in groups]
            values = {str(k): sum(pass_at_k(config.pass_samples, c, k) for c in right) / len(right) for k in ks}
            by_task[name]["pass_at_k"] = {"n_problems": len(groups), "values": values}

    progress("against difficulty")
    for name, task in tasks.items():
        by_task[name]["by_difficulty"] = frontier_points(rollout, tasks, task, config, seed)
        points = [(p["difficulty"], p["accuracy"]) for p in by_task[name]["by_difficulty"]]
        by_task[name]["frontier"] = crossing(points)

    totals = mean_of_shares([counts(groups) for groups in plain.values()])
    mean: dict[str, Any] = dict(totals)
    for kind, shares in mode_counts.items():
        mean[f"accuracy_{kind}"] = mean_of_shares(shares)["accuracy"]
    for key in ("length", "thinking_share"):
        mean[key] = sum(by_task[name][key] for name in tasks) / len(tasks)
    return {"tasks": by_task, "mean": mean}, natural


def frontier_points(
    rollout: Rollout, tasks: Mapping[str, Task], task: Task, config: EvaluationConfig, seed: int
) -> list[dict[str, float]]:
    """Greedy, made to think, level by level; stops where two levels in a row are out of reach."""
    last = min(task.difficulties.stop - 1, task.gold_limit + config.levels_past_gold)
    first = max(task.difficulties.start, task.gold_limit - 4)
    out: list[dict[str, float]] = []
    for level in range(first, last + 1):
        problems = held_out(task, level, config.level_problems, stream=3)
        params = SamplingParams(0.0, max_tokens=config.max_tokens, seed=seed, thinking=True)
        right = sum(v[0].right for v in ask(rollout, tasks, problems, params))
        out.append({"difficulty": level, **proportion(right, len(problems))})
        if level > task.gold_limit and len(out) > 1 and max(out[-1]["accuracy"], out[-2]["accuracy"]) < 0.05:
            break
    return out
