"""What a model's config says of its size and cost, without its weights: the contents of `hadal model info`."""

from __future__ import annotations

from typing import Any

from hadal.cost.flops import (
    cache_bytes,
    forward_flops,
    mean_context,
    parameters,
    plain_cache_bytes,
    training_flops,
)
from hadal.library.find import find_config
from hadal.models.config import ModelConfig
from hadal.models.families import from_dict

DEFAULT_CONTEXT = 4096
FP8_BLOCK = 128 * 128  # weights that share one float32 scale, as DeepSeek stores them


def model_info(name: str, context: int | None = None) -> dict[str, Any]:
    """The figures for a model at a context, as `hadal model info --json` prints them."""
    config = from_dict(find_config(name))
    length = context or min(DEFAULT_CONTEXT, config.max_position_embeddings)
    counted = parameters(config)
    return {
        "model": name,
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "max_context": config.max_position_embeddings,
        "total_parameters": counted.total,
        "active_parameters": counted.active,
        "mtp_parameters": counted.mtp,
        "parameters_by_part": counted.parts,
        "context": length,
        "flops_per_token": forward_flops(config, length),
        "training_flops_per_token": training_flops(config, mean_context(length)),
        "cache_bytes_per_token": int(cache_bytes(config)),
        "plain_cache_bytes_per_token": int(plain_cache_bytes(config)),
        "memory_bytes": memory(config),
    }


def memory(config: ModelConfig) -> dict[str, int]:
    """Bytes of the weights by dtype, without an MTP module. In float8 embedding, head, routers and norms are bf16."""
    counted = parameters(config)
    kept = sum(counted.parts[part] for part in ("embedding", "head", "routers", "norms"))
    return {
        "float32": 4 * counted.total,
        "bfloat16": 2 * counted.total,
        "float8": round((counted.total - kept) * (1 + 4 / FP8_BLOCK)) + 2 * kept,
    }


PARTS = {
    "embedding": "embedding", "attention": "attention", "feed_forward": "feed-forward", "routed_experts":
    "routed experts", "shared_experts": "shared experts", "routers": "routers", "norms": "norms", "head": "head",
}  # fmt: skip


def describe(info: dict[str, Any]) -> str:
    """The figures as lines of text."""
    total, length = info["total_parameters"], info["context"]
    lines = [
        f"{info['model']}: {info['model_type']}, {info['layers']} layers of {info['hidden_size']}, "
        f"vocabulary {info['vocab_size']}, up to {info['max_context']} tokens",
        "",
        f"parameters        {_billions(total)}",
        f"  active          {_billions(info['active_parameters'])}   what one token is multiplied with",
    ]
    lines += [
        f"  {PARTS[part]:<15} {_billions(n)}   {n / total:6.1%}" for part, n in info["parameters_by_part"].items() if n
    ]
    if info["mtp_parameters"]:
        lines.append(
            f"  besides, MTP    {_billions(info['mtp_parameters'])}   the module that predicts one token ahead"
        )
    cache, plain = info["cache_bytes_per_token"], info["plain_cache_bytes_per_token"]
    less = f", {plain / cache:.1f} times less than the {plain:,} of plain attention" if plain != cache else ""
    lines += [
        "",
        f"FLOPs a token     {info['flops_per_token']:.3g} forward, at position {length}",
        f"                  {info['training_flops_per_token']:.3g} in training, sequences of {length}",
        f"cache a token     {cache:,} bytes in bf16{less}",
        f"                  {_gigabytes(cache * length)} for {length} tokens",
        "weights in memory " + ", ".join(f"{_gigabytes(n)} in {dtype}" for dtype, n in info["memory_bytes"].items()),
    ]
    return "\n".join(lines)


def _billions(n: int) -> str:
    return f"{n / 1e9:8.2f}B" if n >= 1e8 else f"{n / 1e6:8.2f}M"


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB"
