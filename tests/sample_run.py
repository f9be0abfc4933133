"""A finished run folder with plausible numbers, to try the report on. Input data, not a model."""

import json
import math
import random
from pathlib import Path
from typing import Any

from hadal.files import JsonLines, write_json
from hadal.library.record import write_run
from hadal.report.findings import wilson

# name: about, D, difficulty, base free / thinking / direct, RL free, frontiers, share that thinks
TASKS: dict[str, tuple[str, int, int, tuple[float, float, float], float, tuple[float, float]]] = {
    "sums": ("add and subtract a row of numbers", 8, 7, (0.21, 0.84, 0.17), 0.975, (9.3, 13.1)),
    "letters": ("count a letter in a word", 9, 8, (0.52, 0.93, 0.50), 0.985, (11.2, 14.6)),
    "countdown": ("reach a number with three others", 4, 3, (0.41, 0.71, 0.39), 0.846, (3.6, 4.1)),
    "sort": ("put numbers in order", 7, 6, (0.62, 0.95, 0.60), 0.992, (9.0, 9.2)),
    "ball": ("follow a ball under cups", 9, 8, (0.34, 0.91, 0.31), 0.968, (10.4, 12.9)),
}
N = 500


def side(name: str, which: str) -> dict[str, Any]:
    _, limit, difficulty, (free, thinking, direct), after, frontiers = TASKS[name]
    rl = which == "rl"
    frontier = frontiers[rl]
    sampled = min(0.995, after + 0.004) if rl else thinking
    greedy = min(0.998, sampled + (0.006 if rl else 0.06))

    def by(thought: float, bare: float) -> dict[str, Any]:
        return {"thinking": wilson(round(thought * N) / N, N), "direct": wilson(round(bare * N) / N, N)}

    accuracy = after if rl else free
    ks = [1, 2, 4, 8, 16, 32, 64]
    return {
        **wilson(round(accuracy * N) / N, N),
        "accuracy_thinking": sampled,
        "accuracy_direct": direct,
        "length": (29.0 + 3 * difficulty) if rl else 4.5 + 0.5 * difficulty,
        "thinking_share": 0.985 if rl else 0.07,
        "frontier": frontier,
        "modes": {
            "sampled": by(sampled, direct),
            "r1": by((sampled + greedy) / 2, direct + 0.02),
            "greedy": by(greedy, direct + 0.04),
        },
        "pass_at_k": {
            "n_problems": 100,
            "values": {str(k): 1 - (1 - accuracy) ** (k ** (0.55 if rl else 0.7)) for k in ks},
        },
        "by_difficulty": [
            {"difficulty": d, **wilson(round(200 / (1 + math.exp(1.4 * (d - frontier)))) / 200, 200)}
            for d in range(max(2, limit - 4), limit + 8)
        ],
        "new_phrasing": wilson(round((accuracy - 0.03) * 200) / 200, 200),
    }


def evaluation() -> dict[str, Any]:
    tasks: dict[str, Any] = {
        name: {
            "about": about,
            "gold_limit": limit,
            "difficulty": difficulty,
            "base": side(name, "base"),
            "rl": side(name, "rl"),
        }
        for name, (about, limit, difficulty, *_) in TASKS.items()
    }
    keys = ("accuracy", "accuracy_thinking", "accuracy_direct", "length", "thinking_share")
    mean = {}
    for which in ("base", "rl"):
        mean[which] = {key: sum(task[which][key] for task in tasks.values()) / len(tasks) for key in keys}
        mean[which] |= {
            k: v for k, v in wilson(mean[which]["accuracy"], N * len(tasks)).items() if k != "accuracy"
        }
    return {
        "tasks": tasks,
        "mean": mean,
        "examples": [
            {
                "task": "letters",
                "question": "How many r in strawberry?",
                "gold": "3",
                "base": {"text": " 2", "right": False},
                "rl": {
                    "text": "<think> s 0 t 0 r 1 a 1 w 1 b 1 e 1 r 2 r 3 y 3</think> 3",
                    "right": True,
                },
            },
            {
                "task": "sums",
                "question": "What is 14 + 9 - 7 + 18 - 5 + 11 + 2?",
                "gold": "42",
                "base": {"text": " 39", "right": False},
                "rl": {
                    "text": "<think> 14 + 9 = 23 - 7 = 16 + 18 = 34 - 5 = 29 + 11 = 40 + 2 = 42</think> 42",
                    "right": True,
                },
            },
            {
                "task": "sort",
                "question": "Put 31, 8, 77, 25, 60 and 12 in order.",
                "gold": "8, 12, 25, 31, 60, 77",
                "base": {"text": " 8, 12, 25, 31, 60, 77", "right": True},
                "rl": {
                    "text": "<think> 8 left 31 77 25 60 12; 12 left 31 77 25 60; 25 left 31 77 60; "
                    "31 left 77 60; 60 left 77; 77</think> 8, 12, 25, 31, 60, 77",
                    "right": True,
                },
            },
        ],
        "left_out": {"mine": "after 3,000 steps thinking (31%) was no better than answering directly (33%)."},
    }


def make_sample_run(run: Path, pretrain_steps: int = 2400, grpo_steps: int = 120) -> dict[str, Any]:
    """Writes the folder; returns what evaluation.json holds."""
    rng = random.Random(0)
    run.mkdir(parents=True, exist_ok=True)
    config = {"tasks": list(TASKS), "threads": 2, "dtype": "bfloat16"}
    write_run(
        run,
        {"name": run.name, "arch": "dense", "seed": 0, "minutes": 10, "status": "complete", "config": config},
    )
    metrics, timing, ledger = (JsonLines(run / f"{name}.jsonl") for name in ("metrics", "timing", "ledger"))
    lines = []
    for step in range(1, pretrain_steps + 1):
        loss = 0.28 + 4.2 * math.exp(-step / 260) + 0.03 * rng.random()
        lines.append({"stage": "pretrain", "step": step, "loss": loss, "lr": 0.02})
    for step in range(1, grpo_steps + 1):
        think = 0.07 + 0.92 / (1 + math.exp(-(step - 35) / 8))
        record: dict[str, Any] = {
            "stage": "grpo",
            "step": step,
            "reward": 0.42 + 0.42 * (think - 0.07) + 0.06 * rng.random(),
            "length": 8 + 40 * think + rng.random() * 2,
            "thinking_share": min(1.0, think + 0.02 * rng.random()),
            "mismatch": 2e-6 * rng.random(),
            "difficulty": {
                name: spec[2] + step * (spec[5][1] - spec[2]) // grpo_steps for name, spec in TASKS.items()
            },
        }
        lines.append(record)
        if step % 10 == 0 or step == 1:
            held = {
                name: spec[3][0] + (spec[4] - spec[3][0]) * (think - 0.07) for name, spec in TASKS.items()
            }
            lines.append({"stage": "grpo", "step": step, "held_out": held})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert metrics.read()
    for step in range(1, 6):
        timing.append(
            {"stage": "pretrain", "step": step, "seconds": 0.08, "tokens": 4096, "tokens_per_second": 51e3}
        )
        timing.append(
            {"stage": "grpo", "step": step, "seconds": 1.1, "tokens": 18e3, "tokens_per_second": 16e3}
        )
    for stage, trained, sampled, flops, seconds, memory in (
        ("pretrain", 9_830_400, 0, 4.9e13, 193.0, 612e6),
        ("grpo", 1_100_000, 1_900_000, 1.4e13, 71.5, 934e6),
        ("grpo", 700_000, 1_300_000, 0.9e13, 50.25, 931e6),
        ("evaluate", 0, 2_400_000, 4e12, 61.0, 740e6),
    ):
        ledger.append(
            {
                "ledger": 1, "stage": stage, "flops": flops,
                "tokens_trained": trained, "tokens_sampled": sampled,
                "seconds": seconds, "peak_memory_bytes": memory, "cost_usd": seconds / 3600 * 0.009,
                "price_per_hour": 0.009, "price_source": "assumed: 30 W at $0.3/kWh, electricity "
                "alone (2026-11-23)",
            }
        )  # fmt: skip
    result = evaluation()
    write_json(run / "evaluation.json", result)
    return result


STAGES: dict[str, dict[str, Any]] = {
    "base": {"kind": "pretrain"},
    "r1-zero": {"kind": "grpo", "from": "base"},
    "answers": {"kind": "reject", "from": "r1-zero"},
    "dev1": {"kind": "sft", "from": "base"},
    "r1": {"kind": "grpo", "from": "dev1"},
}
ACCURACY = {"base": 0.2, "r1-zero": 0.7, "dev1": 0.5, "r1": 0.9}


def make_sample_chain(run: Path) -> None:
    """Writes the folder of a chain of stages that an examination follows each."""
    stages = dict(STAGES)
    for name, accuracy in ACCURACY.items():
        stages[f"evaluate-{name}"] = {"kind": "evaluate", "from": name}
        write_json(run / "stages" / f"evaluate-{name}" / "result.json", examination(accuracy))
    kept = {"answers": 100, "kept": 41, "wrong": 50, "unreadable": 4, "twice": 5, "gold": 12, "plain": 0}
    write_json(run / "stages" / "answers" / "result.json", {**kept, "checkpoint": ""})
    write_run(run, {"name": run.name, "arch": "dense", "seed": 0, "status": "complete", "command": "hadal train r1",
                    "config": {"tasks": ["sums", "talk"], "publish": "r1", "stage": stages}})  # fmt: skip
    metrics = JsonLines(run / "metrics.jsonl")
    for name in ("base", "dev1"):
        for step in range(5):
            metrics.append({"stage": name, "step": step, "loss": 4 / (step + 1)})
    for name in ("r1-zero", "r1"):
        for step in range(1, 6):
            values = {"reward": step / 5, "length": 9.0 + step, "entropy": 1 / step, "thinking_share": 0.9}
            metrics.append({"stage": name, "step": step, **values, "difficulty": {"sums": 2.0}})
        metrics.append({"stage": name, "step": 5, "held_out": {"sums": 0.5, "talk": 1.0}})
        group = {"samples": [{"text": "Wait, but no."}, {"text": "So it is."}]}
        JsonLines(run / "rollouts" / f"{name}-000005.jsonl").append(group)
    metrics.append({"stage": "r1", "step": 5, "alarm": "entropy", "text": "Entropy fell to 0.2 nats."})


def examination(accuracy: float, problems: int = 40, samples: int = 3) -> dict[str, Any]:
    """What a stage that examines leaves, of a model that is right in `accuracy` of its answers."""
    tasks, right, responses = {}, {}, {}
    for task in ("sums", "talk"):
        counts = [samples if i < accuracy * problems else 0 for i in range(problems)]
        share = wilson(sum(counts) / samples / problems, problems)
        shape = {"length": 10 + accuracy, "thinking_share": accuracy, "format": 0.9, "language": None}
        told = {"about": f"the task {task}", "difficulty": 3, "reasoning": task == "sums"}
        tasks[task] = {**told, **share, **shape, "cons": share, "samples": samples, "reflection": 0.3}
        right[task] = counts
        responses[task] = [
            {"question": f"{task} {i}?", "gold": "3", "text": f"<think>{i}</think> {i}", "right": counts[i] > 0}
            for i in range(problems)
        ]
    return {"tasks": tasks, "mean": tasks["sums"], "right": right, "responses": responses, "checkpoint": ""}
