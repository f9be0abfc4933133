"""The shapes of the model families, as numbers only.

Field names are those of Hugging Face's config.json, so that `to_dict` is what transformers reads and
`from_dict` takes what it wrote. Nothing here imports torch: help texts and cost sums need shapes only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from hadal.configs.reading import read_dataclass
from hadal.errors import UserError


@dataclass(frozen=True)
class DenseConfig:
    """A decoder of the Qwen3 family: grouped-query attention with q/k norm, SwiGLU, no biases."""

    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"

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

    def __post_init__(self) -> None:
        _positive(self)
        _divides(self, "num_key_value_heads", "num_attention_heads")
        _even(self, "head_dim")

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json."""
        return _common(self) | self.fixed()

    def fixed(self) -> dict[str, Any]:
        """What config.json may say besides, and then has to say."""
        return {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


@dataclass(frozen=True)
class DeepseekConfig:
    """A decoder of the DeepSeek-V3 family: latent attention (MLA), shared and routed experts, optional MTP.

    Source: DeepSeek-V3 Technical Report, section 2 (arXiv 2412.19437).
    """

    model_type: ClassVar[str] = "deepseek_v3"
    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 384
    moe_intermediate_size: int = 128
    first_k_dense_replace: int = 1
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    q_lora_rank: int | None = None
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    num_nextn_predict_layers: int = 0
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _positive(self, besides=("first_k_dense_replace", "num_nextn_predict_layers"))
        _divides(self, "n_group", "n_routed_experts")
        _even(self, "qk_rope_head_dim")
        per_group = self.n_routed_experts // self.n_group
        if self.topk_group > self.n_group or (self.n_group > 1 and per_group < 2):
            raise UserError(
                f"The model has {self.n_group} groups of {per_group} experts, {self.topk_group} of them open.",
                "A group needs two experts, and no more can be open than there are.",
            )
        if self.num_experts_per_tok > self.topk_group * per_group:
            raise UserError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, and a token can choose from "
                f"{self.topk_group * per_group} experts."
            )
        if self.num_nextn_predict_layers > 1:
            raise UserError(
                f"num_nextn_predict_layers is {self.num_nextn_predict_layers}.", "hadal predicts 0 or 1 tokens ahead."
            )

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json."""
        return _common(self) | self.fixed()

    def fixed(self) -> dict[str, Any]:
        """What config.json may say besides, and then has to say."""
        return {
            "hidden_act": "silu",
            "attention_bias": False,
            "num_key_value_heads": self.num_attention_heads,
            "rope_interleave": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
        }


ModelConfig = DenseConfig | DeepseekConfig


def _positive(config: ModelConfig, besides: tuple[str, ...] = ()) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        least = 0 if field.name in besides or isinstance(value, float) else 1
        if isinstance(value, int | float) and not isinstance(value, bool) and value < least:
            raise UserError(f"{field.name} is {value}.", f"It must be at least {least}.")


def _divides(config: ModelConfig, part: str, whole: str) -> None:
    if getattr(config, whole) % getattr(config, part):
        raise UserError(f"{part} is {getattr(config, part)}, which does not divide {whole} {getattr(config, whole)}.")


def _even(config: ModelConfig, name: str) -> None:
    if getattr(config, name) % 2:
        raise UserError(f"{name} is {getattr(config, name)}.", "Rotary positions turn pairs: it must be even.")


def _common(config: ModelConfig) -> dict[str, Any]:
    head = {"architectures": [config.architecture], "model_type": config.model_type, "dtype": "float32"}
    return head | asdict(config)


def from_dict(data: dict[str, Any]) -> ModelConfig:
    """The typed config for the contents of a config.json. UserError for a family that hadal does not know."""
    kinds: dict[str, type[DenseConfig] | type[DeepseekConfig]] = {
        c.model_type: c for c in (DenseConfig, DeepseekConfig)
    }
    kind = kinds.get(str(data.get("model_type")))
    if kind is None:
        raise UserError(
            f"config.json has model_type {data.get('model_type')!r}.",
            f"hadal reads {', '.join(sorted(kinds))}.",
        )
    data = dict(data)
    # transformers 5 writes rope_theta inside rope_parameters (older releases: at the top level).
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    data.setdefault("rope_theta", rope.get("rope_theta", 10_000.0))
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"config.json asks for rope scaling {rope}.", "hadal has plain RoPE only, so far.")
    known = {f.name for f in fields(kind)}
    missing = {"vocab_size", "hidden_size", "num_hidden_layers"} - data.keys()
    if missing:
        raise UserError(f"config.json lacks {', '.join(sorted(missing))}.", "Is it the whole file of a checkpoint?")
    config = read_dataclass(kind, {key: value for key, value in data.items() if key in known}, "config.json")
    for key, value in config.fixed().items():
        if data.get(key, value) != value:
            raise UserError(f"config.json has {key} {data[key]!r}.", f"hadal runs this family with {value!r} only.")
    return config
