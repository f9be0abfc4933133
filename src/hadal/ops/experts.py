"""The routed experts' feed-forward, in the form that is fastest on a CPU: sort by expert, multiply, sort back.

Every token is computed, whatever the load: nothing is dropped and nothing padded. Moving tokens to their
experts and back is done by gathers in both directions (a gather's own backward pass would add into rows in an
order of the library's choosing), so the same inputs give the same bits. `plain_experts` is what tests hold it to.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from hadal.ops.attention import plain_swiglu, swiglu


def plain_experts(x_ND: Tensor, expert_NP: Tensor, weight_NP: Tensor, gate_up_EOD: Tensor, down_EDI: Tensor) -> Tensor:
    """The same function as `routed_experts`, one expert after the other and left to autograd."""
    out = torch.zeros_like(x_ND)
    for e, (gate_up, down) in enumerate(zip(gate_up_EOD, down_EDI, strict=True)):
        share_N1 = (weight_NP * (expert_NP == e)).sum(1, keepdim=True).to(x_ND.dtype)
        out = out + share_N1 * F.linear(plain_swiglu(F.linear(x_ND, gate_up)), down)
    return out


class _Dispatch(Function):
    """Rows of x in the order of their experts; each token P times."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_M: Tensor, place_NP: Tensor) -> Tensor:
        ctx.save_for_backward(place_NP)
        return x_ND.index_select(0, token_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        first, *others = place.unbind(1)
        grad = grads[0].index_select(0, first)
        for other in others:
            grad += grads[0].index_select(0, other)
        return grad, None, None


class _Combine(Function):
    """The weighted sum of each token's P rows, back in the order of the tokens."""

    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, weight_NP: Tensor, token_M: Tensor, place_NP: Tensor) -> Tensor:
        ctx.save_for_backward(y_MD, weight_NP, token_M, place_NP)
        weight_NP = weight_NP.to(y_MD.dtype)
        out = y_MD.index_select(0, place_NP[:, 0]).mul_(weight_NP[:, :1])
        for p in range(1, place_NP.shape[1]):
            out.addcmul_(y_MD.index_select(0, place_NP[:, p]), weight_NP[:, p : p + 1])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y, weight, token, place = ctx.saved_tensors
        grad_M = grads[0].index_select(0, token)
        inverse = torch.empty_like(token)
        inverse[place.flatten()] = torch.arange(len(token), device=token.device)
        grad_weight = (grad_M * y).sum(-1).index_select(0, place.flatten()).view_as(place)
        by_row = weight.flatten().index_select(0, inverse)
        return grad_M.mul_(by_row[:, None].to(y.dtype)), grad_weight.to(weight.dtype), None, None


class _GroupedLinear(Function):
    """Rows begin[e]..begin[e+1] of x times the transpose of matrix e, for every e."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_EOK: Tensor, loads: list[int]) -> Tensor:
        ctx.save_for_backward(x_MK, weight_EOK)
        ctx.loads = loads
        out = x_MK.new_empty(len(x_MK), weight_EOK.shape[1])
        for x, weight, y in zip(x_MK.split(loads), weight_EOK, out.split(loads), strict=True):
            torch.mm(x, weight.t(), out=y)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_MK, weight_EOK = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x_MK), torch.empty_like(weight_EOK)
        parts = (grads[0].split(ctx.loads), x_MK.split(ctx.loads), grad_x.split(ctx.loads))
        for grad, x, gx, weight, gw in zip(*parts, weight_EOK, grad_weight, strict=True):
            torch.mm(grad, weight, out=gx)
            torch.mm(grad.t(), x, out=gw)
        return grad_x, grad_weight, None


def routed_experts(
    x_ND: Tensor, expert_NP: Tensor, weight_NP: Tensor, gate_up_EOD: Tensor, down_EDI: Tensor, loads: list[int]
) -> Tensor:
    """Sum over a token's P experts of weight * down(swiglu(gate_up x)); [N, D].

    loads: how many of the N * P choices fell on each expert.
    """
    place_M = expert_NP.flatten().argsort(stable=True)  # choices (token * P + p), ordered by expert
    token_M = place_M // expert_NP.shape[1]
    place_NP = torch.empty_like(place_M)
    place_NP[place_M] = torch.arange(len(place_M), device=place_M.device)
    place_NP = place_NP.view_as(expert_NP)
    rows = _Dispatch.apply(x_ND, token_M, place_NP)
    hidden = swiglu(_GroupedLinear.apply(rows, gate_up_EOD, loads))
    out = _GroupedLinear.apply(hidden, down_EDI, loads)
    return _Combine.apply(out, weight_NP, token_M, place_NP)
