"""DeepSeek's FP8 matrices as they are stored: a byte (e4m3) for a number, a float32 scale for a block of 128 x 128.

Source: DeepSeek-V3 (arXiv 2412.19437), section 3.3. Axes as in `hadal.ops.linear`, and G groups of 128 inputs.
GPUs with tensor cores for FP8 multiply such blocks with rows that are rounded to FP8 too, each group of 128 by a scale
of its own, so that a row's result does not depend on the rows beside it. `multiplies` asks a device whether it does;
elsewhere the matrix is multiplied out each time, which saves memory and no time.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hadal.ops.exact import is_exact
from hadal.ops.experts import grouped_linear
from hadal.ops.linear import Stack

FLOAT8 = torch.float8_e4m3fn
BLOCK = 128
"""Rows and columns of the blocks that share a scale."""
LARGEST = torch.finfo(FLOAT8).max
TINY = 1e-30
"""Least scale that is divided by: blocks of zeros stay zeros."""
TOLERANCE = 0.06
"""Bound on the relative error of a product of Gaussian numbers: both factors have four bits."""


def quantise_blocks(weight_OK: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 [O, K] and scales [O / 128, K / 128] of a matrix whose sizes are multiples of 128."""
    blocks = weight_OK.detach().float().unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = (blocks.abs().amax((1, 3)) / LARGEST).clamp_(min=TINY)
    return (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1).to(FLOAT8), scale


def dequantise(raw_OK: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrices [..., O, K] that FP8 numbers stand for; scales [..., O / 128, K / 128] or wider."""
    blocks = raw_OK.to(dtype).unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    return (blocks * scale[..., :, None, : blocks.shape[-2], None]).to(dtype).flatten(-2).flatten(-3, -2)


def quantise_rows(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 [N, K], and the scales of its groups [N, G], which lie group by group as cuBLAS wants them."""
    group_NGK = x_NK.unflatten(1, (-1, BLOCK)).float()
    scale_NG = (group_NGK.abs().amax(2) / LARGEST).clamp_(min=TINY)
    return (group_NGK / scale_NG[:, :, None]).flatten(1).to(FLOAT8), scale_NG.t().contiguous().t()


def aligned(scale: Tensor) -> Tensor:
    """A matrix's scales with columns of zeros up to a multiple of 4, as cuBLAS wants them."""
    return F.pad(scale, (0, -scale.shape[-1] % 4))


def block_product(x_NK: Tensor, raw_OK: Tensor, scale: Tensor) -> Tensor:
    """x W^T [N, O] in FP8; scales `aligned`. RuntimeError or the like where there is no such product."""
    raw_NK, scale_NG = quantise_rows(F.pad(x_NK, (0, 0, 0, -len(x_NK) % 4)))
    kinds, dtype = F.ScalingType, x_NK.dtype if x_NK.dtype == torch.float32 else torch.bfloat16
    y_NO = F.scaled_mm(
        raw_NK, raw_OK.t(), scale_NG, kinds.BlockWise1x128, scale.t(), kinds.BlockWise128x128, output_dtype=dtype
    )
    return y_NO[: len(x_NK)].to(x_NK.dtype)


@cache
def multiplies(device: torch.device) -> bool:
    """Whether a device has the product of FP8 blocks, and it gives what it should."""
    generator = torch.Generator().manual_seed(0)
    weight_OK, x_NK = (torch.randn(rows, 640, generator=generator) for rows in (256, 5))
    raw, scale = (part.to(device) for part in quantise_blocks(weight_OK))
    try:
        got = block_product(x_NK.to(device, torch.bfloat16), raw, aligned(scale)).cpu().double()
    except (RuntimeError, ValueError, AttributeError):  # no such operator; one that refuses this device
        return False
    expected = x_NK.double() @ weight_OK.double().t()
    return bool((got - expected).norm() <= TOLERANCE * expected.norm())


def float8_linear(x_NK: Tensor, raw_OK: Tensor, scale: Tensor) -> Tensor:
    """x W^T [N, O], by the device's own product where it has one; scales `aligned`."""
    if multiplies(x_NK.device):
        return block_product(x_NK, raw_OK, scale)
    return F.linear(x_NK, dequantise(raw_OK, scale, x_NK.dtype))


class Float8Stack(Stack):
    """The matrices [E, O, K] of a layer's experts. torch has no grouped product of FP8 blocks: they are multiplied out,
    all of them, or where rows are fewer than experts each row's own, and nothing makes the host wait for the loads."""

    keeps_rows = False

    def __init__(self, raw_EOK: Tensor, scale: Tensor) -> None:
        self.raw_EOK, self.scale = raw_EOK, scale
        self.shape, self.width, self.nbytes = raw_EOK.shape, raw_EOK.shape[1], raw_EOK.nbytes + scale.nbytes

    def __len__(self) -> int:
        return len(self.raw_EOK)

    def linear(self, x_MK: Tensor, ends_E: Tensor) -> Tensor:
        if is_exact() or len(x_MK) >= len(self):
            return grouped_linear(x_MK, dequantise(self.raw_EOK, self.scale, x_MK.dtype), ends_E)
        row_M = torch.arange(len(x_MK), device=x_MK.device, dtype=ends_E.dtype)
        expert_M = torch.searchsorted(ends_E, row_M, right=True)
        weight_MOK = dequantise(self.raw_EOK[expert_M], self.scale[expert_M], x_MK.dtype)
        return torch.bmm(weight_MOK, x_MK[:, :, None])[:, :, 0]
