"""Evaluation of base and RL model on the same held-out problems, and the file that the report is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hadal import stages
from hadal.evaluate.suite import EvaluationConfig, evaluate
from hadal.files import write_json
from hadal.stages import Before, Stage
from hadal.stages.common.run import Run
from hadal.stages.pretrain import has_thoughts, why_not_ready

LEAVES = "figures"


@dataclass(frozen=True)
class Config(stages.Config, EvaluationConfig):
    """The quickstart's evaluation, before and after RL."""


def check(stage: Stage, before: Before) -> None:
    """It has a model."""
    before.need_model(stage.source, f"{stage.where}.from")


def run_stage(run: Run, stage: Stage) -> None:
    """Evaluate the model that another stage left."""
    config: Config = stage.config
    parts = 9 + bool(config.pass_problems)  # as the suite announces them
    run.view.stage(stage.name, parts, "held-out problems: by itself, made to think, made to answer, against difficulty")
    llm = run.engine(run.stage_model(stage.source).to(run.dtype).eval())
    done = 0

    def progress(what: str) -> None:
        nonlocal done
        done += 1
        run.view.step(stage.name, done, {"doing": what, "cost_usd": run.cost_so_far()})

    figures, natural = evaluate(llm, run.tasks, config, run.recipe.seed, progress)
    responses = {
        name: [
            {"question": v.problem.prompt, "gold": v.problem.answer, "text": v.text, "right": v.right} for v in verdicts
        ]
        for name, verdicts in natural.items()
    }
    run.finish(stage.name, {"figures": figures, "responses": responses})


def write_evaluation(run: Run) -> None:
    """evaluation.json: both models side by side."""
    base, rl = run.result("evaluate-base"), run.result("evaluate-rl")
    readiness = (run.result("pretrain") or {})["readiness"]
    assert base is not None and rl is not None
    tasks: dict[str, Any] = {}
    for name, task in run.tasks.items():
        tasks[name] = {
            "about": task.about,
            "gold_limit": task.gold_limit if has_thoughts(task) else None,
            "difficulty": task.default_difficulty,
            "base": base["figures"]["tasks"][name],
            "rl": rl["figures"]["tasks"][name],
        }
    left_out = {name: why_not_ready(run.tasks[name], r) for name, r in readiness.items() if not r["ready"]}
    mean = {"base": base["figures"]["mean"], "rl": rl["figures"]["mean"]}
    examples = [example for name in run.tasks for example in _examples(name, base, rl)]
    write_json(
        run.folder / "evaluation.json",
        {"tasks": tasks, "mean": mean, "examples": examples, "left_out": left_out},
    )


def _examples(name: str, base: dict[str, Any], rl: dict[str, Any]) -> list[dict[str, Any]]:
    """One problem that both were asked: where there is one, that RL gets right and the base did not."""
    pairs = list(zip(base["responses"][name], rl["responses"][name], strict=True))
    before, after = next(((b, a) for b, a in pairs if a["right"] and not b["right"]), pairs[0])
    side = lambda v: {"text": v["text"], "right": v["right"]}  # noqa: E731
    return [
        {
            "task": name,
            "question": after["question"],
            "gold": after["gold"],
            "base": side(before),
            "rl": side(after),
        }
    ]
