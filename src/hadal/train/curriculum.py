"""Which difficulty to practise: where success is neither rare nor sure.

For each task and difficulty a running success rate p is kept. A difficulty is drawn in proportion to p^2 (1 - p):
the variance of its reward, p (1 - p), is the strength of its training signal, and the further p says how much of
that is skill, since where little is right most of it is luck. Levels never tried are taken to be somewhat harder
than the level below. As levels are mastered the draw climbs by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from hadal.rng import Rng
from hadal.tasks import Task

MEMORY = 0.8  # weight of the past in the running success rate, for each group seen
DROP = 0.7  # success expected at an untried level, as a share of that one level below
RETRY = 0.25  # the same for a level that failed: it is tried again while the one below succeeds
FLOOR = 0.01  # so that no level near the frontier is forgotten


def weight(success: float) -> float:
    """How much a level is worth practising at this success rate."""
    return success**2 * (1 - success) + FLOOR * (success > 0.05)


class Curriculum:
    """Success rates by task and difficulty, and draws that follow them."""

    def __init__(self, tasks: Mapping[str, Task], rates: Mapping[str, Mapping[int, float]] | None = None) -> None:
        self.tasks = tasks
        self.rates: dict[str, dict[int, float]] = {name: dict((rates or {}).get(name, {})) for name in tasks}

    def expected(self, name: str) -> dict[int, float]:
        """Success rate by level, guessed where no group has been seen yet."""
        out: dict[int, float] = {}
        last = 0.9
        for level in self.tasks[name].difficulties:
            rate = self.rates[name].get(level)
            last = last * DROP if rate is None else max(rate, last * RETRY)
            out[level] = last
        return out

    def draw(self, name: str, rng: Rng) -> int:
        """A level to practise now."""
        levels = self.expected(name)
        weights = {level: weight(p) for level, p in levels.items()}
        point = rng.random() * sum(weights.values())
        for level, share in weights.items():
            point -= share
            if point < 0:
                return level
        return max(weights, key=lambda level: weights[level])

    def record(self, name: str, level: int, success: float) -> None:
        """Take in the success rate of a group."""
        before = self.rates[name].get(level)
        self.rates[name][level] = success if before is None else MEMORY * before + (1 - MEMORY) * success

    def mean_level(self, name: str) -> float:
        """The expected difficulty of the next draw."""
        levels = self.expected(name)
        weights = {level: weight(p) for level, p in levels.items()}
        return sum(level * w for level, w in weights.items()) / sum(weights.values())

    def state(self) -> dict[str, dict[str, float]]:
        """The rates as JSON can hold them."""
        return {name: {str(level): p for level, p in rates.items()} for name, rates in self.rates.items()}

    @classmethod
    def from_state(cls, tasks: Mapping[str, Task], state: Mapping[str, Mapping[str, float]]) -> Curriculum:
        """What `state` gave, as an object again."""
        return cls(tasks, {n: {int(level): p for level, p in rates.items()} for n, rates in state.items()})
