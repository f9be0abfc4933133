"""What would a model score that only remembers? Nearest neighbour over the training set, on held-out problems.

Each held-out question gets the answer of the most similar training question of its task (cosine of token and
token-pair counts). If that came near a trained model's accuracy, held-out problems would not be new.

    python benchmarks/memorise.py --run runs/dense-seed0       beside the direct answers of a run's base
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import prepared  # noqa: F401

from hadal.evaluate.statistics import proportion
from hadal.evaluate.suite import held_out
from hadal.recipe.config import load_recipe_data
from hadal.tasks import Problem, Task, load_tasks
from hadal.tasks.words import build_tokenizer
from hadal.text.tokenizer import Tokenizer

PAIR_BUCKETS = 4096


def features(tokenizer: Tokenizer, problems: list[Problem]) -> np.ndarray:
    """Unit rows of token counts and hashed counts of neighbouring pairs, [problems, features]."""
    out = np.zeros((len(problems), tokenizer.size + PAIR_BUCKETS), dtype=np.float32)
    for row, ids in zip(out, tokenizer.encode_batch([p.prompt for p in problems]), strict=True):
        np.add.at(row, ids, 1)
        pairs = [tokenizer.size + (a * 7919 + b) % PAIR_BUCKETS for a, b in zip(ids, ids[1:], strict=False)]
        np.add.at(row, pairs, 1)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def remembered(task: Task, tokenizer: Tokenizer, train: int, test: int) -> dict[str, float]:
    """Accuracy of the nearest neighbour's answer at the default difficulty."""
    level = task.default_difficulty
    known = [task.generate((5 << 32) + i, "train", level) for i in range(train)]
    asked = held_out(task, level, test)
    queries = features(tokenizer, asked)
    best = np.full(len(asked), -1.0, dtype=np.float32)
    answer = [""] * len(asked)
    for begin in range(0, train, 2000):
        part = known[begin : begin + 2000]
        similarity = queries @ features(tokenizer, part).T
        for i, j in enumerate(similarity.argmax(axis=1)):
            if similarity[i, j] > best[i]:
                best[i], answer[i] = similarity[i, j], part[j].answer
    right = sum(task.score(p, a).total > 0.5 for p, a in zip(asked, answer, strict=True))
    return proportion(right, len(asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run: its base's direct answers are shown beside")
    parser.add_argument("--train", type=int, default=20_000, help="training problems a task")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems a task")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    train, test = (2000, 100) if options.quick else (options.train, options.problems)
    tasks = load_tasks(load_recipe_data("quickstart")["tasks"])
    tokenizer = build_tokenizer(list(tasks.values()))
    report: dict[str, Any] = json.loads((options.run / "report.json").read_text()) if options.run else {}
    result = {}
    print(f"{'task':12}{'remembers':>22}{'base, direct':>15}")
    for name, task in tasks.items():
        result[name] = remembered(task, tokenizer, train, test)
        base = report.get("tasks", {}).get(name, {}).get("base", {}).get("accuracy_direct")
        share = result[name]
        shown = "-" if base is None else f"{base:.3f}"
        print(f"{name:12}{share['accuracy']:>8.3f} [{share['low']:.2f},{share['high']:.2f}]{shown:>15}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
