"""Several threads, and Ctrl-C: what happens beside a transaction loses nothing and leaves nothing behind."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from tests.conformance.tables import Stored, Word
from tests.conformance.test_commit import SLOW
from tests.engines import Observer
from tests.sync.in_place import sync_url
from transact import SyncDatabase, errors
from transact.events import Event, WaitedForConnection

pytestmark = pytest.mark.engines("sqlite", "pg18-psycopg", "mariadb")
SERVERS = pytest.mark.engines("pg18-psycopg", "mariadb")
SLEEP = {"postgresql": text("SELECT pg_sleep(20)"), "mysql": text("SELECT sleep(20)")}
SLEEPING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(20)'",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND info = 'SELECT sleep(20)'",
}
WAITS_AT_COMMIT = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def add(session: Session, word: str) -> None:
    session.execute(Word.__table__.insert().values(text=word))


@pytest.fixture
def db(database_url: str, tables: None, observer: Observer) -> Iterator[SyncDatabase]:
    with SyncDatabase(sync_url(database_url), pool_size=2, max_overflow=0, pool_timeout=10) as db:
        yield db
        assert db.engine.pool.checkedout() == 0
        assert not db._runtime.units
        until = time.monotonic() + 2  # a server takes its time to see that a client has gone
        while observer.idle_in_transaction() and time.monotonic() < until:
            time.sleep(0.01)
        assert observer.idle_in_transaction() == 0


# One session, two threads.


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def tried(call: Callable[[], None]) -> errors.TransactError | None:
    try:
        call()
    except errors.TransactError as error:
        return error
    return None


def own_savepoint(_: SyncDatabase, session: Session) -> AbstractContextManager[object]:
    return session.begin_nested()


def savepoint(db: SyncDatabase, _: Session) -> AbstractContextManager[object]:
    return db.savepoint()


def no_savepoint(*_: object) -> AbstractContextManager[object]:
    return nullcontext()


Inside = Callable[[SyncDatabase, Session], AbstractContextManager[object]]


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("inside", [no_savepoint, savepoint, own_savepoint])
def test_a_statement_that_comes_while_the_block_ends_is_a_part_of_it_or_refused_and_nothing_is_left(
    db: SyncDatabase, stored: Stored, inside: Inside
) -> None:
    with ThreadPoolExecutor(1) as other:
        for n in range(150 if inside is no_savepoint else 60):
            ended, late = meeting(db, other, n, inside)
            words = {word.partition(" ")[2] for word in stored() if word.startswith(f"{n} ")}
            assert isinstance(ended, errors.ConcurrentUse | None)
            assert isinstance(late, errors.TransactionEnded | errors.ConcurrentUse | None)
            if ended is not None:
                assert words == set()
            else:
                assert words == ({"first"} if late is not None else {"first", "late"})
            assert db.engine.pool.checkedout() == 0


def meeting(
    db: SyncDatabase, other: ThreadPoolExecutor, n: int, inside: Inside
) -> tuple[errors.TransactError | None, ...]:
    """What comes of a block that ends and of a statement of another thread, at the same time or nearly so."""
    meet = threading.Barrier(2)
    running = []

    def use(session: Session) -> None:
        meet.wait(10)
        add(session, f"{n} late")

    def block() -> None:
        with db.transaction() as session, inside(db, session):
            add(session, f"{n} first")
            running.append(other.submit(tried, lambda: use(session)))
            meet.wait(10)
            for _ in range(n % 50):  # the two come together in each way that there is
                pass

    return tried(block), running[0].result(10)


class Leaving:
    """A thread that leaves a savepoint, and stands still in the middle of that."""

    def __init__(self, db: SyncDatabase, inside: Inside, end: str) -> None:
        self.db = db
        self.inside = inside
        self.end = end
        self.reached = threading.Event()
        self.go_on = threading.Event()
        event.listen(db.engine, end, self._wait, once=True)

    def _wait(self, *_: object) -> None:
        self.reached.set()
        self.go_on.wait(10)

    def leave(self, session: Session) -> None:
        with suppress(LookupError), self.inside(self.db, session):
            add(session, "inner")
            if self.end == "rollback_savepoint":
                raise LookupError


ends = pytest.mark.parametrize("end", ["release_savepoint", "rollback_savepoint"])
savepoints = pytest.mark.parametrize("inside", [savepoint, own_savepoint])


@ends
@savepoints
def test_a_use_beside_the_end_of_a_savepoint_is_refused_and_the_transaction_commits(
    db: SyncDatabase, stored: Stored, inside: Inside, end: str
) -> None:
    leaving = Leaving(db, inside, end)
    with ThreadPoolExecutor(1) as other, db.transaction() as session:
        left = other.submit(copy_context().run, leaving.leave, session)
        assert leaving.reached.wait(10)
        with pytest.raises(errors.ConcurrentUse):
            add(session, "beside")
        with pytest.raises(errors.ConcurrentUse), db.savepoint():
            pass
        leaving.go_on.set()
        left.result(10)
        add(session, "after")
    assert stored() == ({"inner", "after"} if end == "release_savepoint" else {"after"})


@ends
@savepoints
def test_a_block_that_ends_beside_the_end_of_a_savepoint_leaves_its_rollback_to_that(
    db: SyncDatabase, stored: Stored, inside: Inside, end: str
) -> None:
    leaving = Leaving(db, inside, end)
    with ThreadPoolExecutor(1) as other:
        with pytest.raises(errors.ConcurrentUse), db.transaction() as session:
            add(session, "lost")
            left = other.submit(copy_context().run, tried, lambda: leaving.leave(session))
            assert leaving.reached.wait(10)
        assert db.engine.pool.checkedout() == 1
        leaving.go_on.set()
        own_error_goes_on = end == "rollback_savepoint" and inside is savepoint
        assert isinstance(left.result(10), type(None) if own_error_goes_on else errors.TransactionEnded)
    assert stored() == set()


@SERVERS
def test_a_block_that_fails_beside_a_statement_of_another_thread_leaves_its_rollback_to_that_thread(
    db: SyncDatabase, stored: Stored, observer: Observer
) -> None:
    dialect = db.engine.dialect.name
    short = text("SELECT pg_sleep(0.3)" if dialect == "postgresql" else "SELECT sleep(0.3)")
    started = threading.Event()
    with ThreadPoolExecutor(1) as other:

        def fail() -> None:
            with db.transaction() as session:
                add(session, "lost")
                event.listen(db.engine, "before_cursor_execute", lambda *_: started.set(), once=True)
                uses.append(other.submit(session.execute, short))
                started.wait(10)
                raise LookupError

        uses: list = []
        with pytest.raises(LookupError):
            fail()
        with pytest.raises(errors.TransactionEnded):
            uses[0].result(10)
    assert stored() == set()


def test_a_wait_for_a_connection_that_was_served_is_told(database_url: str, tables: None) -> None:
    with SyncDatabase(sync_url(database_url), pool_size=1, max_overflow=0) as db, ThreadPoolExecutor(1) as other:
        seen: list[Event] = []

        def use() -> None:
            with db.transaction() as session:
                session.execute(select(Word))

        with db.transaction() as session:
            session.execute(select(Word))
            db.listen(seen.append)
            waiting = other.submit(use)
            while not db.engine.pool._line.waiting:
                time.sleep(0.001)
        waiting.result(10)
        assert [event.served for event in seen if isinstance(event, WaitedForConnection)] == [True]


@SERVERS
def test_who_gets_a_lock_in_time_goes_on(db: SyncDatabase, stored: Stored, observer: Observer) -> None:
    observer.execute("INSERT INTO words (text) VALUES ('row')")
    observer.execute("BEGIN")
    observer.execute("UPDATE words SET text = text")

    def wait_for_it() -> None:
        with db.transaction(timeout=60, lock_timeout=20) as session:
            session.execute(text("UPDATE words SET text = 'mine'"))

    with ThreadPoolExecutor(1) as other:
        waiter = other.submit(wait_for_it)
        time.sleep(0.1)
        assert not waiter.done()
        observer.execute("COMMIT")
        waiter.result(10)
    assert stored() == {"mine"}


# Closing the database beside a block.


def test_a_block_that_runs_while_the_database_is_closed_commits_and_its_connection_is_closed_then(
    db: SyncDatabase, stored: Stored
) -> None:
    with ThreadPoolExecutor(1) as other, db.transaction() as session:
        add(session, "word")
        closed = db.engine.pool
        other.submit(db.close).result(10)  # waits for nobody who still works
        with pytest.raises(errors.UsageError, match="is closed"):
            db.transaction()
        add(session, "another")
    assert stored() == {"word", "another"}
    assert closed.checkedin() == 0
    db.open()


def test_a_connection_that_comes_back_in_the_moment_of_closing_is_closed(
    db: SyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, closed = threading.Event(), threading.Event()
    pool = db.engine.pool
    put = pool._pool.put

    def late(*arguments: object) -> None:
        came.set()
        closed.wait(10)
        put(*arguments)

    monkeypatch.setattr(pool._pool, "put", late)
    with ThreadPoolExecutor(1) as other:
        used = other.submit(db.ping)
        assert came.wait(10)
        db.close()
        closed.set()
        used.result(10)
    assert pool.checkedin() == 0
    db.open()


# Ctrl-C.


@contextmanager
def ctrl_c_once(*asked: object, observer: Observer) -> Iterator[None]:
    """Send SIGINT to this thread as soon as the observer is told so."""
    main = threading.get_ident()

    def send() -> None:
        until = time.monotonic() + 10
        while not observer.scalar(*asked) and time.monotonic() < until:
            time.sleep(0.005)
        signal.pthread_kill(main, signal.SIGINT)

    with pytest.MonkeyPatch.context() as _:
        usual = signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            thread.join()
            signal.signal(signal.SIGINT, usual)


@SERVERS
def test_ctrl_c_in_a_statement_rolls_back_and_goes_on_as_it_is(
    db: SyncDatabase, stored: Stored, observer: Observer
) -> None:
    told: list[object] = []
    dialect = db.engine.dialect.name
    with pytest.raises(KeyboardInterrupt), ctrl_c_once(SLEEPING[dialect], observer=observer):  # noqa: SIM117
        with db.transaction() as session:
            db.after_rollback(lambda error: told.append(type(error)))
            add(session, "lost")
            session.execute(SLEEP[dialect])
    assert told == [KeyboardInterrupt]
    with db.transaction() as session:
        add(session, "next")
    assert stored() == {"next"}


@pytest.mark.engines("pg18-psycopg")
def test_ctrl_c_in_a_commit_goes_on_as_it_is_and_says_that_the_outcome_is_unknown(
    db: SyncDatabase, stored: Stored, observer: Observer
) -> None:
    for statement in SLOW:
        observer.execute(statement)
    observer.scalar("SELECT pg_advisory_lock(7)")
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt) as caught, ctrl_c_once(WAITS_AT_COMMIT, observer=observer):  # noqa: SIM117
        with db.transaction() as session:
            db.after_completion(lambda outcome: told.append(outcome.value))
            add(session, "word")
    observer.scalar("SELECT pg_advisory_unlock(7)")
    assert told == ["unknown"]
    assert "the data may be stored or not" in caught.value.__notes__[0]


@pytest.mark.parametrize("part", ["transaction", "savepoint"])
def test_ctrl_c_in_a_rollback_is_not_swallowed(db: SyncDatabase, stored: Stored, part: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt  # as Python's handler of the signal does

    event.listen(db.engine, "rollback" if part == "transaction" else "rollback_savepoint", interrupt, once=True)

    def fail() -> None:
        with db.transaction() as session:
            add(session, "lost")
            with db.savepoint():
                add(session, "inner")
                raise LookupError

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert stored() == set()
    with db.transaction() as session:
        add(session, "next")
    assert stored() == {"next"}
