"""What every architecture shares: embedding, the pass through the layers, the head, initialisation.

Axes: B rows, T tokens of this pass, S cached columns, D hidden, H query heads, J key heads, K head width,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hadal.models.balance import Counted
from hadal.models.blocks import Norm, RotaryTable, full_weight
from hadal.models.cache import Cache, Columns, Widths
from hadal.models.config import ModelConfig
from hadal.models.families import family_of
from hadal.ops.mask import Mask
from hadal.ops.rope import Rope

Rotary = tuple[Tensor, Tensor]
"""cos and sin of a pass's positions, as a family's layers take them."""

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def recomputing() -> bool:
    """Whether a checkpointed layer runs for the second time, in the backward pass: what it counts was counted."""
    return _recomputing.get()


@contextmanager
def _second_time() -> Iterator[None]:
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _second_time()


class Layer(nn.Module):
    """What the decoder and the engine ask of a layer of any family.

    cached: (J, C) of each tensor that it keeps of a token in the cache. rope: how it turns queries and keys; None: not
    at all. kind: the same for layers that differ in their weights only.
    """

    def __init__(self, cached: Widths, rope: Rope | None, *kind: Hashable) -> None:
        super().__init__()
        self.cached, self.rope, self.kind = cached, rope, (cached, rope, *kind)


class Decoder(nn.Module):
    """A language model as training and inference both run it; subclasses supply the layers."""

    def __init__(self, config: ModelConfig, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.packed_head: nn.Module | None = None
        """The head of a model that is packed for inference (`hadal.models.packed`)."""
        self.generation = 0
        """Counts the writes to the weights: what was computed of them (kept prefixes, recordings, packed copies) is
        theirs while it stays the same."""
        ropes = dict.fromkeys(layer.rope for layer in self.each_layer() if layer.rope is not None)
        self.ropes = nn.ModuleList(RotaryTable(config.max_position_embeddings, rope) for rope in ropes)
        self.checkpoint_activations = False
        """Keep of each layer its input alone, in training passes, and compute the rest again for the gradient."""

    def changed(self) -> None:
        """Whoever has written to the weights, or put others in their place, says so here: nothing else would tell."""
        self.generation += 1

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As a module's."""
        found = super().load_state_dict(*args, **kwargs)
        self.changed()
        return found

    def _apply(self, *args: Any, **kwargs: Any) -> Decoder:
        """What moves a module or gives it another dtype (`to`, `float`, `cuda`) comes through here."""
        super()._apply(*args, **kwargs)
        self.changed()
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def auxiliary(self) -> frozenset[str]:
        """The losses besides the next token's that it can be trained by (`hadal.models.family`)."""
        return family_of(self.config).auxiliary(self.config)

    def each_layer(self) -> list[Layer]:
        """The layers, which to torch are modules of any kind."""
        return cast("list[Layer]", list(self.layers))

    def distinct_layers(self) -> list[int]:
        """The first layer of each kind: those that differ in what they compute and not only in their weights."""
        kinds = [layer.kind for layer in self.each_layer()]
        return [kinds.index(kind) for kind in dict.fromkeys(kinds)]

    def cache_widths(self, ahead: bool = False) -> list[Widths]:
        """Of each layer, (J, C) of every tensor that it caches for a token; ahead: and of the layers that predict
        ahead, behind the others."""
        return [layer.cached for layer in [*self.each_layer(), *(self.mtp_layers() if ahead else [])]]

    def mtp_layers(self) -> list[Layer]:
        """The layers of the module that predicts ahead; none here."""
        return []

    def new_cache(self, start: Tensor, capacity: int) -> Cache:
        """An empty cache; start[b] unused columns at the front of row b."""
        return Cache(self.cache_widths(), start, capacity, self.dtype)

    def forward(
        self,
        ids_BT: Tensor,
        cache: Columns | None = None,
        positions_BT: Tensor | None = None,
        counted: Counted | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] after the last norm.

        Without a cache rows begin at column 0 and are padded at the end, if at all; `positions` may then say where
        each token stands, and `documents` which tokens of a packed row belong together: attention stays in them.
        With a cache, the tokens continue each row's columns, which are then counted as written.
        `counted` changes no output: experts' loads and balance losses count the tokens that it names (all, if None).
        """
        T = ids_BT.shape[1]
        tables, mask = self._surroundings(T, cache, positions_BT, documents_BT)
        x = self.embedded(ids_BT)
        for index, layer in enumerate(self.each_layer()):
            x = self._run(layer, x, tables, mask, cache, index, counted)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """What the first layer is given [B, T, D]."""
        x: Tensor = self.embed(ids_BT)
        return x

    def _run(
        self, layer: Layer, x_BTD: Tensor, tables: Mapping[Rope, Rotary], mask: Mask, cache: Columns | None,
        index: int, counted: Counted | None,
    ) -> Tensor:  # fmt: skip
        """One layer, checkpointed where that is asked for and possible."""
        rotary = None if layer.rope is None else tables[layer.rope]
        arguments = (x_BTD, rotary, mask, cache, index, counted)
        training = self.training and torch.is_grad_enabled() and (cache is None or cache.repeatable)
        out: Tensor
        if self.checkpoint_activations and training:
            out = checkpoint(layer, *arguments, use_reentrant=False, context_fn=_contexts)
        else:
            out = layer(*arguments)
        return out

    def _surroundings(
        self, tokens: int, cache: Columns | None, positions_BT: Tensor | None, documents_BT: Tensor | None = None
    ) -> tuple[dict[Rope, Rotary], Mask]:
        """The rotary tables of the next tokens, of every kind that layers have, and what each may look at."""
        mask = Mask(tokens, tokens, documents=documents_BT) if cache is None else cache.mask(tokens)
        if cache is not None:
            positions_BT = cache.positions(tokens)
        tables = cast("list[RotaryTable]", list(self.ropes))
        return {table.rope: self.rotary(*table(tokens, positions_BT, self.dtype)) for table in tables}, mask

    def rotary(self, cos: Tensor, sin: Tensor) -> Rotary:
        """A pass's tables [., T, 1, R/2] as the layers take them."""
        return cos, sin

    def mtp_hidden(
        self,
        hidden_BTD: Tensor,
        next_ids_BT: Tensor,
        cache: Columns | None = None,
        positions_BT: Tensor | None = None,
        counted: Counted | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] whose `logits` predict the token after the next one, where the config has a module
        for that (`predicts_ahead`).

        hidden: what `forward` gave for T positions, after the last norm; next_ids: the token that follows each.
        With a cache of the module's own the positions continue its columns, so that it can draft while decoding.
        """
        raise NotImplementedError

    def head_weight(self) -> Tensor:
        """The head's matrix [V, D]."""
        return self.embed.weight if self.config.tie_word_embeddings else full_weight(self.head)

    def logits(self, hidden_D: Tensor) -> Tensor:
        """Float32 logits [..., V] (float64 for a float64 model)."""
        packed = self.packed_head
        logits = F.linear(hidden_D, self.head_weight()) if packed is None else packed(hidden_D)
        return logits if logits.dtype == torch.float64 else logits.float()

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fill every matrix from a generator of its own: the same seed gives the same weights anywhere."""
        generator = torch.Generator().manual_seed(seed)
        residual_scale = (2 * len(self.layers)) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0 if name.endswith(".bias") else 1)  # all others are norms
                continue
            std = self.config.initializer_range if name == "embed.weight" else parameter.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                std *= residual_scale
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        self.changed()

    def after_update(self, router_bias_rate: float) -> None:
        """What an architecture does once the optimiser has stepped (experts are balanced); nothing here."""

    def load_metrics(self) -> list[dict[str, float]]:
        """How evenly each layer's experts were visited since the last `after_update`; none here.

        One dict a layer: `layer`, and what `hadal.models.balance.load_metrics` gives.
        """
        return []

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors besides the parameters that a resumed run needs (router biases); none here."""
        return {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `extra_state` gave."""
