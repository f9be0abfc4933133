"""Attention and the gated feed-forward product, in the form that is fastest on a CPU at short lengths.

torch's own scaled_dot_product_attention is two to four times slower there when single tokens are decoded, and
in bf16 when trained; in float32 training the two are equal (docs/log.md has the figures).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def attend(q_BTHK: Tensor, k_BJSK: Tensor, v_BJSV: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Softmax attention of T queries over S keys; H query heads share J key heads (H a multiple of J).

    bias: additive mask, [T, S] or [B, T, S], 0 where a query may look and -inf where not.
    Returns [B, T, H * V].
    """
    B, T, H, K = q_BTHK.shape
    J, S = k_BJSK.shape[1:3]
    G = H // J
    q = q_BTHK.view(B, T, J, G, K).permute(0, 2, 3, 1, 4).reshape(B * J, G * T, K)
    k = k_BJSK.reshape(B * J, S, K)
    v = v_BJSV.reshape(B * J, S, v_BJSV.shape[-1])
    if bias.dim() == 2:
        mask = bias.expand(G, T, S).reshape(1, G * T, S).expand(B * J, G * T, S)
    else:
        mask = bias.view(B, 1, 1, T, S).expand(B, J, G, T, S).reshape(B * J, G * T, S)
    weights = torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale), dim=-1)
    out = torch.bmm(weights, v)
    return out.view(B, J, G, T, -1).permute(0, 3, 1, 2, 4).reshape(B, T, -1)


def causal_bias(length: int, dtype: torch.dtype) -> Tensor:
    """[T, T] additive mask: each position sees itself and what came before."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        act = F.silu(gate)
        ctx.save_for_backward(gate_up, act)
        return act * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gate_up, act = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        grad_gate, grad_up = out.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        torch.mul(act, grads[0], out=grad_up)
        return out


def swiglu(gate_up_2F: Tensor) -> Tensor:
    """silu(gate) * up for a last axis that holds [gate | up] (arXiv 2002.05202)."""
    return _SwiGLU.apply(gate_up_2F)


def plain_swiglu(gate_up_2F: Tensor) -> Tensor:
    """The same function as `swiglu`, left to autograd."""
    gate, up = gate_up_2F.chunk(2, dim=-1)
    return F.silu(gate) * up
