"""Each row of the table of outcomes, on each engine, for a block and for a request."""

from collections.abc import Callable

import pytest

from tests.engines import Observer, chosen
from tests.faults.outcomes import ROWS, Row, observed
from tests.faults.proxy import Fault
from tests.faults.scene import scene

pytestmark = pytest.mark.usefixtures("impatient")

CASES = [
    pytest.param(engine, row, face, id=f"{engine}-{face}-{row.fault.value}-at-{row.step.value}".replace(" ", "-"))
    for row in ROWS
    for engine in chosen(row.engines)
    for face in ("block", "request")
    # A request is a block with more around it; what differs shows on one PostgreSQL and on MariaDB.
    if face == "request" or (engine in {"pg18-asyncpg", "mariadb"} and row.fault is not Fault.LATENCY)
]


@pytest.mark.parametrize(("url", "row", "face"), CASES, indirect=["url"])
async def test_whatever_breaks_the_caller_is_told_the_truth_and_the_pool_is_whole(
    url: str, observing: Callable[[str], Observer], row: Row, face: str
) -> None:
    async with scene(url, observing(url)) as place:
        seen = await observed(place, row.step, row.fault, face)
    expected = row.outcome if face == "request" else row.outcome._replace(status=None)
    assert seen == expected
