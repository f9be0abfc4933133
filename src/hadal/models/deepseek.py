"""The DeepSeek-V3 decoder: multi-head latent attention (MLA), shared and routed experts, multi-token prediction.

Source: DeepSeek-V3 Technical Report, section 2 (arXiv 2412.19437), and the conventions of the released weights.
Axes as in `hadal.models.decoder`, and: C latent (kv_lora_rank), R rotated channels, N tokens of a batch in one
row, E routed experts, P experts of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadal.configs.models import DeepseekConfig
from hadal.models.cache import Columns
from hadal.models.decoder import Decoder, Norm
from hadal.models.dense import FeedForward
from hadal.ops.attention import attend, causal_bias
from hadal.ops.experts import routed_experts
from hadal.ops.norm import rotate_pairs

LATENT_EPS = 1e-6
"""The released code's norms inside attention have this whatever rms_norm_eps says."""


class LatentAttention(nn.Module):
    """Causal attention whose keys and values are read from one small latent for each token.

    The cache holds that latent, normed, and one rotated key that all heads share: C + R numbers a token.
    """

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.rank, self.q_rank = config.kv_lora_rank, config.q_lora_rank
        hidden, query = config.hidden_size, self.heads * (self.nope + self.rope)
        if self.q_rank is None:
            self.q_proj = nn.Linear(hidden, query, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, self.q_rank, bias=False)
            self.q_a_layernorm = Norm(self.q_rank, LATENT_EPS)
            self.q_b_proj = nn.Linear(self.q_rank, query, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope, bias=False)
        self.kv_a_layernorm = Norm(self.rank, LATENT_EPS)
        self.kv_b_proj = nn.Linear(self.rank, self.heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(self.heads * self.value, hidden, bias=False)

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor, cache: Columns | None, index: int
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        H = self.heads
        if self.q_rank is None:
            query = self.q_proj(x_BTD)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        q_BTHK = rotate_pairs(query.view(B, T, H, self.nope + self.rope), *rotary)
        latent, key = self.kv_a_proj_with_mqa(x_BTD).split([self.rank, self.rope], dim=-1)
        latent, key = self.kv_a_layernorm(latent)[:, None], rotate_pairs(key[:, :, None], *rotary).transpose(1, 2)
        if cache is not None:
            latent, key = cache.update(index, latent, key)
        if cache is not None and T == 1:
            return self.o_proj(self._absorbed(q_BTHK, latent, key, bias))
        S = latent.shape[2]
        expanded = self.kv_b_proj(latent[:, 0]).view(B, S, H, self.nope + self.value).transpose(1, 2)
        k_nope, v_BHSV = expanded.split([self.nope, self.value], dim=-1)
        k_BHSK = torch.cat([k_nope, key.expand(B, H, S, self.rope)], dim=-1)
        return self.o_proj(attend(q_BTHK, k_BHSK, v_BHSV, bias, (self.nope + self.rope) ** -0.5))

    def _absorbed(self, q_B1HK: Tensor, latent_B1SC: Tensor, key_B1SR: Tensor, bias: Tensor) -> Tensor:
        """Attention over the latents themselves: the expansion is applied to the query and to the result."""
        B, H = len(q_B1HK), self.heads
        up_HOC = self.kv_b_proj.weight.view(H, self.nope + self.value, self.rank)
        q_nope, q_rope = q_B1HK[:, 0].split([self.nope, self.rope], dim=-1)
        query = torch.bmm(q_nope.transpose(0, 1), up_HOC[:, : self.nope]).transpose(0, 1)
        scale = (self.nope + self.rope) ** -0.5
        scores = torch.baddbmm(bias.expand(B, H, -1), query, latent_B1SC[:, 0].mT, alpha=scale, beta=1)
        scores = torch.baddbmm(scores, q_rope, key_B1SR[:, 0].mT, alpha=scale)
        mixed_BHC = torch.bmm(torch.softmax(scores, dim=-1), latent_B1SC[:, 0])
        out = torch.bmm(mixed_BHC.transpose(0, 1), up_HOC[:, self.nope :].mT)
        return out.transpose(0, 1).reshape(B, 1, H * self.value)


class Router(nn.Module):
    """Which experts a token visits, and with what weight; float32 whatever the model computes in.

    The bias decides the choice only: it moves against the load, so that experts are balanced without a loss
    (arXiv 2412.19437, section 2.1.2).
    """

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.config = config
        experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        # Choices that fell on each expert since the last update, in training passes only.
        self.register_buffer("load", torch.zeros(experts, dtype=torch.long), persistent=False)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Experts [N, P], their weights [N, P], and how many choices fell on each expert."""
        c = self.config
        wide = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
        scores_NE = F.linear(x_ND.to(wide), self.weight.to(wide)).sigmoid()
        with torch.no_grad():
            preference = scores_NE + self.e_score_correction_bias
            if c.n_group > 1:
                grouped = preference.view(len(x_ND), c.n_group, -1)
                best = grouped.topk(2, dim=-1)[0].sum(-1).topk(c.topk_group, dim=-1)[1]
                shut = torch.ones(grouped.shape[:2], dtype=torch.bool, device=x_ND.device).scatter_(1, best, False)
                preference = grouped.masked_fill(shut[:, :, None], float("-inf")).flatten(1)
            expert_NP = preference.topk(c.num_experts_per_tok, dim=-1)[1]
            load = expert_NP.flatten().bincount(minlength=c.n_routed_experts)
        if self.training and torch.is_grad_enabled():
            self.load += load
        weight_NP = scores_NE.gather(1, expert_NP)
        if c.norm_topk_prob:
            weight_NP = weight_NP / weight_NP.sum(-1, keepdim=True)
        return expert_NP, weight_NP * c.routed_scaling_factor, load.tolist()


class Experts(nn.Module):
    """The routed experts' matrices, stacked."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        E, D, I = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * I, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, I))


class MixtureOfExperts(nn.Module):
    """Shared experts, which see every token, plus the routed ones."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = FeedForward(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        expert_NP, weight_NP, loads = self.gate(x_ND)
        experts = self.experts
        routed = routed_experts(x_ND, expert_NP, weight_NP, experts.gate_up_proj, experts.down_proj, loads)
        return self.shared_experts(x_BTD) + routed.view_as(x_BTD)


class DeepseekLayer(nn.Module):
    """x + attention(norm x), then x + feed-forward or mixture(norm x)."""

    def __init__(self, config: DeepseekConfig, mixture: bool) -> None:
        super().__init__()
        self.input_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.attention = LatentAttention(config)
        self.post_norm = Norm(config.hidden_size, config.rms_norm_eps)
        dense = (config.hidden_size, config.intermediate_size)
        self.mlp = MixtureOfExperts(config) if mixture else FeedForward(*dense)

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor, cache: Columns | None, index: int
    ) -> Tensor:
        x = x_BTD + self.attention(self.input_norm(x_BTD), rotary, bias, cache, index)
        return x + self.mlp(self.post_norm(x))


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
    """DeepSeek-V3-shaped decoder."""

    config: DeepseekConfig

    def __init__(self, config: DeepseekConfig) -> None:
        first = config.first_k_dense_replace
        layers = nn.ModuleList(DeepseekLayer(config, i >= first) for i in range(config.num_hidden_layers))
        super().__init__(config, layers, rotary_dim=config.qk_rope_head_dim)
        self.widths = [(1, config.kv_lora_rank), (1, config.qk_rope_head_dim)]
        if config.num_nextn_predict_layers:
            self.mtp = NextToken(config)

    def cache_widths(self) -> list[tuple[int, int]]:
        return self.widths

    def mtp_hidden(self, hidden_BTD: Tensor, next_ids_BT: Tensor) -> Tensor:
        """Hidden states [B, T, D] whose `logits` predict the token after the next one.

        hidden: what `forward` gave for positions 0..T-1; next_ids: the tokens of positions 1..T.
        """
        T = hidden_BTD.shape[1]
        rotary = (self.cos[:T, None].to(self.dtype), self.sin[:T, None].to(self.dtype))
        joined = torch.cat([self.mtp.enorm(self.embed(next_ids_BT)), self.mtp.hnorm(hidden_BTD)], dim=-1)
        x = self.mtp.layer(self.mtp.eh_proj(joined), rotary, causal_bias(T, self.dtype), None, len(self.layers))
        return self.mtp.head_norm(x)

    def after_update(self, router_bias_rate: float) -> None:
        update_router_biases(self, router_bias_rate)

    def extra_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if name.endswith("correction_bias")}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.extra_state().items():
            tensor.copy_(state[name])


def routers(model: nn.Module) -> list[Router]:
    """Every router of a model, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, Router)]


@torch.no_grad()
def update_router_biases(model: nn.Module, rate: float) -> None:
    """Aux-loss-free balancing after an update: b += rate * sign(mean load - load), then count anew."""
    for router in routers(model):
        load = router.load.to(torch.float64)
        router.e_score_correction_bias += rate * (load.mean() - load).sign().to(router.e_score_correction_bias.dtype)
        router.load.zero_()
