"""Quantised linear layers: 8 bits for each output channel, 4 bits for each group of 32 inputs.

Axes as in `hadal.ops.linear`, and G groups. Activations are either left as they are (weight-only) or rounded to 8 bits,
each row by a scale of its own: torch's dynamic operators take one scale for a whole batch, so rows are scaled before.
CPUs without VNNI add pairs of 8-bit products in 16 bits and saturate without a word. There weights are rounded to 7
bits, with which no sum overflows and every product is exact (`weight_levels` finds out by trying); 7 bits for the
activations instead would lose twice as much (docs/quantisation.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hadal.ops.linear import FORMS, Matrix

KINDS = ("int8", "int4")
GROUP = 32
"""Inputs that share a scale and a zero in 4 bits."""
ZERO = 128
"""The unsigned byte that stands for 0 in rows of activations."""
TINY = 1e-30
"""Least scale that is divided by: rows and groups of zeros stay zeros."""
_PIECE = 1 << 17  # weights that are quantised at a time


def _pieces(weight_OK: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows in float32, as many at a time as a core's cache holds."""
    rows = max(1, _PIECE // weight_OK.shape[1])
    for begin in range(0, len(weight_OK), rows):
        part = slice(begin, begin + rows)
        yield part, weight_OK[part].detach().float()


def quantise_int8(weight_OK: Tensor, levels: int = 127, scales: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Integers [O, K] of -levels..levels, and what they are multiplied with [O], rounded to `scales` beforehand."""
    q_OK = torch.empty(weight_OK.shape, dtype=torch.int8)
    scale_O = torch.empty(len(weight_OK), dtype=scales)
    for part, weight in _pieces(weight_OK):
        scale_O[part] = torch.linalg.vector_norm(weight, float("inf"), dim=1) / levels
        wide_O1 = scale_O[part].float().clamp_(min=TINY)[:, None]
        q_OK[part] = (weight / wide_O1).round_().clamp_(-levels, levels)
    return q_OK, scale_O


def quantise_int4(weight_OK: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [O, K] of 0..15, and bf16 [K / 32, O, 2]: the scale of a group, and the value that 8 stands for.

    A group's range is divided into 15 steps. Narrower ranges with a smaller squared error gave no smaller divergence.
    """
    O, K = weight_OK.shape
    q_OK = torch.empty(O, K, dtype=torch.uint8)
    pair_GO2 = torch.empty(K // GROUP, O, 2, dtype=torch.bfloat16)
    for part, weight in _pieces(weight_OK):
        group_OGK = weight.unflatten(1, (-1, GROUP))
        low, high = torch.aminmax(group_OGK, dim=2, keepdim=True)
        scale = ((high - low) / 15).bfloat16().float()
        zero = low.add_(scale, alpha=8).bfloat16().float()
        q_OK[part] = ((group_OGK - zero) / scale.clamp(min=TINY)).round_().clamp_(-8, 7).add_(8).flatten(1)
        pair_GO2[:, part] = torch.cat([scale, zero], dim=2).transpose(0, 1)
    return q_OK, pair_GO2


def dequantise_int4(q_OK: Tensor, pair_GO2: Tensor) -> Tensor:
    """The float32 matrix [O, K] that `quantise_int4` stands for."""
    scale_OG1, zero_OG1 = pair_GO2.float().transpose(0, 1)[:, :, :, None].unbind(2)
    return torch.addcmul(zero_OG1, q_OK.float().sub_(8).unflatten(1, (-1, GROUP)), scale_OG1).flatten(1)


def scale_rows(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows within -127..127, not yet rounded, and their scales [N, 1]; a NaN keeps to its row."""
    scale_N1 = torch.linalg.vector_norm(x_NK, float("inf"), dim=1, keepdim=True).mul_(1 / 127).clamp_(min=TINY)
    return x_NK / scale_N1, scale_N1


class PlainInt8(Matrix):
    """8-bit weights, multiplied out for each product; activations are not rounded."""

    form, dtype, tolerance = "int8:plain", torch.float32, 2e-2

    def __init__(self, weight_OK: Tensor) -> None:
        super().__init__(weight_OK)
        self.q_OK, self.scale_O = quantise_int8(weight_OK)
        self.nbytes = self.q_OK.nbytes + self.scale_O.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(x_NK, self.q_OK * self.scale_O[:, None], bias_O)


class WeightOnlyInt8(Matrix):
    """torch's product of bf16 rows with 8-bit weights.

    With AVX512 it reads inputs in sixteens whatever their number, and past the end of memory, so others are filled up.
    """

    form, dtype, tolerance = "int8:weight_only", torch.bfloat16, 2e-2

    def __init__(self, weight_OK: Tensor) -> None:
        super().__init__(weight_OK)
        self.fill = -weight_OK.shape[1] % 16
        self.q_OK, self.scale_O = quantise_int8(F.pad(weight_OK, (0, self.fill)), scales=torch.bfloat16)
        self.nbytes = self.q_OK.nbytes + self.scale_O.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        x_NK = F.pad(x_NK, (0, self.fill)) if self.fill else x_NK
        y = torch._weight_int8pack_mm(x_NK, self.q_OK, self.scale_O)
        return y if bias_O is None else y.add_(bias_O)


class _Dynamic(Matrix):
    """8-bit weights and rows that are rounded too; integer products, so that the order of addition is no matter."""

    dtype, tolerance = torch.float32, 3e-2

    def __init__(self, weight_OK: Tensor) -> None:
        super().__init__(weight_OK)
        q_OK, scale_O = quantise_int8(weight_OK, weight_levels(self.form))
        self.pack(q_OK, scale_O)
        self.nbytes = q_OK.nbytes + scale_O.nbytes

    def pack(self, q_OK: Tensor, scale_O: Tensor) -> None:
        raise NotImplementedError

    def product(self, x_NK: Tensor) -> Tensor:
        """Rows of -127..127, rounded, times the matrix; float32 [N, O]."""
        raise NotImplementedError

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        scaled_NK, scale_N1 = scale_rows(x_NK)
        y = self.product(scaled_NK).mul_(scale_N1)
        return y if bias_O is None else y.add_(bias_O)


class FbgemmInt8(_Dynamic):
    """FBGEMM's integer product."""

    form = "int8:fbgemm"

    def pack(self, q_OK: Tensor, scale_O: Tensor) -> None:
        zeros_O = torch.zeros(len(scale_O), dtype=torch.long)
        with _engine("fbgemm"):
            weight = torch._make_per_channel_quantized_tensor(q_OK, scale_O.double(), zeros_O, 0)
            self._packed = torch.ops.quantized.linear_prepack(weight, None)

    def product(self, x_NK: Tensor) -> Tensor:
        op = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return op(x_NK, 1.0, ZERO, self._packed)


class OnednnInt8(_Dynamic):
    """oneDNN's integer product."""

    form = "int8:onednn"

    def pack(self, q_OK: Tensor, scale_O: Tensor) -> None:
        self._scale_O, self._zeros_O = scale_O, torch.zeros(len(scale_O), dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(q_OK, None)

    def product(self, x_NK: Tensor) -> Tensor:
        q_NK = x_NK.add_(ZERO + 0.5).to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            q_NK, 1.0, ZERO, self._packed, self._scale_O, self._zeros_O, None, 1.0, 0, torch.float32, "none", [], ""
        )


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """torch's setting of whom quantised weights are packed for; without the warning that its constructors will go."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before


@cache
def weight_levels(form: str) -> int:
    """Steps above zero that a channel's largest weight gets: 127 where this CPU then adds without overflow, else 63."""
    matrix = FORMS[form].__new__(FORMS[form])
    assert isinstance(matrix, _Dynamic)
    matrix.pack(torch.full((16, 128), 127, dtype=torch.int8), torch.ones(16))
    product_NO = matrix.product(torch.full((4, 128), 127.0))
    return 127 if bool((product_NO == 127 * 127 * 128).all()) else 63


class PlainInt4(Matrix):
    """4-bit weights, multiplied out for each product; they lie in a byte each."""

    form, dtype, tolerance = "int4:plain", torch.float32, 0.15

    def __init__(self, weight_OK: Tensor) -> None:
        super().__init__(weight_OK)
        self.width = weight_OK.shape[1]
        self.q_OK, self.pair_GO2 = quantise_int4(F.pad(weight_OK, (0, -self.width % GROUP)))
        self.nbytes = self.q_OK.nbytes + self.pair_GO2.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(x_NK, dequantise_int4(self.q_OK, self.pair_GO2)[:, : self.width], bias_O)


class PackedInt4(Matrix):
    """torch's product of bf16 rows with 4-bit weights; it wants O in sixteens, so others are filled up."""

    form, dtype, tolerance = "int4:packed", torch.bfloat16, 0.15

    def __init__(self, weight_OK: Tensor) -> None:
        super().__init__(weight_OK)
        self.height, width = weight_OK.shape
        self.fill = -width % GROUP
        q_OK, self.pair_GO2 = quantise_int4(F.pad(weight_OK, (0, self.fill, 0, -self.height % 16)))
        self._packed = torch._convert_weight_to_int4pack_for_cpu(q_OK.int(), 1)
        self.nbytes = self._packed.nbytes + self.pair_GO2.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        x_NK = F.pad(x_NK, (0, self.fill)) if self.fill else x_NK
        y = torch._weight_int4pack_mm_for_cpu(x_NK, self._packed, GROUP, self.pair_GO2)[:, : self.height]
        return y if bias_O is None else y + bias_O


QUANTISED = (PlainInt8, FbgemmInt8, OnednnInt8, WeightOnlyInt8, PlainInt4, PackedInt4)
FORMS.update({form.form: form for form in QUANTISED})
