"""Any server that speaks OpenAI's chat completions, as a `Rollout`: many requests side by side, retries.

A thought is found in `reasoning_content` (DeepSeek, SGLang, llama.cpp), in `reasoning` (vLLM, OpenRouter) or in
<think> tags of the content. Each sample is a request of its own, since not every server has `n`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any

from hadal import http
from hadal.errors import UserError
from hadal.rollout import Query, Sample
from hadal.text.tokenizer import END_THINK, THINK

KEY = "HADAL_API_KEY"
"""The environment variable that holds the key, unless another is named."""
REACH = 30.0  # seconds until a server has to say anything at all


def is_url(model: str) -> bool:
    """Whether a model's name is the address of a server."""
    return model.startswith(("http://", "https://"))


class _Refused(Exception):
    """The server says that the request itself is wrong."""


class RemoteRollout:
    """Asks a server, `connections` requests at once. It gives text alone.

    url: as OpenAI's clients want it (`https://api.deepseek.com`, `http://localhost:8000/v1`; a bare host is tried with
    /v1 as well). key_from: the environment variable that holds the key, if there is one. Each request is tried up to
    `attempts` times, with waits that double from `first_wait` seconds up to a minute; `timeout` bounds the silence of a
    server. patient: where nobody listens at the beginning it is waited for in the same way; otherwise that is an error
    at once. note: is told of a failure that will be tried again.
    """

    gives_ids = gives_logprobs = takes_weights = False
    context = None

    def __init__(
        self, url: str, model: str, key_from: str = KEY, connections: int = 16, attempts: int = 8,
        first_wait: float = 1.0, timeout: float = 1800.0, patient: bool = False,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        parts = http.address(url, "http://localhost:8000/v1")
        if parts.username:
            raise UserError(f"{url} holds a name or a password.", f"Put the key into {key_from}.")
        path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions")
        self._host = f"{parts.scheme}://{parts.netloc}"
        self.url, self.model = self._host + path, model
        self._base: str | None = path or None
        self.key = os.environ.get(key_from, "").strip()
        self.key_from, self.connections, self.attempts = key_from, connections, attempts
        self.first_wait, self.timeout, self.patient, self.note = first_wait, timeout, patient, note
        self.answered = False

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Sample]]:
        """As `Rollout.sample`. UserError where the server cannot be reached, refuses, or fails again and again."""
        asked = ((number, index, query) for number, query in enumerate(queries) for index in query.indices)
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        waiting: dict[Future[Sample], tuple[int, int]] = {}
        with http.Client(headers=headers, timeout=self.timeout, connections=self.connections) as client:
            client.submit(self._reach).result()
            while True:
                while len(waiting) < 2 * self.connections and (one := next(asked, None)) is not None:
                    number, index, query = one
                    waiting[client.submit(partial(self._answer, query=query, index=index))] = number, index
                if not waiting:
                    return
                done = wait(waiting, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda one: one.exception() is not None):  # what was answered counts
                    yield *waiting.pop(future), future.result()

    async def _reach(self, pool: http.Pool) -> None:
        """UserError where nobody listens: a wrong address is not tried for every request. Finds out whether a bare host
        wants /v1."""

        async def once() -> None:
            for base in ("", "/v1") if self._base is None else (self._base,):
                answer = await pool.send("GET", f"{self._host}{base}/models", timeout=REACH)
                if answer.status != 404:
                    self._base = base
                    return

        try:
            await http.tried(once, self.attempts if self.patient else 1, self.first_wait, self._again)
        except http.Failed as error:
            raise UserError(f"{self.url} cannot be reached ({error}).", "Is the server running there?") from None

    def _again(self, line: str) -> None:
        self.note(f"{self.url}: {line}")

    async def _answer(self, pool: http.Pool, query: Query, index: int) -> Sample:
        params = query.params
        body: dict[str, Any] = {
            "model": self.model, "temperature": params.temperature, "top_p": params.top_p,
            "max_tokens": params.max_tokens, "stream": False,
        }  # fmt: skip
        body |= {"seed": (params.seed + index) % (1 << 31)} if params.seed is not None else {}
        body |= {"stop": list(params.stop)} if params.stop else {}
        if (messages := query.messages) is not None:
            path, body = "/chat/completions", body | {"messages": messages} | _thinking(params.thinking)
        else:
            path, body = "/completions", body | {"prompt": query.prompt}
        try:
            sample = await http.tried(
                lambda: self._post(pool, path, body), self.attempts, self.first_wait, self._again
            )
        except _Refused as error:
            if not self.answered:
                raise UserError(f"{self.url} refuses: {error}.", "See its documentation for what it takes.") from None
            return Sample([], [], "", "error", error=str(error))
        except http.Failed as error:
            raise UserError(
                f"{self.url} failed {self.attempts} times in a row ({error}).", "The same command carries on from here."
            ) from None
        self.answered = True
        return sample

    async def _post(self, pool: http.Pool, path: str, body: Mapping[str, Any]) -> Sample:
        """What the server answers. Raises Failed, _Refused, UserError."""
        answer = await pool.send("POST", f"{self._host}{self._base or ''}{path}", body)
        if answer.status == 200:
            try:
                return read_sample(answer.json())
            except ValueError:
                raise http.Failed(f"its answer is not JSON ({http.shown(answer.body)})") from None
        if answer.passing:
            raise http.Failed(answer.told(), after=answer.after)
        if answer.status in (401, 403):
            what = "Check the key in" if self.key else "Put a key into"
            remedy = f"{what} the environment variable {self.key_from}."
            raise UserError(f"{self.url} answers {answer.told()}.", remedy)
        if answer.status in (402, 404, 405) or answer.status < 400:
            raise UserError(
                f"{self.url}{path} answers {answer.told()}.", "Check the address, the model's name and the account."
            )
        raise _Refused(answer.told())


def _thinking(thinking: bool | None) -> dict[str, Any]:
    """The switches of templates (vLLM, SGLang, hadal) and of DeepSeek's service; nothing where nothing is asked."""
    if thinking is None:
        return {}
    switches = {"thinking": thinking, "enable_thinking": thinking}
    return {"chat_template_kwargs": switches, "thinking": {"type": "enabled" if thinking else "disabled"}}


def read_sample(answer: Any) -> Sample:
    """What a completion says, with its thought in tags. Raises Failed where it is none."""
    try:
        choice = answer["choices"][0]
        message, finish = choice.get("message"), choice.get("finish_reason")
        told = choice["text"] if message is None else message.get("content")
        thought = None if message is None else message.get("reasoning_content") or message.get("reasoning")
        if not all(part is None or isinstance(part, str) for part in (told, thought)):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError):
        error = answer.get("error") if isinstance(answer, dict) else None
        said = http.shown(json.dumps(error or answer).encode())
        raise http.Failed(f"its answer is not a completion ({said})") from None
    if finish in ("insufficient_system_resource", "error", "abort"):
        raise http.Failed(f"it broke off ({finish})")
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    tokens = tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0 else None
    cut = finish == "length"
    text = told or ""
    if thought is not None:
        closed = END_THINK if text or not cut else ""  # cut off within the thought
        text = f"{THINK}{thought}{closed}{text}"
    return Sample([], [], text, "length" if cut else "stop", counted=tokens)
