"""Inference's linear layers: a matrix is packed once for one operator, and multiplied with many times.

Axes: N rows (tokens), K in, O out, E experts. A form's name is its kind and its operator, "float32:onednn"; the kind
says how weights are stored, and each has a form "plain" out of public operators, which tests hold the others to.
Operators that are private to torch, or will go, are named here and in `hadal.ops.quant` alone, and `works` asks
each whether it is there and gives what it should, before anyone relies on it.

A row's result must not depend on the rows beside it, and some operators take another order of addition where
rows are few, or in a range of counts that the matrix's shape decides. `row_counts` finds out for which at the shapes
in use, and `Matrix.rows` adds rows of zeros up to the next count that is alike. `keeps_rows` says if that is enough.
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
"""Row counts that `usual_counts` tries; longer inputs are cut where an operator's order of addition varies so far."""
PROBES = ((32, 32, PROBED), (64, 64, 16), (64, 8192, 16))
"""[O, K] of the matrices that it tries them on, and up to which: long sums of few rows have an order of their own."""
LARGE = 256
"""Rows of the product that others are held to at a matrix's own shape."""
TRIED = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
"""Row counts that are tried there first: a range of special ones is wider than what lies between two of these."""
TALLEST = 2048
"""Outputs that a matrix is tried with at most: of more, libraries have more pieces, and the pieces are the same."""
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
        self.shape = (weight_OK.shape[0], weight_OK.shape[1])

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """x W^T + b, [N, O]; [..., K] to [..., O] for forms that are `leading`."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The matrix [O, K] as it was given; of plain forms alone."""
        raise NotImplementedError

    def rows(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """The same, and each row's bits are those it gets in any other batch."""
        counts = row_counts(self.form, self.shape, torch.get_num_threads())
        return steadily(lambda x: self(x, bias_O), x_NK, counts)


class _Plain(Matrix):
    """torch's own linear layer."""

    def __init__(self, weight_OK: Tensor) -> None:
        super().__init__(weight_OK)
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
        raise UserError("The model has weights above 65,504, where float16 ends.", "Use float32 or bfloat16.")
    return weight_OK.detach().to(torch.float16).contiguous()


class PlainFloat16(Matrix):
    """Weights in float16, activations and sums in float32: on bf16 checkpoints this rounds next to nothing."""

    form, dtype, tolerance = "float16:plain", torch.float32, 1e-3

    def __init__(self, weight_OK: Tensor) -> None:
        super().__init__(weight_OK)
        self.weight_OK = _float16(weight_OK)
        self.nbytes = self.weight_OK.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(x_NK, self.weight_OK.float(), bias_O)


class _Onednn(Matrix):
    """oneDNN's linear layer over a matrix in its own blocked layout; two rows take it a fifth longer than four."""

    leading, padded_to = True, 4

    def __init__(self, weight_OK: Tensor) -> None:
        super().__init__(weight_OK)
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
        super().__init__(weight_OK)
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
def usual_counts(form: str, threads: int) -> tuple[int, ...]:
    """For each count of rows up to `PROBED`, the next one whose results are bit-equal to those of `PROBED` rows.

    Of small matrices, whatever their shape. threads: what torch.get_num_threads() gives, upon which the answer depends.
    """
    matrix = FORMS[form]
    tried: list[tuple[int, ...]] = []
    for O, K, most in PROBES:
        weight_OK, x_NK = cancelling(O, K, PROBED, matrix.dtype)
        tried.append(alike(matrix(weight_OK), x_NK, range(1, most + 1)))
    return _with_company(matrix, [all(counts[n] == n for counts in tried) for n in range(PROBED + 1)])


def row_counts(form: str, shape: tuple[int, int], threads: int) -> tuple[int, ...]:
    """For each count of rows, the next one that a matrix of this shape [O, K] gives the bits that it gives to many."""
    return _at_shape(form, min(shape[0], TALLEST), shape[1], threads)[0]


def keeps_rows(form: str, shape: tuple[int, int], threads: int) -> bool:
    """Whether rows that are padded to `row_counts` get the same bits in any company here."""
    return _at_shape(form, min(shape[0], TALLEST), shape[1], threads)[1]


@cache
def _at_shape(form: str, O: int, K: int, threads: int) -> tuple[tuple[int, ...], bool]:
    """The counts, and whether they are enough.

    The usual ones are tried first, which takes some milliseconds. Only where they are not enough all are.
    """
    weight_OK, x_NK = cancelling(O, K, LARGE, FORMS[form].dtype)
    matrix = FORMS[form](weight_OK)
    usual = usual_counts(form, threads)
    if _steady(matrix, x_NK, usual):
        return usual, True
    tried = [*range(1, PROBED), *range(PROBED, LARGE, 16)]
    found = alike(matrix, x_NK, tried)
    counts = _with_company(FORMS[form], [found[n] == n and n in (0, *tried, LARGE) for n in range(LARGE + 1)])
    return counts, _steady(matrix, x_NK, counts)


def _with_company(matrix: type[Matrix], good: Sequence[bool]) -> tuple[int, ...]:
    """The next good count for each; where a row must not be alone, not fewer than the form wants."""
    least = 0 if good[1] else matrix.padded_to
    return _next(fits and (n == 0 or n >= least) for n, fits in enumerate(good))


def _steady(matrix: Matrix, x_NK: Tensor, counts: Sequence[int]) -> bool:
    """Whether the last rows have the same bits by themselves, where they come first, as behind all the others.

    Inputs that are cut must be as they would be in one piece: not every layer can cut them.
    """
    whole = steadily(matrix, x_NK, counts)
    pieces = len(counts) - 1
    if not _only_few(counts):
        if not torch.equal(matrix(torch.cat([x_NK[:pieces]] * 2)), torch.cat([whole[:pieces]] * 2)):
            return False
    return all(torch.equal(steadily(matrix, x_NK[-n:].contiguous(), counts), whole[-n:]) for n in TRIED)


def cancelling(O: int, K: int, N: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A float32 matrix [O, K] and rows [N, K] whose products are 0: what they give is how their sums were rounded.

    Sums of bf16 are rounded to 8 bits at the end, which hides most of what another order of addition changes: here
    nothing else is left of them. Rows of the matrix come again after `PROBED`: drawing more would take longer than
    multiplying. Of an odd K the last input is 0.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(min(O, PROBED), K // 2, generator=generator)
    x = torch.randn(N, K // 2, generator=generator)
    order = torch.randperm(K // 2 * 2, generator=generator)
    weight, x = torch.cat([weight, weight], 1)[:, order], torch.cat([x, -x], 1)[:, order].to(dtype)
    return F.pad(weight.repeat(-(-O // PROBED), 1)[:O], (0, K % 2)), F.pad(x, (0, K % 2))


def alike(product: Callable[[Tensor], Tensor], x_NK: Tensor, tried: Iterable[int] | None = None) -> tuple[int, ...]:
    """For each count 0..N, the next one whose product of x's last rows is bit-equal to their part of the whole one.

    tried: other counts are taken to be, without a trial.
    """
    whole, N = product(x_NK), len(x_NK)
    counts = [n for n in (range(1, N) if tried is None else tried) if n < N]
    differ = {n for n in counts if not torch.equal(product(x_NK[N - n :].contiguous()), whole[N - n :])}
    return _next(n not in differ for n in range(N + 1))


def _next(good: Iterable[bool]) -> tuple[int, ...]:
    """For each index, itself or the next one that is good, as the last is."""
    counts: list[int] = []
    for n, fits in reversed(list(enumerate(good))):
        counts.append(n if fits or not counts else counts[-1])
    return tuple(reversed(counts))


def _only_few(counts: Sequence[int]) -> bool:
    """Whether only small counts are special, so that longer inputs need not be cut."""
    probed = len(counts) - 1
    return counts[probed // 2 :] == tuple(range(probed // 2, probed + 1))


def steadily(product: Callable[[Tensor], Tensor], x_K: Tensor, counts: Sequence[int]) -> Tensor:
    """product(x) for a product of rows [..., K], in counts of rows alone that `alike` found to be safe."""
    rows = x_K.shape[:-1]
    count, probed = rows.numel(), len(counts) - 1
    if count > probed:
        if _only_few(counts):
            return product(x_K)
        out = torch.cat([steadily(product, part, counts) for part in x_K.flatten(0, -2).split(probed)])
    elif counts[count] == count:
        return product(x_K)
    else:
        out = product(F.pad(x_K.flatten(0, -2), (0, 0, 0, counts[count] - count)))[:count]
    return out.view(*rows, -1)


Sized = tuple[str, int, int]
"""A form, and the O and K of a matrix."""


def rows_alike(matrices: tuple[Sized, ...], count: int, cut: bool = False) -> int:
    """The least number of rows, `count` or more, at which `Matrix.rows` of none of these adds any of its own.

    cut: all are multiplied by `Matrix.rows`, which cuts long inputs, and not by what takes them in one piece.
    """
    return _least(common_counts(matrices, torch.get_num_threads(), cut), count, cut)


@cache
def common_counts(matrices: tuple[Sized, ...], threads: int, cut: bool = False) -> tuple[int, ...]:
    """For each count of rows up to `LARGE`, the next one that all of these matrices take."""
    each = [row_counts(form, (O, K), threads) for form, O, K in matrices]
    return _next(all(_least(counts, n, cut) == n for counts in each) for n in range(LARGE + 1))


def _least(counts: Sequence[int], n: int, cut: bool) -> int:
    """The least number of rows, n or more, that `steadily` multiplies as they are.

    Beyond what was tried these are whole pieces of that size, and where the input is cut any good count behind them.
    """
    probed = len(counts) - 1
    if n <= probed:
        return counts[n]
    if _only_few(counts):
        return n
    whole = n // probed * probed if cut else -(-n // probed) * probed
    return whole + counts[n - whole] if whole < n else whole


class Stack:
    """The matrices [E, O, K] of a layer's experts, each packed."""

    keeps_rows: ClassVar[bool] = True
    """Whether a row gets the same bits in a group of any size, where results must be exact."""

    def __init__(self, form: type[Matrix], weight_EOK: Tensor, fast: bool = False) -> None:
        self.matrices = [form(weight_OK) for weight_OK in weight_EOK]
        self.shape, self.width = weight_EOK.shape, weight_EOK.shape[1]
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
    threads = torch.get_num_threads()
    counts: dict[str, tuple[int, ...]] = {} if fast else {form: usual_counts(form, threads) for form in forms}
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
                    matrix(x[K]) if fast else steadily(matrix, x[K], counts[form])
                taken.append(time.perf_counter() - began)
        if turn == 1 and time.perf_counter() > end - seconds / 2:
            best = [min(times[form][i][1] for form in forms) for i in range(len(rows))]
            ratios = {f: [t[1] / b for t, b in zip(times[f], best, strict=True)] for f in going}
            going = [f for f in going if statistics.geometric_mean(ratios[f]) < 2]
        turn += 1
    least = {form: [min(t[1:]) for t in taken] for form, taken in times.items()}
    return dict(sorted(least.items(), key=lambda item: statistics.geometric_mean(item[1])))
