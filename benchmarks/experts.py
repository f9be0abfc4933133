"""Forms of the routed experts' product, forward and backward: why `hadal.ops.experts` has the one that it has.

    python benchmarks/experts.py [--quick] [--json FILE] [--threads N] [--dtype bfloat16]

8 experts of width 128 at hidden size 128, 2 for each token, at even and at skewed load; 64 and 160 experts of width
64 at hidden size 256, 6 for each token, at even load. All forms share the sorting and the gathers; they differ in how
the sorted rows meet their experts' matrices.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import prepared  # noqa: F401
import torch
from common import Result, arguments, interleave, measured_rates, results, show
from torch import Tensor
from torch.autograd import Function

from hadal.ops.attention import swiglu
from hadal.ops.experts import loop_linear, plain_experts, routed_experts

SHAPES = ((8, 2, 128, 128), (64, 6, 64, 256), (160, 6, 64, 256))  # experts, of a token, width, hidden
Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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
        first, *others = place_NP.unbind(1)
        out = y_MD.index_select(0, first) * weight_NP[:, :1]
        for p, place in enumerate(others, 1):
            out.addcmul_(y_MD.index_select(0, place), weight_NP[:, p : p + 1])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y, weight, token, place = ctx.saved_tensors
        grad = grads[0].index_select(0, token)
        grad_weight = (grad * y).sum(-1).index_select(0, place.flatten()).view_as(place)
        by_row = weight.new_zeros(len(token))
        by_row[place.flatten()] = weight.flatten()
        return grad.mul_(by_row[:, None]), grad_weight, None, None


def padded(x: Tensor, expert: Tensor, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Every expert's rows padded to the largest load, and two batched products."""
    (N, P), E = expert.shape, len(up)
    loads = expert.flatten().bincount(minlength=E)
    capacity = int(loads.max())
    order = expert.flatten().argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    begin = loads.cumsum(0) - loads
    place = place.view(N, P) + (torch.arange(E) * capacity - begin)[expert]
    token = torch.zeros(E * capacity, dtype=torch.long)
    token[place.flatten()] = torch.arange(N).repeat_interleave(P)
    rows = _Gather.apply(x, token, place).view(E, capacity, -1)
    out = torch.bmm(swiglu(torch.bmm(rows, up.mT)), down.mT).view(E * capacity, -1)
    return _Combine.apply(out, weight, token, place)


FORMS: dict[str, Form] = {
    "grouped (hadal)": routed_experts,
    "loop of mm": functools.partial(routed_experts, linear=loop_linear),
    "padded, two bmm": padded,
    "all tokens, autograd": plain_experts,
}


def main() -> None:
    args = arguments(__doc__, [str(shape[0]) for shape in SHAPES])
    rates, name = measured_rates(args)
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    found: list[Result] = []
    chosen = [shape for shape in SHAPES if not args.models or str(shape[0]) in args.models]
    cases = itertools.product(chosen, (64, 512, 4096) if args.quick else (64, 512, 1536, 4096), (0.0, 0.7))
    for (E, P, I, D), tokens, skew in cases:
        if skew and E > 8:
            continue
        preference = torch.randn(E, generator=generator) * skew
        expert = (preference + torch.randn(tokens, E, generator=generator)).topk(P, dim=1)[1]
        inputs = [normal(tokens, D), normal(tokens, P), normal(E, 2 * I, D) / D**0.5, normal(E, D, I) / I**0.5]

        def call(form: Form, inputs: list[Tensor] = inputs, expert: Tensor = expert) -> list[Tensor]:
            x, weight, up, down = (t.detach().requires_grad_() for t in inputs)
            out = form(x, expert, weight, up, down)
            out.backward(torch.full_like(out, 0.1))
            return [out, x.grad, weight.grad, up.grad, down.grad]  # type: ignore[list-item]

        # A hundred passes over all tokens say nothing that eight have not said.
        forms = {side: form for side, form in FORMS.items() if E == 8 or form is not plain_experts}
        reference = call(plain_experts)
        for form in forms.values():
            for a, b in zip(call(form), reference, strict=True):
                torch.testing.assert_close(a, b, atol=1e-3 if name == "float32" else 0.5, rtol=1e-2)
        turns: dict[str, Callable[[], object]] = {side: functools.partial(call, form) for side, form in forms.items()}
        times = interleave(turns, 0.7 if args.quick else 5.0)
        flops = 3 * 2 * P * 3 * I * D
        found += results(f"{E}/{tokens}{'*' if skew else ''}", times, dict.fromkeys(times, name), tokens, flops, rates)
    show(args, "experts", found, rates, {"shapes": SHAPES})
    print("size: experts/tokens; * at skewed load, the largest expert's about 2.5 times the mean")


if __name__ == "__main__":
    main()
