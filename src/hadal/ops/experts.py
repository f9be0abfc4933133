"""The routed experts' feed-forward: sort by expert, multiply group by group, sort back.

Every token is computed, whatever the load: nothing is dropped and nothing padded. Moving tokens to their
experts and back is done by gathers in both directions (a gather's own backward pass would add into rows in an
order of the library's choosing), so the same inputs give the same bits. `plain_experts` is what tests hold it to.

The product is torch's grouped one wherever it takes the tensors. On a CPU that gives the bits of a loop of `mm`, and
up to twice its speed where an expert has few rows (docs/log.md has the figures); on a GPU it is one kernel, and
nothing here makes the host wait for the loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from hadal.ops.attention import plain_swiglu, swiglu
from hadal.ops.exact import is_exact, stable_rows
from hadal.ops.function import run
from hadal.ops.linear import Stack


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


def takes_grouped(x_MK: Tensor, weight_EOK: Tensor) -> bool:
    """Whether torch's grouped product and its backward pass take these: rows of a multiple of 16 bytes, on a CPU in
    float32, bf16 or fp16, on a GPU (of compute capability 8.0 or more) in bf16 that is aligned."""
    if any(size * x_MK.itemsize % 16 for size in weight_EOK.shape[1:]):
        return False
    if x_MK.device.type == "cuda":
        aligned = all(tensor.data_ptr() % 16 == 0 for tensor in (x_MK, weight_EOK))
        capable = torch.cuda.get_device_capability(x_MK.device) >= (8, 0)
        return x_MK.dtype == torch.bfloat16 and aligned and capable
    return x_MK.device.type == "cpu" and x_MK.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _loads(ends_E: Tensor) -> list[int]:
    return torch.diff(ends_E, prepend=ends_E.new_zeros(1)).tolist()


class _LoopLinear(Function):
    """`grouped_linear` as one product after the other."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_EOK: Tensor, ends_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_MK, weight_EOK)
        ctx.loads = _loads(ends_E)
        out = x_MK.new_empty(len(x_MK), weight_EOK.shape[1])
        for x, weight, y in zip(x_MK.split(ctx.loads), weight_EOK, out.split(ctx.loads), strict=True):
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


class _GroupedLinear(Function):
    """`grouped_linear` by torch's grouped product; its own backward pass may ask for strides that it then refuses."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_EOK: Tensor, ends_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_MK, weight_EOK, ends_E)
        return F.grouped_mm(x_MK, weight_EOK.mT, offs=ends_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_MK, weight_EOK, ends_E = ctx.saved_tensors
        grad_MO = grads[0].contiguous()
        grad_x = F.grouped_mm(grad_MO, weight_EOK, offs=ends_E)
        return grad_x, F.grouped_mm(grad_MO.t(), x_MK, offs=ends_E), None


def loop_linear(x_MK: Tensor, weight_EOK: Tensor, ends_E: Tensor) -> Tensor:
    """The same function as `grouped_linear` for any dtype and width, in a loop over the experts."""
    return run(_LoopLinear, x_MK, weight_EOK, ends_E)


def grouped_linear(x_MK: Tensor, weight_EOK: Tensor | Stack, ends_E: Tensor) -> Tensor:
    """Rows ends[e - 1]..ends[e] of x times the transpose of matrix e, for every e; [M, O]. ends: int32."""
    if isinstance(weight_EOK, Stack):
        return weight_EOK.linear(x_MK, ends_E)
    form = _GroupedLinear if takes_grouped(x_MK, weight_EOK) else _LoopLinear
    return run(form, x_MK, weight_EOK, ends_E)


def _stable_groups(
    x_ND: Tensor, expert_NP: Tensor, place_NP: Tensor, ends_E: Tensor, shapes: Sequence[tuple[int, ...]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ends, places and rows with each expert's group padded to a count at which rows keep their bits."""
    load_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
    sizes = torch.tensor([stable_rows(n, x_ND.dtype, *shapes) for n in load_E.tolist()], device=ends_E.device)
    shift_E = (sizes - load_E).cumsum(0) - (sizes - load_E)
    place = place_NP + shift_E[expert_NP]
    rows = x_ND.new_zeros(int(sizes.sum()), x_ND.shape[1])
    rows[place.flatten()] = x_ND.repeat_interleave(place_NP.shape[1], 0)
    return sizes.cumsum(0).to(torch.int32), place, rows


def routed_experts(
    x_ND: Tensor,
    expert_NP: Tensor,
    weight_NP: Tensor,
    gate_up_EOD: Tensor | Stack,
    down_EDI: Tensor | Stack,
    linear: Callable[[Tensor, Any, Tensor], Tensor] = grouped_linear,
) -> Tensor:
    """Sum over a token's P experts of weight * down(swiglu(gate_up x)); [N, D].

    linear: `grouped_linear` or a function like it.
    """
    expert_M, place_M = expert_NP.flatten().sort(stable=True)  # choices (token * P + p), ordered by expert
    every_E = torch.arange(len(gate_up_EOD), device=expert_M.device)
    ends_E = torch.searchsorted(expert_M, every_E, right=True, out_int32=True)
    token_M = place_M // expert_NP.shape[1]
    place_NP = torch.empty_like(place_M)
    place_NP[place_M] = torch.arange(len(place_M), device=place_M.device)
    place_NP = place_NP.view_as(expert_NP)
    keeps_rows = isinstance(gate_up_EOD, Stack) and gate_up_EOD.keeps_rows
    if is_exact() and not torch.is_grad_enabled() and not keeps_rows:
        shapes = [matrices.shape[1:] for matrices in (gate_up_EOD, down_EDI)]
        ends_E, place_NP, rows = _stable_groups(x_ND, expert_NP, place_NP, ends_E, shapes)
    else:
        rows = run(_Dispatch, x_ND, token_M, place_NP)
    hidden = swiglu(linear(rows, gate_up_EOD, ends_E))
    out = linear(hidden, down_EDI, ends_E)
    return run(_Combine, out, weight_NP, token_M, place_NP)
