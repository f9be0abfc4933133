"""What Gemma 3's layers hold and compute, from its config."""

from __future__ import annotations

from dataclasses import replace

from hadal.models.cost import Cost, LayerCost
from hadal.models.gemma3.config import Gemma3Config


def cost(config: Gemma3Config) -> Cost:
    """The numbers of a Gemma 3 model."""
    d, H, J, K = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    wide = config.intermediate_size
    layer = LayerCost(
        attention=2 * d * K * (H + J),
        attention_biases=(H + 2 * J) * K + d if config.attention_bias else 0,
        feed_forward=3 * d * wide,
        norms=4 * d + 2 * K,
        heads=H,
        qk_dim=K,
        value_dim=K,
        cached=2 * J * K,
        # What each of four norms has normed, and the results of two, which products keep; queries before and after
        # turning, and normed; gate and up, gelu(gate), and the product.
        kept=6 * d + 2 * H * K + (H + J) * K + 4 * wide,
        kept_columns=2 * J * K,
        shared_prompt=(2 * H + 3 * J) * K,  # what keys and values are views of
        widest=wide,
    )
    layers = range(config.num_hidden_layers)
    return Cost(layers=tuple(replace(layer, window=config.window(index)) for index in layers), rotary=2 * K)
