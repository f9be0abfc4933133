"""Which experts a token visits, and how they are balanced: V3 without an auxiliary loss, V2 by one.

Axes as in `hadal.models.decoder`, and: N tokens of a batch in one row, E routed experts, P experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hadal.models.balance import Counted, balance_loss, with_loss
from hadal.models.decoder import Decoder, recomputing
from hadal.models.deepseek.config import DeepseekConfig
from hadal.ops.exact import linear_rows, sigmoid_rows


class Router(nn.Module):
    """Which experts a token visits, and with what weight; float32 whatever the model computes in.

    V3's bias decides the choice only: it moves against the load, so that experts are balanced without a loss
    (arXiv 2412.19437, section 2.1.2). A balance loss, where the config weighs one, reaches the gradient through
    the weights that this returns and needs nothing of the caller.
    """

    keeps_dtype = True
    """A packed model leaves it as it is (`hadal.models.packed`)."""
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
