"""`hadal ablate`: a recipe's variants side by side on several seeds, and a report of paired differences.

Each variant of each seed is a run folder of its own, which carries on where it was stopped; the stages before the first
that differs are run once for a seed. All final models of a seed answer the same held-out problems, so that differences
are taken problem by problem.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hadal.cost.ledger import Ledger
from hadal.engine import LLM, SamplingParams
from hadal.errors import UserError
from hadal.evaluate.statistics import paired_difference
from hadal.evaluate.suite import ask, held_out
from hadal.files import JsonLines, write_json, write_text
from hadal.library.record import read_json, read_run
from hadal.recipe.config import Recipe, read_frozen
from hadal.recipe.runner import grow, read_file
from hadal.stages.common.view import View
from hadal.tasks import load_tasks

STREAM = 11  # of held-out problems; no stage sees these


@dataclass(frozen=True)
class Variant:
    """A name that can be a folder's, and the settings that it stands for."""

    name: str
    settings: tuple[str, ...]


def variants_of(vary: Sequence[str]) -> list[Variant]:
    """All combinations of `key=one,two,...`; the first values of all are what the others are compared with."""
    choices = []
    for text in vary:
        key, _, values = text.partition("=")
        options = [value.strip() for value in values.split(",")]
        if len(options) < 2 or not all(options) or len(set(options)) < len(options):
            raise UserError(f"--vary {text} does not name two different values.", f"Write --vary {key}=ONE,TWO.")
        choices.append([(key, value) for value in options])
    found = []
    for combination in itertools.product(*choices):
        name = "+".join(re.sub(r"[^A-Za-z0-9._-]+", "-", value) for _, value in combination)
        found.append(Variant(name, tuple(f"{key}={value}" for key, value in combination)))
    if len({variant.name for variant in found}) < len(found):
        raise UserError("Two variants would have the same folder.", "Values must differ in letters, digits, . _ or -.")
    return found


def ablate(
    recipe_path: Path, out: Path, vary: Sequence[str], seeds: int, problems: int, view: View,
    overrides: Sequence[str] = (), trust: bool = False,
) -> Path:  # fmt: skip
    """Run or carry on all variants; returns the report's path. UserError for whatever is wrong with the input."""
    variants = variants_of(vary)
    first = read_file(recipe_path, [*overrides, *variants[0].settings], trust).seed
    plans: dict[tuple[int, str], Recipe] = {}
    for seed, variant in itertools.product(range(first, first + seeds), variants):
        plans[seed, variant.name] = read_file(recipe_path, [*overrides, *variant.settings, f"seed={seed}"], trust)
    asked = {"vary": list(vary), "overrides": list(overrides), "problems": problems}
    _check_folder(out, asked)
    words = ["hadal", "ablate", str(recipe_path), *(["--trust"] if trust else [])]
    words += [word for name, given in (("--vary", vary), ("--set", overrides)) for one in given for word in (name, one)]
    words += ["--seeds", str(seeds), "--problems", str(problems), "--out", str(out)]
    answers: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    for (seed, name), recipe in plans.items():
        folder = out / f"seed{seed}" / name
        base = out / f"seed{seed}" / variants[0].name
        view.note(f"Seed {seed}, {name}:")
        grow(recipe, folder, view, command=shlex.join(words), like=base if folder != base else None)
        answers[name].append(_answers(folder, problems))
    report = compare(answers, asked, list(range(first, first + seeds)))
    write_json(out / "ablation.json", report)
    write_text(out / "ablation.md", to_markdown(report))
    view.close()
    view.note(f"See {out / 'ablation.md'}.")
    return out / "ablation.md"


def _check_folder(out: Path, asked: dict[str, Any]) -> None:
    """UserError for a folder of another ablation. Seeds may be added: what is there is kept."""
    path = out / "asked.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder.", "Choose another with --out.")
    if not path.exists():
        if out.exists() and any(other.name != ".asked.json.part" for other in out.iterdir()):
            raise UserError(f"{out} is not empty and holds no ablation.", "Choose another folder with --out.")
        write_json(path, asked)
    elif read_json(path) != asked:
        raise UserError(f"{out} holds another ablation.", "Give the same settings, or another folder with --out.")


def _answers(folder: Path, count: int) -> dict[str, Any]:
    """What the final model got right, task by task and problem by problem, and what the run came to."""
    path = folder.with_name(f"{folder.name}.json")
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    recipe = read_frozen(read_run(folder)["config"])
    torch.set_num_threads(recipe.threads)
    tasks = load_tasks(recipe.tasks)
    llm = LLM.load(folder, getattr(torch, recipe.dtype))
    limit = max(getattr(stage.config, "max_tokens", 1) for stage in recipe.stages)
    right: dict[str, list[int]] = {}
    length = 0.0
    for name, task in tasks.items():
        problems = held_out(task, task.default_difficulty, count, stream=STREAM)
        params = SamplingParams(max_tokens=limit, seed=recipe.seed)
        verdicts = [group[0] for group in ask(llm, tasks, problems, params)]
        right[name] = [int(v.right) for v in verdicts]
        length += sum(v.tokens for v in verdicts) / len(verdicts) / len(tasks)
    entries = Ledger(folder / "ledger.jsonl").read()
    alarms = sorted({line["alarm"] for line in JsonLines(folder / "metrics.jsonl").read() if "alarm" in line})
    found = {
        "right": right, "length": length, "seconds": sum(e.seconds for e in entries),
        "flops": sum(e.flops for e in entries), "tokens_sampled": sum(e.tokens_sampled for e in entries),
        "alarms": alarms,
    }  # fmt: skip
    write_json(path, found)
    return found


def compare(answers: dict[str, list[dict[str, Any]]], asked: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """Accuracy of each variant, and its differences from the first."""
    first = next(iter(answers))
    tasks = list(answers[first][0]["right"])
    means = ("length", "seconds", "flops", "tokens_sampled")
    variants = {}
    for name, runs in answers.items():
        by_seed = [sum(_share(run["right"][task]) for task in tasks) / len(tasks) for run in runs]
        entry: dict[str, Any] = {
            "accuracy": sum(by_seed) / len(by_seed), "by_seed": by_seed,
            "tasks": {t: sum(_share(run["right"][t]) for run in runs) / len(runs) for t in tasks},
            **{key: sum(run[key] for run in runs) / len(runs) for key in means},
            "alarms": sorted({alarm for run in runs for alarm in run["alarms"]}),
        }  # fmt: skip
        if name != first:
            apart = [
                [[a - b for a, b in zip(run["right"][t], base["right"][t], strict=True)] for t in tasks]
                for run, base in zip(runs, answers[first], strict=True)
            ]
            entry["difference"] = paired_difference(apart)
            entry["differences"] = {
                task: paired_difference([[seed[i]] for seed in apart]) for i, task in enumerate(tasks)
            }
        variants[name] = entry
    return {**asked, "seeds": seeds, "first": first, "variants": variants}


def _share(right: Sequence[int]) -> float:
    return sum(right) / len(right)


def to_markdown(report: dict[str, Any]) -> str:
    """The report to read: each variant beside the first."""
    seeds, first = report["seeds"], report["first"]
    lines = [
        f"# {', '.join(report['vary'])}",
        "",
        f"Seeds {', '.join(map(str, seeds))}; up to {report['problems']} held-out problems a task, the same for all; "
        f"one sampled answer to each. Differences are from `{first}`, problem by problem; 95% intervals by resampling "
        "seeds, and problems within them" + ("; of so few seeds they are a rough guide." if len(seeds) < 5 else "."),
        "",
        "| | accuracy | difference, points | by seed | tokens | FLOPs | seconds | alarms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = report["variants"][first]["by_seed"]
    for name, v in report["variants"].items():
        pairs = zip(v["by_seed"], base, strict=True) if name != first else ()
        apart = " / ".join(f"{100 * (a - b):+.1f}" for a, b in pairs)
        lines.append(
            f"| {name} | {v['accuracy']:.1%} | {_points(v.get('difference'))} | {apart} | {v['length']:.1f} | "
            f"{v['flops']:.2g} | {v['seconds']:.0f} | {', '.join(v['alarms']) or 'none'} |"
        )
    lines += ["", "| task | " + " | ".join(report["variants"]) + " |", "|---|" + "---|" * len(report["variants"])]
    for task in report["variants"][first]["tasks"]:
        cells = []
        for v in report["variants"].values():
            apart = _points(v.get("differences", {}).get(task))
            cells.append(f"{v['tasks'][task]:.1%}" + (f" ({apart})" if apart else ""))
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _points(difference: dict[str, float] | None) -> str:
    if difference is None:
        return ""
    return f"{100 * difference['difference']:+.1f} [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
