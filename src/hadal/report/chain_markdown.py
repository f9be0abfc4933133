"""`report.md` of a chain of stages."""

from __future__ import annotations

from typing import Any

from hadal.report.chain import PAPER, PAPER_COLUMNS, cell, shape_shares
from hadal.report.markdown import block, inline, stages_table, table
from hadal.report.words import ABOUT_STAGES, command, number, setting

Json = dict[str, Any]


def page(report: Json) -> str:
    """The whole page."""
    parts = [f"# {inline(report['headline'])}", inline(setting(report)) + "."]
    if report["rows"]:
        parts += ["## The stages, held-out problems of reasoning", stage_table(report), ABOUT_STAGES]
        parts += ["### By task: pass@1", by_task(report)]
        parts.append("## What each stage changed")
        for finding in report["findings"]:
            parts.append(f"**{inline(finding['question'])}: {inline(finding['verdict'])}.**")
            parts.append(inline(" ".join(finding["sentences"])))
    if report["sampling"]:
        keys = ["answers", "kept", "wrong", "unreadable", "twice", "gold", "plain"]
        rows = [[inline(s["stage"]), *(f"{s.get(key, 0):,}" for key in keys)] for s in report["sampling"]]
        parts += ["## Rejection sampling", table(["stage", *keys], rows)]
    if report["reflection"]:
        rows = [
            [inline(name), " ".join(f"{step}: {count:.2f}" for step, count in counts)]
            for name, counts in report["reflection"].items()
        ]
        words = ", ".join(report["reflection_words"])
        parts += ["## Words of reflection in a response", table(["stage", "update: words"], rows), f"Counted: {words}."]
    if report["alarms"]:
        parts.append("## What the watch said while it learned")
        parts += [f"- {inline(a['stage'])}, update {a['step']}: {inline(a['text'])}" for a in report["alarms"]]
    if report["examples"]:
        parts.append("## The same problem after each stage")
        for example in report["examples"]:
            parts.append(f"**{inline(example['question'])}** (right: {inline(example['gold'])})")
            for said in example["said"]:
                parts += [f"{inline(said['stage'])}, {'right' if said['right'] else 'wrong'}:", block(said["text"])]
    parts += ["## What it cost", stages_table(report)]
    parts.append(f"Made by `{command(report)}`. The figures are in `report.json`, with plots in `report.html`.")
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def stage_table(report: Json) -> str:
    """The mean of tasks after each stage, beside what the paper has."""
    k = report["rows"][0]["mean"]["samples"]
    paper = any(row["stage"] in PAPER for row in report["rows"])
    head = ["model", "by", "pass@1", f"cons@{k}", "length", "thinks", "clean form", "one language"]
    head += [f"DeepSeek's: {name}" for name in PAPER_COLUMNS] if paper else []
    rows = []
    for row in report["rows"]:
        mean = row["mean"]
        cells = [inline(row["stage"]), inline(made_by(row)), cell(mean), cell(mean["cons"]), number(mean["length"])]
        rows.append(cells + shape_shares(mean) + (list(map(str, PAPER.get(row["stage"], ("–",) * 3))) if paper else []))
    return table(head, rows)


def by_task(report: Json) -> str:
    names = list(dict.fromkeys(name for row in report["rows"] for name in row["tasks"]))
    rows = [
        [inline(row["stage"]), *(cell(row["tasks"][name]) if name in row["tasks"] else "–" for name in names)]
        for row in report["rows"]
    ]
    return table(["model", *map(inline, names)], rows)


def made_by(row: Json) -> str:
    """`grpo from dev1`."""
    kind = f"{row['kind']} ({row['method']})" if row["method"] else row["kind"]
    return f"{kind} from {row['from']}" if row["from"] else kind
