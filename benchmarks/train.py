"""Tokens a second of a training step (forward, backward, update), against the same weights in transformers.

    python benchmarks/train.py [--arch deepseek] [--quick] [--json FILE] [--threads N]

Rows of 64 tokens, loss on every position. Both sides update with AdamW; hadal's Muon, which its pre-training
uses, stands beside it. transformers runs with whichever of its attention implementations is faster here, torch's
fused AdamW and, in bf16, autocast over float32 weights, as its Trainer does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prepared  # noqa: F401
import torch
from common import (
    SHAPES,
    Result,
    arguments,
    interleave,
    measured_rates,
    peer_dtypes,
    results,
    shapes,
    show,
    transformers_or_none,
)
from torch import Tensor

from hadal.checkpoints.save import save_model
from hadal.cost.flops import mean_context, training_flops
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.train.corpus import Batch
from hadal.train.losses import pretraining_loss
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer

LENGTH = 64


def hadal_step(config: ModelConfig, ids: Tensor, dtype: str, muon_lr: float) -> Callable[[], object]:
    """A step of hadal's trainer."""
    model = build(config)
    model.initialise(0)
    optimizer = FlatOptimizer(model, OptimizerConfig(lr=1e-4, muon_lr=muon_lr), getattr(torch, dtype))
    batch = Batch(ids, torch.ones(ids.shape))
    forbidden = torch.tensor([0, 2])

    def step() -> None:
        pretraining_loss(model, batch, forbidden)[0].backward()
        optimizer.step()
        model.after_update(0.001)

    return step


def peer_step(transformers: Any, folder: Path, ids: Tensor, dtype: str) -> Callable[[], object]:
    """A step of transformers' model, with its faster attention."""

    def with_attention(kind: str) -> Callable[[], object]:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=kind, use_cache=False
        ).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = model(ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def seconds(step: Callable[[], object]) -> float:
        step()
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return min((with_attention(kind) for kind in ("sdpa", "eager")), key=seconds)


def main() -> None:
    args = arguments(__doc__)
    rates, dtype = measured_rates(args)
    transformers = transformers_or_none()
    rows = 16 if args.quick else 64
    ids = torch.randint(3, 500, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    found: list[Result] = []
    others = peer_dtypes(dtype, rates) if transformers else []
    for size, config in SHAPES[args.arch].items():
        sides = {
            "hadal, AdamW": hadal_step(config, ids, dtype, 0.0),
            "hadal, Muon": hadal_step(config, ids, dtype, 0.02),
        }
        dtypes = dict.fromkeys(sides, dtype)
        with tempfile.TemporaryDirectory() as name:
            model = build(config)
            model.initialise(0)
            save_model(Path(name), config, model.state_dict())
            for other in others:
                side = f"transformers {transformers.__version__}, AdamW"
                side += "" if other == dtype else f" ({other})"
                sides[side], dtypes[side] = peer_step(transformers, Path(name), ids, other), other
        times = interleave(sides, 6.0 if args.quick else 60.0)
        flops = training_flops(config, mean_context(LENGTH))
        found += results(size, times, dtypes, ids.numel(), flops, rates)
    show(args, "train", found, rates, shapes(args) | {"rows": rows, "length": LENGTH})


if __name__ == "__main__":
    main()
