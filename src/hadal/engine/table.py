"""What the engine knows of each running sequence, as columns of numbers: a step never loops over sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from hadal.engine.request import Sequence
from hadal.rollout import SamplingParams

NO_BUDGET = 1 << 62
"""More tokens than there are."""
MODES = {"model": 1, "sampled": 2}


class Table:
    """One slot for each sequence that has begun, also while it is preempted.

    `tokens[slot, :made[slot]]` is what it has generated; the last of these is not in the cache yet.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sequences: list[Sequence | None] = []
        self.free: list[int] = []
        whole = {"length", "made", "limit", "key", "top_k", "budget", "thought", "mode", "draft"}
        for name in sorted(whole):
            setattr(self, name, torch.zeros(0, dtype=torch.long, device=device))
        for name in ("temperature", "top_p", "min_p"):
            setattr(self, name, torch.zeros(0, dtype=torch.float32, device=device))
        for name in ("no_think", "ends", "on_host"):
            setattr(self, name, torch.zeros(0, dtype=torch.bool, device=device))
        self.tokens = torch.zeros(0, 64, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(0, 64, device=device)
        self.forced = torch.zeros(0, 64, dtype=torch.bool, device=device)

    length: Tensor  # tokens in the cache
    made: Tensor  # tokens generated
    limit: Tensor  # tokens that may be generated
    key: Tensor  # of the noise
    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    min_p: Tensor
    budget: Tensor  # tokens that a thought may have
    thought: Tensor  # tokens of the open thought; -1 outside of one
    mode: Tensor  # which log-probabilities are wanted: 0 none, 1 the model's, 2 of the sampled distribution
    draft: Tensor  # the token that is expected next; -1 for none
    no_think: Tensor
    ends: Tensor  # whether an end token ends it
    on_host: Tensor  # whether Python looks at it at every step: its logits are processed or its text is watched

    def add(self, sequences: list[Sequence]) -> None:
        """Slots for new sequences."""
        if not sequences:
            return
        if len(self.free) < len(sequences):
            self._grow(max(len(sequences), len(self.sequences)))
        rows = [_row(sequence) for sequence in sequences]
        for sequence in sequences:
            sequence.slot = self.free.pop()
            self.sequences[sequence.slot] = sequence
        slots = torch.tensor([sequence.slot for sequence in sequences], device=self.device)
        for name in rows[0]:
            column = getattr(self, name)
            column[slots] = torch.tensor([row[name] for row in rows], dtype=column.dtype, device=self.device)
        self.forced[slots] = False

    def drop(self, sequence: Sequence) -> None:
        """Free the slot of a sequence that has ended."""
        self.sequences[sequence.slot] = None
        self.free.append(sequence.slot)
        sequence.slot = -1

    def record(self, slots: Tensor, tokens: Tensor, forced: Tensor) -> Tensor:
        """Write each sequence's next token; returns the places [N] that they went to."""
        places = self.made[slots]
        width = self.tokens.shape[1]
        if len(places) and int(places.max()) >= width:
            for name in ("tokens", "logprobs", "forced"):
                kept = getattr(self, name)
                setattr(self, name, torch.cat([kept, torch.zeros_like(kept)], dim=1))
        self.tokens[slots, places] = tokens
        self.forced[slots, places] = forced
        self.made[slots] = places + 1
        return places

    def last_tokens(self, slots: Tensor) -> Tensor:
        """The token [N] that each sequence generated last."""
        return self.tokens[slots, self.made[slots] - 1]

    def generated(self, sequence: Sequence, begin: int = 0) -> list[int]:
        """Its tokens from a place on."""
        slot = sequence.slot
        return self.tokens[slot, begin : int(self.made[slot])].tolist() if slot >= 0 else []

    def _grow(self, more: int) -> None:
        old = len(self.sequences)
        self.sequences += [None] * more
        self.free += range(old + more - 1, old - 1, -1)
        for name, kept in vars(self).items():
            if isinstance(kept, Tensor):
                setattr(self, name, torch.cat([kept, kept.new_zeros(more, *kept.shape[1:])]))


def needs_host(p: SamplingParams) -> bool:
    """Whether a request's logits are processed or its text is watched."""
    return p.processes_logits or bool(p.stop) or bool(p.stop_token_ids) or bool(p.logprobs)


def _row(sequence: Sequence) -> dict[str, float]:
    """What a sequence's slot holds before its first token."""
    request, p = sequence.request, sequence.request.params
    return {
        "length": 0, "made": 0, "draft": -1, "limit": request.limit, "key": sequence.key, "temperature": p.temperature,
        "top_p": p.top_p, "top_k": min(p.top_k, NO_BUDGET), "min_p": p.min_p,
        "budget": NO_BUDGET if p.thinking_budget is None else min(p.thinking_budget, NO_BUDGET),
        "thought": 0 if request.in_thought else -1, "mode": 0 if p.logprobs is None else MODES[p.logprobs_of],
        "no_think": p.thinking is False, "ends": not p.ignore_eos, "on_host": needs_host(p),
    }  # fmt: skip
