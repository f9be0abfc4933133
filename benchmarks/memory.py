"""The most memory that one whole update of RL takes: 32 prompts x 16 samples, every one of 512 tokens, 0.5B parameters.

Random weights of Qwen2.5-0.5B's shape, prompts of 64 random tokens, rewards of 0 and 1 in turns, so that no group is
alike and every sample is trained on. The peak is the process's own (VmHWM), as the system counts it.

An update of this size takes hours on two CPU cores. --part runs one half of it in a process of its own, with all that
the other half leaves in memory (weights, gradients, optimiser): `training` then trains on random tokens.

    python benchmarks/memory.py --quick
    python benchmarks/memory.py --cache 3GB --micro 4096 --checkpoint
"""

from __future__ import annotations

import argparse
import json
import platform
import threading
import time
from dataclasses import asdict
from typing import Any

import prepared  # noqa: F401
import torch
from common import arguments, measured_rates
from engine import prompts, shape

from hadal.cli.arguments import size
from hadal.cost.flops import parameters
from hadal.cost.memory import PROCESS, Pass, gigabytes, training_memory
from hadal.engine import LLM, EngineConfig, Sample, SamplingParams
from hadal.machine.memory import peak_memory_bytes, resident_memory
from hadal.models.build import build
from hadal.stages.grpo import POLICY_BYTES
from hadal.tasks import Problem, Reward
from hadal.text.tokenizer import Tokenizer
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.rl import Batch, RLConfig, train_on
from hadal.train.rollouts import Group

GOAL = 16e9


def watched(seconds: float = 60.0) -> threading.Event:
    """Tell the peak and the time now and then, until the event is set."""
    over, began = threading.Event(), time.perf_counter()

    def tell() -> None:
        while not over.wait(seconds):
            passed = (time.perf_counter() - began) / 60
            print(f"  {passed:6.1f} min: {gigabytes(peak_memory_bytes())} at most", flush=True)

    threading.Thread(target=tell, daemon=True).start()
    return over


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="0.5B", help="a shape of benchmarks/engine.py (default: 0.5B)")
    parser.add_argument("--part", choices=("sampling", "training"), help="that half of the update alone")
    parser.add_argument("--cache", type=size, default=3 * 10**9, help="bytes of the engine's cache (default: 3GB)")
    parser.add_argument("--micro", type=int, default=1024, help="tokens of a training pass (default: 1024)")
    parser.add_argument("--checkpoint", action="store_true", help="compute activations again in the backward pass")


def main() -> None:
    args = arguments(__doc__, more=more)
    rates, dtype = measured_rates(args)
    count, each, length = (4, 4, 32) if args.quick else (32, 16, 512)
    process = resident_memory()
    config = shape(args.models, args.quick)
    model = build(config)
    model.initialise(0)
    model.train().checkpoint_activations = args.checkpoint
    optimizer = FlatOptimizer(model, OptimizerConfig(lr=1e-6, muon_lr=0.0), getattr(torch, dtype))
    llm = LLM(model, Tokenizer.from_words([]), EngineConfig(cache_bytes=args.cache))
    llm.engine.forbidden = llm.engine.forbidden[:0]  # random weights speak the whole vocabulary
    llm.engine.sampler.forbidden = llm.engine.forbidden
    rows = prompts(count, 64, config.vocab_size)
    over, seconds, began = watched(), {}, time.perf_counter()
    if args.part == "training":
        drawn = prompts(count * each, length, config.vocab_size)
        samples = [Sample(ids, [-12.0] * length, "", "length") for ids in drawn]
    else:
        params = SamplingParams(max_tokens=length, ignore_eos=True, seed=0, n=each, logprobs=0, logprobs_of="sampled")
        samples = [s for o in llm.generate(rows, params.spread(count)) for s in o.outputs]
        seconds["sampling"] = time.perf_counter() - began
        print(f"sampled {count * each * length:,} tokens in {seconds['sampling']:,.0f} s, "
              f"at most {gigabytes(peak_memory_bytes())}", flush=True)  # fmt: skip
    assert all(len(s.token_ids) == length for s in samples)
    if args.part != "sampling":
        rewards = [Reward(float(i % 2), {"accuracy": float(i % 2)}) for i in range(each)]
        groups = [
            Group("none", Problem("", ""), row, samples[i * each : (i + 1) * each], rewards)
            for i, row in enumerate(rows)
        ]
        advantages = torch.tensor([r.total - 0.5 for r in rewards]).expand(count, each)
        rl = RLConfig(prompts=count, samples=each, max_tokens=length, micro_tokens=args.micro)
        result = train_on(llm, optimizer, Batch(groups, advantages, 0.0), rl, seed=0, step=0)
        seconds["training"] = result.seconds_training
        print(f"trained on them in {seconds['training']:,.0f} s, gradient's norm {result.metrics['grad_norm']:.3g}")
    over.set()
    peak, value_bytes = peak_memory_bytes(), 4 if dtype == "float32" else 2
    fitting = min(count * each, max(1, args.micro // length))
    one = Pass(fitting, length, 64, min(fitting, count))
    told = training_memory(config, value_bytes, [one], args.checkpoint, logit_bytes=POLICY_BYTES)
    told = told.beside({PROCESS: process})
    print(f"at most {gigabytes(peak)} (goal: {gigabytes(int(GOAL))}); training was told to take {told.describe()}")
    if args.json:
        about: dict[str, Any] = {"benchmark": "memory", "date": time.strftime("%Y-%m-%d"), "quick": args.quick}
        about |= {"machine": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        about |= {"model": args.models, "parameters": parameters(config).total, "dtype": dtype, "rates": rates}
        about |= {"part": args.part or "whole", "checkpointed": args.checkpoint, "micro_tokens": args.micro}
        about |= {"cache_bytes": args.cache, "peak_bytes": peak, "told": asdict(told), "seconds": seconds}
        args.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
