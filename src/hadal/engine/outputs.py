"""From logits to samples: a token for each sequence, which drafts are accepted, who has come to an end and how."""

from __future__ import annotations

import torch
from torch import Tensor

from hadal.engine.config import EngineConfig
from hadal.engine.kv.pool import Pool
from hadal.engine.kv.prefix import PrefixCache
from hadal.engine.request import Sequence
from hadal.engine.sampler import Choice, Sampler
from hadal.engine.speculation import Drafts
from hadal.engine.table import Table
from hadal.engine.weights import Weights
from hadal.engine.work import Computed
from hadal.rollout import Finish, Sample
from hadal.text.tokenizer import THINK, Tokenizer


class Outputs:
    """Chooses tokens and notes them, and makes samples of the sequences that end."""

    def __init__(
        self, config: EngineConfig, tokenizer: Tokenizer, weights: Weights, kv: Pool, table: Table,
        sampler: Sampler, drafts: Drafts,
    ) -> None:  # fmt: skip
        self.config, self.tokenizer, self.weights = config, tokenizer, weights
        self.kv, self.table, self.sampler, self.drafts = kv, table, sampler, drafts
        self.ends = torch.tensor(sorted(tokenizer.eos_ids), device=table.device)
        self._top: dict[int, list[dict[int, float]]] = {}

    def process(self, computed: Computed | None) -> None:
        """Draw the next token of every sequence, and those behind drafts that are accepted."""
        if computed is None:
            return
        slots, drafts = computed.slots, computed.drafts
        N, T = len(slots), drafts.shape[1] + 1
        checked = torch.ones_like(slots)
        # All sequences get one token, and those whose draft is accepted the next.
        rows = torch.arange(N, device=slots.device)
        alive: Tensor | slice = slice(N)
        for place in range(T):
            if place:
                self.table.length[slots[alive]] += 1
                checked[alive] += 1
            tokens, gone = self._advance(slots[alive], computed.logits[alive, place])
            if place + 1 == T:
                break
            right = (drafts[alive, place] == tokens) & ~gone
            self.drafts.accepted += int(right.sum())
            alive = going = rows[alive][right]
            if len(going) == 0:
                break
        self.drafts.predict(self.kv, slots, computed.hidden, computed.begin, checked)

    def progress(self, sequence: Sequence, begin: int) -> tuple[list[int], list[float], list[dict[int, float]]]:
        """A running sequence's tokens from a place on, and their log-probabilities where these are wanted."""
        tokens = self.table.generated(sequence, begin)
        if not tokens or sequence.request.params.logprobs is None:
            return tokens, [], []
        slot = sequence.slot
        logprobs = self.table.logprobs[slot, begin : begin + len(tokens)].tolist()
        return tokens, logprobs, self._top.get(slot, [])[begin:]

    def finish(self, sequence: Sequence, how: Finish, text: str | None = None, error: str = "") -> None:
        """Make the sample of a sequence that has ended and free its slot. text: in front of its stop text."""
        table, slot, request = self.table, sequence.slot, sequence.request
        if slot < 0:
            sequence.sample = Sample([], [], "", how, error=error, prompt_ids=request.prompt)
            return
        made = int(table.made[slot])
        tokens = table.generated(sequence)
        logprobs = table.logprobs[slot, :made].tolist() if request.params.logprobs is not None else []
        if text is None:
            ended = how == "stop" and bool(tokens) and tokens[-1] in self.tokenizer.eos_ids
            text = self.tokenizer.decode(tokens[:-1] if ended else tokens, special=True)
        forced = table.forced[slot, :made].nonzero()[:, 0].tolist()
        top = self._top.pop(slot, [])
        opening = THINK if request.in_thought else ""
        sequence.sample = Sample(
            tokens, logprobs, text, how, top, forced, error, sequence.generation, request.prompt, opening
        )
        table.drop(sequence)

    # ---------------------------------------------------------------------------------- one token more

    def _advance(self, slots: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a token for each slot, note it, and finish what has come to its end; tokens and who has ended."""
        choice = self.sampler.choose(self.table, slots, logits_NV)
        return choice.tokens, self._note(slots, choice)

    def _note(self, slots: Tensor, choice: Choice) -> Tensor:
        table = self.table
        places = table.record(slots, choice.tokens, choice.forced)
        table.logprobs[slots, places] = choice.logprobs
        self.sampler.account(table, slots, choice.tokens)
        for row, likeliest in choice.top.items():
            self._top.setdefault(int(slots[row]), []).append(likeliest)
        ended = torch.isin(choice.tokens, self.ends) & table.ends[slots]
        full = table.made[slots] >= table.limit[slots]
        gone = ended | full | choice.broken | choice.empty
        on_host = table.on_host[slots]
        stopped = self._stopped(slots, on_host & ~gone) if bool(on_host.any()) else {}
        if stopped:
            gone[list(stopped)] = True
        rows = gone.nonzero()[:, 0].tolist()
        if not rows:
            return gone
        leaving = torch.zeros(len(table.sequences), dtype=torch.bool, device=table.device)
        leaving[slots[gone]] = True
        if self.config.keep_replies:
            self._keep_replies(leaving)
        self.kv.drop(leaving, table.length)
        known = (slots, ended, choice.broken, choice.empty)
        facts = zip(rows, *(fact[rows].tolist() for fact in known), strict=True)
        for row, slot, ended_, broken, empty in facts:
            sequence = table.sequences[slot]
            assert sequence is not None
            if broken:
                self.finish(sequence, "error", error="The model's output is not finite: is its checkpoint damaged?")
            elif empty:
                self.finish(sequence, "error", error="The request's mask or bias leaves no token here: loosen it.")
            else:
                self.finish(sequence, "stop" if ended_ or row in stopped else "length", stopped.get(row))
        return gone

    def _stopped(self, slots: Tensor, watched: Tensor) -> dict[int, str | None]:
        """Rows that one of their own stops has ended, with the text in front of it (None: all of it)."""
        out: dict[int, str | None] = {}
        for row in watched.nonzero()[:, 0].tolist():
            sequence = self.table.sequences[int(slots[row])]
            assert sequence is not None
            params = sequence.request.params
            if int(self.table.last_tokens(slots[row : row + 1])) in params.stop_token_ids:
                out[row] = None
            elif params.stop:
                tokens = self.table.generated(sequence)
                reach = max(len(text.encode()) for text in params.stop) + 8  # a token has at least one byte
                tail = self.tokenizer.decode(tokens[-reach:], special=True)
                if any(text in tail for text in params.stop):
                    whole = self.tokenizer.decode(tokens, special=True)
                    ends = [whole.find(text) for text in params.stop if text in whole]
                    if ends:
                        out[row] = whole[: min(ends)]
        return out

    def _keep_replies(self, leaving: Tensor) -> None:
        """Put the blocks of sequences that end into the prefix cache, for the turn that follows."""
        for bucket in self.kv.busy():
            for row in leaving[bucket.slots].nonzero()[:, 0].tolist():
                sequence = self.table.sequences[int(bucket.slots[row])]
                assert sequence is not None
                if sequence.generation != self.weights.generation:
                    continue
                tokens = sequence.request.prompt + self.table.generated(sequence)
                keys = PrefixCache.keys(tokens[: int(self.table.length[sequence.slot])], sequence.request.salt)
                self.kv.prefix.write(keys, bucket, row)
        self.kv.reclaim(0)
