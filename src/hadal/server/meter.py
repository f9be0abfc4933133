"""What the server does, counted: for /metrics in Prometheus' text form, and for what an answer costs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hadal.server.models import Usage

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WINDOW = 10.0  # seconds over which tokens per second are told


@dataclass
class Spent:
    """One request that runs. share: machine seconds that were its own when it began."""

    model: str
    began: float
    share: float
    tokens: int = 0


class Meter:
    """Counters by model. A request that runs beside k - 1 others is charged a k-th of the time."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()
        self.totals: Counter[tuple[str, str]] = Counter()
        self.usd: dict[str, float] = {}
        self.first: dict[str, list[int]] = {}
        self.first_sum: dict[str, float] = {}
        self._share = 0.0
        self._since = time.monotonic()
        self._recent: Counter[int] = Counter()  # tokens by the second

    def _settle(self) -> float:
        """The seconds so far that one request, running all the time, would have been charged."""
        at = time.monotonic()
        self._share += (at - self._since) / max(self.running.total(), 1)
        self._since = at
        return at

    def begin(self, model: str) -> Spent:
        at = self._settle()
        self.running[model] += 1
        return Spent(model, at, self._share)

    def heard(self, spent: Spent, tokens: int) -> None:
        """Tokens that came."""
        if not tokens:
            return
        at = time.monotonic()
        if not spent.tokens:
            wait = at - spent.began
            counts = self.first.setdefault(spent.model, [0] * (len(BUCKETS) + 1))
            counts[sum(wait > bound for bound in BUCKETS)] += 1
            self.first_sum[spent.model] = self.first_sum.get(spent.model, 0.0) + wait
        spent.tokens += tokens
        self._recent[int(at)] += tokens
        if len(self._recent) > 2 * WINDOW:
            self._recent = Counter({second: n for second, n in self._recent.items() if at - second <= WINDOW})

    def share(self, spent: Spent) -> float:
        """The machine seconds that it is charged so far."""
        self._settle()
        return self._share - spent.share

    def end(self, spent: Spent, fault: str = "") -> float:
        """The machine seconds that it is charged. fault: how it ended, where not well."""
        seconds = self.share(spent)
        self.running[spent.model] -= 1
        self.ended[spent.model, fault or "done"] += 1
        return seconds

    def count(self, model: str, usage: Usage, usd: float | None) -> None:
        self.totals[model, "prompt"] += usage.prompt
        self.totals[model, "cached"] += usage.cached
        self.totals[model, "completion"] += usage.completion
        self.totals[model, "reasoning"] += usage.reasoning
        self.usd[model] = self.usd.get(model, 0.0) + (usd or 0.0)

    @property
    def speed(self) -> float:
        """Tokens a second, of late."""
        at = time.monotonic()
        recent = [second for second in self._recent if at - second <= WINDOW]
        return sum(self._recent[second] for second in recent) / max(at - min(recent), 1.0) if recent else 0.0

    def text(self, waiting: Mapping[str, int], drafts: Mapping[str, tuple[int, int]]) -> str:
        """The page that Prometheus reads. waiting: requests of each model that no token was computed of; drafts: tokens
        that each model guessed ahead, and those that came out so."""
        out: list[str] = []

        def family(name: str, kind: str, about: str, values: Mapping[str, float]) -> None:
            out.append(f"# HELP hadal_{name} {about}\n# TYPE hadal_{name} {kind}")
            out.extend(f"hadal_{name}{labels} {value:g}" for labels, value in values.items())

        def by(kind: str) -> dict[str, float]:
            return {_labels(model=m): n for (m, k), n in self.totals.items() if k == kind}

        family("requests_waiting", "gauge", "Requests in the queue.", {_labels(model=m): n for m, n in waiting.items()})
        family("requests_running", "gauge", "Requests under way, the queue among them.",
               {_labels(model=m): n for m, n in self.running.items()})  # fmt: skip
        family("requests_total", "counter", "Requests that have ended, by how.",
               {_labels(model=m, end=e): n for (m, e), n in self.ended.items()})  # fmt: skip
        family("tokens_per_second", "gauge", f"Tokens generated a second, over {WINDOW:g} seconds.", {"": self.speed})
        family("prompt_tokens_total", "counter", "Tokens of prompts.", by("prompt"))
        family("prompt_cache_hit_tokens_total", "counter", "Tokens of prompts found in the cache.", by("cached"))
        family("completion_tokens_total", "counter", "Tokens generated.", by("completion"))
        family("reasoning_tokens_total", "counter", "Tokens generated in thoughts.", by("reasoning"))
        for place, name, about in (
            (0, "draft_tokens_total", "Tokens guessed ahead."),
            (1, "draft_tokens_accepted_total", "Those of them that were the model's own."),
        ):
            family(name, "counter", about, {_labels(model=m): counts[place] for m, counts in drafts.items()})
        family(
            "cost_usd_total",
            "counter",
            "Dollars, where a price is known.",
            {_labels(model=m): v for m, v in self.usd.items()},
        )
        buckets: dict[str, float] = {}
        for model, counts in self.first.items():
            bounds = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]
            for i, bound in enumerate(bounds):
                buckets["_bucket" + _labels(model=model, le=bound)] = sum(counts[: i + 1])
            buckets["_sum" + _labels(model=model)] = self.first_sum[model]
            buckets["_count" + _labels(model=model)] = sum(counts)
        family("time_to_first_token_seconds", "histogram", "Seconds to the first token.", buckets)
        return "\n".join(out) + "\n"


def _labels(**labels: str) -> str:
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    quoted = (f'{name}="{value.translate(escapes)}"' for name, value in labels.items())
    return "{" + ",".join(quoted) + "}"
