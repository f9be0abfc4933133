"""The shape of Gemma 3's text models, as numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hadal.errors import UserError
from hadal.models.config import ModelConfig, check_divides, check_even, check_fixed, check_positive
from hadal.ops.rope import RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Gemma3Config(ModelConfig):
    """Gemma 3, text only (arXiv 2503.19786): most layers look at a window and have a base of their own.

    `rope_theta` is the base of full layers, `rope_local_base_freq` of the others. Which are which `layer_types` says,
    and without it every `sliding_window_pattern`-th is full. Scores are divided by the root of `query_pre_attn_scalar`.
    """

    model_type: ClassVar[str] = "gemma3_text"
    architecture: ClassVar[str] = "Gemma3ForCausalLM"
    default_theta: ClassVar[float] = 1_000_000.0

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 384
    max_position_embeddings: int = 1024
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    sliding_window: int = 512
    sliding_window_pattern: int = 6
    layer_types: tuple[str, ...] | None = None
    query_pre_attn_scalar: int = 32
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    attention_bias: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check_positive(self)
        check_fixed(self)
        check_divides(self, "num_key_value_heads", "num_attention_heads")
        check_even(self, "head_dim")
        kinds = self.layer_types
        if kinds is not None and (len(kinds) != self.num_hidden_layers or set(kinds) - {FULL, SLIDING}):
            raise UserError(
                f"layer_types has {len(kinds)} entries of {sorted(set(kinds))}.",
                f"It must have {self.num_hidden_layers}, each {FULL} or {SLIDING}.",
            )

    def window(self, layer: int) -> int:
        """How many positions a layer's queries look at, themselves included; 0: all."""
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == SLIDING else 0
        return self.sliding_window if (layer + 1) % self.sliding_window_pattern else 0

    def fixed(self) -> dict[str, Any]:
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_dropout": 0.0,
            "use_bidirectional_attention": False,
        }

    @classmethod
    def absent(cls, data: dict[str, Any]) -> dict[str, Any]:
        known = {"layer_types": None, "sliding_window_pattern": 6, "rope_local_base_freq": 10_000.0}
        return known | {"attention_bias": False, "tie_word_embeddings": True}

    def refuse(self, data: dict[str, Any]) -> None:
        """Nothing: windows are honoured."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """As for all; transformers 5 writes the rotary positions of both kinds of layer into `rope_parameters`."""
        rope = data.get("rope_parameters")
        if isinstance(rope, dict) and (FULL in rope or SLIDING in rope):
            local = rope.get(SLIDING) or {}
            if local.get("rope_type", "default") != "default":
                raise UserError(f"config.json stretches {SLIDING} by {local['rope_type']!r}.", "hadal does not.")
            base = local.get("rope_theta", data.get("rope_local_base_freq"))
            data = data | {"rope_parameters": rope.get(FULL), "rope_local_base_freq": base}
        return super().from_dict(data)
