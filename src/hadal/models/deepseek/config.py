"""The shapes of the DeepSeek decoders, as numbers only: each class is a model type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hadal.errors import UserError
from hadal.models.config import ModelConfig, check_divides, check_even, check_fixed, check_positive
from hadal.ops.rope import RopeScaling, YarnScaling


@dataclass(frozen=True)
class DeepseekConfig(ModelConfig):
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
        check_positive(self, besides=("first_k_dense_replace", "num_nextn_predict_layers"))
        check_fixed(self)
        check_even(self, "qk_rope_head_dim")
        if self.topk_method not in self.topk_methods:
            raise UserError(
                f"config.json has topk_method {self.topk_method!r}.",
                f"hadal runs {self.model_type} with {' or '.join(self.topk_methods)}.",
            )
        check_divides(self, "n_group", "n_routed_experts")
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

    @property
    def experts_per_token(self) -> int:
        return self.num_experts_per_tok

    @property
    def predicts_ahead(self) -> int:
        return self.num_nextn_predict_layers

    def without_mtp(self) -> Self:
        return replace(self, num_nextn_predict_layers=0)

    def fixed(self) -> dict[str, Any]:
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
