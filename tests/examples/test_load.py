"""Many registrations at once, against a real server: none is half done, and the program that says so can also say no."""

import dataclasses

import httpx
import pytest
from tqdm import tqdm

from examples.shop import load
from tests.engines import Observer
from tests.examples.serving import serve

ORPHANS = (
    "SELECT count(*) FROM users u LEFT JOIN profiles p ON p.user_id = u.id WHERE p.user_id IS NULL",
    "SELECT count(*) FROM profiles p LEFT JOIN users u ON p.user_id = u.id WHERE u.id IS NULL",
)


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_under_load_every_201_is_stored_whole_and_every_400_not_at_all(
    database_url: str,
    observer: Observer,
    capsys: pytest.CaptureFixture[str],
    long: bool,  # noqa: FBT001  # a fixture
) -> None:
    count = 600 if long else 300
    with serve(database_url) as address:
        assert await load.run(address, count, clients=16) == []
    taken = count // load.DUPLICATE_EVERY
    printed = capsys.readouterr()
    assert f"{count - taken} x 201, {taken} x 400" in printed.out
    assert f"{count}/{count}" in printed.err  # the progress bar
    assert [observer.scalar(orphans) for orphans in ORPHANS] == [0, 0]
    assert (
        observer.scalar("SELECT count(*) FROM users")
        == observer.scalar("SELECT count(*) FROM profiles")
        == count - taken
    )
    assert observer.idle_in_transaction() == 0


@pytest.mark.engines("sqlite")
async def test_the_load_program_notices_each_kind_of_fault(shop: httpx.AsyncClient, observer: Observer) -> None:
    attempts = load.make_attempts(40, seed=1)
    with tqdm(disable=True) as bar:
        await load.register_all(shop, attempts, 4, bar)
    users = await load.read_users(shop)
    assert load.faults(attempts, users, set()) == []
    refused = next(attempt for attempt in attempts if attempt.status == 400)
    id_, user = next(iter(users.items()))

    def told(*, altered: load.Attempt = refused, stored: dict[int, dict[str, object]] = users) -> list[str]:
        changed = [altered if attempt is refused else attempt for attempt in attempts]
        return load.faults(changed, stored, set())

    assert told(stored={**users, id_: {**user, "profile": None}})
    assert told(stored={other: row for other, row in users.items() if other != id_})
    assert told(stored={**users, 10**6: user})
    assert told(stored={**users, id_: {**user, "username": refused.body["username"], "email": refused.body["email"]}})
    assert told(altered=dataclasses.replace(refused, status=503))
    assert told(altered=dataclasses.replace(refused, shares=None))
    assert told(altered=dataclasses.replace(refused, answer={"detail": "because"}))
    observer.execute("DELETE FROM profiles WHERE user_id = ?", id_)
    assert load.faults(attempts, await load.read_users(shop), set())


def test_a_shop_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["load", "--url", "http://127.0.0.1:1", "--count", "1"])
    assert load.main() == 1
    assert capsys.readouterr().err.splitlines() == [
        "http://127.0.0.1:1 cannot be reached: All connection attempts failed"
    ]
