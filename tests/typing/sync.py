"""What type checkers make of the verbs of a `SyncDatabase`. mypy and pyright read this; nobody runs it."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable
from typing import Any, assert_type

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from transact import Retry, SyncDatabase

db = SyncDatabase("sqlite://")
assert_type(SyncDatabase.from_env(), SyncDatabase)
assert_type(db.engine, Engine)
assert_type(db.session_factory, sessionmaker[Any])


@db.transactional
def plain(session: Session, name: str, *, age: int = 3) -> list[str]:
    return [name] * age


@db.transactional(retry=Retry(5))
def with_options(session: Session, name: str) -> str:
    return name


class Service:
    @db.transactional
    def method(self, session: Session, name: str) -> str:
        return name


def calls() -> None:
    assert_type(plain("a", age=2), list[str])
    assert_type(with_options("a"), str)
    assert_type(Service().method("a"), str)
    plain(3)  # type: ignore[arg-type]
    with db.transaction() as session, db.savepoint() as same:
        assert_type(session, Session)
        assert_type(same, Session)
    for attempt in db.attempts(retry=Retry(5)):
        with attempt as session:
            assert_type(session, Session)
    assert_type(db.current.session, Session)

    def work(session: Session, number: int) -> float:
        return number / 2

    assert_type(db.run(work, 3), float)
    hook: Callable[[], None] = lambda: None  # noqa: E731
    db.after_commit(hook)
