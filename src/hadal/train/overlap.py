"""Sampling beside training: while a batch is trained on, the next one is drawn, in a thread of its own.

The batch of update k is always drawn with the weights from before update k - 1, whichever thread is the faster: it is
one update old, never more, and a run has the same bits every time. The algorithms' ratio to the log-probabilities that
were sampled with accounts for the lag (as in asynchronous RL: Noukhovitch et al. 2024, arXiv 2410.18252).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from hadal.engine import LLM
from hadal.models.decoder import Decoder
from hadal.train.rl import Batch

Draw = Callable[[LLM, int], Batch]
"""A batch for an update of this number, the first being 0."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with so many threads for a while, in this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def still_copy(policy: Decoder) -> Decoder:
    """A copy that stays as it is while the policy is trained; it shares with it what is frozen."""
    frozen = {id(p): p for p in policy.parameters() if not p.requires_grad}
    return copy.deepcopy(policy, frozen).eval().requires_grad_(False)


def follow(still: Decoder, policy: Decoder) -> None:
    """Give a `still_copy` the weights that the policy has now."""
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    state = {name: tensor for name, tensor in policy.state_dict().items() if name not in frozen}
    still.load_state_dict(state, strict=False)


class Ahead:
    """The batches of a stage, each drawn while the one before is trained on.

    llm: over a copy of the policy, which nobody else uses; it holds the weights that the batch at hand was drawn with.
    threads: of the machine, shared by the two; a single one is not divided, each then has one.
    """

    def __init__(self, llm: LLM, draw: Draw, threads: int) -> None:
        self.llm, self.draw = llm, draw
        self.sampling = max(1, threads // 2)
        self.training = max(1, threads - self.sampling)
        self._next: Batch | None = None
        self._error: BaseException | None = None

    def take(self, step: int) -> Batch:
        """The batch of update `step`: the one that was drawn beside the last update; at the beginning, and where a
        stage is carried on, drawn now."""
        batch, self._next = self._next, None
        if batch is None:
            with torch_threads(self.sampling):  # the bits of a sum may depend on how many add
                batch = self.draw(self.llm, step)
        return replace(batch, stale=min(step, 1))

    @contextmanager
    def beside(self, policy: Decoder, step: int) -> Iterator[None]:
        """Draw the batch of update `step` with the policy's weights of now, while the body trains the policy."""
        follow(self.llm.model, policy)
        thread = threading.Thread(target=self._run, args=(step,), name="hadal-rollouts", daemon=True)
        thread.start()
        with torch_threads(self.training):
            yield
        thread.join()  # not where the body has failed: a stop does not wait for samples that nobody will use
        if self._error is not None:
            raise self._error

    def _run(self, step: int) -> None:
        try:
            with torch_threads(self.sampling):
                self._next = self.draw(self.llm, step)
        except BaseException as error:  # for the thread that trains
            self._error = error
