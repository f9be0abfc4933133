"""What a response earns: parts, each a number with a meaning of its own, and their weighted sum.

R1 adds accuracy, format and language (arXiv 2501.12948); the others shape length and punish loops. Only
parts with a weight are worked out. Accuracy is the task's verdict, whatever stands behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from hadal.errors import UserError
from hadal.rewards.language import SCRIPTS, language_share
from hadal.rewards.shape import format_reward, length_rewards, overlong_penalty, repetition_penalty
from hadal.tasks import Problem, Reward, Task
from hadal.text.parse import parse_response


@dataclass(frozen=True)
class RewardConfig:
    """The weight of each part, and the parts' own settings."""

    accuracy: float = 1.0
    format: float = 0.0
    language: float = 0.0
    length: float = 0.0
    overlong: float = 0.0
    repetition: float = 0.0
    tests: float = 0.0
    target_language: str = "en"
    overlong_tokens: int = 32
    """The last tokens before the limit, over which the overlong penalty grows from 0 to -1."""
    repetition_ngram: int = 8
    """Tokens of a piece that counts as repeated when it comes again."""

    def __post_init__(self) -> None:
        if self.target_language not in SCRIPTS:
            raise UserError(
                f"target_language is {self.target_language!r}.", f"Known are {', '.join(sorted(SCRIPTS))}."
            )
        for name in PARTS:
            if not isfinite(weight := getattr(self, name)) or weight < 0:
                raise UserError(f"The reward's weight for {name} is {weight}.", "It must be a number from 0 on.")
        if not any(getattr(self, name) for name in PARTS):
            raise UserError("All weights of the reward are 0.", "Give accuracy a weight.")


PARTS = ("accuracy", "format", "language", "length", "overlong", "repetition", "tests")


@dataclass(frozen=True)
class Response:
    """A response as text (thought and tags included) and as token ids, of at most `max_tokens`."""

    text: str
    token_ids: Sequence[int]
    max_tokens: int


def score_group(
    task: Task, problem: Problem, responses: Sequence[Response], config: RewardConfig
) -> list[Reward]:
    """What each response of a problem's group earns: its parts unweighted, and their weighted sum as the total."""
    verdicts = task.score_all(problem, [response.text for response in responses])
    parts = [{"accuracy": verdict.total} for verdict in verdicts]
    for own, response, verdict in zip(parts, responses, verdicts, strict=True):
        if config.tests:
            own["tests"] = 1.0 if verdict.right else task.tests_passed(problem, response.text)
        if config.format:
            own["format"] = format_reward(response.text)
        if config.language:
            own["language"] = language_share(parse_response(response.text).thought or "", config.target_language)
        if config.overlong:
            tokens = len(response.token_ids)
            own["overlong"] = overlong_penalty(tokens, response.max_tokens, config.overlong_tokens)
        if config.repetition:
            own["repetition"] = repetition_penalty(response.token_ids, config.repetition_ngram)
    if config.length:
        lengths = length_rewards([len(r.token_ids) for r in responses], [v.right for v in verdicts])
        for own, value in zip(parts, lengths, strict=True):
            own["length"] = value
    return [
        replace(verdict, total=sum(getattr(config, name) * value for name, value in own.items()), parts=own)
        for own, verdict in zip(parts, verdicts, strict=True)
    ]


__all__ = ["PARTS", "Response", "RewardConfig", "score_group"]
