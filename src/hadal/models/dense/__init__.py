"""The dense decoders: grouped-query attention and SwiGLU (Qwen2, Qwen3, Llama, Mistral, SmolLM3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hadal.models.dense.config import DenseConfig, LlamaConfig, MistralConfig, Qwen2Config, SmolLM3Config
from hadal.models.dense.cost import cost
from hadal.models.dense.names import LAYOUTS
from hadal.models.family import Family

if TYPE_CHECKING:
    from hadal.models.decoder import Decoder


def _network(config: DenseConfig) -> Decoder:
    from hadal.models.dense.network import Dense

    return Dense(config)


FAMILY = Family(
    name="dense",
    types=(DenseConfig, Qwen2Config, LlamaConfig, MistralConfig, SmolLM3Config),
    network=_network,
    cost=cost,
    layouts=LAYOUTS,
    adapted=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
