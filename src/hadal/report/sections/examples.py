"""The same problem after each stage: for each task one, with every model's response."""

from typing import Any

from hadal.report import html
from hadal.report.charts import esc
from hadal.report.markdown import block, inline
from hadal.report.words import cut, stage_title

Json = dict[str, Any]
TITLE = "The same problem after each stage"
_MARKS = {True: '<b class="right">✓ right</b>', False: '<b class="wrong">✗ wrong</b>'}


def as_html(report: Json, metrics: list[Json]) -> str:
    cards = []
    for example in report["examples"]:
        halves = "".join(
            f'<div class="{html.colour(said["kind"])}"><p class="side">{esc(stage_title(said["stage"]))} '
            f"{_MARKS.get(said['right'], '')}</p>{html.response(said['text'])}</div>"
            for said in example["said"]
        )
        cards.append(
            f'<article><h3>{esc(cut(example["question"], 300))}</h3><p class="note">{esc(example["task"])}; '
            f'the right answer is {esc(cut(str(example["gold"]), 200))}</p><div class="pair">{halves}</div></article>'
        )
    return f"<section><h2>{TITLE}</h2>{''.join(cards)}</section>" if cards else ""


def as_markdown(report: Json) -> list[str]:
    parts = [f"## {TITLE}"] if report["examples"] else []
    for example in report["examples"]:
        parts.append(f"**{inline(example['question'])}** (right: {inline(example['gold'])})")
        for said in example["said"]:
            verdict = {True: "right", False: "wrong"}.get(said["right"], "not checked")
            parts += [f"{inline(stage_title(said['stage']))}, {verdict}:", block(said["text"])]
    return parts
