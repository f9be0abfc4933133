"""Files that are whole or absent and have a digest, JSON lines that continue after a kill, and JSON that others wrote.

A process may be killed at any moment. So a file is written beside its place and renamed into it, and a file of JSON
lines is cut back to the last step that a checkpoint holds before more is appended. Nothing here imports torch.
"""

import codecs
import gzip
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from hadal.errors import UserError

LONGEST_LINE = 1 << 26
MOST_DIGITS = 1000
"""Of a whole number: Python itself reads 4,300."""
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Where JSON spells a surrogate, with its other half or without."""


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write a file at, beside `path`, whose place it takes when the block ends.

    If the block raises, nothing is left of it. UserError, naming the folder, on a full or unwritable disk.
    """
    path = Path(path)
    with _named_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")  # one name: what a kill leaves is written over
        try:
            yield temporary
            put(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first failure is the one to tell
                temporary.unlink(missing_ok=True)
            raise


def put(temporary: Path, path: Path) -> None:
    """Gives a finished file its place, so that both outlive a power cut."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Has a file or a folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Writes `path` whole or not at all, and returns its digest; UserError as for `replacing`."""
    digest = _new_digest()
    with replacing(path) as temporary, temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """The digest of a file as `write_pieces` gives it."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, _new_digest).hexdigest()


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `path` whole or not at all; UserError as for `replacing`."""
    write_pieces(path, [data])


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
            except (ValueError, RecursionError):
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


# ------------------------------------------------------------------------------------- JSON of other hands


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line of a user's JSON lines, also gzipped ones; empty lines are passed over.

    A line ends at a line feed and nowhere else, so U+2028 and its like may stand in a text. UserError names file, line,
    cause and remedy where one is not JSON that every program reads alike (`read_json`).
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{where} is longer than {LONGEST_LINE >> 20} MiB.", "Is it a file of JSON lines?")
                if number == 1:
                    line = _without_mark(line, path)
                if line.strip():
                    yield number, read_json(line, where)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}).", "Give a file of JSON lines.") from None


def read_json_file(path: Path) -> Any:
    """The value in a user's JSON file; UserError as in `read_json`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}).", "Give a file of JSON.") from None
    return read_json(_without_mark(data, path), str(path))


def read_json(data: bytes, where: str) -> Any:
    """The value of UTF-8 JSON text. `where` names it in messages.

    UserError for what is none, and for what programs read in different ways: numbers that are not finite or have
    thousands of digits, a name twice in one object, half a character (a lone surrogate), nesting without end.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float,
                           parse_int=_int)  # fmt: skip
        if HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except _Fault as fault:
        raise UserError(f"{where} {fault.cause}.", fault.remedy) from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise UserError(f"{where} holds half a character ({half}).", "Write the whole pair, or leave it out.") from None
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise UserError(f"{where} is not UTF-8 text (byte 0x{byte:02x}).", "Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        at = f" at character {error.pos + 1}" if "\n" not in error.doc.rstrip() else f" at line {error.lineno}"
        raise UserError(f"{where} is not JSON ({error.msg.lower()}{at}).", "Write one JSON value.") from None
    except RecursionError:
        raise UserError(f"{where} is not JSON that can be read: it is nested too deeply.", "Flatten it.") from None


def read_object(path: Path, remedy: str, missing: str = "") -> dict[str, Any]:
    """The object in a JSON file of a checkpoint, whoever wrote it.

    UserError with the remedy where it cannot be read or holds something else, or is `missing`.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing.", missing or remedy) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}).", remedy) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({' '.join(str(error).split())}).", remedy) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object.", remedy)
    return data


class _Fault(Exception):
    """What is wrong with a piece of JSON, as the end of a sentence."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


def _without_mark(data: bytes, path: Path) -> bytes:
    """Text without the byte order mark that some editors put before it; UserError where it says UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16 text.", "Save the file as UTF-8.")
    return data.removeprefix(codecs.BOM_UTF8)


def _reason(error: Exception) -> str:
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(told.split())[:120].lower()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Fault(f"has the name {json.dumps(twice)[:60]} twice in one object", "Leave one of them out")
    return found


def _constant(name: str) -> float:
    raise _Fault(f"holds {name}, which is not a JSON number", 'Leave it out, or write it as text: "..."')


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Fault(f"holds {text[:40]}, which is too large for a number", 'Write it as text: "..."')
    return value


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise _Fault(f"holds a number of {len(text):,} digits", 'Write it as text: "..."')
    return int(text)
