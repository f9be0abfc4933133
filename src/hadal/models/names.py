"""hadal's names of tensors and the released ones.

Inside hadal some matrices are joined (query, key and value; gate and up; an expert layer's experts); on disk
every tensor has its released name, so that transformers opens the folder. Which is which each family says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from hadal.models.config import ModelConfig
from hadal.models.families import family_of
from hadal.models.family import HUGGING_FACE, Layout

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COMMON = [
    (r"^embed\.weight$", EMBEDDING),
    (r"^norm\.weight$", "model.norm.weight"),
    (r"^head\.weight$", HEAD),
    (r"^layers\.(\d+)\.input_norm\.", r"model.layers.\1.input_layernorm."),
    (r"^layers\.(\d+)\.post_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^layers\.(\d+)\.attention\.(q_norm|k_norm)$", r"model.layers.\1.self_attn.\2.weight"),
    (r"^layers\.(\d+)\.attention\.", r"model.layers.\1.self_attn."),
    (r"^layers\.", "model.layers."),
]
"""What transformers calls the tensors of most families."""
GATE_UP = {"gate_up_proj": {"gate_proj": 1, "up_proj": 1}}
"""The released matrices of a joined one, with the shares of its rows that they have."""


def _layout(config: ModelConfig) -> Layout:
    return family_of(config).layouts[HUGGING_FACE]


def released_name(name: str, config: ModelConfig) -> str:
    """The released name of one of hadal's tensors; of a joined matrix, with the joined part's name in it."""
    for pattern, replacement in _layout(config).renames(config):
        name = re.sub(pattern, replacement, name)
    return name


def to_released(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """hadal's tensors under the released names; of joined ones the parts, as contiguous views into them.

    Scales of FP8 blocks divide like the matrices they belong to.
    """
    joined = _layout(config).joined(config)
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, kind = released_name(name, config).rpartition(".")
        owner, _, module = prefix.rpartition(".")
        if module == "experts":  # a stack of matrices
            for e, matrix in enumerate(tensor):
                for part, piece in _split(matrix, joined.get(kind, {kind: 1})):
                    out[f"{prefix}.{e}.{part}.weight"] = piece
        elif module in joined:
            for part, piece in _split(tensor, joined[module]):
                out[f"{owner}.{part}.{kind}"] = piece
        else:
            out[f"{prefix}.{kind}"] = tensor
    return out


def _split(matrix: Tensor, shares: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    rows = [len(matrix) * share // sum(shares.values()) for share in shares.values()]
    return zip(shares, matrix.split(rows), strict=True)


def mtp_prefix(config: ModelConfig) -> str | None:
    """What the released names of the module that predicts ahead begin with, if the config has one."""
    return _layout(config).mtp(config)


def copies(config: ModelConfig) -> dict[str, str]:
    """Released names that hold a second copy of another tensor: the embedding and head of that module."""
    prefix = mtp_prefix(config)
    if prefix is None:
        return {}
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    return {prefix + "embed_tokens.weight": EMBEDDING, prefix + "shared_head.head.weight": head}
