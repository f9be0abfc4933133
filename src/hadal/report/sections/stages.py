"""Every examined model beside the others: R1's table of stages with the run's own rows, each task, and what each
stage changed."""

from typing import Any

from hadal.report import html, markdown
from hadal.report.charts import esc, interval_rows
from hadal.report.findings import DEEP
from hadal.report.markdown import inline
from hadal.report.words import ABOUT_STAGES, estimated, made_by, number, percent

Json = dict[str, Any]
PAPER = {
    "r1-zero": (77.9, 95.9, 46.6), "dev1": (59.0, 94.2, 71.7), "dev2": (74.0, 95.9, 72.0), "dev3": (78.1, 95.4, 78.1),
    "r1": (79.8, 97.3, 83.3),
}  # fmt: skip
PAPER_COLUMNS = ("AIME 2024", "MATH-500", "IF-Eval")
"""DeepSeek-R1 at each stage (arXiv 2501.12948v2, table 3): reasoning, reasoning, following instructions."""
CHANGED = "What each stage changed"


def as_html(report: Json, metrics: list[Json]) -> str:
    cards = html.findings(_findings(report))
    changed = f'<section><h2>{CHANGED}</h2><div class="findings">{cards}</div></section>' if cards else ""
    rows = _rows(report)
    return f"{_stage_table(rows)}{_by_task(rows)}{changed}" if rows else changed


def as_markdown(report: Json) -> list[str]:
    parts, rows, found = [], _rows(report), _findings(report)
    if rows:
        parts += ["## The stages, held-out problems of reasoning", _stage_table_markdown(rows), ABOUT_STAGES]
        parts += ["### By task: pass@1", _by_task_markdown(rows)]
    parts += [f"## {CHANGED}"] if found else []
    for finding in found:
        parts.append(f"**{inline(finding['question'])}: {inline(finding['verdict'])}.**")
        parts.append(inline(" ".join(finding["sentences"])))
    return parts


def _rows(report: Json) -> list[Json]:
    """The models whose answers were put to the vote (cons@k).

    Two that gave one answer each and were examined in depth stand side by side in `tasks.py`, which says as much.
    """
    rows = [row for row in report["rows"] if "cons" in row["mean"]]
    return [] if report["tasks"] and all(row["mean"]["samples"] == 1 for row in rows) else rows


def _findings(report: Json) -> list[Json]:
    return [finding for finding in report["findings"] if finding["name"] not in DEEP]


def _shape_shares(mean: Json) -> list[str]:
    """How many of the responses think, are of clean form, and keep to one language."""
    return ["–" if mean[key] is None else percent(mean[key]) for key in ("thinking_share", "format", "language")]


def _paper(rows: list[Json]) -> tuple[list[str], dict[str, list[str]]]:
    """DeepSeek's columns and, by stage, its figures; nothing where no stage is called as one of its own."""
    if not any(row["stage"] in PAPER for row in rows):
        return [], {row["stage"]: [] for row in rows}
    return [*PAPER_COLUMNS], {row["stage"]: [str(v) for v in PAPER.get(row["stage"], ("–",) * 3)] for row in rows}


def _stage_table(rows: list[Json]) -> str:
    columns, theirs = _paper(rows)
    head = ["model", "pass@1", f"cons@{rows[0]['mean']['samples']}", "length", "thinks", "clean form", "one language"]
    head += ["reflection", *(f"<small>DeepSeek's</small>{name}" for name in columns)]
    lines = []
    for row in rows:
        mean = row["mean"]
        cells = [f"{esc(row['stage'])} <small>{esc(made_by(row))}</small>", html.share(mean), html.share(mean["cons"])]
        cells += [number(mean["length"]), *_shape_shares(mean), f"{mean['reflection']:.2f}", *theirs[row["stage"]]]
        lines.append(cells)
    about = "Mean of the tasks of reasoning, held-out problems; reflection: words that look back, in a response. "
    note = f'<p class="note">{about}{ABOUT_STAGES}</p>'
    return f"<section><h2>The stages</h2>{html.table(head, lines, 'modes')}{note}</section>"


def _stage_table_markdown(rows: list[Json]) -> str:
    columns, theirs = _paper(rows)
    head = ["model", "by", "pass@1", f"cons@{rows[0]['mean']['samples']}", "length", "thinks", "clean form"]
    head += ["one language", "reflection", *(f"DeepSeek's: {name}" for name in columns)]
    lines = []
    for row in rows:
        mean = row["mean"]
        cells = [inline(row["stage"]), inline(made_by(row)), estimated(mean), estimated(mean["cons"])]
        cells += [number(mean["length"]), *_shape_shares(mean), f"{mean['reflection']:.2f}", *theirs[row["stage"]]]
        lines.append(cells)
    return markdown.table(head, lines)


def _task_names(rows: list[Json]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["tasks"]))


def _by_task(rows: list[Json]) -> str:
    """Task by task, all models in one picture each."""
    cards = []
    for name in _task_names(rows):
        lines, tasks = [], [(row, row["tasks"][name]) for row in rows if name in row["tasks"]]
        for row, task in tasks:
            told = f"{row['stage']}: {percent(task['accuracy'])}"
            lines.append([
                esc(row["stage"]), interval_rows([(html.colour(row["kind"]), task)], told), html.share(task),
                percent(task["cons"]["accuracy"]), number(task["length"]), percent(task["format"]),
            ])  # fmt: skip
        _, level = tasks[0]
        table = html.table(["model", "", "pass@1", "cons", "length", "clean"], lines)
        about = f"<p>{esc(level['about'])}, difficulty {level['difficulty']}</p>"
        cards.append(f"<h3>{esc(name)}</h3>{about}{table}")
    return f"<section><h2>Task by task</h2>{''.join(cards)}</section>"


def _by_task_markdown(rows: list[Json]) -> str:
    names = _task_names(rows)
    lines = [
        [inline(row["stage"]), *(estimated(row["tasks"][name]) if name in row["tasks"] else "–" for name in names)]
        for row in rows
    ]
    return markdown.table(["model", *map(inline, names)], lines)
