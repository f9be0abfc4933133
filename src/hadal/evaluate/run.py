"""`hadal eval`: a model, however it is named, on tasks, into a folder of samples and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hadal.engine import LLM
from hadal.engine.remote import KEY, RemoteRollout, is_url
from hadal.errors import UserError
from hadal.evaluate.results import against, results
from hadal.evaluate.samples import (
    Asking,
    Evaluation,
    Progress,
    Settings,
    fingerprint,
    is_evaluation,
    read_evaluation,
)
from hadal.files import write_text
from hadal.library.find import find_model
from hadal.rollout import Rollout
from hadal.tasks import Task, load_tasks

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model to be asked. identity: as eval.json has it; rollout: loads it, when it is needed."""

    name: str
    identity: dict[str, Any]
    rollout: Callable[[Say], Rollout]


def subject(
    model: str, served: str | None = None, key_from: str = KEY, connections: int = 16, dtype: str = "auto"
) -> Subject:
    """A run, checkpoint, adapters or Hugging Face id, or a server's address with the name of the model there."""
    if is_url(model):
        if not served:
            raise UserError(f"{model} is a server.", "Name one of its models with --model NAME.")
        remote = RemoteRollout(model, served, key_from, connections)  # says at once what is wrong with the address
        identity = {"kind": "server", "url": remote.url, "model": served}
        return Subject(served, identity, lambda say: _telling(remote, say))
    if served:
        raise UserError(f"--model {served} is for servers, and {model} is not one.", "Leave it out or give an address.")
    folder = find_model(model)
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights.", "Give a finished run, a checkpoint or adapters.")
    identity = {"kind": "weights", "name": model, "weights": fingerprint(folder), "dtype": dtype}
    return Subject(model, identity, lambda say: LLM.load(folder, form=dtype, say=say, rows=(64,)))


def _telling(remote: RemoteRollout, say: Say) -> RemoteRollout:
    remote.note = say
    return remote


@dataclass(frozen=True)
class Outcome:
    """Where an evaluation lies, and what it found."""

    folder: Path
    evaluation: Evaluation
    results: dict[str, Any]


def evaluate(
    subject: Subject, names: Sequence[str], settings: Settings, out: Path | None = None,
    other: Subject | Evaluation | None = None, progress: Callable[[str, Progress], None] = lambda name, done: None,
    say: Say = lambda line: None,
) -> Outcome:  # fmt: skip
    """Ask the model what is missing, then the other one, and write results.json."""
    tasks = load_tasks(names)
    _check(tasks)
    asking = Asking(tasks, settings)
    folder = out or default_folder(subject, asking)
    evaluation = _ask(subject, asking, folder, progress, say)
    if isinstance(other, Subject):
        other = _ask(other, asking, folder / "against", progress, say)
    found = write_results(folder, evaluation, other)
    return Outcome(folder, evaluation, found)


def _check(tasks: Mapping[str, Task]) -> None:
    """A fault in the user's own task is named before anybody waits for a model."""
    from hadal.tasks.user import UserTask

    for task in tasks.values():
        if isinstance(task, UserTask):
            task.validate()


def _ask(
    subject: Subject, asking: Asking, folder: Path, progress: Callable[[str, Progress], None], say: Say
) -> Evaluation:
    def rollout() -> Rollout:
        opened, most = subject.rollout(say), asking.settings.max_tokens
        if (context := opened.context) is not None and most > context:
            say(f"The model reads {context:,} tokens, question and answer: an answer of {most:,} ends there.")
        return opened

    return asking.run(
        rollout, folder, subject.identity, lambda done: progress(subject.name, done)
    )


def write_results(folder: Path, evaluation: Evaluation, other: Evaluation | None = None) -> dict[str, Any]:
    """The figures of a finished evaluation, with a comparison where there is another; what was there is replaced."""
    found = results(evaluation)
    if other is not None:
        found["against"] = against(evaluation, other)
    write_text(folder / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def default_folder(subject: Subject, asking: Asking) -> Path:
    """One for each model, tasks and settings, so that the same command finds its own again."""
    config = asking.config({k: v for k, v in subject.identity.items() if k != "name"})
    digest = blake2b(json.dumps([config, asking.rows()]).encode(), digest_size=4).hexdigest()
    short = re.sub(r"[^\w.-]+", "-", "-".join(Path(subject.name).parts[-2:])).strip("-.") or "model"
    return Path("evals") / f"{short}-{digest}"


def finished(folder: str) -> Evaluation | None:
    """The evaluation that a name stands for, if it is the folder of one. UserError where it is not finished."""
    if not is_evaluation(Path(folder)):
        return None
    evaluation = read_evaluation(Path(folder))
    if not evaluation.complete:
        raise UserError(f"The evaluation in {folder} is not finished.", "Run the command that began it again.")
    return evaluation
