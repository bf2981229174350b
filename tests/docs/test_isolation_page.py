"""docs/isolation.md says what the scenarios of Hermitage showed."""

from tests.conformance.hermitage import COLUMNS, SCENARIOS
from tests.docs.pages import ROOT, table

SHOWN = tuple(name for name in COLUMNS if name != "sqlite ro")


def test_the_table_of_anomalies_is_what_the_scenarios_of_hermitage_show():
    rows = {cells[0].split("`")[1]: cells[1:] for cells in table(ROOT / "docs" / "isolation.md", "What can happen")}
    assert rows == {
        scenario.name: ["can" if scenario.has_happened(scenario.expected(name)) else "" for name in SHOWN]
        for scenario in SCENARIOS
    }


def test_the_column_that_the_table_leaves_out_has_no_anomalies_either():
    assert not [scenario.name for scenario in SCENARIOS if scenario.has_happened(scenario.expected("sqlite ro"))]
