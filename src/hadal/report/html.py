"""`report.html`: one file that opens anywhere. No script, no host, no font; plots are inline SVG.

What a model wrote is hostile text: everything passes through `esc`, and the page forbids itself all loading.
"""

from typing import Any

from hadal.report.charts import Series, esc, interval_rows, legend, line_chart, thin
from hadal.report.findings import bounds, frontier_words, mode_of, pass_at, percent
from hadal.report.style import CSS
from hadal.report.words import (
    ABOUT_API_PRICES,
    ABOUT_N,
    DECODINGS,
    command,
    cut,
    million,
    money,
    number,
    printable,
    setting,
    size,
    span,
    stage_title,
)
from hadal.text.parse import parse_response

Json = dict[str, Any]
_SIDES = (("base", "before"), ("rl", "after"))


def page(report: Json, metrics: list[Json]) -> str:
    """The whole page."""
    sections = [_head(report), _examples(report)]
    if report["tasks"]:
        sections += [_tasks(report)]
    sections += [_learning(report, metrics)]
    if report["tasks"]:
        sections += [_changes(report)]
    sections += [cost(report), _left_out(report), foot(report)]
    return document(f"{report['name']}: {report['headline']}", sections)


def document(title: str, sections: list[str]) -> str:
    """A page of sections, which may load nothing."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        "'unsafe-inline'\">"
        '<meta name="color-scheme" content="light dark">'
        f"<title>{esc(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


# --------------------------------------------------------------------------------------------------- pieces


def figure(title: str, body: str, keys: str = "", note: str = "") -> str:
    tail = f'<p class="note">{esc(note)}</p>' if note else ""
    return f"<figure><figcaption><b>{esc(title)}</b>{keys}</figcaption>{body}{tail}</figure>"


def table(head: list[str], rows: list[list[str]], css: str = "") -> str:
    """Cells are HTML already; the first of a row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    table = f'<table class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def share(estimate: Json | None) -> str:
    if not estimate or estimate.get("accuracy") is None:
        return "–"
    return f"{percent(estimate['accuracy'])} <small>{bounds(estimate)}</small>"


def _arrow(before: str, after: str) -> str:
    return f'<span class="base-word">{before}</span><span class="arrow">→</span>{after}'


def _head(report: Json) -> str:
    tiles = []
    if report["tasks"]:
        base, rl = report["mean"]["base"], report["mean"]["rl"]

        def tile(name: str, before: str, after: str, below: str) -> str:
            return f"<div><dt>{name}</dt><dd>{_arrow(before, after)}</dd><p>{below}</p></div>"

        tiles.append(
            tile(
                "right answers",
                percent(base["accuracy"]),
                percent(rl["accuracy"]),
                f"95% intervals {bounds(base)} and {bounds(rl)}; {rl['n']:,} held-out problems",
            )
        )
        if base.get("thinking_share") is not None and rl.get("thinking_share") is not None:
            shares = (percent(base["thinking_share"]), percent(rl["thinking_share"]))
            tiles.append(tile("think first", *shares, "share of responses, free to choose"))
        if base.get("length") and rl.get("length"):
            lengths = (number(float(base["length"])), number(float(rl["length"])))
            tiles.append(tile("response length", *lengths, "tokens, thought and answer"))
    spent = f"<dd>{money(report['cost_usd'])}</dd>" if report["cost_usd"] is not None else "<dd>–</dd>"
    memory = f", {size(report['peak_memory_bytes'])} of memory" if report["peak_memory_bytes"] else ""
    tiles.append(f"<div><dt>spent</dt>{spent}<p>{span(report['seconds'])}{memory}</p></div>")
    return (
        f'<header><p class="brand">hadal <span>{esc(report["name"])}</span></p>'
        f'<h1>{esc(report["headline"])}</h1><p class="lead">{esc(setting(report))}.</p>'
        f'<dl class="tiles">{"".join(tiles)}</dl></header>'
    )


def _tasks(report: Json) -> str:
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
            f'<div class="result"><span class="base-word">{share(base)}</span><span>{share(rl)}</span>'
            f"<small>n = {rl['n']:,}</small></div></div>"
        )
    keys = legend([("base", "before (base)"), ("rl", "after reinforcement learning")])
    scale = "".join(f"<i>{number}</i>" for number in ("0", "25", "50", "75", "100%"))
    axis = f'<div class="task axis"><div></div><div class="scale">{scale}</div><div></div></div>'
    fresh = [
        [
            esc(n),
            *(share(t[s].get("new_phrasing")) for s in ("base", "rl")),
            f"{t['rl']['new_phrasing']['n']:,}",
        ]
        for n, t in report["tasks"].items()
        if t["base"].get("new_phrasing") and t["rl"].get("new_phrasing")
    ]
    extra = ""
    if fresh:
        extra = "<h3>Asked in words it was never trained on</h3>" + table(
            ["task", "before", "after", "n"], fresh
        )
    return (
        "<section><h2>Before and after, task by task</h2><p>Problems that share nothing with "
        "training, free to "
        f"choose whether to think, temperature 1.0. {keys}</p>"
        f'<div class="tasks">{"".join(rows)}{axis}</div><p class="note">Bars are 95% intervals; '
        f"{ABOUT_N}</p>{extra}</section>"
    )


def response(text: str) -> str:
    parsed = parse_response(printable(text))
    parts = []
    if parsed.thought is not None:
        parts.append(f'<p class="thought">{esc(cut(parsed.thought)) or "(an empty thought)"}</p>')
    if not parsed.closed:
        parts.append('<p class="answer none">(never came to an answer)</p>')
    else:
        parts.append(f'<p class="answer">{esc(cut(parsed.answer)) or "(no answer)"}</p>')
    return "".join(parts)


def _examples(report: Json) -> str:
    cards = []
    for example in report["examples"]:
        halves = []
        for side, word in _SIDES:
            right = example[side].get("right")
            verdict = {True: '<b class="right">✓ right</b>', False: '<b class="wrong">✗ wrong</b>'}.get(
                right, ""
            )
            halves.append(
                f'<div class="{side}"><p class="side">{word} {verdict}</p>'
                f"{response(example[side]['text'])}</div>"
            )
        cards.append(
            f'<article><h3>{esc(cut(example["question"], 300))}</h3><p class="note">'
            f"{esc(example['task'])}; the right answer is "
            f"{esc(cut(str(example['gold']), 200))}</p>"
            f'<div class="pair">{"".join(halves)}</div></article>'
        )
    if not cards:
        return ""
    return f"<section><h2>The same problem, before and after</h2>{''.join(cards)}</section>"


def _learning(report: Json, metrics: list[Json]) -> str:
    def points(stage: str, key: str) -> list[tuple[float, float]]:
        return thin(
            [
                (r["step"], r[key])
                for r in metrics
                if r.get("stage") == stage and isinstance(r.get(key), int | float)
            ]
        )

    held = [r for r in metrics if r.get("stage") == "grpo" and isinstance(r.get("held_out"), dict)]
    names = list(report["tasks"])
    held_lines = [
        Series(
            name,
            f"t{index % 6}",
            [(r["step"], r["held_out"][name]) for r in held if name in r["held_out"]],
            dots=True,
        )
        for index, name in enumerate(names)
    ]
    levels = [r for r in metrics if r.get("stage") == "grpo" and isinstance(r.get("difficulty"), dict)]
    level_lines = [
        Series(
            name,
            f"t{index % 6}",
            thin([(r["step"], r["difficulty"][name]) for r in levels if name in r["difficulty"]]),
        )
        for index, name in enumerate(names)
    ]
    keys = legend([(line.css, line.label) for line in held_lines])
    step = "step of reinforcement learning"

    def single(stage: str, key: str, css: str, x: str, told: str, percent_axis: bool = False) -> str:
        line = Series(key, css, points(stage, key))
        if line.points:
            told += f", from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"
        return line_chart([line], x, told, percent_axis)

    figures = [
        figure(
            "Pre-training: loss",
            single("pretrain", "loss", "base", "step of pre-training", "Loss of pre-training"),
        ),
        figure(
            "Reward", single("grpo", "reward", "rl", step, "Mean reward", True), note=_curriculum_note(levels)
        ),
        figure("Right on held-out problems", line_chart(held_lines, step, "Accuracy by task", True), keys),
        figure("Response length, tokens", single("grpo", "length", "rl", step, "Mean response length")),
        figure(
            "Share that thinks",
            single("grpo", "thinking_share", "rl", step, "Share of responses that think", True),
        ),
    ]
    if levels:
        figures.append(
            figure(
                "Difficulty it practises",
                line_chart(level_lines, step, "Difficulty by task", from_zero=False),
                keys,
            )
        )
    return f'<section><h2>While it learned</h2><div class="grid2">{"".join(figures)}</div></section>'


def _curriculum_note(levels: list[Json]) -> str:
    return (
        "Problems get harder as it gets better, so the reward may stay level while skill grows."
        if levels
        else ""
    )


def findings(report: Json) -> str:
    """A card for each thing that was asked of the run."""
    return "".join(
        f'<article class="finding {"yes" if f["changed"] else "no"}"><p class="kind">{esc(f["name"])}</p>'
        f'<h3>{esc(f["question"])}</h3><p class="verdict">{esc(f["verdict"])}</p>'
        + "".join(f"<p>{esc(sentence)}</p>" for sentence in f["sentences"])
        + "</article>"
        for f in report["findings"]
    )


def _changes(report: Json) -> str:
    tasks = report["tasks"]
    cards = findings(report)
    return (
        "<section><h2>What did reinforcement learning change?</h2><p>Three things that are easily "
        "taken for one "
        "another. <b>Mode</b>: it chooses to think more often, as it could before. "
        "<b>Sharpening</b>: its samples come "
        "closer to the best it already could. <b>Skill</b>: it solves what it could not solve at its "
        "best. The sentences "
        "below are computed from the numbers; where two intervals overlap they say that no change is "
        "shown.</p>"
        f'<div class="findings">{cards}</div>{_frontiers(tasks)}{_passes(tasks)}{_modes(tasks)}</section>'
    )


def _frontiers(tasks: Json) -> str:
    figures = []
    for name, task in tasks.items():
        lines = []
        for side, label in (("base", "base"), ("rl", "after RL")):
            rows = sorted(task[side].get("by_difficulty") or [], key=lambda row: row["difficulty"])
            line = Series(
                label,
                side,
                [(r["difficulty"], r["accuracy"]) for r in rows],
                dots=True,
                hollow=side == "base",
            )
            line.band = [(r["difficulty"], r["low"], r["high"]) for r in rows]
            lines.append(line)
        if not lines[0].points:
            continue
        ends = [frontier_words(task, side) for side in ("base", "rl")]
        limit = task.get("gold_limit")
        marks = [(float(limit), f"D = {limit}")] if limit is not None else []
        body = line_chart(
            lines,
            "difficulty",
            f"{name}: frontier {ends[0]} before and {ends[1]} after",
            True,
            marks=marks,
            half=True,
        )
        figures.append(figure(f"{name}: frontier {ends[0]} → {ends[1]}", body))
    if not figures:
        return ""
    keys = legend([("base", "base"), ("rl", "after RL")])
    return (
        "<h3>The frontier: greedy, made to think</h3><p>The frontier is where accuracy crosses one "
        "half. Worked thoughts "
        f"exist only up to D; above it the model only ever learned whether its answer was right. {keys}</p>"
        f'<div class="grid2">{"".join(figures)}</div>'
    )


def _passes(tasks: Json) -> str:
    figures = []
    for name, task in tasks.items():
        lines = []
        for side, label in (("base", "base"), ("rl", "after RL")):
            measured = task[side].get("pass_at_k") or {}
            ks = sorted(int(k) for k in measured.get("values") or {})
            line = Series(label, side, [], dots=True, hollow=side == "base")
            for k in ks:
                estimate = pass_at(task[side], k)
                if estimate:
                    line.points.append((k, estimate["accuracy"]))
                    line.band.append((k, estimate["low"], estimate["high"]))
            lines.append(line)
        if lines[0].points and lines[1].points:
            n = (task["rl"].get("pass_at_k") or {}).get("n_problems")
            body = line_chart(
                lines, "k tries for each problem", f"{name}: pass@k before and after", True, log2_x=True
            )
            figures.append(figure(f"{name}: pass@k", body, note=f"{n:,} problems"))
    if not figures:
        return ""
    keys = legend([("base", "base"), ("rl", "after RL")])
    return (
        "<h3>pass@k: solved at least once in k tries</h3><p>If the base catches up as k grows, "
        "reinforcement learning made "
        f"likely what was already possible. {keys}</p>"
        f'<div class="grid2">{"".join(figures)}</div>'
    )


def _modes(tasks: Json) -> str:
    rows = []
    for name, task in tasks.items():
        first = True
        for key, words in DECODINGS.items():
            cells = [share(mode_of(task[s], key, m)) for m in ("thinking", "direct") for s in ("base", "rl")]
            if set(cells) != {"–"}:
                rows.append([f"{esc(name) if first else ''}<small>{words}</small>", *cells])
                first = False
    if not rows:
        return ""
    head = ["task and decoding", "made to think, base", "after RL", "made to answer, base", "after RL"]
    return f"<h3>Made to think, made to answer at once</h3>{table(head, rows, 'modes')}"


def cost(report: Json) -> str:
    total = {**report, "stage": "total", "tokens_per_second": None}
    rows = [
        [
            esc(stage_title(stage["stage"])),
            span(stage["seconds"]),
            number(stage["tokens_trained"]),
            number(stage["tokens_sampled"]),
            number(stage["tokens_per_second"]),
            number(stage["flops"]),
            size(stage["peak_memory_bytes"]),
            money(stage["cost_usd"]),
        ]
        for stage in [*report["stages"], total]
    ]
    head = ["stage", "time", "tokens trained", "tokens sampled", "tokens/s", "FLOPs", "peak memory", "cost"]
    parts = [table(head, rows, "stages")]
    if report["price_per_hour"] is not None:
        parts.append(
            f'<p class="note">At {money(report["price_per_hour"])} an hour ('
            f"{esc(report['price_source'])}).</p>"
        )
    cost = report["answer_cost"]
    if cost:
        lines = []
        for side, word in (("base", "before"), ("rl", "after")):
            line = cost[side]
            lines.append(
                [
                    word,
                    number(line["tokens_per_right_answer"]),
                    f"<b>{million(line['usd_per_right_answer'])}</b>",
                ]
                + [million(line["api_usd_per_right_answer"][api["model"]]) for api in cost["api"]]
            )
        names = [
            f"at {esc(a['model'])}'s price <small>{esc(a['date'])}, "
            f"{money(a['output'])} a million tokens</small>"
            for a in cost["api"]
        ]
        here = f"here <small>{money(cost['usd_per_million_tokens'])} a million tokens</small>"
        parts.append(
            "<h3>What a million right answers cost</h3>"
            + table(["model", "tokens for one", here, *names], lines)
        )
        parts.append(f'<p class="note">{ABOUT_API_PRICES}</p>')
    return f"<section><h2>What it cost</h2>{''.join(parts)}</section>"


def _left_out(report: Json) -> str:
    if not report["left_out"]:
        return ""
    items = "".join(
        f"<li><b>{esc(name)}</b>: {esc(reason)}</li>" for name, reason in report["left_out"].items()
    )
    about = "These tasks did not go into reinforcement learning."
    return f"<section><h2>Left out</h2><p>{about}</p><ul>{items}</ul></section>"


def foot(report: Json) -> str:
    mismatch = ""
    if report["largest_mismatch"] is not None:
        mismatch = (
            " The log-probabilities of sampler and trainer differed by "
            f"{report['largest_mismatch']:.1e} at most, "
            "measured at every step."
        )
    return (
        f"<footer><p>Make it yourself: <code>{esc(command(report))}</code></p><p>Every figure is in "
        f"<code>report.json</code> beside this page.{mismatch}</p></footer>"
    )
