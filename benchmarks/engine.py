"""The engine against transformers' generate on models of real shape with random weights, in turns.

For every shape: decoding at batch 1, 8 and 64 and RL's case (32 prompts, 16 samples of each), each greedy, at
temperature 1 with log-probabilities, and at 0.6 with top-p 0.95; then a long prompt's tokens a second, the seconds to
the first token, and the mismatch between the log-probabilities that the sampler reports and those of a training pass.

    python benchmarks/engine.py --quick
    python benchmarks/engine.py --models 0.5B --cases b1 b64 --ways greedy
    python benchmarks/engine.py --models 1.5B --cases rl --rl 8 16 --turns 1
    python benchmarks/engine.py --trained runs/dense-seed0 runs/deepseek-seed0
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import prepared  # noqa: F401
import torch
from common import interleave, measured_rates, save_random, transformers_or_none

from hadal.checkpoints.load import load_model
from hadal.cost.flops import forward_flops, parameters
from hadal.engine import LLM, EngineConfig, SamplingParams
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig, Qwen2Config
from hadal.models.packed import choose, pack, resolve
from hadal.tasks import load_tasks
from hadal.text.tokenizer import Tokenizer

MODELS: dict[str, ModelConfig] = {
    "1M": DenseConfig(512, 128, 5, 4, 2, head_dim=32, intermediate_size=384),
    "0.5B": Qwen2Config(
        151_936, 896, 24, 14, 2, head_dim=64, intermediate_size=4864, max_position_embeddings=4096
    ),
    "1.5B": Qwen2Config(
        151_936, 1536, 28, 12, 2, head_dim=128, intermediate_size=8960, max_position_embeddings=4096
    ),
    "moe-0.3B": DeepseekConfig(
        32_768, 768, 12, 12, intermediate_size=2048, moe_intermediate_size=256, n_routed_experts=32, n_shared_experts=2,
        num_experts_per_tok=4, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64,
        max_position_embeddings=4096,
    ),
}  # fmt: skip
WAYS = {
    "greedy": SamplingParams(temperature=0, ignore_eos=True),
    "temperature 1, logprobs": SamplingParams(ignore_eos=True, logprobs=0, seed=0),
    "0.6, top-p 0.95": SamplingParams(0.6, 0.95, ignore_eos=True, seed=0),
}
BESIDE = {"loop": "a bare loop over a static cache", "continuous": "continuous batching"}
LOGITS = 4 * 1024**3
"""Bytes of logits that the peer may keep."""
CASES = {"b1": (1, 1), "b8": (8, 1), "b64": (64, 1), "rl": (32, 16), "b512": (512, 1)}


def shape(name: str, quick: bool) -> ModelConfig:
    """A model's config; two layers of it where time is short."""
    return replace(MODELS[name], num_hidden_layers=2) if quick else MODELS[name]


def prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(20, vocabulary - 64, (count, length), generator=generator).tolist()


def hadal_call(llm: LLM, rows: list[list[int]], params: SamplingParams) -> Callable[[], None]:
    def call() -> None:
        outputs = llm.generate(rows, params)
        assert all(len(s.token_ids) == params.max_tokens for o in outputs for s in o.outputs)

    return call


def peer_call(model: Any, rows: list[list[int]], params: SamplingParams) -> Callable[[], None]:
    """transformers' generate; with log-probabilities as hadal has them, where all the logits fit, which it keeps."""
    ids = torch.tensor(rows).repeat_interleave(params.n, 0)  # as it does itself, where it samples
    held = len(ids) * (params.max_tokens or 0) * model.config.vocab_size * 4
    logprobs = params.logprobs is not None and held <= LOGITS

    def call() -> None:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=params.temperature > 0,
            temperature=params.temperature or None, top_k=0, top_p=params.top_p,
            max_new_tokens=params.max_tokens, pad_token_id=0, output_logits=logprobs,
            return_dict_in_generate=logprobs,
        )  # fmt: skip
        if logprobs:  # of the tokens drawn, as the other side gives them
            tokens = out.sequences[:, ids.shape[1] :]
            for place, logits in enumerate(out.logits):
                torch.log_softmax(logits.float(), -1).gather(1, tokens[:, place : place + 1])
        else:
            assert out.shape == (len(ids), ids.shape[1] + params.max_tokens)

    return call


def continuous_call(model: Any, rows: list[list[int]], params: SamplingParams) -> Callable[[], None]:
    """transformers' continuous batching, told how much it has to hold: each sequence fits one page of its cache.

    Each call starts its thread and makes its cache anew, for about half a second.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(
        do_sample=params.temperature > 0, temperature=params.temperature or None, top_k=0, top_p=params.top_p,
        num_return_sequences=params.n, max_new_tokens=params.max_tokens, pad_token_id=0, eos_token_id=-1,
    )  # fmt: skip
    batching = ContinuousBatchingConfig(
        page_size=len(rows[0]) + (params.max_tokens or 0), num_blocks=len(rows) * params.n + 1, max_batch_tokens=1024,
        return_logprobs=params.logprobs is not None,
    )  # fmt: skip

    def call() -> None:
        out = model.generate_batch(rows, generation_config=config, continuous_batching_config=batching, warmup=False)
        assert len(out) == len(rows) * params.n
        assert all(len(o.generated_tokens) == params.max_tokens for o in out.values())

    return call


def loop_call(model: Decoder, rows: list[list[int]], params: SamplingParams) -> Callable[[], None]:
    """The least that decoding can be: one batch, one cache made beforehand, the likeliest token or a drawn one."""
    ids, new = torch.tensor(rows), params.max_tokens or 0

    @torch.no_grad()
    def call() -> None:
        cache = model.new_cache(torch.zeros(len(rows), dtype=torch.long), ids.shape[1] + new)
        hidden = model(ids, cache)
        for place in range(new):
            logits = model.logits(hidden[:, -1])
            token = torch.softmax(logits, -1).multinomial(1) if params.temperature else logits.argmax(-1, keepdim=True)
            if place + 1 < new:
                hidden = model(token, cache)

    return call


def mismatch(llm: LLM, rows: list[list[int]], params: SamplingParams) -> dict[str, float]:
    """Of sampled tokens: what the sampler reported against one pass over the whole response."""
    total, most, count = 0.0, 0.0, 0
    for output in llm.generate(rows, params):
        for sample in output.outputs:
            ids = output.prompt_token_ids + sample.token_ids
            with torch.no_grad():
                logits = llm.model.logits(llm.model(torch.tensor([ids]))[0])
            logits.index_fill_(1, llm.engine.sampler.forbidden, -torch.inf)
            begin = len(output.prompt_token_ids) - 1
            chosen = torch.log_softmax(logits[begin:-1], -1).gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            gap = (chosen - torch.tensor(sample.logprobs)).abs()
            total, most, count = total + float(gap.sum()), max(most, float(gap.max())), count + len(gap)
    return {"mean": total / count, "most": most, "tokens": count}


def trained_mismatch(run: Path, dtype: torch.dtype) -> dict[str, float]:
    """`mismatch` of a grown model, over ten thousand tokens and more that answer its own tasks."""
    llm = LLM.load(run, dtype)
    tasks = load_tasks(json.loads((run / "run.json").read_bytes())["config"]["tasks"])
    problems = [task.generate(i, "held_out", task.default_difficulty) for task in tasks.values() for i in range(16)]
    rows = [llm.tokenizer.chat([{"role": "user", "content": problem.prompt}]) for problem in problems]
    gap = mismatch(llm, rows, SamplingParams(max_tokens=200, logprobs=0, seed=1, n=8))
    if gap["tokens"] < 10_000:
        print(f"{run.name}: only {gap['tokens']} tokens")
    return gap


def chosen_form(name: str, config: ModelConfig, args: argparse.Namespace, rows: int) -> str:
    """How hadal packs for a case of so many sequences, as `LLM.load` does where it is told of them; '' for not."""
    if args.form != "auto":
        return resolve(args.form) if args.form else ""
    choice = choose(config, torch.bfloat16, rows=(rows,), fast=args.fast)
    print(f"{name:10}{choice.reason}", flush=True)
    return choice.form


def packed(folder: Path, form: str, fast: bool, dtype: torch.dtype) -> LLM:
    """The engine over the checkpoint's model, packed, or left plain in `dtype`."""
    model = load_model(folder, torch.bfloat16).eval()
    if form:
        pack(model, form, fast=fast)
    else:
        model = model.to(dtype)
    llm = LLM(model, Tokenizer.from_words([]), EngineConfig(exact=not fast))
    llm.engine.sampler.forbidden = llm.engine.sampler.forbidden[:0]  # the model's whole vocabulary is real here
    return llm


def beside_the_cases(
    name: str, config: ModelConfig, args: argparse.Namespace, llm: LLM, peer: Any, turns: int
) -> list[dict[str, Any]]:
    """Of one form: a long prompt's speed, and the mismatch of sampler and trainer."""
    long = prompts(1, 64 if args.quick else min(1024, config.max_position_embeddings // 2), config.vocab_size)
    one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    scheduler = llm.engine.scheduler
    settings = scheduler.config
    scheduler.config = replace(settings, keep_prompts=False)
    sides = {"hadal": hadal_call(llm, long, one)}
    if peer is not None:
        sides["peer"] = peer_call(peer, long, one)
    medians = {side: statistics.median(v) for side, v in interleave(sides, 0.0, turns).items()}
    scheduler.config = settings
    shown = ", ".join(f"{side} {len(long[0]) / seconds:.0f} tokens/s" for side, seconds in medians.items())
    print(f"{name:10}prompt of {len(long[0])} to the first token: {shown}", flush=True)
    written: list[dict[str, Any]] = [{"model": name, "case": "prompt", "seconds": medians, "tokens": len(long[0])}]
    if not args.quick or name == "1M":
        params = SamplingParams(max_tokens=64, ignore_eos=True, logprobs=0, seed=1, n=8)
        gap = mismatch(llm, prompts(4, 16, config.vocab_size), params)
        print(f"{name:10}sampler against trainer: mean {gap['mean']:.1e}, most {gap['most']:.1e}", flush=True)
        written.append({"model": name, "case": "mismatch", **gap})
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers of each shape, few tokens; under a minute")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["0.5B"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["b1", "b8", "b64", "rl"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--trained", nargs="+", type=Path, metavar="RUN", help="only the mismatch, of grown models")
    parser.add_argument("--new", type=int, help="tokens to generate (default: 64; 8 with --quick)")
    parser.add_argument("--turns", type=int, help="for each row, none before them to warm up (default: 3 after one)")
    parser.add_argument("--rl", nargs=2, type=int, metavar=("PROMPTS", "SAMPLES"), help="of RL's case (default: 32 16)")
    parser.add_argument("--continuous", action="store_true", help="also transformers' continuous batching")
    parser.add_argument("--form", default="auto", help="how hadal packs: auto, int8, int4, ..., or '' for not at all")
    parser.add_argument("--fast", action="store_true", help="hadal without its exactness")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.trained:
        for run in args.trained:
            for dtype in (torch.float32, torch.bfloat16):
                gap = trained_mismatch(run, dtype)
                shown = f"{gap['tokens']:,} tokens, mean {gap['mean']:.1e}, most {gap['most']:.1e}"
                print(f"{run.name} in {str(dtype).removeprefix('torch.')}: {shown}", flush=True)
        return
    rates, dtype = measured_rates(args)
    transformers = transformers_or_none()
    new, least = args.new or (8 if args.quick else 64), args.turns or (1 if args.quick else 3)
    cases = args.cases if not args.quick else [c for c in args.cases if c in ("b1", "b8")]
    written: list[dict[str, Any]] = []
    print(f"\n{'':10}{'case':6}{'':25}{'hadal':>10}{'peer':>10}{'ratio':>8}{'of matrix rate':>16}{'n':>4}")
    for name in args.models:
        config = shape(name, args.quick)
        with tempfile.TemporaryDirectory() as folder:
            save_random(Path(folder), config, torch.bfloat16)  # as such checkpoints are published
            peer, form, llm = None, "", None
            if transformers:
                peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
                peer.generation_config.eos_token_id = None
            for case in cases:
                count, n = args.rl if case == "rl" and args.rl else CASES[case]
                before, form = form, chosen_form(name, config, args, count * n)
                if llm is None or form != before:
                    llm = None  # not two at once
                    llm = packed(Path(folder), form, args.fast, getattr(torch, dtype))
                    written += beside_the_cases(name, config, args, llm, peer, least)
                rows = prompts(count, 64, config.vocab_size)
                for way in args.ways:
                    params = replace(WAYS[way], max_tokens=new, n=n)
                    sides: dict[str, Callable[[], None]] = {"hadal": hadal_call(llm, rows, params)}
                    if peer is not None:
                        sides["peer"] = peer_call(peer, rows, params)
                        if args.continuous:
                            sides["continuous"] = continuous_call(peer, rows, params)
                    if case == "b512" and params.top_p == 1.0:
                        sides["loop"] = loop_call(llm.model, rows, params)
                    times = interleave(sides, 0.0, least, warm_up=args.turns is None)
                    tokens = count * n * new
                    medians = {side: statistics.median(values) for side, values in times.items()}
                    flops = tokens * forward_flops(config, 64 + new / 2)
                    flops += count * 64 * forward_flops(config, 32, head=False)
                    share = flops / medians["hadal"] / rates[dtype]
                    ratio = medians["peer"] / medians["hadal"] if "peer" in medians else float("nan")
                    theirs = tokens / medians["peer"] if "peer" in medians else float("nan")
                    print(
                        f"{name:10}{case:6}{way:25}{tokens / medians['hadal']:10.1f}{theirs:10.1f}{ratio:7.2f}x"
                        f"{share:16.1%}{least:4}", flush=True,
                    )  # fmt: skip
                    for side, words in BESIDE.items():
                        if side in medians:
                            print(f"{'':16}{words} has {tokens / medians[side]:.1f}, "
                                  f"hadal {medians[side] / medians['hadal']:.2f}x of it", flush=True)  # fmt: skip
                    written.append({"model": name, "case": case, "way": way, "seconds": times, "tokens": tokens,
                                    "ratio": ratio, "share": share})  # fmt: skip
            written.append({"model": name, "parameters": parameters(config).total})
    if args.json:
        about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__,
                 "threads": torch.get_num_threads(), "dtype": dtype, "rates": rates, "exact": not args.fast,
                 "date": time.strftime("%Y-%m-%d")}  # fmt: skip
        args.json.write_text(json.dumps(about | {"results": written}, indent=1) + "\n")


if __name__ == "__main__":
    main()
