"""The released names of a dense decoder's tensors."""

from __future__ import annotations

from hadal.models.dense.config import DenseConfig
from hadal.models.family import HUGGING_FACE, Layout
from hadal.models.names import COMMON, GATE_UP


def _joined(config: DenseConfig) -> dict[str, dict[str, int]]:
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    return {"qkv_proj": {"q_proj": heads, "k_proj": key_heads, "v_proj": key_heads}, **GATE_UP}


LAYOUTS = {HUGGING_FACE: Layout(renames=lambda config: COMMON, joined=_joined)}
