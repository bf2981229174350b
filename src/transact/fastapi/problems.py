"""Errors as problem documents (RFC 9457): one body per kind of error, and nothing of the database in any of them."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from transact import errors
from transact.fastapi.requests import one_line, request_label

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER = 1  # seconds; the least that RFC 9110, section 10.2.3, can say
_log = logging.getLogger("transact")


@dataclass(frozen=True, slots=True)
class Problem:
    """What an application says when a constraint of its own is violated: ``install(problems={"uq_name": Problem(…)})``.

    - ``status``: the HTTP status, 400 to 599.
    - ``title``: a short name of the problem; by default the status's phrase.
    - ``detail``: one sentence for a person; by default that of the error's kind.
    - ``fields``: the input fields that the problem is about, told as ``fields`` in the document.
    """

    status: int
    title: str | None = None
    detail: str | None = None
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ``ConfigurationError`` for a status that would not tell the client of a failure."""
        if not 400 <= self.status <= 599:  # noqa: PLR2004  # RFC 9110, section 15
            raise errors.ConfigurationError(f"Problem(status={self.status}): write a status from 400 to 599")


class Kind(NamedTuple):
    """How one class of error is told: ``status``, and ``detail``, which is safe to show to anybody."""

    status: int
    detail: str


# The nearest class in an error's MRO decides.
KINDS: Mapping[type[errors.TransactError], Kind] = {
    errors.UniqueViolation: Kind(409, "Something with these values exists already."),
    errors.ExclusionViolation: Kind(409, "This conflicts with something that exists already."),
    errors.ForeignKeyViolation: Kind(
        409, "This refers to something that does not exist, or something still refers to it."
    ),
    errors.NotNullViolation: Kind(422, "A value that is needed is missing."),
    errors.CheckViolation: Kind(422, "A value is not allowed."),
    errors.IntegrityViolation: Kind(409, "This contradicts what is stored already."),
    errors.InvalidData: Kind(422, "A value is too long, out of range or not of the right kind."),
    errors.TransientError: Kind(503, "The request could not be completed just now. Try it again."),
    errors.StatementTimeout: Kind(504, "The request took too long."),
    errors.TransactionTimeout: Kind(504, "The request took too long."),
    errors.PoolTimeout: Kind(503, "The service is busy. Try again soon."),
    errors.DatabaseUnavailable: Kind(503, "The service is not available just now. Try again soon."),
    errors.TooManyConnections: Kind(503, "The service is busy. Try again soon."),
    errors.RetriesExhausted: Kind(503, "The request could not be completed just now. Try it again."),
    errors.CommitOutcomeUnknown: Kind(
        500, "It is not known whether the request took effect. Look before you repeat it."
    ),
    errors.AfterCommitError: Kind(500, "The request took effect, but something that follows from it failed."),
    errors.PartialCommit: Kind(500, "Only a part of the request took effect. Look before you repeat it."),
    errors.TransactError: Kind(500, "The request could not be completed."),
}


class Document(NamedTuple):
    """The schema's name and the members of a problem document."""

    name: str
    schema: Mapping[str, Any]


SCHEMA = Document(
    "TransactProblem",
    {
        "title": "Problem",
        "description": "A problem document (RFC 9457).",
        "type": "object",
        "required": ["type", "title", "status", "detail", "code", "retryable"],
        "properties": {
            "type": {"type": "string", "format": "uri", "description": "The kind of the problem, stable."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "A sentence for a person."},
            "code": {"type": "string", "description": "The kind of the problem in kebab-case."},
            "retryable": {"type": "boolean", "description": "Whether the same request may succeed later."},
            "fields": {"type": "array", "items": {"type": "string"}, "description": "The input fields it is about."},
        },
    },
)


def kind_of(cls: type[BaseException]) -> tuple[type[errors.TransactError], Kind]:
    """The class of ``transact.errors`` that an error is, the nearest, and how its kind is told."""
    public = next(c for c in cls.__mro__ if c.__module__ == errors.__name__)
    return public, next(KINDS[c] for c in public.__mro__ if c in KINDS)


def code_of(cls: type[BaseException]) -> str:
    """A class's name in kebab-case: ``unique-violation``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


def render(error: errors.TransactError, problems: Mapping[str, Problem]) -> JSONResponse:
    """The problem document of an error, with what the application says about its constraint, if it says anything."""
    public, kind = kind_of(type(error))
    own = problems.get(getattr(error, "constraint", None) or "")
    status = own.status if own else kind.status
    body: dict[str, Any] = {
        "type": f"urn:transact:problem:{code_of(public)}",
        "title": (own and own.title) or HTTPStatus(status).phrase,
        "status": status,
        "detail": (own and own.detail) or kind.detail,
        "code": code_of(public),
        "retryable": public.retryable,
    }
    if own and own.fields:
        body["fields"] = list(own.fields)
    headers = {"Retry-After": str(_RETRY_AFTER)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


class ProblemHandler:
    """The exception handler that ``install`` adds for ``TransactError``.

    An error that began as a driver's is also SQLAlchemy's class. If the application has a handler for that class, it is the
    application's word and goes first, although the library's class stands nearer in the MRO.
    """

    def __init__(self, problems: Mapping[str, Problem]) -> None:
        self.problems = dict(problems)

    async def __call__(self, request: Request, error: Exception) -> Response:
        """Log the error once and answer it."""
        handlers = request.app.exception_handlers
        for cls in type(error).__mro__:
            if cls.__module__.startswith("sqlalchemy.") and cls in handlers:
                answer = handlers[cls](request, error)
                response: Response = await answer if inspect.isawaitable(answer) else answer
                return response
        assert isinstance(error, errors.TransactError)  # noqa: S101  # registered for no other
        response = render(error, self.problems)
        fault = response.status_code in {HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.GATEWAY_TIMEOUT}
        _log.log(
            logging.ERROR
            if fault
            else logging.WARNING
            if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            else logging.INFO,
            "%s answered %d %s: %s",
            request_label(request.scope),
            response.status_code,
            code_of(kind_of(type(error))[0]),
            describe(error),
            exc_info=error if fault else None,
        )
        return response


def describe(error: errors.TransactError) -> str:
    """An error for a log line: its class, code and constraint, never a value."""
    facts = {name: getattr(error, name, None) for name in ("sqlstate", "errno", "constraint", "table")}
    told = ", ".join(f"{name}={one_line(str(value))}" for name, value in facts.items() if value)
    return f"{type(error).__name__}({told})"
