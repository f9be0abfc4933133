"""Held-out problems and what a model makes of them; and, in depth, what it can do and how far.

Can do: made to think and made to answer at once, at three settings. How far: greedy and made to think, against
difficulty. What it does by itself is the examination's business (`hadal.stages.evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hadal.errors import UserError
from hadal.evaluate.statistics import crossing, pass_at_k, proportion
from hadal.rollout import Query, Rollout, Sample, SamplingParams, sample_all
from hadal.tasks import Problem, Task
from hadal.text.parse import parse_response

MODES = {"sampled": (1.0, 1.0), "r1": (0.6, 0.95), "greedy": (0.0, 1.0)}
"""temperature and top-p: as in training; as R1 is evaluated; the most likely token."""


@dataclass(frozen=True)
class Depth:
    """How many problems a task each figure beyond plain accuracy is measured on; 0 leaves the figure out."""

    mode_problems: int = 0
    """Made to think and made to answer at once, at three settings; and in a wording never trained on."""
    level_problems: int = 0
    """Of each difficulty, from a little below the gold limit on."""
    levels_past_gold: int = 12
    """Difficulties above the gold limit that are looked at."""
    pass_problems: int = 0
    pass_samples: int = 64
    max_tokens: int = 160

    @property
    def parts(self) -> int:
        """How often `in_depth` tells of its progress."""
        return (2 * len(MODES) + 1) * bool(self.mode_problems) + bool(self.pass_problems) + bool(self.level_problems)

    @property
    def responses(self) -> int:
        """About how many are sampled for a task; how many difficulties are looked at, the answers decide."""
        by_mode, by_level = (2 * len(MODES) + 1) * self.mode_problems, self.levels_past_gold * self.level_problems
        return by_mode + self.pass_problems * self.pass_samples + by_level


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


def in_depth(
    rollout: Rollout, tasks: Mapping[str, Task], config: Depth, seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """By task: `modes` (and of them `accuracy_thinking` and `accuracy_direct`), `new_phrasing`, `pass_at_k`,
    `by_difficulty` and `frontier`, as far as `config` asks for them."""
    found: dict[str, dict[str, Any]] = {name: {} for name in tasks}

    def run(problems: dict[str, list[Problem]], params: SamplingParams) -> dict[str, list[list[Verdict]]]:
        flat = [p for part in problems.values() for p in part]
        verdicts = iter(ask(rollout, tasks, flat, params))
        return {name: [next(verdicts) for _ in part] for name, part in problems.items()}

    def share(groups: list[list[Verdict]]) -> dict[str, float]:
        return proportion(sum(v[0].right for v in groups), len(groups))

    def problems(n: int, stream: int = 0, new_phrasing: bool = False) -> dict[str, list[Problem]]:
        return {name: held_out(t, t.default_difficulty, n, stream, new_phrasing) for name, t in tasks.items()}

    if config.mode_problems:
        for mode, (temperature, top_p) in MODES.items():
            for kind, thinking in (("thinking", True), ("direct", False)):
                progress(f"{mode}, {'made to think' if thinking else 'made to answer at once'}")
                params = SamplingParams(temperature, top_p, config.max_tokens, seed, thinking)
                for name, groups in run(problems(config.mode_problems), params).items():
                    found[name].setdefault("modes", {}).setdefault(mode, {})[kind] = share(groups)
                    if mode == "sampled":
                        found[name][f"accuracy_{kind}"] = share(groups)["accuracy"]
        progress("a wording never trained on")
        fresh = problems(config.mode_problems, stream=1, new_phrasing=True)
        for name, groups in run(fresh, SamplingParams(max_tokens=config.max_tokens, seed=seed)).items():
            found[name]["new_phrasing"] = share(groups)

    if config.pass_problems:
        n = config.pass_samples
        progress(f"pass@k, {n} samples a problem")
        hard = problems(config.pass_problems, stream=2)
        for name, groups in run(hard, SamplingParams(max_tokens=config.max_tokens, seed=seed, n=n)).items():
            right = [sum(v.right for v in g) for g in groups]
            ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= n]
            values = {str(k): sum(pass_at_k(n, c, k) for c in right) / len(right) for k in ks}
            found[name]["pass_at_k"] = {"n_problems": len(groups), "values": values}

    if config.level_problems:
        progress("against difficulty")
        for name, task in tasks.items():
            points = frontier_points(rollout, tasks, task, config, seed)
            found[name]["by_difficulty"] = points
            found[name]["frontier"] = crossing([(p["difficulty"], p["accuracy"]) for p in points])
    return found


def frontier_points(
    rollout: Rollout, tasks: Mapping[str, Task], task: Task, config: Depth, seed: int
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
