"""Prompts in, samples out: the engine as scripts use it, and as the `Rollout` that RL and evaluation ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hadal.checkpoints.adapters import is_adapter
from hadal.checkpoints.tensors import stored_dtype, stored_in_float8
from hadal.engine.config import EngineConfig
from hadal.engine.core import Engine
from hadal.engine.promise import REMEDY
from hadal.engine.queries import answer, new_seed
from hadal.engine.request import Request, RequestOutput
from hadal.errors import UserError
from hadal.library.find import find_model
from hadal.library.open import open_model
from hadal.machine.device import pick
from hadal.models.decoder import Decoder
from hadal.models.packed import choose, pack
from hadal.ops.float8 import multiplies
from hadal.rollout import Query, Sample, SamplingParams
from hadal.text.tokenizer import Tokenizer

WORTH_PACKING = 20_000_000
"""Parameters from which packing is worth its second at the start."""
Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or {"prompt": text} or {"prompt_token_ids": ids}."""


class LLM:
    """A model, its tokenizer, and the engine that samples from them: a `hadal.rollout.Rollout`.

    The engine runs the trainer's own modules, so it samples from new weights as soon as they are there.
    """

    gives_ids = gives_logprobs = takes_weights = True

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, config: EngineConfig | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(model, tokenizer, config)
        self.defaults = SamplingParams.of(defaults or {})
        """What `generate` uses where it is given no params: the checkpoint's own settings."""

    @classmethod
    def load(
        cls, folder: Path | str, dtype: torch.dtype = torch.float32, config: EngineConfig | None = None,
        form: str | None = None, say: Callable[[str], None] = lambda line: None, rows: Sequence[int] = (1, 64),
    ) -> LLM:  # fmt: skip
        """The model of a run folder, checkpoint folder or Hugging Face id, or of adapters, merged into their base.

        form: how its matrices are packed for this CPU (`hadal.models.packed`): float32, bfloat16, float16, int8, int4,
        or auto for the fastest at full quality, which a large model is measured for and a small one left plain. On a
        GPU a large model is left plain, in the stored dtype or the one that is named; auto keeps DeepSeek's FP8 where
        the GPU multiplies it. None leaves them plain in `dtype` on the CPU. say: is told the choice, and the memory
        that the cache may take where that is much, or holds less than the model reads. rows: tokens of a step that auto
        shall be fast with, one for a chat, many for rollouts.
        """
        llm = cls._load(find_model(folder), dtype, config, form, say, rows)
        packed, engine = llm.model.packed_head is not None, llm.engine
        if form is not None and (packed or engine.longest < engine.context):
            say(engine.budget())
        if engine.config.exact and (reason := engine.inexact()):
            say(f"What a request gets may depend on what runs beside it: {reason}. What may help: {REMEDY}.")
        return llm

    @classmethod
    def _load(
        cls, folder: Path, dtype: torch.dtype, config: EngineConfig | None, form: str | None,
        say: Callable[[str], None], rows: Sequence[int],
    ) -> LLM:  # fmt: skip
        tokenizer, defaults = Tokenizer.load(folder), generation_defaults(folder)
        if form is None:
            return cls(open_model(folder, dtype).eval(), tokenizer, config, defaults)
        stored = torch.float32 if is_adapter(folder) else stored_dtype(folder)
        float8 = form == "auto" and stays_float8(folder)
        model = open_model(folder, stored, float8).eval()
        size = sum(p.numel() for p in model.parameters())
        if float8:
            say("Weights in FP8 as they are stored, which this GPU multiplies.")
            return cls(model.to("cuda"), tokenizer, config, defaults)
        if form in ("auto", "float32", "bfloat16", "float16") and pick("auto", size) == "cuda":
            own = stored if form == "auto" else getattr(torch, form)
            return cls(model.to("cuda", own), tokenizer, config, defaults)
        if form == "auto":
            if size < WORTH_PACKING:
                return cls(model.float(), tokenizer, config, defaults)
            choice = choose(model.config, stored, rows=rows, fast=config is not None and not config.exact)
            say(choice.reason)
            form = choice.form
        pack(model, form, fast=config is not None and not config.exact)
        return cls(model, tokenizer, config, defaults)

    @property
    def context(self) -> int:
        """Tokens that the model reads, prompt and response."""
        return self.engine.context

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Sample]]:
        """As `Rollout.sample`."""
        return answer(self.engine, queries)

    @property
    def forbidden(self) -> torch.Tensor:
        """Ids that mean nothing in a response; sampling and training both give them no probability."""
        return self.engine.forbidden

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """The samples of each prompt, in order; params for all of them or for each.

        A prompt that cannot be answered has its `error` set and the others go on; UserError where that is all of them.
        """
        asked = [prompts] if _is_one(prompts) else list(prompts)
        each = self._params(params, len(asked))
        engine = self.engine
        requests: list[Request | RequestOutput] = []
        faults: list[UserError] = []
        for prompt, wanted in zip(asked, each, strict=True):
            ids: list[int] = []
            try:
                ids = self._ids(prompt)  # type: ignore[arg-type]
                requests.append(engine.add(ids, wanted, new_seed(wanted)))
            except UserError as error:
                requests.append(RequestOutput(ids, [], error=str(error)))
                faults.append(error)
        if faults and len(faults) == len(asked):
            raise faults[0]
        try:
            while engine.has_work():
                engine.step()
        except BaseException:  # Ctrl-C among them: the engine stays usable
            for request in requests:
                if isinstance(request, Request):
                    engine.abort(request)
            raise
        finally:
            engine.release()
        return [r.output() if isinstance(r, Request) else r for r in requests]

    def chat(
        self, messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | None = None,
    ) -> list[RequestOutput]:  # fmt: skip
        """`generate` on one conversation or several, in the tokenizer's chat form."""
        params = self.defaults if params is None else params
        several = messages if messages and not isinstance(messages[0], Mapping) else [messages]
        prompts = [self.tokenizer.chat(list(one), params.thinking) for one in several]  # type: ignore[arg-type]
        return self.generate(prompts, params)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[int, None, Sample]:
        """The tokens of one sample as they are drawn, without the end token; returns the sample.

        Closing the iterator ends the request.
        """
        params = self.defaults if params is None else params
        if params.n != 1:
            raise UserError(f"n is {params.n}.", "A stream has one sample.")
        request = self.engine.add(self._ids(prompt), params, new_seed(params))
        (sequence,) = request.sequences
        given = 0
        try:
            while sequence.sample is None:
                self.engine.step()
                tokens = self.engine.table.generated(sequence, given) if sequence.sample is None else []
                given += len(tokens)
                yield from tokens
            if sequence.sample.error:
                raise UserError(sequence.sample.error)
            for token in sequence.sample.token_ids[given:]:
                if token not in self.tokenizer.eos_ids or params.ignore_eos:
                    yield token
            return sequence.sample
        finally:
            if sequence.sample is None:
                self.engine.abort(request)
            self.engine.release()

    def _params(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [self.defaults if params is None else params] * count
        if len(params) != count:
            raise UserError(f"There are {count} prompts and {len(params)} params.", "Give one for all or one for each.")
        return list(params)

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if isinstance(prompt, Mapping):
            if set(prompt) == {"prompt"}:
                return self.tokenizer.encode(prompt["prompt"])
            if set(prompt) == {"prompt_token_ids"}:
                return list(prompt["prompt_token_ids"])
            raise UserError(f"A prompt has the keys {sorted(prompt)}.", "Give prompt or prompt_token_ids.")
        return list(prompt)


def generation_defaults(folder: Path) -> dict[str, Any]:
    """The sampling settings of a checkpoint's generation_config.json that the engine has, by its names."""
    path = Path(folder) / "generation_config.json"
    if not path.is_file():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    found = {name: data[name] for name in names if data.get(name) is not None}
    if data.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name == "repetition_penalty"} | {"temperature": 0.0}
    return found


def stays_float8(folder: Path) -> bool:
    """Whether a checkpoint's FP8 is not multiplied out here: the model goes to a GPU that multiplies it as it is."""
    weights = 0 if is_adapter(folder) else stored_in_float8(folder)
    return pick("auto", weights) == "cuda" and multiplies(torch.device("cuda"))


def _is_one(prompts: object) -> bool:
    """Whether this is one prompt and not a list of them."""
    if isinstance(prompts, str | Mapping):
        return True
    return isinstance(prompts, Sequence) and bool(prompts) and all(isinstance(i, int) for i in prompts)
