"""What a model's layers hold and compute, as numbers that each family gives of a config; `hadal.cost` adds them up.

No torch. Norms, rotary positions, softmax and activations are counted as what they hold, not as what they compute.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCost:
    """One layer. Entries of a matrix are multiplied once for a token; those of an expert where the token visits it.

    attention, feed_forward: entries of matrices, and *_biases of their biases. expert: entries of one routed expert, of
    `experts`, of which a token visits `visited`; shared: entries of the experts that it always visits; router: of what
    chooses. norms: numbers of all norms. heads, qk_dim, value_dim: of queries, the width over which one meets a key,
    and that of a value. window: columns that a query looks at at most, itself included; 0 is all. cached: numbers that
    the cache keeps for a position.

    Of training, in numbers that the backward pass keeps: `kept` for a token, `kept_columns` for a column that it looks
    at, `kept_bytes` for a token in bytes whatever the dtype; `shared_prompt` for a token of a prompt that several rows
    continue. widest: numbers of the widest activation of a token.
    """

    attention: int
    norms: int
    heads: int
    qk_dim: int
    value_dim: int
    cached: int
    kept: int
    kept_columns: int
    shared_prompt: int
    widest: int
    attention_biases: int = 0
    feed_forward: int = 0
    feed_forward_biases: int = 0
    expert: int = 0
    experts: int = 0
    visited: int = 0
    shared: int = 0
    router: int = 0
    window: int = 0
    kept_bytes: int = 0

    @property
    def parameters(self) -> int:
        """All of the layer's."""
        matrices = self.attention + self.feed_forward + self.experts * self.expert + self.shared + self.router
        return matrices + self.attention_biases + self.feed_forward_biases + self.norms

    @property
    def idle(self) -> int:
        """Parameters of the routed experts that a token does not visit."""
        return (self.experts - self.visited) * self.expert

    def forward_flops(self, context: float) -> float:
        """FLOPs of one token that could attend to `context` positions, itself included."""
        seen = min(context, self.window) if self.window else context
        scores = 2 * seen * self.heads * (self.qk_dim + self.value_dim)
        matrices = self.attention + self.feed_forward + self.visited * self.expert + self.shared + self.router
        return 2 * matrices + self.attention_biases + self.feed_forward_biases + scores


@dataclass(frozen=True)
class Cost:
    """A model's layers, and those of its module that predicts ahead (MTP) with the entries of its projection and the
    numbers of its own norms. rotary: numbers that the tables of rotary positions hold for a position."""

    layers: tuple[LayerCost, ...]
    rotary: int
    mtp: tuple[LayerCost, ...] = ()
    mtp_projection: int = 0
    mtp_norms: int = 0
