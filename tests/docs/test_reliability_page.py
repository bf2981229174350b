"""docs/reliability.md shows the outcomes that tests/faults insists on."""

from tests.docs.pages import table
from tests.faults.table import HEADING, PAGE, expected, rows


def test_the_table_of_outcomes_is_what_the_tests_of_faults_insist_on():
    assert table(PAGE, HEADING) == rows(expected())


def test_no_outcome_loses_what_was_acknowledged_or_stores_what_was_refused():
    for outcome in expected().values():
        committed, unknown = outcome.hooks[-1:] == ("committed",), outcome.hooks == ("unknown",)
        assert (outcome.status == 201) == committed == (outcome.error == "")
        assert len(outcome.stored) in ({3} if committed else {0, 3} if unknown else {0})
        assert (outcome.held, outcome.idle) == (0, 0)
