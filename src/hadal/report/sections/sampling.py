"""What rejection sampling kept of what a teacher answered."""

from typing import Any

from hadal.report import html, markdown
from hadal.report.charts import esc

Json = dict[str, Any]
COUNTS = ("answers", "kept", "wrong", "unreadable", "twice", "gold", "plain")


def as_html(report: Json, metrics: list[Json]) -> str:
    if not report["sampling"]:
        return ""
    rows = [[esc(stage["stage"]), *_counts(stage)] for stage in report["sampling"]]
    about = "Of a teacher's answers, those that are right and readable are kept; gold and plain ones are mixed in."
    return f"<section><h2>Rejection sampling</h2><p>{about}</p>{html.table(['stage', *COUNTS], rows)}</section>"


def as_markdown(report: Json) -> list[str]:
    rows = [[markdown.inline(stage["stage"]), *_counts(stage)] for stage in report["sampling"]]
    return ["## Rejection sampling", markdown.table(["stage", *COUNTS], rows)] if rows else []


def _counts(stage: Json) -> list[str]:
    return [f"{stage.get(key, 0):,}" for key in COUNTS]
