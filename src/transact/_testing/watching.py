"""What a test asserts about the statements, the connections and the hooks of its application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from transact._sqlalchemy.holding import shown
from transact._sqlalchemy.plain import AnyEngine, plain_engine
from transact._sqlalchemy.pool import TransactPool
from transact._testing.faults import is_control

if TYPE_CHECKING:
    from transact._core.hooks import Hook
    from transact._sqlalchemy.runtime import Runtime


@dataclass(frozen=True, slots=True)
class CapturedHook:
    """One hook that was due: ``phase`` is ``after_commit``, ``after_rollback`` or ``after_completion``.

    ``label``: of the transaction; ``arguments``: what it is called with.
    """

    phase: str
    hook: Hook
    label: str
    arguments: tuple[object, ...] = ()

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.hook, "__name__", repr(self.hook))


@dataclass(slots=True)
class CapturedHooks:
    """The hooks that were due while they were captured, in their order."""

    all: list[CapturedHook] = field(default_factory=list)

    @property
    def after_commit(self) -> list[str]:
        """The names of those that were due after a COMMIT."""
        return self._names("after_commit")

    @property
    def after_rollback(self) -> list[str]:
        """The names of those that were due after a ROLLBACK."""
        return self._names("after_rollback")

    @property
    def after_completion(self) -> list[str]:
        """The names of those that were due at the end, however it came."""
        return self._names("after_completion")

    def _names(self, phase: str) -> list[str]:
        return [captured.name for captured in self.all if captured.phase == phase]


@contextmanager
def captured_hooks(runtime: Runtime, *, run: bool) -> Iterator[CapturedHooks]:
    """Collect the hooks that come due; let them run only with ``run``."""
    captured = CapturedHooks()
    before = runtime.about_to_run

    def about_to_run(phase: str, hook: Any, label: str, arguments: tuple[object, ...]) -> bool:
        captured.all.append(CapturedHook(phase, hook, label, arguments))
        return run and (before is None or before(phase, hook, label, arguments))

    runtime.about_to_run = about_to_run
    try:
        yield captured
    finally:
        runtime.about_to_run = before


@contextmanager
def counted_statements(engines: list[AnyEngine]) -> Iterator[list[str]]:
    """Collect what is sent on ``engines``, one line for each statement and without values."""
    sent: list[str] = []

    def note(
        _connection: object, _cursor: object, statement: str, _parameters: object, context: Any, *_: object
    ) -> None:
        compiled = getattr(context, "compiled", None)
        text = statement if compiled is None else compiled.string
        if not is_control(text):
            sent.append(shown(text) or "")

    with _listening(engines, "before_cursor_execute", note):
        yield sent


@contextmanager
def _listening(engines: list[AnyEngine], name: str, listener: Callable[..., None]) -> Iterator[None]:
    for engine in engines:
        event.listen(plain_engine(engine), name, listener)
    try:
        yield
    finally:
        for engine in engines:
            event.remove(plain_engine(engine), name, listener)


def held_connections(engines: list[AnyEngine]) -> list[str]:
    """Who holds a connection now, one line each."""
    found: list[str] = []
    for engine in engines:
        pool = plain_engine(engine).pool
        if isinstance(pool, TransactPool):
            found += [
                f"{holder.label!r} for {holder.seconds:.1f} s, last statement: {holder.statement or 'none'}"
                for holder in pool.holders()
            ]
    return found
