"""What a dense decoder's layers hold and compute, from its config."""

from __future__ import annotations

from dataclasses import replace

from hadal.models.cost import Cost, LayerCost
from hadal.models.dense.config import DenseConfig


def cost(config: DenseConfig) -> Cost:
    """The numbers of a dense model."""
    d, H, J, K = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    wide = config.intermediate_size
    layer = LayerCost(
        attention=2 * d * K * (H + J),
        attention_biases=((H + 2 * J) * K if config.qkv_bias else 0) + (d if config.attention_bias else 0),
        feed_forward=3 * d * wide,
        feed_forward_biases=2 * wide + d if config.mlp_bias else 0,
        norms=2 * d + (2 * K if config.qk_norm else 0),
        heads=H,
        qk_dim=K,
        value_dim=K,
        cached=2 * J * K,
        # Norms: each what it has normed, and its result, an input that a product keeps. Attention: queries before and
        # after turning, and normed. Feed-forward: gate and up, silu(gate), and the product.
        kept=4 * d + 2 * H * K + ((H + J) * K if config.qk_norm else 0) + 4 * wide,
        kept_columns=2 * J * K,
        shared_prompt=(2 * H + 3 * J) * K,  # what keys and values are views of
        widest=wide,
    )
    layers = range(config.num_hidden_layers)
    return Cost(layers=tuple(replace(layer, window=config.window(index)) for index in layers), rotary=K)
