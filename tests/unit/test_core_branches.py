"""The names of prepared branches and the rule that ends them, without any database."""

import pytest

from transact._core.branches import XA_FORMAT, Branch, Verdict, Xid, fingerprint, group_of, members, verdict

A, B, C = (fingerprint("server", name) for name in "abc")


def branch(database: str = "orders", number: int = 1, of: int = 2) -> Branch:
    return Branch("0123456789abcdef" * 2, number, of, "742", B, group_of([A, B]), database)


def xid(database: str = "orders", of: int = 2) -> Xid:
    return Xid("0123456789abcdef" * 2, of, group_of([A, C]), A, 1_800_000_000, database)


def recovered(named: Xid) -> tuple[int, int, str]:
    """``named`` as XA RECOVER shows it."""
    gtrid, bqual, number = str(named).split(",")
    return int(number), len(gtrid) - 2, gtrid.strip("'") + bqual.strip("'")


@pytest.mark.parametrize("transaction", ["742", "17-1800000000"])
def test_a_name_is_read_back_as_it_was_written(transaction: str) -> None:
    named = Branch("0123456789abcdef" * 2, 1, 2, transaction, B, group_of([A, B]), "orders")
    assert Branch.parse(str(named)) == named
    assert Xid.parse(*recovered(xid())) == xid()


def test_no_name_of_a_database_makes_a_name_that_a_server_refuses_or_takes_for_another_statement() -> None:
    for database in ("x" * 500, "it's; DROP", "Bestellungen, größer", ""):
        worst = Branch("f" * 32, 99, 99, f"{2**64 - 1}-9999999999", A, B, database)
        assert len(str(worst).encode()) < 200
        assert "'" not in str(worst)
        read = Branch.parse(str(worst))
        assert read is not None
        assert read.global_id == worst.global_id
        gtrid, bqual, _ = str(xid(database, of=99)).split(",")
        assert max(len(gtrid.encode()), len(bqual.encode())) <= 64 + 2  # and the quotes
        assert (gtrid + bqual).count("'") == 4
        assert Xid.parse(*recovered(xid(database))) is not None


@pytest.mark.parametrize("name", ["", "transact:", "transact:1:1/2", "x" + str(branch()), str(branch()) + " "])
def test_a_name_of_somebody_else_is_left_alone(name: str) -> None:
    assert Branch.parse(name) is None


def test_an_xa_transaction_of_somebody_else_is_left_alone() -> None:
    number, length, data = recovered(xid())
    assert Xid.parse(number + 1, length, data) is None
    assert Xid.parse(XA_FORMAT, length - 1, data) is None
    assert Xid.parse(XA_FORMAT, length, data[:-10] + "'") is None
    assert Xid.parse(XA_FORMAT, 3, "abcdef") is None


def test_the_databases_of_a_transaction_are_found_among_more_and_one_that_is_missing_is_noticed() -> None:
    assert members(branch(), [C, B, A]) == (1, 2)
    assert members(branch(), [A, A, C]) is None
    assert members(branch(), [A]) is None
    assert members(xid(), [A, B, C]) == (0, 2)
    assert members(xid(), [B, C]) is None


@pytest.mark.parametrize(
    ("prepared", "ended", "expected"),
    [
        (True, False, Verdict.COMMIT),
        (True, True, Verdict.COMMIT),
        (False, True, Verdict.ROLL_BACK),
        (False, False, Verdict.WAIT),
    ],
)
def test_the_last_branch_decides_and_nobody_does_while_it_may_still_be_prepared(
    prepared: object, ended: object, expected: Verdict
) -> None:
    assert verdict(prepared=bool(prepared), ended=bool(ended)) is expected
