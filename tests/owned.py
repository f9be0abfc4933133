"""How much memory a copy takes beside its model. Not a test itself."""

from __future__ import annotations

from hadal.models.decoder import Decoder
from hadal.models.lora import adapted_modules
from hadal.models.packed import PackedExperts, PackedLinear


def own_bytes(merged: Decoder, model: Decoder) -> int:
    """Bytes of packed matrices that a `merged_copy` does not share with its model."""
    adapted = dict(adapted_modules(model))
    own = {name: module for name, module in merged.named_modules() if name in adapted}
    if "head" in adapted and merged.packed_head is not None:
        own["head"] = merged.packed_head
    return sum(module.nbytes for module in own.values() if isinstance(module, PackedLinear | PackedExperts))
