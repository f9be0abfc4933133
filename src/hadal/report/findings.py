"""What reinforcement learning changed, in plain sentences that are computed from the numbers.

Three things that are often taken for one another are told apart:

- mode: the model chooses to think more often; it could have done so before;
- sharpening: its samples come closer to the best answer it already had;
- skill: it solves problems that it did not solve even at its best.

Wherever two 95% intervals overlap, the sentence says that no change is shown. (That is a careful rule:
intervals may overlap a little and the difference still be real.) Arithmetic and words only; `run.py` calls
this.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from hadal.evaluate.statistics import mean_of, proportion
from hadal.report.words import from_to, listed, percent, points

Estimate = dict[str, Any]  # accuracy, low, high, n
DEEP = ("mode", "sharpening", "skill")
"""The names of these findings, among those of a report."""


@dataclass
class Finding:
    """One question with its verdict (a few words) and the sentences that carry it."""

    name: str
    question: str
    verdict: str
    changed: bool
    sentences: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# ------------------------------------------------------------------------------------------------ arithmetic


def wilson(share: float, n: int) -> Estimate:
    """A share of n with its 95% interval."""
    return proportion(share * n, n)


def change(before: Estimate, after: Estimate) -> int:
    """1 or -1 where the 95% intervals are apart, 0 where they overlap."""
    if after["low"] > before["high"]:
        return 1
    return -1 if after["high"] < before["low"] else 0


def mode_of(side: dict[str, Any], decoding: str, made_to: str) -> Estimate | None:
    """One cell of the table of modes, None where it was not measured."""
    estimate = ((side.get("modes") or {}).get(decoding) or {}).get(made_to)
    return estimate if estimate and estimate.get("accuracy") is not None else None


def pass_at(side: dict[str, Any], k: int) -> Estimate | None:
    """pass@k with a careful interval: as if each problem were one try."""
    measured = side.get("pass_at_k") or {}
    value = (measured.get("values") or {}).get(str(k))
    return wilson(value, measured["n_problems"]) if value is not None and measured.get("n_problems") else None


def largest_k(tasks: dict[str, Any]) -> int | None:
    """The largest k that both sides of every task have; None where there is none."""
    shared: set[int] | None = None
    for task in tasks.values():
        for side in ("base", "rl"):
            ks = {int(k) for k in (task[side].get("pass_at_k") or {}).get("values") or {}}
            shared = ks if shared is None else shared & ks
    return max(shared) if shared else None


def past_frontier(task: dict[str, Any]) -> tuple[int, Estimate, Estimate] | None:
    """The first measured difficulty past the base's frontier, with the accuracy of base and RL there.

    None where the base is above one half throughout, so that nothing past its frontier was measured.
    """
    rl = {row["difficulty"]: row for row in task["rl"].get("by_difficulty") or []}
    rows = [row for row in task["base"].get("by_difficulty") or [] if row["difficulty"] in rl]
    frontier = task["base"].get("frontier")
    for row in sorted(rows, key=lambda row: row["difficulty"]):
        past = row["difficulty"] > frontier if frontier is not None else row["accuracy"] < 0.5
        if past:
            return row["difficulty"], row, rl[row["difficulty"]]
    return None


# ------------------------------------------------------------------------------------------------ words


def _split(pairs: dict[str, tuple[Estimate, Estimate]]) -> tuple[list[str], list[str], list[str]]:
    """Task names that rose, fell, and showed no change."""
    by = {1: [], -1: [], 0: []}  # type: dict[int, list[str]]
    for name, (before, after) in pairs.items():
        by[change(before, after)].append(name)
    return by[1], by[-1], by[0]


def _told(pairs: dict[str, tuple[Estimate, Estimate]], what: str) -> str:
    """One sentence on all tasks: what rose, what fell, where no change is shown."""
    rose, fell, same = _split(pairs)

    def each(names: list[str]) -> str:
        return listed(
            [f"{n} ({percent(pairs[n][0]['accuracy'])} to {percent(pairs[n][1]['accuracy'])})" for n in names]
        )

    parts = []
    if rose:
        parts.append(f"rose on {each(rose)}")
    if fell:
        parts.append(f"fell on {each(fell)}")
    if same:
        parts.append(f"shows no change on {each(same)}, where the intervals overlap")
    return f"{what} {'; it '.join(parts)}."


# --------------------------------------------------------------------------------------- the questions


def mode_finding(tasks: dict[str, Any], mean: dict[str, Any]) -> Finding:
    """Did it come to think more often, and how much of the gain is that alone?"""
    base, rl = mean["base"], mean["rl"]
    finding = Finding("mode", "Does it choose to think more often?", "Not measured", False)
    shares = {side: mean[side].get("thinking_share") for side in ("base", "rl")}
    if shares["base"] is not None and shares["rl"] is not None:
        before, after = wilson(shares["base"], base["n"]), wilson(shares["rl"], rl["n"])
        moved = change(before, after)
        finding.changed = moved > 0
        finding.verdict = {1: "Yes", -1: "No, less often", 0: "No change shown"}[moved]
        tail = "." if moved else ": the intervals overlap, so no change is shown."
        finding.sentences.append(
            f"Free to choose, the share of responses that think went {from_to(before, after)}{tail}"
        )
    if base.get("length") and rl.get("length"):
        ratio = rl["length"] / base["length"]
        finding.sentences.append(
            f"The mean response went from {base['length']:.1f} to {rl['length']:.1f} tokens, "
            f"{ratio:.1f} times as long as before."
        )
    gain, forced = rl["accuracy"] - base["accuracy"], base.get("accuracy_thinking")
    moved = change(base, rl)
    if moved == 0:
        finding.sentences.append(
            f"Free to choose, accuracy went {from_to(base, rl)}: the intervals overlap, so no gain is shown."
        )
    elif moved < 0:
        finding.sentences.append(f"Free to choose, accuracy fell {from_to(base, rl)}.")
    elif forced is not None:
        share = (forced - base["accuracy"]) / gain
        if share >= 0.95:
            verdict = "so choosing to think explains the whole gain"
        elif share <= 0.05:
            verdict = "so choosing to think explains none of the gain"
        else:
            verdict = (
                f"so choosing to think explains {percent(share)} of the gain; the rest is looked for below"
            )
        finding.sentences.append(
            f"Free to choose, accuracy went {from_to(base, rl)}, {points(gain)}. The base reaches "
            f"{percent(forced)} merely by being made to think, without any reinforcement learning: {verdict}."
        )
    return finding


def sharpening_finding(tasks: dict[str, Any]) -> Finding:
    """Made to think either way: do samples come closer to the model's own best answer?"""
    finding = Finding(
        "sharpening", "Do its samples come closer to its own best answer?", "Not measured", False
    )
    cells = {
        (decoding, side): {name: mode_of(task[side], decoding, "thinking") for name, task in tasks.items()}
        for decoding in ("sampled", "greedy")
        for side in ("base", "rl")
    }
    complete = [name for name in tasks if all(column[name] is not None for column in cells.values())]
    if not complete:
        finding.sentences.append("Accuracy when made to think was not measured.")
        return finding
    pooled = {key: mean_of([e for n in complete if (e := column[n])]) for key, column in cells.items()}
    sampled = pooled["sampled", "base"], pooled["sampled", "rl"]
    greedy = pooled["greedy", "base"], pooled["greedy", "rl"]
    gaps = [best["accuracy"] - one["accuracy"] for best, one in zip(greedy, sampled, strict=True)]
    moved = change(*sampled)
    finding.changed = moved > 0 and gaps[1] < gaps[0]
    if finding.changed:
        finding.verdict = "Yes"
    elif moved > 0:
        finding.verdict = "No: samples improved, the gap to greedy did not shrink"
    else:
        finding.verdict = "No, worse" if moved < 0 else "No change shown"
    columns = cells["sampled", "base"], cells["sampled", "rl"]
    by_task = {n: (b, r) for n in complete if (b := columns[0][n]) and (r := columns[1][n])}
    overlap = " (the intervals overlap)"
    end = "samples moved towards the best answer." if finding.changed else "that alone is not sharpening."
    finding.sentences += [
        _told(by_task, "Made to think and sampled at temperature 1.0, accuracy"),
        f"In the mean of tasks it went {from_to(*sampled)}{'' if moved else overlap}, and greedy, taking the "
        f"likeliest token each time, {from_to(*greedy)}{'' if change(*greedy) else overlap}. The gap between "
        f"the two went from {100 * gaps[0]:.0f} to {100 * gaps[1]:.0f} points: {end}",
    ]
    return finding


def skill_finding(tasks: dict[str, Any]) -> Finding:
    """Does it solve what it could not solve at its best, greedy and made to think?"""
    finding = Finding("skill", "Does it solve harder problems than before?", "Not measured", False)
    moved, fell, measured = [], [], []
    for name, task in tasks.items():
        past = past_frontier(task)
        limits = f" (worked thoughts were given up to {task['gold_limit']})" if task.get("gold_limit") else ""
        if past is None:
            if task["base"].get("by_difficulty"):
                finding.sentences.append(
                    f"{name}: the base is right more than half the time at every difficulty that was measured, "
                    "so this task cannot show whether skill grew."
                )
            continue
        measured.append(name)
        difficulty, before, after = past
        direction = change(before, after)
        if direction > 0:
            moved.append(name)
        elif direction < 0:
            fell.append(name)
        end = {
            1: "the intervals are apart",
            -1: "the intervals are apart: a loss",
            0: "the intervals overlap, so no change is shown",
        }
        finding.sentences.append(
            f"{name}: the frontier went from {frontier_words(task, 'base')} to "
            f"{frontier_words(task, 'rl')}{limits}. "
            f"At difficulty {difficulty}, the first measured past the base's frontier, accuracy went "
            f"{from_to(before, after)}: {end[direction]}."
        )
    finding.changed = bool(moved)
    if moved:
        finding.verdict = f"Yes, on {listed(moved)} ({len(moved)} of {len(tasks)} tasks)"
    elif fell:
        finding.verdict = f"No; it lost on {listed(fell)}"
    elif measured:
        finding.verdict = "No change shown"
    k = largest_k(tasks)
    if k:
        pairs = {
            n: (b, r) for n, t in tasks.items() if (b := pass_at(t["base"], k)) and (r := pass_at(t["rl"], k))
        }
        if pairs:
            finding.sentences.append(
                _told(pairs, f"With {k} tries for each problem (pass@{k}), the share solved at least once")
            )
    if measured:
        finding.sentences.append(
            "This page compares the model with its own base. It cannot tell whether as much more pre-training, or "
            "training on the base's own right answers, would have done the same."
        )
    return finding


def frontier_words(task: dict[str, Any], side: str) -> str:
    """The frontier as a number, or where it lies outside what was measured."""
    frontier = task[side].get("frontier")
    if frontier is not None:
        return f"{frontier:.1f}".removesuffix(".0")
    rows = sorted(task[side].get("by_difficulty") or [], key=lambda row: row["difficulty"])
    if not rows:
        return "not measured"
    if rows[0]["accuracy"] < 0.5:
        return f"below {rows[0]['difficulty']}"
    if rows[-1]["accuracy"] >= 0.5:
        return f"beyond {rows[-1]['difficulty']}"
    return "not measured"


def findings(tasks: dict[str, Any], mean: dict[str, Any]) -> list[Finding]:
    """Mode, sharpening and skill, in this order; empty where no task was learned."""
    if not tasks:
        return []
    return [mode_finding(tasks, mean), sharpening_finding(tasks), skill_finding(tasks)]


def took_to_thinking(before: Estimate, after: Estimate) -> bool:
    """Whether a model thinks more often than before, and in most of its responses."""
    shares = before.get("thinking_share"), after.get("thinking_share")
    if shares[0] is None or shares[1] is None or shares[1] < 0.5:
        return False
    return change(wilson(shares[0], before["n"]), wilson(shares[1], after["n"])) > 0
