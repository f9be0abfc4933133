"""Training steps and prefill of real shapes against transformers, with the same weights and dtype.

    python benchmarks/models.py [--quick] [--json FILE] [--threads N] [--dtype bfloat16] [--models NAME ...]

A training step is forward, loss on every position and backward, without the update (`benchmarks/train.py` has that);
prefill fills the cache and gives the last token's logits. On the CPU, and on a CUDA device where there is one.

transformers runs with the fastest of its attention ("sdpa", "eager") and experts ("grouped_mm", "eager") here, tried
for each measurement and named in the table. Before anything is timed, both sides' losses have to agree.

The goal in training is twice transformers on the mixture and 1.3 times on dense models. Its share of the machine's
matrix rate bounds what anyone can gain: a side at 80% of the rate can be beaten by 1.25 at most. Where transformers
itself passes 70%, the goal is 90% of the rate.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prepared  # noqa: F401
import torch
from common import (
    Result,
    arguments,
    counted,
    interleave,
    measured_rates,
    results,
    save_random,
    show,
    transformers_or_none,
)
from torch import Tensor

from hadal.checkpoints.load import load_model
from hadal.cost.flops import forward_flops, mean_context, training_flops
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import Qwen2Config
from hadal.train.corpus import Batch
from hadal.train.losses import pretraining_loss

MODELS: dict[str, ModelConfig] = {
    "moe-25M": DeepseekConfig(
        8192, 256, 7, 8, 768, 64, n_routed_experts=64, num_experts_per_tok=6, n_group=8, topk_group=4,
        routed_scaling_factor=2.5, q_lora_rank=128, kv_lora_rank=128, tie_word_embeddings=False,
        max_position_embeddings=4096,
    ),
    "dense-25M": Qwen2Config(8192, 384, 10, 6, 2, 64, 1536, 4096),
    "dense-500M": Qwen2Config(151_936, 896, 24, 14, 2, 64, 4864, 4096, 1e6),  # Qwen2.5-0.5B
}  # fmt: skip
GOALS = {"moe-25M": 2.0, "dense-25M": 1.3, "dense-500M": 1.3}
NEAR_THE_RATE, GOAL_SHARE = 0.7, 0.9
Calls = dict[str, Callable[[], object]]


def synchronised(call: Callable[[], object], device: str) -> Callable[[], object]:
    """The call, waiting until the device has done it."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def hadal_calls(folder: Path, dtype: torch.dtype, device: str, train_ids: Tensor, ids: Tensor) -> tuple[Calls, float]:
    """What is timed of hadal, and the loss that it finds."""
    model = load_model(folder, dtype).to(device).train()
    batch = Batch(train_ids, torch.ones(train_ids.shape, device=device))
    nothing = torch.empty(0, dtype=torch.long, device=device)

    def train() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = pretraining_loss(model, batch, nothing)[0]
        loss.backward()
        return loss

    @torch.no_grad()
    def prefill() -> Tensor:
        cache = model.new_cache(torch.zeros(len(ids), dtype=torch.long, device=device), ids.shape[1])
        return model.logits(model(ids, cache)[:, -1])

    return {"train": train, "prefill": prefill}, float(train().detach())


def peer_calls(
    transformers: Any, folder: Path, dtype: torch.dtype, device: str, train_ids: Tensor, ids: Tensor
) -> tuple[Calls, dict[str, str], float]:
    """The same of transformers, with its fastest settings, which are named; and its loss."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).train()

    def train() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = model(train_ids, labels=train_ids, use_cache=False).loss
        loss.backward()
        return loss

    @torch.no_grad()
    def prefill() -> Tensor:
        return model(ids, use_cache=True, logits_to_keep=1).logits[:, 0]

    experts = ("grouped_mm", "eager") if isinstance(model.config.to_dict().get("n_routed_experts"), int) else ("",)

    def use(setting: tuple[str, str]) -> None:
        model.set_attn_implementation(setting[0])
        if setting[1]:
            model.set_experts_implementation(setting[1])

    def fastest(call: Callable[[], object]) -> tuple[str, str]:
        def seconds(setting: tuple[str, str]) -> float:
            use(setting)
            run = synchronised(call, device)
            run()
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        return min(itertools.product(("sdpa", "eager"), experts), key=seconds)

    loss = float(train().detach())
    calls: Calls = {}
    named: dict[str, str] = {}
    for name, call in (("train", train), ("prefill", prefill)):
        chosen = fastest(call)
        named[name] = ", ".join(filter(None, chosen))

        def with_setting(call: Callable[[], object] = call, chosen: tuple[str, str] = chosen) -> object:
            use(chosen)
            return call()

        calls[name] = with_setting
    return calls, named, loss


def measure(
    name: str, device: str, dtype: str, rates: dict[str, float], quick: bool, transformers: Any
) -> Iterator[Result]:
    """Both sides of one model."""
    config = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    rows, length = (4, 1024) if device == "cuda" else (1, 512) if quick else (2, 512)
    train_ids = torch.randint(3, config.vocab_size, (rows, length), generator=generator).to(device)
    ids = torch.randint(3, config.vocab_size, (rows if device == "cuda" else 1, 512 if quick else 2048)).to(device)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_random(folder, config, getattr(torch, dtype))
        own, loss = hadal_calls(folder, getattr(torch, dtype), device, train_ids, ids)
        sides = {"hadal": own}
        if transformers:
            sizes = folder, getattr(torch, dtype), device, train_ids, ids
            theirs, settings, expected = peer_calls(transformers, *sizes)
            sides["transformers"] = theirs
            if abs(loss - expected) > (1e-4 if dtype == "float32" else 0.03) * expected:
                raise SystemExit(f"{name}: hadal's loss is {loss}, transformers' {expected}: not the same model.")
    flops = {
        "train": training_flops(config, mean_context(length)),
        "prefill": forward_flops(config, mean_context(ids.shape[1]), head=False),
    }
    for what, tokens in (("train", train_ids.numel()), ("prefill", ids.numel())):
        named = {
            side if side == "hadal" else f"{side} {transformers.__version__} ({settings[what]})": synchronised(
                calls[what], device
            )
            for side, calls in sides.items()
        }
        times = interleave(named, 2.0 if quick else 20.0, 2 if quick else 5)
        label = f"{name} {what}" + (" cuda" if device == "cuda" else "")
        yield from results(label, times, dict.fromkeys(named, dtype), tokens, flops[what], rates)


def judge(found: list[Result]) -> None:
    """Print each training ratio beside what it could be at most, and the goal."""
    for ours, peer in itertools.pairwise(found):
        if "train" not in ours.size or ours.size != peer.size:
            continue
        goal = GOALS[ours.size.split()[0]]
        if peer.share > NEAR_THE_RATE:
            met, wanted = ours.share >= GOAL_SHARE, f"{GOAL_SHARE:.0%} of the matrix rate"
        else:
            met, wanted = peer.ratio >= goal, f"{goal}x"
        bound = f"transformers runs at {peer.share:.0%} of the matrix rate, so {1 / peer.share:.2f}x is the bound"
        print(f"{ours.size}: {peer.ratio:.2f}x, {bound}; goal {wanted}: {'met' if met else 'not met'}.")


def main() -> None:
    args = arguments(__doc__, list(MODELS))
    transformers = transformers_or_none()
    chosen = args.models or [name for name in MODELS if not (args.quick and name == "dense-500M")]
    if args.quick and not args.models:
        print("--quick leaves out the model of 500M parameters.")
    found: list[Result] = []
    rates: dict[str, float] = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        device_rates, dtype = measured_rates(args, device)
        rates |= {f"{device} {name}": rate for name, rate in device_rates.items()}
        for name in chosen:
            found += measure(name, device, dtype, device_rates, args.quick, transformers)
            gc.collect()
    show(args, "models", found, rates, {"parameters": counted({name: MODELS[name] for name in chosen})})
    judge(found)


if __name__ == "__main__":
    main()
