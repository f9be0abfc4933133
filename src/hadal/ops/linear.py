"""Inference's linear layers: a matrix is packed once for one operator, and multiplied with many times.

Axes: N rows (tokens), K in, O out, E experts. A form's name is its kind and its operator, "float32:onednn"; the kind
says how weights are stored, and each has a form "plain" out of public operators, which tests hold the others to.
Operators that are private to torch, or will go, are named here and in `hadal.ops.quant` alone, and `works` asks
each whether it is there and gives what it should, before anyone relies on it.

A row's result must not depend on the rows beside it, and some operators take another order of addition where
rows are few. `row_counts` finds out for which, and `Matrix.rows` adds rows of zeros up to the next count that is alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hadal.errors import UserError

PROBED = 128
"""Row counts that `row_counts` tries; longer inputs are cut where the operator's order of addition varies so far up."""
PROBES = ((32, 32, PROBED), (64, 64, PROBED), (64, 8192, 16))
"""[O, K] of the matrices that it tries them on, and up to which: long sums of few rows have an order of their own."""
PACKED_FOR = 64
"""Rows that oneDNN is told to expect; its layout serves the other counts as well."""


class Matrix:
    """A packed matrix [O, K]; what it is called with and what it gives is in `dtype`."""

    form: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    tolerance: ClassVar[float]
    """Bound on the relative error of a product of Gaussian numbers, in the L2 norm, that `works` asks for."""
    leading: ClassVar[bool] = False
    """Whether rows may lie along several axes, [..., K], and get the bits that they would get along one."""
    padded_to: ClassVar[int] = 1
    """Fewest rows where one has to be given company."""
    nbytes: int

    def __init__(self, weight_OK: Tensor) -> None:
        raise NotImplementedError

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """x W^T + b, [N, O]; [..., K] to [..., O] for forms that are `leading`."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The matrix [O, K] as it was given; of plain forms alone."""
        raise NotImplementedError

    def rows(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """The same, and each row's bits are those it gets in any other batch."""
        counts = row_counts(self.form, torch.get_num_threads())
        return steadily(lambda x: self(x, bias_O), x_NK, counts)


class _Plain(Matrix):
    """torch's own linear layer."""

    def __init__(self, weight_OK: Tensor) -> None:
        self.weight_OK = weight_OK.detach().to(self.dtype)
        self.nbytes = self.weight_OK.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(x_NK, self.weight_OK, bias_O)

    def dense(self) -> Tensor:
        return self.weight_OK


class PlainFloat64(_Plain):
    form, dtype, tolerance = "float64:plain", torch.float64, 1e-12


class PlainFloat32(_Plain):
    form, dtype, tolerance = "float32:plain", torch.float32, 1e-5


class PlainBfloat16(_Plain):
    form, dtype, tolerance = "bfloat16:plain", torch.bfloat16, 8e-3


def _float16(weight_OK: Tensor) -> Tensor:
    low, high = torch.aminmax(weight_OK.detach())
    if max(-low, high) > torch.finfo(torch.float16).max:
        raise UserError("The model has weights above 65,504, where float16 ends.", "Take float32 or bfloat16.")
    return weight_OK.detach().to(torch.float16).contiguous()


class PlainFloat16(Matrix):
    """Weights in float16, activations and sums in float32: on bf16 checkpoints this rounds next to nothing."""

    form, dtype, tolerance = "float16:plain", torch.float32, 1e-3

    def __init__(self, weight_OK: Tensor) -> None:
        self.weight_OK = _float16(weight_OK)
        self.nbytes = self.weight_OK.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(x_NK, self.weight_OK.float(), bias_O)


class _Onednn(Matrix):
    """oneDNN's linear layer over a matrix in its own blocked layout; two rows take it a fifth longer than four."""

    leading, padded_to = True, 4

    def __init__(self, weight_OK: Tensor) -> None:
        weight = weight_OK.detach().to(self.dtype).contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
        self.nbytes = weight.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_NK, self._packed, bias_O, "none", [], "")


class OnednnFloat32(_Onednn):
    form, dtype, tolerance = "float32:onednn", torch.float32, 1e-5


class OnednnBfloat16(_Onednn):
    form, dtype, tolerance = "bfloat16:onednn", torch.bfloat16, 8e-3


class FbgemmFloat16(Matrix):
    """FBGEMM's product: weights are read in float16 and multiplied in float32."""

    form, dtype, tolerance, leading = "float16:fbgemm", torch.float32, 1e-3, True

    def __init__(self, weight_OK: Tensor) -> None:
        self._packed = torch.ops.quantized.linear_prepack_fp16(_float16(weight_OK).float(), None)
        self.nbytes = 2 * weight_OK.numel()

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        y = torch.ops.quantized.linear_dynamic_fp16(x_NK, self._packed)
        return y if bias_O is None else y.add_(bias_O)


FORMS: dict[str, type[Matrix]] = {
    form.form: form
    for form in (
        PlainFloat64, PlainFloat32, OnednnFloat32, PlainBfloat16, OnednnBfloat16, PlainFloat16, FbgemmFloat16,
    )
}  # fmt: skip
"""Every form by its name, of each kind the plain one first; `hadal.ops.quant` adds its own."""


def kind_of(form: str) -> str:
    return form.partition(":")[0]


@cache
def works(form: str) -> bool:
    """Whether this torch has the operator, on this CPU, and it multiplies as it should."""
    matrix = FORMS[form]
    generator = torch.Generator().manual_seed(0)
    weight_OK, x_NK = torch.randn(80, 96, generator=generator), torch.randn(5, 96, generator=generator)
    expected = x_NK.double() @ weight_OK.double().t()
    try:
        got = matrix(weight_OK)(x_NK.to(matrix.dtype)).double()
    except (RuntimeError, AttributeError):  # no such operator; one that refuses this CPU
        return False
    return bool((got - expected).norm() <= matrix.tolerance * expected.norm())


def usable(kind: str) -> list[str]:
    """The forms of a kind that work here, the plain one first."""
    return [form for form in FORMS if kind_of(form) == kind and works(form)]


# Rows that do not know each other


@cache
def row_counts(form: str, threads: int) -> tuple[int, ...]:
    """For each count of rows up to `PROBED`, the next one whose results are bit-equal to those of `PROBED` rows.

    threads: what torch.get_num_threads() gives, upon which the answer depends.
    """
    matrix = FORMS[form]
    tried: list[tuple[int, ...]] = []
    for O, K, most in PROBES:
        weight_OK, x_NK = cancelling(O, K, PROBED, matrix.dtype)
        tried.append(alike(matrix(weight_OK), x_NK, most))
    good = [all(counts[n] == n for counts in tried) for n in range(PROBED + 1)]
    least = 0 if good[1] else matrix.padded_to
    return _next(fits and (n == 0 or n >= least) for n, fits in enumerate(good))


def cancelling(O: int, K: int, N: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A float32 matrix [O, K] and rows [N, K] whose products are 0: what they give is how their sums were rounded.

    Sums of bf16 are rounded to 8 bits at the end, which hides most of what another order of addition changes: here
    nothing else is left of them.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(O, K // 2, generator=generator), torch.randn(N, K // 2, generator=generator)
    order = torch.randperm(K, generator=generator)
    return torch.cat([weight, weight], 1)[:, order], torch.cat([x, -x], 1)[:, order].to(dtype)


def alike(product: Callable[[Tensor], Tensor], x_NK: Tensor, most: int = PROBED) -> tuple[int, ...]:
    """For each count 0..N of x's first rows, the next count whose rows are bit-equal to the product of all.

    most: counts above it are taken to be, without a trial.
    """
    whole = product(x_NK)
    tried = range(1, min(most, len(x_NK) - 1) + 1)
    differ = {n for n in tried if not torch.equal(product(x_NK[:n].contiguous()), whole[:n])}
    return _next(n not in differ for n in range(len(x_NK) + 1))


def _next(good: Iterable[bool]) -> tuple[int, ...]:
    """For each index, itself or the next one that is good, as the last is."""
    counts: list[int] = []
    for n, fits in reversed(list(enumerate(good))):
        counts.append(n if fits or not counts else counts[-1])
    return tuple(reversed(counts))


def steadily(product: Callable[[Tensor], Tensor], x_K: Tensor, counts: Sequence[int]) -> Tensor:
    """product(x) for a product of rows [..., K], in counts of rows alone that `alike` found to be safe."""
    rows = x_K.shape[:-1]
    count, probed = rows.numel(), len(counts) - 1
    if count > probed:
        if counts[probed // 2 :] == tuple(range(probed // 2, probed + 1)):
            return product(x_K)  # only small counts are special
        out = torch.cat([steadily(product, part, counts) for part in x_K.flatten(0, -2).split(probed)])
    elif counts[count] == count:
        return product(x_K)
    else:
        out = product(F.pad(x_K.flatten(0, -2), (0, 0, 0, counts[count] - count)))[:count]
    return out.view(*rows, -1)


def rows_alike(form: str, count: int) -> int:
    """The least number of rows, `count` or more, at which `Matrix.rows` adds none of its own."""
    counts = row_counts(form, torch.get_num_threads())
    return counts[count] if count < len(counts) else count


class Stack:
    """The matrices [E, O, K] of a layer's experts, each packed."""

    keeps_rows: ClassVar[bool] = True
    """Whether a row gets the same bits in a group of any size, where results must be exact."""

    def __init__(self, form: type[Matrix], weight_EOK: Tensor, fast: bool = False) -> None:
        self.matrices = [form(weight_OK) for weight_OK in weight_EOK]
        self.width = weight_EOK.shape[1]
        self.nbytes = sum(matrix.nbytes for matrix in self.matrices)
        self.fast = fast

    def __len__(self) -> int:
        return len(self.matrices)

    def linear(self, x_MK: Tensor, ends_E: Tensor) -> Tensor:
        """Rows ends[e - 1]..ends[e] of x times the transpose of matrix e, for every e; [M, O]."""
        out_MO = x_MK.new_empty(len(x_MK), self.width)
        x_MK = x_MK.to(self.matrices[0].dtype)
        begin = 0
        for matrix, end in zip(self.matrices, ends_E.tolist(), strict=True):
            if end > begin:
                x = x_MK[begin:end]
                out_MO[begin:end] = matrix(x) if self.fast else matrix.rows(x)
            begin = end
        return out_MO


# Which is fastest


def measure(
    forms: Sequence[str], shapes: Sequence[tuple[int, int]], rows: Sequence[int], seconds: float, fast: bool = False
) -> dict[str, list[float]]:
    """Least seconds of one pass of `rows[i]` rows over matrices of these shapes [O, K], by form; fastest first.

    The forms take turns, the first is warm-up (oneDNN makes its code then). The least counts: what else a machine does
    only ever adds. Where half of `seconds` is gone after the second turn, packing counted, a form that took twice the
    fastest times there, in the geometric mean over the counts of rows, is out. fast: not each row by `rows`.
    """
    if not fast:
        for form in forms:
            row_counts(form, torch.get_num_threads())
    end = time.perf_counter() + seconds
    sizes = sorted({K for _, K in shapes})
    packed = {form: [FORMS[form](torch.full(shape, 0.01)) for shape in shapes] for form in forms}
    inputs = {form: [{K: torch.ones(n, K, dtype=FORMS[form].dtype) for K in sizes} for n in rows] for form in forms}
    times: dict[str, list[list[float]]] = {form: [[] for _ in rows] for form in forms}
    going, turn = list(forms), 0
    while turn < 4 or (time.perf_counter() < end and turn < 20):
        for form in going:
            for x, taken in zip(inputs[form], times[form], strict=True):
                began = time.perf_counter()
                for (_, K), matrix in zip(shapes, packed[form], strict=True):
                    (matrix if fast else matrix.rows)(x[K])
                taken.append(time.perf_counter() - began)
        if turn == 1 and time.perf_counter() > end - seconds / 2:
            best = [min(times[form][i][1] for form in forms) for i in range(len(rows))]
            ratios = {f: [t[1] / b for t, b in zip(times[f], best, strict=True)] for f in going}
            going = [f for f in going if statistics.geometric_mean(ratios[f]) < 2]
        turn += 1
    least = {form: [min(t[1:]) for t in taken] for form, taken in times.items()}
    return dict(sorted(least.items(), key=lambda item: statistics.geometric_mean(item[1])))
