"""Optimisers over flat memory: float32 masters, the model's parameters as views of one buffer.

A small model has dozens of small tensors, and an update that visits each costs more than the arithmetic.
Here all parameters lie in one float32 buffer; the model computes in it directly, or in one bf16 copy that is
cast whole after each update. Matrices of equal shape lie side by side, so that Muon treats them as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hadal.models.decoder import Decoder


@dataclass(frozen=True)
class OptimizerConfig:
    """Muon on hidden matrices where muon_lr > 0, Adam on the rest (on everything where it is 0)."""

    lr: float = 3e-3
    muon_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-10
    momentum: float = 0.95
    weight_decay: float = 0.0
    clip: float = 1.0


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


class Optimizer:
    """Owns the float32 masters of a model and updates them from its gradients."""

    def __init__(self, model: Decoder, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.config = model, config
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

        def hidden_matrix(item: tuple[str, Tensor]) -> bool:
            return item[1].dim() >= 2 and not item[0].startswith(("embed", "head")) and config.muon_lr > 0

        matrices = sorted(filter(hidden_matrix, named), key=lambda item: (item[1].shape[-2:], item[0]))
        rest = [item for item in named if not hidden_matrix(item)]
        ordered = matrices + rest
        total = sum(p.numel() for _, p in ordered)
        where = ordered[0][1].device if ordered else None
        self.master = torch.empty(total, device=where)
        self.compute = self.master if dtype == torch.float32 else torch.empty(total, dtype=dtype, device=where)
        self.grad = torch.zeros(total, dtype=dtype, device=where)
        self.names: list[str] = []
        begin = 0
        self.groups: list[_Group] = []
        for name, parameter in ordered:
            end = begin + parameter.numel()
            self.master[begin:end] = parameter.detach().flatten().float()
            parameter.data = self.compute[begin:end].view(parameter.shape)
            parameter.grad = self.grad[begin:end].view(parameter.shape)
            self.names.append(name)
            if len(self.names) <= len(matrices):
                rows, columns = parameter.shape[-2:]
                count = parameter.numel() // (rows * columns)
                last = self.groups[-1] if self.groups else None
                if last and last.shape[1:] == (rows, columns):
                    self.groups[-1] = _Group(last.begin, (last.shape[0] + count, rows, columns))
                else:
                    self.groups.append(_Group(begin, (count, rows, columns)))
            begin = end
        self.matrix_end = sum(p.numel() for _, p in matrices)
        self.momentum = torch.zeros(self.matrix_end, device=where)
        self.mean = torch.zeros(total - self.matrix_end, device=where)
        self.square = torch.zeros(total - self.matrix_end, device=where)
        self.updates = 0
        self.refresh()

    def refresh(self) -> None:
        """Bring the model in line with the masters, which were written to."""
        if self.compute is not self.master:
            self.compute.copy_(self.master)
        self.model.changed()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.grad.zero_()

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> float:
        """One update at `scale` times the configured learning rates; returns the gradient's norm.

        An update whose gradient is not finite is left out: it would destroy the weights for good.
        """
        config = self.config
        grad = self.grad.float()
        norm = float(grad.norm())
        if not norm < float("inf"):
            self.zero_grad()
            return norm
        if config.clip and norm > config.clip:
            grad.mul_(config.clip / norm)  # in place: the gradient is forgotten at the end
        self.updates += 1
        if self.matrix_end:
            part = grad[: self.matrix_end]
            self.momentum.lerp_(part, 1 - config.momentum)
            ahead = torch.lerp(part, self.momentum, config.momentum)
            for group in self.groups:
                size = group.shape[0] * group.shape[1] * group.shape[2]
                span = slice(group.begin, group.begin + size)
                change = orthogonalise(ahead[span].view(group.shape))
                gain = max(1.0, group.shape[1] / group.shape[2]) ** 0.5
                master = self.master[span].view(group.shape)
                if config.weight_decay:
                    master.mul_(1 - scale * config.muon_lr * config.weight_decay)
                master.add_(change, alpha=-scale * config.muon_lr * gain)
        if self.matrix_end < len(grad):
            # One pass over memory: written out in tensor operations this took as long as a small model's backward.
            adamw(
                [self.master[self.matrix_end :]], [grad[self.matrix_end :]], [self.mean], [self.square], [],
                [torch.tensor(float(self.updates - 1), device=self.master.device)],
                fused=True, amsgrad=False, maximize=False, beta1=config.beta1, beta2=config.beta2,
                lr=scale * config.lr, weight_decay=config.weight_decay, eps=config.eps,
            )  # fmt: skip
        self.refresh()
        self.zero_grad()
        return norm

    def masters(self, model: Decoder) -> dict[str, Tensor]:
        """The float32 value of each parameter, by its name in the model."""
        named = dict(model.named_parameters())
        out, begin = {}, 0
        for name in self.names:
            size = named[name].numel()
            out[name] = self.master[begin : begin + size].view(named[name].shape)
            begin += size
        return out

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs besides the config."""
        return {
            "master": self.master,
            "momentum": self.momentum,
            "mean": self.mean,
            "square": self.square,
            "updates": torch.tensor(self.updates),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name in ("master", "momentum", "mean", "square"):
            getattr(self, name).copy_(state[name])
        self.updates = int(state["updates"])
        self.refresh()
        self.zero_grad()
