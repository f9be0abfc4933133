"""What layers of several families are made of. Axes as in `hadal.models.decoder`; E experts, I their width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hadal.ops.attention import swiglu
from hadal.ops.norm import rms_norm, rotary_tables
from hadal.ops.rope import Rope


class Norm(nn.Module):
    """RMSNorm with a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_D: Tensor) -> Tensor:
        return rms_norm(x_D, self.weight, self.eps)


class RotaryTable(nn.Module):
    """cos and sin [positions, dim / 2] of rotary positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, positions: int, rope: Rope) -> None:
        super().__init__()
        self.rope = rope
        cos, sin = rotary_tables(positions, rope.dim, rope.theta, rope.scaling)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: int, positions_BT: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Those of the first `tokens` positions, [T, 1, R/2], or of the given ones, [B, T, 1, R/2]."""
        if positions_BT is None:
            cos, sin = self.cos[:tokens, None], self.sin[:tokens, None]
        else:
            cos, sin = self.cos[positions_BT][:, :, None], self.sin[positions_BT][:, :, None]
        return cos.to(dtype), sin.to(dtype)


class LowRank:
    """A linear layer that is more than its `weight` (`hadal.models.lora`)."""

    def full_weight(self) -> Tensor:
        """The matrix that the layer stands for."""
        raise NotImplementedError


def full_weight(linear: nn.Linear) -> Tensor:
    """The matrix of a linear layer, for those who multiply with it themselves."""
    return linear.full_weight() if isinstance(linear, LowRank) else linear.weight


class FeedForward(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, hidden: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * width, bias=bias)
        self.down_proj = nn.Linear(width, hidden, bias=bias)

    def forward(self, x_D: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_up_proj(x_D)))


class Experts(nn.Module):
    """The matrices of a layer's routed experts, stacked: gate and up [E, 2I, D], and down [E, D, I]."""

    def __init__(self, gate_up_proj: nn.Parameter, down_proj: nn.Parameter) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj

    @classmethod
    def unfilled(cls, experts: int, hidden: int, width: int) -> Experts:
        """Experts without values."""
        gate_up, down = torch.empty(experts, 2 * width, hidden), torch.empty(experts, hidden, width)
        return cls(nn.Parameter(gate_up), nn.Parameter(down))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Gate and up [E, 2I, D], and down [E, D, I], as tokens are multiplied with them."""
        return self.gate_up_proj, self.down_proj
