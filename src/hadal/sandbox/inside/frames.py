"""Messages over a pipe: eight bytes of length, then JSON."""

from __future__ import annotations

import json
import os
from typing import Any


def pack(message: Any) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(8, "little") + body


def write(fd: int, message: Any) -> None:
    """Write one message whole. Raises OSError (BrokenPipeError where nobody reads)."""
    data = memoryview(pack(message))
    while data:
        data = data[os.write(fd, data) :]


def read(fd: int) -> Any:
    """Read one message whole; None at the end of the pipe. For a reader that trusts the writer."""
    size = _exactly(fd, 8)
    body = _exactly(fd, int.from_bytes(size, "little")) if size is not None else None
    return None if body is None else json.loads(body)


def _exactly(fd: int, count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        if not (part := os.read(fd, min(count, 1 << 20))):
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
