"""Any OpenAI-compatible server as a source of models: Ollama, llama-server, vLLM, SGLang, DeepSeek itself.

Thoughts are found in whichever field or tag carries them. What the server refuses is told in its own words.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from hadal import http
from hadal.cost.prices import ApiPrice
from hadal.server.faults import Refusal
from hadal.server.models import EFFORTS, Ask, Card, Control, Delta, End, Event, Model, Phase, Usage
from hadal.server.schemas import IMPOSSIBLE, TokenLogprob
from hadal.text.parse import THOUGHT_TAGS, ReplyParser, Section
from hadal.text.parse import Delta as Part

CONNECT = 5.0  # seconds
REFRESH = 30.0  # seconds after which the list of models is asked for again
FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Where servers put thoughts: DeepSeek, llama.cpp and SGLang; vLLM, Ollama and OpenRouter; some gateways."""
LEAKS = re.compile(r"(<｜end▁of▁sentence｜>|<\|im_end\|>|<\|eot_id\|>|</s>)\s*\Z")
"""End tokens that some servers let through."""
LONGEST_LINE = 1 << 22
LONGEST_REFUSAL = 1 << 16


class UpstreamModel(Model):
    """One model of an upstream."""

    def __init__(self, upstream: Upstream, card: Card, name: str, owner: str) -> None:
        self.upstream, self.card, self.name, self.owner = upstream, card, name, owner

    async def ready(self, ask: Ask) -> Ask:
        if ask.resume:
            raise Refusal(409, f"{self.card.id} cannot continue an answer.")
        return ask

    def _body(self, ask: Ask, wanted: Sequence[int]) -> dict[str, Any]:
        """What the server is sent. wanted: the samples that it is asked for."""
        sampling = dict(ask.sampling) | {"n": len(wanted)}
        logprobs = sampling.pop("logprobs", None)
        if len(wanted) == 1:
            del sampling["n"]
        if wanted[0] and "seed" in sampling:  # the same again would be the same sample
            sampling["seed"] = (sampling["seed"] + wanted[0]) % (1 << 63)
        body: dict[str, Any] = {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **sampling,
        }
        if ask.prompt is not None:
            return body | {"prompt": ask.prompt} | ({} if logprobs is None else {"logprobs": logprobs})
        if logprobs is not None:
            body |= {"logprobs": True} | ({"top_logprobs": logprobs} if logprobs else {})
        body["messages"] = list(ask.messages)
        if ask.thinking is not None:
            body |= _switch(ask.thinking, self.owner)
        if ask.effort is not None and ask.thinking is not False:
            body["reasoning_effort"] = ask.effort
        return body

    async def answer(self, ask: Ask, control: Control | None = None) -> AsyncGenerator[Event]:
        ask = await self.ready(ask)
        path = "chat/completions" if ask.prompt is None else "completions"
        may_move = ask.may_move and ask.thinking is not False
        readers = [_Reader(index, ask.prompt is not None, may_move) for index in range(ask.n)]
        counts: list[Mapping[str, Any]] = []
        wanted = readers
        while wanted:  # again for the rest, as many servers give one sample whatever n says
            counts.append({})
            async for chunk in self.upstream.stream(path, self._body(ask, [reader.index for reader in wanted])):
                if not chunk:
                    yield Phase("reading")
                if isinstance(usage := chunk.get("usage"), dict):
                    counts[-1] = usage
                for choice in chunk.get("choices") or []:
                    index = choice.get("index", 0) if isinstance(choice, dict) else -1
                    if not isinstance(index, int) or not 0 <= index < len(wanted):
                        raise self.upstream.junk("a choice that was not asked for")
                    try:
                        deltas = wanted[index].read(choice)
                    except (ValueError, TypeError, AttributeError):  # log-probabilities can be wrong in many ways
                        raise self.upstream.junk("something that is not a chunk of an answer") from None
                    for delta in deltas:
                        yield delta
            if not any(reader.finish_reason for reader in wanted):
                raise Refusal(502, f"{self.upstream.name} broke off in the middle of the answer.")
            wanted = [reader for reader in wanted if not reader.chunks and not reader.finish_reason]
        for reader in readers:
            for event in reader.finish():
                yield event
        yield _usage(counts, readers)


def _switch(thinking: bool, owner: str) -> dict[str, Any]:
    """How a server is told to think or not, by what its list of models says it is; DeepSeek's form by default."""
    if owner in ("vllm", "sglang", "llamacpp"):
        return {"chat_template_kwargs": {"thinking": thinking, "enable_thinking": thinking}}
    if owner in ("library", "ollama", "openai"):
        return {} if thinking else {"reasoning_effort": "none"}
    return {"thinking": {"type": "enabled" if thinking else "disabled"}}


def _usage(counts: Sequence[Mapping[str, Any]], readers: Sequence[_Reader]) -> Usage:
    """counts: what the server says of each request that was made of it."""
    prompt, completion = _sum(counts, "prompt_tokens"), _sum(counts, "completion_tokens")
    if prompt is None or completion is None:
        chunks, thoughts = sum(r.chunks for r in readers), sum(r.thought_chunks for r in readers)
        return Usage(0, 0, chunks, thoughts, estimated=True)
    cached = _sum(counts, "prompt_cache_hit_tokens")
    if cached is None:
        cached = _sum([one.get("prompt_tokens_details") or {} for one in counts], "cached_tokens")
    reasoning = _sum([one.get("completion_tokens_details") or {} for one in counts], "reasoning_tokens")
    if reasoning is None:  # by the share of the text
        thought = sum(len(r.thought or "") for r in readers)
        whole = thought + sum(len(r.text) for r in readers)
        reasoning = round(completion * thought / whole) if whole else 0
    return Usage(prompt, min(cached or 0, prompt), completion, reasoning)


def _sum(counts: Sequence[Any], name: str) -> int | None:
    """A count, all requests together; None where one does not give it."""
    found = [one.get(name) if isinstance(one, dict) else None for one in counts]
    numbers = [value for value in found if isinstance(value, int) and value >= 0]
    return sum(numbers) if len(numbers) == len(found) else None


class _Reader:
    """One choice: fields and tags to thought and answer. may_move: whether the opening of a thought may be missing."""

    def __init__(self, index: int, raw: bool, may_move: bool = False) -> None:
        self.index, self.raw = index, raw
        self.parser = ReplyParser(None if may_move else False, {} if raw else THOUGHT_TAGS)
        self.field = Section()  # the thought of a field of its own
        self.thoughts: list[str] = []  # what was given out
        self.answers: list[str] = []
        self.finish_reason = ""
        self.chunks = self.thought_chunks = 0
        self._gap = ""  # what stands between the thought of the field and one in tags
        self._half = ""  # a surrogate that waits for its other half
        self._held = ""  # what may be a leaked end token

    @property
    def thought(self) -> str | None:
        return "".join(self.thoughts) or None

    @property
    def text(self) -> str:
        return "".join(self.answers)

    def read(self, choice: Mapping[str, Any]) -> list[Delta]:
        piece = choice.get("delta") or choice.get("message") or {}
        piece = piece if isinstance(piece, dict) else {}
        if reason := choice.get("finish_reason"):
            self.finish_reason = str(reason)
        if self.raw:
            piece = {"content": choice.get("text")}
        out: list[Delta] = []
        for name in FIELDS:
            if isinstance(text := piece.get(name), str) and text:
                self.parser.may_move = False
                if text := self.field.add(self._whole(text)):
                    self._gap = "\n\n"
                    out.append(self._said("thought", text))
                break
        if isinstance(text := piece.get("content"), str) and text:
            out += self._content(self._whole(text))
        said = _logprobs(choice.get("logprobs"))
        if said and not out:
            out.append(Delta(self.index, "thought" if choice["logprobs"].get("reasoning_content") else "answer", ""))
        if out:
            self.chunks += 1
            self.thought_chunks += out[-1].kind == "thought"
            out[-1] = Delta(self.index, out[-1].kind, out[-1].text, len(said) or 1, logprobs=said)
        return out

    def _whole(self, text: str) -> str:
        """The text with halves of a character, cut between two chunks, put together."""
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _content(self, text: str) -> list[Delta]:
        if self.raw:
            return [self._said("answer", text)]
        text, self._held = self._held + text, ""
        cut = text.rfind("<")
        if cut >= 0 and len(text) - cut < 24:
            text, self._held = text[:cut], text[cut:]
        return self._parsed(self.parser.feed(text))

    def _parsed(self, parts: Sequence[Part]) -> list[Delta]:
        out = []
        for part in parts:
            if part.kind == "moved":
                self.thoughts, self.answers = [self.parser.parsed.thought or ""], []
                out.append(Delta(self.index, "moved", self.thoughts[0]))
            elif part.kind == "thought":
                out.append(self._said("thought", self._gap + part.text))
                self._gap = ""
            elif part.kind == "answer":
                out.append(self._said("answer", part.text))
        return out

    def _said(self, kind: Literal["thought", "answer"], text: str) -> Delta:
        (self.thoughts if kind == "thought" else self.answers).append(text)
        return Delta(self.index, kind, text)

    def finish(self) -> list[Event]:
        parts: list[Part] = []
        if not self.raw:
            parts += self.parser.feed(LEAKS.sub("", self._held))
            parts += self.parser.finish(self.finish_reason != "length")
        said = self._parsed(parts)
        response = self.text if self.thought is None else f"<think>{self.thought}</think>{self.text}"
        return [*said, End(self.index, self.finish_reason or "stop", self.thought, self.text, response)]


def _logprobs(spelled: Any) -> list[dict[str, Any]]:
    """Of a chat's tokens, or of a plain completion's, which has them in lists side by side. ValueError for junk."""
    if not isinstance(spelled, dict):
        return []
    entries = [*(spelled.get("reasoning_content") or []), *(spelled.get("content") or [])]
    if tokens := spelled.get("tokens"):
        likeliest = spelled.get("top_logprobs") or [None] * len(tokens)
        entries = [
            {"token": token, "logprob": logprob,
             "top_logprobs": [{"token": t, "logprob": p} for t, p in (top or {}).items()]}
            for token, logprob, top in zip(tokens, spelled.get("token_logprobs") or [], likeliest, strict=False)
        ]  # fmt: skip
    return [TokenLogprob.model_validate(entry).model_dump() for entry in entries]


class Upstream:
    """A server of models: its address, its key (NAME_API_KEY in the environment), and what it lists."""

    def __init__(
        self, given: str, prices: Mapping[str, ApiPrice] | None = None, timeout: float = 600.0, group: str = ""
    ) -> None:
        name, equals, url = given.partition("=") if "://" in given.partition("=")[2] else ("", "", given)
        parts = http.address(url, "http://127.0.0.1:11434/v1")
        self.name = name or parts.netloc.rpartition("@")[2]
        self.url = url.rstrip("/")
        self.prices = prices or {}
        self.key_name = re.sub(r"\W", "_", self.name).upper() + "_API_KEY"
        key = os.environ.get(self.key_name, "")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout
        self._pool = self._new_pool()
        self.models: list[UpstreamModel] = []
        self.error: str | None = "It was not asked yet."
        self._asked = -REFRESH
        self._ends: set[asyncio.Future[None]] = set()  # one for each answer under way

    def _new_pool(self) -> http.Pool:
        return http.Pool(self._headers, self._timeout, CONNECT)

    async def close(self) -> None:
        """End what runs with a Refusal, then the connections."""
        for end in list(self._ends):
            if not end.done():
                end.set_exception(Refusal(503, "The server is shutting down."))
        await asyncio.sleep(0)

    async def renew(self) -> None:
        """Let go of this event loop's connections."""
        await self._pool.close()
        self._pool = self._new_pool()

    async def refresh(self, now: bool = False) -> None:
        """Ask for the list of models, unless that was a moment ago."""
        if not now and time.monotonic() - self._asked < REFRESH:
            return
        self._asked = time.monotonic()
        try:
            listed = await self._list()
        except Refusal as refusal:
            self.error = refusal.message
            self.models = [UpstreamModel(self, _down(m.card, refusal.message), m.name, m.owner) for m in self.models]
            return
        self.error = None
        self.models = [self._model(entry) for entry in listed]

    async def _list(self) -> list[Mapping[str, Any]]:
        try:
            answer = await self._pool.send("GET", f"{self.url}/models", timeout=CONNECT)
        except http.Failed as error:
            raise self._lost(error) from None
        if answer.status != 200:
            raise self._refused(answer.status, answer.body)
        try:
            listed = answer.json()["data"]
            return [entry for entry in listed if isinstance(entry["id"], str)]
        except (ValueError, KeyError, TypeError):
            raise self.junk("something that is not a list of models") from None

    def _model(self, entry: Mapping[str, Any]) -> UpstreamModel:
        name = str(entry["id"])
        length = next((v for k in ("max_model_len", "context_length") if isinstance(v := entry.get(k), int)), None)
        owner = str(entry.get("owned_by") or "")
        created = entry.get("created")
        card = Card(
            id=f"{self.name}/{name}", name=name, source="upstream", group=self.name, about=f"at {self.url}",
            created=created if isinstance(created, int) else 0, context=length, efforts=EFFORTS,
            price=self.prices.get(f"{self.name}/{name}") or self.prices.get(name),
        )  # fmt: skip
        return UpstreamModel(self, card, name, owner)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The objects of an event stream, an empty one first when it begins. Refusal for whatever else comes."""
        try:
            async with self._pool.open("POST", f"{self.url}/{path}", body) as response:
                if response.status_code != 200:
                    raise self._refused(response.status_code, await http.read(response, LONGEST_REFUSAL))
                kind = response.headers.get("content-type", "")
                if "text/event-stream" not in kind:
                    raise self.junk(f"{kind.partition(';')[0] or 'something'} in place of an event stream")
                yield {}
                async for line in self._lines(response):
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    yield self._chunk(data)
        except http.Failed as error:
            raise self._lost(error) from None

    async def _lines(self, response: http.Response) -> AsyncIterator[bytes]:
        """Lines of bytes: only whole ones are decoded, so that no character is cut."""
        rest = b""
        async for data in self._until_closed(response.aiter_bytes()):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LONGEST_LINE:
                raise self.junk("a line without an end")
            for line in lines:
                yield line.rstrip(b"\r")
        if rest:
            yield rest

    async def _until_closed(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ends.add(end)
        try:
            while True:
                following: asyncio.Future[bytes | None] = asyncio.ensure_future(anext(source, None))
                either: list[asyncio.Future[Any]] = [following, end]
                try:
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if end.done():
                        end.result()
                finally:
                    if not following.done():
                        following.cancel()
                        await asyncio.gather(following, return_exceptions=True)
                data = following.result()
                if data is None:
                    return
                yield data
        finally:
            self._ends.discard(end)

    def _chunk(self, data: bytes) -> dict[str, Any]:
        try:
            chunk = json.loads(data, parse_constant=lambda name: IMPOSSIBLE if name == "-Infinity" else None)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices") or [], list):
            raise self.junk("something that is not a chunk of an answer")
        if chunk.get("error"):
            raise Refusal(502, f"{self.name} says: {_message(chunk)}")
        return chunk

    def junk(self, what: str) -> Refusal:
        return Refusal(502, f"{self.name} sent {what}. Is {self.url} an OpenAI-compatible server?")

    def _lost(self, error: http.Failed) -> Refusal:
        if error.kind in ("nobody", "unreachable"):
            return Refusal(502, f"{self.name} cannot be reached at {self.url}.")
        if error.kind == "slow":
            return Refusal(502, f"{self.name} is too slow: nothing came for a long time.")
        return Refusal(502, f"{self.name} broke off ({error}).")

    def _refused(self, status: int, content: bytes) -> Refusal:
        try:
            said = _message(json.loads(content))
        except (ValueError, RecursionError):
            said = content[:200].decode(errors="replace")
        told = status if status in (400, 404, 413, 422, 429, 503) else 502
        said = " ".join(said.split()) or "nothing more"
        if status in (401, 403):
            said += f" (set {self.key_name})"
        return Refusal(told, f"{self.name} answers {status}: {said}")


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:500]


def _down(card: Card, error: str) -> Card:
    return Card(**{**vars(card), "ok": False, "error": error})
