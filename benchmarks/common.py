"""What the benchmarks share: arguments, shapes, interleaved timing, and how results are shown.

Sides take turns (A B A B ...), so that a machine that slows down slows all of them; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import hadal
from hadal.checkpoints.save import save_model
from hadal.cost.flops import parameters
from hadal.machine.speed import fastest_dtype, matmul_rates
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig

VOCABULARY = 512
SHAPES: dict[str, dict[str, ModelConfig]] = {
    "dense": {
        "1M": DenseConfig(VOCABULARY, 128, 5, 4, 2, head_dim=32, intermediate_size=384),
        "5M": DenseConfig(VOCABULARY, 256, 6, 8, 4, head_dim=32, intermediate_size=768),
    },
    "deepseek": {  # by the parameters that a token visits
        "1M": DeepseekConfig(VOCABULARY, 128, 5, 4, 384, 128),
        "5M": DeepseekConfig(VOCABULARY, 256, 6, 8, 768, 256, kv_lora_rank=128),
    },
}


@dataclass
class Result:
    """One side at one size. ratio: hadal's rate over this side's; share: of the machine's matrix rate in its dtype."""

    size: str
    side: str
    dtype: str
    tokens_per_second: float
    share: float
    ratio: float
    seconds: list[float]


def arguments(
    about: str | None, models: Sequence[str] = (), more: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """The options that every benchmark takes, and `more`; which of its `models` where it has its own, else --arch."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller batches, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: its own choice)")
    if more:
        more(parser)
    elif models:
        parser.add_argument("--models", nargs="+", choices=models, help="these alone")
    else:
        parser.add_argument("--arch", choices=sorted(SHAPES), default="dense")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def peer_dtypes(dtype: str, rates: dict[str, float]) -> list[str]:
    """What transformers is run in: hadal's dtype, and bf16 besides where the machine is not hopeless at it."""
    if dtype == "bfloat16":
        return [dtype]
    if rates["bfloat16"] < rates["float32"] / 2:
        print("bf16 is left out for transformers: the machine multiplies in it at under half its float32 rate.")
        return [dtype]
    return [dtype, "bfloat16"]


def measured_rates(args: argparse.Namespace, device: str = "cpu") -> tuple[dict[str, float], str]:
    """The device's matrix rates in FLOP/s, and the dtype to compute in."""
    rates = matmul_rates(1.0, device)
    dtype = fastest_dtype(rates) if args.dtype == "auto" else args.dtype
    shown = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    where = f"{torch.get_num_threads()} thread(s)" if device == "cpu" else torch.cuda.get_device_name()
    print(f"{where}, matrix rate in GFLOP/s: {shown}; computing in {dtype}.")
    return rates, dtype


def transformers_or_none() -> Any:
    """The transformers module, quiet; None with a line where it is not installed."""
    try:
        import transformers
    except ModuleNotFoundError:
        print("transformers is not installed: only hadal is measured. pip install 'hadal[bench]' adds it.")
        return None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def interleave(
    sides: dict[str, Callable[[], object]],
    seconds: float,
    least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each call of each side, in turns, until `seconds` are over; one turn before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    end = None if warm_up else time.perf_counter() + seconds
    while end is None or min(map(len, times.values())) < least or time.perf_counter() < end:
        for name, call in sides.items():
            began = clock()
            call()
            if end is not None:
                times[name].append(clock() - began)
        end = end or time.perf_counter() + seconds
    return times


def save_random(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> int:
    """Write a checkpoint of random weights; returns their bytes."""
    model = build(config)
    model.initialise(0)
    state = model.to(dtype).state_dict()
    save_model(folder, config, state)
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def shapes(args: argparse.Namespace) -> dict[str, Any]:
    """What --arch chose, for the written results."""
    return {"arch": args.arch, "parameters": counted(SHAPES[args.arch])}


def counted(configs: dict[str, ModelConfig]) -> dict[str, Any]:
    """Parameters of each model, for the written results."""
    return {size: asdict(parameters(config)) for size, config in configs.items()}


def results(
    size: str, times: dict[str, list[float]], dtypes: dict[str, str], tokens: int, flops: float, rates: dict[str, float]
) -> list[Result]:
    """Rates of all sides at a size, told as they come; `flops` a token. The ratios refer to hadal's first side."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"  {size}, {name}: {tokens / median:,.0f} tokens/s", file=sys.stderr, flush=True)
    return [
        Result(
            size, name, dtypes[name], tokens / median, tokens * flops / median / rates[dtypes[name]],
            median / first, times[name],
        )
        for name, median in medians.items()
    ]  # fmt: skip


def show(
    args: argparse.Namespace, name: str, found: list[Result], rates: dict[str, float], about: dict[str, Any]
) -> None:
    """Print the table; write it where --json says."""
    wide, wider = (max(len(getattr(r, key)) for r in found) + 2 for key in ("size", "side"))
    heads = f"{'dtype':10}{'tokens/s':>10}{'of matrix rate':>16}{'hadal is':>11}{'n':>4}"
    print(f"\n{'size':{wide}}{'side':{wider}}{heads}")
    for r in found:
        ratio = f"{r.ratio:.2f}x"
        print(
            f"{r.size:{wide}}{r.side:{wider}}{r.dtype:10}{r.tokens_per_second:10.0f}{r.share:16.1%}{ratio:>11}{len(r.seconds):4}"
        )
    if args.json:
        data = {
            "benchmark": name,
            "quick": args.quick,
            "date": time.strftime("%Y-%m-%d"),
            "hadal": hadal.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "matrix_flops_per_second": rates,
            **about,
            "results": [asdict(r) for r in found],
        }
        args.json.write_text(json.dumps(data, indent=2) + "\n")
