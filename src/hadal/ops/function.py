"""Functions with a backward pass of their own, called without it where no gradient is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _Unsaved:
    """What a forward pass writes its notes to where nobody will read them."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        pass


def run(function: type[Function], *arguments: Any) -> Tensor:
    """function.apply(*arguments), or its forward pass alone: decoding calls hundreds a token, and autograd's part of
    each takes as long as one of its kernels."""
    out: Tensor
    if torch.is_grad_enabled():
        out = function.apply(*arguments)
    else:
        out = function.forward(_Unsaved(), *arguments)
    return out
