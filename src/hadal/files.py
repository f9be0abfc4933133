"""Files that are whole or absent, and JSON lines that continue after a kill.

A process may be killed at any moment. So a file is written beside its place and renamed into it, and a file of JSON
lines is cut back to the last step that a checkpoint holds before more is appended. Nothing here imports torch.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from hadal.errors import UserError


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: tensor and numpy scalars become Python numbers, NaN and infinity None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str | int | float | bool | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def _named_failure(path: Path) -> Iterator[None]:
    """Turns an unwritable or full disk into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot write {path.name} in {path.parent}: {reason}.",
            "Free some space or choose another folder with --out; the same command then carries on.",
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `path` whole or not at all: a temporary file beside it, fsync, rename.

    Raises UserError, naming the folder, when the disk is full or cannot be written.
    """
    path = Path(path)
    with _named_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")  # one name: what a kill leaves is written over
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first failure is the one to tell
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system can open folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all. Lone surrogates, which UTF-8 lacks, become `?`."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def append_line(file: FileIO, record: dict[str, Any]) -> None:
    """Adds a line of JSON at the end of an unbuffered file, wholly or not at all; a kill tears the last one at most."""
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
    end = file.seek(0, os.SEEK_END)
    try:
        while line:
            line = line[file.write(line) :]
    except OSError:  # a full disk
        file.truncate(end)
        raise


class JsonLines:
    """A file of JSON objects, one a line, in the order of the steps that wrote them."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._checked = False

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line, wholly or not at all.

        Raises UserError, naming the folder, on a full or unwritable disk.
        """
        with _named_failure(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._checked:  # a power cut may have left half a line, which would swallow this one
                self._cut(len(b"".join(self._whole_lines())))
                self._checked = True
            with self.path.open("ab", buffering=0) as file:
                append_line(file, plain(record))

    def read(self) -> list[dict[str, Any]]:
        """All whole records; a torn last line is passed over. An absent file has none."""
        return [record for _, record in self._records()]

    def size(self) -> int:
        """Bytes of the whole lines so far: a checkpoint notes it, and `cut` comes back to it."""
        return sum(map(len, self._whole_lines()))

    def cut(self, size: int) -> bool:
        """Drops what lies behind `size` bytes; False where the file has fewer already."""
        now = self.size()
        with _named_failure(self.path):
            self._cut(min(now, size))
        return now >= size

    def truncate_after(self, step: int, stage: str | None = None) -> None:
        """Drops the first record past `step` (of `stage`, where given) and everything behind it.

        A resumed stage calls this with the step of its checkpoint, so that the file continues as if never
        stopped. Lines that stay are not rewritten.
        """
        keep = 0
        for line, record in self._records():
            if (stage is None or record.get("stage") == stage) and record.get("step", 0) > step:
                break
            keep += len(line)
        with _named_failure(self.path):
            self._cut(keep)

    def _records(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for number, line in enumerate(self._whole_lines(), 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise UserError(f"{self.path} is damaged at line {number}.", "Delete that line to read the rest.")
            yield line, record

    def _whole_lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            return [line for line in file if line.endswith(b"\n")]

    def _cut(self, size: int) -> None:
        if self.path.exists() and self.path.stat().st_size != size:
            with self.path.open("r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())
