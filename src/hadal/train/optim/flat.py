"""AdamW and Muon over flat memory: a handful of fused operations an update, whatever the model has of tensors.

Matrices of equal shape lie side by side, so that Muon treats them as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hadal.cost.memory import Kept
from hadal.models.decoder import Decoder
from hadal.train.masters import FlatMasters, trained
from hadal.train.optim import OptimizerConfig


@dataclass(frozen=True)
class Options:
    """None besides those of `OptimizerConfig`."""


def build(model: Decoder, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> FlatOptimizer:
    """As the protocol has it."""
    return FlatOptimizer(model, config, dtype)


def kept(config: OptimizerConfig) -> Kept:
    """A momentum where Muon trains, with Newton and Schulz's matrices in an update; two means where Adam does."""
    return Kept(matrices=1, others=2, moment=3) if config.muon_lr else Kept()


@dataclass(frozen=True)
class _Group:
    """Matrices of one shape, contiguous from `begin`."""

    begin: int
    shape: tuple[int, int, int]  # count, rows, columns


def orthogonalise(x_NRC: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrices (Muon, Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x_NRC.shape[1] > x_NRC.shape[2]
    x = x_NRC.mT if wide else x_NRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if wide else x


class FlatOptimizer(FlatMasters):
    """Muon on hidden matrices where the config has a rate for it, AdamW on the rest."""

    def __init__(self, model: Decoder, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        named = trained(model)

        def hidden_matrix(item: tuple[str, Tensor]) -> bool:
            return item[1].dim() >= 2 and not item[0].startswith(("embed", "head")) and config.muon_lr > 0

        matrices = sorted(filter(hidden_matrix, named), key=lambda item: (item[1].shape[-2:], item[0]))
        rest = [item for item in named if not hidden_matrix(item)]
        self.groups = _groups(matrices)
        super().__init__(model, (matrices, rest), config.clip, dtype)
        self.matrix_end = self.ends[0]
        empty = self.master.new_zeros
        self.moments = {
            "momentum": empty(self.matrix_end),
            "mean": empty(len(self.master) - self.matrix_end),
            "square": empty(len(self.master) - self.matrix_end),
        }

    def update(self, scale: float) -> None:
        """As the base class has it."""
        config = self.config
        if config.weight_decay:
            self.decay(0, scale * config.muon_lr * config.weight_decay)
            self.decay(1, scale * config.lr * config.weight_decay)
        if self.matrix_end:
            self._muon(scale)
        if self.matrix_end < len(self.grad):
            self._adam(scale)

    def _muon(self, scale: float) -> None:
        """Orthogonalised momentum, with Nesterov's look-ahead."""
        config, momentum, part = self.config, self.moments["momentum"], self.grad[: self.matrix_end]
        momentum.lerp_(part, 1 - config.momentum)
        ahead = torch.lerp(part, momentum, config.momentum)
        for group in self.groups:
            count, rows, columns = group.shape
            span = slice(group.begin, group.begin + count * rows * columns)
            change = orthogonalise(ahead[span].view(group.shape))
            gain = max(1.0, rows / columns) ** 0.5
            self.master[span].view(group.shape).add_(change, alpha=-scale * config.muon_lr * gain)

    def _adam(self, scale: float) -> None:
        """One pass over memory: written out in tensor operations this took as long as a small model's backward."""
        config, begin = self.config, self.matrix_end
        adamw(
            [self.master[begin:]], [self.grad[begin:]], [self.moments["mean"]], [self.moments["square"]], [],
            [torch.tensor(float(self.updates - 1), device=self.master.device)],
            fused=True, amsgrad=False, maximize=False, beta1=config.beta1, beta2=config.beta2,
            lr=scale * config.lr, weight_decay=0.0, eps=config.eps,  # which is ours: not all decays
        )  # fmt: skip


def _groups(matrices: list[tuple[str, Tensor]]) -> list[_Group]:
    """Where matrices lie that come one after the other in the buffers, neighbours of one shape together."""
    groups: list[_Group] = []
    begin = 0
    for _, parameter in matrices:
        rows, columns = parameter.shape[-2:]
        count = parameter.numel() // (rows * columns)
        last = groups[-1] if groups else None
        if last and last.shape[1:] == (rows, columns):
            groups[-1] = _Group(last.begin, (last.shape[0] + count, rows, columns))
        else:
            groups.append(_Group(begin, (count, rows, columns)))
        begin += parameter.numel()
    return groups
