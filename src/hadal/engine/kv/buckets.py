"""The KV cache: each sequence owns one contiguous row of it, rows of one size side by side in a bucket.

Attention reads a bucket as a view, without gathering anything. A sequence that outgrows its row moves to the bucket of
the next size; a forward pass goes over the rows of all buckets, and only attention goes bucket by bucket.

Axes as in `hadal.models.decoder`; R rows of a bucket, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hadal.models.cache import Columns, Widths
from hadal.ops.exact import COLUMNS, QUERIES
from hadal.ops.mask import Mask

STEP = 64
FILL = 32  # tokens whose places are made ready at once


def bucket_size(tokens: int) -> int:
    """The size of the rows that hold this many tokens: multiples of 64 up to 256, then each half as long again."""
    if tokens <= 4 * STEP:
        return max(-(-tokens // STEP), 1) * STEP
    power = 1 << (tokens - 1).bit_length()
    return power * 3 // 4 if tokens <= power * 3 // 4 else power


class Bucket:
    """Rows of `size` tokens. Row b belongs to the sequence in slot `slots[b]`; rows behind the last are spare.

    `parts` are the tensors [L, R, J, size, C] of all layers that keep alike, one for each that a layer keeps (keys and
    values, or latents and rotated keys); `layers` has them for each layer, [R, J, size, C], and as
    [R * J * size, C]. widths: what each layer keeps.
    `ready`: tokens whose places hold numbers in every row in use. Places that a row has not come to are multiplied with
    a weight of 0, which must not meet a NaN.
    """

    def __init__(self, size: int, widths: Sequence[Widths], like: Tensor) -> None:
        self.size, self.ready = size, 0
        self.slots = torch.empty(0, dtype=torch.long, device=like.device)
        self.parts: list[Tensor] = []
        places: dict[int, tuple[slice, int]] = {}
        for kind in dict.fromkeys(widths):
            alike = [layer for layer, own in enumerate(widths) if own == kind]
            span = slice(len(self.parts), len(self.parts) + len(kind))
            self.parts += [like.new_empty(len(alike), 0, heads, size, width) for heads, width in kind]
            places |= {layer: (span, place) for place, layer in enumerate(alike)}
        self.places = [places[layer] for layer in range(len(widths))]
        """Of each layer, its parts and its place in them."""
        self._view_layers()

    def _view_layers(self) -> None:
        """Make the views of each layer, once: a step would take as long for them as for a norm."""
        own = [[part[place] for part in self.parts[span]] for span, place in self.places]
        self.layers = [[(kept, kept.flatten(0, 2)) for kept in layer] for layer in own]

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def rows(self) -> int:
        """Rows that there is memory for."""
        return self.parts[0].shape[1]

    def resize(self, rows: int) -> None:
        """Have memory for exactly this many rows, which must hold those in use."""
        if rows == self.rows:
            return
        used, ready = len(self), self.ready
        self.layers = []  # what they show is given back part by part
        for i, part in enumerate(self.parts):
            grown = part.new_empty(len(part), rows, *part.shape[2:])
            grown[:, :used, :, :ready] = part[:, :used, :, :ready]
            self.parts[i] = grown
        self._view_layers()
        self.ready = ready if used else 0

    def fill(self, tokens: int) -> None:
        """Make the places of this many tokens ready."""
        if tokens > self.ready:
            end = min(-(-tokens // FILL) * FILL, self.size)
            for part in self.parts:
                part[:, :, :, self.ready : end] = 0
            self.ready = end

    def join(self, slots: Tensor, source: Bucket, rows: Tensor, tokens: int) -> None:
        """New rows: copies of the first tokens of another bucket's rows, which may repeat."""
        self.fill(tokens)
        begin, end = len(self), len(self) + len(slots)
        assert end <= self.rows, "rows are reserved before they are used"
        for mine, theirs in zip(self.parts, source.parts, strict=True):
            mine[:, begin:end, :, :tokens] = theirs[:, rows, :, :tokens]
            mine[:, begin:end, :, tokens : self.ready] = 0
        self.slots = torch.cat([self.slots, slots])

    def leave(self, gone: Tensor, tokens: int) -> None:
        """Drop rows by a mask [B]; the last ones move into their places, with their first tokens."""
        stays = ~gone
        count = int(stays.sum())
        holes = gone[:count].nonzero()[:, 0]
        movers = stays[count:].nonzero()[:, 0] + count
        if len(holes):
            for part in self.parts:
                part[:, holes, :, :tokens] = part[:, movers, :, :tokens]
            self.slots[holes] = self.slots[movers]
        self.slots = self.slots[:count]


class CacheView(Columns):
    """What attention reads and writes in one forward pass over the rows of some buckets, `tokens` more in each row.

    length: the tokens [B] that each row has already, bucket by bucket. `spare` rows follow that are in no bucket: they
    make the number of rows a stable one (`hadal.ops.exact`) and attend to nothing.
    """

    def __init__(
        self, buckets: Sequence[Bucket], lengths: Sequence[Tensor], positions: int, exact: bool, spare: int = 0,
        first_layer: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(torch.cat([*lengths, lengths[0].new_zeros(spare)]))
        self.buckets, self.lengths, self.most, self.exact = buckets, lengths, positions, exact
        self.spare, self.first_layer = spare, first_layer
        self.counts = [len(length) for length in lengths]
        self.at: list[Tensor] = []
        self.masks: list[Mask] = []
        self._places: dict[tuple[int, int], Tensor] = {}
        self._nothing: Tensor | None = None
        """What the spare rows attend to."""

    def positions(self, tokens: int) -> Tensor:
        steps = torch.arange(tokens, device=self.start.device)
        # Padding may reach past the last position; what it computes is read by nobody.
        return (self.start[:, None] + steps).clamp_(max=self.most - 1)

    def mask(self, tokens: int) -> Mask:
        """The first bucket's mask; `attend` has each bucket's own."""
        steps = torch.arange(tokens, device=self.start.device)
        self.masks, self.at, self._places = [], [], {}
        for bucket, length in zip(self.buckets, self.lengths, strict=True):
            end, alike = self._extent(bucket, length, tokens)
            bucket.fill(end)
            self.at.append(length[:, None] + steps)
            self.masks.append(Mask(tokens, end, at=None if alike else self.at[-1]))
        return self.masks[0]

    def _extent(self, bucket: Bucket, length: Tensor, tokens: int) -> tuple[int, bool]:
        """How many tokens of a bucket's rows are looked at, and whether one mask does for all its rows.

        One mask, which says no more than causality, spares attention most of the masking.
        """
        longest = int(length.max())
        end = min(max(longest + tokens, COLUMNS), bucket.size)
        return end, end == longest + tokens and tokens > 1 and int(length.min()) == longest

    def advance(self, tokens: int) -> None:
        """Whoever runs the pass counts the tokens: not all of them are kept."""

    def attend(
        self, layer: int, form: Callable[..., Tensor], q_BTHK: Tensor, new: Sequence[Tensor], mask: Mask, group: int
    ) -> Tensor:
        tokens = q_BTHK.shape[1]
        if self.exact and tokens * group < QUERIES:  # the last query again, to have enough
            q_BTHK = _repeated(q_BTHK, -(-QUERIES // group))
        if self.masks[0].tokens != q_BTHK.shape[1]:  # the last query looks where the real one does
            self.masks = [
                Mask(q_BTHK.shape[1], mask.columns, at=_repeated(at, q_BTHK.shape[1]))
                for mask, at in zip(self.masks, self.at, strict=True)
            ]
        parts, begin = [], 0
        for bucket, count in enumerate(self.counts):
            query, *fresh = q_BTHK, *new
            if count < len(q_BTHK):
                query, *fresh = (part[begin : begin + count] for part in (q_BTHK, *new))
            parts.append(form(query, *self._write(bucket, layer, fresh), self.masks[bucket]))
            begin += count
        if self.spare:
            if self._nothing is None:
                self._nothing = parts[0].new_zeros(self.spare, *parts[0].shape[1:])
            parts.append(self._nothing)
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        # Close together: torch multiplies a matrix with gaps in another way where weights need no gradient.
        return out if out.shape[1] == tokens else out[:, :tokens].contiguous()

    def _write(self, bucket: int, layer: int, new: Sequence[Tensor]) -> list[Tensor]:
        """Take in a layer's new tokens of a bucket; its tensors up to the last place that anyone sees."""
        out, end = [], self.masks[bucket].columns
        for (kept, places), fresh in zip(self.buckets[bucket].layers[self.first_layer + layer], new, strict=True):
            heads, tokens = fresh.shape[1:3]
            if (bucket, heads) not in self._places:
                row = torch.arange(self.counts[bucket] * heads, device=kept.device).view(-1, heads, 1)
                self._places[bucket, heads] = (row * kept.shape[2] + self.at[bucket][:, None, :tokens]).flatten()
            places.index_copy_(0, self._places[bucket, heads], fresh.reshape(-1, fresh.shape[3]))
            out.append(kept[: self.counts[bucket], :, :end])
        return out


def _repeated(x_BT: Tensor, tokens: int) -> Tensor:
    """As many of axis 1, by repeating its last."""
    if x_BT.shape[1] == 1:
        return x_BT.expand(-1, tokens, *x_BT.shape[2:])
    return torch.cat([x_BT, x_BT[:, -1:].expand(-1, max(tokens - x_BT.shape[1], 0), *x_BT.shape[2:])], dim=1)
