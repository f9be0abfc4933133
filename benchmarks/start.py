"""From a command to its first token, and the most memory it ever held: hadal against transformers, in turns.

Each run is a process of its own that opens a checkpoint of random weights (bf16, as they are published), reads a prompt
of 64 tokens and draws one. hadal chooses its form (`--dtype auto`), as `hadal chat` does.

    python benchmarks/start.py --quick
    python benchmarks/start.py --models 0.5B
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import prepared  # noqa: F401
import torch
from common import arguments, save_random, transformers_or_none
from engine import MODELS, shape

from hadal.text.tokenizer import Tokenizer

PEAK = """
import sys
from pathlib import Path
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
print(peak, flush=True)
"""
SIDES = {
    "hadal": """
import sys
from hadal.engine import LLM, SamplingParams
llm = LLM.load(sys.argv[1], form=sys.argv[2])
next(llm.stream(list(range(20, 84)), SamplingParams(ignore_eos=True, max_tokens=2, seed=0)))
"""
    + PEAK,
    "transformers": """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])).eval()
ids = torch.arange(20, 84)[None]
model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=1, pad_token_id=0)
"""
    + PEAK,
}


def main() -> None:
    args = arguments(__doc__, sorted(MODELS))
    threads = torch.get_num_threads()
    sides = list(SIDES) if transformers_or_none() else ["hadal"]
    written: list[dict[str, Any]] = []
    for name in args.models or ["0.5B"]:
        with tempfile.TemporaryDirectory() as folder:
            weights = save_random(Path(folder), shape(name, args.quick), torch.bfloat16)
            Tokenizer.from_words([]).save(Path(folder))
            times: dict[str, list[float]] = {side: [] for side in sides}
            peaks: dict[str, list[int]] = {side: [] for side in sides}
            for _ in range(1 if args.quick else 3):
                for side in sides:
                    peer = "float32" if args.dtype == "auto" else args.dtype
                    form = args.dtype if side == "hadal" else peer
                    code = f"import torch; torch.set_num_threads({threads})\n" + SIDES[side]
                    began = time.perf_counter()
                    done = subprocess.run(
                        [sys.executable, "-c", code, folder, form], capture_output=True, text=True, check=True
                    )
                    times[side].append(time.perf_counter() - began)
                    peaks[side].append(int(done.stdout))
            for side in sides:
                seconds, peak = statistics.median(times[side]), max(peaks[side])
                print(
                    f"{name:10}{side:14}{seconds:6.1f} s to the first token, at most {peak / 1e6:,.0f} MB "
                    f"(weights as published: {weights / 1e6:,.0f} MB), n = {len(times[side])}", flush=True,
                )  # fmt: skip
                written.append({"model": name, "side": side, "seconds": times[side], "peak_bytes": peaks[side],
                                "weights_bytes": weights})  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"threads": threads, "quick": args.quick, "results": written}, indent=1) + "\n")


if __name__ == "__main__":
    main()
