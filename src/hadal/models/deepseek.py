"""The DeepSeek decoders: multi-head latent attention (MLA), shared and routed experts, multi-token prediction.

Source: DeepSeek-V2 (arXiv 2405.04434) and DeepSeek-V3 (arXiv 2412.19437), section 2 of each, and the conventions of
the released weights where the two differ.
Axes as in `hadal.models.decoder`, and: C latent (kv_lora_rank), R rotated channels, N tokens of a batch in one
row, E routed experts, P experts of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadal.configs.models import DeepseekConfig
from hadal.configs.rope import YarnScaling
from hadal.models.balance import Counted, balance_loss, load_metrics, with_loss
from hadal.models.cache import Columns
from hadal.models.decoder import Decoder, Norm, full_weight, recomputing
from hadal.models.dense import FeedForward
from hadal.ops.attention import attend, batched_rows, weighted_sum
from hadal.ops.exact import linear_rows, sigmoid_rows
from hadal.ops.experts import routed_experts
from hadal.ops.norm import rotate_pairs

LATENT_EPS = 1e-6
"""The released code's norms inside attention have this whatever rms_norm_eps says."""


def widened(x: Tensor) -> Tensor:
    """x in float32, where it is narrower and on a CPU, whose products round their sums to their inputs' dtype.

    Scores of 8 bits differ between the two forms of one attention, and so the sampler from the trainer: by 3e-3 in
    log-probability on a trained model, instead of 4e-4. On a GPU that would read every latent twice; left, unmeasured.
    """
    return x.float() if x.device.type == "cpu" and x.dtype.itemsize < 4 else x


class LatentAttention(nn.Module):
    """Causal attention whose keys and values are read from one small latent for each token.

    The cache holds that latent, normed, and one rotated key that all heads share: C + R numbers a token.
    """

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.rank, self.q_rank = config.kv_lora_rank, config.q_lora_rank
        self.scale = (self.nope + self.rope) ** -0.5
        if isinstance(config.rope_scaling, YarnScaling):
            self.scale *= config.rope_scaling.softmax_factor
        hidden, query, bias = config.hidden_size, self.heads * (self.nope + self.rope), config.attention_bias
        if self.q_rank is None:
            self.q_proj = nn.Linear(hidden, query, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, self.q_rank, bias=bias)
            self.q_a_layernorm = Norm(self.q_rank, LATENT_EPS)
            self.q_b_proj = nn.Linear(self.q_rank, query, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope, bias=bias)
        self.kv_a_layernorm = Norm(self.rank, LATENT_EPS)
        self.kv_b_proj = nn.Linear(self.rank, self.heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(self.heads * self.value, hidden, bias=bias)

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
        if cache is None:
            return self.o_proj(self.expanded(q_BTHK, latent, key, bias))

        def form(q_BTHK: Tensor, latent_B1SC: Tensor, key_B1SR: Tensor, bias: Tensor) -> Tensor:
            absorb = cache.exact or self.absorbs(T, latent_B1SC.shape[2])
            return (self.absorbed if absorb else self.expanded)(q_BTHK, latent_B1SC, key_B1SR, bias)

        return self.o_proj(cache.attend(index, form, q_BTHK, (latent, key), bias, H))

    def absorbs(self, tokens: int, columns: int) -> bool:
        """Whether the absorbed form needs fewer multiplications for this many queries than expanding every column."""
        wider = 2 * self.rank + self.rope - (self.nope + self.rope + self.value)  # for each query and column
        return tokens == 1 or (columns > tokens and tokens * wider < self.rank * (self.nope + self.value))

    def expanded(self, q_BTHK: Tensor, latent_B1SC: Tensor, key_B1SR: Tensor, bias: Tensor) -> Tensor:
        """Attention over keys and values that are expanded from the latents; [B, T, H * V]."""
        B, S, H = len(q_BTHK), latent_B1SC.shape[2], self.heads
        wide = widened(latent_B1SC[:, 0])
        if wide.dtype == latent_B1SC.dtype:
            up = self.kv_b_proj(wide)
        else:
            up = F.linear(wide, widened(full_weight(self.kv_b_proj)))
        up = up.view(B, S, H, self.nope + self.value).transpose(1, 2)
        k_nope, v_BHSV = up.split([self.nope, self.value], dim=-1)
        k_BHSK = torch.cat([k_nope, widened(key_B1SR).expand(B, H, S, self.rope)], dim=-1)
        return attend(widened(q_BTHK), k_BHSK, v_BHSV, widened(bias), self.scale).to(q_BTHK.dtype)

    def absorbed(self, q_BTHK: Tensor, latent_B1SC: Tensor, key_B1SR: Tensor, bias: Tensor) -> Tensor:
        """Attention over the latents themselves, [B, T, H * V]: the expansion is applied to query and result.

        (W_UK c)^T q = c^T (W_UK^T q), and a sum of weighted W_UV c is W_UV of the weighted sum.
        """
        B, T, H, _ = q_BTHK.shape
        dtype, latent_BSC, key_BSR = q_BTHK.dtype, widened(latent_B1SC[:, 0]), widened(key_B1SR[:, 0])
        up_HOC = widened(full_weight(self.kv_b_proj)).view(H, self.nope + self.value, self.rank)
        q_nope, q_rope = widened(q_BTHK).split([self.nope, self.rope], dim=-1)
        q_HNO = q_nope.permute(2, 0, 1, 3).reshape(H, B * T, self.nope)
        query = batched_rows(q_HNO, up_HOC[:, : self.nope]).reshape(H, B, T, -1).transpose(0, 1).reshape(B, H * T, -1)
        q_rope = q_rope.transpose(1, 2).reshape(B, H * T, self.rope)
        mask = widened(bias).view(-1, 1, *bias.shape[-2:]).expand(B, H, -1, -1).reshape(B, H * T, -1)
        scores = torch.baddbmm(mask, query, latent_BSC.mT, alpha=self.scale, beta=1)
        scores = torch.baddbmm(scores, q_rope, key_BSR.mT, alpha=self.scale)
        mixed = weighted_sum(torch.softmax(scores, dim=-1), latent_BSC)
        mixed_HNC = mixed.view(B, H, T, -1).transpose(0, 1).reshape(H, B * T, -1)
        out = batched_rows(mixed_HNC, up_HOC[:, self.nope :].mT).reshape(H, B, T, -1)
        return out.permute(1, 2, 0, 3).reshape(B, T, H * self.value).to(dtype)


class Router(nn.Module):
    """Which experts a token visits, and with what weight; float32 whatever the model computes in.

    V3's bias decides the choice only: it moves against the load, so that experts are balanced without a loss
    (arXiv 2412.19437, section 2.1.2). A balance loss, where the config weighs one, reaches the gradient through
    the weights that this returns and needs nothing of the caller.
    """

    e_score_correction_bias: Tensor | None
    load: Tensor

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.config = config
        experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(experts, config.hidden_size))
        biased = config.topk_method == "noaux_tc"
        self.register_buffer("e_score_correction_bias", torch.zeros(experts) if biased else None)
        # Choices that real tokens made of each expert since the last update, in training passes only.
        self.register_buffer("load", torch.zeros(experts, dtype=torch.long, device="cpu"), persistent=False)

    def forward(self, x_BTD: Tensor, counted: Counted | None) -> tuple[Tensor, Tensor]:
        """Experts [N, P] and their weights [N, P]."""
        c = self.config
        wide = torch.float64 if x_BTD.dtype == torch.float64 else torch.float32
        x_ND = x_BTD.flatten(0, -2).to(wide)
        logits_NE = linear_rows(x_ND, self.weight.to(wide))
        scores_NE = sigmoid_rows(logits_NE) if c.scoring_func == "sigmoid" else logits_NE.softmax(-1)
        with torch.no_grad():
            expert_NP = self.choose(scores_NE)
        weight_NP = scores_NE.gather(1, expert_NP)
        if c.norm_topk_prob:
            weight_NP = weight_NP / weight_NP.sum(-1, keepdim=True)
        if not (c.norm_topk_prob and c.scoring_func == "softmax"):  # V2's released code scales or normalises
            weight_NP = weight_NP * c.routed_scaling_factor
        if self.training and torch.is_grad_enabled():
            counted = counted or Counted.of(x_BTD.new_ones(x_BTD.shape[:-1], dtype=torch.bool))
            if not recomputing():
                real_N = counted.sequence_BT.flatten() >= 0
                self.load += expert_NP[real_N].flatten().bincount(minlength=c.n_routed_experts)
            if c.aux_loss_alpha:
                loss = self._balance_loss(scores_NE, expert_NP, counted)
                weight_NP = with_loss(weight_NP, c.aux_loss_alpha * loss)
        return expert_NP, weight_NP

    def choose(self, scores_NE: Tensor) -> Tensor:
        """The P experts [N, P] of each token, by the config's method."""
        c = self.config
        preference = scores_NE
        if self.e_score_correction_bias is not None:
            preference = scores_NE + self.e_score_correction_bias
        if c.n_group > 1 and c.topk_method != "greedy":
            grouped = preference.view(len(scores_NE), c.n_group, -1)
            # A group is worth its best expert in V2, its best two in V3.
            best = grouped.topk(2, dim=-1)[0].sum(-1) if c.topk_method == "noaux_tc" else grouped.amax(-1)
            open_ = best.topk(c.topk_group, dim=-1)[1]
            shut = torch.ones_like(best, dtype=torch.bool).scatter_(1, open_, False)
            preference = grouped.masked_fill(shut[:, :, None], float("-inf")).flatten(1)
        return preference.topk(c.num_experts_per_tok, dim=-1)[1]

    def _balance_loss(self, scores_NE: Tensor, expert_NP: Tensor, counted: Counted) -> Tensor:
        sequence_N, weight_S = counted.sequence_BT.flatten(), counted.weight_S
        if self.config.scoring_func == "sigmoid":  # V3's loss speaks of the scores alone, without bias and groups
            expert_NP = scores_NE.detach().topk(expert_NP.shape[1], dim=-1)[1]
            scores_NE = scores_NE / scores_NE.sum(-1, keepdim=True)
        if not self.config.seq_aux:
            sequence_N, weight_S = sequence_N.clamp(max=0), weight_S.sum()[None]
        return balance_loss(scores_NE, expert_NP, sequence_N, weight_S)


class Experts(nn.Module):
    """The routed experts' matrices, stacked."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        E, D, I = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * I, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, I))

    @classmethod
    def of(cls, gate_up_proj: nn.Parameter, down_proj: nn.Parameter) -> Experts:
        """Experts of the given stacks."""
        experts = cls.__new__(cls)
        nn.Module.__init__(experts)
        experts.gate_up_proj, experts.down_proj = gate_up_proj, down_proj
        return experts

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Gate and up [E, 2I, D], and down [E, D, I], as tokens are multiplied with them."""
        return self.gate_up_proj, self.down_proj


class MixtureOfExperts(nn.Module):
    """Shared experts, which see every token, plus the routed ones."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = FeedForward(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, x_BTD: Tensor, counted: Counted | None) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        expert_NP, weight_NP = self.gate(x_BTD, counted)
        routed = routed_experts(x_ND, expert_NP, weight_NP, *self.experts.matrices())
        return self.shared_experts(x_BTD) + routed.view_as(x_BTD)


class DeepseekLayer(nn.Module):
    """x + attention(norm x), then x + feed-forward or mixture(norm x)."""

    def __init__(self, config: DeepseekConfig, mixture: bool) -> None:
        super().__init__()
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
        rotary: tuple[Tensor, Tensor],
        bias: Tensor,
        cache: Columns | None,
        index: int,
        counted: Counted | None,
    ) -> Tensor:
        x = x_BTD + self.attention(self.input_norm(x_BTD), rotary, bias, cache, index)
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
        layers = nn.ModuleList(DeepseekLayer(config, i >= first) for i in range(config.num_hidden_layers))
        super().__init__(config, layers, rotary_dim=config.qk_rope_head_dim)
        self.widths = [(1, config.kv_lora_rank), (1, config.qk_rope_head_dim)]
        if config.num_nextn_predict_layers:
            self.mtp = NextToken(config)

    def cache_widths(self) -> list[tuple[int, int]]:
        return self.widths

    def mtp_hidden(
        self,
        hidden_BTD: Tensor,
        next_ids_BT: Tensor,
        cache: Columns | None = None,
        positions_BT: Tensor | None = None,
        counted: Counted | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] whose `logits` predict the token after the next one.

        hidden: what `forward` gave for T positions, after the last norm; next_ids: the token that follows each.
        With a cache of the module's own the positions continue its columns, so that it can draft while decoding.
        """
        T = hidden_BTD.shape[1]
        rotary, bias = self._surroundings(T, cache, positions_BT, documents_BT)
        joined = torch.cat([self.mtp.enorm(self.embed(next_ids_BT)), self.mtp.hnorm(hidden_BTD)], dim=-1)
        x = self._run(self.mtp.layer, self.mtp.eh_proj(joined), rotary, bias, cache, 0, counted)
        if cache is not None:
            cache.advance(T)
        return self.mtp.head_norm(x)

    def after_update(self, router_bias_rate: float) -> None:
        update_router_biases(self, router_bias_rate)

    def load_metrics(self) -> list[dict[str, float]]:
        layers = {id(module): index for index, module in enumerate(self.layers)}
        if self.config.num_nextn_predict_layers:
            layers[id(self.mtp.layer)] = len(self.layers)
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


def routers(model: nn.Module) -> list[Router]:
    """Every router of a model, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, Router)]


@torch.no_grad()
def update_router_biases(model: Decoder, rate: float) -> None:
    """Aux-loss-free balancing after an update: b += rate * sign(mean load - load), then count anew."""
    for router in routers(model):
        if router.e_score_correction_bias is not None:
            load = router.load.to(torch.float64)
            router.e_score_correction_bias += rate * (load.mean() - load).sign().to(torch.float32)
        router.load.zero_()
    model.changed()
