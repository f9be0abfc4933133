"""Memory and time that a training needs, from the config: arithmetic, no torch.

Weights, gradients and optimiser are exact. Activations are the tensors that the backward pass of hadal's layers keeps,
added up as the layers are written; what lives a moment only counts where it is largest. `docs/sft.md` has the sums in
words, and what was measured beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hadal.cost.flops import forward_flops, mean_context, parameters
from hadal.models.config import ModelConfig
from hadal.models.cost import Cost, LayerCost
from hadal.models.families import family_of

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
PROCESS = "the process"
"""What Python with torch and all that is loaded holds before anything is trained, among what is held."""
MATMUL_SHARE = 0.5
"""Of the measured rate of matrix products, what a whole training step comes to."""


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
    config: ModelConfig, value_bytes: int, passes: Iterable[Pass], checkpointed: bool = False, adapters: int = 0,
    logit_bytes: int = 4, kept: Kept = Kept(),
) -> Memory:  # fmt: skip
    """Memory of updates by passes of these shapes, the largest of which counts, in a dtype of `value_bytes`.

    adapters: how many parameters low-rank adapters have, if those are trained and the model is frozen. Below
    float32, masters in float32 are kept of what is trained. logit_bytes: of each logit of a chunk, what the loss holds
    at its most. kept: by the optimiser.
    """
    cost, counted = family_of(config).cost(config), parameters(config)
    model = counted.total + counted.mtp
    trained = adapters or model
    tables = 4 * cost.rotary * config.max_position_embeddings
    masters = 4 * trained if value_bytes < 4 else 0
    matrices = 0 if adapters else model - counted.embedding - counted.parts["head"]
    adapted = adapters > 0
    training = [
        _activations(cost, config.hidden_size, one, value_bytes, checkpointed, adapted)
        + _logits(config, one, value_bytes, adapted, logit_bytes)
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


def _activations(
    cost: Cost, hidden: int, one: Pass, value_bytes: int, checkpointed: bool, adapted: bool
) -> int:
    """Bytes that a pass keeps for its backward pass, and what a layer needs for a moment."""
    layers = cost.layers if adapted else cost.layers + cost.mtp
    parts = [Pass(one.rows, one.length, one.prompt)] + ([Pass(one.prompts, one.prompt)] if one.prompts else [])
    kept = [sum(_kept(layer, part, value_bytes) for part in parts) for layer in layers]
    tokens = sum(part.tokens for part in parts)
    whole = len(layers) * hidden * tokens + max(kept) if checkpointed else sum(kept)
    shared = sum(layer.shared_prompt for layer in layers) * one.prompts * one.prompt
    passing = max(
        part.tokens * (_moment(layer, part, adapted) + part.prompt + part.length) for part in parts for layer in layers
    )
    total = (whole + shared + 3 * hidden * tokens + passing) * value_bytes
    return total + int(HEAP_LOSS * total)


def _logits(config: ModelConfig, one: Pass, value_bytes: int, adapted: bool, logit_bytes: int) -> int:
    """Bytes of logits at their most; where the head is trained, of its gradient beside what is kept of a chunk."""
    count = one.tokens * config.vocab_size
    if count <= MANY_LOGITS:
        return 3 * logit_bytes * count
    chunk = min(count, CHUNK_LOGITS)
    narrow = value_bytes if value_bytes < 4 else 0
    gradient = 0 if adapted else value_bytes * config.vocab_size * config.hidden_size
    return max(chunk * max(logit_bytes, 4 + narrow), chunk * (4 + narrow) + gradient)


def _kept(layer: LayerCost, one: Pass, value_bytes: int) -> int:
    """Values that one layer keeps of a pass for its backward pass."""
    columns = one.rows * (one.prompt + one.length)  # whose keys and values are laid side by side
    scores = layer.heads * (one.prompt + one.length) if one.length <= PLAIN else 0  # the softmax's result
    kept = layer.kept + layer.kept_bytes // value_bytes + scores
    return one.tokens * kept + columns * layer.kept_columns


def _moment(layer: LayerCost, one: Pass, adapted: bool) -> int:
    """Values a token that a layer's passes make and let go of, at their most."""
    scores = layer.heads * (one.prompt + one.length if one.length <= PLAIN else BLOCK)
    # of gate and up, twice that wide: two gradients, or with adapters the frozen product, theirs and the sum
    return max(3 * scores, (6 if adapted else 4) * layer.widest)


def training_seconds(
    config: ModelConfig, tokens: int, length: int, rate: float, checkpointed: bool = False, adapters: bool = False
) -> float:
    """A rough time for training on `tokens` tokens in rows of `length`, at `rate` FLOP/s of matrix products.

    A pass costs the forward pass three times, twice where the matrices are frozen, and once more where activations
    are computed again.
    """
    times = (2 if adapters else 3) + (1 if checkpointed else 0)
    return tokens * times * forward_flops(config, mean_context(length)) / (MATMUL_SHARE * rate)


def gigabytes(n: float) -> str:
    """`3.1 GB`, `12 MB`."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
