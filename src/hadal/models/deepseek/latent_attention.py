"""Multi-head latent attention (MLA), in an expanded and an absorbed form.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1, and the conventions of the released weights where the two differ.
Axes as in `hadal.models.decoder`, and: C latent (kv_lora_rank), R rotated channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadal.models.blocks import Norm, full_weight
from hadal.models.cache import Columns
from hadal.models.decoder import Rotary
from hadal.models.deepseek.config import DeepseekConfig
from hadal.ops.attention import attend, batched_rows, weighted_sum
from hadal.ops.mask import Mask
from hadal.ops.norm import rotate_pairs
from hadal.ops.rope import YarnScaling

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
        self, x_BTD: Tensor, rotary: Rotary, mask: Mask, cache: Columns | None, index: int
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
            return self.o_proj(self.expanded(q_BTHK, latent, key, mask))

        def form(q_BTHK: Tensor, latent_B1SC: Tensor, key_B1SR: Tensor, mask: Mask) -> Tensor:
            absorb = cache.exact or self.absorbs(T, latent_B1SC.shape[2])
            return (self.absorbed if absorb else self.expanded)(q_BTHK, latent_B1SC, key_B1SR, mask)

        return self.o_proj(cache.attend(index, form, q_BTHK, (latent, key), mask, H))

    def absorbs(self, tokens: int, columns: int) -> bool:
        """Whether the absorbed form needs fewer multiplications for this many queries than expanding every column."""
        wider = 2 * self.rank + self.rope - (self.nope + self.rope + self.value)  # for each query and column
        return tokens == 1 or (columns > tokens and tokens * wider < self.rank * (self.nope + self.value))

    def expanded(self, q_BTHK: Tensor, latent_B1SC: Tensor, key_B1SR: Tensor, mask: Mask) -> Tensor:
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
        return attend(widened(q_BTHK), k_BHSK, v_BHSV, mask, self.scale).to(q_BTHK.dtype)

    def absorbed(self, q_BTHK: Tensor, latent_B1SC: Tensor, key_B1SR: Tensor, mask: Mask) -> Tensor:
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
        bias = mask.bias(query)
        bias = bias.view(-1, 1, *bias.shape[-2:]).expand(B, H, -1, -1).reshape(B, H * T, -1)
        scores = torch.baddbmm(bias, query, latent_BSC.mT, alpha=self.scale, beta=1)
        scores = torch.baddbmm(scores, q_rope, key_BSR.mT, alpha=self.scale)
        mixed = weighted_sum(torch.softmax(scores, dim=-1), latent_BSC)
        mixed_HNC = mixed.view(B, H, T, -1).transpose(0, 1).reshape(H, B * T, -1)
        out = batched_rows(mixed_HNC, up_HOC[:, self.nope :].mT).reshape(H, B, T, -1)
        return out.permute(1, 2, 0, 3).reshape(B, T, H * self.value).to(dtype)
