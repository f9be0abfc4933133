"""The shapes of the dense decoders, as numbers only: each class is a model type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hadal.errors import UserError
from hadal.models.config import ModelConfig, check_divides, check_even, check_fixed, check_positive
from hadal.ops.rope import RopeScaling


@dataclass(frozen=True)
class DenseConfig(ModelConfig):
    """A decoder with grouped-query attention and SwiGLU; this class is Qwen3, with normed queries and keys.

    `attention_bias` is a bias on query, key, value and output, `mlp_bias` on the three feed-forward matrices.
    """

    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    qk_norm: ClassVar[bool] = True

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 384
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check_positive(self)
        check_fixed(self)
        check_divides(self, "num_key_value_heads", "num_attention_heads")
        check_even(self, "head_dim")

    @property
    def qkv_bias(self) -> bool:
        """Whether query, key and value have a bias."""
        return self.attention_bias

    def window(self, layer: int) -> int:
        """How many positions a layer's queries look at, themselves included; 0: all."""
        return 0

    def turns(self, layer: int) -> bool:
        """Whether a layer has rotary positions."""
        return True

    def fixed(self) -> dict[str, Any]:
        return {"hidden_act": "silu", "use_sliding_window": False, "attention_dropout": 0.0, "mlp_bias": False}

    @classmethod
    def absent(cls, data: dict[str, Any]) -> dict[str, Any]:
        heads, hidden = data.get("num_attention_heads"), data.get("hidden_size")
        known = {"num_key_value_heads": heads, "attention_bias": False, "mlp_bias": False}
        if cls is not DenseConfig and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
            known["head_dim"] = hidden // heads
        return known


@dataclass(frozen=True)
class Qwen2Config(DenseConfig):
    """Qwen2 and Qwen2.5, R1-Distill-Qwen: no q/k norm, biases on query, key and value and on nothing else."""

    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    qk_norm: ClassVar[bool] = False

    @property
    def qkv_bias(self) -> bool:
        return True

    def fixed(self) -> dict[str, Any]:
        return super().fixed() | {"attention_bias": False}


@dataclass(frozen=True)
class LlamaConfig(DenseConfig):
    """Llama 2 and 3, R1-Distill-Llama: no q/k norm."""

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    qk_norm: ClassVar[bool] = False

    def fixed(self) -> dict[str, Any]:
        return {"hidden_act": "silu", "attention_dropout": 0.0}


@dataclass(frozen=True)
class MistralConfig(DenseConfig):
    """Mistral 7B and what followed (arXiv 2310.06825): no biases, no q/k norm; all layers have the `sliding_window`."""

    model_type: ClassVar[str] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"
    qk_norm: ClassVar[bool] = False

    sliding_window: int | None = None

    def window(self, layer: int) -> int:
        return self.sliding_window or 0

    def fixed(self) -> dict[str, Any]:
        return {"hidden_act": "silu", "attention_dropout": 0.0, "attention_bias": False, "mlp_bias": False}

    @classmethod
    def absent(cls, data: dict[str, Any]) -> dict[str, Any]:
        # Released files without the key mean the first model's window; null is no window.
        return super().absent(data) | {"sliding_window": data.get("sliding_window", 4096)}

    def refuse(self, data: dict[str, Any]) -> None:
        alike = "full_attention" if self.sliding_window is None else "sliding_attention"
        if set(data.get("layer_types") or []) - {alike}:
            kinds = sorted(set(data["layer_types"]))
            raise UserError(f"config.json has layer_types {kinds}.", "hadal has mistral's layers all alike only.")


@dataclass(frozen=True)
class SmolLM3Config(DenseConfig):
    """SmolLM3: no q/k norm, and some layers without rotary positions (NoPE, arXiv 2501.18795).

    `no_rope_layers` has a 0 for each of those and a 1 for the others; without it every `no_rope_layer_interval`-th is
    one.
    """

    model_type: ClassVar[str] = "smollm3"
    architecture: ClassVar[str] = "SmolLM3ForCausalLM"
    qk_norm: ClassVar[bool] = False
    default_theta: ClassVar[float] = 2_000_000.0

    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.no_rope_layers is not None and len(self.no_rope_layers) < self.num_hidden_layers:
            raise UserError(
                f"no_rope_layers has {len(self.no_rope_layers)} entries, and the model {self.num_hidden_layers} layers."
            )

    def turns(self, layer: int) -> bool:
        if self.no_rope_layers is not None:
            return bool(self.no_rope_layers[layer])
        return (layer + 1) % self.no_rope_layer_interval != 0

    def fixed(self) -> dict[str, Any]:
        return {"hidden_act": "silu", "use_sliding_window": False, "attention_dropout": 0.0}

    @classmethod
    def absent(cls, data: dict[str, Any]) -> dict[str, Any]:
        return super().absent(data) | {"no_rope_layers": None, "no_rope_layer_interval": 4}
