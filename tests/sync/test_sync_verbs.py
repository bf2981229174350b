"""What the sync face does by itself: loops, functions, threads, waiting, and what it refuses."""

import functools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session
from sqlmodel import Session as SQLModelSession

from tests.conformance.tables import Stored, Word
from tests.engines import Observer
from tests.sync.in_place import sync_url
from transact import Database, Isolation, Propagation, Retry, SyncDatabase, errors
from transact.events import Committed, Event, RolledBack

pytestmark = pytest.mark.engines("sqlite", "pg18-psycopg", "mariadb")
QUICK = Retry(3, base=0, on=(LookupError,))


def add(session: Session, word: str) -> None:
    session.execute(Word.__table__.insert().values(text=word))


@pytest.fixture
def db(database_url: str, tables: None) -> Iterator[SyncDatabase]:
    with SyncDatabase(sync_url(database_url), pool_size=2, max_overflow=0) as db:
        yield db
        assert db.engine.pool.checkedout() == 0
        assert not db._runtime.units


# Loops and functions.


def test_a_loop_of_attempts_ends_with_the_first_that_succeeds_and_each_has_a_session_of_its_own(
    db: SyncDatabase, stored: Stored
) -> None:
    sessions: list[Session] = []
    for attempt in db.attempts(retry=QUICK):
        with attempt as session:
            sessions.append(session)
            add(session, "word")
            if len(sessions) < 3:
                raise LookupError
    assert len(set(map(id, sessions))) == 3
    assert stored() == {"word"}


@pytest.mark.engines("pg18-psycopg")
def test_a_commit_that_fails_with_a_serialization_failure_is_tried_again(db: SyncDatabase, stored: Stored) -> None:
    number = 0
    for attempt in db.attempts(retry=QUICK, isolation=Isolation.SERIALIZABLE):
        with attempt as session:
            number += 1
            count = len(session.scalars(select(Word.text)).all())
            add(session, f"{number} after {count}")
            if number == 1:
                with ThreadPoolExecutor(1) as other:
                    other.submit(both, db).result()
    assert number == 2
    assert stored() == {"other after 0", "2 after 1"}


def both(db: SyncDatabase) -> None:
    with db.transaction(isolation=Isolation.SERIALIZABLE) as session:
        add(session, f"other after {len(session.scalars(select(Word.text)).all())}")


def test_an_attempt_that_is_left_by_return_or_break_and_fails_is_not_taken_for_success(db: SyncDatabase) -> None:
    def fail() -> None:
        raise LookupError

    def returning() -> str:
        for attempt in db.attempts(retry=QUICK):
            with attempt:
                db.before_commit(fail)
                return "success"
        return "none"

    with pytest.raises(LookupError) as caught:
        returning()
    assert "It was not tried again" in caught.value.__notes__[0]
    with pytest.raises(LookupError):
        for attempt in db.attempts(retry=QUICK):
            with attempt:
                db.before_commit(fail)
                break


def test_attempts_are_exhausted_from_the_last_error(db: SyncDatabase, stored: Stored) -> None:
    def failing(session: Session) -> None:
        add(session, "word")
        raise LookupError

    with pytest.raises(errors.RetriesExhausted) as caught:
        db.run(failing, retry=QUICK)
    assert caught.value.attempts == 3
    assert isinstance(caught.value.__cause__, LookupError)
    assert stored() == set()


def test_a_decorated_function_or_method_is_called_without_the_session(db: SyncDatabase, stored: Stored) -> None:
    class Service:
        @db.transactional(label="service")
        def add(self, session: Session, word: str) -> str:
            add(session, word)
            return f"{word} in {db.current.label}"

    assert Service().add("word") == "word in service"
    assert stored() == {"word"}


def test_what_cannot_be_decorated_says_why(db: SyncDatabase) -> None:
    async def asynchronous(session: Session) -> None: ...

    def generator(session: Session) -> Iterator[int]:
        yield 1

    def bare() -> None: ...

    for f, why in ((asynchronous, "`async def`"), (generator, "generator"), (bare, "no parameter for the session")):
        with pytest.raises(errors.UsageError, match=why):
            db.transactional(f)


# Hooks and events.


def test_an_async_hook_is_refused_and_says_so(db: SyncDatabase) -> None:
    async def hook() -> None: ...

    for register in (db.before_commit, db.after_commit, db.after_rollback, db.after_completion):
        with db.transaction(), pytest.raises(errors.UsageError, match="async hook"):
            register(hook)


def test_an_awaitable_out_of_a_hook_before_the_commit_rolls_back(db: SyncDatabase, stored: Stored) -> None:
    async def awaitable() -> None: ...

    def store_and_register() -> None:
        with db.transaction() as session:
            add(session, "word")
            db.before_commit(functools.partial(awaitable))

    with pytest.raises(errors.UsageError, match="async hook"):
        store_and_register()
    assert stored() == set()


def test_after_a_savepoint_was_rolled_back_with_a_hook_the_transaction_is_the_current_one_again(
    db: SyncDatabase, stored: Stored
) -> None:
    seen: list[bool] = []
    with db.transaction() as session:
        with pytest.raises(LookupError), db.savepoint():
            db.after_rollback(lambda _: seen.append(db.in_transaction))
            raise LookupError
        assert db.current.session is session
        add(session, "word")
    assert seen == [False]
    assert stored() == {"word"}


def test_events_tell_of_commit_and_rollback(db: SyncDatabase) -> None:
    seen: list[Event] = []
    db.listen(seen.append)
    with db.transaction() as session:
        add(session, "word")
    with pytest.raises(LookupError), db.transaction() as session:
        add(session, "other")
        raise LookupError
    assert [type(e) for e in seen if isinstance(e, Committed | RolledBack)] == [Committed, RolledBack]


# Threads.


def test_two_threads_in_one_session_are_refused_and_the_session_stays_usable(db: SyncDatabase, stored: Stored) -> None:
    with db.transaction() as session:
        inside, leave = threading.Event(), threading.Event()

        def slow(*_: object) -> None:
            inside.set()
            leave.wait(30)

        event.listen(session, "do_orm_execute", slow, once=True)
        with ThreadPoolExecutor(1) as other:
            running = other.submit(session.execute, select(1))
            assert inside.wait(30)
            with pytest.raises(errors.ConcurrentUse, match="two threads"):
                session.execute(select(2))
            leave.set()
            running.result()
        add(session, "word")
    assert stored() == {"word"}


def test_each_thread_has_a_transaction_of_its_own_and_waits_for_its_connection_in_turn(
    db: SyncDatabase, stored: Stored
) -> None:
    def work(number: int) -> None:
        with db.transaction() as session:
            add(session, f"word {number}")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(60)))
    assert len(stored()) == 60


def test_a_wait_for_a_connection_is_bounded_and_names_the_holders(database_url: str) -> None:
    with SyncDatabase(sync_url(database_url), pool_size=1, max_overflow=0, pool_timeout=0.05) as db:
        with db.transaction(label="holder", read_only=True, isolation=Isolation.SERIALIZABLE) as session:
            session.execute(select(1))

            def wait() -> None:
                with db.transaction(read_only=True, isolation=Isolation.SERIALIZABLE) as other:
                    other.execute(select(1))

            with ThreadPoolExecutor(1) as other, pytest.raises(errors.PoolTimeout) as caught:
                other.submit(wait).result()
        assert [holder.label for holder in caught.value.holders] == ["holder"]


def test_a_transaction_that_needs_itself_to_end_first_is_refused_at_once(database_url: str) -> None:
    with SyncDatabase(sync_url(database_url), pool_size=1, max_overflow=0) as db, db.transaction() as session:
        session.execute(select(1))
        with pytest.raises(errors.PoolSelfDeadlock), db.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
            inner.execute(select(1))


# Limits and loss.


def test_a_deadline_that_has_passed_stores_nothing(db: SyncDatabase, stored: Stored) -> None:
    def late() -> None:
        with db.transaction(timeout=0.05) as session:
            add(session, "word")
            time.sleep(0.1)

    with pytest.raises(errors.TransactionTimeout):
        late()
    assert stored() == set()


@pytest.mark.engines("pg18-psycopg", "mariadb")
def test_a_connection_that_the_server_has_ended_is_replaced_and_a_transaction_on_it_is_not_committed(
    db: SyncDatabase, observer: Observer, stored: Stored
) -> None:
    def session_of(session: Session) -> int:
        name = "pg_backend_pid" if db.engine.dialect.name == "postgresql" else "connection_id"
        return int(session.scalar(text(f"SELECT {name}()")))

    def end(number: int) -> None:
        kill = "SELECT pg_terminate_backend({})" if db.engine.dialect.name == "postgresql" else "KILL {}"
        observer.execute(kill.format(number))
        time.sleep(0.2)  # the server's good-bye is on its way; nothing here can be waited for

    with db.transaction() as session:
        idle = session_of(session)
    end(idle)
    with db.transaction() as session:
        assert session_of(session) != idle

    def commit_on_it() -> None:
        with db.transaction() as session:
            number = session_of(session)
            add(session, "word")
            end(number)

    with pytest.raises(errors.ConnectionLost):
        commit_on_it()
    assert stored() == set()


# Making one.


@pytest.mark.parametrize(
    ("url", "instead"),
    [
        ("postgresql+asyncpg://a@b/c", "write postgresql+psycopg://… instead, or make it a Database"),
        ("mysql+asyncmy://a@b/c", "write mysql+pymysql://… instead, or make it a Database"),
        ("sqlite+aiosqlite:///c", "write sqlite+pysqlite://… instead, or make it a Database"),
        ("postgres://a@b/c", "write postgresql+psycopg://… instead"),
        ("oracle://a@b/c", "the drivers are postgresql+psycopg"),
    ],
)
@pytest.mark.engines("sqlite")
def test_a_driver_of_the_other_kind_is_refused_with_what_to_write(url: str, instead: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        SyncDatabase(url)
    assert instead in str(caught.value)


@pytest.mark.parametrize("url", ["mysql+pymysql://a@b/c", "sqlite:///c", "sqlite+pysqlite:///c"])
def test_the_async_database_says_which_kind_takes_a_sync_driver(url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="or make it a SyncDatabase"):
        Database(url)


#: As on a server that is not strict by itself, without a word of it.
LAX = "EXECUTE IMMEDIATE CONCAT('SET SESSION sql_', 'mode = '''', @app = 7')"


@pytest.mark.engines("mariadb")
@pytest.mark.parametrize(("command", "strict"), [(LAX, True), ("SET SESSION SQL_MODE = '', @app = 7", False)])
def test_pymysql_stays_strict_with_an_init_command_of_ones_own_that_says_nothing_of_it(
    database_url: str, tables: None, stored: Stored, command: str, *, strict: bool
) -> None:
    options = {"connect_args": {"init_command": command}}
    refused = pytest.raises(errors.InvalidData) if strict else nullcontext()
    db = SyncDatabase(sync_url(database_url), engine_options=options)
    with db, refused, db.transaction() as session:
        assert session.scalar(text("SELECT @app")) == 7
        add(session, "x" * 101)
    assert stored() == (set() if strict else {"x" * 100})


class Shouting(SQLModelSession):
    def shout(self) -> list[str]:
        return [word.upper() for word in self.scalars(select(Word.text))]


def test_a_session_class_of_ones_own_is_guarded_with_its_own_methods(
    database_url: str, tables: None, stored: Stored
) -> None:
    with SyncDatabase(sync_url(database_url), session_class=Shouting) as db:
        with db.transaction() as session:
            add(session, "word")
            assert session.shout() == ["WORD"]
            assert session.exec(select(Word.text)).all()[0][0] == "word"
            with pytest.raises(errors.UsageError):
                session.commit()
        for use in (session.shout, lambda: session.exec(select(Word.text))):
            with pytest.raises(errors.TransactionEnded):
                use()
    assert stored() == {"word"}


def test_a_closed_database_says_how_to_open_it_and_opens_again(database_url: str) -> None:
    db = SyncDatabase(sync_url(database_url))
    db.close()
    with pytest.raises(errors.UsageError, match="open it first: with db"):
        db.transaction()
    with db:
        db.ping()


def test_every_use_of_an_ended_session_says_so_and_takes_no_connection(db: SyncDatabase) -> None:
    with db.transaction() as session:
        add(session, "word")
    for use in (lambda: session.execute(select(1)), lambda: session.add(Word(text="x")), session.flush, session.commit):
        with pytest.raises(errors.TransactionEnded):
            use()
    assert db.engine.pool.checkedout() == 0
