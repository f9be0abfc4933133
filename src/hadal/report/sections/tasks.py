"""Before and after, task by task, by itself: free to choose whether to think."""

from collections.abc import Callable
from typing import Any

from hadal.report import html, markdown
from hadal.report.charts import esc, interval_rows, legend
from hadal.report.markdown import inline
from hadal.report.words import ABOUT_INTERVALS, ABOUT_N, number, percent

Json = dict[str, Any]
SIDES = ("base", "rl")
FORMS: dict[str, Callable[[Any], str]] = {"thinking_share": percent, "length": number, "new_phrasing": markdown.share}
"""Of the columns of the Markdown's table."""


def as_html(report: Json, metrics: list[Json]) -> str:
    if not report["tasks"]:
        return ""
    rows = []
    mean = {"about": "every task counts the same", **report["mean"]}
    for name, task in [*report["tasks"].items(), ("Mean of tasks", mean)]:
        base, rl = task["base"], task["rl"]
        level = f" Difficulty {esc(task['difficulty'])}." if task.get("difficulty") is not None else ""
        told = f"{name}: {percent(base['accuracy'])} before, {percent(rl['accuracy'])} after"
        css = " mean" if task is mean else ""
        rows.append(
            f'<div class="task{css}"><div class="what"><b>{esc(name)}</b><p>'
            f"{esc(task.get('about') or '')}.{level}</p></div>"
            f"{interval_rows([('base', base), ('rl', rl)], told)}"
            f'<div class="result"><span class="base-word">{html.share(base)}</span><span>{html.share(rl)}</span>'
            f"<small>n = {rl['n']:,}</small></div></div>"
        )
    keys = legend([("base", "before (base)"), ("rl", "after reinforcement learning")])
    scale = "".join(f"<i>{number}</i>" for number in ("0", "25", "50", "75", "100%"))
    axis = f'<div class="task axis"><div></div><div class="scale">{scale}</div><div></div></div>'
    return (
        "<section><h2>Before and after, task by task</h2><p>Problems that share nothing with training, free to choose "
        f"whether to think, temperature {report['rows'][0]['temperature']}. {keys}</p>"
        f'<div class="tasks">{"".join(rows)}{axis}</div><p class="note">Bars are 95% intervals; {ABOUT_N}</p>'
        f"{_new_phrasing(report['tasks'])}</section>"
    )


def _new_phrasing(tasks: Json) -> str:
    rows = [
        [esc(name), *(html.share(task[s]["new_phrasing"]) for s in SIDES), f"{task['rl']['new_phrasing']['n']:,}"]
        for name, task in tasks.items()
        if all(task[side].get("new_phrasing") for side in SIDES)
    ]
    if not rows:
        return ""
    return "<h3>Asked in words it was never trained on</h3>" + html.table(["task", "before", "after", "n"], rows)


def as_markdown(report: Json) -> list[str]:
    if not report["tasks"]:
        return []
    rows = []
    for name, task in [*report["tasks"].items(), ("mean of tasks", report["mean"])]:
        base, rl = task["base"], task["rl"]
        row = [inline(name), number(task.get("difficulty")), markdown.share(base), markdown.share(rl)]
        for key, form in FORMS.items():
            row.append(" → ".join("–" if side.get(key) is None else form(side[key]) for side in (base, rl)))
        rows.append(row)
    head = ["task", "difficulty", "base", "after RL", "share that thinks", "length, tokens"]
    table = markdown.table([*head, "phrasing never trained on"], rows)
    title = f"## Before and after, held-out problems, temperature {report['rows'][0]['temperature']}"
    return [title, table, ABOUT_INTERVALS]
