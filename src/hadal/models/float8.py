"""Modules whose matrices stay in DeepSeek's FP8 blocks (`hadal.ops.float8`), for inference on GPUs that have those."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hadal.models.blocks import Experts
from hadal.models.decoder import Decoder
from hadal.models.families import family_of
from hadal.ops.float8 import BLOCK, FLOAT8, Float8Stack, aligned, float8_linear


class _Blocks(nn.Module):
    """FP8 numbers [..., O, K] and their scales."""

    scale: Tensor

    def __init__(self, raw_OK: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.raw = nn.Parameter(raw_OK, requires_grad=False)
        self.register_buffer("scale", aligned(scale))


class Float8Linear(_Blocks):
    """A linear layer; the result has the dtype of what it is given."""

    def __init__(self, raw_OK: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(raw_OK, scale)
        self.bias = bias

    def forward(self, x_D: Tensor) -> Tensor:
        y_NO = float8_linear(x_D.reshape(-1, x_D.shape[-1]), self.raw, self.scale)
        y_NO = y_NO if self.bias is None else y_NO.add_(self.bias)
        return y_NO.view(*x_D.shape[:-1], -1)


class Float8Experts(nn.Module):
    """The routed experts' matrices, gate and up [E, 2I, D] and down [E, D, I]."""

    def __init__(self, gate_up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.gate_up, self.down = _Blocks(*gate_up), _Blocks(*down)

    def matrices(self) -> tuple[Float8Stack, Float8Stack]:
        return Float8Stack(self.gate_up.raw, self.gate_up.scale), Float8Stack(self.down.raw, self.down.scale)


def places(model: Decoder) -> Iterator[tuple[str, list[str]]]:
    """Modules that may keep FP8, each with the names of its matrices in the model's state: not the head, and not what
    stays plain in the family."""
    plain = family_of(model.config).plain
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            yield name, [f"{name}.gate_up_proj", f"{name}.down_proj"]
        elif isinstance(module, nn.Linear) and name != "head" and name.rpartition(".")[2] not in plain:
            yield name, [f"{name}.weight"]


def room(shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Unfilled FP8 numbers and scales of matrices of that shape, which is one of multiples of 128."""
    *outer, O, K = shape
    return torch.empty(shape, dtype=FLOAT8), torch.empty(*outer, O // BLOCK, K // BLOCK)


def keep(model: Decoder, name: str, blocks: list[tuple[Tensor, Tensor]]) -> None:
    """Put FP8 matrices in a module's place."""
    parent, _, own = name.rpartition(".")
    module = model.get_submodule(name)
    new = Float8Linear(*blocks[0], module.bias) if isinstance(module, nn.Linear) else Float8Experts(*blocks)
    setattr(model.get_submodule(parent), own, new)
