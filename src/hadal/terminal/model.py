"""A model to talk to and what it answers: for the chat, for one question, and its tasks for the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hadal.errors import UserError
from hadal.library.record import carry_on, is_grown, open_run, read_run
from hadal.terminal.clean import strip_controls
from hadal.terminal.interrupts import held
from hadal.text.parse import Delta, TokenParser

if TYPE_CHECKING:  # torch is loaded when a model is
    from hadal.engine import LLM, EngineConfig
    from hadal.tasks import Problem, Task

Kind = Literal["thought", "answer"]
R1_SAMPLING = {"temperature": 0.6, "top_p": 0.95}  # where a checkpoint has no settings of its own
_MAX_TOKENS = 1024


@dataclass
class Reply:
    """One answered question."""

    question: str
    thought: str | None
    answer: str
    response: str  # as the model wrote it, with its control tokens spelled, for the scorer
    tokens: int
    thought_tokens: int
    seconds: float
    thought_seconds: float
    stopped: bool = False
    cut: bool = False
    """Whether it came to the most tokens that an answer may have."""
    right: bool | None = None
    gold: str | None = None
    drafted: int = 0
    accepted: int = 0
    """Tokens that were guessed ahead, and those of them that came out so."""
    forgotten: int = 0
    """Earlier turns that the context had no room for."""

    def as_dict(self) -> dict[str, Any]:
        """What `hadal ask --json` prints."""
        return {
            "question": self.question,
            "thought": self.thought,
            "answer": self.answer,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
            "cut": self.cut,
            "right": self.right,
            "gold": self.gold,
        }


class Model:
    """A finished run with its tasks, ready to be asked."""

    def __init__(
        self, model: str | Path, dtype: str = "auto", budget: int | None = None, config: EngineConfig | None = None
    ) -> None:
        from hadal.models.hub import resolve

        self.run = resolve(model)
        self.dtype, self.budget, self.config = dtype, budget, config
        self.given = str(model)
        self.record = record_of(self.run)
        self.notes: list[str] = []
        self.llm = self._load()
        self.tasks = tasks_of(self.record, self.notes.append)
        self.asked = 0

    @property
    def is_grown(self) -> bool:
        """Whether it was grown from nothing, on tasks of its own."""
        return is_grown(self.record)

    @property
    def converses(self) -> bool:
        """Whether it is given the conversation: models in hadal's own form have only seen single questions."""
        return not self.llm.tokenizer.is_own

    @property
    def name(self) -> str:
        return str(self.record.get("name") or self.given)

    def _load(self) -> LLM:
        from hadal.engine import LLM

        return LLM.load(self.run, form=self.dtype, config=self.config, say=self.notes.append, rows=(1,))

    def examples(self) -> list[str]:
        """Up to five held-out questions, one of each task."""
        return [task.generate(0, "held_out", task.default_difficulty).prompt for task in self.tasks[:5]]

    def recognise(self, question: str) -> tuple[Task, Problem] | None:
        for task in self.tasks:
            problem = task.recognise(question)
            if problem is not None:
                return task, problem
        return None

    def prompt(self, question: str, thinking: bool | None, earlier: Sequence[Reply]) -> tuple[list[int], int]:
        """The ids of a question behind as many earlier turns as leave room for an answer, and how many do not."""
        turns = [reply for reply in earlier if reply.answer.strip()] if self.converses else []
        context = self.llm.engine.longest
        for forgotten in range(len(turns) + 1):
            messages: list[dict[str, Any]] = []
            for turn in turns[forgotten:]:
                messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
            ids = self.llm.tokenizer.chat([*messages, {"role": "user", "content": question}], thinking=thinking)
            if len(ids) + min(_MAX_TOKENS, context // 4) <= context:
                return ids, forgotten
        return ids, len(turns)

    def reply(
        self, question: str, thinking: bool | None, show: Callable[[Kind, str, Reply], None],
        earlier: Sequence[Reply] = (),
    ) -> Reply:  # fmt: skip
        """Asks, calls `show` with every piece, and checks the answer. Ctrl-C ends the answer where it is.

        earlier: the turns before, which a model that converses is given.
        """
        from hadal.engine import SamplingParams
        from hadal.engine.llm import generation_defaults

        tokenizer: Any = self.llm.tokenizer
        prompt, forgotten = self.prompt(question, thinking, earlier)
        sampling = R1_SAMPLING | generation_defaults(self.run)
        budget = {} if thinking is False else {"thinking_budget": self.budget}
        left = self.llm.engine.longest - len(prompt) - 1  # where it is asked for, a token opens the thought
        asked = {"max_tokens": max(1, min(_MAX_TOKENS, left)), "seed": self.asked, "thinking": thinking}
        params = SamplingParams.of(sampling | asked | budget)
        self.asked += 1
        opened = bool(thinking) or tokenizer.in_thought(prompt)
        reply = Reply(question, "" if opened else None, "", "", 0, 0, 0.0, 0.0, forgotten=forgotten)
        ids: list[int] = tokenizer.think_ids if opened else []
        parser = TokenParser(tokenizer, opened)
        drafts, began = self.llm.engine.drafts, time.perf_counter()
        before = drafts.drafted, drafts.accepted

        def hear(deltas: list[Delta]) -> None:
            if parser.in_thought or any(delta.kind == "thought" for delta in deltas):
                reply.thought_tokens, reply.thought_seconds = reply.tokens, reply.seconds
            reply.thought, reply.answer = parser.parsed.thought, parser.parsed.answer
            for delta in deltas:
                if delta.kind in ("thought", "answer"):
                    show("thought" if delta.kind == "thought" else "answer", strip_controls(delta.text), reply)

        def tokens() -> Iterator[int]:
            sample = yield from self.llm.stream(prompt, params)
            reply.cut = sample.finish_reason == "length"

        with held(passed_on=False) as interrupted:
            for token in tokens():
                ids.append(token)
                reply.tokens += 1
                reply.seconds = time.perf_counter() - began
                hear(parser.feed_ids([token]))
                if interrupted():
                    reply.stopped = True
                    break
            hear(parser.finish(not reply.stopped))
        reply.seconds = time.perf_counter() - began
        reply.drafted, reply.accepted = drafts.drafted - before[0], drafts.accepted - before[1]
        reply.response = tokenizer.decode(ids, special=True)
        found = self.recognise(question)
        if found is not None and not reply.stopped:
            task, problem = found
            reply.gold = problem.answer
            reply.right = task.score(problem, reply.response).right
        return reply


def record_of(folder: Path) -> dict[str, Any]:
    """run.json of a finished run; a checkpoint or adapters of another origin have none."""
    if not (folder / "run.json").is_file():
        return {}
    record = read_run(folder)
    if record.get("kind") != "sft":
        return open_run(folder)
    if record.get("status") != "complete":
        raise UserError(f"the fine-tuning in {folder} is not finished.", carry_on(folder))
    return record


def tasks_of(record: Mapping[str, Any], note: Callable[[str], None]) -> list[Task]:
    """The tasks that a run was grown on; `note` is told of one that cannot be had."""
    from hadal.tasks import load_tasks

    tasks: list[Task] = []
    for name in (record.get("config") or {}).get("tasks") or []:
        try:
            for task in load_tasks([name]).values():
                task.generate(0, "held_out", task.default_difficulty)
                tasks.append(task)
        except UserError as error:  # such as a file of one's own that has moved: the model can still talk
            note(f"Answers of task {name} cannot be checked: {error}")
    return tasks
