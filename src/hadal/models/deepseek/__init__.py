"""The DeepSeek decoders: latent attention, shared and routed experts, multi-token prediction (V2, V3, R1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hadal.models.deepseek.config import DeepseekConfig, DeepseekV2Config
from hadal.models.deepseek.cost import cost
from hadal.models.deepseek.names import LAYOUTS
from hadal.models.family import Family

if TYPE_CHECKING:
    from hadal.models.decoder import Decoder


def _network(config: DeepseekConfig) -> Decoder:
    from hadal.models.deepseek.network import Deepseek

    return Deepseek(config)


def _auxiliary(config: DeepseekConfig) -> frozenset[str]:
    has = {"mtp": config.num_nextn_predict_layers > 0, "balance": config.aux_loss_alpha > 0}
    return frozenset(name for name, there in has.items() if there)


FAMILY = Family(
    name="deepseek",
    types=(DeepseekV2Config, DeepseekConfig),
    network=_network,
    cost=cost,
    layouts=LAYOUTS,
    adapted=("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    plain=frozenset({"kv_b_proj"}),  # attention multiplies with it itself
    auxiliary=_auxiliary,
)
