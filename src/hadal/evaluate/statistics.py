"""Intervals and pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95% interval."""


def wilson(right: float, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a share of `right` in n (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = share + Z * Z / (2 * n)
    spread = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def proportion(right: float, n: int) -> dict[str, float]:
    """accuracy, low, high and n of a share."""
    low, high = wilson(right, n)
    return {"accuracy": right / n if n else 0.0, "low": low, "high": high, "n": n}


def mean_of_shares(counts: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The unweighted mean of independent shares (right, n), with its 95% interval (normal approximation)."""
    k = len(counts)
    mean = sum(right / n for right, n in counts) / k
    # Shares of 0 or 1 have a sample variance of 0; one pseudo-count on each side keeps the interval honest.
    variance = sum((p := (right + 1) / (n + 2)) * (1 - p) / n for right, n in counts) / (k * k)
    half = Z * math.sqrt(variance)
    return {
        "accuracy": mean,
        "low": max(0.0, mean - half),
        "high": min(1.0, mean + half),
        "n": sum(n for _, n in counts),
    }


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from n of which `right` were
    (arXiv 2107.03374, eq. 1)."""
    if n - right < k:
        return 1.0
    return 1.0 - math.prod((n - right - i) / (n - i) for i in range(k))


def crossing(points: Sequence[tuple[float, float]], level: float = 0.5) -> float | None:
    """Where accuracy, over rising difficulty, last falls through `level`, between points by a straight line.

    None where it is below from the start; the last difficulty where it never falls.
    """
    last_above = max((i for i, (_, y) in enumerate(points) if y >= level), default=None)
    if last_above is None:
        return None
    x, y = points[last_above]
    if last_above + 1 == len(points):
        return float(x)
    x2, y2 = points[last_above + 1]
    return x + (x2 - x) * (y - level) / (y - y2)


def paired_difference(by_seed: Sequence[Sequence[Sequence[float]]], draws: int = 4000) -> dict[str, float]:
    """The mean difference over seeds and tasks, with its 95% bootstrap interval.

    by_seed: for each seed and task the differences of two systems on the same problems. Seeds are drawn with
    replacement, and problems within each; tasks weigh the same. The draws are the same at every call.
    """
    rng = np.random.default_rng(0)
    values = [[np.asarray(task, dtype=float) for task in seed] for seed in by_seed]
    own = np.empty((len(values), draws))  # by seed, the mean of resampled problems
    for place, tasks in enumerate(values):
        own[place] = np.mean([t[rng.integers(len(t), size=(draws, len(t)))].mean(1) for t in tasks], axis=0)
    chosen = rng.integers(len(values), size=(draws, len(values)))
    means = own[chosen, np.arange(draws)[:, None]].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": float(np.mean([[t.mean() for t in tasks] for tasks in values])),
        "low": float(low), "high": float(high), "n": sum(len(t) for tasks in values for t in tasks),
        "seeds": len(values),
    }  # fmt: skip
