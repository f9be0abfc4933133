"""What an engine may be told."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class EngineConfig:
    """cache_bytes: for runs, prompts and kept prefixes together; None takes half of what is free."""

    cache_bytes: int | None = None
    rows: int = 1024
    """Sequences that decode at once."""
    chunk: int = 2048
    """Tokens of prompts that a step reads at most; of a wide model on a CPU it reads fewer (`chunk_size`)."""
    exact: bool = True
    """What a request gets does not depend on others, on chunks, on the prefix store or on speculation."""
    speculate: Literal["ngram", "mtp"] | None = None
    """Guess tokens ahead from the text itself, or by the model's own prediction module (one token)."""
    draft: int = 4
    """Tokens that are guessed from the text."""
    room: int = 256
    """Columns behind its prompt that a sequence's first run has, at most; it moves when they are full."""
    graphs: bool | None = None
    """Record the steps that come again and replay them (`hadal.engine.graphs`); None: on a GPU."""
    keep_prompts: bool = True
    keep_replies: bool = False
    """Whether the prefix store takes prompts, and what was generated on them (for the next turn of a chat)."""
    check_weights: bool = field(default_factory=lambda: bool(os.environ.get("HADAL_CHECK_WEIGHTS")))
    """Compare a checksum of the weights whenever prompts begin to be read: who wrote to them without a word is a bug
    (`Decoder.changed`). HADAL_CHECK_WEIGHTS=1 turns it on everywhere."""
