"""Optimisers over flat memory: float32 masters, the model's parameters as views of one buffer.

A small model has dozens of small tensors, and an update that visits each costs more than the arithmetic.
Here all parameters lie in one float32 buffer; the model computes in it directly, or in one bf16 copy that is
cast whole after each update. Matrices of equal shape lie side by side, so that Muon treats them as one batch.
Gradients add up in float32 as well, whatever the model computes in: of many passes, bf16 would lose the small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.utils.hooks import RemovableHandle

from hadal.models.decoder import Decoder
from hadal.ops.heap import give_back


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
    """Of matrices: norms, biases and the embedding are left out, for which small is not simple."""
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


def _move_gradient(into: Tensor, parameter: Tensor) -> None:
    """Add what a pass has left in a parameter's gradient, and let go of it."""
    assert parameter.grad is not None
    into.add_(parameter.grad)
    parameter.grad = None


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
        self.grad = torch.zeros(total, device=where)
        self.matrix_end = sum(p.numel() for _, p in matrices)
        self.names: list[str] = []
        self._hooks: list[RemovableHandle] = []
        self._decayed: list[slice] = []  # where the buffers hold what decays
        begin = 0
        self.groups: list[_Group] = []
        for name, parameter in ordered:
            end = begin + parameter.numel()
            self.master[begin:end] = parameter.detach().flatten().float()
            parameter.data = self.compute[begin:end].view(parameter.shape)
            gradient = self.grad[begin:end].view(parameter.shape)
            if self.compute is self.master:
                parameter.grad = gradient
            else:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(_move_gradient, gradient)))
            self.names.append(name)
            if len(self.names) <= len(matrices):
                rows, columns = parameter.shape[-2:]
                count = parameter.numel() // (rows * columns)
                last = self.groups[-1] if self.groups else None
                if last and last.shape[1:] == (rows, columns):
                    self.groups[-1] = _Group(last.begin, (last.shape[0] + count, rows, columns))
                else:
                    self.groups.append(_Group(begin, (count, rows, columns)))
            if parameter.dim() >= 2 and not name.startswith("embed"):
                joins = self._decayed and self._decayed[-1].stop == begin != self.matrix_end
                self._decayed.append(slice(self._decayed.pop().start if joins else begin, end))
            begin = end
        self.momentum = torch.zeros(self.matrix_end, device=where)
        self.mean = torch.zeros(total - self.matrix_end, device=where)
        self.square = torch.zeros(total - self.matrix_end, device=where)
        self.updates = 0
        self.left_out, self.in_a_row = 0, 0
        """Updates whose gradient was not finite: all of them, and the last ones without a finite one in between."""
        self.refresh()
        give_back()  # the parameters lay there

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

        An update whose gradient is not finite is left out, and counted: it would destroy the weights for good.
        """
        config = self.config
        grad = self.grad
        norm = float(grad.norm())
        if not norm < float("inf"):
            self.left_out += 1
            self.in_a_row += 1
            self.zero_grad()
            return norm
        self.in_a_row = 0
        if config.clip and norm > config.clip:
            grad.mul_(config.clip / norm)  # in place: the gradient is forgotten at the end
        self.updates += 1
        if config.weight_decay:
            for span in self._decayed:
                lr = config.muon_lr if span.stop <= self.matrix_end else config.lr
                self.master[span].mul_(1 - scale * lr * config.weight_decay)
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
                master.add_(change, alpha=-scale * config.muon_lr * gain)
        if self.matrix_end < len(grad):
            # One pass over memory: written out in tensor operations this took as long as a small model's backward.
            adamw(
                [self.master[self.matrix_end :]], [grad[self.matrix_end :]], [self.mean], [self.square], [],
                [torch.tensor(float(self.updates - 1), device=self.master.device)],
                fused=True, amsgrad=False, maximize=False, beta1=config.beta1, beta2=config.beta2,
                lr=scale * config.lr, weight_decay=0.0, eps=config.eps,  # which is ours: not all decays
            )  # fmt: skip
        self.refresh()
        self.zero_grad()
        return norm

    @property
    def figures(self) -> dict[str, int]:
        """What a line of metrics has to say of updates that were left out: how many so far; nothing where none was."""
        return {"left_out": self.left_out} if self.left_out else {}

    def masters(self, model: Decoder) -> dict[str, Tensor]:
        """The float32 value of each parameter, by its name in the model."""
        named = dict(model.named_parameters())
        out, begin = {}, 0
        for name in self.names:
            size = named[name].numel()
            out[name] = self.master[begin : begin + size].view(named[name].shape)
            begin += size
        return out

    def hand_over(self, model: Decoder) -> None:
        """Make the masters the model's parameters, in float32 and without gradients: nothing is trained any more."""
        for hook in self._hooks:
            hook.remove()
        masters = self.masters(model)
        for name, parameter in model.named_parameters():
            if name in masters:
                parameter.grad, parameter.data = None, masters[name]
        model.changed()

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs besides the config."""
        return {
            "master": self.master,
            "momentum": self.momentum,
            "mean": self.mean,
            "square": self.square,
            "updates": torch.tensor(self.updates),
            "left_out": torch.tensor([self.left_out, self.in_a_row]),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name in ("master", "momentum", "mean", "square"):
            getattr(self, name).copy_(state[name])
        self.updates = int(state["updates"])
        left_out = state.get("left_out", torch.zeros(2))  # older runs did not count them
        self.left_out, self.in_a_row = map(int, left_out.tolist())
        self.refresh()
        self.zero_grad()
