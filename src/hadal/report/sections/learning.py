"""While it learned: the curves of each stage, and the alarms it raised."""

from dataclasses import replace
from typing import Any

from hadal.report import html, markdown
from hadal.report.charts import Series, esc, legend, line_chart, thin
from hadal.report.markdown import inline
from hadal.report.words import stage_title

Json = dict[str, Any]
COLOURS = 6
CURVES = (
    ("reward", "Reward", False), ("length", "Response length, tokens", False), ("entropy", "Entropy, nats", False),
    ("thinking_share", "Share that thinks", True), ("truncated", "Share cut off at the limit", True),
)  # fmt: skip
HARDER = "Problems get harder as it gets better, so the reward may stay level while skill grows."


def as_html(report: Json, metrics: list[Json]) -> str:
    stages: dict[str, list[Json]] = {}
    for line in metrics:
        stages.setdefault(line["stage"], []).append(line)
    rewarded = {stage: lines for stage, lines in stages.items() if any("reward" in line for line in lines)}
    colours = {stage: f"t{i % COLOURS}" for i, stage in enumerate(rewarded)}
    figures = [*_rewarded(rewarded, colours), _reflection(report, colours)]
    for stage, lines in stages.items():
        loss = [] if stage in rewarded else _curve(lines, "loss")
        title = stage_title(stage)
        figures.append(_figure(f"Loss of {title}", [Series(title, "t0", loss)], "step"))
    drawn = f'<div class="grid2">{"".join(figures)}</div>' if any(figures) else ""
    said = "".join(f"<li>{esc(a['stage'])}, update {a['step']}: {esc(a['text'])}</li>" for a in report["alarms"])
    said = f"<h3>Alarms</h3><ul>{said}</ul>" if said else ""
    return f"<section><h2>While it learned</h2>{drawn}{said}</section>" if drawn or said else ""


def as_markdown(report: Json) -> list[str]:
    parts = []
    if report["reflection"]:
        rows = [
            [inline(name), " ".join(f"{step}: {count:.2f}" for step, count in counts)]
            for name, counts in report["reflection"].items()
        ]
        words = ", ".join(report["reflection_words"])
        table = markdown.table(["stage", "update: words"], rows)
        parts += ["## Words of reflection in a response", table, f"Counted: {words}."]
    if report["alarms"]:
        parts.append("## Alarms while it learned")
        parts += [f"- {inline(a['stage'])}, update {a['step']}: {inline(a['text'])}" for a in report["alarms"]]
    return parts


def _rewarded(stages: dict[str, list[Json]], colours: dict[str, str]) -> list[str]:
    """The stages that are rewarded in one picture for each quantity, each from its own first update; tasks apart where
    there is one such stage."""
    keys = legend([(css, stage_title(stage)) for stage, css in colours.items()])
    levels = _by_task(next(iter(stages.values())), "difficulty") if len(stages) == 1 else []
    figures = []
    for key, title, as_percent in CURVES:
        lines = [Series(stage_title(stage), colours[stage], _curve(own, key)) for stage, own in stages.items()]
        note = HARDER if key == "reward" and levels else ""
        figures.append(_figure(title, lines, "update", keys, as_percent, note))
    held = _held_out(stages, colours)
    figures.insert(1, _figure("Right on held-out problems", held, "update", _keys(held), as_percent=True))
    return [*figures, _figure("Difficulty it practises", levels, "update", _keys(levels), from_zero=False)]


def _reflection(report: Json, colours: dict[str, str]) -> str:
    lines = [
        Series(stage_title(stage), colours.get(stage, "t0"), [(step, count) for step, count in counts], dots=True)
        for stage, counts in report["reflection"].items()
    ]
    note = ", ".join(report["reflection_words"])
    return _figure("Words of reflection in a response", lines, "update", _keys(lines), note=note)


def _curve(lines: list[Json], key: str) -> list[tuple[float, float]]:
    return thin([(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)])


def _held_out(stages: dict[str, list[Json]], colours: dict[str, str]) -> list[Series]:
    """Accuracy on the watched problems: of each stage the mean of its tasks, of a stage alone each task as well."""
    found = []
    for stage, lines in stages.items():
        watched = [(line["step"], line["held_out"]) for line in lines if isinstance(line.get("held_out"), dict)]
        means = thin([(step, sum(shares.values()) / len(shares)) for step, shares in watched])
        found.append(Series(stage_title(stage), colours[stage], means, dots=True))
    if len(stages) != 1:
        return found
    (mean,), (lines,) = found, stages.values()
    tasks = _by_task(lines, "held_out", dots=True)
    return [*tasks, replace(mean, label="mean of tasks", css=f"t{len(tasks) % COLOURS}")] if len(tasks) > 1 else tasks


def _by_task(lines: list[Json], key: str, dots: bool = False) -> list[Series]:
    """A line for each task."""
    found = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), dict)]
    names = list(dict.fromkeys(name for _, values in found for name in values))
    curves = [(name, thin([(step, values[name]) for step, values in found if name in values])) for name in names]
    return [Series(name, f"t{i % COLOURS}", points, dots=dots) for i, (name, points) in enumerate(curves)]


def _keys(lines: list[Series]) -> str:
    return legend([(line.css, line.label) for line in lines])


def _figure(
    title: str, lines: list[Series], x: str, keys: str = "", as_percent: bool = False, note: str = "",
    from_zero: bool = True,
) -> str:  # fmt: skip
    """A picture of the lines that have points; nothing where none has."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return ""
    ends = [f"{line.label} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in drawn]
    chart = line_chart(drawn, x, f"{title}: {'; '.join(ends)}", as_percent, from_zero=from_zero)
    return html.figure(title, chart, keys, note)
