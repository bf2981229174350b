"""The names of prepared branches and the rule that ends them, without any database."""

import pytest

from transact._core.branches import Branch, Verdict, fingerprint, group_of, members, verdict

A, B, C = (fingerprint("server", name) for name in "abc")


def branch(database: str = "orders", number: int = 1, of: int = 2) -> Branch:
    return Branch("0123456789abcdef" * 2, number, of, "742", B, group_of([A, B]), database)


def test_a_name_is_read_back_as_it_was_written() -> None:
    assert Branch.parse(str(branch())) == branch()


def test_no_name_of_a_database_makes_a_name_that_a_server_refuses_or_takes_for_another_statement() -> None:
    for database in ("x" * 500, "it's; DROP", "Bestellungen, größer", ""):
        worst = Branch("f" * 32, 99, 99, str(2**64 - 1), A, B, database)
        assert len(str(worst).encode()) < 200
        assert "'" not in str(worst)
        read = Branch.parse(str(worst))
        assert read is not None
        assert read.global_id == worst.global_id


@pytest.mark.parametrize("name", ["", "transact:", "transact:1:1/2", "x" + str(branch()), str(branch()) + " "])
def test_a_name_of_somebody_else_is_left_alone(name: str) -> None:
    assert Branch.parse(name) is None


def test_the_databases_of_a_transaction_are_found_among_more_and_one_that_is_missing_is_noticed() -> None:
    assert members(branch(), [C, B, A]) == (1, 2)
    assert members(branch(), [A, A, C]) is None
    assert members(branch(), [A]) is None


@pytest.mark.parametrize(
    ("prepared", "status", "expected"),
    [
        (True, "in progress", Verdict.COMMIT),
        (False, "aborted", Verdict.ROLL_BACK),
        (False, None, Verdict.ROLL_BACK),
        (False, "in progress", Verdict.WAIT),
        (False, "committed", Verdict.WAIT),
    ],
)
def test_the_last_branch_decides_and_nobody_does_while_it_may_still_be_prepared(
    prepared: object, status: str | None, expected: Verdict
) -> None:
    assert verdict(prepared=bool(prepared), status=status) is expected
