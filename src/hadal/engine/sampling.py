"""From logits to tokens: filters and the draw.

A token is a fixed function of the filtered distribution, the request's key and the position, so it does not
matter what else is in the batch, or whether the token was a draft before it was computed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCKS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
SMALL = 4096
"""Tokens of a vocabulary that are sorted sooner than told apart."""


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
    return _keep_largest(probability_NV, _largest(probability_NV, int(count_N.max()) + 1), count_N)


def keep_top_p(probability_NV: Tensor, top_p_N: Tensor) -> Tensor:
    """Only the smallest most likely set of mass `top_p`, not renormalised; of equals those with the lower id."""
    V = probability_NV.shape[1]
    if V > SMALL and probability_NV.device.type == "cpu" and probability_NV.dtype == torch.float32:
        # A row costs a hundred times what going to it in Python does.
        borders = [_nucleus(*each) for each in zip(probability_NV.numpy(), top_p_N.double().tolist(), strict=True)]
        least, count = zip(*borders, strict=True)
        return _keep(probability_NV, torch.tensor(least)[:, None], torch.tensor(count))
    mass_N1 = probability_NV.sum(-1, keepdim=True, dtype=torch.float64)
    top_p_N1 = top_p_N.double()[:, None]
    most = V
    if V > SMALL:
        # The tokens below `least` have together at most half of the mass that is left out, so none of them is in the
        # set. Of a trained model they are nearly all, which saves most of the sorting.
        least_N1 = (1 - top_p_N1) * mass_N1 / (2 * V)
        most = int((probability_NV >= least_N1.to(probability_NV.dtype)).sum(-1).max()) + 1
    largest_NM = _largest(probability_NV, most)
    sums_NM = largest_NM.cumsum(-1, dtype=torch.float64)
    count_N = (torch.searchsorted(sums_NM, top_p_N1 * mass_N1)[:, 0] + 1).clamp(max=sums_NM.shape[1])
    return _keep_largest(probability_NV, largest_NM, count_N)


def _nucleus(weight_V: np.ndarray, top_p: float) -> tuple[float, int]:
    """The least weight in the smallest set of mass `top_p`; and the set's size if not all that equal it are in, else 0.

    To sort 150,000 weights takes as long as a model of 0.5B. The bits of floats that are not negative are ordered as
    they are, so the mass of each 128th of an octave is added up, and only the one in which the set ends is sorted.
    """
    mass = weight_V.sum(dtype=np.float64)
    if np.isnan(mass):  # a request that leaves no token; the rows beside it go on
        return 0.0, 0
    # Those below have together at most half of the mass that is left out.
    near = weight_V[np.flatnonzero(weight_V >= np.float32((1 - top_p) * mass / (2 * len(weight_V))))]
    part = near.view(np.int32) >> 16
    part -= part.min()
    sums = np.bincount(part, weights=near)[::-1].cumsum()  # from the heaviest part on
    last = min(int(np.searchsorted(sums, top_p * mass)), len(sums) - 1)
    inside = np.sort(near[part == len(sums) - 1 - last])[::-1]
    before = sums[last - 1] if last else 0.0
    place = min(int(np.searchsorted(before + inside.cumsum(dtype=np.float64), top_p * mass)), len(inside) - 1)
    least = inside[place]
    equals_left_out = place + 1 < len(inside) and inside[place + 1] == least
    return float(least), int(np.count_nonzero(near > inside[0])) + place + 1 if equals_left_out else 0


def _largest(x_NV: Tensor, most: int) -> Tensor:
    """Each row's `most` largest numbers [N, M], or all where that is less work, from the largest on.

    On a CPU numpy sorts them, ten times as fast as torch does, and sets the largest apart in a fifth of that.
    """
    rest = max(x_NV.shape[1] - most, 0)
    if x_NV.device.type != "cpu":
        return x_NV.topk(x_NV.shape[1] - rest, dim=-1)[0]
    numbers = x_NV.numpy()
    if rest > most:
        numbers = np.partition(numbers, rest, axis=-1)[:, rest:]
    return torch.from_numpy(np.sort(numbers, axis=-1)).flip(-1)


def _keep_largest(x_NV: Tensor, largest_NM: Tensor, count_N: Tensor) -> Tensor:
    """The `count` largest of each row, zeros elsewhere; of equals those that come first.

    largest: from the largest on, one more than `count` where there are more.
    """
    count_N1 = count_N[:, None]
    least_N1 = largest_NM.gather(1, count_N1 - 1)
    after_N1 = largest_NM.gather(1, count_N1.clamp(max=largest_NM.shape[1] - 1))
    equals_left_out_N1 = (after_N1 == least_N1) & (count_N1 < largest_NM.shape[1])
    return _keep(x_NV, least_N1, torch.where(equals_left_out_N1, count_N1, 0)[:, 0])


def _keep(x_NV: Tensor, least_N1: Tensor, count_N: Tensor) -> Tensor:
    """What is at least `least`, zeros elsewhere; of a row with a count so many: of equals those that come first."""
    kept = x_NV >= least_N1
    rows = count_N.nonzero()[:, 0]
    if len(rows):
        above, equal = x_NV[rows] > least_N1[rows], x_NV[rows] == least_N1[rows]
        room_N1 = count_N[rows, None] - above.sum(-1, keepdim=True)
        kept[rows] = above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room_N1))
    return torch.where(kept, x_NV, 0.0)


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
