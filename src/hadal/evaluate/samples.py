"""An evaluation under way: which problems, what they are asked with, and every sample on the disk as it comes.

An evaluation is a folder: `eval.json` says of what and how, `problems.jsonl` has the problems, `samples.jsonl` a line
for each sample. The figures (`hadal.evaluate.results`) are made from these alone. The same command in the same folder
carries on where it was stopped; another one is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from hadal.errors import UserError
from hadal.evaluate.fewshot import STOP, FewShot
from hadal.evaluate.suite import held_out
from hadal.files import append_line, write_text
from hadal.machine.cores import cores
from hadal.rewards.format import format_reward
from hadal.rng import Rng
from hadal.rollout import Query, Rollout, Sample, SamplingParams
from hadal.tasks import Problem, Reward, Task
from hadal.text.parse import parse_response

VERSION = 1
DRAWN = 200
"""Problems of a task that draws them, unless another number is asked for."""


@dataclass(frozen=True)
class Settings:
    """How a model is asked. The defaults are R1's (arXiv 2501.12948, section 3), but for the number of samples."""

    samples: int = 4
    problems: int | None = None
    """Of each task; None: DRAWN, and all that a data set has."""
    difficulty: int | Literal["hardest"] | None = None
    """None: each task's own."""
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 32768
    seed: int = 0
    thinking: bool | None = None
    shots: int = 0
    """Worked examples in the prompt, which is then a text to carry on and no conversation."""

    def params(self, seed: int) -> SamplingParams:
        return SamplingParams(
            self.temperature, self.top_p, self.max_tokens, seed, self.thinking, self.samples,
            stop=(STOP,) if self.shots else (),
        )  # fmt: skip

    def level(self, task: Task) -> int:
        """The difficulty that a task is asked at."""
        levels = task.difficulties
        level = task.default_difficulty if self.difficulty is None else self.difficulty
        level = levels[-1] if level == "hardest" else level
        if level not in levels:
            raise UserError(f"{task.name} has no difficulty {level}.", f"Its range is {levels[0]} to {levels[-1]}.")
        return level


def choose_problems(task: Task, settings: Settings) -> list[Problem]:
    """Different held-out problems, the same for every model."""
    level = settings.level(task)
    listed = task.listed("held_out", level)
    if listed is None:
        return held_out(task, level, settings.problems or DRAWN)
    different = {problem.meta["key"]: problem for problem in reversed(listed)}
    return list(reversed(different.values()))[: settings.problems]


# ------------------------------------------------------------------------------------- on the disk


@dataclass(frozen=True)
class Evaluation:
    """What a folder holds. samples: as in samples.jsonl, by task, problem and sample; complete: none is missing."""

    config: dict[str, Any]
    problems: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    @property
    def complete(self) -> bool:
        return len(self.samples) == len(self.problems) * self.config["settings"]["samples"]


def is_evaluation(folder: Path) -> bool:
    return (folder / "eval.json").is_file()


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in a folder; UserError where there is none, or a damaged one."""
    try:
        config = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        problems = [json.loads(line) for line in (folder / "problems.jsonl").read_bytes().splitlines()]
        version = config["hadal_eval"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no evaluation ({error}).", "Give a folder that hadal eval wrote.") from None
    if version != VERSION:
        raise UserError(f"{folder} has evaluation format {version!r}.", f"This hadal reads format {VERSION}.")
    samples = _read_samples(folder / "samples.jsonl")
    return Evaluation(config, problems, sorted(samples, key=lambda s: (s["problem"], s["sample"])))


def _read_samples(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a kill may have left half a one, which is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
        try:
            sample = json.loads(line)
            found.setdefault((sample["problem"], sample["sample"]), sample)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged at line {number}.", "Delete that line and run it again.") from None
    return list(found.values())


def open_folder(folder: Path, config: dict[str, Any], problems: Sequence[dict[str, Any]]) -> Evaluation:
    """The evaluation in a folder, begun if there is none. UserError where the folder holds another, or other things."""
    if is_evaluation(folder):
        old = read_evaluation(folder)
        difference = _difference(old.config, config) or ("problems" if old.problems != list(problems) else "")
        if difference:
            raise UserError(
                f"{folder} holds another evaluation: it differs in {difference}.", "Choose another folder with --out."
            )
        return old
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder.", "Choose another with --out.")
    left = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    if any(name not in ("problems.jsonl", ".problems.jsonl.part", ".eval.json.part") for name in left):
        raise UserError(f"{folder} holds other files and no evaluation.", "Choose another folder with --out.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "problems.jsonl", "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in problems))
    write_text(folder / "eval.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")  # last: now it is one
    return read_evaluation(folder)


def _difference(old: Any, new: Any, where: str = "") -> str:
    """The first setting that differs, in words; empty where none does. A model's name may change, its weights not."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if key != "name" and (found := _difference(old.get(key), new.get(key), f"{where}{key} ")):
                return found
        return ""
    return "" if old == new else f"{where.strip()} ({old} there, {new} here)"


_NOT_THE_MODEL = ("run.json", "evaluation.json", "report.json")


def fingerprint(folder: Path) -> str:
    """A model folder's weights and configuration in a few letters. Of a large file some places are read, not all."""
    digest = blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".json", ".jinja", ".txt") or path.name in _NOT_THE_MODEL:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for begin in range(0, size, max(1 << 20, size // 64)):
                file.seek(begin)
                digest.update(file.read(1 << 20 if size < 1 << 28 else 1 << 16))
    return digest.hexdigest()


# ------------------------------------------------------------------------------------- asking and judging


@dataclass(frozen=True)
class Progress:
    """Samples done of all, how many of them now, and the tokens of these."""

    done: int
    total: int
    new: int
    tokens: int


class Asking:
    """The problems of some tasks, and a model that is asked them."""

    def __init__(self, tasks: Mapping[str, Task], settings: Settings) -> None:
        self.tasks, self.settings = tasks, settings
        self.problems: list[Problem] = []
        for task in tasks.values():
            chosen = choose_problems(task, settings)
            if not chosen:
                raise UserError(f"{task.name} has no held-out problem.", "Give another task or difficulty.")
            self.problems += chosen
        self.shots = {
            name: FewShot(task, settings.shots, settings.level(task), settings.thinking)
            for name, task in (tasks.items() if settings.shots else ())
        }
        self.sources = {name: task.source() for name, task in tasks.items()}

    def rows(self) -> list[dict[str, Any]]:
        """The problems as problems.jsonl has them."""
        return [
            {"task": p.meta["task"], "prompt": p.prompt, "answer": p.answer, "difficulty": p.meta["difficulty"]}
            for p in self.problems
        ]

    def config(self, model: dict[str, Any]) -> dict[str, Any]:
        """eval.json: what has to be the same for an evaluation to be carried on."""
        return {"hadal_eval": VERSION, "model": model, "tasks": self.sources, "settings": asdict(self.settings)}

    def run(
        self, rollout: Callable[[], Rollout], folder: Path, model: dict[str, Any], progress: Callable[[Progress], None]
    ) -> Evaluation:
        """Ask what is not on the disk yet; the rollout is made if anything is missing. Whatever ends it early, all that
        was answered is kept."""
        had = open_folder(folder, self.config(model), self.rows())
        stored: dict[int, set[int]] = {}
        for sample in had.samples:
            stored.setdefault(sample["problem"], set()).add(sample["sample"])
        K = self.settings.samples
        missing = {
            number: [i for i in range(K) if i not in stored.get(number, ())] for number in range(len(self.problems))
        }
        numbers = [number for number, samples in missing.items() if samples]
        total, done, new, tokens = len(self.problems) * K, len(had.samples), 0, 0
        if not numbers:
            return had
        source = rollout()
        progress(Progress(done, total, new, tokens))

        def store(record: dict[str, Any]) -> None:
            nonlocal done, new, tokens
            append_line(file, record)
            done, new, tokens = done + 1, new + 1, tokens + (record["tokens"] or 0)
            progress(Progress(done, total, new, tokens))

        with (folder / "samples.jsonl").open("ab", buffering=0) as file, ThreadPoolExecutor(cores()) as threads:
            judging: set[Future[dict[str, Any]]] = set()
            try:
                for at, index, answer in source.sample(self._query(n, missing[n]) for n in numbers):
                    judging.add(threads.submit(self.judge, numbers[at], index, answer))
                    for future in wait(judging, timeout=0 if len(judging) < 8 * cores() else None,
                                       return_when=FIRST_COMPLETED).done:  # fmt: skip
                        judging.remove(future)
                        store(future.result())
            finally:
                for future in judging:
                    if future.exception() is None:
                        store(future.result())
        for future in judging:
            future.result()  # raises what a scorer met
        return read_evaluation(folder)

    def _query(self, number: int, wanted: Sequence[int]) -> Query:
        problem = self.problems[number]
        name = problem.meta["task"]
        params = self.settings.params(Rng("eval", self.settings.seed, name, problem.prompt).bits() >> 1)
        if name in self.shots:
            return Query(self.shots[name].prompt(problem), params, wanted)
        return Query([{"role": "user", "content": problem.prompt}], params, wanted)

    def judge(self, number: int, index: int, sample: Sample) -> dict[str, Any]:
        """The line of samples.jsonl for a sample."""
        problem = self.problems[number]
        name = problem.meta["task"]
        task, text = self.tasks[name], sample.response
        if name in self.shots:
            text = self.shots[name].response(text)
        reward, vote = Reward(0.0, {}, sample.error), ""
        parsed = parse_response(text)
        if not sample.error:
            reward = task.score(problem, text)
            vote = task.canonical(problem, parsed.answer) if parsed.closed and parsed.answer else ""
        return {
            "task": name, "problem": number, "sample": index, "right": reward.right, "score": reward.total,
            "broke": reward.broke, "vote": vote, "tokens": sample.tokens, "truncated": sample.finish_reason == "length",
            "thinks": parsed.thinks, "format": bool(format_reward(text)), "note": reward.note, "text": text,
        }  # fmt: skip
