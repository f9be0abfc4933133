"""Says why a run of reinforcement learning does not learn, or learns the wrong thing: one sentence and what to do.
And of any stage, where updates are left out because their gradient is not finite.

Everything is read off the metrics of the updates so far, so that a run that is carried on says just what an
uninterrupted one says. The limits were chosen so that the runs in docs/results.md raise no alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any

from hadal.errors import UserError
from hadal.rewards.format import format_reward
from hadal.stages.common.run import RunFiles
from hadal.train.optim import Optimizer
from hadal.train.rl import RLConfig
from hadal.train.rollouts import Group

WINDOW = 8
"""Updates whose mean is judged."""
AGAIN = 100
"""Updates after which what still holds is said again."""
IN_A_ROW = 5
"""Updates without a finite gradient, one after the other, that end a stage."""
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """What the rules judge: the updates' metrics so far, and the accuracy on the monitored problems by step."""

    updates: Sequence[Line]
    held_out: Sequence[tuple[int, float]] = ()
    problems: int = 0
    """Monitored problems in all."""
    config: RLConfig = field(default_factory=RLConfig)

    def mean(self, name: str, end: int | None = None) -> float | None:
        """Mean over the last WINDOW updates before position `end`; None where there are fewer, or without figures."""
        end = len(self.updates) if end is None else end
        values = [line.get(name) for line in self.updates[max(0, end - WINDOW) : end]]
        known = [value for value in values if value is not None]
        return sum(known) / WINDOW if len(known) == WINDOW else None

    def above(self, name: str, limit: float) -> bool:
        mean = self.mean(name)
        return mean is not None and mean > limit

    def below(self, name: str, limit: float) -> bool:
        mean = self.mean(name)
        return mean is not None and mean < limit


def not_finite(seen: Seen) -> str | None:
    norm = seen.updates[-1].get("grad_norm", 0.0) if seen.updates else 0.0
    if norm is not None and isfinite(norm):
        return None
    return (
        "The gradient is not finite, and the update was left out. Lower the learning rate, or look for a loss that "
        "divides by 0 or takes the exponential of too much (importance_cap, clip_high)."
    )


def truncated(seen: Seen) -> str | None:
    if not seen.above("truncated", 0.8):
        return None
    return (
        f"{seen.mean('truncated'):.0%} of the responses are cut off at max_tokens = {seen.config.max_tokens}, so "
        "hardly any comes to an answer. Raise max_tokens, or begin with a model that ends its answers."
    )


def format_unmatched(seen: Seen) -> str | None:
    if seen.mean("reward_format") != 0:
        return None
    return (
        "No response has the form <think>thought</think> answer, so that part of the reward is always 0. Show the form "
        "first (a cold start: supervised fine-tuning on some examples), or set rewards.format = 0."
    )


def nothing_right(seen: Seen) -> str | None:
    if not seen.above("all_wrong", 0.95) or truncated(seen) or format_unmatched(seen):
        return None
    return (
        f"Nearly all samples of the last {WINDOW} updates were wrong, so there is nothing to reinforce. Take easier "
        "problems, more samples of each, or a model that has learnt more before."
    )


def all_right(seen: Seen) -> str | None:
    if not seen.above("all_right", 0.95):
        return None
    return (
        f"Nearly all samples of the last {WINDOW} updates were right, so there is nothing left to learn here. Take "
        "harder problems, or stop."
    )


def advantages_zero(seen: Seen) -> str | None:
    alike = seen.above("all_wrong", 0.95) or seen.above("all_right", 0.95)  # which are told with another remedy
    if not seen.below("kept_groups", 0.02) or alike:
        return None
    return (
        "The samples of a group all earn the same, so every advantage is 0. Raise the temperature or the number of "
        "samples, or reward something in which they differ."
    )


def gradient_zero(seen: Seen) -> str | None:
    if seen.mean("grad_norm") != 0 or not seen.above("kept_groups", 0.02):
        return None
    return (
        "The gradient is exactly 0 although samples have advantages: the loss does not reach the weights. Look for a "
        "detached tensor in the algorithm, frozen parameters, or clipping that cuts everything (clip_low, clip_high)."
    )


def entropy_collapsed(seen: Seen) -> str | None:
    if not seen.below("entropy", 0.02):
        return None
    return (
        f"The entropy has collapsed to {seen.mean('entropy'):.3f} nats a token: the model says the same every time and "
        "finds nothing new. Raise clip_high or the temperature, lower the learning rate, or go back to a checkpoint."
    )


def entropy_exploded(seen: Seen) -> str | None:
    first, now = seen.mean("entropy", WINDOW), seen.mean("entropy")
    if first is None or now is None or now < max(2.5 * first, first + 0.5):
        return None
    return (
        f"The entropy rose from {first:.2f} to {now:.2f} nats a token: the model falls apart into noise. Lower the "
        "learning rate, keep it near a reference (kl), and go back to a checkpoint."
    )


def mismatch(seen: Seen) -> str | None:
    if not seen.above("mismatch", 0.1):
        return None
    return (
        f"Sampler and trainer disagree by {seen.mean('mismatch'):.2f} nats on each token's log-probability, so what is "
        "trained is not what was sampled. Compute both in one dtype, or set importance_cap = 2."
    )


def languages_mixed(seen: Seen) -> str | None:
    if not seen.above("foreign", 0.1):
        return None
    return (
        f"{seen.mean('foreign'):.0%} of the words in the thoughts are in a script that is not the question's: "
        "languages are mixed. Give rewards.language a weight, or begin with a model that was shown readable thoughts."
    )


def length_explodes(seen: Seen) -> str | None:
    end = len(seen.updates) - 2 * WINDOW
    before, now = seen.mean("length", end), seen.mean("length")
    earned, earns = seen.mean("reward", end), seen.mean("reward")
    if end < WINDOW or before is None or now is None or earned is None or earns is None or truncated(seen):
        return None
    if now < 1.5 * before or earns > earned + 0.05 or not seen.above("truncated", 0.1):
        return None
    return (
        f"Responses grew from {before:.0f} to {now:.0f} tokens in {2 * WINDOW} updates and earn no more. Punish that "
        "(overlong, rewards.length, rewards.repetition), or take the constant mean, which does not favour long ones."
    )


def reward_hacked(seen: Seen) -> str | None:
    if len(seen.held_out) < 2:
        return None
    step, best = max(seen.held_out, key=lambda item: item[1])
    last, now = seen.held_out[-1]
    fall = max(0.05, 2 * sqrt(best * (1 - best) / max(1, seen.problems)))
    first = seen.updates[0]["step"] if seen.updates else 0
    earned, earns = seen.mean("reward", step - first + 1), seen.mean("reward", last - first + 1)
    if earned is None or earns is None or best - now < fall or earns - earned < 0.05:
        return None
    return (
        f"The reward rose from {earned:.2f} to {earns:.2f} while held-out accuracy fell from {best:.0%} to {now:.0%}: "
        "something other than right answers is being earned. Read the rollouts, fix the reward, and go back to the "
        f"checkpoint of step {step}."
    )


RULES: dict[str, Callable[[Seen], str | None]] = {
    rule.__name__: rule
    for rule in (
        not_finite, truncated, format_unmatched, nothing_right, all_right, advantages_zero, gradient_zero,
        entropy_collapsed, entropy_exploded, mismatch, languages_mixed, length_explodes, reward_hacked,
    )
}  # fmt: skip
"""Each gives the sentence for what it sees, or None."""


def end_if_lost(stage: str, step: int, optimizer: Optimizer) -> None:
    """UserError where the last updates were all left out: the next ones will be, too."""
    if optimizer.in_a_row >= IN_A_ROW:
        raise UserError(
            f"{stage}: the last {optimizer.in_a_row} gradients, up to update {step}, were not finite.",
            "Start over with a lower optimizer.lr; if it happens from the first update on, look for damaged weights.",
        )


def tell_left_out(run: RunFiles, stage: str, step: int, optimizer: Optimizer) -> None:
    """After an update of a stage without a Watch: say where it was left out, at the first such one, the second, the
    fourth and so on; UserError where too many are, one after the other."""
    count = optimizer.left_out
    if optimizer.in_a_row and count & (count - 1) == 0:
        text = f"The gradient is not finite, and the update was left out ({count} so far). Lower the learning rate."
        run.metrics.append({"stage": stage, "step": step, "alarm": not_finite.__name__, "text": text})
        run.view.note(f"{stage}, update {step}: {text}")
    end_if_lost(stage, step, optimizer)


class Watch:
    """Keeps what a stage has seen, and tells what was not told lately."""

    def __init__(self, stage: str, config: RLConfig, problems: int, lines: Sequence[Line] = ()) -> None:
        """problems: how many are monitored; lines: what the stage has written before, where it is carried on."""
        self.stage, self.config, self.problems = stage, config, problems
        self.updates: list[Line] = []
        self.held_out: list[tuple[int, float]] = []
        self.told: dict[str, int] = {}
        for line in lines:
            if line.get("stage") == stage:
                self._take(line)

    def _take(self, line: Line) -> None:
        if "alarm" in line:
            self.told[line["alarm"]] = line["step"]
        elif "held_out" in line:
            shares = line["held_out"].values()
            self.held_out.append((line["step"], sum(shares) / len(shares)))
        elif "reward" in line:
            self.updates.append(line)

    def look(self, line: Line, groups: Sequence[Group]) -> list[dict[str, Any]]:
        """Take in a line of metrics; returns the lines to write and show (`text`) of what is wrong now.

        groups: of the last update, for an example.
        """
        self._take(line)
        seen = Seen(self.updates, self.held_out, self.problems, self.config)
        found = []
        for name, rule in RULES.items():
            text = rule(seen)
            if text is None or line["step"] - self.told.get(name, -AGAIN) < AGAIN:
                continue
            if name == "format_unmatched":
                text += f" An example: {_unformed(groups)!r}"
            found.append({"stage": self.stage, "step": line["step"], "alarm": name, "text": text})
            self.told[name] = line["step"]
        return found


def _unformed(groups: Sequence[Group]) -> str:
    return next((text[:200] for g in groups for text in g.texts if not format_reward(text)), "")


__all__ = ["AGAIN", "RULES", "WINDOW", "Line", "Seen", "Watch", "end_if_lost", "tell_left_out"]
