"""docs/transactions.md says what the code does."""

import re

import pytest

from tests.docs.pages import ROOT, table
from transact._core.propagation import decide
from transact.errors import NoTransaction, TransactionExists
from transact.options import Options, Propagation, TransactionOptions

PAGE = ROOT / "docs" / "transactions.md"
CELLS = {
    "begins one": "BEGIN",
    "joins it": "JOIN",
    "sets a savepoint": "SAVEPOINT",
    "raises `NoTransaction`": NoTransaction,
    "raises `TransactionExists`": TransactionExists,
    "suspends it and begins one": "SUSPEND_AND_BEGIN",
    "autocommit": "AUTOCOMMIT",
    "suspends it, autocommit": "SUSPEND_AND_AUTOCOMMIT",
}
PROPAGATION = table(PAGE, "Propagation")


@pytest.mark.parametrize(("name", "closed", "open_"), PROPAGATION, ids=[name for name, *_ in PROPAGATION])
def test_the_table_of_propagations_is_what_is_decided(name, closed, open_):
    asked = Options(propagation=Propagation[name.strip("`")])
    for cell, around in ((closed, None), (open_, Options())):
        if isinstance(CELLS[cell], str):
            assert decide(asked, around).name == CELLS[cell]
        else:
            with pytest.raises(CELLS[cell]) as raised:
                decide(asked, around)
            assert raised.type is CELLS[cell]


def test_the_table_of_propagations_has_all_of_them():
    assert {name.strip("`") for name, *_ in PROPAGATION} == set(Propagation.__members__)


def test_the_table_of_options_has_all_of_them():
    told = {name for names, *_ in table(PAGE, "Options") for name in re.findall(r"`([^`]+)`", names)}
    assert told == TransactionOptions.__annotations__.keys()
