"""Plain data (TOML, JSON, --set) into dataclasses, with one clear line for what does not fit."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from hadal.errors import UserError

T = TypeVar("T")
LONGEST_SHOWN = 80


def nearest(word: str, known: Iterable[str]) -> str:
    """A remedy that names the closest known word, or all of them."""
    names = sorted(known)
    if not names:
        return "There are none."
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(names)}."


def shown(value: Any) -> str:
    """A value as a message can hold it: on one line, and not longer than that."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of thousands of digits, a list without end
        text = f"a {type(value).__name__} of absurd size"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def read_dataclass(kind: type[T], data: Any, where: str, base: T | None = None) -> T:
    """An instance of the dataclass from a table; UserError for unknown keys and wrong types.

    What the table does not say is taken from `base`, or from the class. So a table for a field that is itself a
    dataclass changes single values of that field's default, and not all of them.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where} is {shown(data)}.", "It must be a table of keys and values.")
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in fields(kind) if f.init}  # type: ignore[arg-type]
    defaults = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}  # type: ignore[arg-type]
    values = {name: getattr(base, name) for name in known} if base is not None else {}
    for key, value in data.items():
        name = f"{where}.{key}" if where else key
        if key not in known:
            raise UserError(f"Unknown key {name}.", nearest(key, known))
        hint = known[key]
        if is_dataclass(hint) and isinstance(hint, type):
            values[key] = read_dataclass(hint, value, name, values.get(key, defaults.get(key)))
        else:
            found = read_value(hint, value, name)
            values[key] = {**values.get(key, {}), **found} if isinstance(found, dict) else found
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where or 'The recipe'} is incomplete ({error}).") from None


def read_value(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint` asks for."""
    origin = typing.get_origin(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return read_dataclass(hint, value, name)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return read_value(next(o for o in options if o is not type(None)), value, name)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{name} is {shown(value)}.", "It must be a table of keys and values.")
        return value
    if origin in (list, tuple):
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise UserError(f"{name} is {shown(value)}.", "It must be a list.")
        return origin(read_value(inner, item, f"{name}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{name} is {shown(value)}.", "It must be a finite number.") from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise UserError(f"{name} is {shown(value)}.", f"It must be {kinds.get(hint, hint)}.")
    return value


def apply_override(data: dict[str, Any], assignment: str) -> None:
    """Set `stage.key=value` in nested tables; the value is read as TOML, and as text where it is none."""
    path, mark, text = assignment.partition("=")
    if not mark or not path.strip():
        raise UserError(f"--set {assignment} is not of the form stage.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except RecursionError:
        raise UserError(f"--set {path}: the value is nested too deeply.", "No setting is nested that deeply.") from None
    except ValueError:  # no TOML, or a number of thousands of digits
        value = text
    *tables, key = path.strip().split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {path}: {table} is not a table.")
    data[key] = value
