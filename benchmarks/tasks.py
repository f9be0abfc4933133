"""How fast the built-in tasks pose problems, on one core, and how many different ones each difficulty has.

    python benchmarks/tasks.py            problems a second at the default and the hardest difficulty
    python benchmarks/tasks.py --distinct the number of different problems at each difficulty, as in docs/tasks.md

Different is what has different keys: twins (the same problem but for names, order or wording) count once. A count is
exact where N random draws find every problem many times over. Elsewhere it is estimated from how often two draws
coincide: N (N - 1) / 2 pairs over the coinciding ones, which is the number of problems if all are as likely and less
if some come up more often; where almost no pair coincides there is only a bound below.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import prepared  # noqa: F401

import hadal
from hadal.tasks import BUILT_IN, Rng, Task

GOAL, MEDIAN_GOAL = 1000, 5000  # problems a second
ROUNDS = 5
FEW = 10  # coinciding pairs below which there is no estimate
FEW_AT_MOST = 17  # how many could have been expected, at 95%, where fewer than FEW were seen


def rate(task: Task, difficulty: int, problems: int) -> float:
    """Training problems in a second of processor time, thoughts included: the median of a few rounds."""
    rates = []
    for turn in range(ROUNDS + 1):
        began = time.process_time()
        for i in range(problems):
            task.generate(turn * problems + i, "train", difficulty)
        rates.append(problems / (time.process_time() - began))
    return statistics.median(rates[1:])  # the first one fills tables


def distinct(task: Task, difficulty: int, draws: int) -> dict[str, Any]:
    """found: how many different ones among the draws; count: how many there are, or more than that if bound."""
    rng = Rng("distinct", difficulty)
    seen = Counter(task.draw(rng, difficulty)[1] for _ in range(draws))
    pairs, same = draws * (draws - 1) // 2, sum(n * (n - 1) // 2 for n in seen.values())
    if sum(n == 1 for n in seen.values()) < len(seen) / 1000:  # next to none was seen just once
        return {"difficulty": difficulty, "found": len(seen), "count": len(seen), "kind": "exact"}
    if same < FEW:
        return {"difficulty": difficulty, "found": len(seen), "count": pairs // FEW_AT_MOST, "kind": "bound"}
    return {"difficulty": difficulty, "found": len(seen), "count": max(pairs // same, len(seen)), "kind": "estimate"}


def rounded(entry: dict[str, Any]) -> str:
    """A count as the docs write it."""
    count = entry["count"]
    if entry["kind"] == "exact":
        return f"{count:,}"
    unit = 10 ** max(len(str(count)) - 2, 0)
    return f"{'> ' if entry['kind'] == 'bound' else '~ '}{count // unit * unit:,}"


def listed(entries: Sequence[dict[str, Any]]) -> str:
    """Counts by difficulty, neighbours of the same count as one."""
    runs = [(text, [entry["difficulty"] for entry in run]) for text, run in groupby(entries, rounded)]
    return ", ".join(f"{levels[0]}{f'-{levels[-1]}' if levels[1:] else ''}: {text}" for text, levels in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer problems, a few seconds in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument("--distinct", action="store_true", help="count different problems instead of timing")
    parser.add_argument("--draws", type=int, default=10_000, help="draws for --distinct (default: 10,000)")
    options = parser.parse_args()
    tasks = {name: kind() for name, kind in BUILT_IN.items()}
    results: dict[str, Any] = {}
    if options.distinct:
        for name, task in tasks.items():
            draws = 1000 if options.quick else options.draws
            results[name] = [distinct(task, level, draws) for level in task.difficulties]
            print(f"| `{name}` | {listed(results[name])} |", flush=True)
    else:
        print(f"{'task':12}{'difficulty':>12}{'problems/s':>12}{'hardest':>10}{'problems/s':>12}")
        for name, task in tasks.items():
            default, hardest = task.default_difficulty, task.difficulties[-1]
            n = 100 if options.quick else 1000
            results[name] = {"default": rate(task, default, n), "hardest": rate(task, hardest, n // 5)}
            shown = results[name]
            print(f"{name:12}{default:12}{shown['default']:12,.0f}{hardest:10}{shown['hardest']:12,.0f}", flush=True)
        rates = [shown["default"] for shown in results.values()]
        print(f"least {min(rates):,.0f} (goal {GOAL:,}), median {statistics.median(rates):,.0f} (goal {MEDIAN_GOAL:,})")
    if options.json:
        data = {
            "benchmark": "tasks", "quick": options.quick, "date": time.strftime("%Y-%m-%d"),
            "hadal": hadal.__version__, "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(), "results": results,
        }  # fmt: skip
        options.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
