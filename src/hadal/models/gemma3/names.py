"""The released names of Gemma 3's tensors."""

from __future__ import annotations

from hadal.models.family import HUGGING_FACE, Layout
from hadal.models.gemma3.config import Gemma3Config
from hadal.models.names import COMMON, GATE_UP

_NORMS = (r"^layers\.(\d+)\.(post_attention|pre_feedforward|post_feedforward)_norm\.", r"model.layers.\1.\2_layernorm.")


def _joined(config: Gemma3Config) -> dict[str, dict[str, int]]:
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    return {"qkv_proj": {"q_proj": heads, "k_proj": key_heads, "v_proj": key_heads}, **GATE_UP}


LAYOUTS = {HUGGING_FACE: Layout(renames=lambda config: [_NORMS, *COMMON], joined=_joined)}
