"""What a stage tells while it runs. The stages call this; `hadal.terminal.view` draws it.

A view never changes what is computed: a stage that is given a silent view ends in the same weights.
"""

from typing import Any, Protocol


class View(Protocol):
    """A place where a run shows what it is doing."""

    def stage(self, name: str, total: int, about: str) -> None:
        """A stage of `total` steps begins; `about` says in one line what it does.

        Called again for the stage that runs, it changes the total.
        """
        ...

    def step(self, name: str, step: int, values: dict[str, Any]) -> None:
        """Step `step` of stage `name` is done (steps count from 1).

        `values` may hold loss, reward, length, thinking_share, tokens_per_second, cost_usd (of the whole run
        so far), seconds_left (of the whole run) and difficulty ({task: level}). Called at every step, so it
        is cheap.
        """
        ...

    def sample(self, question: str, response: str, right: bool | None) -> None:
        """The model's own response to one question; `right` is None where nothing checked it."""
        ...

    def note(self, text: str) -> None:
        """One line that stays in the scrollback."""
        ...

    def close(self) -> None:
        """The run ended or was stopped; the terminal is left as it was found. May be called twice."""
        ...
