"""Intervals, pass@k and cons@k, and the comparison of two models on the same problems.

Samples of one problem are no independent witnesses of what a model can do: everything here takes one value for each
problem, and problems are what is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 10_000
"""Of a bootstrap."""
FLIPS = 20_000
"""Of a permutation test that has too many signs to try them all."""
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


def mean_of(estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of independent estimates; its interval adds their half-widths in squares, side by side."""
    count = len(estimates)
    centre = sum(e["accuracy"] for e in estimates) / count
    below = math.sqrt(sum((e["accuracy"] - e["low"]) ** 2 for e in estimates)) / count
    above = math.sqrt(sum((e["high"] - e["accuracy"]) ** 2 for e in estimates)) / count
    return {
        "accuracy": centre,
        "low": max(0.0, centre - below),
        "high": min(1.0, centre + above),
        "n": sum(e.get("n") or 0 for e in estimates),
    }


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from n of which `right` were
    (arXiv 2107.03374, eq. 1)."""
    if n - right < k:
        return 1.0
    return 1.0 - math.prod((n - right - i) / (n - i) for i in range(k))


def consensus(right: int, wrong: Sequence[int], unanswered: int = 0) -> list[float]:
    """cons@k for k = 1 to n: the chance that the most frequent answer among k of the n samples is right.

    right, wrong: how many samples gave the right answer, and each of the wrong ones; unanswered samples do not vote.
    The k are drawn without replacement, all subsets counted; a tie is decided by lot, and no vote at all is wrong.
    """
    n = right + sum(wrong) + unanswered
    chance = np.zeros(n + 1)
    for votes in range(1, right + 1):
        # What cannot reach `votes` may be drawn as it likes. ways[t, j]: subsets of j others, t of them level with
        # the right answer and none above it.
        large = [size for size in wrong if size >= votes]
        ways = np.zeros((len(large) + 1, n + 1))
        ways[0] = [math.comb(n - right - sum(large), j) for j in range(n + 1)]
        for size in large:
            grown = np.zeros_like(ways)
            for drawn in range(votes):
                grown[:, drawn:] += math.comb(size, drawn) * ways[:, : n + 1 - drawn]
            grown[1:, votes:] += math.comb(size, votes) * ways[:-1, : n + 1 - votes]
            ways = grown
        won = (1 / np.arange(1, len(large) + 2)) @ ways
        chance[votes:] += math.comb(right, votes) * won[: n + 1 - votes]
    return [float(chance[k] / math.comb(n, k)) for k in range(1, n + 1)]


# ------------------------------------------------------------------------------------- intervals over problems


def bootstrap(groups: Sequence[Floats], seed: int = 0) -> Floats:
    """Means [DRAWS, M] of problems drawn again with replacement, from values [N, M] of each group's N problems: within
    each group, and then the unweighted mean over the groups."""
    rng = np.random.default_rng(seed)
    total = np.zeros((DRAWS, groups[0].shape[1]))
    for values in groups:
        N = len(values)
        size = max(1, 4_000_000 // N)
        for begin in range(0, DRAWS, size):
            rows = min(size, DRAWS - begin)
            drawn = rng.integers(0, N, (rows, N)) + N * np.arange(rows)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * N).reshape(rows, N)
            total[begin : begin + rows] += counts @ values / N
    return total / len(groups)


def intervals(groups: Sequence[Floats], shares: Sequence[bool] | None = None, seed: int = 0) -> list[dict[str, float]]:
    """value, low and high (95%) of each of the M columns: means over problems, averaged over groups [N, M].

    The interval is the bootstrap's percentiles, widened for few problems (Hesterberg 2015, arXiv 1411.5279, section
    5.3). shares: which columns are shares of 0 to 1. Where all values of one are equal the bootstrap sees no spread,
    and Wilson's interval stands in for it.
    """
    fewest = min(len(values) for values in groups)
    drawn = bootstrap(groups, seed)
    tail = 100 * _tail(fewest)
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    means = np.mean([values.mean(axis=0) for values in groups], axis=0)
    found = []
    for m, mean in enumerate(means):
        entry = {"value": float(mean), "low": float(min(low[m], mean)), "high": float(max(high[m], mean))}
        if shares is not None and shares[m] and all(np.ptp(values[:, m]) == 0 for values in groups):
            n = sum(len(values) for values in groups)
            entry["low"], entry["high"] = wilson(float(mean) * n, n)
        found.append(entry)
    return found


def _tail(n: int) -> float:
    """The share that each end of a bootstrap interval cuts off: 2.5%, made less where n is small."""
    if n < 3:
        return 0.0  # so few problems tell nothing beyond the range of their values
    v = n - 1
    # Student's quantile by the Cornish-Fisher series (Abramowitz and Stegun 26.7.5).
    t = Z + (Z**3 + Z) / (4 * v) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * v**2)
    t += (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * v**3)
    return NormalDist().cdf(-math.sqrt(n / v) * t)


def compare(groups: Sequence[Floats], seed: int = 0) -> list[dict[str, float]]:
    """difference, low and high (95%, paired bootstrap) and p of each column of differences [N, M] on the same problems.

    p: two-sided, of the permutation test that flips the sign of each problem's difference (Fisher 1935): all of them
    where few differ, else FLIPS at random.
    """
    found = []
    estimates = intervals(groups, seed=seed)
    for m, estimate in enumerate(estimates):
        weighted = np.concatenate([values[:, m] / len(values) / len(groups) for values in groups])
        entry = {"difference": estimate["value"], "low": estimate["low"], "high": estimate["high"]}
        found.append(entry | {"p": sign_flip(weighted, seed)})
    return found


def sign_flip(differences: Floats, seed: int = 0) -> float:
    """p of the sum of differences, if each were as likely to have the other sign."""
    moved = differences[differences != 0]
    if len(moved) == 0:
        return 1.0
    observed = abs(float(moved.sum())) * (1 - 1e-9)  # sums in another order differ in their last bits
    if len(moved) <= 14:
        flips = 1 - 2 * (np.arange(1 << len(moved))[:, None] >> np.arange(len(moved)) & 1)
        return float(np.mean(np.abs(flips @ moved) >= observed))
    rng = np.random.default_rng(seed)
    most = max(1, 4_000_000 // len(moved))
    extreme = 0
    for begin in range(0, FLIPS, most):
        flips = 1 - 2 * rng.integers(0, 2, (min(most, FLIPS - begin), len(moved)), dtype=np.int8)
        extreme += int(np.sum(np.abs(flips @ moved) >= observed))
    return (1 + extreme) / (1 + FLIPS)


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
