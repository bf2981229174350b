"""What both kinds of database are: a URL, an engine with its pool, options, listeners, and the open transaction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from sqlalchemy import MetaData
from sqlalchemy.engine import URL

from transact._core.hooks import Hook
from transact._sqlalchemy.engines import check_driver, commit_in_two_phases, make_engine
from transact._sqlalchemy.reading import reads_by_statement
from transact._sqlalchemy.runtime import Runtime, parse_url
from transact._sqlalchemy.transaction import Transaction
from transact.errors import ConfigurationError, NoTransaction, UsageError
from transact.events import Listener, LoggingListener
from transact.options import Isolation, Options, Propagation, Retry, defaults, parse_options
from transact.settings import arguments_from_env, check_arguments


class FACES_OWN:  # noqa: N801  # a constant that can stand where a class is asked for
    """The session class of whoever names none."""


class BaseDatabase:
    """All of a database that waits for nothing; see ``Database`` for the arguments."""

    _runtime_class: ClassVar[type[Runtime]]
    _session_base: ClassVar[type[Any]]

    def __init__(
        self,
        url: str | URL,
        *,
        pool_size: int = 20,
        max_overflow: int = 10,
        pool_timeout: float = 30.0,
        max_waiting: int | None = None,
        isolation: Isolation | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        verify_commit: bool = False,
        two_phase: bool = False,
        metadata: MetaData | None = None,
        name: str = "default",
        echo: bool = False,
        session_class: type[Any] = FACES_OWN,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_arguments(
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=pool_timeout,
            max_waiting=max_waiting,
            isolation=isolation,
            retry=retry,
            timeout=timeout,
            verify_commit=verify_commit,
            two_phase=two_phase,
        )
        base = self._session_base
        session_class = base if session_class is FACES_OWN else session_class
        if not (isinstance(session_class, type) and issubclass(session_class, base)):
            raise ConfigurationError(f"session_class={session_class!r}: write a subclass of {base.__name__}")
        self._url = parse_url(url)
        check_driver(self._url, is_async=self._runtime_class.is_async)
        self.name = name
        self._two_phase = two_phase
        self._runtime = self._runtime_class(
            name, session_class, defaults(isolation=isolation, timeout=timeout, retry=retry)
        )
        self._runtime.max_waiting = max_waiting
        self._runtime.listeners.append(LoggingListener())
        make_engine(
            self._url,
            self._runtime,
            pool={"pool_size": pool_size, "max_overflow": max_overflow, "pool_timeout": pool_timeout},
            metadata=metadata,
            verify_commit=verify_commit,
            options={"echo": echo, **(engine_options or {})},
        )
        if two_phase:
            commit_in_two_phases(
                self._url, self._runtime, metadata=metadata, options={"echo": echo, **(engine_options or {})}
            )

    @classmethod
    def from_env(cls, prefix: str = "TRANSACT_", **arguments: Any) -> Self:
        """Make a database from ``TRANSACT_URL``, ``TRANSACT_POOL_SIZE``, … : the arguments' names in upper case.

        ``arguments`` are passed on and win. Raises ``ConfigurationError`` that names each variable that is missing or wrong.
        """
        return cls(**{**arguments_from_env(prefix, given=arguments), **arguments})

    def listen(self, listener: Listener) -> Listener:
        """Call ``listener`` with each event of this database (``transact.events``). Returns it, so it can decorate."""
        self._runtime.listeners.append(listener)
        return listener

    @property
    def current(self) -> Transaction:
        """The innermost open block. Raises ``NoTransaction`` if there is none."""
        found = self._runtime.innermost()
        if found is None:
            raise NoTransaction(
                f"no transaction of database {self.name!r} is open here; open one: {self._runtime.enter_by} db.transaction()"
            )
        return found

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction of this database is open here."""
        return self._runtime.innermost() is not None

    def before_commit(self, hook: Hook) -> Hook:
        """Register ``hook`` on ``db.current``: see ``Transaction.before_commit``."""
        return self.current.before_commit(hook)

    def after_commit(self, hook: Hook, *, critical: bool = False) -> Hook:
        """Register ``hook`` on ``db.current``: see ``Transaction.after_commit``."""
        return self.current.after_commit(hook, critical=critical)

    def after_rollback(self, hook: Hook) -> Hook:
        """Register ``hook`` on ``db.current``: see ``Transaction.after_rollback``."""
        return self.current.after_rollback(hook)

    def after_completion(self, hook: Hook) -> Hook:
        """Register ``hook`` on ``db.current``: see ``Transaction.after_completion``."""
        return self.current.after_completion(hook)

    def __repr__(self) -> str:
        shown = self._url.set(query={})  # a query may hold a password too, and SQLAlchemy does not hide that one
        return f"<{type(self).__name__} {self.name!r} {shown.render_as_string(hide_password=True)}>"

    # Shared by the verbs.

    def _check_open(self) -> None:
        if self._runtime.closed:
            await_ = "await " if self._runtime.is_async else ""
            raise UsageError(
                f"database {self.name!r} is closed; open it first: {self._runtime.enter_by} db, or {await_}db.open()"
            )

    def _check_block(self, options: Mapping[str, Any]) -> Options:
        """The options of a block; a block cannot be run twice, so it cannot be tried again."""
        checked = parse_options(options)
        if checked.retry is not None:
            loop, enter = ("async for", "async with") if self._runtime.is_async else ("for", "with")
            raise UsageError(
                "retry= on a block: it cannot be run twice. Use @db.transactional(retry=…), db.run(f, retry=…), or "
                f"`{loop} attempt in db.attempts(retry=…): {enter} attempt as session:`"
            )
        return checked

    def _savepoint_options(self) -> Options:
        _ = self.current  # a savepoint that began a transaction would commit at its end
        return Options(propagation=Propagation.NESTED)

    def _reading_engine(self) -> Any:
        runtime = self._runtime
        options = replace(runtime.defaults, read_only=True, timeout=None)
        return runtime.reading_engine if reads_by_statement(runtime, options) else runtime.engine_for(options)


def hide_session(call: Callable[..., Any], f: Callable[..., Any], at: int) -> None:
    """Let whoever reads the signature, FastAPI for one, not see the parameter that is filled in: number ``at`` of ``f``."""
    signature = inspect.signature(f)
    parameters = list(signature.parameters.values())
    hidden = parameters.pop(at)
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {name: hint for name, hint in f.__annotations__.items() if name != hidden.name}
