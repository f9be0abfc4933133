"""The engine against llama.cpp on the same random weights, in turns: 16, 8 and about 4 bits a weight.

    python benchmarks/llamacpp.py --bin llama.cpp/build/bin --models 0.5B

--bin is a build of llama.cpp with llama-batched-bench and llama-quantize; `pip install gguf` writes its files. Both
read prompts of 64 tokens and draw --new behind each; llama.cpp's bench feeds random tokens and samples nothing, hadal
is greedy. Times are of prompts and new tokens together. Beside them stands what each side's weights lose: the
divergence of their logits from those of the weights as they were, both by hadal's model in float32, for which
llama.cpp's matrices are multiplied out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import prepared  # noqa: F401
import torch
from common import measured_rates, save_random
from engine import hadal_call, prompts, shape

from hadal.checkpoints.load import load_model
from hadal.engine import LLM, EngineConfig, SamplingParams
from hadal.models.decoder import Decoder
from hadal.models.dense.config import Qwen2Config
from hadal.models.packed import choose, pack
from hadal.text.tokenizer import Tokenizer

PAIRS = {"F16": "auto", "BF16": "auto", "Q8_0": "int8", "Q4_K_M": "int4"}
"""llama.cpp's type, and the form that hadal packs; auto: what it chooses for each batch."""
FIXED = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(folder: Path, config: Qwen2Config, out: Path) -> None:
    """The checkpoint in a folder as a GGUF file of F16 matrices, without a vocabulary."""
    import gguf
    from safetensors.torch import load_file

    writer = gguf.GGUFWriter(str(out), "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            to = FIXED.get(name)
            if to is None:
                _, _, layer, rest = name.split(".", 3)
                module, kind = rest.rsplit(".", 1)
                to = f"blk.{layer}.{NAMES[module]}.{kind}"
            narrow = np.float16 if tensor.dim() > 1 else np.float32
            writer.add_tensor(to, tensor.float().numpy().astype(narrow))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def multiplied_out(file: Path, source: Path, folder: Path) -> None:
    """A checkpoint of the float32 matrices that a GGUF file's stand for; source: the one it was made of."""
    import gguf
    from safetensors.torch import save_file

    released = {ours: theirs for theirs, ours in NAMES.items()}
    tensors: dict[str, torch.Tensor] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        if tensor.name.startswith("blk."):
            _, layer, module, kind = tensor.name.split(".")
            tensors[f"model.layers.{layer}.{released[module]}.{kind}"] = values
        else:
            tensors[next(theirs for theirs, ours in FIXED.items() if ours == tensor.name)] = values
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    shutil.copyfile(source / "config.json", folder / "config.json")


@torch.no_grad()
def logprobs(model: Decoder, vocabulary: int) -> torch.Tensor:
    """Of every token [N, V] behind each of 512 random ones, four texts."""
    ids = torch.tensor(prompts(4, 128, vocabulary))
    return torch.log_softmax(model.logits(model(ids)), -1).flatten(0, 1)


def divergence(reference_NV: torch.Tensor, got_NV: torch.Tensor) -> float:
    """Mean over the tokens, in nats."""
    return float((reference_NV.exp() * (reference_NV - got_NV)).sum(-1).mean())


def batched_bench(binaries: Path, file: Path, batches: list[int], new: int, threads: int) -> dict[int, float]:
    """Seconds of prompts and new tokens, by batch."""
    context = max(batches) * (64 + new) + 256
    done = subprocess.run(
        [
            binaries / "llama-batched-bench", "-m", file, "-c", str(context), "-b", "2048", "-ub", "512",
            "-npp", "64", "-ntg", str(new), "-npl", ",".join(map(str, batches)),
            "-t", str(threads), "-tb", str(threads), "--output-format", "jsonl",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["pl"]: line["t_pp"] + line["t_tg"] for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, metavar="DIR", help="llama.cpp's programs")
    parser.add_argument("--quick", action="store_true", help="two layers, few tokens; under a minute")
    parser.add_argument("--models", nargs="+", choices=("0.5B", "1.5B"), default=["0.5B"])
    parser.add_argument("--types", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--new", type=int, help="tokens to generate (default: 32; 8 with --quick)")
    parser.add_argument("--rounds", type=int, help="turns (default: 3; 1 with --quick)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(dtype="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rates, _ = measured_rates(args)
    new, rounds = args.new or (8 if args.quick else 32), args.rounds or (1 if args.quick else 3)
    batches = [b for b in args.batches if b < 64] if args.quick else args.batches
    written: list[dict[str, Any]] = []
    print(f"\n{'':8}{'batch':>6}{'type':>8}{'form':>18}{'hadal':>9}{'llama.cpp':>11}{'ratio':>8}{'n':>4}"
          f"{'lost by hadal, llama.cpp':>28}")  # fmt: skip
    for name in args.models:
        config = shape(name, args.quick)
        assert isinstance(config, Qwen2Config)
        with tempfile.TemporaryDirectory() as place:
            folder, plain = Path(place) / "model", Path(place) / "F16.gguf"
            save_random(folder, config, torch.bfloat16)
            write_gguf(folder, config, plain)
            reference = logprobs(load_model(folder).eval(), config.vocab_size)
            for kind in args.types:
                file = plain
                if kind != "F16":
                    file = Path(place) / f"{kind}.gguf"
                    subprocess.run([args.bin / "llama-quantize", plain, file, kind], capture_output=True, check=True)
                multiplied_out(file, folder, Path(place) / f"{kind}-floats")
                theirs_lose = divergence(reference, logprobs(load_model(Path(place) / f"{kind}-floats").eval(),
                                                             config.vocab_size))  # fmt: skip
                shutil.rmtree(Path(place) / f"{kind}-floats")
                forms = {b: PAIRS[kind] for b in batches}
                if PAIRS[kind] == "auto":
                    forms = {b: choose(config, torch.bfloat16, rows=(b,)).form for b in batches}
                times: dict[str, dict[int, list[float]]] = {s: {b: [] for b in batches} for s in ("hadal", "peer")}
                ours_lose: dict[str, float] = {}
                for form in dict.fromkeys(forms.values()):
                    ours = load_model(folder, torch.bfloat16).eval()
                    pack(ours, form)
                    ours_lose[form] = divergence(reference, logprobs(ours, config.vocab_size))
                    llm = LLM(ours, Tokenizer.from_words([]), EngineConfig(keep_prompts=False))
                    llm.engine.sampler.forbidden = llm.engine.sampler.forbidden[:0]
                    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=new)
                    sizes = [b for b in batches if forms[b] == form]
                    calls = {b: hadal_call(llm, prompts(b, 64, config.vocab_size), params) for b in sizes}
                    for turn in range(rounds + 1):  # the first one warms up
                        theirs = batched_bench(args.bin, file, sizes, new, args.threads)
                        for batch, call in calls.items():
                            began = time.perf_counter()
                            call()
                            if turn:
                                times["hadal"][batch].append(time.perf_counter() - began)
                                times["peer"][batch].append(theirs[batch])
                for batch in batches:
                    mine, peer = (statistics.median(times[side][batch]) for side in ("hadal", "peer"))
                    form = forms[batch]
                    print(
                        f"{name:8}{batch:6}{kind:>8}{form:>18}{batch * new / mine:9.1f}{batch * new / peer:11.1f}"
                        f"{peer / mine:7.2f}x{rounds:4}{ours_lose[form]:14.2e},{theirs_lose:13.2e}", flush=True,
                    )  # fmt: skip
                    written.append({"model": name, "batch": batch, "type": kind, "form": form, "tokens": batch * new,
                                    "seconds": {side: times[side][batch] for side in times},
                                    "divergence": {"hadal": ours_lose[form], "peer": theirs_lose}})  # fmt: skip
    if args.json:
        about = {"torch": torch.__version__, "threads": args.threads, "rates": rates, "quick": args.quick}
        args.json.write_text(json.dumps(about | {"results": written}, indent=1) + "\n")


if __name__ == "__main__":
    main()
