"""What the run cost, stage by stage, and what a right answer of its models costs."""

from typing import Any

from hadal.report import html, markdown
from hadal.report.charts import esc
from hadal.report.markdown import inline
from hadal.report.words import ABOUT_API_PRICES, million, money, number, size, span, stage_title

Json = dict[str, Any]
HEAD = ["stage", "time", "tokens trained", "tokens sampled", "tokens/s", "FLOPs", "peak memory", "cost"]


def as_html(report: Json, metrics: list[Json]) -> str:
    rows = [[esc(title), *cells] for title, cells in _stages(report)]
    parts = [html.table(HEAD, rows, "stages")]
    if report["price_per_hour"] is not None:
        hourly = f"At {money(report['price_per_hour'])} an hour ({esc(report['price_source'])})."
        parts.append(f'<p class="note">{hourly}</p>')
    if cost := report["answer_cost"]:
        names = [
            f"at {esc(a['model'])}'s price <small>{esc(a['date'])}, {money(a['output'])} a million tokens</small>"
            for a in cost["api"]
        ]
        here = f"here <small>{money(cost['usd_per_million_tokens'])} a million tokens</small>"
        lines = [
            [word, tokens, f"<b>{own}</b>", *others]
            for word, (tokens, own, *others) in zip(("before", "after"), _answers(cost), strict=True)
        ]
        table = html.table(["model", "tokens for one", here, *names], lines)
        parts.append(f'<h3>What a million right answers cost</h3>{table}<p class="note">{ABOUT_API_PRICES}</p>')
    return f"<section><h2>What it cost</h2>{''.join(parts)}</section>"


def as_markdown(report: Json) -> list[str]:
    rows = [[inline(title), *cells] for title, cells in _stages(report)]
    parts = ["## What it cost", markdown.table(HEAD, rows)]
    if report["price_per_hour"] is not None:
        parts.append(f"At {money(report['price_per_hour'])} an hour ({inline(report['price_source'])}).")
    if cost := report["answer_cost"]:
        head = ["model", "tokens for one", "a million here"]
        head += [f"as many at {inline(api['model'])}'s price ({inline(api['date'])})" for api in cost["api"]]
        lines = [[word, *cells] for word, cells in zip(("base", "after RL"), _answers(cost), strict=True)]
        parts += ["### A million right answers", markdown.table(head, lines), ABOUT_API_PRICES]
    return parts


def _stages(report: Json) -> list[tuple[str, list[str]]]:
    """Each stage and their sum: its title, and the cells of its row."""
    total = {**report, "stage": "total", "tokens_per_second": None}
    return [
        (
            stage_title(stage["stage"]),
            [
                span(stage["seconds"]), number(stage["tokens_trained"]), number(stage["tokens_sampled"]),
                number(stage["tokens_per_second"]), number(stage["flops"]), size(stage["peak_memory_bytes"]),
                money(stage["cost_usd"]),
            ],
        )
        for stage in [*report["stages"], total]
    ]  # fmt: skip


def _answers(cost: Json) -> list[list[str]]:
    """Of the base and of what RL made of it: tokens for a right answer, and what a million of those cost."""
    return [
        [number(line["tokens_per_right_answer"]), million(line["usd_per_right_answer"])]
        + [million(line["api_usd_per_right_answer"][api["model"]]) for api in cost["api"]]
        for line in (cost["base"], cost["rl"])
    ]
