"""The live view of a run: drawn in a terminal, told in a few plain lines elsewhere, or as JSON for programs.

All three are called at every step and so do almost nothing there: the drawn one measures what a frame costs
and keeps the frames to 0.4% of the time, and to eight a second at most.
"""

import io
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hadal.files import plain
from hadal.stages.common.view import View
from hadal.terminal.clean import clean, one_line
from hadal.terminal.interrupts import held
from hadal.text.parse import parse_response

_FASTEST = 1 / 8  # seconds between frames
_SHARE = 0.004  # of one core, for drawing
_PLAIN_EVERY = 10.0  # seconds between plain lines
_JSON_FIELDS = ("stage", "step", "total")
_BLOCKS = "▁▂▃▄▅▆▇█"
_TITLES = {
    "pretrain": "Pre-training", "sft": "Fine-tuning", "grpo": "Reinforcement learning", "evaluate": "Examination",
}  # fmt: skip

Clock = Callable[[], float]


def make_view(json: bool = False, stream: TextIO | None = None) -> View:
    """The view that fits the place: JSON lines if asked, drawn on a terminal, plain lines elsewhere."""
    stream = stream or sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal or log that lacks a character stops no run
    if json:
        return JsonView(stream)
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return RichView(Console(file=stream, highlight=False))
    return PlainView(stream)


# ----------------------------------------------------------------------------------------- words and pictures


def title(name: str) -> str:
    """A stage's name as people read it."""
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def duration(seconds: float) -> str:
    """`42 s`, `3:07` (minutes and seconds) or `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: float) -> str:
    """`950`, `3.2k`, `1.4M`, `20B`."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}" if number < 10 else f"{number:.0f}"


def dollars(amount: float) -> str:
    """`$0.0042`: two figures that mean something, however small."""
    if amount >= 0.995:
        return f"${amount:.2f}"
    return f"${amount:.2g}" if amount >= 1e-4 or amount == 0 else f"${amount:.1e}"


def sparkline(values: list[float], width: int) -> str:
    """The values as `width` blocks at most, each the mean of its share; the lowest is a thin line."""
    values = [value for value in values if value == value]
    if not values or width < 1:
        return ""
    columns = min(width, len(values))
    edges = [index * len(values) // columns for index in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    if high - low < 1e-12:
        return _BLOCKS[3] * columns
    return "".join(_BLOCKS[min(7, int((mean - low) / (high - low) * 8))] for mean in means)


@dataclass
class Progress:
    """What is known of the stage that runs. It holds numbers; the views turn them into words."""

    name: str
    total: int
    about: str
    began: float
    step: int = 0
    first: int | None = None  # the first step seen: after a resume it is not 1
    values: dict[str, Any] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)
    curve_name: str = ""
    _stride: int = 1
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=60))

    def update(self, now: float, step: int, values: dict[str, Any]) -> None:
        if self.first is None:
            self.first = step
        self.step = step
        self.values.update(values)
        self._recent.append((now, step))
        for name in ("reward", "loss", "accuracy"):
            if isinstance(values.get(name), int | float):
                self.curve_name = name
                if step % self._stride == 0:
                    self.curve.append(float(values[name]))
                break
        if len(self.curve) >= 2000:  # a long run keeps a coarser curve
            self.curve = self.curve[::2]
            self._stride *= 2

    def seconds_left(self, now: float) -> float | None:
        """From the pace of the last steps; None until two steps are known."""
        if len(self._recent) < 2 or self._recent[-1][1] <= self._recent[0][1]:
            return None
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        pace = (end - start) / (last - first)
        return max(0.0, (self.total - last) * pace - (now - end))

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    def summary(self, now: float) -> str:
        """The stage in one line, for the scrollback."""
        parts = [f"{self.step:,} of {self.total:,} steps" if not self.finished else f"{self.step:,} steps"]
        parts[0] += f" in {duration(now - self.began)}"
        if len(self.curve) > 1:
            parts.append(f"{self.curve_name} {self.curve[0]:.3g} -> {self.curve[-1]:.3g}")
        parts += facts(self.values, skip=("loss", "reward"))
        return ", ".join(parts)


def facts(values: dict[str, Any], skip: tuple[str, ...] = ()) -> list[str]:
    """The known values in words, in a fixed order; those that are absent are passed over."""
    words: dict[str, Callable[[Any], str]] = {
        "loss": lambda x: f"loss {x:.3f}",
        "reward": lambda x: f"reward {x:.3f}",
        "accuracy": lambda x: f"accuracy {x:.1%}",
        "length": lambda x: f"{x:.1f} tokens long",
        "thinking_share": lambda x: f"{x:.0%} think",
        "tokens_per_second": lambda x: f"{count(x)} tok/s",
        "cost_usd": lambda x: f"{dollars(x)} so far",
    }
    return [
        say(values[name])
        for name, say in words.items()
        if name not in skip and isinstance(values.get(name), int | float)
    ]


# ---------------------------------------------------------------------------------------------- in a terminal


class RichView:
    """A block at the foot of the terminal that is redrawn; notes and ended stages stay above it."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._sample: tuple[str, str, bool | None] | None = None
        self._next_frame = 0.0

    def stage(self, name: str, total: int, about: str) -> None:
        if self._progress is not None and self._progress.name == name:
            self._progress.total = total
            return
        with held():
            self._end_stage()
        self._sample = None
        self._progress = Progress(name, total, one_line(about), self._clock())
        self._draw()

    def step(self, name: str, step: int, values: dict[str, Any]) -> None:
        now = self._clock()
        if self._progress is None or self._progress.name != name:
            self.stage(name, step, "")
        assert self._progress is not None
        self._progress.update(now, step, plain(values))
        if now >= self._next_frame:
            self._draw()

    def sample(self, question: str, response: str, right: bool | None) -> None:
        self._sample = (clean(question), clean(response), right)
        if self._clock() >= self._next_frame:
            self._draw()

    def note(self, text: str) -> None:
        with held():
            self._console.print(Text.assemble(("· ", "dim"), clean(text)))

    def close(self) -> None:
        with held():
            self._end_stage()
            if self._live is not None:
                self._live.stop()
                self._live = None

    def _end_stage(self) -> None:
        progress, self._progress = self._progress, None
        if progress is None:
            return
        if self._live is not None:
            self._live.update(Text(""), refresh=False)
        mark = ("✓ ", "green") if progress.finished else ("‖ ", "yellow")
        line = progress.summary(self._clock()).replace(" -> ", " → ")
        self._console.print(Text.assemble(mark, (title(progress.name), "bold"), "  ", line))

    def _draw(self) -> None:
        with held():
            self._draw_block()

    def _draw_block(self) -> None:
        began = time.perf_counter()
        if self._live is None:
            # Drawn by calls alone, without a thread. Transient: what should stay is printed apart.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self._console.show_cursor(True)  # so that a killed run leaves no terminal without a cursor
        self._live.update(Group(*self.lines(self._console.width, self._console.height)), refresh=True)
        spent = time.perf_counter() - began
        self._next_frame = self._clock() + max(_FASTEST, spent / _SHARE)

    def lines(self, width: int, height: int = 24) -> list[Text]:
        """The block as lines, none wider than `width`."""
        progress = self._progress
        if progress is None:
            return []
        now = self._clock()
        lines = [Text(""), _head(progress, width), _bar(progress, width)]
        if progress.about:
            lines.append(Text(progress.about, style="dim"))
        lines += _curve(progress, width)
        lines += _flow(facts(progress.values, skip=("loss", "reward", "cost_usd")), width)
        difficulty = progress.values.get("difficulty")
        if isinstance(difficulty, dict) and difficulty:
            levels = [f"{one_line(task)} {level}" for task, level in difficulty.items()]
            lines += _flow(levels, width, "difficulty: ")
        last = []
        whole = progress.values.get("seconds_left")
        left = progress.seconds_left(now)
        if isinstance(whole, int | float):
            last.append(f"about {duration(whole)} left")
        elif left is not None:
            last.append(f"about {duration(left)} left in this stage")
        cost = progress.values.get("cost_usd")
        if isinstance(cost, int | float):
            last.append(f"{dollars(cost)} so far")
        room = height - len(lines) - 3
        if self._sample is not None and room >= 4:
            lines += _sample_lines(*self._sample, width, min(room, 9))
        lines += _flow(last, width)
        for line in lines:
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
        return lines


def _head(progress: Progress, width: int) -> Text:
    name, steps = title(progress.name), f"{progress.step:,} / {progress.total:,}"
    gap = max(1, min(width, 78) - len(name) - len(steps))
    return Text.assemble((name, "bold cyan"), " " * gap, (steps, "dim"))


def _bar(progress: Progress, width: int) -> Text:
    columns = min(width, 78)
    done = min(columns, columns * progress.step // max(1, progress.total))
    return Text.assemble(("━" * done, "cyan"), ("─" * (columns - done), "dim"))


def _curve(progress: Progress, width: int) -> list[Text]:
    if not progress.curve:
        return []
    label = f"{progress.curve_name} {progress.curve[-1]:.3f}  "
    line = sparkline(progress.curve, min(width, 78) - len(label))
    colour = "yellow" if progress.curve_name == "loss" else "green"
    return [Text.assemble((label, "bold"), (line, colour))]


def _flow(parts: list[str], width: int, lead: str = "") -> list[Text]:
    """The parts one after another behind `lead`, broken into lines between parts only."""
    lines: list[str] = []
    for part in parts:
        if not lines:
            lines.append(lead + part)
            continue
        if len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += " · " + part
        else:
            lines.append(part)
    return [Text(line) for line in lines]


def _sample_lines(question: str, response: str, right: bool | None, width: int, room: int) -> list[Text]:
    parsed = parse_response(response)
    thought, answer = " ".join((parsed.thought or "").split()), parsed.answer
    columns = min(width, 78) - 2
    lines = [Text.assemble(("│ ", "cyan"), (one_line(question, columns), "bold"))]
    pieces = [thought[start : start + columns] for start in range(0, len(thought), columns)]
    most = max(1, room - 2)
    if len(pieces) > most:
        pieces = [*pieces[: most - 1], pieces[most - 1][: columns - 1] + "…"]
    lines += [Text.assemble(("│ ", "cyan"), (piece, "dim")) for piece in pieces]
    verdict = {True: ("  ✓ right", "green"), False: ("  ✗ wrong", "red"), None: ("", "")}[right]
    words = one_line(answer, columns - len(verdict[0])) or "(no answer)"
    lines.append(Text.assemble(("│ ", "cyan"), words, verdict))
    return lines


# -------------------------------------------------------------------------------------------------- elsewhere


class PlainView:
    """A line when a stage begins, every ten seconds, and when it ends: for log files and pipes."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic, every: float = _PLAIN_EVERY) -> None:
        self._stream = stream
        self._clock = clock
        self._every = every
        self._progress: Progress | None = None
        self._next_line = 0.0

    def stage(self, name: str, total: int, about: str) -> None:
        if self._progress is not None and self._progress.name == name:
            self._progress.total = total
            return
        self._end_stage()
        self._progress = Progress(name, total, about, self._clock())
        self._next_line = self._clock() + self._every
        self._say(f"{title(name)}: {total:,} steps. {one_line(about)}".rstrip())

    def step(self, name: str, step: int, values: dict[str, Any]) -> None:
        if self._progress is None or self._progress.name != name:
            self.stage(name, step, "")
        assert self._progress is not None
        now = self._clock()
        self._progress.update(now, step, plain(values))
        if now < self._next_line or self._progress.finished:
            return
        self._next_line = now + self._every
        parts = [f"{step:,}/{self._progress.total:,}", *facts(self._progress.values)]
        left = self._progress.values.get("seconds_left", self._progress.seconds_left(now))
        if isinstance(left, int | float):
            parts.append(f"about {duration(left)} left")
        self._say("  " + ", ".join(parts))

    def sample(self, question: str, response: str, right: bool | None) -> None:
        """Samples are in the run folder's `rollouts/`; in a log they would be a flood."""

    def note(self, text: str) -> None:
        self._say(clean(text))

    def close(self) -> None:
        self._end_stage()

    def _end_stage(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            verb = "done" if progress.finished else "stopped"
            self._say(f"{title(progress.name)} {verb}: {progress.summary(self._clock())}")

    def _say(self, line: str) -> None:
        print(printable(line, self._stream), file=self._stream, flush=True)


class JsonView:
    """Every event as one JSON object on a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total = 0

    def stage(self, name: str, total: int, about: str) -> None:
        self._total = total
        self._say({"event": "stage", "stage": name, "total": total, "about": about})

    def step(self, name: str, step: int, values: dict[str, Any]) -> None:
        rest = {key: value for key, value in values.items() if key not in _JSON_FIELDS}
        self._say({"event": "step", "stage": name, "step": step, "total": self._total, **rest})

    def sample(self, question: str, response: str, right: bool | None) -> None:
        self._say({"event": "sample", "question": question, "response": response, "right": right})

    def note(self, text: str) -> None:
        self._say({"event": "note", "text": text})

    def close(self) -> None:
        self._stream.flush()

    def _say(self, record: dict[str, Any]) -> None:
        # ASCII: right whatever the encoding of the pipe is, and a lone surrogate passes too.
        self._stream.write(json.dumps(plain(record)) + "\n")
        self._stream.flush()


def printable(text: str, stream: TextIO) -> str:
    """`text` with `?` for what the stream's encoding lacks, so that a log in plain ASCII stops no run."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)
