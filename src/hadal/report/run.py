"""The report of a run: gathers what the run wrote, and writes `report.json`, `report.md` and `report.html`.

Every figure on the pages is in `report.json`, but for the curves. Start with `gather`; the words are in
`comparison.py` and `findings.py`, the pages in `page.py`, their sections in `sections/`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hadal.cost import prices
from hadal.errors import UserError
from hadal.evaluate.reflection import REFLECTION
from hadal.files import JsonLines, plain, write_json, write_text
from hadal.library.record import carry_on, count_parameters, origin, read_json, read_run
from hadal.report import examined, page
from hadal.report.comparison import headline, stage_findings
from hadal.report.findings import findings

REPORT_VERSION = 2
Json = dict[str, Any]


def write_report(run: Path) -> Json:
    """Writes the three forms of the report into the run folder and returns what `report.json` holds.

    Raises UserError where the run or its evaluation is missing or damaged, or the disk is full.
    """
    run = Path(run)
    report = gather(run)
    write_text(run / "report.md", page.as_markdown(report))
    write_text(run / "report.html", page.as_html(report, JsonLines(run / "metrics.jsonl").read()))
    write_json(run / "report.json", report)  # last: where it is, the other two are too
    return report


def gather(run: Path) -> Json:
    """Everything the report says, from the run's records, its logs and what its stages left."""
    record = read_run(run)
    config = record.get("config") or {}
    stages, evaluation = examined.stages_of(config), _read_evaluation(run, config)
    rows = examined.examined(run, stages, evaluation)
    final = config.get("publish") or (rows[-1]["stage"] if rows else "")
    deep = examined.in_depth(rows, final)
    tasks, mean = examined.before_and_after(*deep) if deep else ({}, {})
    metrics = JsonLines(run / "metrics.jsonl").read()
    mismatches = [line["mismatch"] for line in metrics if isinstance(line.get("mismatch"), int | float)]
    spent = _spent(run)
    return plain({
        "hadal_report": REPORT_VERSION,
        "name": record.get("name", Path(run).name),
        "arch": record.get("arch"),
        "origin": origin(record) or None,
        "model_type": _family(run) if origin(record) else None,
        "seed": record.get("seed"),
        "minutes": record.get("minutes"),
        "command": record.get("command") or f"hadal quickstart --seed {record.get('seed')}",
        "parameters": count_parameters(run) if (Path(run) / "model.safetensors").is_file() else None,
        "threads": config.get("threads"),
        "device": config.get("device"),
        "dtype": config.get("dtype"),
        **spent,
        "headline": headline(rows, final) if rows or not evaluation else "No task was learned this time",
        "rows": [{key: value for key, value in row.items() if key not in ("responses", "right")} for row in rows],
        "final": final,
        "tasks": tasks,
        "mean": mean,
        "findings": stage_findings(rows, final) + [finding.as_dict() for finding in findings(tasks, mean)],
        "answer_cost": _answer_cost(mean, spent["stages"]),
        "examples": examined.examples(rows, final),
        "left_out": evaluation.get("left_out") or {},
        "sampling": examined.sampled(run, stages),
        "reflection": examined.reflection_counts(run, stages),
        "reflection_words": list(REFLECTION),
        "alarms": [line for line in metrics if "alarm" in line],
        "largest_mismatch": max(mismatches, default=None),
    })  # fmt: skip


def _family(run: Path) -> str | None:
    """The family of the model that a run has published, by its config.json."""
    path = Path(run) / "config.json"
    return str(read_json(path).get("model_type")) if path.is_file() else None


def _read_evaluation(run: Path, config: Json) -> Json:
    """evaluation.json; empty where the run's own stages examine its models instead."""
    path = Path(run) / "evaluation.json"
    remedy = carry_on(run)
    if not path.is_file():
        if "stage" in config:
            return {}
        raise UserError(f"{run} has not been evaluated yet (no evaluation.json).", remedy)
    evaluation = read_json(path, remedy)
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("tasks"), dict):
        raise UserError(f"{path} is damaged (it has no tasks).", remedy)
    return evaluation


def _spent(run: Path) -> Json:
    """What the run took and what that cost, by stage and in all."""
    ledger, timing = (JsonLines(Path(run) / f"{name}.jsonl").read() for name in ("ledger", "timing"))
    stages = _stages(ledger, timing)
    last = ledger[-1] if ledger else {}
    return {
        "seconds": _total(stages, "seconds"),
        "peak_memory_bytes": max((s["peak_memory_bytes"] or 0 for s in stages), default=0) or None,
        "cost_usd": _total(stages, "cost_usd"),
        "tokens_trained": _total(stages, "tokens_trained"),
        "tokens_sampled": _total(stages, "tokens_sampled"),
        "flops": _total(stages, "flops"),
        "price_per_hour": last.get("price_per_hour"),
        "price_source": last.get("price_source"),
        "stages": stages,
    }


def _total(stages: list[Json], key: str) -> float | None:
    values = [stage[key] for stage in stages if stage[key] is not None]
    return sum(values) if values else None


def _stages(ledger: list[Json], timing: list[Json]) -> list[Json]:
    """The ledger by stage, in the order they began; a resumed stage has several records, which add up."""
    stages: dict[str, Json] = {}
    added = ("seconds", "tokens_trained", "tokens_sampled", "flops", "cost_usd")
    for record in ledger:
        name = record["stage"]
        stage = stages.setdefault(name, {"stage": name, **dict.fromkeys((*added, "peak_memory_bytes"))})
        for key in added:
            if record.get(key) is not None:
                stage[key] = (stage[key] or 0) + record[key]
        if record.get("peak_memory_bytes") is not None:
            stage["peak_memory_bytes"] = max(stage["peak_memory_bytes"] or 0, record["peak_memory_bytes"])
    for name, stage in stages.items():
        speeds = sorted(
            line["tokens_per_second"]
            for line in timing
            if line.get("stage") == name and line.get("tokens_per_second")
        )
        stage["tokens_per_second"] = speeds[len(speeds) // 2] if speeds else None
    return list(stages.values())


def _answer_cost(mean: Json, stages: list[Json]) -> Json | None:
    """What a right answer costs here, and what as many output tokens cost at two API prices.

    The price of a token is what the evaluation paid for one: it samples and does nothing else, in large
    batches. None where no evaluation is in the ledger.
    """
    spent = next(
        (
            s
            for s in stages
            if s["stage"].startswith("eval")
            and s["tokens_sampled"]
            and s["cost_usd"] is not None
            and s["seconds"]
        ),
        None,
    )
    if spent is None or not mean:
        return None
    price = spent["cost_usd"] / spent["tokens_sampled"]
    sides = {}
    for side in ("base", "rl"):
        length, accuracy = mean[side].get("length"), mean[side].get("accuracy")
        tokens = length / accuracy if length and accuracy else None
        sides[side] = {
            "length": length,
            "accuracy": accuracy,
            "tokens_per_right_answer": tokens,
            "usd_per_right_answer": None if tokens is None else tokens * price,
            "api_usd_per_right_answer": {
                api.model: None if tokens is None else tokens * api.output / 1e6 for api in prices.API_PRICES
            },
        }
    return {
        "usd_per_million_tokens": price * 1e6,
        "tokens_per_second": spent["tokens_sampled"] / spent["seconds"],
        "api": [asdict(api) for api in prices.API_PRICES],
        **sides,
    }
