"""The live view: what it shows, how often, and that nothing a model says reaches the terminal's controls."""

import io
import json
import signal
import time

import numpy as np
import pytest
from rich.console import Console

from hadal.terminal.view import JsonView, PlainView, RichView, count, dollars, duration, make_view, sparkline

STEP = {
    "reward": 0.5,
    "length": 35.25,
    "thinking_share": 0.97,
    "tokens_per_second": 3210.0,
    "cost_usd": 0.00042,
    "difficulty": {"sums": 9, "letters": 11, "countdown": 4, "sorting": 8},
}


class Clock:
    """Time that goes on only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(width: int, clock: Clock, height: int = 24, color: str | None = "truecolor") -> tuple[RichView, Terminal]:
    stream = Terminal()
    console = Console(
        file=stream, width=width, height=height, force_terminal=True, color_system=color, legacy_windows=False
    )
    return RichView(console, clock), stream


def run(view, clock: Clock, steps: int, seconds: float, total: int | None = None) -> None:
    view.stage("grpo", total or steps, "Tries, keeps what is right.")
    for step in range(1, steps + 1):
        clock.now += seconds
        view.step("grpo", step, STEP | {"reward": step / steps})


def test_the_view_fits_the_place(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_view(True, Terminal()), JsonView)
    assert isinstance(make_view(False, Terminal()), RichView)
    assert isinstance(make_view(False, io.StringIO()), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_view(False, Terminal()), PlainView)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_block_shows_everything_and_no_line_is_too_wide(width):
    clock = Clock()
    view, _ = drawn(width, clock)
    run(view, clock, 20, 1.0, total=80)
    view.sample("How many r in strawberry?", "<think>" + "1 s 0 2 t 0 3 r 1 " * 20 + "</think>3", True)
    lines = view.lines(width)
    shown = "\n".join(line.plain for line in lines)
    assert all(line.cell_len <= width for line in lines)
    for piece in (
        "Reinforcement learning", "20 / 80", "reward 1.000", "97% think", "3.21k tok/s", "sums 9",
        "sorting 8", "strawberry", "✓ right", "about 1:00 left", "$0.00042",
    ):  # fmt: skip
        assert piece in shown, shown
    assert len(lines) <= 21


def test_a_low_terminal_leaves_out_the_sample_first():
    clock = Clock()
    view, _ = drawn(80, clock, height=10)
    run(view, clock, 3, 1.0)
    view.sample("How many r in strawberry?", "<think>1 s 0</think>3", True)
    assert "strawberry" not in "\n".join(line.plain for line in view.lines(80, 10))


def test_frames_are_few_and_cheap():
    clock = Clock()
    view, stream = drawn(80, clock)
    frames = 0
    draw = view._draw

    def counted() -> None:
        nonlocal frames
        frames += 1
        draw()

    view._draw = counted  # type: ignore[method-assign]
    run(view, clock, 1000, 0.01)  # ten seconds
    assert 2 <= frames <= 81


def test_a_step_without_a_frame_costs_microseconds():
    clock = Clock()
    view, _ = drawn(80, clock)
    view.stage("pretrain", 10_000, "")
    view._next_frame = float("inf")
    began = time.perf_counter()
    for step in range(2000):
        view.step("pretrain", step, {"loss": 1.0, "tokens_per_second": 1e4})
    each = (time.perf_counter() - began) / 2000
    assert each < 2e-4  # at 30 steps a second 0.6% of a core, on a machine that is busy; else a tenth of it


def test_notes_and_ended_stages_stay_and_the_block_goes():
    clock = Clock()
    view, stream = drawn(80, clock, color=None)
    run(view, clock, 5, 1.0)
    view.note("Frozen in the config: 5 steps.")
    view.stage("evaluate", 2, "Asks.")
    view.step("evaluate", 1, {})
    view.close()
    view.close()
    screen = emulate(stream.getvalue(), 80)
    assert "· Frozen in the config: 5 steps." in screen
    assert any(line.startswith("✓ Reinforcement learning  5 steps in 5 s, reward 0.2 → 1") for line in screen)
    assert any(line.startswith("‖ Examination  1 of 2 steps") for line in screen)
    assert not any("━" in line for line in screen)


def test_ctrl_c_never_lands_in_the_middle_of_a_frame(monkeypatch):
    clock = Clock()
    view, stream = drawn(80, clock, color=None)
    view.stage("grpo", 5, "")
    finished = []
    block = view._draw_block

    def pressed():
        signal.raise_signal(signal.SIGINT)
        block()
        finished.append(True)

    monkeypatch.setattr(view, "_draw_block", pressed)
    clock.now += 1e3
    with pytest.raises(KeyboardInterrupt):
        view.step("grpo", 1, {})
    assert finished == [True]
    view.close()
    assert any(line.startswith("‖ Reinforcement learning  1 of 5") for line in emulate(stream.getvalue(), 80))


def test_no_colour_is_obeyed(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    clock = Clock()
    stream = Terminal()
    view = RichView(Console(file=stream, width=80, force_terminal=True, legacy_windows=False), clock)
    run(view, clock, 3, 1.0)
    view.close()
    colours = [code for code in stream.getvalue().split("\x1b[") if code[:2] in ("31", "32", "33", "36", "38")]
    assert colours == []


def test_control_characters_from_a_model_never_reach_the_terminal():
    clock = Clock()
    view, stream = drawn(80, clock, color=None)
    view.stage("grpo", 5, "About\x1b]0;title\x07.")
    clock.now += 10
    view.sample("q\x1b[2J", "<think>\x1b]0;owned\x07\x9b31m\x00</think>\x1b[8m3\u202e", False)
    view.note("note\x1b[5m\x07")
    view.step("grpo", 1, {"difficulty": {"bad\x1b[2J": 3}})
    clock.now += 10
    view.step("grpo", 2, {})
    view.close()
    written = stream.getvalue()
    for evil in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\x00", "\u202e", "\x1b[8m", "\x1b[5m"):
        assert evil not in written
    assert "owned" not in written


def test_plain_lines_are_few():
    clock = Clock()
    stream = io.StringIO()
    view = PlainView(stream, clock)
    run(view, clock, 3000, 0.01)  # thirty seconds
    view.sample("q", "a", True)
    view.note("A note.")
    view.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Reinforcement learning: 3,000 steps. Tries, keeps what is right."
    assert lines[-2] == "A note."
    assert lines[-1].startswith("Reinforcement learning done: 3,000 steps in 30 s, reward 0.000333 -> 1")
    assert 4 <= len(lines) <= 6
    assert "97% think" in lines[1] and "left" in lines[1]


def test_plain_lines_survive_a_log_in_ascii():
    raw = io.BytesIO()
    view = PlainView(io.TextIOWrapper(raw, encoding="ascii"))
    view.note("π and 中")
    assert raw.getvalue() == b"? and ?\n"


def test_json_lines_are_json_whatever_the_values():
    stream = io.StringIO()
    view = JsonView(stream)
    view.stage("pretrain", 10, "Reads.")
    view.step("pretrain", 1, {"loss": float("nan"), "lr": np.float32(0.5), "step": 99})
    view.sample("q\n", "\x1b[31m\ud800", None)
    view.note("a\nb")
    view.close()
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert records[0] == {"event": "stage", "stage": "pretrain", "total": 10, "about": "Reads."}
    assert records[1] == {
        "event": "step",
        "stage": "pretrain",
        "step": 1,
        "total": 10,
        "loss": None,
        "lr": 0.5,
    }
    assert records[2]["event"] == "sample" and records[2]["right"] is None
    assert records[3]["text"] == "a\nb"


def test_time_left_after_a_resume_counts_only_new_steps():
    clock = Clock()
    view, _ = drawn(80, clock)
    view.stage("grpo", 100, "")
    for step in range(61, 71):
        clock.now += 2.0
        view.step("grpo", step, {})
    assert any("about 1:00 left" in line.plain for line in view.lines(80))


def test_numbers_in_words():
    assert [duration(x) for x in (0, 59.4, 59.6, 187, 7500)] == ["0 s", "59 s", "1:00", "3:07", "2 h 05 min"]
    assert [count(x) for x in (3, 950, 3210, 999_900, 1.4e6)] == ["3", "950", "3.21k", "1M", "1.4M"]
    assert [dollars(x) for x in (0, 0.00042, 0.0000123, 12.5)] == ["$0", "$0.00042", "$1.2e-05", "$12.50"]


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(list(range(100)), 4) == "▁▃▆█"
    assert sparkline([2, 2], 8) == "▄▄"
    assert sparkline([], 8) == sparkline([float("nan")], 8) == ""


def emulate(written: str, width: int) -> list[str]:
    """What a terminal shows in the end: understands newline, return, cursor up and erase-line only."""
    rows: list[list[str]] = [[]]
    y = x = 0
    at = 0
    while at < len(written):
        char = written[at]
        if char == "\x1b":
            end = at + 2
            while not written[end].isalpha():
                end += 1
            code, kind = written[at + 2 : end], written[end]
            if kind == "A":
                y = max(0, y - int(code or 1))
            elif kind == "K":
                rows[y] = []
            at = end + 1
            continue
        at += 1
        if char == "\r":
            x = 0
        elif char == "\n":
            y, x = y + 1, 0
            while len(rows) <= y:
                rows.append([])
        else:
            rows[y] += [" "] * (x + 1 - len(rows[y]))
            rows[y][x] = char
            x += 1
    assert all(len(row) <= width for row in rows)
    return ["".join(row).rstrip() for row in rows]
