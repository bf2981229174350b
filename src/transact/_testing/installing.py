"""How an engine is made to lend the test's connection: another pool, and a dialect that leaves the outer transaction alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from transact._sqlalchemy.plain import AnyEngine, driver_connection, plain_engine
from transact._sqlalchemy.pool import TransactPool, pool_class
from transact._testing.lent import LentConnection, LentModes
from transact._testing.said import LOST
from transact._testing.shared import SharedConnection

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime

#: What listens to the pool in production and has something to do here. Not "connect": nothing is connected.
_HEARD = ("checkout", "checkin", "reset", "invalidate", "soft_invalidate", "detach", "close")
_MISSING = object()


def lend(engine: AnyEngine, shared: SharedConnection, runtime: Runtime) -> Callable[[], None]:
    """Let ``engine`` lend ``shared`` from now on; return what puts everything back."""
    plain, dialect = plain_engine(engine), engine.dialect
    original = plain.pool
    autocommit = getattr(dialect, "_on_connect_isolation_level", None) == "AUTOCOMMIT"

    def make() -> LentConnection:
        with shared.faults.at_connect(dialect, plain.url):
            return LentConnection(shared, runtime, autocommit=autocommit)

    plain.pool = _pool_like(original, make, runtime, dialect)
    taught = _teach(dialect)
    modes = runtime.modes
    if modes is not None and dialect.name != "sqlite":  # whose PRAGMA a lent connection understands
        runtime.modes = LentModes()
    lents = plain.pool

    def put_back() -> None:
        plain.pool.dispose()
        lents.dispose()  # the application may have closed its engine, which then made another pool
        plain.pool = original
        runtime.modes = modes
        for name, method in taught.items():
            if method is _MISSING:
                delattr(dialect, name)
            else:
                setattr(dialect, name, method)

    return put_back


def _pool_like(original: Any, make: Callable[[], Any], runtime: Runtime, dialect: Any) -> TransactPool:
    size: dict[str, Any] = {"pool_size": 20, "max_overflow": 10}
    if isinstance(original, TransactPool):
        size = {"pool_size": original.size(), "max_overflow": original._max_overflow, "timeout": original._timeout}
    pool = pool_class(runtime)(make, dialect=dialect, **size)
    for name in _HEARD:
        for listener in getattr(original.dispatch, name):
            event.listen(pool, name, listener)
    return pool


def _teach(dialect: Any) -> dict[str, Any]:
    """Replace the methods of ``dialect`` that would talk to the driver of the level, of reading only or of being lost."""
    is_disconnect = dialect.is_disconnect

    def set_level(lent: Any, level: str) -> None:
        lent.set_isolation(level)

    def reset_level(lent: Any) -> None:
        lent.set_isolation(None)

    def get_level(lent: Any) -> Any:
        return lent.isolation or ("AUTOCOMMIT" if lent.autocommit else dialect.default_isolation_level)

    def set_read_only(lent: Any, value: bool) -> None:  # noqa: FBT001  # SQLAlchemy's signature
        lent.read_only = value

    def is_lost(error: Any, connection: Any, cursor: Any) -> bool:
        return getattr(error, LOST, False) or is_disconnect(error, connection, cursor)

    methods: dict[str, Any] = {
        "set_isolation_level": set_level,
        "reset_isolation_level": reset_level,
        "get_isolation_level": get_level,
        "is_disconnect": is_lost,
        "get_driver_connection": driver_connection,
    }
    if hasattr(dialect, "set_readonly"):
        methods |= {
            "set_readonly": set_read_only,
            "get_readonly": lambda lent: lent.read_only,
            "set_deferrable": lambda _lent, _value: None,
            "get_deferrable": lambda _lent: False,
        }
    before = {name: vars(dialect).get(name, _MISSING) for name in methods}
    for name, method in methods.items():
        setattr(dialect, name, method)
    return before
