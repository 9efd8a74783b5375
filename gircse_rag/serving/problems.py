"""Exceptions -> status codes and error bodies, in the shape of the API that was called.

OpenAI   {"error": {"message", "type", "param", "code"}}       every route but these two
Cohere   {"id", "message"}                                     /v2/embed
TEI      {"error", "error_type"}                               /embed
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from gircse_rag.errors import GircseError, InputError, SpecMismatchError, StoreError

CLIENT_CLOSED_REQUEST = 499
"""Status in the access log of a request whose client hung up (nginx uses the same)."""

_TEI_TYPES = {429: "Overloaded", 503: "Unhealthy"}


class RefusedError(GircseError):
    """A request that is answered with a status of its own.

    Attributes:
        status: the HTTP status.
        code: a short name of the reason, for programs.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class Problem:
    """An error as a client sees it."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def describe(error: BaseException, endpoint: Any = None) -> Problem:
    """The problem that an exception is to a client. `endpoint`: the route's function, if one was found."""
    if isinstance(error, RefusedError):
        return Problem(error.status, str(error), error.code, headers=error.headers)
    if isinstance(error, RequestValidationError):
        return _describe_validation(error, endpoint)
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase.lower()
        message = error.detail if error.detail.lower() != phrase else f"{phrase}: /openapi.json lists the routes"
        return Problem(error.status_code, message, headers=error.headers or {})
    if isinstance(error, InputError):
        return Problem(400, str(error), "invalid_input", _index_name(error))
    if isinstance(error, SpecMismatchError):
        return Problem(409, str(error), "other_vector_space")
    if isinstance(error, StoreError):
        return Problem(503, str(error), "store_error")
    if isinstance(error, GircseError):
        return Problem(500, str(error), "embedding_failed", _index_name(error))
    return Problem(500, "a bug in gircse; the server's log has the traceback under this request's X-Request-Id", "bug")


def to_response(problem: Problem, path: str, request_id: str) -> Response:
    """The answer to a request for `path`."""
    if path == "/v2/embed":
        body: dict[str, Any] = {"id": request_id, "message": problem.message}
    elif path == "/embed":
        body = {"error": problem.message, "error_type": _TEI_TYPES.get(problem.status, "Validation")}
        if problem.status == 500:
            body["error_type"] = "Backend"
    else:
        kind = "invalid_request_error" if problem.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(problem.status, kind)
        fields = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
        body = {"error": fields}
    content = json.dumps(body).encode()  # ASCII: a lone surrogate in a message stays an escape
    return Response(content, problem.status, dict(problem.headers), "application/json")


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer a request with its error: FastAPI's exception handler."""
    problem = describe(error, request.scope.get("endpoint"))
    return to_response(problem, request.url.path, request.scope.get("gircse_request_id", ""))


def _index_name(error: GircseError) -> str | None:
    return None if error.index is None else f"input[{error.index}]"


def _describe_validation(error: RequestValidationError, endpoint: Any) -> Problem:
    """A sentence about the first fault of a body."""
    fault = error.errors()[0]
    kind, where = fault["type"], [str(part) for part in fault["loc"] if part != "body"]
    name = ".".join(where)
    if kind == "json_invalid":
        reason = fault.get("ctx", {}).get("error", "")
        return Problem(400, f"the body is not JSON ({reason} at character {where[-1]})", "invalid_json")
    if kind == "extra_forbidden":
        fields = ", ".join(_body_fields(endpoint))
        return Problem(400, f"there is no field {name!r}; the fields are {fields}", "unknown_field", name)
    if kind == "missing" and name:
        return Problem(400, f"the field {name!r} is missing", "missing_field", name)
    if not name:
        message = "the body must be a JSON object, sent with Content-Type: application/json"
        return Problem(400, message, "invalid_body")
    given = repr(fault.get("input"))
    given = given if len(given) <= 100 else f"{given[:100]}..."
    message = fault["msg"]
    return Problem(400, f"{name}: {message[:1].lower()}{message[1:]}, not {given}", "invalid_field", name)


def _body_fields(endpoint: Any) -> list[str]:
    """Names of the fields of the body that a route's function takes."""
    for annotation in typing.get_type_hints(endpoint).values():
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [info.alias or name for name, info in annotation.model_fields.items()]
    return []
