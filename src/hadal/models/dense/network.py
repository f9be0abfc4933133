"""The dense decoders (Qwen, Llama, Mistral, SmolLM3): grouped-query attention, SwiGLU.

Query, key and value projections are one matrix here, gate and up another; the checkpoint layout has them
apart (`hadal.models.names`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from hadal.models.balance import Counted
from hadal.models.blocks import FeedForward, Norm
from hadal.models.cache import Columns
from hadal.models.decoder import Decoder, Layer, Rotary
from hadal.models.dense.config import DenseConfig
from hadal.ops.attention import attend
from hadal.ops.mask import Mask
from hadal.ops.norm import both_halves, norm_rotate, rotate
from hadal.ops.rope import Rope


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: DenseConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.width, self.eps, self.qk_norm = config.head_dim, config.rms_norm_eps, config.qk_norm
        rows = (self.heads + 2 * self.key_heads) * self.width
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=config.qkv_bias)
        if self.qk_norm:
            self.q_norm = nn.Parameter(torch.ones(self.width))
            self.k_norm = nn.Parameter(torch.ones(self.width))
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.attention_bias)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary | None, mask: Mask, cache: Columns | None, index: int
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        H, J, K = self.heads, self.key_heads, self.width
        heads = self.qkv_proj(x_BTD).view(B, T, H + 2 * J, K)
        qk = heads[:, :, : H + J]
        if rotary is None:
            pass
        elif self.qk_norm:
            weight_HK = torch.cat([self.q_norm.expand(H, K), self.k_norm.expand(J, K)])
            qk = norm_rotate(qk, weight_HK, *rotary, self.eps)
        else:
            qk = rotate(qk, *rotary)
        k, v = qk[:, :, H:].transpose(1, 2), heads[:, :, H + J :].transpose(1, 2)
        q, form = qk[:, :, :H], partial(attend, scale=K**-0.5, window=self.window)
        if cache is None:
            return self.o_proj(form(q, k, v, mask))
        return self.o_proj(cache.attend(index, form, q, (k, v), mask, H // J))


class DenseLayer(Layer):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, config: DenseConfig, index: int) -> None:
        window = config.window(index)
        rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling) if config.turns(index) else None
        super().__init__(((config.num_key_value_heads, config.head_dim),) * 2, rope, window)
        self.input_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, window)
        self.post_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size, config.mlp_bias)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary | None,
        mask: Mask,
        cache: Columns | None,
        index: int,
        counted: Counted | None,
    ) -> Tensor:
        x = x_BTD + self.attention(self.input_norm(x_BTD), rotary, mask, cache, index)
        return x + self.mlp(self.post_norm(x))


class Dense(Decoder):
    """Decoder of the dense families."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__(config, (DenseLayer(config, index) for index in range(config.num_hidden_layers)))

    def rotary(self, cos: Tensor, sin: Tensor) -> Rotary:
        return both_halves(cos, sin)
