"""Forms of the routed experts' product, forward and backward: why `hadal.ops.experts` has the one that it has.

    python benchmarks/experts.py [--quick] [--json FILE] [--threads N] [--dtype bfloat16]

8 experts of width 128 at hidden size 128, 2 for each token, at even and at skewed load. All forms share the
sorting and the gathers; they differ in how the sorted rows meet their experts' matrices.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import Result, arguments, interleave, measured_rates, show
from torch import Tensor
from torch.autograd import Function

from hadal.ops.attention import swiglu
from hadal.ops.experts import plain_experts, routed_experts

E, P, I, D = 8, 2, 128, 128
Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, list[int]], Tensor]


class _Gather(Function):
    """Rows by index, some of them nobody's; backward sums each token's P rows by gathers."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_M: Tensor, place_NP: Tensor) -> Tensor:
        ctx.save_for_backward(place_NP)
        return x_ND.index_select(0, token_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grads[0].index_select(0, place.flatten()).view(*place.shape, -1).sum(1), None, None


class _Combine(Function):
    """The weighted sum of each token's rows; rows of nobody get no gradient."""

    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, weight_NP: Tensor, token_M: Tensor, place_NP: Tensor) -> Tensor:
        ctx.save_for_backward(y_MD, weight_NP, token_M, place_NP)
        first, second = place_NP.unbind(1)
        out = y_MD.index_select(0, first) * weight_NP[:, :1]
        return out.addcmul_(y_MD.index_select(0, second), weight_NP[:, 1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y, weight, token, place = ctx.saved_tensors
        grad = grads[0].index_select(0, token)
        grad_weight = (grad * y).sum(-1).index_select(0, place.flatten()).view_as(place)
        by_row = weight.new_zeros(len(token))
        by_row[place.flatten()] = weight.flatten()
        return grad.mul_(by_row[:, None]), grad_weight, None, None


def _order(expert_NP: Tensor) -> tuple[Tensor, Tensor]:
    order = expert_NP.flatten().argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return order // P, place.view_as(expert_NP)


def padded(x: Tensor, expert: Tensor, weight: Tensor, up: Tensor, down: Tensor, loads: list[int]) -> Tensor:
    """Every expert's rows padded to the largest load, and two batched products."""
    capacity = max(loads)
    _, place = _order(expert)
    begin = torch.tensor([0, *loads[:-1]]).cumsum(0)
    place = place + (torch.arange(E) * capacity - begin)[expert]
    token = torch.zeros(E * capacity, dtype=torch.long)
    token[place.flatten()] = torch.arange(len(x)).repeat_interleave(P)
    rows = _Gather.apply(x, token, place).view(E, capacity, D)
    out = torch.bmm(swiglu(torch.bmm(rows, up.mT)), down.mT).view(E * capacity, D)
    return _Combine.apply(out, weight, token, place)


def grouped(x: Tensor, expert: Tensor, weight: Tensor, up: Tensor, down: Tensor, loads: list[int]) -> Tensor:
    """torch's private grouped product."""
    token, place = _order(expert)
    ends = torch.tensor(loads).cumsum(0).int()
    rows = _Gather.apply(x, token, place)
    hidden = swiglu(torch._grouped_mm(rows, up.mT, offs=ends))
    return _Combine.apply(torch._grouped_mm(hidden, down.mT, offs=ends), weight, token, place)


def plain(x: Tensor, expert: Tensor, weight: Tensor, up: Tensor, down: Tensor, loads: list[int]) -> Tensor:
    """Every expert over every token: the reference of the tests."""
    return plain_experts(x, expert, weight, up, down)


FORMS: dict[str, Form] = {
    "loop of mm (hadal)": routed_experts,
    "padded, two bmm": padded,
    "torch._grouped_mm": grouped,
    "all tokens, autograd": plain,
}


def main() -> None:
    args = arguments(__doc__)
    rates, name = measured_rates(args)
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    found: list[Result] = []
    for tokens in (64, 512, 1536, 4096):
        for skew in (0.0, 0.7):
            preference = torch.randn(E, generator=generator) * skew
            expert = (preference + torch.randn(tokens, E, generator=generator)).topk(P, dim=1)[1]
            loads = expert.flatten().bincount(minlength=E).tolist()
            inputs = [normal(tokens, D), normal(tokens, P), normal(E, 2 * I, D) / 11, normal(E, D, I) / 11]

            def call(
                form: Form,
                inputs: list[Tensor] = inputs,
                expert: Tensor = expert,
                loads: list[int] = loads,
            ) -> list[Tensor]:
                x, weight, up, down = (t.detach().requires_grad_() for t in inputs)
                out = form(x, expert, weight, up, down, loads)
                out.backward(torch.full_like(out, 0.1))
                return [out, x.grad, weight.grad, up.grad, down.grad]  # type: ignore[list-item]

            reference = call(plain)
            for form in FORMS.values():
                for a, b in zip(call(form), reference, strict=True):
                    torch.testing.assert_close(a, b, atol=1e-3 if name == "float32" else 0.5, rtol=1e-2)
            turns: dict[str, Callable[[], object]] = {
                side: functools.partial(call, form) for side, form in FORMS.items()
            }
            times = interleave(turns, 1.0 if args.quick else 5.0)
            flops = 3 * 2 * P * 3 * I * D * tokens
            first = statistics.median(next(iter(times.values())))
            label = f"{tokens}{'*' if skew else ''}"
            for side, seconds in times.items():
                median = statistics.median(seconds)
                share = flops / median / rates[name]
                found.append(Result(label, side, name, tokens / median, share, median / first, seconds))
    show(args, "experts", found, rates, {"experts": E, "chosen": P, "width": I, "hidden": D})
    print("size: tokens; * at skewed load, the largest expert's about 2.5 times the mean")


if __name__ == "__main__":
    main()
