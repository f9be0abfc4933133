"""Numbers and fixed phrases in words, for both forms of the report."""

import math
from collections.abc import Mapping
from typing import Any

from hadal.report.charts import printable

DECODINGS = {
    "sampled": "sampled, temperature 1.0",
    "r1": "sampled, temperature 0.6, top-p 0.95",
    "greedy": "greedy",
}
ABOUT_N = (
    "n counts held-out problems, none of which this training used; where two intervals overlap, no difference is shown."
)
ABOUT_INTERVALS = f"In brackets 95% intervals; {ABOUT_N}"
ABOUT_STAGES = (
    "In brackets 95% intervals; n counts held-out problems, none of which this training used. All models were given "
    "the same problems, so two of them are compared problem by problem: where the interval of their differences "
    "contains 0, no difference is shown."
)
ABOUT_API_PRICES = (
    "Beside it the price of as many output tokens, prompts not counted. It is not a contest: those models answer far "
    "harder questions, and would need a different number of tokens for these. Here the tokens are sampled in large "
    "batches; one at a time they cost more."
)
_STAGES = {
    "pretrain": "pre-training",
    "grpo": "reinforcement learning",
    "evaluate": "examination",
    "rl": "after RL",
    "total": "all",
}


def cut(text: str, most: int = 1500) -> str:
    """Long text, with a word on what was left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def percent(share: float) -> str:
    """`93%`; near the ends, where a whole number would hide the rest, `99.6%`."""
    if 0 < share < 0.01 or 0.99 < share < 1:
        return f"{(math.floor if share > 0.5 else math.ceil)(share * 1000) / 10:.1f}%"
    return f"{share:.0%}"


def bounds(estimate: Mapping[str, float]) -> str:
    """`90–94%`."""
    return f"{percent(estimate['low'])[:-1]}–{percent(estimate['high'])}"


def estimated(estimate: Mapping[str, float]) -> str:
    """`93% (92–94%)`."""
    return f"{percent(estimate['accuracy'])} ({bounds(estimate)})"


def points(difference: float) -> str:
    """`+40 points`."""
    number = round(100 * difference)
    return f"{number:+d} point{'' if abs(number) == 1 else 's'}" if number else "0 points"


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def from_to(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """`from 53% (50–55%) to 93% (92–94%)`."""
    return f"from {estimated(before)} to {estimated(after)}"


def number(value: float | None) -> str:
    """`35.0`, `3.21k`, `1.4M`, `2.1e13`; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int) and abs(value) < 10_000:
        return str(value)
    if abs(value) >= 1e12:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.1f}"


def money(value: float | None) -> str:
    """`$0.0042`: two figures that mean something, however small; a dash for None."""
    if value is None:
        return "–"
    if value >= 0.995:
        return f"${value:,.2f}"
    if value == 0:
        return "$0"
    digits = 1
    while round(value, digits) == 0 or value < 9.5 * 10**-digits:
        digits += 1
    return f"${value:.{digits}f}"


def million(value: float | None) -> str:
    """What a million of a thing costs that costs `value` dollars each."""
    return money(None if value is None else value * 1e6)


def size(value: float | None) -> str:
    """`812 MB`, `1.3 GB`."""
    if value is None:
        return "–"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def span(seconds: float | None) -> str:
    """`42 s`, `5 min 42 s`, `2 h 05 min`."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def stage_title(name: str) -> str:
    return _STAGES.get(name, name.replace("_", " "))


def architecture(report: dict[str, Any]) -> str:
    if report.get("model_type"):
        return f"a model of the family {report['model_type']}"
    names = {"dense": "a dense transformer", "deepseek": "a DeepSeek-style mixture of experts"}
    return names.get(report["arch"], str(report["arch"] or "a model"))


def setting(report: dict[str, Any]) -> str:
    """What was made of what, in how long, for how much."""
    model = architecture(report)
    if report["parameters"]:
        model += f" of {number(float(report['parameters']))} parameters"
    made = f"trained from {report['origin']}" if report.get("origin") else "grown from random numbers"
    parts = [f"{model[0].upper()}{model[1:]}, {made}"]
    if report["seconds"] is not None:
        parts[0] += f" in {span(report['seconds'])}"
        if report.get("device") == "cuda":
            parts[0] += " on a GPU"
        elif report["threads"]:
            parts[0] += f" on {report['threads']} CPU thread{'s' if report['threads'] > 1 else ''}"
    if report["cost_usd"] is not None:
        parts.append(f"for {money(report['cost_usd'])}")
    if report["seed"] is not None:
        parts.append(f"seed {report['seed']}")
    return ", ".join(parts)


def command(report: dict[str, Any]) -> str:
    """The command that makes this model again."""
    return printable(report["command"]).replace("`", "")


def made_by(row: dict[str, Any]) -> str:
    """`grpo from dev1`."""
    kind = f"{row['kind']} ({row['method']})" if row["method"] else str(row["kind"])
    return f"{kind} from {row['from']}" if row["from"] else kind
