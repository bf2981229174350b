"""``transact.fastapi.Database``: the core's ``Database`` with ``install``, ``lifespan`` and the dependencies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Unpack
from weakref import WeakSet

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from starlette.requests import HTTPConnection
from starlette.types import Scope

import transact
from transact._database import BaseDatabase
from transact._sqlalchemy.resolving import check_server
from transact.errors import ConfigurationError, TransactError, UsageError
from transact.fastapi.middleware import Veto, default_veto
from transact.fastapi.problems import Problem, ProblemHandler
from transact.fastapi.requests import RequestUnits, units_of
from transact.fastapi.routes import describe_problems, problems_of
from transact.fastapi.several import middleware_for
from transact.options import Options, Propagation, TransactionOptions, parse_options


class Installable(BaseDatabase):
    """What FastAPI applications install, of both kinds of database."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._applications: WeakSet[Any] = WeakSet()
        self._checked: WeakSet[Any] = WeakSet()
        self._providers: set[Callable[..., Any]] = set()

    def install(
        self, app: FastAPI, *, problems: Mapping[str, Problem] | None = None, veto: Veto = default_veto
    ) -> None:
        """Make ``app`` end each request's transaction before its response begins, and answer this library's errors.

        - ``problems``: what to say when a constraint, by name, is violated.
        - ``veto(status, headers)``: which responses roll back; by default those of status 400 and above.

        Adds one middleware, and one exception handler unless the application has its own for ``TransactError``. Call it
        once per application, before the first request; a second call raises ``ConfigurationError``.
        """
        if app in self._applications:
            raise ConfigurationError(
                f"database {self.name!r} is installed in this application already; call install() once"
            )
        told = dict(problems or {})
        for constraint, problem in told.items():
            if not isinstance(problem, Problem):
                raise ConfigurationError(f"problems[{constraint!r}] is {problem!r}: write a transact.fastapi.Problem")
        app.add_middleware(middleware_for(app, self, veto), database=self, veto=veto)
        self._applications.add(app)
        handler = app.exception_handlers.setdefault(TransactError, ProblemHandler({}))
        if isinstance(handler, ProblemHandler):  # and not the application's own; two databases share one
            handler.problems.update(told)
        document = app.openapi

        def openapi() -> dict[str, Any]:
            schema = document()
            describe_problems(schema, app, self._providers.__contains__, told)
            return schema

        app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document

    def session(self, **options: Unpack[TransactionOptions]) -> Any:
        """Automatic mode: ``Annotated[AsyncSession, db.session()]``. One session and one transaction per request.

        Of a ``SyncDatabase`` it is ``Annotated[Session, db.session()]``, for ``def`` routes.

        Returns a FastAPI ``Depends``. The connection is taken with the first statement; COMMIT or ROLLBACK happens before
        the response begins.
        """
        checked = self._request_options(options)

        async def session(connection: HTTPConnection) -> AsyncSession:
            return (await self._units(connection).unit(checked)).handle

        return self._depends(session)

    def connection(self, **options: Unpack[TransactionOptions]) -> Any:
        """Automatic mode without the ORM: ``Annotated[AsyncConnection, db.connection()]``, or ``Connection``.

        Beside ``db.session()`` it is that same transaction's connection.
        """
        checked = self._request_options(options)

        async def connection(connection: HTTPConnection) -> AsyncConnection:
            units = self._units(connection)
            return units.connection(await units.unit(checked))

        return self._depends(connection)

    def manual_session(self) -> Any:
        """Manual mode: ``Annotated[AsyncSession, db.manual_session()]``, whose route begins, commits and rolls back.

        What is left uncommitted when the response begins is rolled back; if that throws away changes although the response
        says success, a warning names the route.
        """

        async def manual_session(connection: HTTPConnection) -> AsyncSession:
            return await self._units(connection).manual_session()

        return self._depends(manual_session)

    def _depends(self, provider: Callable[..., Any]) -> Any:
        self._providers.add(provider)
        return Depends(provider)

    def _new_units(self, scope: Scope) -> RequestUnits:
        return RequestUnits(self._runtime, scope)

    def _units(self, connection: HTTPConnection) -> RequestUnits:
        self._check_open()
        return units_of(connection, self)

    def _request_options(self, given: Mapping[str, Any]) -> Options:
        options = parse_options(given)
        if options.propagation is not Propagation.REQUIRED:
            raise UsageError(
                f"propagation={options.propagation} means nothing to a request, which begins its transaction itself; "
                "use it on db.transaction() or @db.transactional"
            )
        if options.rollback_for or options.no_rollback_for:
            raise UsageError(
                "rollback_for and no_rollback_for mean nothing to a request, which rolls back by its response's status: "
                "say which with install(veto=…), or use them on db.transaction() or @db.transactional"
            )
        self._runtime.retries_requests |= options.retry is not None
        return options

    def _check_routes(self, application: Any) -> None:
        # Start-up is the first moment when every route is there.
        if application in self._checked:
            return
        found = problems_of(application, self._providers.__contains__)
        if found:
            raise ConfigurationError("these routes ask for a session and could only fail:\n  " + "\n  ".join(found))
        self._checked.add(application)


class Database(Installable, transact.Database):
    """A ``transact.Database`` that FastAPI applications install; see there for its arguments and verbs."""

    @asynccontextmanager
    async def lifespan(self, _app: Any = None) -> AsyncIterator[None]:
        """Open the database when the application starts and close it when it stops: ``FastAPI(lifespan=db.lifespan)``.

        An application with a lifespan of its own enters it there: ``async with db.lifespan(app): yield``. With
        ``two_phase=True`` it raises ``ConfigurationError`` if the server, should it be there already, prepares nothing.
        """
        async with self:
            await check_server(self._runtime)
            yield


__all__ = ["Database"]
