"""`report.html` and `report.md` of a run: the same sections, in the same order."""

from typing import Any

from hadal.report import html, markdown
from hadal.report.charts import esc
from hadal.report.sections import changes, cost, examples, learning, sampling, stages, tasks
from hadal.report.words import bounds, command, made_by, money, number, percent, setting, size, span

Json = dict[str, Any]
SECTIONS = (stages, examples, tasks, changes, learning, sampling, cost)


def as_html(report: Json, metrics: list[Json]) -> str:
    """The whole page. metrics: the lines of metrics.jsonl, for the curves."""
    sections = [section.as_html(report, metrics) for section in SECTIONS]
    return html.document(
        f"{report['name']}: {report['headline']}", [_head(report), *sections, _left_out(report), _foot(report)]
    )


def as_markdown(report: Json) -> str:
    """The whole page, in paragraphs."""
    parts = [f"# {markdown.inline(report['headline'])}", markdown.inline(setting(report)) + "."]
    for section in SECTIONS:
        parts += section.as_markdown(report)
    if report["left_out"]:
        parts.append("## Left out")
        parts += [f"- {markdown.inline(name)}: {markdown.inline(why)}" for name, why in report["left_out"].items()]
    parts.append(f"Made by `{command(report)}`. The figures are in `report.json`, with plots in `report.html`.")
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def _head(report: Json) -> str:
    tiles = _before_and_after(report) if report["tasks"] else [
        _tile(esc(row["stage"]), percent(row["mean"]["accuracy"]), esc(made_by(row))) for row in report["rows"]
    ]  # fmt: skip
    memory = f", {size(report['peak_memory_bytes'])} of memory" if report["peak_memory_bytes"] else ""
    tiles.append(_tile("spent", money(report["cost_usd"]), f"{span(report['seconds'])}{memory}"))
    return (
        f'<header><p class="brand">hadal <span>{esc(report["name"])}</span></p>'
        f'<h1>{esc(report["headline"])}</h1><p class="lead">{esc(setting(report))}.</p>'
        f'<dl class="tiles">{"".join(tiles)}</dl></header>'
    )


def _tile(name: str, figure: str, below: str) -> str:
    return f"<div><dt>{name}</dt><dd>{figure}</dd><p>{below}</p></div>"


def _before_and_after(report: Json) -> list[str]:
    base, rl = report["mean"]["base"], report["mean"]["rl"]

    def arrow(before: str, after: str) -> str:
        return f'<span class="base-word">{before}</span><span class="arrow">→</span>{after}'

    intervals = f"95% intervals {bounds(base)} and {bounds(rl)}; {rl['n']:,} held-out problems"
    tiles = [_tile("right answers", arrow(percent(base["accuracy"]), percent(rl["accuracy"])), intervals)]
    if base.get("thinking_share") is not None and rl.get("thinking_share") is not None:
        shares = arrow(percent(base["thinking_share"]), percent(rl["thinking_share"]))
        tiles.append(_tile("think first", shares, "share of responses, free to choose"))
    if base.get("length") and rl.get("length"):
        lengths = arrow(number(float(base["length"])), number(float(rl["length"])))
        tiles.append(_tile("response length", lengths, "tokens, thought and answer"))
    return tiles


def _left_out(report: Json) -> str:
    items = "".join(f"<li><b>{esc(name)}</b>: {esc(reason)}</li>" for name, reason in report["left_out"].items())
    about = "These tasks did not go into reinforcement learning."
    return f"<section><h2>Left out</h2><p>{about}</p><ul>{items}</ul></section>" if items else ""


def _foot(report: Json) -> str:
    mismatch = ""
    if report["largest_mismatch"] is not None:
        mismatch = (
            " The log-probabilities of sampler and trainer differed by "
            f"{report['largest_mismatch']:.1e} at most, measured at every step."
        )
    return (
        f"<footer><p>Make it yourself: <code>{esc(command(report))}</code></p><p>Every figure is in "
        f"<code>report.json</code> beside this page.{mismatch}</p></footer>"
    )
