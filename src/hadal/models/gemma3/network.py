"""Gemma 3's decoder. Source: arXiv 2503.19786, and transformers' modelling file where the report is silent."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadal.models.balance import Counted
from hadal.models.blocks import FeedForward, Norm
from hadal.models.cache import Columns
from hadal.models.decoder import Decoder, Layer, Rotary
from hadal.models.gemma3.config import Gemma3Config
from hadal.ops.attention import attend
from hadal.ops.mask import Mask
from hadal.ops.norm import both_halves, norm_rotate, rms_norm
from hadal.ops.rope import Rope


def wider(x: Tensor) -> Tensor:
    """x in float32 at least: Gemma's norms round once, after their weight."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class OffsetNorm(Norm):
    """RMSNorm whose weight counts from 1."""

    def forward(self, x_D: Tensor) -> Tensor:
        return rms_norm(wider(x_D), 1 + wider(self.weight), self.eps).to(x_D.dtype)


class Attention(nn.Module):
    """Grouped-query attention over a window or all, with normed queries and keys."""

    def __init__(self, config: Gemma3Config, window: int) -> None:
        super().__init__()
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.width, self.eps = config.head_dim, config.rms_norm_eps
        self.form = partial(attend, scale=config.query_pre_attn_scalar**-0.5, window=window)
        rows = (self.heads + 2 * self.key_heads) * self.width
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=config.attention_bias)
        self.q_norm, self.k_norm = (nn.Parameter(torch.zeros(self.width)) for _ in range(2))
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.attention_bias)

    def forward(self, x_BTD: Tensor, rotary: Rotary, mask: Mask, cache: Columns | None, index: int) -> Tensor:
        B, T, _ = x_BTD.shape
        H, J, K = self.heads, self.key_heads, self.width
        heads = self.qkv_proj(x_BTD).view(B, T, H + 2 * J, K)
        weight_HK = 1 + wider(torch.cat([self.q_norm.expand(H, K), self.k_norm.expand(J, K)]))
        cos, sin = (wider(table) for table in rotary)
        qk = norm_rotate(wider(heads[:, :, : H + J]), weight_HK, cos, sin, self.eps).to(heads.dtype)
        q, k, v = qk[:, :, :H], qk[:, :, H:].transpose(1, 2), heads[:, :, H + J :].transpose(1, 2)
        if cache is None:
            return self.o_proj(self.form(q, k, v, mask))
        return self.o_proj(cache.attend(index, self.form, q, (k, v), mask, H // J))


class GeluFeedForward(FeedForward):
    """down(gelu(gate x) * up x)."""

    def forward(self, x_D: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x_D).chunk(2, dim=-1)
        return self.down_proj(F.gelu(gate, approximate="tanh") * up)


class Gemma3Layer(Layer):
    """x + norm(attention(norm x)), then x + norm(feed-forward(norm x))."""

    def __init__(self, config: Gemma3Config, index: int) -> None:
        window, D, eps = config.window(index), config.hidden_size, config.rms_norm_eps
        local = Rope(config.head_dim, config.rope_local_base_freq)
        full = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
        super().__init__(((config.num_key_value_heads, config.head_dim),) * 2, local if window else full, window)
        self.input_norm, self.post_attention_norm = OffsetNorm(D, eps), OffsetNorm(D, eps)
        self.attention = Attention(config, window)
        self.pre_feedforward_norm, self.post_feedforward_norm = OffsetNorm(D, eps), OffsetNorm(D, eps)
        self.mlp = GeluFeedForward(D, config.intermediate_size)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, mask: Mask, cache: Columns | None, index: int, counted: Counted | None
    ) -> Tensor:
        attended = self.attention(self.input_norm(x_BTD), rotary, mask, cache, index)
        x = x_BTD + self.post_attention_norm(attended)
        return x + self.post_feedforward_norm(self.mlp(self.pre_feedforward_norm(x)))


class Gemma3(Decoder):
    """Decoder of Gemma 3's text models."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__(config, (Gemma3Layer(config, index) for index in range(config.num_hidden_layers)))
        self.norm = OffsetNorm(config.hidden_size, config.rms_norm_eps)

    def rotary(self, cos: Tensor, sin: Tensor) -> Rotary:
        return both_halves(cos, sin)

    def embedded(self, ids_BT: Tensor) -> Tensor:
        x = super().embedded(ids_BT)
        return x * x.new_full((), self.config.hidden_size**0.5)  # the root is rounded first

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        for parameter in self.parameters():
            if parameter.dim() < 2:
                parameter.zero_()  # norms count from 1
        self.changed()
