"""Attention and the gated feed-forward product, in the form that is fastest where they run.

Attention has four forms of one function. On a CPU short passes are two batched products (torch's own
scaled_dot_product_attention is two to four times slower there when single tokens are decoded, and in bf16 when
trained), those of single tokens with fewer steps between, and longer ones go block by block, skip what causality
hides and keep no weights for the backward pass. On a GPU it is torch's. docs/log.md has the figures behind the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from hadal.ops.exact import COLUMNS, QUERIES, SUMMED, is_exact, stable_rows
from hadal.ops.function import run
from hadal.ops.mask import Mask

BLOCK = 64
"""Queries that `blockwise_attend` takes at a time."""
LONG = 128
"""Passes of more queries go block by block on a CPU."""
FUSED = 1 << 26
"""Numbers of a mask that torch's own attention is handed at once; of more queries it takes as many as fit."""
SMALL = 4096
"""Multiplications of a batch up to which torch has another way with bf16."""


def attend(q_BTHK: Tensor, k_BJSK: Tensor, v_BJSV: Tensor, mask: Mask, scale: float, window: int = 0) -> Tensor:
    """Causal softmax attention of the last T of S positions; H query heads share J key heads (H a multiple of J).

    mask: where queries look, never past their own column S - T + t; window: and at how many columns at most, where it
    is not 0. Returns [B, T, H * V].
    """
    mask = mask.within(window)
    if q_BTHK.device.type == "cuda":
        return fused_attend(q_BTHK, k_BJSK, v_BJSV, mask, scale)
    T = q_BTHK.shape[1]
    form = single_attend if T == 1 else plain_attend if T <= LONG else blockwise_attend
    if is_exact() and not torch.is_grad_enabled():
        return _exact_attend(form, q_BTHK, k_BJSK, v_BJSV, mask, scale)
    return form(q_BTHK, k_BJSK, v_BJSV, mask, scale)


def _exact_attend(
    form: Callable[..., Tensor], q_BTHK: Tensor, k_BJSK: Tensor, v_BJSV: Tensor, mask: Mask, scale: float
) -> Tensor:
    """The same function by `form`, and each row's bits are those it gets beside any other: few rows get company."""
    (B, T, H, K), J = q_BTHK.shape, k_BJSK.shape[1]
    M = T * H // J
    fewest = 1 if stable_rows(M) == M else 2  # one matrix alone is divided among threads, like a linear layer
    if q_BTHK.dtype.itemsize < 4:
        fewest = max(fewest, SMALL // (M * COLUMNS * min(K, v_BJSV.shape[-1])) + 1)
    lacking = -(-fewest // J) - B
    if lacking > 0:
        parts = (q_BTHK, k_BJSK, v_BJSV)
        q_BTHK, k_BJSK, v_BJSV = (torch.cat([x, x[:1].expand(lacking, *x.shape[1:])]) for x in parts)
        mask = mask.beside(lacking)
    return form(q_BTHK, k_BJSK, v_BJSV, mask, scale)[:B]


def single_attend(q_B1HK: Tensor, k_BJSK: Tensor, v_BJSV: Tensor, mask: Mask, scale: float) -> Tensor:
    """The same function as `attend` for one query a row, whose heads lie side by side: little is left to arrange."""
    B, _, H, K = q_B1HK.shape
    J, S = k_BJSK.shape[1:3]
    k_NSK, v_NSV = k_BJSK.reshape(B * J, S, K), v_BJSV.reshape(B * J, S, -1)
    bias_N1S = mask.bias(q_B1HK).expand(B, J, S).reshape(B * J, 1, S)
    scores = torch.baddbmm(bias_N1S, q_B1HK.reshape(B * J, H // J, K), _turned(k_NSK), alpha=scale)
    return weighted_sum(_softmax(scores), v_NSV).reshape(B, 1, -1)


def plain_attend(q_BTHK: Tensor, k_BJSK: Tensor, v_BJSV: Tensor, mask: Mask, scale: float) -> Tensor:
    """The same function as `attend`, all T x S weights at once and left to autograd."""
    B, T, H, _ = q_BTHK.shape
    q, k, v = _by_key_head(q_BTHK, k_BJSK, v_BJSV)
    weights = _softmax(torch.baddbmm(_by_query(mask.bias(q), q), q.flatten(1, 2), _turned(k), alpha=scale))
    return _by_token(weighted_sum(weights, v).view(*q.shape[:3], -1), B)


def _turned(keys_NSK: Tensor) -> Tensor:
    """Keys [N, K, S] for a product.

    oneDNN multiplies matrices that lie close together. Others it copies, and turns them as well, which takes twice as
    long as to copy them as they lie.
    """
    narrow = keys_NSK.dtype.itemsize < 4 and keys_NSK.device.type == "cpu"
    return (keys_NSK.contiguous() if narrow else keys_NSK).mT


def _softmax(scores_NMS: Tensor) -> Tensor:
    """Over the last axis; where results must be exact, columns of weight 0 behind the last one change nothing.

    In a narrow dtype torch adds up in an order that the length of a row decides. Without a gradient in place.
    """
    if is_exact() and scores_NMS.dtype.itemsize < 4:
        return torch.softmax(scores_NMS, dim=-1, dtype=torch.float32).to(scores_NMS.dtype)
    if torch.is_grad_enabled():
        return torch.softmax(scores_NMS, dim=-1)
    return torch.softmax(scores_NMS, dim=-1, out=scores_NMS)


def batched_rows(x_NMK: Tensor, matrix_NKO: Tensor) -> Tensor:
    """torch.bmm, [N, M, O], which gives a row the same bits for any M where results must be exact."""
    M = x_NMK.shape[1]
    if not is_exact() or M >= QUERIES:
        return torch.bmm(x_NMK, matrix_NKO)
    return torch.bmm(F.pad(x_NMK, (0, 0, 0, QUERIES - M)), matrix_NKO)[:, :M]


def weighted_sum(weights_NMS: Tensor, values_NSV: Tensor) -> Tensor:
    """weights times values, [N, M, V].

    Libraries cut a long sum where its length suggests; where results must be exact it is cut at fixed columns, so that
    columns of weight 0 behind the last one change nothing.
    """
    S = values_NSV.shape[1]
    if not is_exact() or S <= SUMMED:
        return torch.bmm(weights_NMS, values_NSV)
    out = torch.bmm(weights_NMS[:, :, :SUMMED], values_NSV[:, :SUMMED])
    for begin in range(SUMMED, S, SUMMED):
        weights, values = weights_NMS[:, :, begin : begin + SUMMED], values_NSV[:, begin : begin + SUMMED]
        lacking = COLUMNS - weights.shape[2]
        if lacking > 0:
            weights, values = F.pad(weights, (0, lacking)), F.pad(values, (0, 0, 0, lacking))
        out.baddbmm_(weights, values)
    return out


def blockwise_attend(q_BTHK: Tensor, k_BJSK: Tensor, v_BJSV: Tensor, mask: Mask, scale: float) -> Tensor:
    """The same function as `attend`, `BLOCK` queries at a time over the columns that these can see."""
    return _by_token(run(_Blockwise, *_by_key_head(q_BTHK, k_BJSK, v_BJSV), mask, scale), len(q_BTHK))


def fused_attend(q_BTHK: Tensor, k_BJSK: Tensor, v_BJSV: Tensor, mask: Mask, scale: float) -> Tensor:
    """The same function as `attend` by torch's scaled_dot_product_attention."""
    T, H, J, S = *q_BTHK.shape[1:3], *k_BJSK.shape[1:3]
    plain = mask.is_causal and T == S
    step = T if plain else max(FUSED // (max(mask.rows, 1) * S), BLOCK)
    parts = [
        F.scaled_dot_product_attention(
            q_BTHK[:, begin : begin + step].transpose(1, 2), k_BJSK, v_BJSV,
            None if plain else mask.bias(q_BTHK, begin, min(begin + step, T)).view(-1, 1, min(step, T - begin), S),
            is_causal=plain, scale=scale, enable_gqa=H != J,
        )
        for begin in range(0, T, step)
    ]  # fmt: skip
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out.transpose(1, 2).flatten(2)


def _by_key_head(q_BTHK: Tensor, k_BJSK: Tensor, v_BJSV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B * J, G, T, K], of the G heads that share a key head; keys [B * J, S, K]; values [B * J, S, V]."""
    B, T, H, K = q_BTHK.shape
    J, S = k_BJSK.shape[1:3]
    q = q_BTHK.view(B, T, J, H // J, K).permute(0, 2, 3, 1, 4).reshape(B * J, H // J, T, K)
    return q, k_BJSK.reshape(B * J, S, K), v_BJSV.reshape(B * J, S, v_BJSV.shape[-1])


def _by_token(out_NGTV: Tensor, rows: int) -> Tensor:
    """[N = B * J, G, T, V] to [B, T, J * G * V]."""
    N, G, T, V = out_NGTV.shape
    return out_NGTV.view(rows, N // rows, G, T, V).permute(0, 3, 1, 2, 4).reshape(rows, T, -1)


def _by_query(bias: Tensor, q_NGTK: Tensor) -> Tensor:
    """bias [T, S] or [B, T, S] as [N, G * T, S]."""
    N, G, T, _ = q_NGTK.shape
    S = bias.shape[-1]
    if bias.dim() == 2:
        return bias.expand(G, T, S).reshape(1, G * T, S).expand(N, G * T, S)
    B = len(bias)
    return bias.view(B, 1, 1, T, S).expand(B, N // B, G, T, S).reshape(N, G * T, S)


class _Blockwise(Function):
    """Weights are computed anew in the backward pass: memory grows with T and S, not with their product.

    Blocks are added up in one order, in at least float32.
    """

    @staticmethod
    def forward(ctx: Any, q_NGTK: Tensor, k_NSK: Tensor, v_NSV: Tensor, mask: Mask, scale: float) -> Tensor:
        ctx.save_for_backward(q_NGTK, k_NSK, v_NSV)
        ctx.mask, ctx.scale = mask, scale
        out = q_NGTK.new_empty(*q_NGTK.shape[:3], v_NSV.shape[-1])
        for begin in range(0, q_NGTK.shape[2], BLOCK):
            q, seen, weights = _block_weights(q_NGTK, k_NSK, mask, scale, begin)
            out[:, :, begin : begin + BLOCK] = weighted_sum(weights, v_NSV[:, seen]).view(*q.shape[:3], -1)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_NGTK, k_NSK, v_NSV = ctx.saved_tensors
        wide = torch.promote_types(q_NGTK.dtype, torch.float32)
        grad_q = torch.empty_like(q_NGTK)
        grad_k, grad_v = torch.zeros_like(k_NSK, dtype=wide), torch.zeros_like(v_NSV, dtype=wide)
        for begin in range(0, q_NGTK.shape[2], BLOCK):
            q, seen, weights = _block_weights(q_NGTK, k_NSK, ctx.mask, ctx.scale, begin)
            grad = grads[0][:, :, begin : begin + BLOCK].flatten(1, 2)
            grad_v[:, seen] += torch.bmm(weights.mT, grad)
            grad_weights = torch.bmm(grad, v_NSV[:, seen].mT)
            scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            grad_q[:, :, begin : begin + BLOCK] = torch.bmm(scores, k_NSK[:, seen]).view(q.shape)
            grad_k[:, seen] += torch.bmm(scores.mT, q.flatten(1, 2))
        return grad_q, grad_k.to(k_NSK.dtype), grad_v.to(v_NSV.dtype), None, None


def _block_weights(
    q_NGTK: Tensor, k_NSK: Tensor, mask: Mask, scale: float, begin: int
) -> tuple[Tensor, slice, Tensor]:
    """A block's queries [N, G, t, K], the columns that they can see, and their weights [N, G * t, columns]."""
    q = q_NGTK[:, :, begin : begin + BLOCK]
    last = begin + q.shape[2]
    first, end = mask.span(begin, last)
    first = first // SUMMED * SUMMED  # sums are cut there, so that what is left out changes no bit
    rows, keys = q.flatten(1, 2), _turned(k_NSK[:, first:end])
    if mask.is_causal:  # only the block's own columns hide anything
        scores = torch.baddbmm(rows.new_zeros(1, 1, 1), rows, keys, beta=0, alpha=scale)
        own = end - q.shape[2]
        scores.view(*q.shape[:3], end)[..., own:] += mask.bias(q, begin, last, own, end)
    else:
        scores = torch.baddbmm(_by_query(mask.bias(q, begin, last, first, end), q), rows, keys, alpha=scale)
    return q, slice(first, end), _softmax(scores)


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
    if torch.is_grad_enabled():
        return _SwiGLU.apply(gate_up_2F)
    gate, up = gate_up_2F.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)  # in place: of a long prompt, memory that is new costs more than the product


def plain_swiglu(gate_up_2F: Tensor) -> Tensor:
    """The same function as `swiglu`, left to autograd."""
    gate, up = gate_up_2F.chunk(2, dim=-1)
    return F.silu(gate) * up
