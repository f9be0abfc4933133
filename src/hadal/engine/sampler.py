"""One token for each of many sequences, each by its own settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hadal.engine.request import Sequence
from hadal.engine.sampling import inverse_draw, keep_min_p, keep_top_k, keep_top_p, penalise
from hadal.engine.table import MODES, Table
from hadal.models.decoder import Decoder
from hadal.rng import noise
from hadal.text.tokenizer import END_THINK, THINK, Tokenizer

AT_ONCE = 1 << 20
"""Logits that a CPU draws from together. What is made of more leaves the caches, and the allocator gives such memory
back to the system, which then makes every page of it anew."""
LARGEST = 1e30
"""Logits beyond it count as no numbers: penalties and a temperature must not take them out of float32."""


@dataclass
class Choice:
    """What was chosen for N sequences, whose tokens mean nothing where `broken` or `empty`."""

    tokens: Tensor
    logprobs: Tensor
    forced: Tensor
    broken: Tensor
    """Where the model gave no numbers."""
    empty: Tensor
    """Where it did, and a request's own mask or bias leaves no token."""
    top: dict[int, dict[int, float]]
    """By row, for requests that want the likeliest tokens: their log-probabilities."""


def forbidden_ids(tokenizer: Tokenizer, model: Decoder) -> Tensor:
    """Ids that mean nothing in a response; sampling and training both give them no probability."""
    never = [*tokenizer.forbidden_ids, *range(tokenizer.size, model.config.vocab_size)]
    return torch.tensor(never, dtype=torch.long, device=model.device)


class Sampler:
    """Chooses tokens by the table's settings and keeps its account of open thoughts."""

    def __init__(self, tokenizer: Tokenizer, forbidden: Tensor) -> None:
        self.forbidden = forbidden
        # -1 is no token: a tokenizer without thoughts never opens one.
        self.think = tokenizer.controls.get(THINK, -1)
        self.end_think = tokenizer.controls.get(END_THINK, -1)

    def choose(self, table: Table, slots: Tensor, logits_NV: Tensor) -> Choice:
        """The next token of each slot's sequence; logits are the model's own and may be written to."""
        if len(self.forbidden):
            logits_NV.index_fill_(1, self.forbidden, -torch.inf)
        no_think = table.no_think[slots]
        if self.think >= 0 and bool(no_think.any()):
            logits_NV[no_think, self.think] = -torch.inf
        broken = ~(logits_NV.amax(-1).abs() < LARGEST)  # nor is NaN
        if bool(broken.any()):
            logits_NV[broken] = 0.0
        processed = logits_NV
        empty = torch.zeros_like(broken)
        top: dict[int, dict[int, float]] = {}
        on_host = table.on_host[slots]
        if bool(on_host.any()):
            processed, top = self._processed(table, slots, logits_NV, on_host.nonzero()[:, 0].tolist())
            if processed is not logits_NV:
                empty = processed.amax(-1) == -torch.inf
                processed[empty] = 0.0
        rows = max(AT_ONCE // logits_NV.shape[1], 1) if logits_NV.device.type == "cpu" else len(slots)
        parts = zip(slots.split(rows), logits_NV.split(rows), processed.split(rows), strict=True)
        tokens, forced, logprobs = map(torch.cat, zip(*(self._chosen(table, *part) for part in parts), strict=True))
        return Choice(tokens, logprobs, forced, broken, empty & ~broken, top)

    def _chosen(self, table: Table, slots: Tensor, logits_NV: Tensor, processed_NV: Tensor) -> tuple[Tensor, ...]:
        """Tokens [N], whether a thought's budget forced them, and their log-probabilities."""
        tokens, weights = self._draw(table, slots, processed_NV)
        thought = table.thought[slots]
        forced = (thought >= table.budget[slots]) & (tokens != self.end_think) & (thought >= 0)
        tokens = torch.where(forced, self.end_think, tokens)
        return tokens, forced, self._logprobs(table.mode[slots], tokens, logits_NV, processed_NV, weights)

    def account(self, table: Table, slots: Tensor, tokens: Tensor) -> None:
        """Count thoughts' tokens: from the one after `<think>` up to `</think>`."""
        thought = table.thought[slots]
        thought = torch.where(thought >= 0, thought + 1, thought)
        thought = torch.where((tokens == self.think) & (thought < 0), 0, thought)
        table.thought[slots] = torch.where(tokens == self.end_think, -1, thought)

    @staticmethod
    def _draw(table: Table, slots: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [N], and the weights [N, V] they were drawn by (None where all is greedy)."""
        temperature = table.temperature[slots]
        greedy = temperature == 0
        if bool(greedy.all()):
            return logits_NV.argmax(-1), None
        if bool((temperature != 1).any()):
            scaled = logits_NV / torch.where(greedy, 1.0, temperature)[:, None]
        else:
            scaled = logits_NV
        weights = torch.softmax(scaled, -1)
        for name, keep in (("top_k", keep_top_k), ("top_p", keep_top_p), ("min_p", keep_min_p)):
            setting = getattr(table, name)[slots]
            filters = (setting < 1 if name == "top_p" else setting > 0) & ~greedy
            if bool(filters.all()):
                weights = keep(weights, setting)
            elif bool(filters.any()):
                weights[filters] = keep(weights[filters], setting[filters])
        tokens = inverse_draw(weights, noise(table.key[slots], table.made[slots]))
        if bool(greedy.any()):
            tokens = torch.where(greedy, logits_NV.argmax(-1), tokens)
        return tokens, weights

    @staticmethod
    def _logprobs(
        mode_N: Tensor, tokens_N: Tensor, logits_NV: Tensor, processed_NV: Tensor, weights_NV: Tensor | None
    ) -> Tensor:
        """Log-probabilities [N] of the tokens in the distribution that each row asked for; 0 where it asked for none.

        A greedy row's sampled distribution is taken at temperature 1, after penalties and bias.
        """
        out = torch.zeros(len(tokens_N), device=tokens_N.device)
        for mode, logits in ((MODES["model"], logits_NV), (MODES["sampled"], processed_NV)):
            rows = (mode_N == mode).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            at = tokens_N[rows, None]
            if mode == MODES["sampled"] and weights_NV is not None:
                weights = weights_NV[rows] if len(rows) < len(mode_N) else weights_NV
                out[rows] = (weights.gather(1, at)[:, 0] / weights.sum(-1)).log()
            else:
                chosen = logits[rows] if len(rows) < len(mode_N) else logits
                # Two and a half times as fast as logsumexp, which is four kernels on a CPU.
                out[rows] = torch.log_softmax(chosen, -1).gather(1, at)[:, 0].float()
        return out

    def _processed(
        self, table: Table, slots: Tensor, logits_NV: Tensor, rows: list[int]
    ) -> tuple[Tensor, dict[int, dict[int, float]]]:
        """Logits after penalties, bias and masks, and the likeliest tokens where they are wanted."""
        processed = logits_NV
        top: dict[int, dict[int, float]] = {}
        for row in rows:
            sequence = table.sequences[int(slots[row])]
            assert sequence is not None
            if sequence.request.params.logprobs:
                value, index = torch.log_softmax(logits_NV[row], -1).topk(sequence.request.params.logprobs)
                top[row] = dict(zip(index.tolist(), value.tolist(), strict=True))
            if sequence.request.params.processes_logits:
                processed = logits_NV.clone() if processed is logits_NV else processed
                processed[row] = self._process(sequence, table.generated(sequence), logits_NV[row])
        return processed, top

    @staticmethod
    def _process(sequence: Sequence, generated: list[int], logits_V: Tensor) -> Tensor:
        request, params = sequence.request, sequence.request.params
        ids = torch.tensor(generated, dtype=torch.long, device=logits_V.device)
        counts = ids.bincount(minlength=len(logits_V))
        in_prompt = torch.zeros(len(logits_V), dtype=torch.bool, device=logits_V.device)
        in_prompt[torch.tensor(request.prompt, device=ids.device)] = True
        settings = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        one = [torch.tensor([value], device=ids.device) for value in settings]
        logits = penalise(logits_V[None], counts[None], in_prompt[None], *one)[0]
        for index, value in (params.logit_bias or {}).items():
            logits[index] += value
        allowed = params.allowed(generated) if params.allowed is not None else None
        if allowed is not None:
            logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        return logits
