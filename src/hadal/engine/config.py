"""What an engine may be told."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class EngineConfig:
    """cache_bytes: of the KV cache, kept prefixes included; None takes half of what is free."""

    cache_bytes: int | None = None
    rows: int = 1024
    """Sequences that decode at once."""
    chunk: int = 2048
    """Tokens of a prefill step at most; of a wide model on a CPU fewer (`chunk_size`)."""
    exact: bool = True
    """What a request gets does not depend on others, on chunks, on the prefix cache or on speculation."""
    speculate: Literal["ngram", "mtp"] | None = None
    """Draft tokens from the text itself, or by the model's own prediction module (one token)."""
    draft: int = 4
    """Tokens that are drafted from the text."""
    reserve: int = 256
    """Tokens of KV cache that a sequence gets behind its prompt at first, at most; it moves when they are full."""
    graphs: bool | None = None
    """Record the steps that come again and replay them (`hadal.engine.graphs`); None: on a GPU."""
    keep_prompts: bool = True
    keep_replies: bool = False
    """Whether the prefix cache takes prompts, and what was generated on them (for the next turn of a chat)."""
    check_weights: bool = field(default_factory=lambda: bool(os.environ.get("HADAL_CHECK_WEIGHTS")))
    """Compare a checksum of the weights whenever a prefill begins: who wrote to them without a word is a bug
    (`Decoder.changed`). HADAL_CHECK_WEIGHTS=1 turns it on everywhere."""
