"""Memory and time that a fine-tuning needs, from the config: arithmetic, no torch.

Weights, gradients and optimiser are exact. Activations are the tensors that the backward pass of hadal's layers keeps,
added up as the layers are written; what lives a moment only counts where it is largest. `docs/sft.md` has the sums in
words, and what was measured beside them.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
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
MATMUL_SHARE = 0.5
"""Of the measured rate of matrix products, what a whole training step comes to."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may have (version 2)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes by what they hold. `moment` is what comes and goes: logits, and libraries."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    moment: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def describe(self) -> str:
        """The bytes in words."""
        parts = ", ".join(f"{name.replace('moment', 'at the peak')} {gigabytes(n)}" for name, n in asdict(self).items())
        return f"{gigabytes(self.total)} ({parts})"


def training_memory(
    config: Any, value_bytes: int, rows: int, length: int, checkpointed: bool = False, adapters: int = 0
) -> TrainingMemory:
    """Memory of training passes of `rows` rows of `length` tokens in a dtype of `value_bytes`.

    adapters: how many parameters low-rank adapters have, if those are trained and the model is frozen. Below
    float32, masters in float32 are kept of what is trained.
    """
    s = Shape.of(config)
    counted = parameters(s)
    model = counted.total + counted.mtp
    trained = adapters or model
    tables = 2 * 4 * (s.qk_rope_head_dim if s.is_latent else s.qk_dim) // 2 * config.max_position_embeddings
    masters = 4 * trained if value_bytes < 4 else 0
    tokens = rows * length
    layers = s.num_hidden_layers + (s.num_nextn_predict_layers if not adapters else 0)
    dense, moe = s.num_dense_layers, layers - s.num_dense_layers
    by_layer = [_kept(s, length, True, value_bytes)] * dense + [_kept(s, length, False, value_bytes)] * moe
    whole = layers * s.hidden_size + max(by_layer) if checkpointed else sum(by_layer)
    passing = _moment(s, length, adapters > 0)
    activations = (whole + 3 * s.hidden_size + passing + length) * value_bytes * tokens  # length: the mask
    activations += int(HEAP_LOSS * activations)
    logits = tokens * s.vocab_size
    if logits <= MANY_LOGITS:
        logits *= 12
    else:
        logits = min(logits, CHUNK_LOGITS) * (4 + (value_bytes if value_bytes < 4 else 0))
    return TrainingMemory(
        weights=value_bytes * (model + adapters) + tables,
        gradients=4 * trained,  # which add up in float32
        optimiser=8 * trained + masters,
        activations=activations,
        moment=logits + LIBRARIES,
    )


def _kept(s: Shape, length: int, dense: bool, value_bytes: int) -> int:
    """Values that one layer keeps of a token for its backward pass, in rows of `length` tokens."""
    d, heads = s.hidden_size, s.num_attention_heads
    scores = heads * length if length <= PLAIN else 0  # the softmax's result
    if s.is_latent:
        query = heads * s.qk_dim * 2 + 2 * s.q_lora_rank  # before and after the norm; a copy by head; keys as many
        attention = query + 2 * heads * s.value_dim + 2 * s.kv_lora_rank + s.qk_rope_head_dim
    else:
        keys = s.num_key_value_heads or heads
        attention = (2 * heads + 2 * keys) * s.qk_dim + ((heads + keys) * s.qk_dim if s.qk_norm else 0)
    norms = 4 * d  # each keeps what it has normed, and its result is an input that a product keeps
    if dense:
        return norms + attention + scores + 4 * s.intermediate_size  # gate and up, silu(gate), and the product
    routed = s.num_experts_per_tok * (2 * d + 4 * s.moe_intermediate_size)
    router = (4 * d + 12 * s.n_routed_experts) // value_bytes  # in float32
    return norms + attention + scores + routed + router + 4 * s.n_shared_experts * s.moe_intermediate_size


def _moment(s: Shape, length: int, adapted: bool) -> int:
    """Values a token that a layer's passes make and let go of, at their most."""
    mixture = s.num_experts_per_tok * s.moe_intermediate_size if s.n_routed_experts else 0
    scores = s.num_attention_heads * (length if length <= PLAIN else BLOCK)
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
