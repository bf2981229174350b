"""The request policy, in one place: what commits, what rolls back, and when the client may hear of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transact.errors import ConfigurationError, UnexpectedRollback
from transact.fastapi.requests import SCOPE_KEY, RequestUnits

if TYPE_CHECKING:
    from transact.fastapi.database import Database

Veto = Callable[[int, Mapping[str, str]], bool]
_log = logging.getLogger("transact")


def default_veto(status: int, _headers: Mapping[str, str]) -> bool:
    """Whether a response rolls back: what tells the client that its request failed, 400 and above."""
    return status >= 400  # noqa: PLR2004  # RFC 9110, section 15


class _ResponseDropped(BaseException):
    """Unwinds an application whose response must not be sent. Not an ``Exception``: no handler may answer it."""


class TransactMiddleware:
    """Ends each request's unit of work when its response begins, before the client sees a byte.

    Pure ASGI: it awaits the application in the request's own task and passes everything on that does not concern it.
    """

    def __init__(self, app: ASGIApp, *, database: Database, veto: Veto) -> None:
        self.app = app
        self.database = database
        self.veto = veto

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request. Raises what the application raises, or the error of a COMMIT that no handler takes."""
        database = self.database
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        installed: dict[Database, RequestUnits] = scope.setdefault(SCOPE_KEY, {})
        if database in installed:  # an application mounted in one that shares the database
            await self.app(scope, receive, send)
            return
        database._check_routes(scope["app"])
        runtime = database._runtime
        request = _Request(self, RequestUnits(runtime, scope), scope, receive, send)
        installed[database] = request.units
        outer = runtime.current.get()
        runtime.current.set(request.units.automatic.root)
        try:
            await request.run()
        finally:
            runtime.current.set(outer)
            del installed[database]

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.database._check_routes(scope["app"])
        except ConfigurationError as error:
            # An exception alone is taken for an application without lifespan, and uvicorn would serve it.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await self.app(scope, receive, send)


class _Request:
    """One request: the application's messages on their way to the server."""

    __slots__ = ("_failure", "_middleware", "_receive", "_scope", "_send", "_started", "units")

    def __init__(
        self, middleware: TransactMiddleware, units: RequestUnits, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._middleware = middleware
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = False
        self._failure: Exception | None = None
        self.units = units

    async def run(self) -> None:
        """Run the application; whatever happens, the unit of work has ended and holds nothing afterwards."""
        application = self._scope["app"]
        try:
            await self._middleware.app(self._scope, self._receive, self.send)
        except BaseException as error:
            if self._failure is None:
                await self._abandon(error)
                raise
        if self._failure is None:
            await self._abandon(None)
            return
        # Also if the application caught what unwound it: a response that was dropped stays dropped.
        await self._answer(application, self._failure)

    async def send(self, message: Message) -> None:
        """Pass a message on; the first of a response ends the unit of work before."""
        if self._failure is not None:
            raise _ResponseDropped
        if message["type"] == "http.response.start" and not self._started:
            status = message["status"]
            vetoed = self._middleware.veto(status, Headers(raw=message.get("headers", [])))
            try:
                await self.units.end(None, success=not vetoed)
            except Exception as error:
                self._failure = error
                raise _ResponseDropped from error
            self._started = True
        await self._send(message)

    async def _abandon(self, error: BaseException | None) -> None:
        if self.units.ended:
            return
        if error is not None and (hint := self.units.hint(error)):
            _log.error(hint)
        await self.units.end(error, success=False)

    async def _answer(self, application: Any, failure: Exception) -> None:
        # A mounted application has put itself into the scope: its handlers go first, as they would have done.
        handlers = {**application.exception_handlers, **getattr(self._scope["app"], "exception_handlers", {})}
        if await self._handled(handlers, failure):
            return
        # A handler called it a success. It is asked once more, with the plain truth; then the server answers.
        surprise = UnexpectedRollback(
            f"{self.units.label()!r} was rolled back, and an exception handler answered {type(failure).__name__} with success"
        )
        surprise.__cause__ = failure
        if not await self._handled(handlers, surprise):
            raise surprise

    async def _handled(self, handlers: Mapping[Any, Any], failure: Exception) -> bool:
        """Let the application's handlers answer; return whether they did, and not by claiming that something is stored."""
        committed = getattr(failure, "committed", False)

        # Starlette counts a response as started before it awaits send(), so an exception raised in there reaches no handler.
        # Its public middleware, with the application's handlers around something that raises, does what would have been
        # done; what has no handler there goes on to ServerErrorMiddleware and becomes a 500.
        async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
            raise failure

        async def send(message: Message) -> None:
            if not committed and message["type"] == "http.response.start" and message["status"] // 100 == 2:  # noqa: PLR2004  # RFC 9110
                raise _ResponseDropped
            await self._send(message)

        catching = {cls: handler for cls, handler in handlers.items() if cls not in {500, Exception}}
        try:
            await ExceptionMiddleware(fail, handlers=catching)(self._scope, self._receive, send)
        except _ResponseDropped:
            return False
        return True
