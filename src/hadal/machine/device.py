"""Which device computes. What is small stays on the CPU: a GPU waits for such a model's many short operations."""

from __future__ import annotations

import torch

from hadal.errors import UserError

DEVICES = ("auto", "cpu", "cuda")
WORTH_MOVING = 20_000_000
"""Parameters from which on a model goes to a GPU, where there is one; a guess, not measured."""


def pick(wanted: str, parameters: int) -> str:
    """The device that `auto`, `cpu` or `cuda` means here for a model of so many parameters. UserError for a GPU that
    torch does not see."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() and parameters >= WORTH_MOVING else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here.", "hadal doctor says why; device=cpu does without one.")
    return wanted


def place(device: str) -> torch.device:
    """Where tensors go for a device that was picked, or left open."""
    return torch.device("cuda" if device == "cuda" else "cpu")


def free_on_gpu() -> int:
    """Bytes that the GPU still has."""
    return torch.cuda.mem_get_info()[0]
