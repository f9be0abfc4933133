"""evaluation.json: where a run has examined two models in depth, both side by side, as its report tells them."""

from __future__ import annotations

from typing import Any

from hadal.files import write_json
from hadal.stages.common.run import Run
from hadal.stages.pretrain import has_thoughts, why_not_ready


def write_evaluation(run: Run) -> None:
    """Set the two models side by side; does nothing where more or fewer were examined, or not in all modes."""
    left = [run.result(stage.name) or {} for stage in run.recipe.stages]
    # Of runs that began when the quickstart had an evaluation of its own, the figures are one table deeper.
    results = [result for result in left if "of" in result or "figures" in result]
    figures = [result.get("figures", result) for result in results]
    if len(figures) != 2 or not all("modes" in row for side in figures for row in side["tasks"].values()):
        return
    base, rl = figures
    known = {task.name: task for task in run.named(run.recipe.tasks)}
    tasks = {
        name: {
            "about": task.about,
            "gold_limit": task.gold_limit if has_thoughts(task) else None,
            "difficulty": task.default_difficulty,
            "base": base["tasks"][name],
            "rl": rl["tasks"][name],
        }
        for name, task in known.items()
        if name in base["tasks"] and name in rl["tasks"]
    }
    readiness: dict[str, Any] = next((result["readiness"] for result in left if "readiness" in result), {})
    left_out = {name: why_not_ready(known[name], r) for name, r in readiness.items() if not r["ready"]}
    examples = [_example(name, *(result["responses"][name] for result in results)) for name in tasks]
    mean = {"base": base["mean"], "rl": rl["mean"]}
    data = {"tasks": tasks, "mean": mean, "examples": examples, "left_out": left_out}
    write_json(run.folder / "evaluation.json", data)


def _example(task: str, base: list[dict[str, Any]], rl: list[dict[str, Any]]) -> dict[str, Any]:
    """One problem that both were asked: where there is one, that RL gets right and the base did not."""
    pairs = list(zip(base, rl, strict=False))
    before, after = next(((b, a) for b, a in pairs if a["right"] and not b["right"]), pairs[0])

    def side(said: dict[str, Any]) -> dict[str, Any]:
        return {"text": said["text"], "right": said["right"]}

    question = {"task": task, "question": after["question"], "gold": after["gold"]}
    return {**question, "base": side(before), "rl": side(after)}
