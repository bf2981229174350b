"""The measurements of a real server run, and tell something of each variant; what they find is judged by nobody here."""

import pytest

from benchmarks import contention_hot_row, overload_refusals, server_throughput, slow_clients, slow_handlers
from benchmarks._command import with_tables


@pytest.fixture
def bench_url(postgres_url):
    with with_tables(postgres_url):
        yield postgres_url


def rows(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def told(printed: str) -> list[dict[str, str]]:
    """The rows of a report with one table."""
    head, *body = rows(printed)
    return [dict(zip(head, row, strict=True)) for row in body]


@pytest.mark.long
def test_throughput_is_measured_with_and_without_a_longer_way_to_the_database(bench_url):
    printed = server_throughput.report(bench_url, "a server", True)
    measured = [row for row in rows(printed) if row[0] != "route"]
    routes = [server_throughput.ROUTES, *server_throughput.DELAYS.values()]
    assert len(measured) == sum(map(len, routes)) * len(server_throughput.VARIANTS)
    assert {row[-2] for row in measured} == {"0"}  # requests that failed


def test_slow_clients_starve_the_others_where_the_session_lasts_until_they_have_read(bench_url):
    by_variant = {row["variant"]: row for row in told(slow_clients.report(bench_url, "a server", True))}
    assert by_variant["get_db"]["requests/s of the others"] == "0"
    assert by_variant["transact"]["requests/s of the others"] != "0"
    assert by_variant["transact"]["of them served"] == "10"


@pytest.mark.long
def test_waiting_handlers_are_measured_for_each_variant(bench_url):
    measured = told(slow_handlers.report(bench_url, "a server", True))
    assert len(measured) == len(slow_handlers.CASES) * len(slow_handlers.VARIANTS)


@pytest.mark.long
def test_on_a_hot_row_nothing_is_told_that_is_not_stored_and_a_retry_spares_the_clients_the_errors(bench_url):
    without, with_retry = told(contention_hot_row.report(bench_url, "a server", True))[1:]
    for row in (without, with_retry):
        assert 0 < int(row["told"]) <= int(row["stored"]) <= int(row["told"]) + contention_hot_row.CLIENTS
    assert float(with_retry["failed"].split()[0]) < float(without["failed"].split()[0])


@pytest.mark.long
def test_overload_is_measured_at_each_load_for_each_variant(bench_url):
    measured = told(overload_refusals.report(bench_url, "a server", True))
    assert [row["times capacity"] for row in measured] == ["1", "1", "8", "8"]
    assert measured[-1]["refused/s"] != "0"
