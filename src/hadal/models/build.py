"""A model of a config's family, outlined without memory or built without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.families import family_of


class _Unfilled(TorchFunctionMode):
    """Modules are made without initial values: on shapes alone those cost torch a start of its compiler, 2 s."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def outline(config: ModelConfig) -> Decoder:
    """A model of the config's family whose weights have shapes and no memory."""
    with torch.device("meta"), _Unfilled():
        return family_of(config).network(config)


def build(config: ModelConfig) -> Decoder:
    """An uninitialised model of the config's family, in float32."""
    model = outline(config)
    state = {
        name: torch.empty(like.shape) if like.dim() > 1 else torch.full(like.shape, float(not name.endswith("bias")))
        for name, like in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model
