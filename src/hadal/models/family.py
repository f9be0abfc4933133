"""What a family of models says of itself: `FAMILY` in the `__init__` of its folder (docs/extending.md). No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hadal.models.config import ModelConfig
from hadal.models.cost import Cost

if TYPE_CHECKING:
    from hadal.models.decoder import Decoder

HUGGING_FACE = "huggingface"
"""The layout of safetensors that transformers opens."""


def _nothing(config: Any) -> None:
    return None


@dataclass(frozen=True)
class Layout:
    """How a published layout names hadal's tensors, and which of its matrices hadal joins, each told of a config.

    renames: patterns and what stands for what they match, one applied after the other. joined: for the last part of a
    joined module's name, the released matrices in it, in order, with the share of its rows that each has. mtp: what the
    released names of the module that predicts ahead begin with; it repeats the embedding and the head there.
    """

    renames: Callable[[Any], Sequence[tuple[str, str]]]
    joined: Callable[[Any], Mapping[str, Mapping[str, int]]]
    mtp: Callable[[Any], str | None] = _nothing


@dataclass(frozen=True)
class Family:
    """A family: its model types, and what is to be known of them before and besides running one.

    types: the table of its model types; each says what config.json must and may hold. network: builds the model, and
    imports what it needs only then. adapted: the released matrices that adapters take unless others are named. plain:
    last parts of names of linear layers that stay plain when a model is packed. auxiliary: losses besides the next
    token's that a model can be trained by ("mtp" by `mtp_weight`, "balance" by its own config).
    """

    name: str
    types: tuple[type[ModelConfig], ...]
    network: Callable[[Any], Decoder]
    cost: Callable[[Any], Cost]
    layouts: Mapping[str, Layout]
    adapted: tuple[str, ...]
    plain: frozenset[str] = frozenset()
    auxiliary: Callable[[Any], frozenset[str]] = field(default=lambda config: frozenset())
