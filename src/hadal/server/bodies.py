"""Bodies of requests: read as JSON whose texts are whole, and what is wrong with one in plain words."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from hadal.files import HALF
from hadal.server.faults import Refusal

MUST_BE: Mapping[str, str] = {
    "string_type": "a text", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "list_type": "a list", "dict_type": "an object", "model_type": "an object", "model_attributes_type": "an object",
    "int_parsing": "a whole number", "int_from_float": "a whole number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "literal_error": "{expected}", "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more", "less_than": "less than {lt}", "less_than_equal": "{le} or less",
    "too_short": "a list of at least {min_length}", "too_long": "a list of at most {max_length}",
    "string_too_short": "a text of at least {min_length} letters",
    "string_too_long": "a text of at most {max_length} letters",
    "string_pattern_mismatch": "a token id",  # the only texts of which a form is asked
}  # fmt: skip
"""Faults by pydantic's names."""


def load_json(data: bytes, what: str = "The body") -> Any:
    """What a JSON text says. Refusal for one that is none, and for halves of characters, which no text may hold."""
    try:
        text = data.decode("utf-8-sig")
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal(400, f"{what} is not valid JSON.") from None
    if HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Refusal(422, f"{what} holds one half of a character, a lone surrogate.") from None
        except RecursionError:
            raise Refusal(400, f"{what} is nested too deeply.") from None
    return found


class _Request(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = load_json(await self.body())
        return self._json


class Route(APIRoute):
    """A route whose body is read by `load_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return read


def complaint(faults: Sequence[Mapping[str, Any]], given: Any) -> tuple[str, str | None]:
    """What is wrong with a request, in a sentence, and the name of the field. given: the body as it was read."""
    places = [_place(fault, given) for fault in faults]
    # A field that may be of several kinds has a fault for each: the kind that was meant is the one that went furthest.
    near = [place for place in places if place[: len(places[0])] == places[0]]
    place = max(near, key=len)
    here = [fault for fault, at in zip(faults, places, strict=True) if at == place]
    field = ".".join(place)[:200]
    first = here[0]
    if first["type"] == "extra_forbidden":
        return f"{field} is not honoured by this server. Leave it out.", field
    if first["type"] == "missing":
        return f"{field} is missing.", field
    if first["type"] == "value_error":
        return str(first["ctx"]["error"]), field or None
    if first["type"] == "words":
        return f"{field} {first['msg']}.", field
    limits = [_limits(fault) for fault in here]
    if any(limit.get("min_length") == 1 for limit in limits):
        return f"{field} must not be empty.", field
    if any(limit.get("max_length") == 0 for limit in limits):
        return f"{field} must be empty: it is not honoured yet.", field
    known = [MUST_BE[f["type"]].format(**limit) for f, limit in zip(here, limits, strict=True) if f["type"] in MUST_BE]
    if not known:
        return f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}."[:500], field
    said = f" is {first['input']!r}, and" if first["type"] == "literal_error" and len(str(first["input"])) < 50 else ""
    return f"{field}{said} must be {' or '.join(dict.fromkeys(known))}.", field


def _place(fault: Mapping[str, Any], given: Any) -> list[str]:
    """The path to a fault, without the names that pydantic gives to the kinds of a field."""
    where = fault["loc"]
    if where[:1] != ("body",):
        return [str(part) for part in where[1:]]
    place: list[str] = []
    for part in where[1:]:
        if isinstance(given, dict) and (part in given or fault["type"] in ("missing", "words")):
            given = given.get(part)
        elif isinstance(given, list) and isinstance(part, int):
            given = given[part] if part < len(given) else None
        else:
            continue
        place.append(str(part))
    return place


def _limits(fault: Mapping[str, Any]) -> dict[str, Any]:
    """What a value had to be: numbers without a point where they are whole."""
    return {name: f"{v:.15g}" if isinstance(v, float) else v for name, v in fault.get("ctx", {}).items()}
