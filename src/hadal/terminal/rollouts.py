"""`hadal rollouts RUN`: the groups that RL sampled, one at a time: prompt, samples, what each earned and why.

In a terminal single keys move through groups and updates; elsewhere everything asked for is printed as plain text.
What a model wrote is stripped of control characters before it is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hadal.errors import UserError
from hadal.files import JsonLines
from hadal.library.record import read_run
from hadal.terminal.clean import clean, one_line
from hadal.text.parse import parse_response

KEYS = "n, p next and previous group   j, k later and earlier update   s next stage   a all samples   d diff   q quit"
SHOWN = 4
"""Samples of a group that are shown at first: the best and the worst."""


@dataclass(frozen=True)
class Place:
    """Which group: of a stage, after an update, by its number."""

    stage: str
    step: int
    group: int = 0


class Rollouts:
    """The rollouts of a run, read as they are asked for."""

    def __init__(self, run: Path) -> None:
        read_run(run)
        self.folder = Path(run) / "rollouts"
        self.steps: dict[str, list[int]] = {}
        for path in sorted(self.folder.glob("*-*.jsonl")):
            stage, _, step = path.stem.rpartition("-")
            if step.isdigit():
                self.steps.setdefault(stage, []).append(int(step))
        if not self.steps:
            raise UserError(f"{run} has no rollouts.", "RL writes them every grpo.rollouts_every updates.")

    def groups(self, stage: str, step: int) -> list[dict[str, Any]]:
        """The groups of an update. UserError where there is no such stage, or it wrote none then."""
        if stage not in self.steps:
            raise UserError(f"There are no rollouts of a stage {stage!r}.", f"Available: {', '.join(self.steps)}.")
        if step not in self.steps[stage]:
            known = ", ".join(map(str, self.steps[stage]))
            raise UserError(f"{stage} wrote no rollouts after update {step}.", f"It did after {known}.")
        return JsonLines(self.folder / f"{stage}-{step:06d}.jsonl").read()


def advantages(group: dict[str, Any]) -> list[float]:
    """Each sample's: as it was stored, else its reward less the group's mean, which all algorithms begin from."""
    rewards = [float(sample["reward"]) for sample in group["samples"]]
    mean = sum(rewards) / max(1, len(rewards))
    return [float(s.get("advantage", r - mean)) for s, r in zip(group["samples"], rewards, strict=True)]


def lines_of(group: dict[str, Any], every: bool = False) -> Iterator[str]:
    """A group in lines of text: the likeliest to be looked for first."""
    yield f"{group['task']}, difficulty {group['difficulty']}"
    yield f"Q  {one_line(group['prompt'])}"
    yield f"=  {one_line(group['answer'])}"
    samples = list(zip(group["samples"], advantages(group), strict=True))
    right = sum(s.get("right", s.get("parts", {}).get("accuracy", s["reward"]) > 0.5) for s, _ in samples)
    rewards = [s["reward"] for s, _ in samples]
    flat = ", all alike: nothing to learn from" if len(set(rewards)) == 1 else ""
    yield f"   {len(samples)} samples, {right} right, mean reward {sum(rewards) / max(1, len(rewards)):.3f}{flat}"
    samples.sort(key=lambda pair: -pair[1])
    shown = samples
    if not every and len(samples) > SHOWN:
        shown = samples[: SHOWN // 2] + samples[-SHOWN // 2 :]
    for sample, advantage in shown:
        yield ""
        yield f"   {_earned(sample, advantage)}"
        yield from (f"   | {line}" for line in clean(sample["text"]).strip("\n").split("\n"))
    if len(shown) < len(samples):
        yield f"   ... {len(samples) - len(shown)} more in between"


def _earned(sample: dict[str, Any], advantage: float) -> str:
    """`reward 1.2 (accuracy 1, language 1)  advantage +0.31  right`."""
    parts = ", ".join(f"{name} {value:g}" for name, value in (sample.get("parts") or {}).items())
    words = [f"reward {sample['reward']:g}" + (f" ({parts})" if parts else ""), f"advantage {advantage:+.3f}"]
    words += [one_line(sample["note"])] if sample.get("note") else []
    words += ["cut off at the limit"] if sample.get("truncated") else []
    return "  ".join(words)


def difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Iterator[str]:
    """What changed between two updates, task by task. They drew other problems: it is the means that compare."""
    for task in dict.fromkeys(group["task"] for group in [*before, *after]):
        sides = [[g for g in groups if g["task"] == task] for groups in (before, after)]
        if not all(sides):
            yield f"{task:<12} only at one of the two"
            continue
        figures = []
        for groups in sides:
            samples = [s for g in groups for s in g["samples"]]
            figures.append((
                sum(s["reward"] for s in samples) / len(samples),
                sum(len(s["text"].split()) for s in samples) / len(samples),
                sum(parse_response(s["text"]).thinks for s in samples) / len(samples),
                sum(g["difficulty"] for g in groups) / len(groups),
            ))  # fmt: skip
        (r1, w1, t1, d1), (r2, w2, t2, d2) = figures
        yield (
            f"{task:<12} reward {r1:.2f} -> {r2:.2f}   words {w1:.1f} -> {w2:.1f}   "
            f"thinks {t1:.0%} -> {t2:.0%}   difficulty {d1:.1f} -> {d2:.1f}"
        )


def rollouts(
    run: Path, stage: str | None, step: int | None, task: str | None, group: int | None, against: int | None,
    every: bool,
) -> None:  # fmt: skip
    """Print what is asked for, or browse where nothing is and a person looks on."""
    out = sys.stdout
    found = Rollouts(run)
    stage = stage or next(reversed(found.steps))
    found.groups(stage, found.steps.get(stage, [0])[0])
    step = found.steps[stage][-1] if step is None else step
    if against is not None:
        print(f"{stage}, update {against} -> {step}", file=out)
        for line in difference(found.groups(stage, against), found.groups(stage, step)):
            print(line, file=out)
        return
    chosen = [(i, g) for i, g in enumerate(found.groups(stage, step)) if task in (None, g["task"])]
    if not chosen:
        known = ", ".join(dict.fromkeys(g["task"] for g in found.groups(stage, step)))
        raise UserError(f"{stage} has no group of {task!r} after update {step}.", f"Available: {known}.")
    if group is not None:
        if not 1 <= group <= len(chosen):
            raise UserError(f"There is no group {group}.", f"There are 1 to {len(chosen)}.")
        chosen = [chosen[group - 1]]
    elif out.isatty() and sys.stdin.isatty():
        browse(found, Place(stage, step, chosen[0][0]), out)
        return
    for number, (place, one) in enumerate(chosen):
        print(("\n" if number else "") + f"{stage}, update {step}, group {place + 1}", file=out)
        for line in lines_of(one, every):
            print(line, file=out)


def browse(found: Rollouts, place: Place, out: TextIO) -> None:
    """Single keys until q; the arrow keys do as n, p, j and k."""
    every, showing_diff = False, False
    while True:
        groups = found.groups(place.stage, place.step)
        place = Place(place.stage, place.step, place.group % len(groups))
        out.write("\x1b[2J\x1b[H")
        out.write(f"{place.stage}, update {place.step}, group {place.group + 1} of {len(groups)}\n\n")
        steps = found.steps[place.stage]
        if showing_diff:
            first = found.groups(place.stage, steps[0])
            out.write(f"update {steps[0]} -> {place.step}\n")
            out.writelines(f"{line}\n" for line in difference(first, groups))
        else:
            out.writelines(f"{line}\n" for line in lines_of(groups[place.group], every))
        out.write(f"\n{KEYS}\n")
        out.flush()
        key = _key()
        if key in ("q", "\x03", "\x04", ""):
            return
        every ^= key == "a"
        showing_diff = (key == "d") != showing_diff if key == "d" else showing_diff and key in "jk"
        place = moved(found, place, key)


def moved(found: Rollouts, place: Place, key: str) -> Place:
    """Where a key leads from a place."""
    steps, stages = found.steps[place.stage], list(found.steps)
    at = steps.index(place.step)
    if key in "np":
        return Place(place.stage, place.step, place.group + (1 if key == "n" else -1))
    if key in "jk":
        at = min(max(at + (1 if key == "j" else -1), 0), len(steps) - 1)
        return Place(place.stage, steps[at], place.group)
    if key == "s":
        stage = stages[(stages.index(place.stage) + 1) % len(stages)]
        return Place(stage, found.steps[stage][-1])
    return place


def _key() -> str:
    """One key as it is pressed, without echo."""
    import termios
    import tty

    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle)
        key = sys.stdin.read(1)
        if key == "\x1b":
            key = {"[A": "k", "[B": "j", "[C": "n", "[D": "p"}.get(sys.stdin.read(2), " ")
        return key
    except KeyboardInterrupt:
        return "q"
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
