"""The request policy, in one place: what commits, what rolls back, and when the client may hear of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import Headers
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transact._sqlalchemy.retrying import Tries
from transact.errors import ConfigurationError, RetriesExhausted, UnexpectedRollback
from transact.fastapi._replay import Pristine, Replay
from transact.fastapi.requests import SCOPE_KEY
from transact.options import Retry

if TYPE_CHECKING:
    from transact.fastapi.database import Installable

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

    def __init__(self, app: ASGIApp, *, database: Installable, veto: Veto) -> None:
        self.app = app
        self.database = database
        self.veto = veto
        self._checked: object = None  # the application whose routes were looked at last

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Run one request. Raises what the application raises, or the error of a COMMIT that no handler takes."""
        # Returns what is to be awaited, and does not await it: each coroutine around the application costs a little each
        # time that something in it waits.
        database = self.database
        if scope["type"] != "http":
            return self._start(scope, receive, send) if scope["type"] == "lifespan" else self.app(scope, receive, send)
        held = scope.setdefault(SCOPE_KEY, {})
        if database in held:  # an application mounted in one that shares the database
            return self.app(scope, receive, send)
        if scope["app"] is not self._checked:
            database._check_routes(scope["app"])
            self._checked = scope["app"]
        return _Request(self, scope, receive, send).run()

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.database._check_routes(scope["app"])
        except ConfigurationError as error:
            # An exception alone is taken for an application without lifespan, and uvicorn would serve it.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await self.app(scope, receive, send)


class Units(Protocol):
    """What one request holds: of one database ``RequestUnits``, which see, of several ``SeveralUnits``."""

    @property
    def ended(self) -> bool: ...  # noqa: D102  # here and below: told by the two classes
    @property
    def retry(self) -> Retry | None: ...  # noqa: D102
    @property
    def cause(self) -> BaseException | None: ...  # noqa: D102
    def label(self) -> str: ...  # noqa: D102
    def hint(self, error: BaseException) -> str | None: ...  # noqa: D102
    def end(self, error: BaseException | None, *, success: bool) -> Awaitable[None]: ...  # noqa: D102


class _Request:
    """One request: the application's messages on their way to the server, in one attempt or in several."""

    __slots__ = (
        "_application", "_failure", "_middleware", "_pristine", "_receive", "_replay", "_retry", "_scope", "_send",
        "_started", "_tries", "units",
    )  # fmt: skip

    def __init__(self, middleware: TransactMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = middleware.database._runtime
        self._middleware = middleware
        self._application = scope["app"]  # one that is mounted in it puts itself there
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = False
        self._failure: Exception | None = None
        self._retry: Retry | None = None  # set with the failure of an attempt that another may follow
        self._replay: Replay | None = None
        if runtime.retries_requests:
            self._tries = Tries(runtime)
            self._replay = Replay(receive)
            self._receive = self._replay.receive
            self._pristine = Pristine(scope)
        self.units: Units

    def _databases(self) -> Iterable[Installable]:
        """Those whose units of work this request ends."""
        return (self._middleware.database,)

    def _new_units(self) -> Units:
        database = self._middleware.database
        units = self._scope[SCOPE_KEY][database] = database._new_units(self._scope)
        database._runtime.current.set(units.automatic.root)
        return units

    async def run(self) -> None:
        """Run the application, again after a transient failure; when it is over, the unit of work holds nothing."""
        outer = [(each._runtime.current, each._runtime.current.get()) for each in self._databases()]
        self.units = self._new_units()
        try:
            while True:
                try:
                    await self._middleware.app(self._scope, self._receive, self.send)
                except BaseException as error:
                    if not await self._dropped(error):
                        raise
                # Also if the application caught what unwound it: a response that was dropped stays dropped.
                if (self._failure is None and self.units.ended) or not await self._again():
                    return
        finally:
            for current, before in outer:
                current.set(before)
            for database in self._databases():
                self._scope[SCOPE_KEY].pop(database).let_go()

    async def _dropped(self, error: BaseException) -> bool:
        """Whether ``error`` left the application because its response was dropped. If not, all that it did is undone."""
        if self._failure is None and isinstance(error, Exception):
            self._failure = self._curable(error, self.units.cause)
        if self._failure is None or isinstance(error, asyncio.CancelledError):
            await self._abandon(error)
            return False
        return True

    async def _again(self) -> bool:
        """End what is left, and answer if the response was dropped; return whether the application is to be called again."""
        failure = self._failure
        await self._abandon(failure)
        if failure is None:
            return False
        if self._retry is not None:
            try:
                pause = self._tries.pause(self._retry, failure, self.units.label())
            except RetriesExhausted as exhausted:
                failure = exhausted
            else:
                await asyncio.sleep(pause)
                self._start_over()
                return True
        await self._answer(self._application, failure)
        return False

    def _start_over(self) -> None:
        assert self._replay is not None  # noqa: S101  # without it no attempt is followed by another
        self._pristine.restore(self._scope)
        self._receive = self._replay.again()
        self._failure = self._retry = None
        self.units = self._new_units()

    def _curable(self, *errors: BaseException | None) -> Exception | None:
        """The first of ``errors`` after which the application shall be called again, if it can be."""
        retry = self.units.retry
        if self._replay is None or retry is None or not self._replay.whole:
            return None
        if self._used_elsewhere():
            return None
        failure = self._tries.curable(retry, *errors)
        if failure is not None:
            self._retry = retry
        return failure

    def _used_elsewhere(self) -> bool:
        """Whether a database that ends apart from this has been used: what it stored or began would be done twice."""
        return any(units.used for units in self._scope[SCOPE_KEY].values() if units is not self.units)

    async def send(self, message: Message) -> None:
        """Pass a message on; the first of a response ends the unit of work before."""
        if self._failure is not None:
            raise _ResponseDropped
        if message["type"] == "http.response.start" and not self._started:
            if self._replay is not None:
                # A response that an exception handler sends is sent while that exception is being handled.
                self._failure = self._curable(sys.exc_info()[1], self.units.cause)
            if self._failure is None:
                veto = self._middleware.veto
                # The usual one has no use for the headers.
                headers = {} if veto is default_veto else Headers(raw=message.get("headers", []))
                vetoed = veto(message["status"], headers)
                try:
                    await self.units.end(None, success=not vetoed)
                except Exception as error:  # noqa: BLE001  # raised again below, or answered once the application has unwound
                    self._failure = error
                    self._curable(error)
            if self._failure is not None:
                raise _ResponseDropped from self._failure
            self._started = True
            if self._replay is not None:
                self._replay.forget()
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
        committed = getattr(failure, "committed", False) is True  # of PartialCommit it is names, and that is no success

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
