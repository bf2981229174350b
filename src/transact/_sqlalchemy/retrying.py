"""Trying a transaction again after a transient failure: whether, after how long a pause, and ``db.attempts()``."""

from __future__ import annotations

import asyncio
import dis
import functools
import sys
import time
from collections.abc import Callable, Coroutine
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from tenacity import RetryCallState, Retrying, stop_after_attempt, stop_before_delay, wait_random_exponential

from transact._core.events import Retried
from transact._core.propagation import Action, decide
from transact._core.retries import is_final, is_transient
from transact.errors import RetriesExhausted, UsageError
from transact.options import Options, Retry
from transact.translation import judged

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime


def retry_of(runtime: Runtime, options: Options, otherwise: Retry | None = None) -> Retry | None:
    """How a call with ``options`` is tried again; ``None`` if it is not, since it begins no outermost transaction."""
    retry = options.retry or runtime.defaults.retry or otherwise
    if retry is None or runtime.innermost() is not None or decide(options, None) is not Action.BEGIN:
        return None
    return retry


class Tries:
    """The attempts at one piece of work: how many there were, and since when."""

    __slots__ = ("_before", "_runtime", "_state")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # Whoever starts this while handling an error gives that error to all that is raised in here, as its context.
        self._before = sys.exc_info()[1]
        self._state = RetryCallState(Retrying(), None, (), {})

    def curable(self, retry: Retry, *errors: BaseException | None) -> Exception | None:
        """The first of ``errors``, with which an attempt failed, that another may cure; judged by codes, never by words."""
        found = None
        for error in errors:
            if error is None or error is self._before:
                continue
            kind, chain = judged(error, self._runtime.engine.dialect.name, self._before)
            if is_final(chain):
                return None
            if found is None and isinstance(error, Exception) and is_transient(chain, kind, retry.on):
                found = error
        return found

    def pause(self, retry: Retry, error: Exception, label: str) -> float:
        """Seconds to wait before the next attempt. Raises ``RetriesExhausted`` if there have been enough."""
        state = self._state
        state.set_exception((type(error), error, error.__traceback__))
        state.upcoming_sleep = wait_random_exponential(multiplier=retry.base, max=retry.max_delay)(state)
        enough = [stop_after_attempt(retry.attempts)(state)]
        if retry.deadline is not None:
            enough.append(stop_before_delay(retry.deadline)(state))
        attempts = state.attempt_number
        if any(enough):
            raise RetriesExhausted(
                f"{label!r} failed {attempts} times, the last time with {type(error).__name__}; nothing of it is stored",
                attempts=attempts,
            ) from error
        self._runtime.emit(Retried(self._runtime.name, label, attempts, state.upcoming_sleep, error))
        state.prepare_for_next_attempt()
        return state.upcoming_sleep


class _Attempts:
    """What ``db.attempts()`` returns: an iterator of attempts, of which the last one succeeds."""

    _write: str

    def __init__(self, runtime: Runtime, retry: Retry | None, label: str, block: Callable[[], Any]) -> None:
        self._runtime = runtime
        self._retry = retry
        self._label = label
        self._block = block
        self._tries = Tries(runtime)
        self._attempt: _Attempt | None = None
        self._failure: Exception | None = None
        self._loop: tuple[CodeType, int] | None = None

    def _begin_turn(self, frame: FrameType) -> None:
        self._loop = (frame.f_code, frame.f_lasti)

    def _pause(self) -> float | None:
        """Seconds until the next attempt; ``None`` if the last one has succeeded."""
        failure, self._failure = self._failure, None
        if failure is not None and self._retry is not None:
            return self._tries.pause(self._retry, failure, self._label)
        if self._attempt is not None:
            if not self._attempt.entered:
                raise UsageError(f"an attempt was not used: write `{self._write} attempt as session:` in the loop")
            return None
        return 0.0

    def _catch(self, error: BaseException, cause: BaseException | None, left_at: tuple[CodeType, int]) -> bool:
        """Keep the failure for the loop's next turn; return ``False`` if ``error`` has to go on instead."""
        failure = self._tries.curable(self._retry, error, cause) if self._retry is not None else None
        if failure is None:
            return False
        if not _leads_back(left_at, self._loop):
            error.add_note(
                "It was not tried again: the block of an attempt must be the last thing in its loop and be left neither by "
                "return nor by break, or what follows would take a failure for success."
            )
            return False
        self._failure = failure
        return True


class _Attempt:
    """One attempt, used once."""

    __slots__ = ("_attempts", "_block", "entered")

    def __init__(self, attempts: _Attempts, block: Any) -> None:
        self._attempts = attempts
        self._block = block
        self.entered = False

    def _enter(self) -> None:
        if self.entered:
            raise UsageError("an attempt was used twice: it is one transaction; the loop brings the next")
        self.entered = True

    def _catch(self, error: BaseException | None, left_at: tuple[CodeType, int]) -> bool:
        return error is not None and self._attempts._catch(error, self._block.cause, left_at)


class Attempts(_Attempts):
    """The loop of ``async for``."""

    _write = "async with"

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Attempt]:
        """The next attempt, after a pause. Raises ``RetriesExhausted``."""
        self._begin_turn(sys._getframe(1))  # the documented way to the caller's frame
        return self._next()

    async def _next(self) -> Attempt:
        seconds = self._pause()
        if seconds is None:
            raise StopAsyncIteration
        if self._attempt is not None:
            await asyncio.sleep(seconds)
        self._attempt = attempt = Attempt(self, self._block())
        return attempt


class Attempt(_Attempt):
    """One attempt: ``async with attempt as session``."""

    __slots__ = ()

    async def __aenter__(self) -> AsyncSession:
        """Open the transaction. Raises ``UsageError`` the second time: each attempt has a session of its own."""
        self._enter()
        session: AsyncSession = await self._block.__aenter__()
        return session

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, bool]:
        """End the transaction; a failure that another attempt may cure goes to the loop."""
        frame = sys._getframe(1)
        return self._end(kind, error, traceback, (frame.f_code, frame.f_lasti))

    async def _end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        left_at: tuple[CodeType, int],
    ) -> bool:
        try:
            await self._block.__aexit__(kind, error, traceback)
        except Exception as failed:
            if self._catch(failed, left_at):
                return True
            raise
        return self._catch(error, left_at)


class SyncAttempts(_Attempts):
    """The loop of ``for``."""

    _write = "with"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SyncAttempt:
        """The next attempt, after a pause. Raises ``RetriesExhausted``."""
        self._begin_turn(sys._getframe(1))
        seconds = self._pause()
        if seconds is None:
            raise StopIteration
        time.sleep(seconds)
        self._attempt = attempt = SyncAttempt(self, self._block())
        return attempt


class SyncAttempt(_Attempt):
    """One attempt: ``with attempt as session``."""

    __slots__ = ()

    def __enter__(self) -> Session:
        """Open the transaction. Raises ``UsageError`` the second time: each attempt has a session of its own."""
        self._enter()
        session: Session = self._block.__enter__()
        return session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """End the transaction; a failure that another attempt may cure goes to the loop."""
        frame = sys._getframe(1)
        left_at = (frame.f_code, frame.f_lasti)
        try:
            self._block.__exit__(kind, error, traceback)
        except Exception as failed:
            if self._catch(failed, left_at):
                return True
            raise
        return self._catch(error, left_at)


# A COMMIT that fails is known only when the block has been left. To swallow that failure is right if the next thing that
# happens is the loop's next turn, and a lost order told as a success if it is a `return` or any other statement. Python
# has no word for "then start over", so the caller's byte code is read (https://docs.python.org/3/library/dis.html): from
# the call of __aexit__ nothing but the awaiting of it, the tidying of the stack and a jump to the loop may follow; a second
# call would be the exit of a block around this one, which would be told of a success. What is not recognised counts as not
# leading back: then the failure goes on, which loses nothing but a retry.
_TIDY = frozenset(
    {
        "CACHE", "CLEANUP_THROW", "END_SEND", "EXTENDED_ARG", "GET_AWAITABLE", "LOAD_CONST", "NOP", "NOT_TAKEN",
        "POP_EXCEPT", "POP_TOP", "RESUME", "TO_BOOL", "YIELD_VALUE",
    }
)  # fmt: skip
_FOLLOWED = (
    "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_FORWARD", "POP_JUMP_FORWARD_IF_TRUE", "POP_JUMP_IF_TRUE", "SEND",
)  # fmt: skip


def _leads_back(left_at: tuple[CodeType, int], loop: tuple[CodeType, int] | None) -> bool:
    """Whether code that goes on at ``left_at``, with a failure swallowed, comes to ``loop`` and to nothing before it."""
    return loop is not None and left_at[0] is loop[0] and _jumps_to(*left_at, loop[1])


@functools.lru_cache(maxsize=256)
def _jumps_to(code: CodeType, offset: int, target: int) -> bool:
    instructions = {instruction.offset: instruction for instruction in dis.get_instructions(code)}
    following = sorted(instructions)
    at = following[following.index(offset) + 1]
    for _ in following:  # more steps than instructions would be a circle
        if at == target:
            return True
        instruction = instructions[at]
        if instruction.opname in _FOLLOWED:
            at = instruction.argval
        elif instruction.opname in _TIDY:
            at = following[following.index(at) + 1]
        else:
            return False
    return False
