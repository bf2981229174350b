"""Work that waits for the COMMITs of several databases."""

from __future__ import annotations

from typing import TypeVar

from transact._core.hooks import Hook, Hooks
from transact._sqlalchemy.runtime import RUNTIMES
from transact.errors import NoTransaction

H = TypeVar("H", bound=Hook)


class AfterAll:
    """One hook, registered with several transactions: the last of them to commit calls it."""

    __slots__ = ("_hook", "_missing")

    def __init__(self, hook: Hook, transactions: int) -> None:
        self._hook = hook
        self._missing = transactions

    def __call__(self) -> object:
        """One more has committed."""
        self._missing -= 1
        return self._hook() if self._missing == 0 else None

    def __repr__(self) -> str:
        return f"<after_all_commits {self._hook!r}>"


def after_all_commits(hook: H, *, critical: bool = False) -> H:
    """Run ``hook()``, sync or async, once, when every transaction that is open here has committed, of whatever database.

    If one of them is rolled back, or its outcome is unknown, the hook never runs. It belongs to the innermost transaction or
    savepoint of each database, as an ``after_commit`` hook would; with one database it is just that. In a request it also
    waits for the databases that are used later. ``critical``: as for ``Transaction.after_commit``. Returns ``hook``, so it can
    decorate. Raises ``NoTransaction`` if no transaction is open.
    """
    scopes = [scope for runtime in list(RUNTIMES) if (scope := runtime.innermost()) is not None]
    for scope in scopes:
        scope._unit.runtime.check_hook(hook)
    if not scopes:
        raise NoTransaction("no transaction of any database is open here; open one: async with db.transaction()")
    waiting = AfterAll(hook, len(scopes))
    for scope in scopes:
        scope.after_commit(waiting, critical=critical)
    return hook


def forget_after_all(hooks: Hooks) -> None:
    """Drop what waits for all: not all have committed."""
    hooks.after_commit = [hook for hook in hooks.after_commit if not isinstance(hook.call, AfterAll)]
