"""Gemma 3, text only: sliding windows beside full attention, norms on both sides, two bases of rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hadal.models.family import Family
from hadal.models.gemma3.config import Gemma3Config
from hadal.models.gemma3.cost import cost
from hadal.models.gemma3.names import LAYOUTS

if TYPE_CHECKING:
    from hadal.models.decoder import Decoder


def _network(config: Gemma3Config) -> Decoder:
    from hadal.models.gemma3.network import Gemma3

    return Gemma3(config)


FAMILY = Family(
    name="gemma3",
    types=(Gemma3Config,),
    network=_network,
    cost=cost,
    layouts=LAYOUTS,
    adapted=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
