"""An evaluation's figures for people: a table in Markdown, and a page with plots that needs nothing from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hadal.files import write_text
from hadal.report.charts import Series, esc, interval_rows, legend, line_chart

Json = dict[str, Any]
ABOUT = {
    "pass@1": "right answers, mean over samples",
    "score": "mean score of the answers, where a scorer gives part of the marks",
    "tokens": "tokens of a response",
    "truncated": "responses cut off at the limit",
    "thinks": "responses with a thought",
    "format": "responses of the form <think>, thought, </think>, answer",
    "unanswered": "responses without an answer",
    "tied": "votes of all samples that end in a tie",
}
"""What a figure is; pass@k and cons@k are chances (hadal.evaluate.statistics)."""
_INTERVALS = (
    "In brackets 95% intervals, by a bootstrap over problems: samples of a problem stay together. pass@k is the chance "
    "that one of k samples is right; cons@k that the most frequent answer among k is, ties broken at random. The mean "
    "gives each task the same weight."
)
_PAIRED = (
    "Differences on the same problems, with 95% intervals from a paired bootstrap; p is from a two-sided permutation "
    "test that flips the signs of the differences, problem by problem."
)
_COLORS = 6


def write_pages(folder: Path, results: Json) -> None:
    """results.md and results.html beside results.json."""
    write_text(folder / "results.md", markdown(results))
    write_text(folder / "results.html", page(results))


def model_name(model: Json) -> str:
    """A model as a report calls it."""
    return f"{model['model']} at {model['url']}" if model.get("kind") == "server" else str(model.get("name", "?"))


def asked(settings: Json) -> str:
    """The settings in a sentence."""
    thinking = {None: "free to think or not", True: "made to think", False: "made to answer at once"}
    parts = [
        f"{settings['samples']} samples a problem",
        f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}",
        f"at most {settings['max_tokens']:,} tokens",
        thinking[settings["thinking"]],
        f"{settings['shots']} worked examples in the prompt" if settings["shots"] else "",
        f"seed {settings['seed']}",
    ]
    return ", ".join(part for part in parts if part)


def shown(name: str, value: float) -> str:
    """A figure in its unit."""
    # Adding 0 makes 0 of what is rounded to -0.
    return f"{round(value, 1) + 0:,.1f}" if name == "tokens" else f"{round(100 * value, 1) + 0:.1f}%"


def change(name: str, entry: Json) -> str:
    """`+4.2% [1.0, 7.3]`."""
    low, high = (shown(name, entry[key]).rstrip("%") for key in ("low", "high"))
    difference = shown(name, entry["difference"])
    return f"{difference if difference.startswith('-') else '+' + difference} [{low}, {high}]"


def chance(p: float) -> str:
    """`p = 0.012`; below what the permutation test can tell apart, `p < 0.0001`."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def estimate(name: str, entry: Json) -> str:
    """`43.2% [40.1, 46.3]`."""
    low, high = (shown(name, entry[key]).rstrip("%") for key in ("low", "high"))
    return f"{shown(name, entry['value'])} [{low}, {high}]"


def columns(results: Json) -> list[str]:
    """The figures that a table shows: of pass@k and cons@k, those at 1 and at all samples."""
    samples = results["settings"]["samples"]
    graded = any(figures["score"]["value"] != figures["pass@1"]["value"] for _, _, figures in rows(results)
                 if "score" in figures)  # fmt: skip
    wanted = ["pass@1", *(["score"] if graded else []), f"pass@{samples}", f"cons@{samples}"]
    wanted += ["tokens", "truncated", "thinks", "format", "unanswered"]
    return [name for name in dict.fromkeys(wanted) if name in results["mean"]]


def rows(results: Json) -> list[tuple[str, int, Json]]:
    """(name, problems, figures) of each task, and of their mean where there are several."""
    tasks = [(name, task["problems"], task["figures"]) for name, task in results["tasks"].items()]
    mean = [("mean", sum(n for _, n, _ in tasks), results["mean"])] if len(tasks) > 1 else []
    return tasks + mean


def broken(results: Json) -> list[str]:
    """A sentence for each task whose scorer failed on some answers."""
    samples = results["settings"]["samples"]
    return [
        f"The scorer of {name} failed on {task['scorer_broke']:,} of {task['problems'] * samples:,} answers: they "
        "count as wrong, and samples.jsonl says why."
        for name, task in results["tasks"].items()
        if task.get("scorer_broke")
    ]


def markdown(results: Json) -> str:
    """results.md."""
    names = columns(results)
    lines = [f"# {_escaped(model_name(results['model']))}", "", f"{asked(results['settings']).capitalize()}.", ""]
    lines += ["| task | difficulty | problems | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    for name, n, figures in rows(results):
        level = results["tasks"][name]["difficulty"] if name in results["tasks"] else ""
        cells = [_escaped(name), str(level), str(n), *(estimate(column, figures[column]) for column in names)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [line for sentence in broken(results) for line in ("", _escaped(sentence))]
    lines += ["", _INTERVALS, ""]
    lines += [f"- {name}: {ABOUT[name]}" for name in [*names, "tied"] if name in ABOUT and name in results["mean"]]
    curve = [name for name in results["mean"] if name.startswith(("pass@", "cons@"))]
    if len(curve) > 3:
        lines += ["", "| k | " + " | ".join(_escaped(name) for name, _, _ in rows(results)) + " |"]
        lines += ["|---" * (len(rows(results)) + 1) + "|"]
        lines += [
            f"| {name} | " + " | ".join(estimate(name, figures[name]) for _, _, figures in rows(results)) + " |"
            for name in curve
        ]
    if "against" in results:
        lines += ["", *_against_markdown(results["against"])]
    return "\n".join(lines) + "\n"


def compared(results: Json) -> list[tuple[str, int, Json]]:
    """`rows` of a comparison."""
    return rows({"tasks": results["tasks"], "mean": results["mean"]})


def _against_markdown(other: Json) -> list[str]:
    lines = [f"## Against {_escaped(model_name(other['model']))}", ""]
    for name, (here, there) in other["settings_that_differ"].items():
        lines.append(f"Settings differ: {name} is {here} here and {there} there.")
    voted = [name for name in other["mean"] if name.startswith("cons@")]
    names = ["pass@1", *voted[-1:], *(["tokens"] if "tokens" in other["mean"] else [])]
    lines += [""] * bool(other["settings_that_differ"])
    lines += ["| task | problems | figure | this | other | difference | p |", "|---" * 7 + "|"]
    for task, n, figures in compared(other):
        for name in names:
            entry = figures[name]
            cells = [_escaped(task), str(n), name, shown(name, entry["value"]), shown(name, entry["other"])]
            cells += [change(name, entry), _escaped(chance(entry["p"]).removeprefix("p ").removeprefix("= "))]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", _PAIRED]


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ------------------------------------------------------------------------------------- the page


def page(results: Json) -> str:
    """results.html: the plots, and the same figures in words."""
    title = esc(model_name(results["model"]))
    samples = results["settings"]["samples"]
    parts = [f"<h1>{title}</h1>", f"<p>{esc(asked(results['settings']).capitalize())}.</p>"]
    other = results.get("against")
    key = [("t0", model_name(results["model"])), *([("base", model_name(other["model"]))] if other else [])]
    parts.append(f"<section><h2>Right answers (pass@1)</h2><p>{legend(key)}</p>")
    theirs = {name: figures["pass@1"] for name, _, figures in compared(other)} if other else {}
    for name, n, figures in rows(results):
        entry = figures["pass@1"]
        lines = [("t0", _as_accuracy(entry))]
        words = estimate("pass@1", entry)
        if name in theirs:
            pair = theirs[name]
            # What is paired is the difference: its interval is drawn around this model's dot.
            low, high = (pair["value"] - pair[end] for end in ("high", "low"))
            between = {"accuracy": pair["other"], "low": max(0.0, low), "high": min(1.0, high)}
            lines.append(("base", between))
            words += f"<br>{shown('pass@1', pair['other'])}, {esc(chance(pair['p']))}"
        track = interval_rows(lines, f"{name}: {words.replace('<br>', ', ')}")
        parts.append(f'<div class="row"><b>{esc(name)}<small> n = {n}</small></b>{track}<span>{words}</span></div>')
    scale = "".join(f"<i>{share}</i>" for share in ("0", "25", "50", "75", "100%"))
    parts.append(f'<div class="row axis"><b></b><div>{scale}</div></div></section>')
    if samples > 1:
        parts.append('<div class="pair">')
        kinds = {"pass": "One of k samples is right.", "cons": "The most frequent of k answers is right."}
        for kind, about in kinds.items():
            series = [_curve(kind, name, figures, i) for i, (name, _, figures) in enumerate(rows(results))]
            chart = line_chart(series, "k", f"{kind}@k by task", percent=True, log2_x=True)
            key = [(line.css, line.label) for line in series]
            parts.append(f"<section><h2>{kind}@k</h2><p>{about}</p>{chart}<p>{legend(key)}</p></section>")
        parts.append("</div>")
    names = columns(results)
    head = "".join(f"<th>{esc(name)}</th>" for name in ["task", "problems", *names])
    body = "".join(
        f"<tr><th>{esc(name)}</th><td>{n}</td>"
        + "".join(f"<td>{estimate(column, figures[column])}</td>" for column in names)
        + "</tr>"
        for name, n, figures in rows(results)
    )
    sentences = "".join(f"<p>{esc(sentence)}</p>" for sentence in [*broken(results), _INTERVALS])
    parts.append(f'<section class="wide"><table><tr>{head}</tr>{body}</table>{sentences}')
    drawn = " The bar around the other model's dot is the interval of the difference, seen from this model's dot."
    parts.append(f"<p>{esc(_PAIRED + drawn)}</p></section>" if other else "</section>")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _as_accuracy(entry: Json) -> dict[str, float]:
    return {"accuracy": entry["value"], "low": entry["low"], "high": entry["high"]}


def _curve(kind: str, name: str, figures: Json, index: int) -> Series:
    found = {1: figures["pass@1"]}  # of one sample both are the same
    found |= {int(key.partition("@")[2]): entry for key, entry in figures.items() if key.startswith(f"{kind}@")}
    points = [(float(k), entry["value"]) for k, entry in sorted(found.items())]
    band = [(float(k), entry["low"], entry["high"]) for k, entry in sorted(found.items())]
    return Series(name, f"t{index % _COLORS}", points, band if len(found) > 1 else [], dots=True)


_CSS = """
:root{--paper:#fbfaf7;--ink:#16222b;--soft:#5b6b76;--grid:#e3e7e8;--base:#b4681b;--t0:#04707c;--t1:#b4681b;--t2:#6a4fb3;
--t3:#b32d5b;--t4:#4b7a1c;--t5:#2b62b8}
@media(prefers-color-scheme:dark){:root{--paper:#0a151d;--ink:#e4edf0;--soft:#93a7b3;--grid:#1c2c37;--base:#e8a352;
--t0:#41c9cf;--t1:#e8a352;--t2:#b09cf0;--t3:#f585a9;--t4:#a3d065;--t5:#85b2f5}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:820px;margin:0 auto;padding:32px 20px}
section{margin-top:32px}p,small{color:var(--soft)}svg{display:block;width:100%;overflow:visible}
.row{display:grid;grid-template-columns:9em minmax(0,1fr) 11em;gap:4px 16px;align-items:center;padding:6px 0}
.row span{font-variant-numeric:tabular-nums}.row small{font-weight:400;display:block}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:0 32px}
.axis div{display:flex;justify-content:space-between;padding:0 2%;font-size:.75rem;color:var(--soft)}
.axis i{font-style:normal;width:0;display:flex;justify-content:center}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 12px 5px 0;border-bottom:1px solid var(--grid);white-space:nowrap}
th:first-child{text-align:left}
.legend{display:inline-flex;flex-wrap:wrap;gap:2px 14px}.key{display:inline-flex;align-items:center;gap:6px}
.key i{width:11px;height:11px;border-radius:50%;background:var(--c)}
.base{--c:var(--base)}.t0{--c:var(--t0)}.t1{--c:var(--t1)}.t2{--c:var(--t2)}.t3{--c:var(--t3)}.t4{--c:var(--t4)}
.t5{--c:var(--t5)}
.grid,.half,.mark{stroke:var(--grid)}.tick,.axis-name,svg .note{font-size:11px;fill:var(--soft)}
.line{fill:none;stroke:var(--c);stroke-width:2}.band{fill:var(--c);opacity:.14}.dot{fill:var(--c)}
.hollow{fill:var(--paper);stroke:var(--c);stroke-width:2}.stem{stroke:var(--c);stroke-width:2;opacity:.28}
.whisker{stroke:var(--c);stroke-width:7;stroke-linecap:round;opacity:.38}
@media(max-width:640px){.row{grid-template-columns:1fr auto}.row svg,.axis div{grid-column:1/-1;grid-row:2}}
"""
