"""Parameters and FLOPs from a model's config: arithmetic, no torch.

What is counted: matrix products, at two FLOPs for a multiply and an add, and their biases at one. Norms, rotary
embeddings, softmax, activations and the sampler are left out; they are under 2% at the sizes
where FLOPs matter. Attention is counted over the positions that causality leaves, which is
half of what a kernel without a causal skip does.

Every function takes a `Shape` or any object with the Hugging Face field names, such as
`hadal.configs` or a transformers config. Source of the block: DeepSeek-V3 (arXiv 2412.19437), section 2.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The numbers of a config that decide its size, under their Hugging Face names.

    `kv_lora_rank` above 0 makes attention latent (MLA), `n_routed_experts` above 0 makes the
    layers from `first_k_dense_replace` on mixtures of experts.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    num_key_value_heads: int = 0  # 0: as many as num_attention_heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    qk_norm: bool = True  # Qwen3 has norms over the head's dimension, Llama has none
    qkv_bias: bool = False  # of a dense model: biases on query, key and value
    attention_bias: bool = False  # on the output; of latent attention also on the down projections
    mlp_bias: bool = False
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    num_nextn_predict_layers: int = 0

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of a config object; fields that it lacks or holds None in take their default."""
        if isinstance(config, Shape):
            return config
        found = {}
        for field in fields(cls):
            value = getattr(config, field.name, None)
            if value is None and field.default is MISSING:
                raise ValueError(f"the config has no {field.name}")
            if value is not None:
                found[field.name] = value
        return cls(**found)

    @property
    def is_latent(self) -> bool:
        return self.kv_lora_rank > 0

    @property
    def num_moe_layers(self) -> int:
        return self.num_hidden_layers - self.num_dense_layers

    @property
    def num_dense_layers(self) -> int:
        return (
            min(self.first_k_dense_replace, self.num_hidden_layers)
            if self.n_routed_experts
            else self.num_hidden_layers
        )

    @property
    def qk_dim(self) -> int:
        """Dimensions over which one head's query meets a key."""
        if self.is_latent:
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def value_dim(self) -> int:
        return self.v_head_dim if self.is_latent else self.qk_dim


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


def parameters(config: Any) -> Parameters:
    """Count the parameters of a model, MTP layers apart (without their shared embedding and head).

    The selection biases of a router are no parameters here: no gradient reaches them.
    """
    s = Shape.of(config)
    d = s.hidden_size
    embedding = s.vocab_size * d
    layers, dense, moe = s.num_hidden_layers, s.num_dense_layers, s.num_moe_layers
    expert = 3 * d * s.moe_intermediate_size
    feed_forward = 3 * d * s.intermediate_size + _mlp_biases(s)
    attention = _attention_weights(s) + _attention_biases(s)
    norms = _attention_norms(s) + 2 * d
    router = d * s.n_routed_experts
    parts = {
        "embedding": embedding,
        "attention": layers * attention,
        "feed_forward": dense * feed_forward,
        "routed_experts": moe * s.n_routed_experts * expert,
        "shared_experts": moe * s.n_shared_experts * expert,
        "routers": moe * router,
        "norms": layers * norms + d,
        "head": 0 if s.tie_word_embeddings else embedding,
    }
    total = sum(parts.values())
    idle = moe * (s.n_routed_experts - s.num_experts_per_tok) * expert
    # An MTP layer is a whole block, two norms before its projection of 2d to d, and one norm after.
    experts = router + (s.n_routed_experts + s.n_shared_experts) * expert
    block = attention + norms + (experts if s.n_routed_experts else feed_forward)
    return Parameters(
        total=total,
        active=total - idle - (0 if s.tie_word_embeddings else embedding),  # a tied one is the head as well
        embedding=embedding,
        mtp=s.num_nextn_predict_layers * (block + 3 * d + 2 * d * d),
        parts=parts,
    )


def cache_bytes(config: Any, value_bytes: float = 2) -> float:
    """Bytes that the cache keeps for one position: the latent and the rotary key, or every key and value head."""
    s = Shape.of(config)
    if s.is_latent:
        return value_bytes * s.num_hidden_layers * (s.kv_lora_rank + s.qk_rope_head_dim)
    heads = s.num_key_value_heads or s.num_attention_heads
    return value_bytes * s.num_hidden_layers * heads * (s.qk_dim + s.value_dim)


def plain_cache_bytes(config: Any, value_bytes: float = 2) -> float:
    """`cache_bytes` of the same model with plain attention: a key and a value for every query head."""
    s = Shape.of(config)
    return value_bytes * s.num_hidden_layers * s.num_attention_heads * (s.qk_dim + s.value_dim)


def forward_flops(config: Any, context: float, head: bool = True) -> float:
    """FLOPs of one token's forward pass that attends to `context` positions, itself included.

    Over a whole sequence use `mean_context`. `head=False` leaves out the vocabulary's
    projection, as in prefilling, where only the last token needs it.
    """
    s = Shape.of(config)
    d = s.hidden_size
    scores = 2 * context * s.num_attention_heads * (s.qk_dim + s.value_dim)
    attention = 2 * _attention_weights(s) + _attention_biases(s) + scores
    dense = 2 * 3 * d * s.intermediate_size + _mlp_biases(s)
    experts = s.num_experts_per_tok + s.n_shared_experts
    moe = 2 * (d * s.n_routed_experts + experts * 3 * d * s.moe_intermediate_size)
    layers = s.num_hidden_layers * attention + s.num_dense_layers * dense + s.num_moe_layers * moe
    return layers + (2 * d * s.vocab_size if head else 0)


def training_flops(config: Any, context: float) -> float:
    """FLOPs of one trained token: the backward pass costs twice the forward, MTP layers included."""
    s = Shape.of(config)
    d = s.hidden_size
    mtp = 0.0
    if s.num_nextn_predict_layers:
        mtp_layer = forward_flops(_one_layer(s), context) + 2 * 2 * d * d
        mtp = s.num_nextn_predict_layers * mtp_layer
    return 3 * (forward_flops(s, context) + mtp)


def mean_context(length: int) -> float:
    """The mean number of positions that a token of a causal sequence of `length` attends to."""
    return (length + 1) / 2


def _one_layer(s: Shape) -> Shape:
    """One layer of the model's later kind, with its head: what an MTP module runs."""
    values = {field.name: getattr(s, field.name) for field in fields(s)}
    return Shape(
        **{**values, "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
    )


def _attention_weights(s: Shape) -> int:
    """Matrix entries of one attention; each is used once for a token."""
    d, heads = s.hidden_size, s.num_attention_heads
    if not s.is_latent:
        kv_heads = s.num_key_value_heads or heads
        return d * s.qk_dim * (heads + kv_heads) + d * s.value_dim * (kv_heads + heads)
    query = d * s.q_lora_rank + s.q_lora_rank * heads * s.qk_dim if s.q_lora_rank else d * heads * s.qk_dim
    down = d * (s.kv_lora_rank + s.qk_rope_head_dim)
    up = s.kv_lora_rank * heads * (s.qk_nope_head_dim + s.v_head_dim)
    return query + down + up + heads * s.v_head_dim * d


def _attention_biases(s: Shape) -> int:
    d = s.hidden_size
    if s.is_latent:
        return (s.q_lora_rank + s.kv_lora_rank + s.qk_rope_head_dim + d) if s.attention_bias else 0
    kv_heads = s.num_key_value_heads or s.num_attention_heads
    qkv = (s.num_attention_heads + kv_heads) * s.qk_dim + kv_heads * s.value_dim
    return (qkv if s.qkv_bias else 0) + (d if s.attention_bias else 0)


def _mlp_biases(s: Shape) -> int:
    return 2 * s.intermediate_size + s.hidden_size if s.mlp_bias else 0


def _attention_norms(s: Shape) -> int:
    if s.is_latent:
        return s.q_lora_rank + s.kv_lora_rank
    return 2 * s.qk_dim if s.qk_norm else 0
