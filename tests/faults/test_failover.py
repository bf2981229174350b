"""A server that crashes, and a standby that takes over, while the answer to a COMMIT is on its way."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncSession

from scripts._postgres import embedded_postgres, standby_of
from tests.conftest import lasting_database
from tests.faults.proxy import Fault, proxied
from tests.faults.scene import WORDS, Answer, Scene
from tests.faults.wire import Step
from tests.observers import Observer, observe
from transact import Retry, errors
from transact.fastapi import Database

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.timeout(120)]
DRIVERS = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


class Cluster:
    """A primary, and standbys of it: the one that is promoted is the primary of the next test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._lives: dict[str, ExitStack] = {}
        self.primary = self._start(embedded_postgres(fsync=False))
        self.standby = ""

    def _start(self, server: Any) -> str:
        life = self._stack.enter_context(ExitStack())
        url: str = life.enter_context(server)
        self._lives[url] = life
        return url

    def eyes(self, url: str) -> Observer:
        """A connection past the proxy, for as long as the server lives."""
        return self._lives[url].enter_context(observe(url))

    def follow(self) -> None:
        """Let a standby follow the primary."""
        self.standby = self._start(standby_of(self.primary))

    def empty(self) -> Observer:
        """Make the tables anew."""
        primary = self.eyes(self.primary)
        primary.execute("DROP TABLE IF EXISTS words, others")
        primary.execute("CREATE TABLE words (word varchar(20) PRIMARY KEY)")
        primary.execute("CREATE TABLE others (n integer)")
        return primary

    async def catch_up(self) -> None:
        """Wait until the standby has all that the primary's transactions have done so far, the open ones included."""
        primary, standby = self.eyes(self.primary), self.eyes(self.standby)
        primary.execute("INSERT INTO others VALUES (1)")  # with its COMMIT all that was logged before it is sent
        end = primary.scalar("SELECT pg_current_wal_flush_lsn()::text")
        while not standby.scalar("SELECT pg_last_wal_replay_lsn() >= ?::pg_lsn", end):
            await asyncio.sleep(0.01)

    async def separate(self) -> None:
        """Let nothing more come from the primary to the standby."""
        standby = self.eyes(self.standby)
        standby.execute("ALTER SYSTEM SET primary_conninfo TO ''")
        standby.execute("SELECT pg_reload_conf()")
        while standby.rows("SELECT pid FROM pg_stat_wal_receiver"):
            await asyncio.sleep(0.01)

    def fail_over(self, place: Scene, *, stop: bool = True) -> None:
        """Let the standby take over, and be what the proxy leads to."""
        if stop:
            self._lives.pop(self.primary).close()
        self.primary, self.standby = self.standby, ""
        place.observer = self.eyes(self.primary)
        assert place.observer.scalar("SELECT pg_promote()")
        url = make_url(self.primary)
        place.proxy.target = str(url.host), int(url.port or 0)


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        lasting_database(
            request.config, "pg18-asyncpg", tmp_path_factory.mktemp("none"), stack
        )  # or it is told as missing
        yield Cluster(stack)


@pytest.fixture
def cluster(servers: Cluster) -> Cluster:
    """A primary with empty tables, and a standby that has them too."""
    servers.empty()
    servers.follow()
    return servers


@asynccontextmanager
async def staged(cluster: Cluster, driver: str = "asyncpg", **arguments: Any) -> AsyncIterator[Scene]:
    """A scene before the primary; with ``hosts``, the application knows the standby's address beside the proxy's."""
    url = make_url(cluster.primary).set(drivername=f"postgresql+{driver}")
    hosts = arguments.pop("hosts", False)
    async with asyncio.timeout(60), proxied(url.render_as_string(hide_password=False)) as (proxy, through):
        address = both(make_url(through), make_url(cluster.standby)) if hosts else through
        async with Database(address, pool_size=2, max_overflow=0, verify_commit=True, **arguments) as db:
            place = Scene(proxy, db, cluster.eyes(cluster.primary))
            await place.warm()
            yield place
            assert place.held() == 0
            assert await place.idle_in_transaction() == 0


def both(one: URL, other: URL) -> URL:
    """What docs/reliability.md says to write where a standby may take over at another address."""
    hosts = tuple(f"{url.host}:{url.port}" for url in (one, other))
    return one.set(host=None, port=None, query={"host": hosts, "target_session_attrs": "primary"})


@DRIVERS
@pytest.mark.parametrize("hosts", [False, True])
async def test_a_commit_that_the_standby_has_is_a_success_once_it_has_taken_over(
    cluster: Cluster, driver: str, *, hosts: bool
) -> None:
    async with staged(cluster, driver, hosts=hosts) as place:
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.DOWN)
        task = asyncio.create_task(place.block())
        await place.proxy.struck.wait()
        await cluster.catch_up()
        cluster.fail_over(place)
        if not hosts:
            await place.proxy.heal()
        assert await task == Answer()
        assert place.told == ["after_commit", "committed"]
        assert place.stored() == WORDS
        await place.next_works()
        await asyncio.gather(*(place.db.ping() for _ in range(3)))


async def test_a_commit_that_the_standby_never_heard_of_is_unknown_also_when_its_id_is_somebody_else_s(
    cluster: Cluster,
) -> None:
    async with staged(cluster) as place:
        await cluster.separate()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.DOWN)
        task = asyncio.create_task(place.db.run(place.work, retry=Retry(3, base=0.001)))
        await place.proxy.struck.wait()
        assert place.stored() == WORDS  # on the primary, which is lost
        xid = place.observer.scalar("SELECT xmin::text FROM words WHERE word = 'first'")
        cluster.fail_over(place)
        use_up(place.observer, int(xid))
        await place.proxy.heal()
        with pytest.raises(errors.CommitOutcomeUnknown):
            await task
        assert place.told == ["unknown"]
        assert place.stored() == ()
        await place.next_works()


async def test_a_transaction_of_which_the_standby_has_all_but_its_commit_is_unknown_and_not_tried_again(
    cluster: Cluster,
) -> None:
    async with staged(cluster) as place:

        async def work(session: AsyncSession) -> None:
            await place.work(session)
            await cluster.catch_up()
            await cluster.separate()

        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.DOWN)
        task = asyncio.create_task(place.db.run(work, retry=Retry(3, base=0.001)))
        await place.proxy.struck.wait()
        assert place.stored() == WORDS
        cluster.fail_over(place)
        await place.proxy.heal()
        with pytest.raises(errors.CommitOutcomeUnknown):
            await task
        assert place.told == ["unknown"]
        assert place.stored() == ()
        await place.next_works()


async def test_after_a_crash_another_transaction_with_the_same_id_is_not_taken_for_the_lost_one(
    servers: Cluster,
) -> None:
    primary = servers.empty()
    # What a transaction does is written to the disk only with the next COMMIT, or after this long.
    primary.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
    primary.execute("SELECT pg_reload_conf()")
    async with staged(servers) as place:
        pids: list[int] = []

        async def work(session: AsyncSession) -> None:
            await session.execute(text("INSERT INTO words VALUES ('lost')"))
            pids.append(await session.scalar(text("SELECT pg_backend_pid()")) or 0)
            pids.append(int(await session.scalar(text("SELECT pg_current_xact_id()::text")) or 0))

        place.work = work  # type: ignore[method-assign]
        place.proxy.set_trap(Step.COMMIT_SENT, Fault.DOWN, server_notices=False)
        task = asyncio.create_task(place.block())
        await place.proxy.struck.wait()
        pid, xid = pids
        os.kill(pid, signal.SIGKILL)  # all of the server begins anew, from what is on the disk
        with suppress(psycopg.OperationalError):
            while True:
                primary.rows("SELECT 1")
        place.observer = await back(servers)
        use_up(place.observer, xid)
        await place.proxy.heal()
        assert (await task).error == "CommitOutcomeUnknown"
        assert place.stored() == ()
        place.observer.execute("ALTER SYSTEM RESET wal_writer_delay")
        place.observer.execute("SELECT pg_reload_conf()")


def use_up(observer: Observer, xid: int) -> None:
    """Commit transactions until ``xid`` has been the id of one."""
    while int(observer.scalar("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")) <= xid:
        observer.execute("INSERT INTO others VALUES (2)")


async def back(cluster: Cluster) -> Observer:
    """Wait until the crashed primary takes connections again."""
    while True:
        try:
            return cluster.eyes(cluster.primary)
        except psycopg.OperationalError:
            await asyncio.sleep(0.01)


@DRIVERS
async def test_a_primary_that_is_demoted_fails_one_request_and_the_next_ones_go_to_the_new_one(
    cluster: Cluster, driver: str
) -> None:
    async with staged(cluster, driver) as place:
        old = cluster.eyes(cluster.primary)
        await cluster.catch_up()
        cluster.fail_over(place, stop=False)
        old.execute("ALTER SYSTEM SET default_transaction_read_only = on")  # as managers of clusters do
        old.execute("SELECT pg_reload_conf()")
        with pytest.raises(errors.ReadOnlyViolation):
            for n in range(1000):  # until the sessions of the pool have heard of it
                async with place.db.transaction() as session:
                    await session.execute(text("INSERT INTO words VALUES (:word)"), {"word": f"old {n}"})

        async def write(word: str) -> int | None:
            async with place.db.transaction() as session:
                await session.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})
                return await session.scalar(text("SELECT inet_server_port()"))

        ports = await asyncio.gather(*(write(f"new {n}") for n in range(4)))
        assert set(ports) == {make_url(cluster.primary).port}
