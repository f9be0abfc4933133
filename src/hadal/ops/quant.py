"""Quantised linear layers: 8 bits for each output channel, 4 bits for each group of 32 inputs.

Axes as in `hadal.ops.linear`, and G groups. Activations are either left as they are (weight-only) or rounded, each row
by a scale of its own: torch's dynamic operators take one scale for a whole batch, so here rows are scaled before them.
CPUs without VNNI add pairs of 8-bit products in 16 bits and saturate without a word; there rows are rounded to 7 bits,
with which no sum overflows and every product is exact (`levels` finds out by trying).
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
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Parts of a group's range that 4 bits are spread over; each group takes the one with the least squared error."""
_PIECE = 1 << 22  # weights that are quantised at a time


def quantise_int8(weight_OK: Tensor, scales: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Integers [O, K] of -127..127, and what they are multiplied with [O], rounded to `scales` beforehand."""
    weight = weight_OK.detach().float()
    scale_O = (weight.abs().amax(1) / 127).to(scales)
    wide_O1 = scale_O.float().masked_fill(scale_O == 0, 1.0)[:, None]
    return (weight / wide_O1).round_().clamp_(-127, 127).to(torch.int8), scale_O


def quantise_int4(weight_OK: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [O, K] of 0..15, and bf16 [K / 32, O, 2]: the scale of a group, and the value that 8 stands for."""
    weights, scales = [], []
    for piece in weight_OK.detach().split(max(1, _PIECE // weight_OK.shape[1])):
        group_OGK = piece.float().unflatten(1, (-1, GROUP))
        low, high = group_OGK.amin(2, keepdim=True), group_OGK.amax(2, keepdim=True)
        best = torch.full_like(low, float("inf"))
        q_OGK, pair = torch.zeros_like(group_OGK), torch.zeros(*low.shape[:2], 2)
        for part in SHRINK:
            scale = ((high - low) * (part / 15)).bfloat16().float()
            zero = ((high + low) / 2 + scale / 2).bfloat16().float()
            q = ((group_OGK - zero) / scale.masked_fill(scale == 0, 1.0)).round_().add_(8).clamp_(0, 15)
            error = ((q - 8) * scale + zero - group_OGK).square_().sum(2, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            q_OGK = torch.where(better, q, q_OGK)
            pair = torch.where(better, torch.cat([scale, zero], dim=2), pair)
        weights.append(q_OGK.flatten(1).to(torch.uint8))
        scales.append(pair.bfloat16())
    return torch.cat(weights), torch.cat(scales).transpose(0, 1).contiguous()


def dequantise_int4(q_OK: Tensor, pair_GO2: Tensor) -> Tensor:
    """The float32 matrix [O, K] that `quantise_int4` stands for."""
    scale_OG1, zero_OG1 = pair_GO2.float().transpose(0, 1)[:, :, :, None].unbind(2)
    return torch.addcmul(zero_OG1, q_OK.float().sub_(8).unflatten(1, (-1, GROUP)), scale_OG1).flatten(1)


def scale_rows(x_NK: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Rows within -levels..levels, not yet rounded, and their scales [N, 1]; a NaN keeps to its row."""
    scale_N1 = torch.linalg.vector_norm(x_NK, float("inf"), dim=1, keepdim=True).mul_(1 / levels).clamp_(min=1e-30)
    return x_NK / scale_N1, scale_N1


class PlainInt8(Matrix):
    """8-bit weights, multiplied out for each product; activations are not rounded."""

    form, dtype, tolerance = "int8:plain", torch.float32, 2e-2

    def __init__(self, weight_OK: Tensor) -> None:
        self.q_OK, self.scale_O = quantise_int8(weight_OK)
        self.nbytes = self.q_OK.nbytes + self.scale_O.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(x_NK, self.q_OK * self.scale_O[:, None], bias_O)


class WeightOnlyInt8(Matrix):
    """torch's product of bf16 rows with 8-bit weights."""

    form, dtype, tolerance = "int8:weight_only", torch.bfloat16, 2e-2

    def __init__(self, weight_OK: Tensor) -> None:
        self.q_OK, self.scale_O = quantise_int8(weight_OK, torch.bfloat16)
        self.nbytes = self.q_OK.nbytes + self.scale_O.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        y = torch._weight_int8pack_mm(x_NK, self.q_OK, self.scale_O)
        return y if bias_O is None else y.add_(bias_O)


class _Dynamic(Matrix):
    """8-bit weights and rows that are rounded too; integer products, so that the order of addition is no matter."""

    dtype, tolerance = torch.float32, 4e-2

    def __init__(self, weight_OK: Tensor) -> None:
        q_OK, scale_O = quantise_int8(weight_OK)
        self.pack(q_OK, scale_O)
        self.nbytes = q_OK.nbytes + scale_O.nbytes

    def pack(self, q_OK: Tensor, scale_O: Tensor) -> None:
        raise NotImplementedError

    def product(self, x_NK: Tensor, levels: int) -> Tensor:
        """Rounded rows of -levels..levels times the matrix, float32 [N, O]."""
        raise NotImplementedError

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        rounded = levels(self.form)
        scaled_NK, scale_N1 = scale_rows(x_NK, rounded)
        y = self.product(scaled_NK, rounded).mul_(scale_N1)
        return y if bias_O is None else y.add_(bias_O)


class FbgemmInt8(_Dynamic):
    """FBGEMM's integer product."""

    form = "int8:fbgemm"

    def pack(self, q_OK: Tensor, scale_O: Tensor) -> None:
        zeros_O = torch.zeros(len(scale_O), dtype=torch.long)
        with _engine("fbgemm"):
            weight = torch._make_per_channel_quantized_tensor(q_OK, scale_O.double(), zeros_O, 0)
            self._packed = torch.ops.quantized.linear_prepack(weight, None)

    def product(self, x_NK: Tensor, levels: int) -> Tensor:
        op = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return op(x_NK, 1.0, levels + 1, self._packed)


class OnednnInt8(_Dynamic):
    """oneDNN's integer product."""

    form = "int8:onednn"

    def pack(self, q_OK: Tensor, scale_O: Tensor) -> None:
        self._scale_O, self._zeros_O = scale_O, torch.zeros(len(scale_O), dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(q_OK, None)

    def product(self, x_NK: Tensor, levels: int) -> Tensor:
        zero = levels + 1
        q_NK = x_NK.add_(zero + 0.5).to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            q_NK, 1.0, zero, self._packed, self._scale_O, self._zeros_O, None, 1.0, 0, torch.float32, "none", [], ""
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
def levels(form: str) -> int:
    """Steps above zero that a row's largest entry gets: 127 where this CPU then adds up without overflow, else 63."""
    extreme = torch.full((16, 128), 127, dtype=torch.int8)
    matrix = FORMS[form](extreme)
    assert isinstance(matrix, _Dynamic)
    product_NO = matrix.product(torch.full((4, 128), 127.0), 127)
    return 127 if bool((product_NO == 127 * 127 * 128).all()) else 63


class PlainInt4(Matrix):
    """4-bit weights, multiplied out for each product; they lie in a byte each."""

    form, dtype, tolerance = "int4:plain", torch.float32, 0.15

    def __init__(self, weight_OK: Tensor) -> None:
        self.width = weight_OK.shape[1]
        self.q_OK, self.pair_GO2 = quantise_int4(F.pad(weight_OK, (0, -self.width % GROUP)))
        self.nbytes = self.q_OK.nbytes + self.pair_GO2.nbytes

    def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(x_NK, dequantise_int4(self.q_OK, self.pair_GO2)[:, : self.width], bias_O)


class PackedInt4(Matrix):
    """torch's product of bf16 rows with 4-bit weights; it wants O in sixteens, so others are filled up."""

    form, dtype, tolerance = "int4:packed", torch.bfloat16, 0.15

    def __init__(self, weight_OK: Tensor) -> None:
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
