"""The report of a chain of stages: R1's stage table with the run's own rows, and what each stage moved, in sentences.

Numbers come from the stages' examinations; the pages are in `chain_html.py` and `chain_markdown.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hadal.evaluate.reflection import REFLECTION, reflections
from hadal.evaluate.statistics import intervals
from hadal.files import JsonLines
from hadal.library.run_folder import read_json
from hadal.report.findings import bounds, change, from_to, percent, points, took_to_thinking

Json = dict[str, Any]
PAPER = {
    "r1-zero": (77.9, 95.9, 46.6), "dev1": (59.0, 94.2, 71.7), "dev2": (74.0, 95.9, 72.0), "dev3": (78.1, 95.4, 78.1),
    "r1": (79.8, 97.3, 83.3),
}  # fmt: skip
PAPER_COLUMNS = ("AIME 2024", "MATH-500", "IF-Eval")
"""DeepSeek-R1 at each stage (arXiv 2501.12948v2, table 3): reasoning, reasoning, following instructions."""
CLOSE = 0.005  # a difference of shares that no sentence calls one


def gather_chain(run: Path, config: Json) -> Json:
    """The table, the sentences, examples and counts of a run, from what its stages left."""
    rows = list(_rows(run, config["stage"]))
    final = config.get("publish") or (rows[-1]["stage"] if rows else "")
    return {
        "rows": [{key: value for key, value in row.items() if key not in ("responses", "right")} for row in rows],
        "final": final,
        "headline": _headline(rows, final),
        "findings": _findings(rows, final),
        "examples": _examples(rows, final),
        "reflection": reflection_counts(run, config["stage"]),
        "reflection_words": list(REFLECTION),
        "sampling": _sampling(run, config["stage"]),
        "alarms": [line for line in JsonLines(run / "metrics.jsonl").read() if "alarm" in line],
    }


def _rows(run: Path, stages: Json) -> Iterator[Json]:
    """One row for each examined model, in the order of the stages."""
    for name, stage in stages.items():
        path = run / "stages" / name / "result.json"
        if stage["kind"] == "evaluate" and path.is_file():
            result, of = read_json(path), stage["from"]
            made = stages.get(of, {"kind": "checkpoint"})
            yield {
                "stage": of, "kind": made["kind"], "method": made.get("method"), "from": made.get("from"),
                "tasks": result["tasks"], "mean": result["mean"], "responses": result["responses"],
                "right": result.get("right", {}),  # not in runs of before
            }  # fmt: skip


def _headline(rows: list[Json], final: str) -> str:
    ends = [row for row in rows if row["stage"] == final]
    if not rows or not ends:
        return "No stage was examined"
    first, last = rows[0]["mean"], ends[0]["mean"]
    numbers = f"from {percent(first['accuracy'])} ({rows[0]['stage']}) to {percent(last['accuracy'])} ({final})"
    moved, words = difference(rows[0], ends[0], _reasoning(rows[0], ends[0]))
    if moved == 0:
        return f"No gain is shown: {numbers}, {words}"
    if moved < 0:
        return f"It got worse: {numbers} right"
    return f"{'It learned to reason' if took_to_thinking(first, last) else 'It got better'}: {numbers} right"


def _reasoning(before: Json, after: Json) -> list[str]:
    """The tasks of two rows that are to be reasoned about; all that both have where there are none."""
    both = [name for name in after["tasks"] if name in before["tasks"]]
    return [name for name in both if after["tasks"][name]["reasoning"]] or both


def _findings(rows: list[Json], final: str) -> list[Json]:
    """What each stage changed, and how models compare that the recipe sets side by side."""
    by_name = {row["stage"]: row for row in rows}
    pairs = [(row["from"], row["stage"], "stage") for row in rows if row["from"] in by_name]
    firsts = [r["stage"] for r in rows if r["kind"] == "grpo" and by_name.get(r["from"], {}).get("kind") == "pretrain"]
    if final in by_name and firsts and firsts[0] != final:
        pairs.append((firsts[0], final, "against"))
    students = [row for row in rows if row["kind"] == "distill"]
    for student in students:
        for other in rows:
            if other["from"] == student["from"] and other["kind"] == "grpo":
                pairs.append((other["stage"], student["stage"], "against"))
    return [_told(by_name[before], by_name[after], how) for before, after, how in pairs]


def difference(before: Json, after: Json, tasks: Sequence[str]) -> tuple[int, str]:
    """1, -1 or 0 by which of two rows is the better on some tasks, and by how much, in words.

    Both answered the same problems: the interval is that of the differences, problem by problem (paired bootstrap).
    """
    shares = [(before["tasks"][name]["accuracy"], after["tasks"][name]["accuracy"]) for name in tasks]
    words = points(sum(b - a for a, b in shares) / len(shares))
    pairs = [(before["right"].get(name, []), after["right"].get(name, [])) for name in tasks]
    samples = {row["tasks"][name]["samples"] for row in (before, after) for name in tasks}
    if len(samples) > 1 or any(not a or len(a) != len(b) for a, b in pairs):
        estimates = [(before["tasks"][name], after["tasks"][name]) for name in tasks]
        moved = change(*(estimates[0] if len(tasks) == 1 else (before["mean"], after["mean"])))
        return moved, words + ("" if moved else "; the intervals overlap")
    (k,) = samples
    (found,) = intervals([(np.array(b) - np.array(a))[:, None] / k for a, b in pairs])
    low, high = (f"{100 * found[end]:+.1f}".replace("-", "−") for end in ("low", "high"))
    return (found["low"] > 0) - (found["high"] < 0), f"{words} ({low} to {high} on the same problems)"


def _told(before: Json, after: Json, how: str) -> Json:
    one, other = before["mean"], after["mean"]
    both = [name for name in after["tasks"] if name in before["tasks"]]
    moved, words = difference(before, after, _reasoning(before, after))
    verdict = {1: "higher", -1: "lower", 0: "no difference shown"}[moved]
    sentences = [f"Right answers went {from_to(one, other)}, {words}."]
    if how == "against":
        sentences = [f"Right answers: {cell(one)} and {cell(other)}, {words}."]
    by_task: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for name in both:
        by_task[difference(before, after, [name])[0]].append(
            f"{name} {percent(before['tasks'][name]['accuracy'])} → {percent(after['tasks'][name]['accuracy'])}"
        )
    for sign, word in ((1, "Higher"), (-1, "Lower")):
        if by_task[sign]:
            sentences.append(f"{word} on {', '.join(by_task[sign])}.")
    shape = [f"length {one['length']:.1f} → {other['length']:.1f} tokens"]
    for key, word in (("thinking_share", "thinks"), ("format", "clean form"), ("language", "one language")):
        if one[key] is not None and other[key] is not None and abs(one[key] - other[key]) > CLOSE:
            shape.append(f"{word} {percent(one[key])} → {percent(other[key])}")
    sentences.append(f"{'; '.join(shape)[0].upper()}{'; '.join(shape)[1:]}.")
    names = (after["stage"], before["stage"])
    question = f"{names[0]} against {names[1]}" if how == "against" else f"{names[1]} → {names[0]}"
    name = after["kind"] if how == "stage" else "side by side"
    return {"name": name, "question": question, "verdict": verdict, "changed": moved > 0, "sentences": sentences}


def _examples(rows: list[Json], final: str) -> list[Json]:
    """For each task one problem with every model's first answer: where there is one, that the last gets right and the
    first did not."""
    if not rows:
        return []
    last = next((row for row in rows if row["stage"] == final), rows[-1])
    out = []
    for name in rows[0]["responses"]:
        pairs = list(zip(rows[0]["responses"][name], last["responses"].get(name, []), strict=False))
        places = [i for i, (a, b) in enumerate(pairs) if b["right"] and not a["right"]] or ([0] if pairs else [])
        for place in places[:1]:
            asked = rows[0]["responses"][name][place]
            said = [
                {"stage": row["stage"], "text": row["responses"][name][place]["text"],
                 "right": row["responses"][name][place]["right"]}
                for row in rows if name in row["responses"]
            ]  # fmt: skip
            out.append({"task": name, "question": asked["question"], "gold": asked["gold"], "said": said})
    return out


def reflection_counts(run: Path, stages: Json) -> dict[str, list[tuple[int, float]]]:
    """By RL stage, (update, words of reflection in a response) of the rollouts that were written."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, stage in stages.items():
        if stage["kind"] != "grpo":
            continue
        for path in sorted((run / "rollouts").glob(f"{name}-*.jsonl")):
            step = path.stem.removeprefix(f"{name}-")
            if step.isdigit():
                texts = [sample["text"] for group in JsonLines(path).read() for sample in group["samples"]]
                found.setdefault(name, []).append((int(step), sum(map(reflections, texts)) / max(1, len(texts))))
    return found


def _sampling(run: Path, stages: Json) -> list[Json]:
    """What rejection sampling kept."""
    found = []
    for name, stage in stages.items():
        path = run / "stages" / name / "result.json"
        if stage["kind"] == "reject" and path.is_file():
            found.append({"stage": name, **{k: v for k, v in read_json(path).items() if k != "checkpoint"}})
    return found


def shape_shares(mean: Json) -> list[str]:
    """How many of the responses think, are of clean form, and keep to one language."""
    return ["–" if mean[key] is None else percent(mean[key]) for key in ("thinking_share", "format", "language")]


def cell(estimate: Json) -> str:
    """`93% (92–94%)`."""
    return f"{percent(estimate['accuracy'])} ({bounds(estimate)})"
