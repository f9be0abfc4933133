"""hadal's names of tensors and the released ones.

Inside hadal some matrices are joined (query, key and value; gate and up; an expert layer's experts); on disk
every tensor has its released name, so that transformers opens the folder.
"""

from __future__ import annotations

import re

from torch import Tensor

from hadal.configs.models import DeepseekConfig, DenseConfig, ModelConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_RENAMES = [
    (r"^embed\.weight$", EMBEDDING),
    (r"^norm\.weight$", "model.norm.weight"),
    (r"^head\.weight$", HEAD),
    (r"^layers\.(\d+)\.input_norm\.", r"model.layers.\1.input_layernorm."),
    (r"^layers\.(\d+)\.post_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^layers\.(\d+)\.attention\.(q_norm|k_norm)$", r"model.layers.\1.self_attn.\2.weight"),
    (r"^layers\.(\d+)\.attention\.", r"model.layers.\1.self_attn."),
    (r"^layers\.", "model.layers."),
]


def released_name(name: str, config: ModelConfig) -> str:
    """The released name of one of hadal's tensors; of a joined matrix, with the joined part's name in it."""
    if isinstance(config, DeepseekConfig) and name.startswith("mtp."):
        extra = f"layers.{config.num_hidden_layers}."  # the module is numbered as one more layer
        name = name.replace("mtp.layer.", extra).replace("mtp.head_norm", extra + "shared_head.norm")
        name = name.replace("mtp.", extra)
    for pattern, replacement in _RENAMES:
        renamed = re.sub(pattern, replacement, name)
        if renamed != name:
            return renamed
    return name


def to_released(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """hadal's tensors under the released names; of joined ones the parts, as contiguous views into them.

    Scales of FP8 blocks divide like the matrices they belong to.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        renamed = released_name(name, config)
        prefix, _, kind = renamed.rpartition(".")
        if prefix.endswith(".experts"):  # a stack of matrices
            for e, matrix in enumerate(tensor):
                matrices = matrix.chunk(2) if kind == "gate_up_proj" else [matrix]
                for part, piece in zip(kind.removesuffix("_proj").split("_"), matrices, strict=True):
                    out[f"{prefix}.{e}.{part}_proj.weight"] = piece
        elif prefix.endswith("qkv_proj"):
            assert isinstance(config, DenseConfig)
            heads = config.num_attention_heads, config.num_key_value_heads
            q, kv = (len(tensor) * n // (heads[0] + 2 * heads[1]) for n in heads)
            for letter, piece in zip("qkv", tensor.split([q, kv, kv]), strict=True):
                out[renamed.replace("qkv_proj", f"{letter}_proj")] = piece
        elif prefix.endswith("gate_up_proj"):
            for part, piece in zip(("gate", "up"), tensor.chunk(2), strict=True):
                out[renamed.replace("gate_up_proj", f"{part}_proj")] = piece
        else:
            out[renamed] = tensor
    return out


def module_prefix(config: ModelConfig) -> str | None:
    """What the released names of the prediction module begin with, if the config has one."""
    if isinstance(config, DeepseekConfig) and config.num_nextn_predict_layers:
        return f"model.layers.{config.num_hidden_layers}."
    return None


def copies(config: ModelConfig) -> dict[str, str]:
    """Released names that hold a second copy of another tensor: the prediction module's embedding and head."""
    prefix = module_prefix(config)
    if prefix is None:
        return {}
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    return {prefix + "embed_tokens.weight": EMBEDDING, prefix + "shared_head.head.weight": head}
