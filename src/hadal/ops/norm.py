"""Norms and rotary positions with their own backward pass.

On a CPU a small model spends as long in many small elementwise kernels as in its matrix products; each
function here is one node of the autograd graph instead of five to ten. The plain forms beside them are
what tests hold them to.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hadal.ops.function import run
from hadal.ops.rope import Llama3Scaling, RopeScaling


def plain_rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, statistics in at least float32 (arXiv 1910.07467, eq. 4)."""
    x32 = x_D if x_D.dtype == torch.float64 else x_D.float()
    return weight_D * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x_D.dtype)


def _inverse_rms(x_D: Tensor, eps: float) -> Tensor:
    wide = torch.float64 if x_D.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(x_D, dim=-1, keepdim=True, dtype=wide)
    return torch.rsqrt(norm.square_().div_(x_D.shape[-1]).add_(eps)).to(x_D.dtype)


def _rms_backward(grad_D: Tensor, xhat_D: Tensor, inverse: Tensor) -> Tensor:
    """Gradient through xhat = x * inverse(x), for a gradient of xhat."""
    dot = (grad_D * xhat_D).mean(-1, keepdim=True)
    return torch.addcmul(grad_D, xhat_D, dot, value=-1).mul_(inverse)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x_D, eps)
        xhat = x_D * inverse
        ctx.save_for_backward(xhat, inverse, weight_D)
        return xhat * weight_D

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        xhat, inverse, weight = ctx.saved_tensors
        grad = grads[0]
        grad_weight = (grad * xhat).flatten(0, -2).sum(0)
        return _rms_backward(grad * weight, xhat, inverse), grad_weight, None


def rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis; the same function as `plain_rms_norm`."""
    return run(_RMSNorm, x_D, weight_D, eps)


def rotary_frequencies(dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Angles [dim/2] in float32 that each pair of channels turns by for one position (arXiv 2104.09864)."""
    pair = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu")
    plain = 1.0 / (theta ** (pair / dim))
    if scaling is None:
        return plain
    length = scaling.original_max_position_embeddings
    if isinstance(scaling, Llama3Scaling):
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((length * plain / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    else:

        def channel(turns: float) -> float:
            """The pair that turns this often over the original length."""
            return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        fast, slow = channel(scaling.beta_fast), channel(scaling.beta_slow)
        if scaling.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        fast, slow = max(fast, 0), min(slow, dim - 1)
        kept = 1 - ((pair / 2 - fast) / (slow - fast if slow != fast else 0.001)).clamp(0, 1)
    return plain * kept + plain / scaling.factor * (1 - kept)


def rotary_tables(positions: int, dim: int, theta: float, scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, dim/2] in float32 for RoPE of `dim` channels, times the scaling's factor.

    Made on the CPU, also while a model is built without memory for its weights.
    """
    position = torch.arange(positions, dtype=torch.float32, device="cpu")
    angles = torch.outer(position, rotary_frequencies(dim, theta, scaling))
    factor = 1.0 if scaling is None else scaling.rotary_factor
    return angles.cos() * factor, angles.sin() * factor


def both_halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """From tables [..., K/2], what each of K channels is multiplied with, itself and as the other of its pair."""
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def _rotate(x_K: Tensor, cos_K: Tensor, sin_K: Tensor) -> Tensor:
    """Rotate channel i against channel i + K/2 (the half-split convention of the dense families)."""
    return (x_K * cos_K).addcmul_(x_K.roll(x_K.shape[-1] // 2, -1), sin_K)


def plain_rotate(x_K: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on all channels, halves apart; cos and sin broadcast to [..., K/2]."""
    a, b = x_K.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x_K: Tensor, cos_K: Tensor, sin_K: Tensor) -> Tensor:
        ctx.save_for_backward(cos_K, sin_K)
        return _rotate(x_K, cos_K, sin_K)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def rotate(x_K: Tensor, cos_K: Tensor, sin_K: Tensor) -> Tensor:
    """RoPE of families without q/k norm, tables from `both_halves`; otherwise the same function as `plain_rotate`."""
    return run(_Rotate, x_K, cos_K, sin_K)


def plain_norm_rotate(x_BTHK: Tensor, weight_HK: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Per-head RMSNorm, then RoPE; cos and sin broadcast to [B, T, 1, K/2]."""
    return plain_rotate(plain_rms_norm(x_BTHK, weight_HK, eps), cos, sin)


class _NormRotate(Function):
    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, weight_HK: Tensor, cos_K: Tensor, sin_K: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x_BTHK, eps)
        xhat = x_BTHK * inverse
        ctx.save_for_backward(xhat, inverse, weight_HK, cos_K, sin_K)
        return _rotate(xhat * weight_HK, cos_K, sin_K)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        xhat, inverse, weight, cos, sin = ctx.saved_tensors
        grad = _rotate(grads[0], cos, -sin)
        grad_weight = (grad * xhat).flatten(0, -3).sum(0)
        return _rms_backward(grad * weight, xhat, inverse), grad_weight, None, None, None


def norm_rotate(x_BTHK: Tensor, weight_HK: Tensor, cos_K: Tensor, sin_K: Tensor, eps: float) -> Tensor:
    """Per-head RMSNorm, then RoPE, tables from `both_halves`; otherwise the same function as `plain_norm_rotate`."""
    return run(_NormRotate, x_BTHK, weight_HK, cos_K, sin_K, eps)


def plain_rotate_pairs(x_K: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the last channels, 2 * cos.shape[-1] of them, pairing channel 2i with 2i + 1.

    The convention of DeepSeek's weights. The rotated pairs come out halves apart, which is the same for
    attention as long as queries and keys agree.
    """
    rest, turned = x_K.split([x_K.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    a, b = turned[..., 0::2], turned[..., 1::2]
    return torch.cat([rest, a * cos - b * sin, b * cos + a * sin], dim=-1)


class _RotatePairs(Function):
    @staticmethod
    def forward(ctx: Any, x_K: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = cos.shape[-1]
        rest = x_K.shape[-1] - 2 * half
        a, b = x_K[..., rest::2], x_K[..., rest + 1 :: 2]
        out = torch.empty(x_K.shape, dtype=x_K.dtype, device=x_K.device)
        out[..., :rest] = x_K[..., :rest]
        torch.addcmul(a * cos, b, sin, value=-1, out=out[..., rest : rest + half])
        torch.addcmul(b * cos, a, sin, out=out[..., rest + half :])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        grad, half = grads[0], cos.shape[-1]
        rest = grad.shape[-1] - 2 * half
        a, b = grad[..., rest : rest + half], grad[..., rest + half :]
        out = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        out[..., :rest] = grad[..., :rest]
        torch.addcmul(a * cos, b, sin, out=out[..., rest::2])
        torch.addcmul(b * cos, a, sin, value=-1, out=out[..., rest + 1 :: 2])
        return out, None, None


def rotate_pairs(x_K: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in interleaved pairs; the same function as `plain_rotate_pairs`. cos and sin broadcast to [..., R/2]."""
    return run(_RotatePairs, x_K, cos, sin)
