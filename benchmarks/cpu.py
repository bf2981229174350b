"""CPU and time per request, in process over ASGI: every variant in turn, in several rounds.

    python -m benchmarks.cpu [--url URL] [--quick]

The figure of a variant is the median of its rounds, in microseconds; its ratio is the median of the rounds' ratios to the
control. A peer that runs with other versions is compared with a control of its own, in the peer's own environment.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks._asgi import Cost
from benchmarks._command import command, say
from benchmarks._environments import installed_peers
from benchmarks._report import machine, microseconds, ratio, table
from benchmarks._variants import ASYNCPG, CONNECTION, CONTROL, EMPTY, FEW, OURS, TRANSACT, Variant
from benchmarks._workers import Worker, WorkerError, started

ROUTES = (
    ("POST", "/insert", "INSERT, ORM"),
    ("POST", "/insert-core", "INSERT, Core"),
    ("GET", "/one", "one SELECT"),
    ("GET", "/rows", "100 rows"),
    ("GET", "/idle", "session not used"),
    ("GET", "/empty", "no session"),
)
ROUNDS = {True: (2, 5), False: (15, 100)}
"""Rounds, and requests of each, if it has to be quick and if not."""


@dataclass(frozen=True)
class Control:
    """The control in the environment of a peer."""

    peer: Variant


Runner = Variant | Control
Costs = Mapping[tuple[str, Runner], list[Cost]]


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    rounds, requests = ROUNDS[quick]
    peers, failed = ([], {}) if quick else installed_peers()
    variants = FEW if quick else (*OURS, *peers)
    with ExitStack() as stack:
        own = stack.enter_context(started(url, variants, failed, together=quick))
        workers: dict[Runner, Worker] = dict(own.items())
        here = workers[CONTROL].versions
        for peer in [peer for peer in peers if peer in workers and _differs(workers[peer], here)]:
            workers[Control(peer)] = stack.enter_context(started(url, [CONTROL], {}, at=peer))[CONTROL]
        versions = {runner: worker.versions for runner, worker in workers.items()}
        costs = measure(workers.items(), rounds, requests, failed)
    shown = [runner for runner in versions if isinstance(runner, Variant) and runner not in failed]
    said = f"Medians of {rounds} alternating rounds of {requests} requests. {machine(here, server)}"
    parts = [said, "CPU, µs and ratio:\n", _table(costs, shown, "cpu"), "On the wall's clock, µs and ratio:\n"]
    parts += [_table(costs, shown, "wall"), "CPU of one against another, in the same rounds:\n", _pairs(costs)]
    return "\n".join([*parts, *_remarks(versions, failed, here)])


def _differs(worker: Worker, here: Mapping[str, str]) -> bool:
    return any(worker.versions[package] != number for package, number in here.items())


def measure(workers: Iterable[tuple[Runner, Worker]], rounds: int, requests: int, failed: dict[Variant, str]) -> Costs:
    """What each route costs each of ``workers``, in turn; a peer that fails goes into ``failed``."""
    workers = list(workers)
    costs: dict[tuple[str, Runner], list[Cost]] = defaultdict(list)
    for method, path, name in ROUTES:
        say(name)
        for number in range(rounds + 1):
            for runner, worker in workers:
                if runner in failed or (isinstance(runner, Variant) and not runner.serves(path)):
                    continue
                try:
                    measured = worker.cost(method, path, requests)
                except WorkerError as error:
                    if not isinstance(runner, Variant) or runner.peer is None:
                        raise
                    failed[runner] = f"fails at {path}: {error}"
                    continue
                if number:  # the first round warms up
                    costs[path, runner].append(measured)
    return costs


def _control(costs: Costs, path: str, runner: Runner) -> list[Cost]:
    """What a variant is compared with: the control in the same environment."""
    if isinstance(runner, Variant) and (path, Control(runner)) in costs:
        return costs[path, Control(runner)]
    return costs[path, CONTROL]


def _table(costs: Costs, shown: list[Variant], which: str) -> str:
    def shown_at(path: str, variant: Variant) -> str:
        found = costs.get((path, variant))
        return cell(found, _control(costs, path, variant), which) if found else ""

    rows = [(variant.shown, *(shown_at(path, variant) for _, path, _ in ROUTES)) for variant in shown]
    return table(("", *(name for _, _, name in ROUTES)), rows)


def cell(costs: Iterable[Cost], control: Iterable[Cost], which: str) -> str:
    """The median of ``which``, ``cpu`` or ``wall``, in microseconds, and its ratio to the control's."""
    own, other = ([getattr(cost, which) for cost in each] for each in (costs, control))
    return f"{microseconds(own)} · {ratio(own, other):.2f}"


def _pairs(costs: Costs) -> str:
    def cpu(path: str, variant: Variant) -> list[float]:
        return [cost.cpu for cost in costs[path, variant]]

    pairs = (
        ("INSERT by ORM", ("/insert", TRANSACT), ("/insert", CONTROL)),
        ("one SELECT with `read_only=True`", ("/one", TRANSACT), ("/one", CONTROL)),
        ("one SELECT, `db.connection(read_only=True)`", ("/one", CONNECTION), ("/one", ASYNCPG)),
        ("a session that is not used", ("/idle", TRANSACT), ("/empty", EMPTY)),
    )
    rows = [(what, other[1].shown, f"{ratio(cpu(*ours), cpu(*other)):.2f}") for what, ours, other in pairs]
    return table(("transact", "against", "ratio"), rows)


def _remarks(
    versions: Mapping[Runner, Mapping[str, str]], failed: Mapping[Variant, str], here: Mapping[str, str]
) -> Iterator[str]:
    """Which version each peer has, what it runs with if that differs, and why others are missing."""
    for runner, found in versions.items():
        if isinstance(runner, Variant) and runner.peer and runner not in failed:
            other = [f"{package} {found[package]}" for package, number in here.items() if found[package] != number]
            own = f", with {', '.join(other)} and compared with a control there" if other else ""
            yield f"- {runner.shown} {found[runner.name]}{own}."
    for variant, reason in failed.items():
        yield f"- {variant.shown}: not measured, {reason}."


if __name__ == "__main__":
    command(report, __doc__)
