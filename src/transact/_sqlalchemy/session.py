"""The guarded session: a subclass of the application's own session class that knows the unit of work it belongs to.

All uses of an ``AsyncSession``, ``run_sync`` and lazy loading included, arrive at the methods of its plain ``Session``, so
one guard there sees them all, before SQLAlchemy or the driver has changed anything.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, SessionTransaction

from transact._core.states import Marker
from transact.errors import DatabaseError, TransactionLost, UnexpectedRollback, UsageError

if TYPE_CHECKING:
    from transact._sqlalchemy.unit import Unit

_STATEMENTS = (
    "begin_nested",
    "bulk_insert_mappings",
    "bulk_save_objects",
    "bulk_update_mappings",
    "connection",
    "delete",
    "delete_all",
    "execute",
    "flush",
    "get",
    "get_one",
    "merge",
    "merge_all",
    "refresh",
    "scalar",
    "scalars",
)
_PENDING = ("add", "add_all")
_ENDINGS = ("begin", "close", "commit", "invalidate", "prepare", "reset", "rollback")


def unit_of(session: Session) -> Unit | None:
    """The unit of work that a session belongs to; ``None`` for one that the application made itself."""
    return getattr(session, "_transact_unit", None)


def unguarded(session: Session) -> type[Session]:
    """The class whose methods the guard is around, for those who need not ask it."""
    base: type[Session] = getattr(session, "_transact_base", type(session))
    return base


@functools.cache
def guarded(base: type[Session]) -> type[Session]:
    """Return a subclass of ``base`` whose every use is checked against the unit of work, if there is one."""
    own = {
        name
        for cls in base.__mro__[: base.__mro__.index(Session)]
        for name, value in vars(cls).items()
        if callable(value) and not name.startswith("_") and not isinstance(value, type)
    }
    body: dict[str, Any] = {"_transact_unit": None, "_transact_base": base}
    body |= {"__doc__": base.__doc__, "__module__": base.__module__}
    # delete_all and merge_all came with SQLAlchemy 2.1.
    for name in own.union(n for n in _STATEMENTS if hasattr(base, n)).difference(_PENDING, _ENDINGS):
        body[name] = _statement(base, name)
    for name in _PENDING:
        body[name] = _pending(base, name)
    for name in _ENDINGS:
        body[name] = _ending(base, name)
    body["flush"] = _flush(body["flush"])
    cls: type[Session] = type(f"Guarded{base.__name__}", (base,), body)
    event.listen(cls, "after_begin", _after_begin)
    event.listen(cls, "after_transaction_end", _after_transaction_end)
    event.listen(cls, "before_commit", _before_commit)
    event.listen(cls, "after_commit", _after_commit)
    return cls


def _statement(base: type[Session], name: str) -> Callable[..., Any]:
    method = getattr(base, name)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        unit = self._transact_unit
        if unit is None or not unit.enter(name, args[0] if args else None):
            return method(self, *args, **kwargs)
        try:
            return method(self, *args, **kwargs)
        finally:
            unit.leave()

    return call


def _flush(guarded_flush: Callable[..., Any]) -> Callable[..., Any]:
    # A flush that fails has rolled the transaction back, also when it was Python that failed: SQLAlchemy's session then
    # waits for rollback(), which the scope around sends. Without the mark, swallowing the error would lose the flush.
    @functools.wraps(guarded_flush)
    def flush(self: Any, objects: Any = None) -> None:
        unit = self._transact_unit
        if unit is None or not unit.managed or unit.closing:
            guarded_flush(self, objects)
            return
        nested = unit.connection.get_nested_transaction() if unit.connection is not None else None
        was_active = self.is_active
        try:
            guarded_flush(self, objects)
        except BaseException as error:
            if was_active and not self.is_active and not unit.has_mark(nested):
                unit.mark_innermost(Marker.DATABASE, error, nested)
            raise

    return flush


def _pending(base: type[Session], name: str) -> Callable[..., Any]:
    # add() sends nothing, so on an ended session it would lose the object without a word.
    method = getattr(base, name)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._transact_unit is not None:
            self._transact_unit.check_not_ended(name)
        return method(self, *args, **kwargs)

    return call


def _ending(base: type[Session], name: str) -> Callable[..., Any]:
    method = getattr(base, name)
    checked = _statement(base, name)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        unit = self._transact_unit
        if unit is None or unit.is_mine_to_end:
            return method(self, *args, **kwargs)
        unit.check_not_ended(name)
        # begin(nested=True) is what begin_nested() calls: a savepoint, which stays allowed.
        if not unit.managed or kwargs.get("nested"):
            transaction = checked(self, *args, **kwargs)
            return _users_savepoint(self, transaction) if unit.managed else transaction
        raise UsageError(
            f"session.{name}() was called inside the managed transaction {unit.label!r}, which its block or request ends; "
            "nothing was changed. Leave the block to commit, raise or call set_rollback_only() to roll back, use "
            "db.savepoint() for a part, or ask for db.manual_session() to do it all yourself"
        )

    return call


class _UsersSavepoint(SessionTransaction):
    """What ``session.begin_nested()`` returns in a managed transaction."""

    def commit(self, _to_root: bool = False) -> None:  # noqa: FBT001, FBT002  # SQLAlchemy's signature
        """Release the savepoint. Raises ``ConcurrentUse`` as a statement does."""
        with self._ending(_to_root):
            super().commit(_to_root)

    def rollback(self, _capture_exception: bool = False, _to_root: bool = False) -> None:  # noqa: FBT001, FBT002  # as above
        """Roll back to the savepoint. Raises ``ConcurrentUse`` as a statement does."""
        with self._ending(_to_root):
            super().rollback(_capture_exception, _to_root)

    def _ending(self, whole: bool) -> AbstractContextManager[None]:  # noqa: FBT001  # whether all of the transaction ends
        unit = None if whole else unit_of(self.session)
        return nullcontext() if unit is None else unit.ending_savepoint()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # SQLAlchemy leaves such a block without a word after a flush that failed in it, though all of it is lost.
        unit = unit_of(self.session) if self.session is not None else None
        try:
            hides_loss = isinstance(error, DatabaseError) and unit is not None and unit.lost
            if unit is not None and ((kind is None and not self.is_active) or hides_loss):
                unit.check_marks()
        except (UnexpectedRollback, TransactionLost) as lost:
            super().__exit__(type(lost), lost, lost.__traceback__)
            raise
        super().__exit__(kind, error, traceback)


def _users_savepoint(session: Session, nested: SessionTransaction) -> SessionTransaction:
    nested.__class__ = _UsersSavepoint
    try:
        # SQLAlchemy sends SAVEPOINT with the session's next statement; a statement on a connection that was taken before
        # would slip past it and survive the rollback.
        session.connection()
    except BaseException:
        nested.rollback()
        raise
    return nested


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    unit = unit_of(session)
    if unit is not None and transaction.parent is None and not unit.reads_alone:
        unit.began(connection)


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    unit = unit_of(session)
    if unit is not None and transaction.parent is None:
        unit.gave_back()
    elif unit is not None and transaction.nested:
        unit.forget_ended_savepoints()
        if unit.reader is not None:
            unit.reader.let_go_if_idle()


def _before_commit(session: Session) -> None:
    unit = unit_of(session)
    if unit is not None:
        unit.check_release()


def _after_commit(session: Session) -> None:
    # COMMIT has succeeded; what follows, before the pool has the connection back, cannot change that.
    unit = unit_of(session)
    if unit is not None and unit.awaits is not None and unit.awaits[0] == "COMMIT":
        unit.answered = True
        unit.awaits = ("ROLLBACK", time.monotonic())  # the pool's, which asyncmy sends
