"""What is tried again and what is not, without any database: one row for each class of `transact.errors`."""

import pytest

from transact import errors
from transact._core.retries import is_final, is_transient

AGAIN = {
    "TransientError",
    "SerializationFailure",
    "DeadlockDetected",
    "LockTimeout",
    "ConnectionLost",
    "ServerShutdown",
    # If nothing is known of what ended it; else that decides.
    "TransactionLost",
    # The connection could not even be made.
    "DatabaseUnavailable",
    "TooManyConnections",
}
#: Whatever is behind them, and whatever `on` names.
NEVER = {
    "CommitOutcomeUnknown",
    "AfterCommitError",
    "RetriesExhausted",
    "PartialCommit",
    "UsageError",
    "NoTransaction",
    "TransactionExists",
    "TransactionEnded",
    "ConcurrentUse",
    "OptionsConflict",
    "PoolSelfDeadlock",
}
EACH_CLASS = pytest.mark.parametrize("name", [n for n in errors.__all__ if n != "TransactError"])


def made(name: str) -> BaseException:
    cls = getattr(errors, name)
    return cls("hooks failed", [ValueError()]) if issubclass(cls, ExceptionGroup) else cls("")


@EACH_CLASS
def test_an_error_is_tried_again_if_its_class_says_that_chance_was_against_it_and_nothing_is_stored(name: str) -> None:
    assert is_transient([made(name)], getattr(errors, name), ()) is (name in AGAIN)


@EACH_CLASS
def test_an_error_of_which_something_may_be_stored_or_that_the_program_made_is_final_whatever_else_is_said(
    name: str,
) -> None:
    assert is_final([made(name)]) is (name in NEVER)
    assert is_final([ValueError(), made(name)]) is (name in NEVER)
    assert not {name} & AGAIN & NEVER


def test_what_is_tried_again_says_so_itself() -> None:
    for name in AGAIN | {"RetriesExhausted"}:
        assert getattr(errors, name).retryable


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_what_is_no_exception_is_final(error: BaseException) -> None:
    assert is_final([error])
    assert not is_final([ValueError(), error])


def test_a_class_in_on_is_tried_again_wherever_in_the_chain_it_stands() -> None:
    wrapped = [ValueError(), errors.UniqueViolation()]
    assert not is_transient(wrapped, errors.UniqueViolation, ())
    assert not is_transient(wrapped, errors.UniqueViolation, (KeyError,))
    assert is_transient(wrapped, errors.UniqueViolation, (KeyError, errors.IntegrityViolation))
    assert is_transient([ValueError()], None, (ValueError,))


def test_an_error_that_is_no_databases_is_not_transient() -> None:
    assert not is_transient([ValueError()], None, ())
