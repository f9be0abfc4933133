"""What a response earns: parts, each a number with a meaning of its own, and their weighted sum.

Each part is one file here, found by its name, and nothing has to be told of it: docs/extending.md adds one as an
example. Such a file has `Options` and one of three functions:

- `reward(answer, options) -> float`, of a response alone;
- `compare(answers, options) -> list[float]`, of all responses to a problem, relative to each other;
- `scorer(rollout, options) -> Scorer`, of what another model has to say, which is handed over.

R1 adds accuracy, format and language (arXiv 2501.12948); the others shape length, punish loops and ask a judge. Only
parts with a weight are worked out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from hadal.errors import UserError
from hadal.reading import nearest, read_dataclass, read_value
from hadal.rollout import Rollout, Scorer
from hadal.tasks import Problem, Reward, Task

MOST = 1e6
"""The highest weight."""
ADDED_FIRST = ("accuracy", "tests")
"""What a verifier says; then what is of a response alone, then the rest. The last bits of a sum depend on the order."""


@dataclass(frozen=True)
class Options:
    """The settings of a part that has none. A file's own are read by their names, from the table of the weights."""


@dataclass(frozen=True)
class Response:
    """A response as text (thought and tags included) and as token ids, of at most `max_tokens`."""

    text: str
    token_ids: Sequence[int]
    max_tokens: int


@dataclass(frozen=True)
class Answer(Response):
    """A response, what it answers, and the task's verdict."""

    task: Task
    problem: Problem
    verdict: Reward


@dataclass(frozen=True)
class RewardConfig:
    """The weight of each part, and its `Options`; where scorers find their model: `https://host/v1`, and its name."""

    weights: dict[str, float]
    options: dict[str, Any]
    endpoint: str = ""
    endpoint_model: str = ""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not 0 <= weight <= MOST:
                raise UserError(f"The reward's weight for {name} is {weight}.", f"It must be from 0 to {MOST:,.0f}.")
            if weight and hasattr(find(name), "scorer") and not self.endpoint:
                raise UserError(f"{name} asks a model, and endpoint is not set.", "Give an address: https://host/v1.")
        if not any(self.weights.values()):
            raise UserError("All weights of the reward are 0.", "Give accuracy a weight.")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise UserError(f"endpoint is {self.endpoint!r}.", "Give an address such as https://host/v1.")
        if self.endpoint and not self.endpoint_model:
            raise UserError("endpoint is set and endpoint_model is not.", "Name the model that is asked.")

    def table(self) -> dict[str, Any]:
        """All of it as a recipe says it; `read_rewards` takes it back."""
        own = {f.name: getattr(options, f.name) for options in self.options.values() for f in fields(options)}
        return {**self.weights, **own, "endpoint": self.endpoint, "endpoint_model": self.endpoint_model}


def names() -> list[str]:
    """All parts that there are."""
    return sorted(module.name for module in iter_modules(__path__))


def find(name: str) -> Any:
    """The file of a part."""
    return import_module(f"{__name__}.{name}")


def read_rewards(table: Mapping[str, Any]) -> RewardConfig:
    """The rewards that a recipe's table asks for: accuracy, where it does not say. UserError for what there is not."""
    kinds = {name: find(name).Options for name in names()}
    shared = ("endpoint", "endpoint_model")
    known = {*kinds, *shared, *(f.name for kind in kinds.values() for f in fields(kind))}
    for key in table:
        if key not in known:
            raise UserError(f"Unknown key rewards.{key}.", nearest(key, known))
    given = {"accuracy": 1.0, **table}
    return RewardConfig(
        {name: read_value(float, given.get(name, 0.0), f"rewards.{name}") for name in kinds},
        {
            name: read_dataclass(kind, {f.name: table[f.name] for f in fields(kind) if f.name in table}, "rewards")
            for name, kind in kinds.items()
        },
        *(read_value(str, table.get(key, ""), f"rewards.{key}") for key in shared),
    )


def score_group(
    task: Task, problem: Problem, responses: Sequence[Response], config: RewardConfig, rollout: Rollout | None = None
) -> list[Reward]:
    """What each response of a problem's group earns: its parts unweighted, and their weighted sum as the total.

    rollout: the model that scorers ask.
    """
    verdicts = task.score_all(problem, [response.text for response in responses])
    answers = [
        Answer(response.text, response.token_ids, response.max_tokens, task, problem, verdict)
        for response, verdict in zip(responses, verdicts, strict=True)
    ]
    wanted = [name for name, weight in config.weights.items() if weight or name == "accuracy"]
    found = {name: _worked_out(name, answers, config, rollout) for name in sorted(wanted, key=_place)}
    parts = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    return [
        replace(verdict, total=sum(config.weights[name] * value for name, value in own.items()), parts=own)
        for own, verdict in zip(parts, verdicts, strict=True)
    ]


def _place(name: str) -> tuple[bool, bool, str]:
    """Where a part stands in the sum."""
    return name not in ADDED_FIRST, not hasattr(find(name), "reward"), name


def _worked_out(name: str, answers: Sequence[Answer], config: RewardConfig, rollout: Rollout | None) -> list[float]:
    """A part of each answer to a problem."""
    part, options = find(name), config.options[name]
    if hasattr(part, "reward"):
        return [part.reward(answer, options) for answer in answers]
    if hasattr(part, "compare"):
        return list(part.compare(answers, options))
    scorer: Scorer = part.scorer(rollout, options)
    problem = answers[0].problem
    return scorer.score(problem.prompt, problem.answer, [answer.text for answer in answers])
