"""Rows of a data set, from a local file or from a file of a data set on the Hugging Face hub.

Files are JSON lines (also gzipped), JSON, CSV or Parquet; only the last needs pyarrow. Nothing in them is run.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hadal.errors import UserError
from hadal.files import read_json_file, read_json_lines

KINDS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
Row = dict[str, Any]


class HubFile(NamedTuple):
    """A file of a data set on the hub."""

    repository: str
    path: str


def local_files(path: Path, name: str) -> list[Path]:
    """The files of a folder whose names begin with `name`, in order."""
    return sorted(file for file in path.iterdir() if file.name.startswith(name) and file.name.endswith(KINDS))


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(where, row) for each row of a file; `where` names file and line for messages. UserError for a broken file."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.", f"Give one that ends in {', '.join(KINDS)}.")
    try:
        if path.name.endswith(".parquet"):
            rows: Iterator[tuple[str, Any]] = _numbered(_parquet(path))
        elif path.name.endswith(".json"):
            rows = _numbered(_list(read_json_file(path), path))
        elif path.name.endswith(".csv"):
            rows = _numbered(_csv(path))
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            rows = ((f"line {number}", row) for number, row in read_json_lines(path))
        else:
            raise UserError(f"{path} is of an unknown kind.", f"Known: {', '.join(KINDS)}.")
        for place, row in rows:
            if not isinstance(row, dict):
                raise UserError(f"{path}, {place}, is not a table of names and values.")
            yield f"{path}, {place}", row
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        line = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read ({line}).", "Is it whole, and what its name says?") from None


def _numbered(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _list(data: Any, path: Path) -> list[Any]:
    if not isinstance(data, list):
        raise UserError(f"{path} is not a list.", "A .json file holds a list of rows; one row a line is .jsonl.")
    return data


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv.DictReader(stream)


def _parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path.name} is a Parquet file.", "Install pyarrow: pip install 'hadal[data]'.") from None
    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}).") from None
    return rows
