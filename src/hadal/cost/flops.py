"""Parameters and FLOPs from a model's config: arithmetic, no torch.

What is counted: matrix products, at two FLOPs for a multiply and an add, and their biases at one. Norms, rotary
embeddings, softmax, activations and the sampler are left out; they are under 2% at the sizes
where FLOPs matter. Attention is counted over the positions that causality and windows leave, which is
half of what a kernel without a causal skip does.

What a layer holds and computes its family says (`hadal.models.cost`).
"""

from __future__ import annotations

from dataclasses import dataclass

from hadal.models.config import ModelConfig
from hadal.models.families import family_of


@dataclass(frozen=True)
class Parameters:
    """`total` of the main model and its `parts`; `active` of it for one token; `mtp` of the extra prediction layers.

    `active` leaves out the routed experts that a token does not visit, and the embedding, of which it reads one row:
    what it is multiplied with. So counted, DeepSeek's reports say 37B for V3, 21B for V2 and 2.4B for V2-Lite.
    """

    total: int
    active: int
    embedding: int
    mtp: int
    parts: dict[str, int]


def parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of a model, MTP layers apart (without their shared embedding and head).

    The selection biases of a router are no parameters here: no gradient reaches them.
    """
    cost = family_of(config).cost(config)
    layers = cost.layers
    embedding = config.vocab_size * config.hidden_size
    parts = {
        "embedding": embedding,
        "attention": sum(layer.attention + layer.attention_biases for layer in layers),
        "feed_forward": sum(layer.feed_forward + layer.feed_forward_biases for layer in layers),
        "routed_experts": sum(layer.experts * layer.expert for layer in layers),
        "shared_experts": sum(layer.shared for layer in layers),
        "routers": sum(layer.router for layer in layers),
        "norms": sum(layer.norms for layer in layers) + config.hidden_size,
        "head": 0 if config.tie_word_embeddings else embedding,
    }
    total = sum(parts.values())
    idle = sum(layer.idle for layer in layers)
    return Parameters(
        total=total,
        active=total - idle - (0 if config.tie_word_embeddings else embedding),  # a tied one is the head as well
        embedding=embedding,
        mtp=sum(layer.parameters for layer in cost.mtp) + cost.mtp_projection + cost.mtp_norms,
        parts=parts,
    )


def cache_bytes(config: ModelConfig, value_bytes: float = 2) -> float:
    """Bytes that the cache keeps for one position: the latent and the rotary key, or every key and value head."""
    return value_bytes * sum(layer.cached for layer in family_of(config).cost(config).layers)


def plain_cache_bytes(config: ModelConfig, value_bytes: float = 2) -> float:
    """`cache_bytes` of the same model with plain attention: a key and a value for every query head."""
    layers = family_of(config).cost(config).layers
    return value_bytes * sum(layer.heads * (layer.qk_dim + layer.value_dim) for layer in layers)


def forward_flops(config: ModelConfig, context: float, head: bool = True) -> float:
    """FLOPs of one token's forward pass that attends to `context` positions, itself included, or to as many of them as
    a layer's window has.

    Over a whole sequence use `mean_context`; with windows that is an upper bound, of attention's part by a third at
    most. `head=False` leaves out the vocabulary's projection, as in prefilling, where only the last token needs it.
    """
    layers = sum(layer.forward_flops(context) for layer in family_of(config).cost(config).layers)
    return layers + (2 * config.hidden_size * config.vocab_size if head else 0)


def training_flops(config: ModelConfig, context: float) -> float:
    """FLOPs of one trained token: the backward pass costs twice the forward, MTP layers included."""
    cost = family_of(config).cost(config)
    mtp = sum(layer.forward_flops(context) for layer in cost.mtp) + 2 * cost.mtp_projection
    if cost.mtp:
        mtp += len(cost.mtp) * 2 * config.hidden_size * config.vocab_size
    return 3 * (forward_flops(config, context) + mtp)


def mean_context(length: int) -> float:
    """The mean number of positions that a token of a causal sequence of `length` attends to."""
    return (length + 1) / 2
