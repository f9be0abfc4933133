"""Tokens a second of sampling, against transformers' generate on the same weights.

    python benchmarks/rollout.py [--arch deepseek] [--quick] [--json FILE] [--threads N]

512 different prompts of 16 to 24 tokens decode together, 64 new tokens each at temperature 1.0, and none ends
early (the end token is never drawn). hadal returns each token's log-probability as well. New tokens are counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prepared  # noqa: F401
import torch
from common import (
    SHAPES,
    VOCABULARY,
    Result,
    arguments,
    interleave,
    measured_rates,
    peer_dtypes,
    results,
    save_random,
    shapes,
    show,
    transformers_or_none,
)

from hadal.checkpoints.load import load_model
from hadal.cost.flops import forward_flops
from hadal.engine import LLM, SamplingParams
from hadal.text.tokenizer import Tokenizer

PROMPT = 20


def prompts(count: int) -> list[list[int]]:
    """Prompts of 16 to 24 ids, 20 on average."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(PROMPT - 4, PROMPT + 5, (count,), generator=generator).tolist()
    return [torch.randint(20, VOCABULARY - 64, (n,), generator=generator).tolist() for n in lengths]


def hadal_side(folder: Path, dtype: str, rows: list[list[int]], new: int) -> Callable[[], object]:
    """hadal's engine."""
    tokenizer = Tokenizer.from_words([])
    llm = LLM(load_model(folder, getattr(torch, dtype)), tokenizer)
    params = SamplingParams(max_tokens=new, ignore_eos=True, logprobs=0, logprobs_of="sampled")

    def call() -> None:
        outputs = llm.generate(rows, params)
        assert sum(len(o.outputs[0].token_ids) for o in outputs) == len(rows) * new

    return call


def peer_side(transformers: Any, folder: Path, dtype: str, rows: list[list[int]], new: int) -> Callable[[], object]:
    """transformers' generate over left-padded prompts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])

    def call() -> None:
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new,
            pad_token_id=0,
        )
        assert out.shape == (len(rows), width + new)

    return call


def main() -> None:
    args = arguments(__doc__)
    rates, dtype = measured_rates(args)
    transformers = transformers_or_none()
    rows, new = prompts(96 if args.quick else 512), 32 if args.quick else 64
    found: list[Result] = []
    others = peer_dtypes(dtype, rates) if transformers else []
    for size, config in SHAPES[args.arch].items():
        with tempfile.TemporaryDirectory() as name:
            save_random(Path(name), config)
            sides = {"hadal": hadal_side(Path(name), dtype, rows, new)}
            dtypes = {"hadal": dtype}
            for other in others:
                side = f"transformers {transformers.__version__}" + ("" if other == dtype else f" ({other})")
                sides[side], dtypes[side] = peer_side(transformers, Path(name), other, rows, new), other
        times = interleave(sides, 4.0 if args.quick else 60.0, 2 if args.quick else 3)
        # The prompt's pass is work as well, without the head: spread over the new tokens.
        prefill = PROMPT * forward_flops(config, PROMPT / 2, head=False) / new
        flops = forward_flops(config, PROMPT + new / 2) + prefill
        found += results(size, times, dtypes, len(rows) * new, flops, rates)
    show(args, "rollout", found, rates, shapes(args) | {"sequences": len(rows), "prompt": PROMPT, "new_tokens": new})


if __name__ == "__main__":
    main()
