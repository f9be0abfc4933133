"""How fast this machine multiplies a few rows with packed matrices, in every form of weights that hadal has.

Against torch's own linear layer (the forms "plain") and against what the machine reads and multiplies, in the shapes of
Qwen2.5-0.5B, over many distinct matrices, so that caches help nobody. Forms take turns; medians are compared.

    python benchmarks/linear.py --threads 2 --json linear.json

GB/s are of the bytes as they are packed; "of the rate" is the larger of the shares of the memory's and of the float32
matrix rate; "steady" is how much longer it takes to give each row the bits that it has in any batch (the default).
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import prepared  # noqa: F401
import torch
from common import interleave

import hadal
from hadal.ops.linear import FORMS, Matrix, kind_of, usable
from hadal.ops.quant import KINDS as QUANTISED

SHAPES = {"896x896": 96, "4864x896": 32, "896x4864": 32, "151936x896": 1}
"""[O, K], and how many distinct matrices of that shape."""
ROWS = (1, 8, 64)


@dataclass
class Result:
    """One form at one shape and count of rows. share: of the machine's rate; over_plain: speed over F.linear's."""

    shape: str
    rows: int
    form: str
    milliseconds: float
    gigabytes_per_second: float
    gigaflops_per_second: float
    share: float
    over_plain_float32: float
    over_plain_bfloat16: float
    steady: float
    n: int


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two small shapes, a third of the matrices")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: its own choice)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="these alone")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each shape and count of rows")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def measured_forms() -> list[str]:
    """All that work, without plain forms that multiply the weights out each time."""
    kinds = dict.fromkeys(map(kind_of, FORMS))
    forms = [form for kind in kinds if kind != "float64" for form in usable(kind)]
    return [f for f in forms if not (f.endswith(":plain") and kind_of(f) in (*QUANTISED, "float16"))]


def clock() -> Callable[[], float]:
    """One thread is timed by what it had of the processor, so that other jobs count less."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def machine_rates() -> tuple[float, float]:
    """Bytes that the machine reads in a second, and its FLOP/s in float32: the best of ten sums and products."""
    numbers, square = torch.ones(128 << 20), torch.ones(1024, 1024)
    return numbers.nbytes / least(numbers.sum), 2 * 1024**3 / least(lambda: square @ square)


def least(call: Callable[[], object]) -> float:
    times, now = [], clock()
    for _ in range(10):
        began = now()
        call()
        times.append(now() - began)
    return min(times)


def run_all(matrices: list[Matrix], x_NK: torch.Tensor) -> None:
    for matrix in matrices:
        matrix(x_NK)


def run_steadily(matrices: list[Matrix], x_NK: torch.Tensor) -> None:
    for matrix in matrices:
        matrix.rows(x_NK)


def at_shape(shape: str, count: int, args: argparse.Namespace, read: float, multiply: float) -> list[Result]:
    O, K = map(int, shape.split("x"))
    packed: dict[str, list[Matrix]] = {form: [] for form in measured_forms()}
    for seed in range(count):
        weight = torch.randn(O, K, generator=torch.Generator().manual_seed(seed)) * K**-0.5
        for form, matrices in packed.items():
            matrices.append(FORMS[form](weight))
    found = []
    for rows in ROWS:
        x = torch.randn(rows, K)
        sides: dict[str, Callable[[], object]] = {}
        for form, matrices in packed.items():
            inputs = x.to(FORMS[form].dtype)
            sides[form] = functools.partial(run_all, matrices, inputs)
            sides[form + " steady"] = functools.partial(run_steadily, matrices, inputs)
        times = interleave(sides, args.seconds / 4 if args.quick else args.seconds, clock=clock())
        seconds = {side: statistics.median(values) / count for side, values in times.items()}
        for form, matrices in packed.items():
            taken, nbytes, flops = seconds[form], matrices[0].nbytes, 2 * rows * O * K
            found.append(
                Result(
                    shape, rows, form, taken * 1e3, nbytes / taken / 1e9, flops / taken / 1e9,
                    max(nbytes / taken / read, flops / taken / multiply),
                    seconds["float32:plain"] / taken, seconds["bfloat16:plain"] / taken,
                    seconds[form + " steady"] / taken, len(times[form]),
                )
            )  # fmt: skip
            show(found[-1])
    return found


def show(r: Result) -> None:
    rates = f"{r.milliseconds:10.3f}{r.gigabytes_per_second:8.1f}{r.gigaflops_per_second:9.1f}{r.share:12.0%}"
    ratios = f"{r.over_plain_float32:13.2f}x{r.over_plain_bfloat16:11.2f}x{r.steady:9.2f}x{r.n:5}"
    print(f"{r.shape:12}{r.rows:4} {r.form:17}{rates}{ratios}", flush=True)


def main() -> None:
    args = arguments()
    with torch.no_grad():
        read, multiply = machine_rates()
        rates = f"reads {read / 1e9:.1f} GB/s, multiplies {multiply / 1e9:.0f} GFLOP/s in float32"
        print(f"{torch.get_num_threads()} thread(s); {rates}")
        heads = f"{'ms':>10}{'GB/s':>8}{'GFLOP/s':>9}{'of the rate':>12}"
        ratios = f"{'over float32':>14}{'over bf16':>12}{'steady':>10}{'n':>5}"
        print(f"{'shape':12}{'rows':4} {'form':17}{heads}{ratios}")
        chosen = args.shapes or (list(SHAPES)[:2] if args.quick else list(SHAPES))
        found: list[Result] = []
        for shape in chosen:
            count = SHAPES[shape] // 3 if args.quick and SHAPES[shape] > 3 else SHAPES[shape]
            found += at_shape(shape, count, args, read, multiply)
    if args.json:
        data = {
            "benchmark": "linear",
            "quick": args.quick,
            "date": time.strftime("%Y-%m-%d"),
            "hadal": hadal.__version__,
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "read_bytes_per_second": read,
            "matrix_flops_per_second": multiply,
            "results": [asdict(r) for r in found],
        }
        args.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
