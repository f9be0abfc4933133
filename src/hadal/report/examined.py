"""The models that a run examined, a row for each in the order of its stages, as the run's files have them.

A row has the `stage` that left the model, its `kind` and `method`, the stage it came `from`, the `temperature` of its
samples, the figures of each of its `tasks` and of their `mean`; and, kept out of report.json, its `responses` and how
many samples of each problem were `right`, both by task.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hadal.evaluate.reflection import reflections
from hadal.files import JsonLines
from hadal.library.record import read_json

Json = dict[str, Any]
QUICKSTART = {
    "pretrain": {"kind": "pretrain"}, "evaluate-base": {"kind": "evaluate", "from": "pretrain"},
    "grpo": {"kind": "grpo", "from": "pretrain"}, "evaluate-rl": {"kind": "evaluate", "from": "grpo"},
}  # fmt: skip
"""The stages of a run whose config names none."""


def stages_of(config: Json) -> Json:
    """The tables of a run's stages, in order."""
    return config.get("stage") or QUICKSTART


def examined(run: Path, stages: Json, evaluation: Json) -> list[Json]:
    """The rows, from what the stages that examine left, or else from evaluation.json."""
    limits = {name: {"gold_limit": task.get("gold_limit")} for name, task in (evaluation.get("tasks") or {}).items()}
    return list(_from_stages(run, stages, limits)) or _from_evaluation(evaluation)


def _from_stages(run: Path, stages: Json, limits: Json) -> Iterator[Json]:
    for name, result in _results(run, stages, "evaluate"):
        of = stages[name]["from"]
        if "tasks" in result:  # an older quickstart has its figures in evaluation.json alone
            made = stages.get(of, {"kind": "checkpoint"})
            yield {
                "stage": of, "kind": made["kind"], "method": made.get("method"), "from": made.get("from"),
                "temperature": float(stages[name].get("temperature", 1)),
                "tasks": {task: limits.get(task, {}) | figures for task, figures in result["tasks"].items()},
                "mean": result["mean"], "responses": result["responses"],
                "right": result.get("right", {}),  # older runs lack it
            }  # fmt: skip


def _from_evaluation(evaluation: Json) -> list[Json]:
    """The base and what RL made of it, as evaluation.json has them side by side."""
    tasks = evaluation.get("tasks")
    if not tasks:
        return []
    rows = []
    for side, kind, source in (("base", "pretrain", None), ("rl", "grpo", "base")):
        figures = {
            name: {key: task.get(key) for key in ("about", "difficulty", "gold_limit")} | task[side]
            for name, task in tasks.items()
        }
        counted = {"n": sum(row["n"] for row in figures.values()), "frontier": None}  # difficulties have no mean
        responses: dict[str, list[Json]] = {}
        for shown in evaluation.get("examples") or []:
            answer = {"question": shown["question"], "gold": shown["gold"], **shown[side]}
            responses.setdefault(shown["task"], []).append(answer)
        rows.append({
            "stage": side, "kind": kind, "method": None, "from": source, "temperature": 1.0, "tasks": figures,
            "mean": counted | evaluation["mean"][side], "responses": responses, "right": {},
        })  # fmt: skip
    return rows


def in_depth(rows: list[Json], final: str) -> tuple[Json, Json] | None:
    """The first and the final model, where both were examined in depth: made to think and made to answer as well."""
    last = next((row for row in rows if row["stage"] == final), None)
    if last is None or last is rows[0]:
        return None
    ends = rows[0], last
    return ends if all(any("accuracy_thinking" in task for task in row["tasks"].values()) for row in ends) else None


def before_and_after(base: Json, rl: Json) -> tuple[Json, Json]:
    """Two rows side by side, as `base` and `rl`: by task, and in the mean."""
    tasks = {
        name: {key: task.get(key) for key in ("about", "difficulty", "gold_limit")}
        | {"base": base["tasks"][name], "rl": task}
        for name, task in rl["tasks"].items() if name in base["tasks"]
    }  # fmt: skip
    return tasks, {"base": base["mean"], "rl": rl["mean"]}


def examples(rows: list[Json], final: str) -> list[Json]:
    """For each task one problem with every model's first answer: where there is one, that the last gets right and the
    first did not."""
    if not rows:
        return []
    last = next((row for row in rows if row["stage"] == final), rows[-1])
    out = []
    for name in rows[0]["responses"]:
        pairs = list(zip(rows[0]["responses"][name], last["responses"].get(name, []), strict=False))
        gained = [i for i, (a, b) in enumerate(pairs) if b.get("right") and not a.get("right")]
        for place in (gained or range(len(pairs)))[:1]:
            asked = rows[0]["responses"][name][place]
            said = [
                {"stage": row["stage"], "kind": row["kind"], "text": row["responses"][name][place]["text"],
                 "right": row["responses"][name][place].get("right")}
                for row in rows if place < len(row["responses"].get(name, ()))
            ]  # fmt: skip
            out.append({"task": name, "question": asked["question"], "gold": asked["gold"], "said": said})
    return out


def reflection_counts(run: Path, stages: Json) -> dict[str, list[tuple[int, float]]]:
    """By RL stage, (update, words of reflection in a response) of the rollouts that were written."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, stage in stages.items():
        if stage["kind"] != "grpo":
            continue
        for path in sorted((run / "rollouts").glob(f"{name}-*.jsonl")):
            step = path.stem.removeprefix(f"{name}-")
            if step.isdigit():
                texts = [sample["text"] for group in JsonLines(path).read() for sample in group["samples"]]
                found.setdefault(name, []).append((int(step), sum(map(reflections, texts)) / max(1, len(texts))))
    return found


def sampled(run: Path, stages: Json) -> list[Json]:
    """What rejection sampling kept."""
    return [
        {"stage": name, **{key: value for key, value in result.items() if key != "checkpoint"}}
        for name, result in _results(run, stages, "reject")
    ]


def _results(run: Path, stages: Json, kind: str) -> Iterator[tuple[str, Json]]:
    """What each finished stage of a kind left."""
    for name, stage in stages.items():
        path = run / "stages" / name / "result.json"
        if stage["kind"] == kind and path.is_file():
            yield name, read_json(path)
