"""docs/coming-from.md speaks of things that exist."""

import re

import pytest

from tests.docs.pages import ROOT, table
from transact import Propagation, errors
from transact.fastapi import Database
from transact.options import TransactionOptions

PAGE = ROOT / "docs" / "coming-from.md"
TABLES = {name: table(PAGE, name) for name in ("Spring", "Django", "Rails", "Laravel")}


@pytest.mark.parametrize("name", TABLES)
def test_our_words_in_a_table_for_newcomers_exist(name):
    for _, ours, _ in TABLES[name]:
        for word in re.findall(r"`([^`]+)`", ours):
            if verb := re.match(r"@?db\.(\w+)", word):
                assert hasattr(Database, verb[1]), word
            elif member := re.match(r"Propagation\.(\w+)", word):
                assert member[1] in Propagation.__members__, word
            elif option := re.match(r"(\w+)=", word):
                assert option[1] in TransactionOptions.__annotations__, word
            elif error := re.match(r"errors\.(\w+)", word):
                assert hasattr(errors, error[1]), word
