"""From logits to tokens: filters, noise, and the draw.

A token is a fixed function of the filtered distribution, the request's key and the position, so it does not
matter what else is in the batch, or whether the token was guessed before it was computed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCKS = (256, 128, 64, 32, 16, 8, 4, 2, 1)


def _wrapped(value: int) -> int:
    """A 64-bit pattern as torch's signed whole number."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA, _FIRST, _SECOND = map(_wrapped, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of 64-bit patterns."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def noise(key_N: Tensor, position_N: Tensor) -> Tensor:
    """Uniform float64 numbers [N] in [0, 1): SplitMix64 of a request's key at a position, the same on any device."""
    z = key_N + (position_N + 1) * _GAMMA
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return _shifted(z ^ _shifted(z, 31), 11).double() / (1 << 53)


def inverse_draw(weight_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Tokens [N]: the inverse distribution function of unnormalised weights at the given uniform numbers.

    In two levels, so that only one block of the vocabulary is added up token by token: with 150,000 tokens a plain
    cumulative sum costs more than the model.
    """
    N, V = weight_NV.shape
    size = next(size for size in BLOCKS if V % size == 0)
    blocks_NBS = weight_NV.view(N, V // size, size)
    ends_NB = blocks_NBS.sum(-1, dtype=torch.float32).double().cumsum(-1)
    target_N1 = (uniform_N * ends_NB[:, -1])[:, None]
    block_N1 = torch.searchsorted(ends_NB, target_N1, right=True)
    # A uniform of nearly 1 can round past the end: then the last block with any mass is meant.
    last_N1 = torch.searchsorted(ends_NB, ends_NB[:, -1:].contiguous())
    block_N1 = torch.minimum(block_N1, last_N1)
    before_N1 = torch.where(block_N1 > 0, ends_NB.gather(1, (block_N1 - 1).clamp(min=0)), 0.0)
    inside_NS = blocks_NBS[torch.arange(N, device=weight_NV.device), block_N1[:, 0]]
    within_NS = inside_NS.double().cumsum(-1)
    at_N1 = torch.searchsorted(within_NS, target_N1 - before_N1, right=True)
    last = size - 1 - inside_NS.flip(-1).gt(0).int().argmax(-1)
    return block_N1[:, 0] * size + torch.minimum(at_N1[:, 0], last)


def keep_top_k(probability_NV: Tensor, k_N: Tensor) -> Tensor:
    """Only the k likeliest (0: all); of equals those with the lower id."""
    V = probability_NV.shape[1]
    count_N = torch.where(k_N > 0, k_N, V).clamp(max=V)
    return _keep(probability_NV, _descending(probability_NV), count_N)


def keep_top_p(probability_NV: Tensor, top_p_N: Tensor) -> Tensor:
    """Only the smallest most likely set of mass `top_p`, not renormalised; of equals those with the lower id."""
    descending_NV = _descending(probability_NV)
    sums_NV = descending_NV.cumsum(-1, dtype=torch.float64)
    wanted_N1 = top_p_N.double()[:, None] * probability_NV.sum(-1, keepdim=True, dtype=torch.float64)
    count_N = (torch.searchsorted(sums_NV, wanted_N1)[:, 0] + 1).clamp(max=sums_NV.shape[1])
    return _keep(probability_NV, descending_NV, count_N)


def _descending(x_NV: Tensor) -> Tensor:
    """Each row's numbers from the largest on. On a CPU numpy sorts them, ten times as fast as torch does."""
    if x_NV.device.type != "cpu":
        return x_NV.sort(dim=-1, descending=True)[0]
    return torch.from_numpy(np.sort(x_NV.numpy(), axis=-1)).flip(-1)


def _keep(x_NV: Tensor, descending_NV: Tensor, count_N: Tensor) -> Tensor:
    """The `count` largest of each row, zeros elsewhere; of equals those that come first."""
    least_N1 = descending_NV.gather(1, count_N[:, None] - 1)
    kept = x_NV >= least_N1
    if bool((kept.sum(-1) > count_N).any()):  # equals at the border
        above, equal = x_NV > least_N1, x_NV == least_N1
        room_N1 = count_N[:, None] - above.sum(-1, keepdim=True)
        kept = above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room_N1))
    return x_NV.masked_fill(~kept, 0.0)


def keep_min_p(probability_NV: Tensor, min_p_N: Tensor) -> Tensor:
    """Only tokens at least `min_p` times as likely as the likeliest."""
    return probability_NV.masked_fill(probability_NV < min_p_N[:, None] * probability_NV.amax(-1, keepdim=True), 0.0)


def penalise(
    logits_NV: Tensor, counts_NV: Tensor, in_prompt_NV: Tensor, presence_N: Tensor, frequency_N: Tensor,
    repetition_N: Tensor,
) -> Tensor:  # fmt: skip
    """OpenAI's presence and frequency penalties on what was generated, CTRL's (arXiv 1909.05858) also on the prompt."""
    seen = (counts_NV > 0) | in_prompt_NV
    repeated = torch.where(logits_NV > 0, logits_NV / repetition_N[:, None], logits_NV * repetition_N[:, None])
    out = torch.where(seen, repeated, logits_NV)
    return out - presence_N[:, None] * (counts_NV > 0) - frequency_N[:, None] * counts_NV
