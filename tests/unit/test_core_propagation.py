"""The table of propagations, without any database."""

import pytest

from transact._core.propagation import TABLE, Action, check_compatible, decide
from transact.errors import NoTransaction, OptionsConflict, TransactionExists, UsageError
from transact.options import Isolation, Options, Propagation, Retry

OPEN = Options()
A = Action


@pytest.mark.parametrize(
    ("propagation", "none_open", "one_open"),
    [
        (Propagation.REQUIRED, A.BEGIN, A.JOIN),
        (Propagation.REQUIRES_NEW, A.BEGIN, A.SUSPEND_AND_BEGIN),
        (Propagation.NESTED, A.BEGIN, A.SAVEPOINT),
        (Propagation.SUPPORTS, A.AUTOCOMMIT, A.JOIN),
        (Propagation.NOT_SUPPORTED, A.AUTOCOMMIT, A.SUSPEND_AND_AUTOCOMMIT),
        (Propagation.MANDATORY, A.REFUSE_NONE_OPEN, A.JOIN),
        (Propagation.NEVER, A.AUTOCOMMIT, A.REFUSE_OPEN),
    ],
)
def test_the_table_says_what_each_propagation_does(
    propagation: Propagation, none_open: Action, one_open: Action
) -> None:
    assert TABLE[propagation] == (none_open, one_open)


def test_the_table_has_a_row_for_every_propagation_and_cannot_be_changed() -> None:
    assert set(TABLE) == set(Propagation)
    with pytest.raises(TypeError):
        TABLE[Propagation.NEVER] = (A.BEGIN, A.BEGIN)  # type: ignore[index]


REFUSALS = {A.REFUSE_NONE_OPEN: NoTransaction, A.REFUSE_OPEN: TransactionExists}


@pytest.mark.parametrize("open_", [None, OPEN], ids=["none open", "one open"])
@pytest.mark.parametrize("propagation", list(Propagation))
def test_a_decision_is_the_tables(propagation: Propagation, open_: Options | None) -> None:
    action = TABLE[propagation][open_ is not None]
    asked = Options(propagation=propagation)
    if action in REFUSALS:
        with pytest.raises(REFUSALS[action], match=propagation.name):
            decide(asked, open_)
    else:
        assert decide(asked, open_) is action


@pytest.mark.parametrize("open_", [None, OPEN], ids=["none open", "one open"])
@pytest.mark.parametrize("propagation", [Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER])
@pytest.mark.parametrize("options", [{"isolation": Isolation.SERIALIZABLE}, {"read_only": True}], ids=str)
def test_what_runs_without_a_transaction_cannot_have_the_options_of_one(
    propagation: Propagation, open_: Options | None, options: dict
) -> None:
    asked = Options(propagation=propagation, **options)
    if TABLE[propagation][open_ is not None] in {A.AUTOCOMMIT, A.SUSPEND_AND_AUTOCOMMIT}:
        with pytest.raises(OptionsConflict, match=propagation.name):
            decide(asked, open_)


@pytest.mark.parametrize("propagation", [Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED])
def test_what_suspends_a_transaction_may_differ_from_it(propagation: Propagation) -> None:
    open_ = Options(isolation=Isolation.SERIALIZABLE, read_only=True)
    assert decide(Options(propagation=propagation, read_only=False), open_) is TABLE[propagation][1]


@pytest.mark.parametrize("asked", [None, *Isolation])
@pytest.mark.parametrize("open_", [None, *Isolation])
def test_only_a_level_that_is_asked_for_and_differs_is_a_conflict(
    asked: Isolation | None, open_: Isolation | None
) -> None:
    options = Options(isolation=asked)
    if asked is None or asked is open_:
        check_compatible(options, Options(isolation=open_))
    else:
        with pytest.raises(OptionsConflict, match=asked.name):
            check_compatible(options, Options(isolation=open_))


@pytest.mark.parametrize(
    ("asked", "open_", "conflict"),
    [
        (False, True, True),
        (None, True, False),
        (True, True, False),
        (True, False, False),
        (False, False, False),
        (False, None, False),
    ],
)
def test_only_writing_that_is_asked_for_inside_a_read_only_transaction_is_a_conflict(
    asked: bool | None,  # noqa: FBT001  # a row of the table
    open_: bool | None,  # noqa: FBT001
    conflict: bool,  # noqa: FBT001
) -> None:
    if conflict:
        with pytest.raises(OptionsConflict, match="read_only=False"):
            check_compatible(Options(read_only=asked), Options(read_only=open_))
    else:
        check_compatible(Options(read_only=asked), Options(read_only=open_))


def test_options_do_not_conflict_where_a_transaction_is_begun() -> None:
    assert decide(Options(isolation=Isolation.SERIALIZABLE, read_only=False), None) is A.BEGIN


def test_a_part_of_an_open_transaction_cannot_be_tried_again_alone() -> None:
    with pytest.raises(UsageError, match="retry="):
        decide(Options(retry=Retry()), Options())
