"""How long waiting threads should spin: a training step and sampling alone, and beside programs that keep cores busy.

    python benchmarks/spin.py [--counts watched 300000 10000 3000 1000 300 0] [--beside 0 1 2] [--rounds N]

`watched` is what hadal does (`hadal.machine.spinning`), 300000 libgomp's own limit.

Each cell is a process of its own, since OpenMP reads its settings once; counts take turns within a round. The step is
of the quickstart's size (0.9M parameters, 64 rows of 64 tokens), sampling draws 16 tokens for 64 prompts of that model,
both on all threads. Told are a cell's median over the rounds, each the median of its steps, and what they end in.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CELL = """
import hashlib, statistics, sys, time
from pathlib import Path
import torch
from common import SHAPES, save_random
from rollout import hadal_side, prompts
from train import hadal_step

def timed(call, seconds):
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)

folder, seconds, config = Path(sys.argv[1]), float(sys.argv[2]), SHAPES["dense"]["1M"]
ids = torch.randint(3, 500, (64, 64), generator=torch.Generator().manual_seed(0))
step = hadal_step(config, ids, "float32", 0.02)
for _ in range(3):
    step()
model = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))
bits = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()[:12]
save_random(folder, config)
print(timed(step, seconds), timed(hadal_side(folder, "float32", prompts(64), 16), seconds), bits)
"""
WAITING = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")


def measure(count: str, beside: int, seconds: float) -> tuple[float, float, str]:
    """Milliseconds of a step and of sampling beside so many busy programs, and a digest of the weights."""
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    chosen = {} if count == "watched" else {"GOMP_SPINCOUNT": count}  # a user's own word, so nothing is watched
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", CELL, folder, str(seconds)],
                env=kept | chosen | {"PYTHONPATH": here}, capture_output=True, text=True, check=True,
            )  # fmt: skip
    finally:
        for process in busy:
            process.kill()
            process.wait()
    step, sampling, bits = done.stdout.split()[-3:]
    return float(step), float(sampling), bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", default=["watched", "300000", "10000", "3000", "1000", "300", "0"])
    parser.add_argument("--beside", nargs="+", type=int, default=[0, 1, 2], help="busy programs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each of a cell's two measurements")
    args = parser.parse_args()
    cells: dict[tuple[str, int], list[tuple[float, float, str]]] = {}
    for _ in range(args.rounds):
        for beside in args.beside:
            for count in args.counts:
                cells.setdefault((count, beside), []).append(measure(count, beside, args.seconds))
    first = cells[args.counts[0], args.beside[0]]
    print(f"{'spins':>8} {'beside':>6} {'step':>10} {'':>7} {'sampling':>10} {'':>7}  (to the first line)")
    for (count, beside), found in cells.items():
        line = f"{count:>8} {beside:>6}"
        for i in (0, 1):
            mine, its = (statistics.median(float(cell[i]) for cell in those) for those in (found, first))
            line += f" {mine:7.1f} ms {mine / its:6.2f}x"
        print(line)
    print("Bits of the weights after three steps:", *sorted({cell[2] for found in cells.values() for cell in found}))


if __name__ == "__main__":
    main()
