"""MySQL and MariaDB are told the level of each transaction, and told to forget it: two more places to lose a connection at."""

from collections.abc import Callable

import pytest
from sqlalchemy import event, text

from tests.conformance.conftest import make_db, stored, tables  # noqa: F401  # fixtures
from tests.conformance.tables import Stored, store
from tests.engines import Observer
from tests.faults.proxy import Fault, proxied
from tests.faults.wire import Step
from transact import Database, Isolation, errors

pytestmark = pytest.mark.engines("mariadb")
MakeDb = Callable[..., Database]
SER = Isolation.SERIALIZABLE


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CLOSE])
async def test_a_connection_that_is_lost_before_the_transaction_has_its_level_is_lost_like_any_other_and_given_back(
    database_url: str,
    observer: Observer,
    make_db: MakeDb,  # noqa: F811  # fixtures
    stored: Stored,  # noqa: F811
    fault: Fault,
) -> None:
    async with proxied(database_url) as (proxy, url):
        db = make_db(url)
        proxy.set_trap(Step.COMMIT_SENT, fault)  # SQLAlchemy sends one after the level
        with pytest.raises(errors.ConnectionLost):
            async with db.transaction(isolation=SER) as session:
                await store(session, "word")
        assert proxy.struck.is_set()
        assert db.engine.pool.checkedout() == 0
        async with db.transaction(isolation=SER) as session:
            await store(session, "next")
        assert stored() == {"next"}


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CLOSE])
async def test_a_connection_that_is_lost_before_its_level_is_put_back_costs_the_pool_no_place(
    database_url: str,
    observer: Observer,
    make_db: MakeDb,  # noqa: F811
    stored: Stored,  # noqa: F811
    fault: Fault,
) -> None:
    async with proxied(database_url) as (proxy, url):
        db = make_db(url, pool_size=1, max_overflow=0, pool_timeout=1)
        own = await level(db)

        @event.listens_for(db.engine.sync_engine, "reset")
        def resetting(*_: object) -> None:
            proxy.set_trap(Step.COMMIT_SENT, fault)

        async with db.transaction(isolation=SER) as session:
            await store(session, "word")
        assert proxy.struck.is_set()
        assert stored() == {"word"}
        assert db.engine.pool.checkedout() == 0
        event.remove(db.engine.sync_engine, "reset", resetting)
        assert await level(db) == own


async def level(db: Database) -> str:
    async with db.transaction() as session:
        return await session.scalar(text("SELECT @@tx_isolation"))
