"""docs/transactions.md says what the code does."""

import re

from tests.docs.pages import ROOT, table
from transact import events
from transact.options import TransactionOptions

PAGE = ROOT / "docs" / "transactions.md"


def test_the_table_of_options_has_all_of_them():
    told = {name for names, *_ in table(PAGE, "Options") for name in re.findall(r"`([^`]+)`", names)}
    assert told == TransactionOptions.__annotations__.keys()


def test_the_page_names_every_event():
    told = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8").partition("## Events and logging")[2]))
    assert {
        name for name, kind in vars(events).items() if isinstance(kind, type) and issubclass(kind, events.Event)
    } - told == {"Event"}
