"""Small charts as inline SVG: no script, no font, no host. Colours come from the page's CSS, light or dark.

A chart is 360 units wide, about what a phone shows, so that its words are read at their own size everywhere.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

WIDTH, HEIGHT = 360, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 40
_MOST_POINTS = 160
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """Text without control characters and marks that turn its direction."""
    return _CONTROLS.sub("", text)


def esc(text: Any) -> str:
    """Text that HTML shows as it is, in content and in quoted attributes."""
    return escape(printable(str(text)), quote=True)


@dataclass
class Series:
    """A line: points (x, y), an optional band of (x, low, high), and the CSS class that colours it."""

    label: str
    css: str
    points: list[tuple[float, float]]
    band: list[tuple[float, float, float]] = field(default_factory=list)
    dots: bool = False
    hollow: bool = False


def thin(points: list[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """Long series as means of equal shares, short ones as they are, without what is not a number."""
    points = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    if len(points) <= most:
        return points
    edges = [index * len(points) // most for index in range(most + 1)]
    shares = [points[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [(share[-1][0], sum(y for _, y in share) / len(share)) for share in shares]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from low to high."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def tick_label(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:g}%"
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.10g}" if value >= 1000 else f"{value:g}"


def line_chart(
    series: list[Series],
    x_label: str,
    describe: str,
    percent: bool = False,
    log2_x: bool = False,
    marks: list[tuple[float, str]] | None = None,
    half: bool = False,
    from_zero: bool = True,
) -> str:
    """An SVG of the lines, or a line of text where there is nothing to draw.

    `marks` are vertical lines with a word; `half` draws the line at one half; `describe` is read to people
    who do not see the chart.
    """
    series = [line for line in series if line.points]
    if not series:
        return '<p class="empty">Not measured in this run.</p>'
    marks = marks or []
    xs = [x for line in series for x, _ in line.points] + [x for x, _ in marks]
    ys = [y for line in series for _, y in line.points] + [
        y for line in series for _, *lh in line.band for y in lh
    ]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = (0.0, 1.0) if percent else (min(0.0, *ys) if from_zero else min(ys), max(ys))
    if y_high - y_low < 1e-12:
        y_high = y_low + 1
    if not percent:
        y_high += 0.06 * (y_high - y_low)
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def across(x: float) -> float:
        a, b, c = (math.log2(v) for v in (x_low, x_high, x)) if log2_x else (x_low, x_high, x)
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (c - a) / (b - a)

    def down(y: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (y_high - y) / (y_high - y_low)

    floor = HEIGHT - _BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(describe)}">']
    for y in ticks(y_low, y_high):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>'
        )
        label = tick_label(y, percent)
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{down(y) + 3.5:.1f}" text-anchor="end">{label}</text>'
        )
    whole = [x for x in (ticks(x_low, x_high, 5)) if x == round(x)] or [x_low, x_high]
    for x in [2.0**i for i in range(math.floor(math.log2(x_high)) + 1)] if log2_x else whole:
        parts.append(
            f'<text class="tick" x="{across(x):.1f}" y="{floor + 15}" text-anchor="middle">'
            f"{tick_label(x, False)}</text>"
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis-name" x="{middle}" y="{HEIGHT - 7}" text-anchor="middle">{esc(x_label)}</text>'
    )
    if half:
        parts.append(
            f'<line class="half" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{down(0.5):.1f}" '
            f'y2="{down(0.5):.1f}"/>'
        )
    for x, word in marks:
        right_half = across(x) > middle
        anchor, shift = ("end", -4) if right_half else ("start", 4)
        parts.append(
            f'<line class="mark" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{_TOP - 4}" y2="{floor}"/>'
        )
        parts.append(
            f'<text class="note" x="{across(x) + shift:.1f}" y="{floor - 6}" text-anchor="{anchor}">'
            f"{esc(word)}</text>"
        )
    for line in series:
        if line.band:
            edge = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
            parts.append(f'<polygon class="band {line.css}" points="{_path(edge, across, down)}"/>')
    for line in series:
        if len(line.points) > 1:
            parts.append(f'<polyline class="line {line.css}" points="{_path(line.points, across, down)}"/>')
        if line.dots or len(line.points) == 1:
            kind = "hollow" if line.hollow else "dot"
            parts += [
                f'<circle class="{kind} {line.css}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="3"/>'
                for x, y in line.points
            ]
    return "".join(parts) + "</svg>"


def _path(
    points: list[tuple[float, float]], across: Callable[[float], float], down: Callable[[float], float]
) -> str:
    return " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)


def interval_rows(rows: list[tuple[str, dict[str, float]]], describe: str) -> str:
    """One or two dots with 95% whiskers on a line from 0 to 100%, as wide as the page lets it be.

    rows: (CSS class, {"accuracy", "low", "high"}), drawn one under the other.
    """
    step = 16
    height = step * len(rows) + 4
    parts = [f'<svg class="track" width="100%" height="{height}" role="img" aria-label="{esc(describe)}">']
    for x in (0, 25, 50, 75, 100):
        parts.append(
            f'<line class="grid" x1="{_inset(x / 100)}" x2="{_inset(x / 100)}" y1="0" y2="{height}"/>'
        )
    for index, (css, estimate) in enumerate(rows):
        y = step * index + step // 2 + 2
        low, high, at = (_inset(estimate[key]) for key in ("low", "high", "accuracy"))
        parts.append(f'<line class="stem {css}" x1="{_inset(0)}" x2="{at}" y1="{y}" y2="{y}"/>')
        parts.append(f'<line class="whisker {css}" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>')
        kind = "hollow" if css == "base" else "dot"
        parts.append(f'<circle class="{kind} {css}" cx="{at}" cy="{y}" r="5"/>')
    return "".join(parts) + "</svg>"


def _inset(share: float) -> str:
    """A place between 2% and 98%, so that a dot at an end is not cut."""
    return f"{2 + 96 * share:.2f}%"


def legend(series: list[tuple[str, str]]) -> str:
    """(CSS class, label) as a row of swatches."""
    items = "".join(f'<span class="key {css}"><i></i>{esc(label)}</span>' for css, label in series)
    return f'<span class="legend">{items}</span>'
