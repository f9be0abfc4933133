"""How the models of a run compare: the page's first sentence, and what each stage moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hadal.evaluate.statistics import intervals
from hadal.report.examined import in_depth
from hadal.report.findings import change, took_to_thinking
from hadal.report.words import estimated, from_to, percent, points, stage_title

Json = dict[str, Any]
CLOSE = 0.005  # a difference of shares that no sentence calls one


def headline(rows: list[Json], final: str) -> str:
    """The page's first sentence, no stronger than the numbers."""
    last = next((row for row in rows if row["stage"] == final), None)
    if last is None:
        return "No stage was examined"
    ends = rows[0], last
    if not _reasoning(*ends):
        return "No gain is shown: the first and the last model were given different tasks"
    numbers = " to ".join(f"{percent(row['mean']['accuracy'])} ({stage_title(row['stage'])})" for row in ends)
    moved, words = difference(*ends)
    if moved == 0:
        return f"No gain is shown: from {numbers}, {words}"
    if moved < 0:
        return f"It got worse: from {numbers} right"
    thinks = took_to_thinking(*(row["mean"] for row in ends))
    return f"{'It learned to think' if thinks else 'It got better'}: from {numbers} right"


def stage_findings(rows: list[Json], final: str) -> list[Json]:
    """What each stage changed, and how models compare that the recipe sets side by side.

    The two that were examined in depth are left to `findings.py`, which says more of them.
    """
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
    deep = [row["stage"] for row in in_depth(rows, final) or ()]
    told = [(by_name[before], by_name[after], how) for before, after, how in pairs if [before, after] != deep]
    return [_told(before, after, how) for before, after, how in told if _reasoning(before, after)]


def difference(before: Json, after: Json, tasks: Sequence[str] = ()) -> tuple[int, str]:
    """1, -1 or 0 by which of two rows is the better, and by how much, in words.

    tasks: those to go by; none stands for all that are to be reasoned about. Where both answered the same problems, the
    interval is that of the differences, problem by problem (paired bootstrap).
    """
    named = list(tasks) or _reasoning(before, after)
    shares = [(before["tasks"][name]["accuracy"], after["tasks"][name]["accuracy"]) for name in named]
    words = points(sum(b - a for a, b in shares) / len(shares))
    pairs = [(before["right"].get(name, []), after["right"].get(name, [])) for name in named]
    samples = {row["tasks"][name].get("samples") for row in (before, after) for name in named}
    if len(samples) > 1 or any(not a or len(a) != len(b) for a, b in pairs):
        one = len(tasks) == 1
        moved = change(*(row["tasks"][named[0]] if one else row["mean"] for row in (before, after)))
        return moved, words + ("" if moved else "; the intervals overlap")
    (k,) = samples
    (found,) = intervals([(np.array(b) - np.array(a))[:, None] / k for a, b in pairs])
    low, high = (f"{100 * found[end]:+.1f}".replace("-", "−") for end in ("low", "high"))
    return (found["low"] > 0) - (found["high"] < 0), f"{words} ({low} to {high} on the same problems)"


def _reasoning(before: Json, after: Json) -> list[str]:
    """The tasks of two rows that are to be reasoned about; all that both have where there are none."""
    both = [name for name in after["tasks"] if name in before["tasks"]]
    return [name for name in both if after["tasks"][name].get("reasoning")] or both


def _told(before: Json, after: Json, how: str) -> Json:
    one, other = before["mean"], after["mean"]
    both = [name for name in after["tasks"] if name in before["tasks"]]
    moved, words = difference(before, after)
    verdict = {1: "higher", -1: "lower", 0: "no difference shown"}[moved]
    sentences = [f"Right answers went {from_to(one, other)}, {words}."]
    if how == "against":
        sentences = [f"Right answers: {estimated(one)} and {estimated(other)}, {words}."]
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
        ends = one.get(key), other.get(key)
        if ends[0] is not None and ends[1] is not None and abs(ends[0] - ends[1]) > CLOSE:
            shape.append(f"{word} {percent(ends[0])} → {percent(ends[1])}")
    sentences.append(f"{'; '.join(shape)[0].upper()}{'; '.join(shape)[1:]}.")
    names = (after["stage"], before["stage"])
    question = f"{names[0]} against {names[1]}" if how == "against" else f"{names[1]} → {names[0]}"
    name = after["kind"] if how == "stage" else "side by side"
    return {"name": name, "question": question, "verdict": verdict, "changed": moved > 0, "sentences": sentences}
