"""The weights that an engine samples from, and whether they are still those of a moment ago."""

from __future__ import annotations

from hadal.models.checksum import checksum
from hadal.models.decoder import Decoder
from hadal.models.lora import adapted_modules
from hadal.models.packed import merged_copy, repack


class Weights:
    """A policy, and the `model` that computes what it would say: itself, or where it has adapters a copy in which they
    are merged, so that a token takes no longer than without them."""

    def __init__(self, policy: Decoder, checked: bool) -> None:
        self.policy, self.checked = policy, checked
        self.copied = next(adapted_modules(policy), None) is not None
        self.model = merged_copy(policy) if self.copied else policy
        self._merged = policy.generation
        self.generation, self._checksum = -1, 0
        """Of the policy, when `follow` looked at it last."""

    def follow(self) -> int:
        """Take over the policy's weights where they have changed; returns their generation."""
        if self.policy.generation != self.generation:
            self.generation = self.policy.generation
            if self.copied and self._merged != self.generation:
                repack(self.model, self.policy)
                self._merged = self.generation
            if self.checked:
                self._checksum = checksum(self.policy)
        return self.generation

    def check(self) -> None:
        """RuntimeError where the weights are others and their generation is the same."""
        if self.checked and checksum(self.policy) != self._checksum:
            raise RuntimeError("weights were written to, and whoever did it has not called Decoder.changed()")
