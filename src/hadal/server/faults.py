"""Errors as DeepSeek's API gives them: a status, a code, and a body that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException

from hadal.engine import Busy, Closed, TooLong
from hadal.errors import UserError

LONGEST = 1000  # characters of a message, which may tell what the client sent
CODES = {
    400: ("invalid_format", "invalid_request_error"),
    401: ("unauthorized", "authentication_error"),
    403: ("forbidden", "permission_error"),
    404: ("not_found", "not_found_error"),
    405: ("method_not_allowed", "invalid_request_error"),
    409: ("conflict", "conflict_error"),
    413: ("too_large", "invalid_request_error"),
    415: ("unsupported_media_type", "invalid_request_error"),
    422: ("invalid_parameters", "invalid_request_error"),
    429: ("rate_limit", "rate_limit_error"),
    500: ("server_error", "server_error"),
    502: ("upstream_error", "upstream_error"),
    503: ("overloaded", "server_error"),
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """What every error looks like."""

    error: ErrorDetail


class Refusal(HTTPException):
    """A request that gets an error; param: the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.param = status, message, param


def body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    code, kind = CODES.get(status, CODES[500 if status >= 500 else 400])
    return {"error": {"message": message[:LONGEST], "type": kind, "param": param, "code": code}}


def refusal_of(error: UserError, chat: bool = True) -> Refusal:
    """What a client hears of a UserError met on the way."""
    if isinstance(error, TooLong):
        field = "messages" if chat and error.field == "prompt" else error.field
        return Refusal(422, str(error), field)
    if isinstance(error, Closed):
        return Refusal(503, str(error) if error.failed else "The server is shutting down.")
    return Refusal(503 if isinstance(error, Busy) else 422, str(error))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the OpenAPI document."""
    return {status: {"model": ErrorBody, "description": CODES[status][0].replace("_", " ")} for status in statuses}
