"""A teacher behind an address: OpenAI's chat API, asked patiently. What it cannot answer stops the stage, no more."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from hadal.errors import UserError
from hadal.text.tokenizer import END_THINK, THINK

KEY = "HADAL_TEACHER_KEY"
"""The environment variable that holds the key, where the teacher asks for one."""
TRIES = 5
WAIT = 1.0  # seconds before the second try; twice as long before each further one
TIMEOUT = 600.0
LARGEST = 1 << 26  # bytes of a reply
_FOR_GOOD = (400, 401, 403, 404, 405, 413, 422)


class Endpoint:
    """A model served at `address`, such as https://host/v1."""

    def __init__(self, address: str, model: str) -> None:
        self.address, self.model = address.rstrip("/"), model

    def ask(self, question: str, n: int, **settings: float) -> list[str]:
        """n answers, thoughts in their tags. UserError where it stays down, refuses, or talks nonsense."""
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "n": n, **settings}
        trouble = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT * 2 ** (attempt - 1))
            try:
                return _answers(self._post(body))
            except urllib.error.HTTPError as error:
                trouble = f"it answered {error.code} {error.reason}"
                if error.code in _FOR_GOOD:
                    remedy = f"Put its key into {KEY}." if error.code in (401, 403) else "Check endpoint_model."
                    raise UserError(f"The teacher at {self.address} refuses: {trouble}.", remedy) from None
            except (OSError, HTTPException) as error:
                trouble = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError as error:
                trouble = f"its reply is none ({error})"
        raise UserError(
            f"The teacher at {self.address} has failed {TRIES} times: {trouble}.",
            "Its answers so far are kept; the same command carries on.",
        )

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(
            f"{self.address}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            data = reply.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError("it is too long")
        return json.loads(data)


def _answers(reply: Any) -> list[str]:
    """The texts of a reply; ValueError says what is wrong with it."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ValueError("it has no choices")
    texts = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        message = message if isinstance(message, dict) else {}
        text, thought = message.get("content"), message.get("reasoning_content")
        if not isinstance(text, str):
            raise ValueError("a choice has no content")
        texts.append(f"{THINK}{thought}{END_THINK}{text}" if isinstance(thought, str) and thought else text)
    return texts
