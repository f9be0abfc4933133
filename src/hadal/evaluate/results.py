"""Figures from an evaluation's samples: each a mean over problems with its 95% interval, and the paired comparison.

Every figure is first one value for each problem, from its K samples. Problems are what the intervals draw again, so
that samples of a problem stay together; the mean over tasks gives each task the same weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hadal.errors import UserError
from hadal.evaluate.samples import Evaluation
from hadal.evaluate.statistics import Floats, compare, consensus, intervals, pass_at_k


def ks(samples: int) -> list[int]:
    """The k of pass@k and cons@k: powers of two, and all samples."""
    return sorted({k for k in (2**i for i in range(1, 11)) if k <= samples} | {samples} - {1})


def figures_of(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The values of one problem, from all its samples."""
    n, right = len(samples), sum(s["right"] for s in samples)
    wrong = Counter(s["vote"] for s in samples if not s["right"] and s["vote"])
    unanswered = n - right - wrong.total()
    votes = consensus(right, sorted(wrong.values()), unanswered)
    top = max([right, *wrong.values()])
    found = {"pass@1": right / n}
    found |= {f"pass@{k}": pass_at_k(n, right, k) for k in ks(n)}
    found |= {f"cons@{k}": votes[k - 1] for k in ks(n)}
    if all(s["tokens"] is not None for s in samples):
        found["tokens"] = sum(s["tokens"] for s in samples) / n
    if all("score" in s for s in samples):
        found["score"] = sum(s["score"] for s in samples) / n
    for name in ("truncated", "thinks", "format"):
        found[name] = sum(s[name] for s in samples) / n
    found["unanswered"] = unanswered / n
    if n > 1:
        found["tied"] = float([right, *wrong.values()].count(top) > 1 and top > 0)
    return found


Table = dict[str, dict[tuple[str, str], dict[str, float]]]
"""Of each task, by its problems (prompt and answer), their figures."""


def table(evaluation: Evaluation) -> Table:
    """UserError where samples are missing."""
    if not evaluation.complete:
        missing = len(evaluation.problems) * evaluation.config["settings"]["samples"] - len(evaluation.samples)
        raise UserError(f"The evaluation lacks {missing} samples.", "Run it again: the same command carries on.")
    by_problem: dict[int, list[dict[str, Any]]] = {}
    for sample in evaluation.samples:
        by_problem.setdefault(sample["problem"], []).append(sample)
    found: Table = {}
    for number, problem in enumerate(evaluation.problems):
        of_task = found.setdefault(problem["task"], {})
        of_task[problem["prompt"], problem["answer"]] = figures_of(by_problem[number])
    return found


def results(evaluation: Evaluation) -> dict[str, Any]:
    """results.json: every figure of every task and of their mean."""
    values = table(evaluation)
    settings = evaluation.config["settings"]
    names = _shared([figures for of_task in values.values() for figures in of_task.values()])
    shares = [name != "tokens" for name in names]
    arrays = {task: _array(list(of_task.values()), names) for task, of_task in values.items()}

    def entry(groups: list[Floats]) -> dict[str, Any]:
        return dict(zip(names, intervals(groups, shares, settings["seed"]), strict=True))

    broke = Counter(sample["task"] for sample in evaluation.samples if sample.get("broke"))
    levels: dict[str, list[int]] = {}
    for problem in evaluation.problems:
        levels.setdefault(problem["task"], []).append(problem["difficulty"])
    return {
        "hadal_eval": evaluation.config["hadal_eval"],
        "model": evaluation.config["model"],
        "settings": settings,
        "tasks": {
            task: {
                "problems": len(array), "difficulty": max(levels[task]), "scorer_broke": broke[task],
                "figures": entry([array]),
            }  # fmt: skip
            for task, array in arrays.items()
        },
        "mean": entry(list(arrays.values())),
    }


def against(evaluation: Evaluation, other: Evaluation) -> dict[str, Any]:
    """The `against` of results.json: differences (this model less the other) on the problems that both were asked.

    UserError where there is none.
    """
    ours, theirs = table(evaluation), table(other)
    pairs: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
    for task, of_task in ours.items():
        both = [(of_task[key], theirs[task][key]) for key in of_task if key in theirs.get(task, {})]
        if both:
            pairs[task] = both
    if not pairs:
        raise UserError("The two evaluations share no problem.", "Give the same tasks, problems and seed to both.")
    names = _shared([figures for both in pairs.values() for pair in both for figures in pair])
    names = [name for name in names if name != "tied"]
    arrays = {task: [_array(side, names) for side in zip(*both, strict=True)] for task, both in pairs.items()}
    seed = evaluation.config["settings"]["seed"]

    def entry(groups: list[list[Floats]]) -> dict[str, Any]:
        differences = compare([one - two for one, two in groups], seed)
        sides = [np.mean([side.mean(axis=0) for side in sides], axis=0) for sides in zip(*groups, strict=True)]
        return {
            name: {"value": float(sides[0][m]), "other": float(sides[1][m]), **differences[m]}
            for m, name in enumerate(names)
        }

    mine, their = evaluation.config["settings"], other.config["settings"]
    return {
        "model": other.config["model"],
        "settings_that_differ": {key: [mine[key], their.get(key)] for key in mine if mine[key] != their.get(key)},
        "tasks": {task: {"problems": len(sides[0]), "figures": entry([sides])} for task, sides in arrays.items()},
        "mean": entry(list(arrays.values())),
    }


def _shared(figures: Sequence[dict[str, float]]) -> list[str]:
    """The names that all problems have, in their order."""
    return [name for name in figures[0] if all(name in other for other in figures)]


def _array(figures: Sequence[dict[str, float]], names: Sequence[str]) -> Floats:
    return np.array([[own[name] for name in names] for own in figures])
