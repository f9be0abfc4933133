"""`report.html` of a chain of stages: one file that opens anywhere, as `html.py` makes it."""

from __future__ import annotations

from typing import Any

from hadal.report.chain import PAPER, PAPER_COLUMNS, shape_shares
from hadal.report.chain_markdown import made_by
from hadal.report.charts import Series, esc, interval_rows, legend, line_chart, thin
from hadal.report.findings import percent
from hadal.report.html import cost, document, figure, findings, foot, response, share, table
from hadal.report.words import ABOUT_STAGES, cut, money, number, setting, size, span

Json = dict[str, Any]
COLOURS = 6
CURVES = (
    ("reward", "Reward", False), ("length", "Response length, tokens", False), ("entropy", "Entropy, nats", False),
    ("thinking_share", "Share that thinks", True), ("truncated", "Share cut off at the limit", True),
)  # fmt: skip


def page(report: Json, metrics: list[Json]) -> str:
    """The whole page."""
    sections = [_head(report), _table(report), _tasks(report), _findings(report), _curves(report, metrics)]
    sections += [_examples(report), _sampling(report), cost(report), foot(report)]
    return document(f"{report['name']}: {report['headline']}", sections)


def _head(report: Json) -> str:
    memory = f", {size(report['peak_memory_bytes'])} of memory" if report["peak_memory_bytes"] else ""
    tiles = "".join(
        f"<div><dt>{esc(row['stage'])}</dt><dd>{percent(row['mean']['accuracy'])}</dd><p>{esc(made_by(row))}</p></div>"
        for row in report["rows"]
    )
    spent = f"<div><dt>spent</dt><dd>{money(report['cost_usd'])}</dd><p>{span(report['seconds'])}{memory}</p></div>"
    return (
        f'<header><p class="brand">hadal <span>{esc(report["name"])}</span></p>'
        f'<h1>{esc(report["headline"])}</h1><p class="lead">{esc(setting(report))}.</p>'
        f'<dl class="tiles">{tiles}{spent}</dl></header>'
    )


def _table(report: Json) -> str:
    if not report["rows"]:
        return ""
    k = report["rows"][0]["mean"]["samples"]
    paper = any(row["stage"] in PAPER for row in report["rows"])
    head = ["model", "pass@1", f"cons@{k}", "length", "thinks", "clean form", "one language", "reflection"]
    head += [f"<small>DeepSeek's</small>{name}" for name in PAPER_COLUMNS] if paper else []
    rows = []
    for row in report["rows"]:
        mean = row["mean"]
        cells = [f"{esc(row['stage'])} <small>{esc(made_by(row))}</small>", share(mean), share(mean["cons"])]
        cells += [number(mean["length"]), *shape_shares(mean), f"{mean['reflection']:.2f}"]
        rows.append(cells + ([f"{v}" for v in PAPER.get(row["stage"], ("–",) * 3)] if paper else []))
    about = "Mean of the tasks of reasoning, held-out problems; reflection: words that look back, in a response. "
    note = f'<p class="note">{about}{ABOUT_STAGES}</p>'
    return f"<section><h2>The stages</h2>{table(head, rows, 'modes')}{note}</section>"


def _tasks(report: Json) -> str:
    """Task by task, all stages in one picture each."""
    names = list(dict.fromkeys(name for row in report["rows"] for name in row["tasks"]))
    cards = []
    for name in names:
        rows = [row for row in report["rows"] if name in row["tasks"]]
        head = ["model", "", "pass@1", "cons", "length", "clean"]
        lines = []
        for row in rows:
            task = row["tasks"][name]
            css = "base" if row["kind"] == "pretrain" else "rl"
            told = f"{row['stage']}: {percent(task['accuracy'])}"
            lines.append([
                esc(row["stage"]), interval_rows([(css, task)], told), share(task), percent(task["cons"]["accuracy"]),
                number(task["length"]), percent(task["format"]),
            ])  # fmt: skip
        level = rows[0]["tasks"][name]
        about = f"<p>{esc(level['about'])}, difficulty {level['difficulty']}</p>"
        cards.append(f"<h3>{esc(name)}</h3>{about}{table(head, lines)}")
    return f"<section><h2>Task by task</h2>{''.join(cards)}</section>" if cards else ""


def _findings(report: Json) -> str:
    cards = findings(report)
    return f'<section><h2>What each stage changed</h2><div class="findings">{cards}</div></section>' if cards else ""


def _curves(report: Json, metrics: list[Json]) -> str:
    """Curves of all stages of one sort in one picture, each from its own first step."""
    stages = list(dict.fromkeys(line["stage"] for line in metrics if "reward" in line))
    colour = {stage: f"t{i % COLOURS}" for i, stage in enumerate(stages)}
    keys = legend([(colour[stage], stage) for stage in stages])

    def lines(key: str) -> list[Series]:
        found = []
        for stage in stages:
            own = [(m["step"], m[key]) for m in metrics if m["stage"] == stage and isinstance(m.get(key), int | float)]
            found.append(Series(stage, colour[stage], thin(own)))
        return [line for line in found if line.points]

    figures = []
    for key, title, as_percent in CURVES:
        if drawn := lines(key):
            figures.append(figure(title, line_chart(drawn, "update", title, as_percent), keys))
    held: list[Series] = []
    for stage in stages:
        own = [m for m in metrics if m["stage"] == stage and isinstance(m.get("held_out"), dict)]
        values = [(m["step"], sum(m["held_out"].values()) / len(m["held_out"])) for m in own]
        held += [Series(stage, colour[stage], values, dots=True)] if values else []
    if held:
        figures.insert(1, figure("pass@1 on watched problems", line_chart(held, "update", "Accuracy", True), keys))
    words = [Series(n, colour.get(n, "t0"), [(s, c) for s, c in v], dots=True) for n, v in report["reflection"].items()]
    if words:
        note = ", ".join(report["reflection_words"])
        chart = line_chart(words, "update", "Words of reflection")
        figures.append(figure("Words of reflection in a response", chart, keys, note))
    losses = list(dict.fromkeys(line["stage"] for line in metrics if "loss" in line and "reward" not in line))
    for i, stage in enumerate(losses):
        points = [(m["step"], m["loss"]) for m in metrics if m["stage"] == stage and isinstance(m.get("loss"), float)]
        if points:
            line = Series(stage, f"t{i % COLOURS}", thin(points))
            figures.append(figure(f"{stage}: loss", line_chart([line], "step", "Loss")))
    said = "".join(f"<li>{esc(a['stage'])}, update {a['step']}: {esc(a['text'])}</li>" for a in report["alarms"])
    said = f"<h3>What the watch said</h3><ul>{said}</ul>" if said else ""
    if not figures:
        return ""
    return f'<section><h2>While it learned</h2><div class="grid2">{"".join(figures)}</div>{said}</section>'


def _examples(report: Json) -> str:
    cards = []
    for example in report["examples"]:
        halves = "".join(
            f'<div class="{"rl" if said["right"] else "base"}"><p class="side">{esc(said["stage"])} '
            f'{"<b class=right>✓ right</b>" if said["right"] else "<b class=wrong>✗ wrong</b>"}</p>'
            f"{response(said['text'])}</div>"
            for said in example["said"]
        )
        cards.append(
            f'<article><h3>{esc(cut(example["question"], 300))}</h3><p class="note">{esc(example["task"])}; '
            f'the right answer is {esc(cut(str(example["gold"]), 200))}</p><div class="pair">{halves}</div></article>'
        )
    return f"<section><h2>The same problem after each stage</h2>{''.join(cards)}</section>" if cards else ""


def _sampling(report: Json) -> str:
    if not report["sampling"]:
        return ""
    keys = ["answers", "kept", "wrong", "unreadable", "twice", "gold", "plain"]
    rows = [[esc(s["stage"]), *(f"{s.get(key, 0):,}" for key in keys)] for s in report["sampling"]]
    about = "Of what a teacher answered, the right and readable is kept; gold and plain are mixed in."
    return f"<section><h2>Rejection sampling</h2><p>{about}</p>{table(['stage', *keys], rows)}</section>"
