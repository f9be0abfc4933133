"""The DeepSeek decoders: latent attention, shared and routed experts, multi-token prediction.

Source: DeepSeek-V2 (arXiv 2405.04434) and DeepSeek-V3 (arXiv 2412.19437), section 2 of each, and the conventions of
the released weights where the two differ.
Axes as in `hadal.models.decoder`, and: N tokens of a batch in one row, P experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hadal.models.balance import Counted, load_metrics
from hadal.models.blocks import Experts, FeedForward, Norm
from hadal.models.cache import Columns
from hadal.models.decoder import Decoder, Layer, Rotary
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.deepseek.latent_attention import LatentAttention
from hadal.models.deepseek.router import Router, update_router_biases
from hadal.ops.experts import routed_experts
from hadal.ops.mask import Mask
from hadal.ops.rope import Rope


class MixtureOfExperts(nn.Module):
    """Shared experts, which see every token, plus the routed ones."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts.unfilled(config.n_routed_experts, config.hidden_size, config.moe_intermediate_size)
        self.shared_experts = FeedForward(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, x_BTD: Tensor, counted: Counted | None) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        expert_NP, weight_NP = self.gate(x_BTD, counted)
        routed = routed_experts(x_ND, expert_NP, weight_NP, *self.experts.matrices())
        return self.shared_experts(x_BTD) + routed.view_as(x_BTD)


class DeepseekLayer(Layer):
    """x + attention(norm x), then x + feed-forward or mixture(norm x)."""

    def __init__(self, config: DeepseekConfig, mixture: bool) -> None:
        cached = ((1, config.kv_lora_rank), (1, config.qk_rope_head_dim))
        super().__init__(cached, Rope(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling), mixture)
        self.input_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.attention = LatentAttention(config)
        self.post_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp: MixtureOfExperts | FeedForward
        if mixture:
            self.mlp = MixtureOfExperts(config)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary,
        mask: Mask,
        cache: Columns | None,
        index: int,
        counted: Counted | None,
    ) -> Tensor:
        x = x_BTD + self.attention(self.input_norm(x_BTD), rotary, mask, cache, index)
        normed = self.post_norm(x)
        return x + (self.mlp(normed, counted) if isinstance(self.mlp, MixtureOfExperts) else self.mlp(normed))


class NextToken(nn.Module):
    """Multi-token prediction of depth 1: one more layer, which is also told the next token (section 2.2)."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = Norm(D, eps), Norm(D, eps)
        self.eh_proj = nn.Linear(2 * D, D, bias=False)  # the embedding's half comes first in released weights
        self.layer = DeepseekLayer(config, mixture=True)
        self.head_norm = Norm(D, eps)


class Deepseek(Decoder):
    """Decoder of the DeepSeek V2 and V3 families."""

    config: DeepseekConfig

    def __init__(self, config: DeepseekConfig) -> None:
        first = config.first_k_dense_replace
        super().__init__(config, (DeepseekLayer(config, i >= first) for i in range(config.num_hidden_layers)))
        if config.num_nextn_predict_layers:
            self.mtp = NextToken(config)

    def mtp_layers(self) -> list[Layer]:
        return [self.mtp.layer] if self.config.num_nextn_predict_layers else []

    def mtp_hidden(
        self,
        hidden_BTD: Tensor,
        next_ids_BT: Tensor,
        cache: Columns | None = None,
        positions_BT: Tensor | None = None,
        counted: Counted | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        T = hidden_BTD.shape[1]
        tables, mask = self._surroundings(T, cache, positions_BT, documents_BT)
        joined = torch.cat([self.mtp.enorm(self.embedded(next_ids_BT)), self.mtp.hnorm(hidden_BTD)], dim=-1)
        x = self._run(self.mtp.layer, self.mtp.eh_proj(joined), tables, mask, cache, 0, counted)
        if cache is not None:
            cache.advance(T)
        return self.mtp.head_norm(x)

    def after_update(self, router_bias_rate: float) -> None:
        update_router_biases(self, router_bias_rate)

    def load_metrics(self) -> list[dict[str, float]]:
        layers = {id(module): index for index, module in enumerate([*self.layers, *self.mtp_layers()])}
        return [
            {"layer": index} | load_metrics(module.mlp.gate.load)
            for module in self.modules()
            if (index := layers.get(id(module))) is not None and isinstance(module.mlp, MixtureOfExperts)
        ]

    def extra_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if name.endswith("correction_bias")}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.extra_state().items():
            tensor.copy_(state[name])
        self.changed()
