"""docs/errors.md says what the code does."""

import inspect
import re

from tests.docs.error_tables import classes, code_rows, problem_rows
from tests.docs.pages import ROOT, blocks, table
from transact import Database, errors
from transact.fastapi import problems

PAGE = ROOT / "docs" / "errors.md"


def test_the_table_of_problems_is_that_of_the_code():
    assert table(PAGE, "What the client reads") == problem_rows()


def test_the_table_of_codes_is_that_of_the_code():
    assert table(PAGE, "Codes") == code_rows()


def test_the_tree_of_the_page_is_that_of_the_module():
    [tree] = [block.code for block in blocks(PAGE) if block.code.startswith("TransactError")]
    assert set(re.findall(r"\b[A-Z][A-Za-z]+\b", tree)) - {"ExceptionGroup", "COMMIT"} == {
        c.__name__ for c in classes()
    }
    documented = inspect.getdoc(errors) or ""
    assert set(re.findall(r"\b[A-Z][A-Za-z]+\b", tree)) <= set(re.findall(r"\b[A-Z][A-Za-z]+\b", documented))


def test_the_page_names_every_member_of_a_problem_document():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{member}`" in text for member in problems.SCHEMA.schema["properties"])


def test_the_table_of_arguments_is_the_constructors():
    rows = table(ROOT / "docs" / "databases.md", "The constructor")
    parameters = dict(inspect.signature(Database.__init__).parameters)
    told = {}
    for names, _, defaults in rows:
        told |= dict(zip(re.findall(r"`([^`]+)`", names), re.findall(r"`([^`]+)`", defaults) or [""], strict=False))
    told_defaults = {name: value for name, value in told.items() if name not in {"url", "session_class"}}
    del parameters["self"]
    assert told.keys() == parameters.keys()
    assert told_defaults == {name: repr(parameters[name].default) for name in told_defaults}
