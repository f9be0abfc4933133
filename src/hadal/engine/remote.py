"""Any server that speaks OpenAI's chat completions, as a `Rollout`: threads, connections that stay open, retries.

A thought is found in `reasoning_content` (DeepSeek, SGLang, llama.cpp), in `reasoning` (vLLM, OpenRouter) or in
<think> tags of the content. Each sample is a request of its own, since not every server has `n`.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from hadal.errors import UserError
from hadal.rollout import Query, Sample
from hadal.text.tokenizer import END_THINK, THINK

KEY = "HADAL_API_KEY"
"""The environment variable that holds the key, unless another is named."""
LONGEST_WAIT = 60.0  # seconds between two attempts
_AGAIN = {408, 409, 425, 429}  # and all from 500 on
_LARGEST = 64 << 20  # bytes of an answer


def is_url(model: str) -> bool:
    """Whether a model's name is the address of a server."""
    return model.startswith(("http://", "https://"))


class _Refused(Exception):
    """The server says that the request itself is wrong."""


class _Failed(Exception):
    """Worth another attempt. after: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


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
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if not is_url(url) or not parts.hostname or port == -1 or parts.username:
            raise UserError(f"{url} is no address of a server.", "It looks like http://localhost:8000/v1.")
        path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions")
        self.url, self.model = f"{parts.scheme}://{parts.netloc}{path}", model
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._base: str | None = path or None
        self.key = os.environ.get(key_from, "").strip()
        self.key_from, self.connections, self.attempts = key_from, connections, attempts
        self.first_wait, self.timeout, self.patient, self.note = first_wait, timeout, patient, note
        self.answered = False
        self._own = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._stopped = threading.Event()

    # ---------------------------------------------------------------------------------- the protocol

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Sample]]:
        """As `Rollout.sample`. UserError where the server cannot be reached, refuses, or fails again and again."""
        asked = ((number, index, query) for number, query in enumerate(queries) for index in query.indices)
        self._stopped.clear()
        self._reach()
        waiting: dict[Future[Sample], tuple[int, int]] = {}
        with ThreadPoolExecutor(self.connections, thread_name_prefix="hadal-remote") as threads:
            try:
                while True:
                    while len(waiting) < 2 * self.connections and (one := next(asked, None)) is not None:
                        number, index, query = one
                        waiting[threads.submit(self._answer, query, index)] = number, index
                    if not waiting:
                        return
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        yield *waiting.pop(future), future.result()
            finally:
                self._stopped.set()  # those that wait for another attempt give up, and nobody waits for an answer
                for future in waiting:
                    future.cancel()
                while self._open:
                    _hang_up(self._open.pop())

    def _reach(self) -> None:
        """UserError where nobody listens: a wrong address is not tried for every request. Finds out whether a bare host
        wants /v1."""
        reason = ""
        for attempt in range(self.attempts if self.patient else 1):
            if attempt:
                self._pause(attempt - 1, reason)
            try:
                connection = self._connect(timeout=30.0)
                connection.connect()
                for base in ("", "/v1") if self._base is None else ():
                    connection.request("GET", base + "/models", headers=self._headers())
                    answer = connection.getresponse()
                    answer.read(_LARGEST)
                    if answer.status != 404:
                        self._base = base
                        break
                connection.close()
                return
            except (OSError, http.client.HTTPException) as error:
                reason = _line(error)
        raise UserError(f"{self.url} cannot be reached ({reason}).", "Is the server running there?")

    def _pause(self, attempt: int, reason: str, least: float = 0.0) -> bool:
        """Wait after a failed attempt, the first being 0; whether nobody is waiting for an answer any more."""
        pause = max(least, min(self.first_wait * 2**attempt, LONGEST_WAIT) * (1 + random.random()) / 2)
        self.note(f"{self.url}: {reason}; again in {pause:.0f} s")
        return self._stopped.wait(pause)

    def _answer(self, query: Query, index: int) -> Sample:
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
            return self._tried(path, body)
        except _Refused as error:
            if not self.answered:
                raise UserError(f"{self.url} refuses: {error}.", "See its documentation for what it takes.") from None
            return Sample([], [], "", "error", error=str(error))

    def _tried(self, path: str, body: Mapping[str, Any]) -> Sample:
        """The sample, after as many attempts as it takes. Raises _Refused, UserError."""
        reason = ""
        for attempt in range(self.attempts):
            try:
                sample = read_sample(self._post(path, json.dumps(body).encode()))
                self.answered = True
                return sample
            except _Failed as error:
                reason, least = str(error), error.after
            if attempt + 1 < self.attempts and self._pause(attempt, reason, least):
                break
        raise UserError(
            f"{self.url} failed {self.attempts} times in a row ({reason}).", "The same command carries on from here."
        )

    # ---------------------------------------------------------------------------------- one request

    def _connect(self, timeout: float | None = None) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout or self.timeout)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return headers | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def _post(self, path: str, data: bytes) -> Any:
        """What the server answers, as JSON. Raises _Failed, _Refused, UserError."""
        status, reason, after, text = self._send((self._base or "") + path, data)
        if status == 200:
            try:
                return json.loads(text)
            except (ValueError, RecursionError):
                raise _Failed(f"its answer is no JSON ({_shown(text)})") from None
        told = f"{status} {reason}, {_told(text)}".rstrip(", ")
        if status in _AGAIN or status >= 500:
            raise _Failed(told, after)
        if status in (401, 403):
            remedy = "Check the key in" if self.key else "Put a key into"
            raise UserError(f"{self.url} answers {told}.", f"{remedy} the environment variable {self.key_from}.")
        if status in (402, 404, 405) or status < 400:
            raise UserError(f"{self.url}{path} answers {told}.", "Check the address, the model's name and the account.")
        raise _Refused(told)

    def _send(self, path: str, data: bytes) -> tuple[int, str, float, bytes]:
        """Status, reason, seconds to wait and body, over this thread's own connection. Raises _Failed."""
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        kept = connection is not None
        if connection is None:
            connection = self._own.connection = self._connect()
            self._open.add(connection)
        try:
            if self._stopped.is_set():
                raise ConnectionAbortedError("stopped")
            try:
                connection.request("POST", path, data, self._headers())
                answer = connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if not kept or self._stopped.is_set():
                    raise
                connection.close()  # the server has let go of an idle connection; the next request opens it anew
                connection.request("POST", path, data, self._headers())
                answer = connection.getresponse()
            text = answer.read(_LARGEST)
            after = answer.getheader("Retry-After") or ""
            if answer.length:  # a body that is too long is not read to its end
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _Failed(_line(error)) from None
        return answer.status, answer.reason, min(float(after), 600.0) if after.isdecimal() else 0.0, text


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """Make a read in another thread end now."""
    if (sock := connection.sock) is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _thinking(thinking: bool | None) -> dict[str, Any]:
    """The switches of templates (vLLM, SGLang, hadal) and of DeepSeek's service; nothing where nothing is asked."""
    if thinking is None:
        return {}
    switches = {"thinking": thinking, "enable_thinking": thinking}
    return {"chat_template_kwargs": switches, "thinking": {"type": "enabled" if thinking else "disabled"}}


def read_sample(answer: Any) -> Sample:
    """What a completion says, with its thought in tags. Raises _Failed where it is none."""
    try:
        choice = answer["choices"][0]
        message, finish = choice.get("message"), choice.get("finish_reason")
        told = choice["text"] if message is None else message.get("content")
        thought = None if message is None else message.get("reasoning_content") or message.get("reasoning")
        if not all(part is None or isinstance(part, str) for part in (told, thought)):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError):
        error = answer.get("error") if isinstance(answer, dict) else None
        raise _Failed(f"its answer is no completion ({_shown(json.dumps(error or answer).encode())})") from None
    if finish in ("insufficient_system_resource", "error", "abort"):
        raise _Failed(f"it broke off ({finish})")
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    tokens = tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0 else None
    cut = finish == "length"
    text = told or ""
    if thought is not None:
        closed = END_THINK if text or not cut else ""  # cut off within the thought
        text = f"{THINK}{thought}{closed}{text}"
    return Sample([], [], text, "length" if cut else "stop", counted=tokens)


def _told(text: bytes) -> str:
    """The message of an error's body."""
    try:
        data = json.loads(text)
        error = data.get("error", data)
        return _shown(str(error.get("message", error) if isinstance(error, dict) else error).encode())
    except (ValueError, RecursionError, AttributeError):
        return _shown(text)


def _shown(text: bytes) -> str:
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text[:2000].decode(errors="replace")).split())
    return line if len(line) <= 200 else line[:199] + "…"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
