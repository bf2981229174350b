"""The example service, really served, in a network that breaks all the time: what each client was told is what is stored."""

import asyncio
import os
import random
import secrets
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.engines import Observer
from tests.examples.serving import serve
from tests.faults.proxy import Fault, Proxy, proxied
from tests.faults.wire import Step

CLIENTS = 16
STEPS = (Step.CONNECT, Step.FIRST, Step.COMMIT_SENT, Step.COMMIT_ANSWERED)
FAULTS = (Fault.RESET, Fault.CLOSE, Fault.LATENCY, Fault.DOWN)


@dataclass
class Told:
    """What was told of each name: ``stored``, ``refused``, ``unknown``, or ``gone``, where no answer was waited for."""

    names: dict[str, str] = field(default_factory=dict)

    def of(self, what: str) -> set[str]:
        return {name for name, told in self.names.items() if told == what}


async def register(http: httpx.AsyncClient, name: str, patience: float) -> str:
    account = {"username": name, "email": f"{name}@example.org", "profile": {"full_name": name}}
    try:
        answer = await http.post("/register/", json=account, timeout=patience)
    except httpx.HTTPError:
        return "gone"
    if answer.status_code == 201:
        return "stored"
    return "unknown" if answer.json()["code"] == "commit-outcome-unknown" else "refused"


async def client(number: int, address: str, told: Told, stop: asyncio.Event, dice: random.Random) -> None:
    async with httpx.AsyncClient(base_url=address) as http:
        count = 0
        while not stop.is_set():
            count += 1
            name = f"c{number}n{count}"
            patience = dice.choice((0.005, 0.02, 10, 10, 10, 10, 10, 10))
            told.names[name] = await register(http, name, patience)


async def trouble(proxy: Proxy, dice: random.Random) -> None:
    while True:
        if dice.random() < 0.2:
            await proxy.strike(dice.choice((Fault.RESET, Fault.CLOSE)))
        else:
            proxy.set_trap(dice.choice(STEPS), dice.choice(FAULTS), server_notices=dice.random() < 0.8)
        await asyncio.sleep(dice.uniform(0.01, 0.08))
        await proxy.heal()
        await asyncio.sleep(dice.uniform(0, 0.05))


def resident() -> int:
    """Bytes of memory of the server, which is this process's child; 0 where the system has no /proc."""
    children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text("ascii").split()]
    pages = [int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) for pid in children if serves(pid)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def serves(pid: str) -> bool:
    return b"examples.shop.app:app" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")
@pytest.mark.timeout(300)
# What the proxy has cut off in the middle of an await is collected late; the service runs in a process of its own.
@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_what_clients_were_told_of_their_registrations_is_what_is_stored_whatever_the_network_does(
    database_url: str, observer: Observer, monkeypatch: pytest.MonkeyPatch, *, long: bool
) -> None:
    seed = int(os.environ.get("TRANSACT_TEST_SEED") or (secrets.randbits(32) if long else 7))
    print(f"seed {seed}")  # noqa: T201  # shown if the test fails
    dice = random.Random(seed)  # noqa: S311  # faults, not secrets
    monkeypatch.setenv("TRANSACT_VERIFY_COMMIT", "true")
    monkeypatch.setenv("TRANSACT_TIMEOUT", "5")
    told, stop = Told(), asyncio.Event()
    async with proxied(database_url) as (proxy, through):
        with ExitStack() as stack:
            address = await asyncio.to_thread(stack.enter_context, serve(through))
            clients = [asyncio.create_task(client(n, address, told, stop, dice)) for n in range(CLIENTS)]
            faults = asyncio.create_task(trouble(proxy, dice))
            await asyncio.sleep(30 if long else 2)
            before = resident()
            await asyncio.sleep(90 if long else 2)
            grown = resident() - before
            faults.cancel()
            with suppress(asyncio.CancelledError):
                await faults
            await proxy.heal()
            stop.set()
            async with asyncio.timeout(60):
                await asyncio.gather(*clients)
            async with httpx.AsyncClient(base_url=address) as http:
                assert await register(http, "afterwards", 30) == "stored", "the service has not recovered"
            await asyncio.to_thread(stack.close)
    print(Counter(told.names.values()), f"grown by {grown / 2**20:.1f} MiB")  # noqa: T201
    assert grown < 2**25, "memory is not flat"
    users = [name for (name,) in observer.rows("SELECT username FROM users")]
    whole = {name for (name,) in observer.rows("SELECT username FROM users JOIN profiles ON user_id = id")}
    assert len(users) == len(set(users)) == len(whole), "a user twice, or without a profile"
    assert told.of("stored") <= whole, "acknowledged and not stored"
    assert not told.of("refused") & whole, "refused and stored all the same"
    assert told.of("stored")
    assert told.of("refused")
    if "postgresql" in database_url:
        assert not told.of("unknown"), "PostgreSQL was there to be asked"
