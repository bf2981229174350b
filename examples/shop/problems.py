"""Bodies of errors that are the application's own; those of the database come from transact, as the same documents."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_MEDIA_TYPE = "application/problem+json"
_SCHEMA = {"$ref": "#/components/schemas/TransactProblem"}  # which transact puts into the OpenAPI document


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route says in its ``responses`` of the problems that it tells of itself; transact adds those of its own."""
    content = {_MEDIA_TYPE: {"schema": _SCHEMA}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


async def problem_document(_request: Request, error: HTTPException) -> JSONResponse:
    """Answer an ``HTTPException`` as a problem document (RFC 9457) with the members that transact's documents have."""
    phrase = HTTPStatus(error.status_code).phrase
    body = {"type": "about:blank", "title": phrase, "code": phrase.lower().replace(" ", "-"), "retryable": False}
    return JSONResponse(
        body | {"status": error.status_code, "detail": error.detail},
        status_code=error.status_code,
        headers=error.headers,
        media_type=_MEDIA_TYPE,
    )


async def invalid_request(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer FastAPI's 422 without its echo of the input: a lone surrogate or a NaN in there cannot be sent back."""
    detail = [{"type": e["type"], "loc": _printable(e["loc"]), "msg": e["msg"]} for e in error.errors()]
    return JSONResponse({"detail": detail}, status_code=422)


def _printable(location: Sequence[str | int]) -> list[str | int]:
    # The name of an unknown field is input, too.
    return [p.encode("utf-8", "backslashreplace").decode() if isinstance(p, str) else p for p in location]


def install_problems(app: FastAPI) -> None:
    """Make ``app`` answer with these bodies."""
    app.add_exception_handler(HTTPException, problem_document)  # type: ignore[arg-type]  # typed for any Exception
    app.add_exception_handler(RequestValidationError, invalid_request)  # type: ignore[arg-type]
