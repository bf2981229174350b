"""Which failures of a whole transaction may be followed by another attempt."""

from __future__ import annotations

from collections.abc import Sequence

from transact import errors

#: Nothing of such a transaction is stored, and the same work may well succeed. A full pool is not among them: whoever
#: waited for a connection in vain would only join the queue again.
AGAIN = (errors.TransientError, errors.TransactionLost, errors.DatabaseUnavailable, errors.TooManyConnections)

#: Of these something is stored, or may be; or the attempts have been made already; or the program itself is wrong.
NEVER = (
    errors.CommitOutcomeUnknown,
    errors.AfterCommitError,
    errors.PartialCommit,
    errors.RetriesExhausted,
    errors.UsageError,
)


def is_final(chain: Sequence[BaseException]) -> bool:
    """Whether nothing may be tried again after this error and what is behind it, whatever else speaks for it."""
    # Cancellation is no Exception: somebody wants the work to stop.
    return not isinstance(chain[0], Exception) or any(isinstance(item, NEVER) for item in chain)


def is_transient(
    chain: Sequence[BaseException], kind: type[BaseException] | None, on: tuple[type[Exception], ...]
) -> bool:
    """Whether it is a failure that another attempt may cure: the database calls it ``kind``, or ``on`` names it."""
    return any(isinstance(item, on) for item in chain) or (kind is not None and issubclass(kind, AGAIN))
