"""A model of this machine: its engine, and its replies taken apart into thought and answer as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hadal.cost.flops import parameters
from hadal.cost.prices import LAPTOP
from hadal.engine import LLM, AsyncEngine, Closed, EngineConfig, SamplingParams, TooLong
from hadal.engine.asynchronous import Piece
from hadal.engine.llm import generation_defaults
from hadal.engine.request import Request
from hadal.errors import UserError
from hadal.library.record import is_grown, record_of
from hadal.rollout import Sample
from hadal.server.faults import refusal_of
from hadal.server.models import EFFORT_BUDGETS, EFFORTS, Ask, Card, Control, Delta, End, Event, Model, Phase, Usage
from hadal.server.schemas import IMPOSSIBLE
from hadal.tasks import Task
from hadal.terminal.model import R1_SAMPLING, tasks_of
from hadal.terminal.view import count
from hadal.text.length import too_many
from hadal.text.parse import Delta as Part
from hadal.text.parse import StreamDecoder, TokenParser
from hadal.text.tokenizer import END_THINK, THINK, Tokenizer

EVERY = 0.008  # seconds between pieces, all streams together: alone one has every token, 64 have two pieces a second
LONG = 100_000  # characters of a prompt, which is then read after other long ones and keeps no short one waiting
BASE = "stages/pretrain"  # in a run's folder, the model before RL


class LocalModel(Model):
    """An engine with a name."""

    def __init__(self, card: Card, llm: LLM, tasks: Sequence[Task] = (), waiting: int = 256) -> None:
        self.card, self.llm, self.tasks = card, llm, list(tasks)
        self.tokenizer: Tokenizer = llm.tokenizer
        self.engine = AsyncEngine(llm.engine, waiting, EVERY)
        self._long = ThreadPoolExecutor(1, "hadal-long-prompts")
        self._closing = False

    def close(self) -> None:
        self._closing = True
        self.engine.close()

    @property
    def waiting(self) -> int:
        return len(self.llm.engine.waiting)

    @property
    def drafts(self) -> tuple[int, int]:
        """Tokens guessed ahead, and those that came out so."""
        drafts = self.llm.engine.drafts
        return drafts.drafted, drafts.accepted

    async def ready(self, ask: Ask) -> Ask:
        """Reads the prompt, in another thread: a long one takes seconds, for which every stream would stand still."""
        if ask.prepared is not None:
            return ask
        pool = self._long if _size(ask) > LONG else None
        return await asyncio.get_running_loop().run_in_executor(pool, self._ready, ask)

    def _ready(self, ask: Ask) -> Ask:
        if self._closing:  # others had to be read before it
            raise refusal_of(Closed())
        try:
            prompt = [*self._prompt(ask), *ask.resume]
            return replace(ask, prepared=self.llm.engine.prepare(prompt, self._params(ask, len(prompt))))
        except UserError as error:
            raise refusal_of(error, ask.prompt is None) from None

    def _params(self, ask: Ask, length: int) -> SamplingParams:
        """How a prompt of so many tokens is answered."""
        wanted: dict[str, Any] = {**self.card.sampling, **ask.sampling, "thinking": ask.thinking}
        longest = self.llm.engine.longest
        most, asked = self.card.max_tokens or longest, wanted.get("max_tokens")
        if asked is not None and asked > most:
            cause = f"max_tokens is {asked:,}, and {self.card.id} gives {most:,} at most."
            raise TooLong(cause, "Ask for less.", "max_tokens")
        if asked is None and most < longest:
            wanted["max_tokens"] = max(1, min(most, longest - length))
        if ask.effort is not None and self.card.budget and ask.thinking is not False:
            wanted.setdefault("thinking_budget", EFFORT_BUDGETS[ask.effort])
        if ask.prompt is not None or (ask.resume and ask.thinking):
            wanted["thinking"] = None
        return SamplingParams.of(wanted)

    def _prompt(self, ask: Ask) -> list[int]:
        most = self.llm.engine.context - 1  # one is to be drawn
        if isinstance(ask.prompt, str):
            return self.tokenizer.encode(ask.prompt, most)
        if ask.prompt is not None:
            if len(ask.prompt) > most:
                raise too_many(len(ask.prompt), most)
            return list(ask.prompt)
        ids = self.tokenizer.chat(ask.messages, ask.thinking, most=most)
        if ask.thinking and not self.tokenizer.in_thought(ids):
            ids.append(self.tokenizer.think_id)
        return ids

    async def answer(self, ask: Ask, control: Control | None = None) -> AsyncGenerator[Event]:
        try:
            prepared = (await self.ready(ask)).prepared
            assert prepared is not None
            params, prompt = prepared.params, prepared.prompt[: len(prepared.prompt) - len(ask.resume)]
            opened = ask.prompt is None and self.tokenizer.in_thought(prompt)
            readers = [_Reader(self.tokenizer, i, opened, params, ask.prompt is not None) for i in range(params.n)]
            for reader in readers:
                reader.skip(ask.resume)
            begun: list[Request] = []
            pieces = self.engine.stream(prepared, ask.user, begun.append)
            hurry = asyncio.create_task(self._hurry(control, begun)) if control is not None else None
            try:
                async for piece in pieces:
                    if piece.phase:
                        yield Phase("reading" if piece.phase == "prefill" else "queued")
                    for delta in readers[piece.index].read(piece):
                        yield delta
                    if piece.output is not None:
                        for reader, sample in zip(readers, piece.output.outputs, strict=True):
                            for event in reader.finish(sample):
                                yield event
                        reasoning = sum(reader.reasoning - reader.skipped_reasoning for reader in readers)
                        made = sum(len(reader.ids) - reader.skipped for reader in readers)
                        yield Usage(len(prompt), min(piece.output.cached_tokens, len(prompt)), made, reasoning)
            finally:
                if hurry is not None:
                    hurry.cancel()
                await pieces.aclose()
        except UserError as error:
            raise refusal_of(error, ask.prompt is None) from None

    async def _hurry(self, control: Control, begun: list[Request]) -> None:
        """Close the thoughts once that is asked for; said again, as a request that is still read does not hear it."""
        await control.wanted.wait()
        while True:
            for request in begun:
                self.engine.answer_now(request)
            await asyncio.sleep(0.1)


def _size(ask: Ask) -> int:
    """How long the text of a request is."""
    if ask.prompt is not None:
        return len(ask.prompt)
    return sum(len(message["content"]) for message in ask.messages)


class _Reader:
    """One sample's tokens as deltas. raw: no chat, so no thought; its control tokens are spelled."""

    def __init__(self, tokenizer: Tokenizer, index: int, opened: bool, params: SamplingParams, raw: bool) -> None:
        self.tokenizer, self.index, self.opened, self.params = tokenizer, index, opened, params
        self.parser = None if raw else TokenParser(tokenizer, opened)
        self.decoder = StreamDecoder(tokenizer)
        self.stops = StopText(params.stop)
        self.ids: list[int] = []
        self.reasoning = self.skipped = self.skipped_reasoning = 0
        self.thought: list[str] = [""] if opened else []
        self.text: list[str] = []
        self._marks = {tokenizer.controls.get(THINK), tokenizer.controls.get(END_THINK)}
        self._spelling = {index: text for text, index in tokenizer.controls.items()}

    @property
    def thinking(self) -> bool:
        return self.parser is not None and self.parser.in_thought

    def skip(self, ids: Sequence[int]) -> None:
        """Take in what an earlier request has given out."""
        for part in self._take(ids) if ids else []:
            self._out(part)
        self.skipped, self.skipped_reasoning = len(ids), self.reasoning

    def read(self, piece: Piece) -> list[Delta]:
        if not piece.logprobs:
            return self._deltas(piece.token_ids)
        out: list[Delta] = []  # token by token, so that each log-probability stands with its section
        for i, (token, logprob) in enumerate(zip(piece.token_ids, piece.logprobs, strict=True)):
            thinking = self.thinking
            ended = token in self.tokenizer.eos_ids and piece.output is not None and i == len(piece.token_ids) - 1
            said = [] if ended else [self._logprob(token, logprob, piece.top_logprobs[i : i + 1])]
            deltas = self._deltas([token])
            kind: Literal["thought", "answer"] = "thought" if thinking or self.thinking else "answer"
            out += deltas[:-1]
            out.append(replace(deltas[-1], kind=deltas[-1].kind if deltas[-1].text else kind, logprobs=said))
        return out

    def finish(self, sample: Sample) -> list[Event]:
        """What was held back, and the end."""
        if sample.error:
            raise UserError(sample.error)
        out: list[Event] = []
        parts = [Part("answer", self.decoder.text(final=True))] if self.parser is None else self.parser.finish(
            sample.finish_reason == "stop")  # fmt: skip
        for part in parts:
            out += self._out(part)
        if not self.stops.stopped and (rest := self.stops.rest()):
            out.append(self._said(*rest))
        thought = "".join(self.thought) if self.thought else None
        opening = self.tokenizer.think_ids if self.opened else []
        response = self.tokenizer.decode(
            [*opening, *(i for i in self.ids if i not in self.tokenizer.eos_ids)], special=True
        )
        end = End(self.index, sample.finish_reason, thought, "".join(self.text), response, bool(sample.forced))
        return [*out, end]

    def _deltas(self, ids: Sequence[int]) -> list[Delta]:
        if not ids:
            return []
        before = self.reasoning
        out = [delta for part in self._take(ids) for delta in self._out(part)]
        if not out:
            out = [Delta(self.index, "thought" if self.thinking or self.reasoning > before else "answer", "")]
        return [*out[:-1], replace(out[-1], tokens=len(ids), ids=ids)]

    def _take(self, ids: Sequence[int]) -> list[Part]:
        self.ids += ids
        if self.parser is None:
            return [Part("answer", text)] if (text := self._decode(ids)) else []
        parts: list[Part] = []
        run: list[int] = []
        for at, token in enumerate(ids, 1):
            run.append(token)
            if token in self._marks or at == len(ids):  # the mark that ends a thought is counted with it
                self.reasoning += len(run) if self.thinking else 0
                parts += self.parser.feed_ids(run)
                run = []
        return parts

    def _decode(self, ids: Sequence[int]) -> str:
        text = ""
        for token in ids:
            if token in self._spelling:
                text += self.decoder.text(final=True)
                text += "" if token in self.tokenizer.eos_ids and not self.params.ignore_eos else self._spelling[token]
            else:
                self.decoder.push(token)
        return text + self.decoder.text()

    def _out(self, part: Part) -> list[Delta]:
        if part.kind == "call":
            call = part.call
            return [] if call is None else self._out(Part("answer", f"{call.name}({call.arguments})"))
        return [self._said(kind, text) for kind, text in self.stops.feed(part.kind, part.text)]

    def _said(self, kind: str, text: str) -> Delta:
        (self.thought if kind == "thought" else self.text).append(text)
        return Delta(self.index, "thought" if kind == "thought" else "answer", text)

    def _logprob(self, token: int, logprob: float, top: Sequence[Mapping[int, float]]) -> dict[str, Any]:
        spelled = self._spell(token, logprob)
        likeliest = [self._spell(i, p) for i, p in top[0].items()] if top else []
        return {**spelled, "top_logprobs": likeliest}

    def _spell(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token)
        return {"token": data.decode(errors="replace"), "logprob": max(logprob, IMPOSSIBLE), "bytes": list(data)}


class StopText:
    """Holds back what may be the beginning of a stop text, which the reader must not see."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.stopped = list(stops), False
        self._kind, self._held = "answer", ""

    def feed(self, kind: str, text: str) -> list[tuple[str, str]]:
        """The (kind, text) that may go out."""
        if not self.stops:
            return [(kind, text)]
        if self.stopped:
            return []
        rest = self.rest() if kind != self._kind else None
        out = [] if rest is None else [rest]
        self._kind = kind
        text = self._held + text
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            text = text[: min(found)]
        else:
            held = max(n for stop in self.stops for n in range(len(stop)) if n == 0 or text.endswith(stop[:n]))
            self._held = text[len(text) - held :]
            text = text[: len(text) - held]
        return [*out, (kind, text)] if text else out

    def rest(self) -> tuple[str, str] | None:
        """What is held back, at the end of a section."""
        held, self._held = self._held, ""
        return (self._kind, held) if held else None


def load(
    given: str, *, dtype: str = "auto", config: EngineConfig, waiting: int, most_tokens: int | None,
    say: Callable[[str], None],
) -> list[LocalModel]:  # fmt: skip
    """The models of a run folder (itself and its base), checkpoint, adapters or Hugging Face id; NAME=PATH names it."""
    from hadal.library.find import find_model

    name, equals, path = given.partition("=")
    folder = find_model(path if equals else given)
    record = record_of(folder)
    name = name if equals else str(record.get("name") or Path(given).name)
    tasks = tasks_of(record, say)
    grown = is_grown(record)
    models = [_open(name, folder, grown, tasks, dtype, config, waiting, most_tokens, say)]
    if grown and (folder / BASE / "model.safetensors").is_file():
        models.append(_open(f"{name}:base", folder / BASE, grown, tasks, dtype, config, waiting, most_tokens, say))
    return models


def _open(
    name: str, folder: Path, grown: bool, tasks: Sequence[Task], dtype: str, config: EngineConfig, waiting: int,
    most_tokens: int | None, say: Callable[[str], None],
) -> LocalModel:  # fmt: skip
    # A team of OpenMP's threads lives as long as the thread that called it, and where there are more of them than CPUs
    # all wait asleep (`hadal.machine.spinning`): the engine's thread is to have the only one.
    with ThreadPoolExecutor(1) as loader:
        llm = loader.submit(LLM.load, folder, form=dtype, config=config, say=say).result()
    tokenizer, context = llm.tokenizer, llm.engine.longest
    thinks = THINK in tokenizer.controls and END_THINK in tokenizer.controls
    size = count(parameters(llm.model.config).total)
    about = f"{size} parameters" + (", grown from nothing" if grown else "")
    about += ", before RL" if name.endswith(":base") else ""
    card = Card(
        id=name, name=name, source="local", group="Here", about=about, created=int(time.time()), context=context,
        max_tokens=min(context, most_tokens or context), thinking="optional" if thinks else "never",
        efforts=EFFORTS if thinks and context > min(b for b in EFFORT_BUDGETS.values() if b) else (),
        budget=thinks, answer_now=thinks, can_continue=True, single_turn=grown,
        sampling=R1_SAMPLING | generation_defaults(folder), tasks=tuple(task.name for task in tasks),
        examples=tuple(task.generate(0, "held_out", task.default_difficulty).prompt for task in tasks[:5]),
        price=LAPTOP,
    )  # fmt: skip
    return LocalModel(card, llm, tasks, waiting)
