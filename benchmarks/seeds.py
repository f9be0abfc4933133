"""Several finished runs side by side, as the tables of docs/results.md and docs/r1.md; what the critic found on each.

    python benchmarks/seeds.py runs/dense-seed0 runs/dense-seed1 runs/dense-seed2
    python benchmarks/seeds.py --chain runs/r1-seed0 runs/r1-seed1 runs/r1-seed2
    python benchmarks/seeds.py --critic critic-seed0.json critic-seed1.json critic-seed2.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hadal.cost.ledger import Ledger, by_stage
from hadal.evaluate.statistics import paired_difference

Report = dict[str, Any]


def interval(figure: dict[str, float]) -> str:
    """`.58 [.56, .60]`."""
    values = (f"{figure[key]:.2f}".removeprefix("0") for key in ("accuracy", "low", "high"))
    return "{} [{}, {}]".format(*values)


def share(value: float) -> str:
    """`.58`."""
    return f"{value:.2f}".removeprefix("0")


def table(head: list[str], rows: list[tuple[str, list[str]]]) -> None:
    print("| " + " | ".join(["", *head]) + " |")
    print("|" + "---|" * (len(head) + 1))
    for name, cells in rows:
        print("| " + " | ".join([name, *cells]) + " |")
    print()


def whole(reports: list[Report], folders: list[Path]) -> None:
    """What each run came to, in the mean of its tasks."""

    def both(key: str, form: Callable[[Any], str]) -> list[str]:
        return [f"{form(r['mean']['base'][key])} -> {form(r['mean']['rl'][key])}" for r in reports]

    gains = [100 * (r["mean"]["rl"]["accuracy"] - r["mean"]["base"]["accuracy"]) for r in reports]
    stages = [by_stage(Ledger(folder / "ledger.jsonl").read()) for folder in folders]
    rows = [
        ("accuracy", [f"{interval(r['mean']['base'])} -> {interval(r['mean']['rl'])}" for r in reports]),
        ("gain, points", [f"{gain:.1f}" for gain in gains]),
        ("response length, tokens", both("length", lambda v: f"{v:.1f}")),
        ("share that thinks", both("thinking_share", share)),
        ("made to think, T 1", both("accuracy_thinking", share)),
        ("made to answer, T 1", both("accuracy_direct", share)),
        ("minutes", [f"{r['seconds'] / 60:.1f}" for r in reports]),
        ("of which " + ", ".join(stages[0]), [", ".join(f"{s.seconds / 60:.1f}" for s in p.values()) for p in stages]),
        ("FLOPs", [f"{sum(s.flops for s in part.values()):.2g}" for part in stages]),
        ("peak memory, GB", [f"{r['peak_memory_bytes'] / 1e9:.2f}" for r in reports]),
        ("dollars", [f"{r['cost_usd']:.4f}" for r in reports]),
    ]
    table([folder.name for folder in folders], rows)


def by_task(reports: list[Report], folders: list[Path]) -> None:
    """Base and RL for each task."""

    def line(base: Report, rl: Report) -> str:
        greedy = [share(side["modes"]["greedy"]["thinking"]["accuracy"]) for side in (base, rl)]
        frontier = ["-" if side["frontier"] is None else f"{side['frontier']:.1f}" for side in (base, rl)]
        parts = [
            f"{share(base['accuracy'])} -> {share(rl['accuracy'])}",
            f"{share(base['accuracy_thinking'])} -> {share(rl['accuracy_thinking'])}",
            " -> ".join(greedy),
            " -> ".join(frontier),
            f"{share(base['new_phrasing']['accuracy'])} -> {share(rl['new_phrasing']['accuracy'])}",
        ]
        for k in ("1", "64"):
            values = [side.get("pass_at_k", {}).get("values", {}).get(k) for side in (base, rl)]
            parts.append(" -> ".join("-" if v is None else share(v) for v in values))
        return " | ".join(parts)

    head = ["by itself", "made to think, T 1", "greedy", "frontier", "new wording", "pass@1", "pass@64"]
    for report, folder in zip(reports, folders, strict=True):
        print(f"{folder.name}:\n")
        rows = [
            (f"{name} (D = {task['gold_limit']})", [line(task["base"], task["rl"])])
            for name, task in report["tasks"].items()
        ]
        table(head, rows)


def critic(found: list[Report], levels: int = 3) -> None:
    """The first levels past each base's frontier, all arms; a star where an arm's interval lies above nothing's."""
    for task in found[0]["tasks"]:
        rows = []
        arms = list(found[0]["tasks"][task]["arms"])
        for report in found:  # an arm may not have run on every seed
            points = {
                arm: {p["difficulty"]: p for p in entry["by_difficulty"]}
                for arm, entry in report["tasks"][task]["arms"].items()
            }
            base = points["nothing"]
            past = [level for level, p in base.items() if p["accuracy"] < 0.5 and p["n"] >= 50]
            missing = {"accuracy": 0.0, "low": 0.0, "high": 0.0}  # the look upwards stops where an arm is at its end
            for level in past[:levels]:
                cells = []
                for arm in arms:
                    if arm not in points:
                        cells.append("")
                        continue
                    point = points[arm].get(level, missing)
                    cells.append(interval(point) + ("*" if point["low"] > base[level]["high"] else ""))
                rows.append((f"seed {report['seed']}, {level} (n = {base[level]['n']})", cells))
        print(f"{task} (D = {found[0]['tasks'][task]['gold_limit']}):\n")
        table([arm.replace("_", " ") for arm in arms], rows)


def chain(folders: list[Path]) -> None:
    """Each examined model of a recipe's runs, and how it differs over all runs from the one that it was made of."""
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    stages = [row["stage"] for row in reports[0]["rows"]]
    rows_of = {stage: [next(r for r in rep["rows"] if r["stage"] == stage) for rep in reports] for stage in stages}
    head = ["pass@1", f"cons@{reports[0]['rows'][0]['mean']['samples']}", "length", "thinks", "clean", "one language"]

    def each(rows: list[Report], form: Callable[[Report], str]) -> str:
        return ", ".join(form(row["mean"]) for row in rows)

    table(head, [
        (stage, [each(rows, interval), each(rows, lambda m: share(m["cons"]["accuracy"])),
                 each(rows, lambda m: f"{m['length']:.1f}"), each(rows, lambda m: share(m["thinking_share"])),
                 each(rows, lambda m: f"{m['format']:.1%}"), each(rows, lambda m: f"{m['language']:.1%}")])
        for stage, rows in rows_of.items()
    ])  # fmt: skip
    pairs = [(rows[0]["from"], stage) for stage, rows in rows_of.items() if rows[0]["from"] in rows_of]
    pairs += [pair for pair in (("r1-zero", "r1"), ("student-rl", "student-distilled")) if pair[1] in rows_of]
    told = []
    for one, other in pairs:
        by_seed = [differences(folder, one, other) for folder in folders]
        found = paired_difference(by_seed)
        points = [f"{100 * found[key]:+.1f}" for key in ("difference", "low", "high")]
        alone = ", ".join(f"{100 * paired_difference([seed])['difference']:+.1f}" for seed in by_seed)
        told.append((f"{one} -> {other}", [f"{points[0]} [{points[1]}, {points[2]}]", alone]))
    table(["points, all runs", "each"], told)
    table(["minutes", "peak memory, GB", "dollars"], [
        (folder.name, [f"{r['seconds'] / 60:.1f}", f"{r['peak_memory_bytes'] / 1e9:.2f}", f"{r['cost_usd']:.4f}"])
        for folder, r in zip(folders, reports, strict=True)
    ])  # fmt: skip


def differences(folder: Path, one: str, other: str) -> list[list[float]]:
    """For each task of reasoning, by how much a stage's model answers each problem more often than another's."""
    before, after = (
        json.loads((folder / "stages" / f"evaluate-{stage}" / "result.json").read_text()) for stage in (one, other)
    )
    return [
        [(b - a) / task["samples"] for a, b in zip(before["right"][name], after["right"][name], strict=True)]
        for name, task in after["tasks"].items() if task["reasoning"]
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="finished run folders")
    parser.add_argument("--critic", type=Path, nargs="+", metavar="FILE", help="what benchmarks/critic.py --json wrote")
    parser.add_argument("--chain", type=Path, nargs="+", metavar="RUN", help="finished runs of R1's recipe")
    options = parser.parse_args()
    if options.chain:
        chain(options.chain)
        return
    if options.critic:
        critic([json.loads(path.read_text()) for path in options.critic])
        return
    if not options.runs:
        parser.error("give run folders, --chain with some, or --critic with files")
    reports = [json.loads((folder / "report.json").read_text()) for folder in options.runs]
    whole(reports, options.runs)
    by_task(reports, options.runs)


if __name__ == "__main__":
    main()
