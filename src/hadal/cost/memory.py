"""Memory and time that a training needs, from the config: arithmetic, no torch.

Weights, gradients and optimiser are exact. Activations are the tensors that the backward pass of hadal's layers keeps,
added up as the layers are written; what lives a moment only counts where it is largest. `docs/sft.md` has the sums in
words, and what was measured beside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadal.cost.flops import Shape, forward_flops, mean_context, parameters

MANY_LOGITS = 1 << 21
"""Logits past which `hadal.train.losses` keeps one copy of them instead of three. The quickstart's stay below."""
CHUNK_LOGITS = 1 << 25
"""Logits that a loss makes at once, 128 MiB in float32: `hadal.train.losses` computes more in chunks of so many."""
PLAIN, BLOCK = 128, 64
"""Rows up to which attention keeps its weights, and past which so many queries' exist at a time (`hadal.ops`)."""
HEAP_LOSS = 0.2
"""Of the activations' sum, what a heap of their sizes loses between them; measured (docs/sft.md)."""
LIBRARIES = 1 << 26
"""Bytes of torch's libraries that are first touched in training; measured as well."""
UNKNOWN_PROCESS = 300_000_000
"""Bytes of Python with torch, where the system does not say how many it is."""
PROCESS = "the process"
"""What Python with torch and all that is loaded holds before anything is trained, among what is held."""
MATMUL_SHARE = 0.5
"""Of the measured rate of matrix products, what a whole training step comes to."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may have (version 2)."""


@dataclass(frozen=True)
class Memory:
    """Bytes by what they hold: all the time, and at peaks that come one after the other, so that the highest counts."""

    held: dict[str, int]
    peaks: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.held.values()) + max(self.peaks.values(), default=0)

    def beside(self, held: dict[str, int], peaks: dict[str, int] | None = None) -> Memory:
        """The same with more beside it."""
        return Memory(self.held | {k: n for k, n in held.items() if n}, self.peaks | (peaks or {}))

    def describe(self) -> str:
        """The bytes in words."""
        parts = [f"{name} {gigabytes(n)}" for name, n in self.held.items()]
        if self.peaks:
            name, most = max(self.peaks.items(), key=lambda item: item[1])
            parts.append(f"in {name} {gigabytes(most)} more")
        return f"{gigabytes(self.total)} ({', '.join(parts)})"


@dataclass(frozen=True)
class Pass:
    """Rows of `length` tokens that go through a model together.

    prompt, prompts: tokens that each row continues, of so many different prompts, which are computed once.
    """

    rows: int
    length: int
    prompt: int = 0
    prompts: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Kept:
    """Float32 values that an optimiser keeps of each entry of hidden matrices, and of all others; and those that an
    update makes for a moment of a hidden matrix's. As they are here, Adam's."""

    matrices: int = 2
    others: int = 2
    moment: int = 0


def training_memory(
    config: Any, value_bytes: int, passes: Iterable[Pass], checkpointed: bool = False, adapters: int = 0,
    logit_bytes: int = 4, kept: Kept = Kept(),
) -> Memory:  # fmt: skip
    """Memory of updates by passes of these shapes, the largest of which counts, in a dtype of `value_bytes`.

    adapters: how many parameters low-rank adapters have, if those are trained and the model is frozen. Below
    float32, masters in float32 are kept of what is trained. logit_bytes: of each logit of a chunk, what the loss holds
    at its most. kept: by the optimiser.
    """
    s = Shape.of(config)
    counted = parameters(s)
    model = counted.total + counted.mtp
    trained = adapters or model
    tables = 2 * 4 * (s.qk_rope_head_dim if s.is_latent else s.qk_dim) // 2 * config.max_position_embeddings
    masters = 4 * trained if value_bytes < 4 else 0
    matrices = 0 if adapters else model - counted.embedding - counted.parts["head"]
    adapted = adapters > 0
    training = [
        _activations(s, one, value_bytes, checkpointed, adapted) + _logits(s, one, value_bytes, adapted, logit_bytes)
        for one in passes
    ]
    return Memory(
        held={
            "weights": value_bytes * (model + adapters) + tables,
            "gradients": 4 * trained,  # which add up in float32
            "optimiser": 4 * (kept.others * (trained - matrices) + kept.matrices * matrices) + masters,
        },
        peaks={"training": max(training, default=0) + LIBRARIES, "the update": 4 * kept.moment * matrices},
    )


def _activations(s: Shape, one: Pass, value_bytes: int, checkpointed: bool, adapted: bool) -> int:
    """Bytes that a pass keeps for its backward pass, and what a layer needs for a moment."""
    layers = s.num_hidden_layers + (s.num_nextn_predict_layers if not adapted else 0)
    dense, moe = s.num_dense_layers, layers - s.num_dense_layers
    parts = [Pass(one.rows, one.length, one.prompt)] + ([Pass(one.prompts, one.prompt)] if one.prompts else [])
    kept = [sum(_kept(s, part, kind, value_bytes) for part in parts) for kind in (True, False)]
    tokens = sum(part.tokens for part in parts)
    whole = dense * kept[0] + moe * kept[1]
    if checkpointed:
        whole = layers * s.hidden_size * tokens + max(kept[0] if dense else 0, kept[1] if moe else 0)
    shared = layers * _shared(s) * one.prompts * one.prompt
    passing = max(part.tokens * (_moment(s, part, adapted) + part.prompt + part.length) for part in parts)
    total = (whole + shared + 3 * s.hidden_size * tokens + passing) * value_bytes
    return total + int(HEAP_LOSS * total)


def _logits(s: Shape, one: Pass, value_bytes: int, adapted: bool, logit_bytes: int) -> int:
    """Bytes of logits at their most; where the head is trained, of its gradient beside what is kept of a chunk."""
    count = one.tokens * s.vocab_size
    if count <= MANY_LOGITS:
        return 3 * logit_bytes * count
    chunk = min(count, CHUNK_LOGITS)
    narrow = value_bytes if value_bytes < 4 else 0
    gradient = 0 if adapted else value_bytes * s.vocab_size * s.hidden_size
    return max(chunk * max(logit_bytes, 4 + narrow), chunk * (4 + narrow) + gradient)


def _kept(s: Shape, one: Pass, dense: bool, value_bytes: int) -> int:
    """Values that one layer keeps of a pass for its backward pass."""
    d, heads, tokens = s.hidden_size, s.num_attention_heads, one.tokens
    columns = one.rows * (one.prompt + one.length)  # whose keys and values are laid side by side
    scores = heads * tokens * (one.prompt + one.length) if one.length <= PLAIN else 0  # the softmax's result
    if s.is_latent:
        attention = tokens * (heads * s.qk_dim + 2 * s.q_lora_rank + heads * s.value_dim + s.kv_lora_rank)
        # before and after the norm; a copy by head; keys as many
        attention += columns * (heads * (s.qk_dim + s.value_dim) + s.kv_lora_rank + s.qk_rope_head_dim)
    else:
        keys = s.num_key_value_heads or heads
        attention = tokens * (2 * heads * s.qk_dim + ((heads + keys) * s.qk_dim if s.qk_norm else 0))
        attention += columns * 2 * keys * s.qk_dim
    norms = 4 * d * tokens  # each keeps what it has normed, and its result is an input that a product keeps
    if dense:  # gate and up, silu(gate), and the product
        return norms + attention + scores + 4 * s.intermediate_size * tokens
    routed = s.num_experts_per_tok * (2 * d + 4 * s.moe_intermediate_size)
    router = (4 * d + 12 * s.n_routed_experts) // value_bytes  # in float32
    return norms + attention + scores + tokens * (routed + router + 4 * s.n_shared_experts * s.moe_intermediate_size)


def _shared(s: Shape) -> int:
    """Values that a layer holds of a prompt's token for rows that continue it: what keys and values are views of."""
    if s.is_latent:
        return s.kv_lora_rank + s.qk_rope_head_dim
    return (2 * s.num_attention_heads + 3 * (s.num_key_value_heads or s.num_attention_heads)) * s.qk_dim


def _moment(s: Shape, one: Pass, adapted: bool) -> int:
    """Values a token that a layer's passes make and let go of, at their most."""
    mixture = s.num_experts_per_tok * s.moe_intermediate_size if s.n_routed_experts else 0
    scores = s.num_attention_heads * (one.prompt + one.length if one.length <= PLAIN else BLOCK)
    # of gate and up, twice that wide: two gradients, or with adapters the frozen product, theirs and the sum
    return max(3 * scores, (6 if adapted else 4) * max(s.intermediate_size, mixture))


def training_seconds(
    config: Any, tokens: int, length: int, rate: float, checkpointed: bool = False, adapters: bool = False
) -> float:
    """A rough time for training on `tokens` tokens in rows of `length`, at `rate` FLOP/s of matrix products.

    A pass costs the forward pass three times, twice where the matrices are frozen, and once more where activations
    are computed again.
    """
    times = (2 if adapters else 3) + (1 if checkpointed else 0)
    return tokens * times * forward_flops(config, mean_context(length)) / (MATMUL_SHARE * rate)


def resident_memory() -> int:
    """Bytes of memory that this process holds now; a usual number where the system, as all but Linux, does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return UNKNOWN_PROCESS


def free_memory() -> int | None:
    """Bytes that new programs may take without swapping; None where the system, as all but Linux, does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def container_limit() -> int | None:
    """Bytes that a container is held to; None where there is none, or no limit."""
    try:
        return int((CGROUP / "memory.max").read_text())
    except (OSError, ValueError):  # `max`
        return None


def available_memory() -> int | None:
    """Bytes that this process may still take, by its container's limit as well; None where the system does not say."""
    free, limit = free_memory(), container_limit()
    found = [] if free is None else [free]
    try:
        if limit is not None:
            held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
            files = int(held["inactive_file"])  # read, and let go of when memory is asked for
            found.append(limit - int((CGROUP / "memory.current").read_text()) + files)
    except (OSError, ValueError, KeyError):
        pass
    if not found and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def gigabytes(n: float) -> str:
    """`3.1 GB`, `12 MB`."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
