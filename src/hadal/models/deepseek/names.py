"""The released names of a DeepSeek decoder's tensors."""

from __future__ import annotations

from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.family import HUGGING_FACE, Layout
from hadal.models.names import COMMON, GATE_UP


def _renames(config: DeepseekConfig) -> list[tuple[str, str]]:
    extra = f"layers.{config.num_hidden_layers}."  # the module is numbered as one more layer
    mtp = [(r"^mtp\.layer\.", extra), (r"^mtp\.head_norm\.", extra + "shared_head.norm."), (r"^mtp\.", extra)]
    return [*mtp, *COMMON]


def _mtp(config: DeepseekConfig) -> str | None:
    return f"model.layers.{config.num_hidden_layers}." if config.num_nextn_predict_layers else None


LAYOUTS = {HUGGING_FACE: Layout(renames=_renames, joined=lambda config: GATE_UP, mtp=_mtp)}
