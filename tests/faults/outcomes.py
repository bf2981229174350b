"""The table of outcomes, as data: what a caller is told of one transaction, and what is stored, for each fault at each step."""

from typing import NamedTuple

from tests.faults.proxy import Fault
from tests.faults.scene import RESPONSE, WORDS, Answer, Scene, cancelled
from tests.faults.wire import Step


class Outcome(NamedTuple):
    """``status`` is that of the same as a request. ``held`` connections, and transactions ``idle`` on the server."""

    error: str
    status: int | None
    stored: tuple[str, ...]
    hooks: tuple[str, ...]
    held: int = 0
    idle: int = 0


_ROLLED_BACK = ("after_rollback", "rolled back")
DONE = Outcome("", 201, WORDS, ("after_commit", "committed"))
LOST = Outcome("ConnectionLost", 503, (), _ROLLED_BACK)
UNAVAILABLE = Outcome("DatabaseUnavailable", 503, (), _ROLLED_BACK)
GIVEN_UP = Outcome("CancelledError", None, (), _ROLLED_BACK)
UNKNOWN = Outcome("CommitOutcomeUnknown", 500, (), ("unknown",))
UNKNOWN_STORED = UNKNOWN._replace(stored=WORDS)
# COMMIT, or what the library asks before it, is cut off by an impatient caller.
UNKNOWN_GIVEN_UP = Outcome("CancelledError", None, (), ("unknown",))
UNKNOWN_STORED_GIVEN_UP = UNKNOWN_GIVEN_UP._replace(stored=WORDS)


class Row(NamedTuple):
    """One row of the table. ``engines`` are families or ids, as for the marker of the same name."""

    step: Step
    fault: Fault
    outcome: Outcome
    engines: tuple[str, ...] = ("postgresql", "mariadb")


def _rows(step: Step, cut: Outcome, dark: Outcome, *engines: str) -> list[Row]:
    outcomes = {Fault.LATENCY: DONE, Fault.BLACKHOLE: dark}
    return [Row(step, fault, outcomes.get(fault, cut), engines or ("postgresql", "mariadb")) for fault in Fault]


ROWS = [
    *_rows(Step.CONNECT, UNAVAILABLE, GIVEN_UP),
    *_rows(Step.BEGIN, LOST, GIVEN_UP, "postgresql"),  # MariaDB's transactions begin with their first statement
    *_rows(Step.FIRST, LOST, GIVEN_UP),
    *_rows(Step.SAVEPOINT, LOST, GIVEN_UP),
    *_rows(Step.LAST, LOST, GIVEN_UP),
    *_rows(Step.IDLE, LOST, UNKNOWN_GIVEN_UP),
    *_rows(Step.COMMIT_SENT, UNKNOWN, UNKNOWN_GIVEN_UP),
    *_rows(Step.COMMIT_ANSWERED, UNKNOWN_STORED, UNKNOWN_STORED_GIVEN_UP),
    *_rows(Step.ROLLBACK, DONE, DONE, "mariadb"),  # which the pool sends when it gets a connection back
    *_rows(Step.RETURNED, DONE, DONE),
]


async def observed(scene: Scene, step: Step, fault: Fault, face: str) -> Outcome:
    """What happens if ``fault`` happens at ``step``; ``face`` is ``block`` or ``request``."""
    proxy = scene.proxy
    if step is not Step.CONNECT:
        await scene.warm()
    proxy.set_trap(step, fault)
    work = scene.transact(face)
    answer: Answer = await (cancelled(work, proxy.struck) if _swallows(step, fault) else work)
    await proxy.reach(Step.RETURNED)
    assert proxy.struck.is_set()
    if answer.status is not None and answer.status < 300:
        passed = proxy.passed
        assert Step.COMMIT_ANSWERED in passed[: passed.index(RESPONSE)], "a 2xx before its COMMIT was answered"
    held = scene.held()
    await proxy.heal()
    idle = await scene.idle_in_transaction()
    seen = Outcome(answer.error, answer.status, scene.stored(), tuple(scene.told), held, idle)
    await scene.next_works()
    return seen


def _swallows(step: Step, fault: Fault) -> bool:
    """Whether only the caller's patience ends it. The library's own ROLLBACK is bounded."""
    return fault is Fault.BLACKHOLE and step not in {Step.ROLLBACK, Step.RETURNED}
