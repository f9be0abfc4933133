"""Decoding by recorded steps: on a GPU a step's kernels are recorded once for a shape and then started by one call.

A step of a small batch is a few hundred short kernels, and starting them one by one from Python takes longer than they
run. A recording has fixed addresses and shapes, so it takes whole rows (not the tokens that anyone has come to) and
numbers of rows in few sizes; rows that no sequence holds compute what nobody reads. What a recording saves is paid for
by a shape's first steps, so only a shape that comes again is recorded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hadal.engine.kv.buckets import Bucket, CacheView
from hadal.models.decoder import Decoder
from hadal.ops.exact import padded_rows

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes what is to be done, and gives what does it again with the same tensors."""
AFTER = 3
"""Steps of a shape that go without a recording."""
KEPT = 64
"""Shapes that are remembered, those that came last."""


def rows_recorded(rows: int, most: int) -> int:
    """The number of rows of a recording that serves so many: powers of two up to 8, then multiples of 8."""
    return min(1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8, most)


def can_record(model: Decoder, exact: bool) -> bool:
    """Whether a step leaves the host out of it: exact experts are padded by their loads, which the host has to see."""
    return not (exact and model.config.experts_per_token)


def cuda_recorder() -> Recorder:
    """Recordings of a GPU, that share the memory of what is in between."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], None]) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()  # libraries set themselves up, which cannot be recorded
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        return graph.replay

    return record


class WholeRows(CacheView):
    """A pass over the first `counts` rows of each bucket at their whole length, so that the host looks at nothing."""

    def _extent(self, bucket: Bucket, length: Tensor, tokens: int) -> tuple[int, bool]:
        return bucket.size, False


class _Shape:
    """The steps of one shape: its fixed tensors once it is recorded."""

    def __init__(self) -> None:
        self.seen = 0
        self.replay: Callable[[], None] | None = None
        self.buckets: Sequence[Bucket] = ()  # only while it works: memory of buckets must not be held
        self.ids: Tensor
        self.length: Tensor
        self.hidden: Tensor
        self.logits: Tensor


class Graphs:
    """The recordings of an engine's decoding, by where its buckets lie and how many rows they have."""

    def __init__(
        self, model: Decoder, positions: int, exact: bool, stable: Callable[[int], int], record: Recorder
    ) -> None:  # fmt: skip
        self.model, self.positions, self.exact, self.stable, self.record = model, positions, exact, stable, record
        self.shapes: OrderedDict[tuple[int, ...], _Shape] = OrderedDict()
        self.weights: list[int] = []
        self.generation = -1

    def follow(self, generation: int, moved: bool = False) -> None:
        """Forget what was recorded, where weights of a new generation lie elsewhere: those that were written to in
        place are read.

        moved: packed matrices do, which are no parameters.
        """
        if generation == self.generation:
            return
        self.generation = generation
        weights = [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]
        if moved or weights != self.weights:
            self.weights = weights
            self.shapes.clear()

    def run(self, buckets: Sequence[Bucket], ids_NT: Tensor, lengths: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Hidden states [N, T, D] and logits [N, T, V] of a step over all rows of the buckets, by a recording.

        None where there is none yet, and the step has to go without.
        """
        counts = [rows_recorded(len(bucket), bucket.rows) for bucket in buckets]
        lie = (n for bucket, count in zip(buckets, counts, strict=True) for n in (*_lies(bucket), count))
        key = (ids_NT.shape[1], *lie)
        shape = self.shapes.setdefault(key, _Shape())
        self.shapes.move_to_end(key)
        if len(self.shapes) > KEPT:
            self.shapes.popitem(last=False)
        shape.seen += 1
        if shape.seen <= AFTER:
            return None
        for bucket in buckets:
            bucket.fill(bucket.size)
        shape.buckets = buckets
        if shape.replay is None:
            rows, tokens = sum(counts), ids_NT.shape[1]
            rows = padded_rows(rows, tokens, self.stable)
            shape.ids, shape.length = ids_NT.new_zeros(rows, tokens), lengths[0].new_zeros(rows)
        # Row by row where each bucket's begin.
        begins = [sum(counts[:i]) for i in range(len(counts))]
        at = torch.cat(
            [torch.arange(b, b + len(n), device=ids_NT.device) for b, n in zip(begins, lengths, strict=True)]
        )
        shape.ids.zero_()[at] = ids_NT
        shape.length.zero_()[at] = torch.cat(list(lengths))
        if shape.replay is None:
            shape.replay = self.record(lambda: self._step(shape, counts))
        shape.replay()
        shape.buckets = ()
        return shape.hidden[at], shape.logits[at]

    def _step(self, shape: _Shape, counts: list[int]) -> None:
        rows = len(shape.ids)
        used = sum(counts)
        lengths = list(shape.length[:used].split(counts))
        view = WholeRows(shape.buckets, lengths, self.positions, self.exact, rows - used)
        shape.hidden = self.model(shape.ids, view)
        shape.logits = self.model.logits(shape.hidden.flatten(0, 1)).view(*shape.ids.shape, -1)


def _lies(bucket: Bucket) -> tuple[int, ...]:
    """Where a bucket's memory is and how it is laid out."""
    return (bucket.size, bucket.rows, *(part.data_ptr() for part in bucket.parts))
