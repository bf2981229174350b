"""What `Database` takes, what it refuses and says instead, and that it never shows a password."""

import copy
import importlib.util
import logging
import traceback

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from transact import Database, Isolation, Retry, errors

URL = "postgresql+asyncpg://app@localhost/shop"
SECRET = "s3cret"  # noqa: S105  # the test's own


def refused(*args: object, **arguments: object) -> str:
    with pytest.raises(errors.ConfigurationError) as caught:
        Database(*args, **arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("postgresql://app@localhost/shop", "postgresql+asyncpg://"),
        ("postgres://app@localhost/shop", "postgresql+asyncpg://"),
        ("postgresql+psycopg2://app@localhost/shop", "postgresql+asyncpg://"),
        ("mysql://app@localhost/shop", "mysql+asyncmy://"),
        ("mysql+pymysql://app@localhost/shop", "mysql+asyncmy://"),
        ("mariadb://app@localhost/shop", "mariadb+asyncmy://"),
        ("sqlite:///shop.db", "sqlite+aiosqlite://"),
        ("oracle://app@localhost/shop", "postgresql+asyncpg"),
        ("nonsense+driver://app@localhost/shop", "sqlite+aiosqlite"),
    ],
)
def test_a_driver_that_cannot_work_is_refused_with_what_to_write_instead(url: str, hint: str) -> None:
    said = refused(url)
    assert url.partition("://")[0] in said
    assert hint in said


@pytest.mark.parametrize(
    ("url", "install"),
    [
        (URL, "transact[postgresql]"),
        ("postgresql+psycopg://localhost/shop", "transact[psycopg]"),
        ("mysql+asyncmy://localhost/shop", "transact[mysql]"),
        ("mariadb+asyncmy://localhost/shop", "transact[mysql]"),
        ("sqlite+aiosqlite:///shop.db", "transact[sqlite]"),
    ],
)
def test_a_driver_that_is_not_installed_is_refused_with_what_to_install(
    url: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert install in refused(url)


@pytest.mark.parametrize("url", ["", "shop", "localhost:5432/shop", "://", None, 3, b"x", "postgresql+asyncpg"])
def test_what_is_no_url_is_refused_with_what_one_looks_like(url: object) -> None:
    assert "postgresql+asyncpg://app@localhost/shop" in refused(url)


MALFORMED = [
    f"postgresql+asyncpg://app:{SECRET}@localhost:port/shop",
    f"postgresql+asyncpg//app:{SECRET}@localhost/shop",
    f"postgresql+asyncpg:app:{SECRET}@localhost/shop",
    f"app:{SECRET}@localhost/shop",
    f"postgresql://app:{SECRET}@localhost/shop",
    f"nonsense://app:{SECRET}@localhost/shop",
    f"://app:{SECRET}@localhost/shop",
    f"postgresql+asyncpg://app:{SECRET}@[::1/shop",
    f"postgresql+asyncpg://app:{SECRET}/x@localhost:x/shop",
    f"postgresql+asyncpg://app:{SECRET}@{SECRET}@localhost:99999999/shop",
    f"postgresql+asyncpg://app:x/{SECRET}@localhost/shop",
    f"postgresql+asyncpg://app:x?{SECRET}@localhost/shop",
    f"postgresql+asyncpg://app:x#{SECRET}@localhost/shop",
    f"post gresql://app:{SECRET}@localhost/shop",
    f"postgresql+asyncpg://app:1/{SECRET}@localhost/shop",
    f"postgresql+asyncpg://app:1?{SECRET}=x@localhost/shop",
    f"postgresql+asyncpg://app:1?x={SECRET}@localhost/shop",
    f"postgresql+asyncpg://app:x@{SECRET}@localhost/shop",
    f"postgresql+asyncpg://localhost/shop?user=app&password={SECRET}",
    f"postgresql+asyncpg://app@localhost/shop?password={SECRET}",
    f" postgresql+asyncpg://app:{SECRET}@localhost/shop",
    f"postgresql+{SECRET}",
]


def everything_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__) + repr(error.__cause__)


@pytest.mark.parametrize("url", MALFORMED)
def test_no_error_repeats_the_password_of_a_malformed_url(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        try:
            db = Database(url)
        except errors.ConfigurationError as error:
            said = "".join(traceback.format_exception_only(error)) + repr(error) + str(error.args)
            cause = error.__cause__
            while cause is not None:
                said += repr(cause)
                cause = cause.__cause__
        else:
            said = repr(db) + str(db)
    assert SECRET not in said
    assert SECRET not in caplog.text


@pytest.mark.parametrize("password", [SECRET, "s3cret%40x", "s3cret%2Fy", "s3cret%3A", "s3cret%3Fx"])
@pytest.mark.parametrize("echo", [False, True])
async def test_neither_repr_nor_log_nor_a_failed_connection_shows_the_password(
    password: str, caplog: pytest.LogCaptureFixture, *, echo: bool
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with Database(f"postgresql+asyncpg://app:{password}@127.0.0.1:1/shop", echo=echo) as db:
            assert SECRET not in repr(db) + str(db) + repr(db.engine) + repr(db.engine.url)
            assert "***" in repr(db)
            with pytest.raises(errors.DatabaseUnavailable) as caught:
                await db.ping()
            with pytest.raises(errors.DatabaseUnavailable) as in_block:
                async with db.transaction() as session:
                    await session.execute(text("SELECT 1"))
    for error in (caught.value, in_block.value):
        assert SECRET not in str(error) + repr(error)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        {"pool_size": 0},
        {"pool_size": -1},
        {"pool_size": None},
        {"pool_size": "5"},
        {"pool_size": 2.5},
        {"pool_size": True},
        {"max_overflow": -1},
        {"max_overflow": None},
        {"max_overflow": True},
        {"pool_timeout": -0.1},
        {"pool_timeout": None},
        {"pool_timeout": float("inf")},
        {"pool_timeout": float("nan")},
        {"pool_timeout": True},
        {"pool_timeout": "30"},
        {"max_waiting": -1},
        {"max_waiting": True},
        {"max_waiting": 1.5},
        {"max_waiting": "5"},
        {"isolation": "SERIALIZABLE"},
        {"session_class": Session},
        {"session_class": AsyncSession.__name__},
        {"session_class": None},
    ],
    ids=repr,
)
def test_a_value_that_cannot_work_is_refused_by_name(arguments: dict) -> None:
    said = refused(URL, **arguments)
    assert next(iter(arguments)) in said
    assert "write" in said


def test_max_waiting_beside_a_pool_of_ones_own_is_refused_and_not_ignored() -> None:
    assert "max_waiting" in refused(URL, max_waiting=5, engine_options={"poolclass": NullPool})


def test_from_env_says_how_many_may_wait(env: pytest.MonkeyPatch) -> None:
    env.setenv("TRANSACT_MAX_WAITING", "7")
    assert Database.from_env()._runtime.max_waiting == 7
    env.setenv("TRANSACT_MAX_WAITING", "-7")
    with pytest.raises(errors.ConfigurationError, match="max_waiting"):
        Database.from_env()


@pytest.mark.parametrize("options", [{"poolsize": 3}, {"pool_size": 3, "nonsense": 1}])
def test_engine_options_that_sqlalchemy_does_not_know_are_refused(options: dict) -> None:
    assert "engine_options" in refused(URL, engine_options=options)


def test_the_pool_has_the_tuned_defaults_and_takes_others() -> None:
    pool = Database(URL).engine.pool
    assert (pool.size(), pool._max_overflow, pool.timeout()) == (20, 10, 30.0)
    pool = Database(URL, pool_size=1, max_overflow=0, pool_timeout=0).engine.pool
    assert (pool.size(), pool._max_overflow, pool.timeout()) == (1, 0, 0)
    pool = Database(URL, engine_options={"pool_size": 3, "pool_recycle": 60}).engine.pool
    assert (pool.size(), pool._recycle) == (3, 60)


def test_parameters_are_hidden_unless_engine_options_say_otherwise() -> None:
    assert Database(URL).engine.sync_engine.hide_parameters
    assert not Database(URL, engine_options={"hide_parameters": False}).engine.sync_engine.hide_parameters


def test_a_url_object_is_as_good_as_a_string() -> None:
    assert repr(Database(make_url(URL), name="shop")) == f"<Database 'shop' {URL}>"


def test_wrong_retries_are_refused() -> None:
    for arguments in ({"attempts": 0}, {"base": -1}, {"max_delay": -1}, {"deadline": 0}):
        with pytest.raises(errors.UsageError):
            Retry(**arguments)
    assert Retry(deadline=1) == Retry(deadline=1)


# From the environment.


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TRANSACT_URL", f"postgresql+asyncpg://app:{SECRET}@localhost/shop")
    return monkeypatch


def test_from_env_takes_the_names_of_the_arguments_in_upper_case(env: pytest.MonkeyPatch) -> None:
    for name, value in {
        "POOL_SIZE": "3",
        "MAX_OVERFLOW": "4",
        "POOL_TIMEOUT": "5.5",
        "ISOLATION": "SERIALIZABLE",
        "NAME": "shop",
        "ECHO": "false",
    }.items():
        env.setenv(f"TRANSACT_{name}", value)
    db = Database.from_env()
    pool = db.engine.pool
    assert (pool.size(), pool._max_overflow, pool.timeout(), db.name) == (3, 4, 5.5, "shop")
    assert db._runtime.defaults.isolation is Isolation.SERIALIZABLE
    assert SECRET not in repr(db)
    assert db.engine.url.password == SECRET


def test_from_env_keeps_the_defaults_of_what_is_not_set_and_arguments_win(env: pytest.MonkeyPatch) -> None:
    assert Database.from_env().engine.pool.size() == 20
    env.setenv("TRANSACT_POOL_SIZE", "3")
    assert Database.from_env(pool_size=7, name="mine").engine.pool.size() == 7


def test_from_env_takes_another_prefix(env: pytest.MonkeyPatch) -> None:
    env.setenv("SHOP_URL", URL)
    env.setenv("SHOP_POOL_SIZE", "2")
    assert Database.from_env("SHOP_").engine.pool.size() == 2


def test_from_env_without_a_url_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSACT_URL", raising=False)
    with pytest.raises(errors.ConfigurationError, match="TRANSACT_URL"):
        Database.from_env()


def test_a_url_that_is_given_need_not_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSACT_URL", raising=False)
    monkeypatch.setenv("TRANSACT_POOL_SIZE", "2")
    assert Database.from_env(url=URL).engine.pool.size() == 2


@pytest.mark.parametrize(
    "name",
    ["POOL_SIZE", "MAX_OVERFLOW", "POOL_TIMEOUT", "ISOLATION", "ECHO", "VERIFY_COMMIT", "MAX_WAITING", "TIMEOUT"],
)
def test_from_env_names_a_bad_variable_and_shows_no_value(env: pytest.MonkeyPatch, name: str) -> None:
    env.setenv(f"TRANSACT_{name}", "s3cret-nonsense")
    with pytest.raises(errors.ConfigurationError, match=f"TRANSACT_{name}") as caught:
        Database.from_env()
    assert SECRET not in everything_said(caught.value)


def test_from_env_names_every_bad_variable_at_once(env: pytest.MonkeyPatch) -> None:
    env.setenv("TRANSACT_POOL_SIZE", "many")
    env.setenv("TRANSACT_ECHO", "loud")
    with pytest.raises(errors.ConfigurationError, match=r"TRANSACT_POOL_SIZE.*TRANSACT_ECHO"):
        Database.from_env()


def test_from_env_names_the_variable_of_a_value_that_the_database_refuses(env: pytest.MonkeyPatch) -> None:
    env.setenv("TRANSACT_POOL_SIZE", "-3")
    with pytest.raises(errors.ConfigurationError, match=r"(?i)pool_size"):
        Database.from_env()
    env.delenv("TRANSACT_POOL_SIZE")
    env.setenv("TRANSACT_URL", f"postgresql+asyncpg://app:{SECRET}@localhost:x/shop")
    with pytest.raises(errors.ConfigurationError) as caught:
        Database.from_env()
    assert SECRET not in str(caught.value)


# Opening and closing.


async def test_a_database_can_be_opened_closed_and_opened_again(sqlite_url: str) -> None:
    db = Database(sqlite_url)
    for _ in range(2):
        async with db as entered:
            assert entered is db
            await db.ping()
            async with db.transaction() as session:
                assert await session.scalar(text("SELECT 1")) == 1
        assert db.engine.pool.checkedin() == 0
    await db.close()
    await db.close()


async def test_a_closed_database_says_that_it_is_closed(sqlite_url: str) -> None:
    db = Database(sqlite_url, name="shop")

    async def function(session: AsyncSession) -> None: ...

    decorated = db.transactional(function)
    await db.close()
    for use in (db.ping, db.transaction, lambda: db.run(function), decorated):
        with pytest.raises(errors.UsageError, match=r"'shop' is closed.*open"):
            await use()
    async with db:
        await decorated()


async def test_closing_after_an_error_lets_the_error_through(sqlite_url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Database(sqlite_url):
            raise ZeroDivisionError


async def test_ping_says_what_stands_in_the_way() -> None:
    async with Database("postgresql+asyncpg://app@127.0.0.1:1/shop") as db:
        with pytest.raises(errors.DatabaseUnavailable):
            await db.ping()


def test_a_database_that_is_made_connects_nowhere_and_is_no_module_state() -> None:
    one, two = Database(URL), Database(URL)
    assert one.engine is not two.engine
    assert one.engine.pool.checkedin() == 0
    assert copy.copy(one).name == "default"


def test_a_password_with_an_at_sign_is_refused_with_how_to_write_it() -> None:
    assert "%40" in refused("postgresql+asyncpg://app:p@ss@localhost/shop")
    assert Database("postgresql+asyncpg://app:p%40s/s?@localhost/shop").engine.url.password == "p@s/s?"  # noqa: S105


def test_an_at_sign_in_the_path_of_a_file_or_in_a_query_is_none_of_a_password() -> None:
    assert Database("sqlite+aiosqlite:////tmp/me@home/shop.db").engine.url.database == "/tmp/me@home/shop.db"  # noqa: S108
    assert Database(f"{URL}?application_name=me@home").engine.url.query["application_name"] == "me@home"
