"""`report.md`: the report as Markdown with tables, for terminals, issues and diffs."""

import re
from typing import Any

from hadal.report.findings import bounds, frontier_words, largest_k, mode_of, pass_at, percent
from hadal.report.words import (
    ABOUT_API_PRICES,
    ABOUT_INTERVALS,
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

_MARKS = re.compile(r"([\\`*_\[\]<>#|~$&])")


def inline(text: Any) -> str:
    """Text that Markdown shows as it is, on one line, also inside a table."""
    return _MARKS.sub(r"\\\1", " ".join(printable(str(text)).split()))


def block(text: str) -> str:
    """Text in a fence that nothing inside it can close."""
    text = cut(printable(text))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def share(estimate: dict[str, Any] | None) -> str:
    """`93% (92–94%, n 500)`, or a dash."""
    if not estimate or estimate.get("accuracy") is None:
        return "–"
    return f"{percent(estimate['accuracy'])} ({bounds(estimate)}, n {estimate['n']})"


def page(report: dict[str, Any]) -> str:
    """The whole page."""
    tasks, mean = report["tasks"], report["mean"]
    parts = [f"# {inline(report['headline'])}", inline(setting(report)) + "."]
    if tasks:
        parts += ["## Before and after, held-out problems, temperature 1.0", _tasks_table(tasks, mean)]
        parts.append(ABOUT_INTERVALS)
        parts.append("## What did reinforcement learning change?")
        for finding in report["findings"]:
            parts.append(f"**{inline(finding['question'])} {inline(finding['verdict'])}.**")
            parts += [inline(sentence) for sentence in finding["sentences"]]
        parts += ["### Made to think, made to answer at once", _modes_table(tasks)]
        parts += ["### The frontier (greedy, made to think)", _frontier_table(tasks)]
        if largest_k(tasks):
            parts += ["### pass@k", _pass_table(tasks)]
    if report["examples"]:
        parts.append("## The same problem, before and after")
        for example in report["examples"]:
            parts.append(f"**{inline(example['question'])}** (right: {inline(example['gold'])})")
            for side, word in (("base", "Before"), ("rl", "After")):
                verdict = {True: "right", False: "wrong"}.get(example[side].get("right"), "not checked")
                parts += [f"{word}, {verdict}:", block(example[side]["text"])]
    parts += ["## What it cost", stages_table(report)]
    if report["answer_cost"]:
        parts += ["### A million right answers", _answer_table(report["answer_cost"]), ABOUT_API_PRICES]
    if report["left_out"]:
        parts.append("## Left out")
        parts += [f"- {inline(name)}: {inline(reason)}" for name, reason in report["left_out"].items()]
    parts.append(
        f"Made by `{command(report)}`. The figures are in `report.json`, with plots in `report.html`."
    )
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def _tasks_table(tasks: dict[str, Any], mean: dict[str, Any]) -> str:
    rows = []
    for name, task in [*tasks.items(), ("mean of tasks", mean)]:
        base, rl = task["base"], task["rl"]
        row = [inline(name), number(task.get("difficulty")), share(base), share(rl)]
        for key, form in (("thinking_share", percent), ("length", number)):
            row.append(" → ".join("–" if side.get(key) is None else form(side[key]) for side in (base, rl)))
        row.append(
            " → ".join(
                share(side["new_phrasing"]) if side.get("new_phrasing") else "–" for side in (base, rl)
            )
        )
        rows.append(row)
    head = [
        "task",
        "difficulty",
        "base",
        "after RL",
        "share that thinks",
        "length, tokens",
        "phrasing never trained on",
    ]
    return table(head, rows)


def _modes_table(tasks: dict[str, Any]) -> str:
    rows = []
    for name, task in tasks.items():
        for key, words in DECODINGS.items():
            cells = [share(mode_of(task[s], key, m)) for m in ("thinking", "direct") for s in ("base", "rl")]
            if set(cells) != {"–"}:
                rows.append([inline(name), words, *cells])
    return table(["task", "decoding", "thinking, base", "thinking, RL", "direct, base", "direct, RL"], rows)


def _frontier_table(tasks: dict[str, Any]) -> str:
    rows = []
    for name, task in tasks.items():
        after = {row["difficulty"]: row for row in task["rl"].get("by_difficulty") or []}
        levels = [
            f"{row['difficulty']}: {percent(row['accuracy'])} → "
            f"{percent(after[row['difficulty']]['accuracy'])}"
            for row in task["base"].get("by_difficulty") or []
            if row["difficulty"] in after
        ]
        ends = [frontier_words(task, side) for side in ("base", "rl")]
        rows.append([inline(name), number(task.get("gold_limit")), *ends, "; ".join(levels) or "–"])
    return table(["task", "D", "base", "after RL", "accuracy at each difficulty, base → RL"], rows)


def _pass_table(tasks: dict[str, Any]) -> str:
    ks = sorted(
        {int(k) for t in tasks.values() for k in (t["base"].get("pass_at_k") or {}).get("values") or {}}
    )
    rows = []
    for name, task in tasks.items():
        for side, word in (("base", "base"), ("rl", "after RL")):
            cells = [percent(e["accuracy"]) if (e := pass_at(task[side], k)) else "–" for k in ks]
            rows.append([inline(name), word, *cells])
    return table(["task", "model", *(f"k = {k}" for k in ks)], rows)


def stages_table(report: dict[str, Any]) -> str:
    rows = []
    total = {**report, "stage": "total", "tokens_per_second": None}
    for stage in [*report["stages"], total]:
        rows.append(
            [
                inline(stage_title(stage["stage"])),
                span(stage["seconds"]),
                number(stage["tokens_trained"]),
                number(stage["tokens_sampled"]),
                number(stage["flops"]),
                size(stage["peak_memory_bytes"]),
                money(stage["cost_usd"]),
            ]
        )
    head = ["stage", "time", "tokens trained", "tokens sampled", "FLOPs", "peak memory", "cost"]
    text = table(head, rows)
    if report["price_per_hour"] is not None:
        text += f"\n\nAt {money(report['price_per_hour'])} an hour ({inline(report['price_source'])})."
    return text


def _answer_table(cost: dict[str, Any]) -> str:
    models = [api["model"] for api in cost["api"]]
    rows = []
    for side, word in (("base", "base"), ("rl", "after RL")):
        line = cost[side]
        rows.append(
            [word, number(line["tokens_per_right_answer"]), million(line["usd_per_right_answer"])]
            + [million(line["api_usd_per_right_answer"][model]) for model in models]
        )
    head = ["model", "tokens for one", "a million here"]
    head += [f"as many at {inline(api['model'])}'s price ({inline(api['date'])})" for api in cost["api"]]
    return table(head, rows)
