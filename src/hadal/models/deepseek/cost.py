"""What a DeepSeek decoder's layers hold and compute, from its config. Source: arXiv 2412.19437, section 2."""

from __future__ import annotations

from dataclasses import replace

from hadal.models.cost import Cost, LayerCost
from hadal.models.deepseek.config import DeepseekConfig


def cost(config: DeepseekConfig) -> Cost:
    """The numbers of a DeepSeek model."""
    c, d, H = config, config.hidden_size, config.num_attention_heads
    C, R, Q = c.kv_lora_rank, c.qk_rope_head_dim, c.q_lora_rank or 0
    qk = c.qk_nope_head_dim + R
    query = d * Q + Q * H * qk if Q else d * H * qk
    expert = 3 * d * c.moe_intermediate_size
    # Of attention: queries, the query's latent and the key's before and after their norms, what comes out of it.
    kept = 4 * d + H * qk + 2 * Q + H * c.v_head_dim + C
    layer = LayerCost(
        attention=query + d * (C + R) + C * H * (c.qk_nope_head_dim + c.v_head_dim) + H * c.v_head_dim * d,
        attention_biases=Q + C + R + d if c.attention_bias else 0,
        norms=2 * d + Q + C,
        heads=H,
        qk_dim=qk,
        value_dim=c.v_head_dim,
        cached=C + R,
        kept=kept,
        kept_columns=H * (qk + c.v_head_dim) + C + R,
        shared_prompt=C + R,
        widest=max(c.intermediate_size, c.num_experts_per_tok * c.moe_intermediate_size),
    )
    # gate and up, silu(gate), and the product
    dense = replace(layer, feed_forward=3 * d * c.intermediate_size, kept=kept + 4 * c.intermediate_size)
    routed = c.num_experts_per_tok * (2 * d + 4 * c.moe_intermediate_size)
    mixture = replace(
        layer,
        expert=expert,
        experts=c.n_routed_experts,
        visited=c.num_experts_per_tok,
        shared=c.n_shared_experts * expert,
        router=d * c.n_routed_experts,
        kept=kept + routed + 4 * c.n_shared_experts * c.moe_intermediate_size,
        kept_bytes=4 * d + 12 * c.n_routed_experts,  # the router computes in float32
    )
    first = min(c.first_k_dense_replace, c.num_hidden_layers)
    ahead = c.num_nextn_predict_layers
    return Cost(
        layers=(dense,) * first + (mixture,) * (c.num_hidden_layers - first),
        rotary=R,
        mtp=(mixture,) * ahead,
        mtp_projection=2 * d * d * ahead,
        mtp_norms=3 * d * ahead,
    )
