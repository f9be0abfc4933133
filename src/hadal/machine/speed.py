"""How fast this machine multiplies matrices, and which dtype that speaks for.

A CPU with bf16 units is four to five times faster in bf16 than in float32, and one without
them several times slower, so the choice has to be measured. It is measured once: a run writes
it into its resolved config and keeps it.
"""

from __future__ import annotations

import statistics
import time

import torch

SHAPE = (1024, 512, 512)  # rows, inner, columns: a training step's linear at a small model's width
GPU_SHAPE = (8192, 8192, 8192)  # what fills one
# A rate close to float32's is no reason to round to 8 bits of mantissa.
WORTH_ROUNDING = 1.2


def matmul_rates(seconds: float, device: str = "cpu") -> dict[str, float]:
    """Median FLOP/s of a linear layer's product in float32 and in bfloat16.

    `seconds` is the time of the whole measurement, give or take one product; each dtype gets
    half of it, of which the first product is warm-up.
    """
    rows, inner, columns = SHAPE if device == "cpu" else GPU_SHAPE
    rates = {}
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        x = torch.ones(rows, inner, dtype=dtype, device=device)
        weight = torch.ones(columns, inner, dtype=dtype, device=device)
        end = time.perf_counter() + seconds / 2
        with torch.no_grad():
            _product(x, weight)
            times: list[float] = []
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                _product(x, weight)
                times.append(time.perf_counter() - start)
        rates[name] = 2 * rows * inner * columns / statistics.median(times)
    return rates


def _product(x: torch.Tensor, weight: torch.Tensor) -> None:
    torch.nn.functional.linear(x, weight)
    if x.is_cuda:
        torch.cuda.synchronize()


def fastest_dtype(rates: dict[str, float]) -> str:
    """The dtype to compute in: "bfloat16" where it is clearly faster, else "float32"."""
    return "bfloat16" if rates["bfloat16"] > WORTH_ROUNDING * rates["float32"] else "float32"
