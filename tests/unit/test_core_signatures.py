"""What cannot be given a session is refused when it is decorated, by an error that says why."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from transact._core.signatures import session_position
from transact.errors import UsageError


async def coroutine(session: Any, number: int) -> int:
    return number


def plain(session: Any) -> None:
    pass


async def items(session: Any) -> AsyncIterator[int]:
    yield 1


def plain_items(session: Any) -> Iterator[int]:
    yield 1


async def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("function", "is_async", "why"),
    [
        (plain, True, "not an `async def`"),
        (items, True, "async generator"),
        (nothing, True, "no parameter for the session"),
        (coroutine, False, "`async def` function or a generator"),
        (plain_items, False, "`async def` function or a generator"),
    ],
)
def test_a_function_that_cannot_run_in_a_transaction_is_refused(
    function: Callable[..., Any], why: str, *, is_async: bool
) -> None:
    with pytest.raises(UsageError, match=why):
        session_position(function, is_async=is_async)


@pytest.mark.parametrize(("function", "is_async"), [(coroutine, True), (plain, False)])
def test_the_session_is_the_first_parameter_of_a_function(function: Callable[..., Any], *, is_async: bool) -> None:
    assert session_position(function, is_async=is_async) == 0
