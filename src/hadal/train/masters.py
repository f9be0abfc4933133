"""Flat memory to optimise in: float32 masters, the model's parameters as views of one buffer.

A small model has dozens of small tensors, and an update that visits each costs more than the arithmetic.
Here all parameters lie in one float32 buffer; the model computes in it directly, or in one bf16 copy that is
cast whole after each update. Gradients add up in float32 as well, whatever the model computes in: of many passes,
bf16 would lose the small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from hadal.models.decoder import Decoder
from hadal.ops.heap import give_back


def trained(model: Decoder) -> list[tuple[str, Tensor]]:
    """The parameters that ask for gradients, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


class FlatMasters:
    """Owns the float32 masters of a model and its gradients; a subclass says in `update` how these move those.

    parts: what is trained, in the order of the buffers. Each part lies in one piece, from `ends[i - 1]` to `ends[i]`.
    clip: the largest norm that a gradient keeps; 0: any.
    """

    def __init__(
        self, model: Decoder, parts: Sequence[Sequence[tuple[str, Tensor]]], clip: float, dtype: torch.dtype
    ) -> None:
        self.model, self.clip = model, clip
        ordered = [item for part in parts for item in part]
        total = sum(p.numel() for _, p in ordered)
        where = ordered[0][1].device if ordered else None
        self.master = torch.empty(total, device=where)
        self.compute = self.master if dtype == torch.float32 else torch.empty(total, dtype=dtype, device=where)
        self.grad = torch.zeros(total, device=where)
        self.names = [name for name, _ in ordered]
        self.ends: list[int] = []
        self._hooks: list[RemovableHandle] = []
        self._decayed: list[list[slice]] = []  # where each part holds what decays
        begin = 0
        for part in parts:
            spans: list[slice] = []
            for name, parameter in part:
                end = begin + parameter.numel()
                self._take(parameter, begin, end)
                if parameter.dim() >= 2 and not name.startswith("embed"):
                    joins = spans and spans[-1].stop == begin
                    spans.append(slice(spans.pop().start if joins else begin, end))
                begin = end
            self.ends.append(begin)
            self._decayed.append(spans)
        self.moments: dict[str, Tensor] = {}
        """What a subclass keeps between updates, by the name that it has on disk."""
        self.updates = 0
        self.left_out, self.in_a_row = 0, 0
        self.refresh()
        give_back()  # the parameters lay there

    def _take(self, parameter: Tensor, begin: int, end: int) -> None:
        """Make a parameter a view of the buffers, and have its gradients added up there."""
        self.master[begin:end] = parameter.detach().flatten().float()
        parameter.data = self.compute[begin:end].view(parameter.shape)
        gradient = self.grad[begin:end].view(parameter.shape)
        if self.compute is self.master:
            parameter.grad = gradient
        else:
            self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(_move_gradient, gradient)))

    def update(self, scale: float) -> None:
        """Move `master` by `grad`, which is finite and clipped and may be written to; `updates` counts this one."""
        raise NotImplementedError

    def decay(self, part: int, share: float) -> None:
        """Take that share from a part's matrices: norms, biases and the embedding are left out."""
        for span in self._decayed[part]:
            self.master[span].mul_(1 - share)

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> float:
        """As in `hadal.train.optim.Optimizer`."""
        norm = float(self.grad.norm())
        if not norm < float("inf"):
            self.left_out += 1
            self.in_a_row += 1
            self.zero_grad()
            return norm
        self.in_a_row = 0
        if self.clip and norm > self.clip:
            self.grad.mul_(self.clip / norm)  # in place: the gradient is forgotten at the end
        self.updates += 1
        self.update(scale)
        self.refresh()
        self.zero_grad()
        return norm

    def refresh(self) -> None:
        """Bring the model in line with the masters, which were written to."""
        if self.compute is not self.master:
            self.compute.copy_(self.master)
        self.model.changed()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.grad.zero_()

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.compute.dtype

    @property
    def figures(self) -> dict[str, int]:
        """As in the protocol."""
        return {"left_out": self.left_out} if self.left_out else {}

    def masters(self) -> dict[str, Tensor]:
        """The float32 value of each parameter, by its name in the model."""
        named = dict(self.model.named_parameters())
        out, begin = {}, 0
        for name in self.names:
            size = named[name].numel()
            out[name] = self.master[begin : begin + size].view(named[name].shape)
            begin += size
        return out

    def hand_over(self) -> None:
        """Make the masters the model's parameters, in float32 and without gradients: nothing is trained any more."""
        for hook in self._hooks:
            hook.remove()
        masters = self.masters()
        for name, parameter in self.model.named_parameters():
            if name in masters:
                parameter.grad, parameter.data = None, masters[name]
        self.model.changed()

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs besides the config."""
        return {
            "master": self.master,
            **self.moments,
            "updates": torch.tensor(self.updates),
            "left_out": torch.tensor([self.left_out, self.in_a_row]),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, buffer in {"master": self.master, **self.moments}.items():
            buffer.copy_(state[name])
        self.updates = int(state["updates"])
        left_out = state.get("left_out", torch.zeros(2))  # older runs did not count them
        self.left_out, self.in_a_row = map(int, left_out.tolist())
        self.refresh()
        self.zero_grad()


def _move_gradient(into: Tensor, parameter: Tensor) -> None:
    """Add what a pass has left in a parameter's gradient, and let go of it."""
    assert parameter.grad is not None
    into.add_(parameter.grad)
    parameter.grad = None
