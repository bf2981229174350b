"""Thousands of registrations at once, against a running shop, and the proof that none was half done.

``python -m examples.shop.load --url http://127.0.0.1:8000 --count 10000 --clients 32``

One registration in twenty has a user name or an e-mail address that another one has, too. Afterwards everything is read
back: each 201 has its user and profile, each 400 has none, and the counts agree. Exit status 1 says that something does not.
"""

import argparse
import asyncio
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx
from faker import Faker
from tqdm import tqdm

LOCALES = ("en_US", "de_DE", "ja_JP", "ar_SA", "hi_IN", "zh_CN", "el_GR", "ru_RU", "ko_KR", "he_IL")
DUPLICATE_EVERY = 20
PAGE = 200
TAKEN = {"username": "Username already exists", "email": "Email already exists"}


@dataclass
class Attempt:
    """One registration: what is sent, what it shares with another one, and what became of it (0: no answer)."""

    body: dict[str, Any]
    shares: str | None = None
    status: int = 0
    answer: Any = None


def make_attempts(count: int, seed: int) -> list[Attempt]:
    """Make the registrations. No two of different runs share anything, so that a run can be repeated."""
    fake = Faker(LOCALES)
    fake.seed_instance(seed)
    run = uuid.uuid4().hex[:8]
    attempts: list[Attempt] = []
    for number in range(1, count + 1):
        people = fake[LOCALES[number % len(LOCALES)]]
        name = people.name()
        body = {
            "username": f"{name} {run}-{number}",
            "email": f"{run}-{number}@example.com",
            "profile": {"full_name": name, "bio": people.paragraph()},
        }
        attempt = Attempt(body)
        if number % DUPLICATE_EVERY == 0:
            # Of two that share something one wins, whichever comes first. So each has one partner only.
            partner = attempts[number - 1 - DUPLICATE_EVERY // 2]
            shared = fake.random_element(tuple(TAKEN))
            body[shared] = partner.body[shared]
            attempt.shares = partner.shares = shared
        attempts.append(attempt)
    return attempts


async def register_all(http: httpx.AsyncClient, attempts: list[Attempt], clients: int, bar: "tqdm[Any]") -> None:
    """Send the registrations, ``clients`` of them at any time."""
    waiting: Iterator[Attempt] = iter(attempts)

    async def client() -> None:
        for attempt in waiting:
            try:
                response = await http.post("/register/", json=attempt.body)
                attempt.status, attempt.answer = response.status_code, response.json()
            except (httpx.TransportError, ValueError) as error:  # no answer, or one that is not the shop's
                attempt.answer = repr(error)
            bar.update()

    await asyncio.gather(*(client() for _ in range(clients)))


async def read_users(http: httpx.AsyncClient) -> dict[int, dict[str, Any]]:
    """Read every user of the shop, by id."""
    users: dict[int, dict[str, Any]] = {}
    after = 0
    while True:
        response = await http.get("/users/", params={"after": after, "limit": PAGE})
        page = response.raise_for_status().json()
        users |= {user["id"]: user for user in page}
        if len(page) < PAGE:
            return users
        after = page[-1]["id"]


def faults(attempts: list[Attempt], users: dict[int, dict[str, Any]], before: set[int]) -> list[str]:
    """Everything that is not as it must be."""
    found = []
    stored = {(user["username"], user["email"]) for user in users.values()}
    for attempt in attempts:
        told = f"{attempt.body['username']!r} got {attempt.status}"
        if attempt.status == httpx.codes.CREATED:
            user = users.get(attempt.answer["user_id"])
            if user != {"id": attempt.answer["user_id"], **attempt.body}:
                found.append(f"{told}, and what is stored is {user}")
        elif attempt.status != httpx.codes.BAD_REQUEST:
            found.append(f"{told}: {attempt.answer}")
        elif attempt.shares is None or attempt.answer["detail"] != TAKEN[attempt.shares]:
            found.append(f"{told} without a reason: {attempt.answer}")
        elif (attempt.body["username"], attempt.body["email"]) in stored:
            found.append(f"{told} and is stored")
    made = sum(attempt.status == httpx.codes.CREATED for attempt in attempts)
    if len(users.keys() - before) != made:
        found.append(f"{len(users.keys() - before)} users are new, {made} registrations got 201")
    if made != len(attempts) - len(attempts) // DUPLICATE_EVERY:
        found.append(f"{made} of {len(attempts)} registrations got 201, all but one in {DUPLICATE_EVERY} should")
    return found


async def run(url: str, count: int, clients: int, seed: int = 0) -> list[str]:
    """Register, read everything back, print what was found, and return the faults."""
    # An idle connection is given up before uvicorn does so (after 5 s), or a request meets one that is just being closed.
    limits = httpx.Limits(max_connections=clients, keepalive_expiry=1)
    # No proxy of the environment's, and no impatience: how long a request waits is the shop's own decision.
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as http:
        before = set(await read_users(http))
        attempts = make_attempts(count, seed)
        started = perf_counter()
        with tqdm(total=count, unit=" registrations", mininterval=0.5) as bar:
            await register_all(http, attempts, clients, bar)
        seconds = perf_counter() - started
        users = await read_users(http)
    found = faults(attempts, users, before)
    answers = ", ".join(f"{n} x {status}" for status, n in sorted(Counter(a.status for a in attempts).items()))
    print(
        f"{count} registrations by {clients} clients in {seconds:.1f} s ({count / seconds:.0f} per second): {answers}"
    )
    print(f"Users before: {len(before)}, now: {len(users)}")
    for fault in found[:20]:
        print(f"FAULT: {fault}")
    print(
        f"{len(found)} faults" if found else "Every 201 has its user and profile, every 400 has none, the counts agree."
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the shop (default: %(default)s)")
    parser.add_argument("--count", type=int, default=10_000, help="registrations (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="how many at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the people's names (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        return 1 if asyncio.run(run(arguments.url, arguments.count, arguments.clients, arguments.seed)) else 0
    except httpx.TransportError as error:
        print(f"{arguments.url} cannot be reached: {error or type(error).__name__}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
