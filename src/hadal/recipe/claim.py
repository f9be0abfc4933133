"""A folder taken for a run: by one process at a time, for one request, with clear words where the disk refuses."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hadal.errors import UserError
from hadal.library.record import read_run

DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The folder, made and locked: two processes would undo each other's work. A kill frees it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {(error.strerror or str(error)).lower()}.",
            "Choose another with --out.",
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"Another process is working in {folder}.", "Wait for it, or choose another folder with --out."
        ) from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def disk_trouble_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        raise UserError(
            f"cannot write in {folder}: {(error.strerror or str(error)).lower()}.",
            "Free some space or change its permissions; the same command then carries on.",
        ) from error


def existing(folder: Path, fresh: bool, kind: str | None = None) -> dict[str, Any] | None:
    """The record of a run to carry on; None where one can be set up. UserError for a folder of something else.

    kind: of the run, as run.json has it; a recipe's has none.
    """
    path = folder / "run.json"
    if not path.exists():
        if all(other.name == ".run.json.part" for other in folder.iterdir()):  # killed while it was written
            return None
        raise UserError(f"{folder} is not empty and holds no run.", "Choose another folder with --out.")
    data = path.read_bytes()
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        if isinstance(found, dict) and found.get("kind") != kind:
            raise UserError(f"{folder} holds what another command made.", "Choose another folder with --out.")
    if fresh and b'"hadal_run"' in data:
        return None  # of whatever version, and however damaged
    record = read_run(folder)
    return None if record.get("status") == "preparing" else record


def check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    remedy = "Give the same settings, another folder with --out, or --fresh to start anew."
    for path, digest in new.get("task_files", {}).items():
        if old.get("task_files", {}).get(path, digest) != digest:
            raise UserError(f"{path} has changed since the run in {folder} began.", remedy)
    if old != new:
        raise UserError(f"{folder} holds a run with other settings ({_difference(old, new)}).", remedy)


def _difference(old: dict[str, Any], new: dict[str, Any], where: str = "") -> str:
    """The first setting in which two requests differ, in words."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if a != b:
            if isinstance(a, dict) and isinstance(b, dict):
                return _difference(a, b, f"{where}{key}.")
            return f"{where}{key} {a} instead of {b}".removeprefix("recipe.")
    return ""
