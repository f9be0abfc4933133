"""What reinforcement learning changed: mode, sharpening and skill, with the figures that they are told apart by."""

from collections.abc import Callable
from typing import Any

from hadal.report import html, markdown
from hadal.report.charts import Series, esc, legend, line_chart
from hadal.report.findings import DEEP, frontier_words, largest_k, mode_of, pass_at
from hadal.report.markdown import inline
from hadal.report.words import DECODINGS, number, percent

Json = dict[str, Any]
TITLE = "What did reinforcement learning change?"
SIDES = (("base", "base"), ("rl", "after RL"))


def as_html(report: Json, metrics: list[Json]) -> str:
    tasks = report["tasks"]
    if not tasks:
        return ""
    return (
        f"<section><h2>{TITLE}</h2><p>Three things that are easily confused. <b>Mode</b>: it chooses to "
        "think more often, as it could before. <b>Sharpening</b>: its samples come closer to the best it already "
        "could. <b>Skill</b>: it solves what it could not solve at its best. The sentences below are computed from the "
        "numbers; where two intervals overlap they say that no change is shown.</p>"
        f'<div class="findings">{html.findings(_findings(report))}</div>{_frontiers(tasks)}{_passes(tasks)}'
        f"{_modes(tasks)}</section>"
    )


def as_markdown(report: Json) -> list[str]:
    tasks = report["tasks"]
    if not tasks:
        return []
    parts = [f"## {TITLE}"]
    for finding in _findings(report):
        parts.append(f"**{inline(finding['question'])} {inline(finding['verdict'])}.**")
        parts += [inline(sentence) for sentence in finding["sentences"]]
    parts += ["### Made to think, made to answer at once", _modes_markdown(tasks)]
    parts += ["### The frontier (greedy, made to think)", _frontiers_markdown(tasks)]
    return parts + (["### pass@k", _passes_markdown(tasks)] if largest_k(tasks) else [])


def _findings(report: Json) -> list[Json]:
    return [finding for finding in report["findings"] if finding["name"] in DEEP]


# The frontier


def _frontiers(tasks: Json) -> str:
    figures = []
    for name, task in tasks.items():
        lines = []
        for side, label in SIDES:
            rows = sorted(task[side].get("by_difficulty") or [], key=lambda row: row["difficulty"])
            points = [(r["difficulty"], r["accuracy"]) for r in rows]
            band = [(r["difficulty"], r["low"], r["high"]) for r in rows]
            lines.append(Series(label, side, points, band, dots=True, hollow=side == "base"))
        if not lines[0].points:
            continue
        ends = [frontier_words(task, side) for side, _ in SIDES]
        limit = task.get("gold_limit")
        marks = [(float(limit), f"D = {limit}")] if limit is not None else []
        told = f"{name}: frontier {ends[0]} before and {ends[1]} after"
        body = line_chart(lines, "difficulty", told, True, marks=marks, half=True)
        figures.append(html.figure(f"{name}: frontier {ends[0]} → {ends[1]}", body))
    if not figures:
        return ""
    keys = legend([*SIDES])
    return (
        "<h3>The frontier: greedy, made to think</h3><p>The frontier is where accuracy crosses one half. Worked "
        "thoughts exist only up to D; above it the model only ever learned whether its answer was right. "
        f'{keys}</p><div class="grid2">{"".join(figures)}</div>'
    )


def _frontiers_markdown(tasks: Json) -> str:
    rows = []
    for name, task in tasks.items():
        after = {row["difficulty"]: row for row in task["rl"].get("by_difficulty") or []}
        levels = [
            f"{row['difficulty']}: {percent(row['accuracy'])} → {percent(after[row['difficulty']]['accuracy'])}"
            for row in task["base"].get("by_difficulty") or []
            if row["difficulty"] in after
        ]
        ends = [frontier_words(task, side) for side, _ in SIDES]
        rows.append([inline(name), number(task.get("gold_limit")), *ends, "; ".join(levels) or "–"])
    return markdown.table(["task", "D", "base", "after RL", "accuracy at each difficulty, base → RL"], rows)


# pass@k


def _passes(tasks: Json) -> str:
    figures = []
    for name, task in tasks.items():
        lines = []
        for side, label in SIDES:
            line = Series(label, side, [], dots=True, hollow=side == "base")
            for k in _ks(task[side]):
                if estimate := pass_at(task[side], k):
                    line.points.append((k, estimate["accuracy"]))
                    line.band.append((k, estimate["low"], estimate["high"]))
            lines.append(line)
        if lines[0].points and lines[1].points:
            n = (task["rl"].get("pass_at_k") or {}).get("n_problems")
            told = f"{name}: pass@k before and after"
            body = line_chart(lines, "k tries for each problem", told, True, log2_x=True)
            figures.append(html.figure(f"{name}: pass@k", body, note=f"{n:,} problems"))
    if not figures:
        return ""
    keys = legend([*SIDES])
    return (
        "<h3>pass@k: solved at least once in k tries</h3><p>If the base catches up as k grows, reinforcement learning "
        f'made likely what was already possible. {keys}</p><div class="grid2">{"".join(figures)}</div>'
    )


def _passes_markdown(tasks: Json) -> str:
    ks = sorted({k for task in tasks.values() for k in _ks(task["base"])})
    rows = []
    for name, task in tasks.items():
        for side, word in SIDES:
            cells = [percent(e["accuracy"]) if (e := pass_at(task[side], k)) else "–" for k in ks]
            rows.append([inline(name), word, *cells])
    return markdown.table(["task", "model", *(f"k = {k}" for k in ks)], rows)


def _ks(side: Json) -> list[int]:
    """The k of pass@k that one side has."""
    return sorted(int(k) for k in (side.get("pass_at_k") or {}).get("values") or {})


# Made to think, made to answer


def _modes(tasks: Json) -> str:
    rows: list[list[str]] = []
    for name, task in tasks.items():
        found = _measured_modes(task, html.share)
        rows += [[f"{'' if i else esc(name)}<small>{words}</small>", *cells] for i, (words, cells) in enumerate(found)]
    if not rows:
        return ""
    head = ["task and decoding", "made to think, base", "after RL", "made to answer, base", "after RL"]
    return f"<h3>Made to think, made to answer at once</h3>{html.table(head, rows, 'modes')}"


def _modes_markdown(tasks: Json) -> str:
    rows = [
        [inline(name), words, *cells]
        for name, task in tasks.items()
        for words, cells in _measured_modes(task, markdown.share)
    ]
    return markdown.table(["task", "decoding", "thinking, base", "thinking, RL", "direct, base", "direct, RL"], rows)


def _measured_modes(task: Json, form: Callable[[Json | None], str]) -> list[tuple[str, list[str]]]:
    """For each decoding that was measured, its name and its four cells."""
    found = []
    for key, words in DECODINGS.items():
        cells = [form(mode_of(task[side], key, made)) for made in ("thinking", "direct") for side, _ in SIDES]
        if set(cells) != {"–"}:
            found.append((words, cells))
    return found
