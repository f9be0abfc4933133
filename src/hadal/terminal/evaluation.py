"""An evaluation in the terminal: how far it is, what came out, and what went wrong, problem by problem."""

from __future__ import annotations

import pydoc
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from hadal.evaluate.samples import Evaluation, Progress
from hadal.report.evaluation import broken, chance, change, columns, compared, estimate, rows, shown
from hadal.terminal.clean import clean, one_line
from hadal.terminal.view import count, duration
from hadal.text.parse import parse_response

_EVERY = 10.0  # seconds between lines where no terminal is
_FRAME = 0.2  # and between frames where one is


class Meter:
    """Samples done, how fast, and the time that is left; redrawn on a terminal, else a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.drawn = stream, stream.isatty()
        self.name, self.began, self.next = "", 0.0, 0.0

    def __call__(self, name: str, progress: Progress) -> None:
        now = time.monotonic()
        if name != self.name or progress.new == 0:
            self.name, self.began, self.next = name, now, now
        if now < self.next and progress.done < progress.total:
            return
        self.next = now + (_FRAME if self.drawn else _EVERY)
        self.write(self.line(progress, now - self.began), progress.done == progress.total)

    def line(self, progress: Progress, seconds: float) -> str:
        """`sums: 120 of 800 samples, 12/s, 310 tokens/s, 0:57 left`."""
        parts = [f"{one_line(self.name, 40)}: {progress.done:,} of {progress.total:,} samples"]
        if progress.new and seconds > 0:
            rate = progress.new / seconds
            parts.append(f"{count(rate)}/s")
            parts += [f"{count(progress.tokens / seconds)} tokens/s"] if progress.tokens else []
            left = (progress.total - progress.done) / rate
            parts.append(f"{duration(left)} left" if left else f"{duration(seconds)}")
        return ", ".join(parts)

    def write(self, line: str, last: bool = True) -> None:
        """A line; on a terminal one that is not the last will be written over."""
        end = "\n" if last or not self.drawn else ""
        print(f"\r\x1b[K{line}" if self.drawn else line, end=end, file=self.stream, flush=True)


def summary(results: dict[str, Any]) -> str:
    """The figures that matter most, as a table of plain text."""
    samples = results["settings"]["samples"]
    whole = [name for name in columns(results) if name in ("pass@1", "score", f"cons@{samples}")]
    short = [name for name in ("tokens", "truncated", "thinks") if name in results["mean"]]
    lines = [["", "n", *whole, *short]]
    for name, n, figures in rows(results):
        values = [estimate(column, figures[column]) for column in whole]
        values += [shown(column, figures[column]["value"]) for column in short]
        lines.append([one_line(name), str(n), *values])
    text = "\n\n".join([_table(lines), *map(one_line, broken(results))])
    if "against" in results:
        pairs = [["", "n", "this", "other", "difference", ""]]
        for name, n, figures in compared(results["against"]):
            entry = figures["pass@1"]
            sides = [shown("pass@1", entry[key]) for key in ("value", "other")]
            pairs.append([one_line(name), str(n), *sides, change("pass@1", entry), chance(entry["p"])])
        text += f"\n\npass@1 on the same problems\n{_table(pairs)}"
    return text


def _table(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def browse(evaluation: Evaluation) -> None:
    """The wrong answers, in a pager on a terminal and plainly elsewhere."""
    text = "\n".join(failures(evaluation))
    if sys.stdout.isatty():
        pydoc.pager(text)
    else:
        print(text)


def failures(evaluation: Evaluation) -> Iterator[str]:
    """For each problem with a wrong answer: the question, the right answer, and each wrong one with its thought."""
    wrong: dict[int, list[dict[str, Any]]] = {}
    for sample in evaluation.samples:
        if not sample["right"]:
            wrong.setdefault(sample["problem"], []).append(sample)
    K = evaluation.config["settings"]["samples"]
    yield f"{len(wrong)} of {len(evaluation.problems)} problems have a wrong answer."
    for at, (number, samples) in enumerate(wrong.items(), 1):
        problem = evaluation.problems[number]
        place = f"{one_line(problem['task'])}, difficulty {problem['difficulty']}"
        yield f"\n{'─' * 80}\n{at} of {len(wrong)}  {place}  {K - len(samples)} of {K} right"
        yield f"\nquestion  {clean(problem['prompt'])}\nanswer    {clean(problem['answer'])}"
        for text in dict.fromkeys(sample["text"] for sample in samples):
            same = [sample for sample in samples if sample["text"] == text]
            numbers = ", ".join(str(sample["sample"]) for sample in same)
            reasons = ["cut off at the limit"] if same[0]["truncated"] else []
            reasons += [clean(same[0]["note"])] if same[0]["note"] not in ("", "wrong") else []
            yield f"\nsample {numbers}: {', '.join(reasons) or 'wrong'}"
            parsed = parse_response(text)
            if parsed.thought:
                yield "  thought  " + clean(parsed.thought).strip().replace("\n", "\n           ")
            yield "  said     " + (clean(parsed.answer).strip().replace("\n", "\n           ") or "(nothing)")
