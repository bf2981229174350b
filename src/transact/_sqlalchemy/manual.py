"""The COMMIT of a manual session, which its user sends, and which runs shielded like one of the library's own."""

from __future__ import annotations

from functools import partial

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from transact._sqlalchemy.ending import commit_by_hand
from transact._sqlalchemy.session import unit_of
from transact._sqlalchemy.unit import Unit


def shield_commits(unit: Unit) -> None:
    """Shield every COMMIT of a manual session: of ``commit()``, and of the end of a ``begin()`` block."""
    event.listen(unit.plain, "after_transaction_create", _shield)


def _shield(_session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        transaction.__class__ = _ManualTransaction


class _ManualTransaction(SessionTransaction):
    """What begins with the first statement of a manual session, or with its ``begin()``."""

    def commit(self, _to_root: bool = False) -> None:  # noqa: FBT001, FBT002  # SQLAlchemy's
        unit = unit_of(self.session)
        if unit is None or not self.is_active:
            super().commit(_to_root)
            return
        self.session.flush()  # which may fail harmlessly, and is cancelled like any statement
        commit = partial(super().commit, _to_root)
        unit.runtime.shield(unit.root, commit_by_hand, unit, commit)
