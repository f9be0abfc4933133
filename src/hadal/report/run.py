"""The report of a run: gathers what the run wrote, and writes `report.json`, `report.md` and `report.html`.

Every figure on the pages is in `report.json`, but for the curves. Start with `gather`; the words are in
`findings.py`, the pages in `html.py` and `markdown.py`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hadal.cost import prices
from hadal.errors import UserError
from hadal.files import JsonLines, plain, write_json, write_text
from hadal.library.run_folder import carry_on, count_parameters, origin, read_json, read_run
from hadal.report import chain_html, chain_markdown, html, markdown
from hadal.report.chain import gather_chain
from hadal.report.findings import findings, headline

REPORT_VERSION = 1


def write_report(run: Path) -> dict[str, Any]:
    """Writes the three forms of the report into the run folder and returns what `report.json` holds.

    Raises UserError where the run or its evaluation is missing or damaged, or the disk is full.
    """
    run = Path(run)
    record = read_run(run)
    metrics = JsonLines(run / "metrics.jsonl").read()
    if "stage" in (record.get("config") or {}):
        report = plain(common(run, record) | gather_chain(run, record["config"]))
        pages = chain_markdown.page(report), chain_html.page(report, metrics)
    else:
        report = gather(run)
        pages = markdown.page(report), html.page(report, metrics)
    write_text(run / "report.md", pages[0])
    write_text(run / "report.html", pages[1])
    write_json(run / "report.json", report)  # last: where it is, the other two are too
    return report


def gather(run: Path) -> dict[str, Any]:
    """Everything the report says, from `run.json`, `evaluation.json`, `timing.jsonl` and `ledger.jsonl`."""
    record = read_run(run)
    evaluation = _read_evaluation(run)
    tasks, mean = evaluation["tasks"], evaluation.get("mean") or {}
    for side in mean.values():
        side.setdefault("n", sum(task["rl"]["n"] for task in tasks.values()))
        side.setdefault("frontier", None)  # difficulties of different tasks have no mean
    report = common(run, record) | {
        "headline": headline(tasks, mean),
        "tasks": tasks,
        "mean": mean,
        "findings": [finding.as_dict() for finding in findings(tasks, mean)],
        "examples": evaluation.get("examples") or [],
        "left_out": evaluation.get("left_out") or {},
    }
    report["answer_cost"] = _answer_cost(mean, report["stages"])
    return plain(report)


def common(run: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What every report says: the run, what it took and what that cost."""
    ledger = JsonLines(run / "ledger.jsonl").read()
    timing = JsonLines(run / "timing.jsonl").read()
    metrics = JsonLines(run / "metrics.jsonl").read()
    stages = _stages(ledger, timing)
    mismatches = [line["mismatch"] for line in metrics if isinstance(line.get("mismatch"), int | float)]
    config = record.get("config") or {}
    return {
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
        "seconds": _total(stages, "seconds"),
        "peak_memory_bytes": max((s["peak_memory_bytes"] or 0 for s in stages), default=0) or None,
        "cost_usd": _total(stages, "cost_usd"),
        "tokens_trained": _total(stages, "tokens_trained"),
        "tokens_sampled": _total(stages, "tokens_sampled"),
        "flops": _total(stages, "flops"),
        "price_per_hour": ledger[-1].get("price_per_hour") if ledger else None,
        "price_source": ledger[-1].get("price_source") if ledger else None,
        "stages": stages,
        "answer_cost": None,
        "largest_mismatch": max(mismatches, default=None),
        "examples": [],
        "left_out": {},
    }


def _family(run: Path) -> str | None:
    """The family of the model that a run has published, by its config.json."""
    path = Path(run) / "config.json"
    return str(read_json(path).get("model_type")) if path.is_file() else None


def _read_evaluation(run: Path) -> dict[str, Any]:
    path = Path(run) / "evaluation.json"
    remedy = carry_on(run)
    if not path.is_file():
        raise UserError(f"{run} has not been evaluated yet (no evaluation.json).", remedy)
    evaluation = read_json(path, remedy)
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("tasks"), dict):
        raise UserError(f"{path} is damaged (it has no tasks).", remedy)
    return evaluation


def _total(stages: list[dict[str, Any]], key: str) -> float | None:
    values = [stage[key] for stage in stages if stage[key] is not None]
    return sum(values) if values else None


def _stages(ledger: list[dict[str, Any]], timing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ledger by stage, in the order they began; a resumed stage has several records, which add up."""
    stages: dict[str, dict[str, Any]] = {}
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


def _answer_cost(mean: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any] | None:
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
