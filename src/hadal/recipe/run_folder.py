"""The run folder on disk: `run.json`, files that are whole or absent, JSON lines that continue after a kill.

A process may be killed at any moment. So a file is written beside its place and renamed into it, and a file
of JSON lines is cut back to the last step that a checkpoint holds before more is appended. Nothing here
imports torch.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hadal.configs.tensor_header import read_header
from hadal.errors import UserError

RUN_VERSION = 1

_CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json")


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


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run folder. Raises UserError, with the remedy, where it cannot be read."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read {path}: {reason}.", "Check its permissions.") from error
    except ValueError as error:
        remedy = f"Start anew: {again(path.parent)} --fresh"
        raise UserError(f"{path} is damaged (it is not JSON).", remedy) from error


def write_run(run: Path, record: dict[str, Any]) -> None:
    """Writes `run.json`, with the version of the format in it."""
    write_json(Path(run) / "run.json", {"hadal_run": RUN_VERSION, **record})


def read_run(run: Path) -> dict[str, Any]:
    """Reads `run.json` of a finished or unfinished run.

    Raises UserError, with the remedy, where it is missing, unreadable, broken or of another version.
    """
    run = Path(run)
    path = run / "run.json"
    if not run.is_dir():
        raise UserError(f"{run} is not a folder.", "Grow a model first: hadal quickstart")
    if not path.is_file():
        raise UserError(
            f"{run} is not a run folder (it has no run.json).",
            "Name the folder that hadal quickstart wrote, such as runs/dense-seed0.",
        )
    record = read_json(path)
    if not isinstance(record, dict) or "hadal_run" not in record:
        raise UserError(f"{path} was not written by hadal.", "Name the folder that hadal quickstart wrote.")
    if record["hadal_run"] != RUN_VERSION:
        raise UserError(
            f"{run} has run format {record['hadal_run']!r}, and this hadal reads format {RUN_VERSION}.",
            f"Use the hadal that wrote it, or start anew: {again(run)} --fresh",
        )
    return record


def again(run: Path) -> str:
    """The command that carries on the run in this folder: the one that began it, where that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((run / "run.json").read_bytes())["command"])
    return f"hadal quickstart --out {run}"


def open_run(run: Path) -> dict[str, Any]:
    """Checks that `run` is a finished run whose checkpoint is whole, and returns its `run.json`.

    Cheap: it reads headers, not weights. Raises UserError, with the remedy, for anything else.
    """
    run = Path(run)
    record = read_run(run)
    if record.get("status") != "complete":
        raise UserError(f"the run in {run} is not finished.", f"Carry on where it stopped: {again(run)}")
    for name in _CHECKPOINT_FILES:
        if not (run / name).is_file():
            raise UserError(f"{run} has no {name}.", f"Make it again: {again(run)} --fresh")
    try:
        read_header(run / "model.safetensors")
    except UserError as error:
        raise UserError(error.cause, f"Make it again: {again(run)} --fresh") from None
    return record


def count_parameters(run: Path) -> int:
    """The number of parameters in the run's checkpoint; shared ones count once, as the file holds them."""
    return sum(math.prod(tensor.shape) for tensor in read_header(Path(run) / "model.safetensors").values())


class JsonLines:
    """A file of JSON objects, one a line, in the order of the steps that wrote them."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._checked = False

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line, wholly or not at all.

        Raises UserError, naming the folder, on a full or unwritable disk.
        """
        line = (json.dumps(plain(record), ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        with _named_failure(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._checked:  # a power cut may have left half a line, which would swallow this one
                self._cut(len(b"".join(self._whole_lines())))
                self._checked = True
            with self.path.open("ab", buffering=0) as file:
                before = file.seek(0, os.SEEK_END)
                try:
                    written = file.write(line)
                    if written != len(line):
                        file.write(line[written:])  # the rest either fits or says why not
                except OSError:
                    file.truncate(before)
                    raise

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
