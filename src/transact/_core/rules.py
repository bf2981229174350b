"""Which exceptions roll a transaction back."""

from __future__ import annotations

from transact.options import Options


def rolls_back(options: Options, error: BaseException) -> bool:
    """Whether ``error``, leaving a block with these options, rolls it back.

    The class of ``rollback_for`` or ``no_rollback_for`` that stands nearest in the exception's MRO decides; a tie, or no
    class at all, rolls back. So cancellation and ``GeneratorExit`` roll back unless somebody names them.
    """
    if not options.no_rollback_for:
        return True
    mro = type(error).__mro__
    for cls in mro:
        if cls in options.rollback_for:
            return True
        if cls in options.no_rollback_for:
            return False
    return True
