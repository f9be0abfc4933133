"""The shapes of the model families, as numbers only.

Field names are those of Hugging Face's config.json, so that `to_dict` is what transformers reads and
`from_dict` takes what it wrote. Nothing here imports torch: help texts and cost sums need shapes only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from hadal.configs.rope import RopeScaling, YarnScaling, read_rope, rope_to_dict
from hadal.errors import UserError
from hadal.reading import read_dataclass


@dataclass(frozen=True)
class DenseConfig:
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
        _positive(self)
        _as_fixed(self)
        _divides(self, "num_key_value_heads", "num_attention_heads")
        _even(self, "head_dim")

    @property
    def qkv_bias(self) -> bool:
        """Whether query, key and value have a bias."""
        return self.attention_bias

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json."""
        return _common(self) | self.fixed()

    def fixed(self) -> dict[str, Any]:
        """What config.json may say besides, and then has to say."""
        return {"hidden_act": "silu", "use_sliding_window": False, "attention_dropout": 0.0, "mlp_bias": False}

    @classmethod
    def absent(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Values of fields that config.json may leave out (or hold null in); other fields have to be there."""
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
class DeepseekConfig:
    """A decoder of the DeepSeek-V3 family: latent attention (MLA), shared and routed experts, optional MTP.

    `aux_loss_alpha` weighs the balance loss, over each sequence where `seq_aux`; 0 is none.
    Source: DeepSeek-V3 Technical Report, section 2 (arXiv 2412.19437).
    """

    model_type: ClassVar[str] = "deepseek_v3"
    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"
    scoring_func: ClassVar[str] = "sigmoid"
    topk_methods: ClassVar[tuple[str, ...]] = ("noaux_tc",)

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
    attention_bias: bool = False
    topk_method: str = "noaux_tc"
    aux_loss_alpha: float = 0.0
    seq_aux: bool = True
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        _positive(self, besides=("first_k_dense_replace", "num_nextn_predict_layers"))
        _as_fixed(self)
        _even(self, "qk_rope_head_dim")
        if self.topk_method not in self.topk_methods:
            raise UserError(
                f"config.json has topk_method {self.topk_method!r}.",
                f"hadal runs {self.model_type} with {' or '.join(self.topk_methods)}.",
            )
        _divides(self, "n_group", "n_routed_experts")
        per_group = self.n_routed_experts // self.n_group
        if self.topk_group > self.n_group or (self.n_group > 1 and per_group < 2):
            raise UserError(
                f"The model has {self.n_group} groups of {per_group} experts, {self.topk_group} of them open.",
                "A group needs two experts, and no more can be open than there are.",
            )
        if self.num_experts_per_tok > self.open_groups * per_group:
            raise UserError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, and a token can choose from "
                f"{self.open_groups * per_group} experts."
            )
        if self.num_nextn_predict_layers > 1:
            raise UserError(
                f"num_nextn_predict_layers is {self.num_nextn_predict_layers}.", "hadal predicts 0 or 1 tokens ahead."
            )
        if not isinstance(self.rope_scaling, YarnScaling | None):
            raise UserError(f"config.json asks for rope scaling {self.rope_scaling.rope_type!r} of {self.model_type}.")

    @property
    def open_groups(self) -> int:
        """How many groups of experts a token may choose from; the greedy choice knows no groups."""
        return self.n_group if self.topk_method == "greedy" else self.topk_group

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json."""
        return _common(self) | self.fixed()

    def fixed(self) -> dict[str, Any]:
        """What config.json may say besides, and then has to say."""
        return {
            "hidden_act": "silu",
            "num_key_value_heads": self.num_attention_heads,
            "rope_interleave": True,
            "scoring_func": self.scoring_func,
            "moe_layer_freq": 1,
            "attention_dropout": 0.0,
            "mlp_bias": False,
        }

    @classmethod
    def absent(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Values of fields that config.json may leave out (or hold null in); other fields have to be there."""
        return {
            "attention_bias": False,
            "topk_method": cls.topk_methods[0],
            "aux_loss_alpha": 0.0,
            "seq_aux": True,
            "num_nextn_predict_layers": 0,
        }


@dataclass(frozen=True)
class DeepseekV2Config(DeepseekConfig):
    """DeepSeek-V2 and V2-Lite: a softmax over the experts, no selection bias, the chosen weights not normalised.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.
    """

    model_type: ClassVar[str] = "deepseek_v2"
    architecture: ClassVar[str] = "DeepseekV2ForCausalLM"
    scoring_func: ClassVar[str] = "softmax"
    topk_methods: ClassVar[tuple[str, ...]] = ("greedy", "group_limited_greedy")

    norm_topk_prob: bool = False
    topk_method: str = "greedy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_nextn_predict_layers:
            raise UserError("num_nextn_predict_layers is set.", "The V2 family has no such module.")

    @classmethod
    def absent(cls, data: dict[str, Any]) -> dict[str, Any]:
        gate = {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0}
        return super().absent(data) | gate


ModelConfig = DenseConfig | DeepseekConfig
KINDS: dict[str, type[DenseConfig] | type[DeepseekConfig]] = {
    kind.model_type: kind for kind in (DenseConfig, Qwen2Config, LlamaConfig, DeepseekV2Config, DeepseekConfig)
}


def _positive(config: ModelConfig, besides: tuple[str, ...] = ()) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        least = 0 if field.name in besides or isinstance(value, float) else 1
        if isinstance(value, int | float) and not isinstance(value, bool) and value < least:
            raise UserError(f"{field.name} is {value}.", f"It must be at least {least}.")


def _as_fixed(config: ModelConfig) -> None:
    for key, value in config.fixed().items():
        if getattr(config, key, value) != value:
            raise UserError(f"{key} is {getattr(config, key)!r}.", f"{config.model_type} has {value!r} only.")


def _divides(config: ModelConfig, part: str, whole: str) -> None:
    if getattr(config, whole) % getattr(config, part):
        raise UserError(f"{part} is {getattr(config, part)}, which does not divide {whole} {getattr(config, whole)}.")


def _even(config: ModelConfig, name: str) -> None:
    if getattr(config, name) % 2:
        raise UserError(f"{name} is {getattr(config, name)}.", "Rotary positions turn pairs: it must be even.")


def _common(config: ModelConfig) -> dict[str, Any]:
    head = {"architectures": [config.architecture], "model_type": config.model_type, "dtype": "float32"}
    rope = {"rope_scaling": rope_to_dict(config.rope_scaling) if config.rope_scaling else None}
    return head | asdict(config) | rope


_OPTIONAL = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}
# Keys of other families that change what is computed, with the value at which they do not.
_FOREIGN: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "attention_multiplier": None,
    "index_topk": None,
}


def from_dict(data: dict[str, Any]) -> ModelConfig:
    """The typed config for the contents of a config.json.

    UserError for a family that hadal does not know, and for what it says that hadal would not honour.
    """
    kind = KINDS.get(str(data.get("model_type")))
    if kind is None:
        raise UserError(
            f"config.json has model_type {data.get('model_type')!r}.", f"hadal reads {', '.join(sorted(KINDS))}."
        )
    theta, scaling = read_rope(data)
    optional = _OPTIONAL | kind.absent(data)
    known = {f.name for f in fields(kind)} - {"rope_scaling"}
    values = {key: data[key] for key in known & data.keys() if data[key] is not None or key not in optional}
    values = optional | values | {"rope_theta": theta}
    missing = known - values.keys()
    if missing:
        raise UserError(f"config.json lacks {', '.join(sorted(missing))}.", "Is it the whole file of a checkpoint?")
    config = replace(read_dataclass(kind, values, "config.json"), rope_scaling=scaling)
    _refuse_windows(data, config.num_hidden_layers)
    for key, value in (_FOREIGN | config.fixed()).items():
        if key != "use_sliding_window" and data.get(key, value) not in (value, None):
            raise UserError(f"config.json has {key} {data[key]!r}.", f"hadal runs this family with {value!r} only.")
    return config


def _refuse_windows(data: dict[str, Any], layers: int) -> None:
    """Sliding windows are in use in some layers, if switched on, with a length, from a layer that there is."""
    kinds = data.get("layer_types") or []
    begin = data.get("max_window_layers")
    in_use = data.get("use_sliding_window") and data.get("sliding_window") is not None
    if any(kind != "full_attention" for kind in kinds):
        raise UserError(f"config.json has layer_types {sorted(set(kinds))}.", "hadal has full attention only.")
    if not kinds and in_use and (not isinstance(begin, int) or begin < layers):
        raise UserError(
            f"config.json has use_sliding_window true, sliding_window {data['sliding_window']!r}.",
            "hadal has full attention only.",
        )
