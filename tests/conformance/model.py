"""What a program of nested blocks does by the rules of transactions, with sets and lists instead of a database.

It knows no SQL, no tasks and nothing of the library but its options, so it is small enough to be read beside the rules.
Errors are classes here; each method returns the one that the program gets to see, or `None`.
"""

import asyncio
import enum
from dataclasses import dataclass, field, replace

from transact import Propagation, errors


class Wrong(Exception):
    """What a block raises."""


class Harmless(Exception):
    """What rolls a strict block back, and no lenient one."""


class Harmful(Harmless):
    """What a lenient block is warned of: the nearer class wins."""


class Leave(BaseException):
    """What nobody's `except Exception` catches."""


class HookFailed(Exception):
    """What a hook raises."""


Error = type[BaseException]
RAISED = (Wrong, Harmless, Harmless, Harmful, Leave, asyncio.CancelledError)
RULES: dict[str, dict[str, Error]] = {
    "strict": {},
    "lenient": {"no_rollback_for": Harmless, "rollback_for": Harmful},
}


class Does(enum.Enum):
    """What a hook does besides being noted."""

    NOTHING = "nothing"
    FAIL = "fails"
    WRITE = "writes"
    CANCEL = "cancels its task"


@dataclass(frozen=True)
class Hook:
    name: str
    phase: str
    does: Does = Does.NOTHING
    critical: bool = False
    depth: int = 0


@dataclass(eq=False)
class Scope:
    """What is rolled back as a whole: a transaction, or (with a scope around) a savepoint."""

    around: "Scope | None" = None
    connected: bool = False  # of a transaction: it has sent its BEGIN
    words: set[str] = field(default_factory=set)
    pending: bool = False
    hooks: list[Hook] = field(default_factory=list)  # those of savepoints that were released too
    rollback_only: bool = False
    cause: Error | None = None
    asked_by_owner: bool = False

    @property
    def transaction(self) -> "Scope":
        return self if self.around is None else self.around.transaction

    @property
    def depth(self) -> int:
        return 0 if self.around is None else self.around.depth + 1

    def mark(self, cause: Error | None = None) -> None:
        self.rollback_only = True
        self.cause = self.cause or cause

    def of(self, phase: str) -> list[Hook]:
        return [hook for hook in self.hooks if hook.phase == phase]


@dataclass(frozen=True)
class Block:
    scope: Scope | None  # none: each statement is a transaction of its own
    joined: bool = False
    rules: str = "strict"

    def rolls_back(self, error: Error) -> bool:
        for cls in error.__mro__ if self.rules == "lenient" else ():
            if cls in (Harmless, Harmful):
                return cls is Harmful
        return True


class Do(enum.Enum):
    BEGIN = enum.auto()
    JOIN = enum.auto()
    SAVEPOINT = enum.auto()
    WITHOUT = enum.auto()


# none is open, one is open
MATRIX: dict[Propagation, tuple[Do | Error, Do | Error]] = {
    Propagation.REQUIRED: (Do.BEGIN, Do.JOIN),
    Propagation.MANDATORY: (errors.NoTransaction, Do.JOIN),
    Propagation.SUPPORTS: (Do.WITHOUT, Do.JOIN),
    Propagation.NESTED: (Do.BEGIN, Do.SAVEPOINT),
    Propagation.REQUIRES_NEW: (Do.BEGIN, Do.BEGIN),
    Propagation.NOT_SUPPORTED: (Do.WITHOUT, Do.WITHOUT),
    Propagation.NEVER: (Do.WITHOUT, errors.TransactionExists),
}


class Model:
    """The program's blocks, what another connection finds stored, and the hooks that ran with what they were given."""

    def __init__(self, *, one_writer: bool) -> None:
        self.one_writer = one_writer
        self.stored: set[str] = set()
        self.ran: list[tuple[str, object]] = []
        self.blocks: list[Block] = []

    @property
    def scope(self) -> Scope | None:
        """The innermost scope; `None` where no transaction is open."""
        return self.blocks[-1].scope if self.blocks else None

    @property
    def somebody_writes(self) -> bool:
        return any(block.scope is not None and block.scope.transaction.connected for block in self.blocks)

    # What a program does in a block.

    def open(self, propagation: Propagation, rules: str) -> Error | None:
        todo = MATRIX[propagation][self.scope is not None]
        if isinstance(todo, type):
            return todo
        if todo is Do.SAVEPOINT:
            return self.savepoint(rules)
        new = {Do.BEGIN: Scope, Do.JOIN: lambda: self.scope, Do.WITHOUT: lambda: None}[todo]()
        self.blocks.append(Block(new, todo is Do.JOIN, rules))
        return None

    def savepoint(self, rules: str = "strict") -> Error | None:
        if self.scope is None:
            return errors.NoTransaction
        if refused := self._use(self.scope):
            return refused
        self.blocks.append(Block(Scope(self.scope), rules=rules))
        return None

    def write(self, word: str) -> Error | None:
        refused = self._use(self.scope)
        if refused is None:
            (self.stored if self.scope is None else self.scope.words).add(word)
        return refused

    def add(self, word: str) -> None:
        """Leave a word in the session, which writes it when it has to."""
        self.scope.words.add(word)
        self.scope.pending = True

    def fail(self) -> Error:
        """Send a statement that the database refuses."""
        refused = self._use(self.scope)
        if refused is None and self.scope is not None:
            self.scope.mark(errors.NotNullViolation)
        return refused or errors.NotNullViolation

    def cut_off(self) -> Error:
        """Be cancelled while a statement is under way: the connection is in the middle of it."""
        scope = self.scope
        while scope is not None:
            scope.mark(asyncio.CancelledError)
            scope = scope.around
        return asyncio.CancelledError

    def set_rollback_only(self) -> Error | None:
        if self.scope is None:
            return errors.NoTransaction
        self.scope.mark()
        self.scope.asked_by_owner |= not self.blocks[-1].joined
        return None

    def register(self, hooks: list[Hook]) -> Error | None:
        if self.scope is None:
            return errors.NoTransaction
        self.scope.hooks += [replace(hook, depth=self.scope.depth) for hook in hooks]
        return None

    def _use(self, scope: Scope | None) -> Error | None:
        """Send a statement that writes: the first one begins the transaction."""
        if scope is not None and scope.rollback_only:
            return errors.UnexpectedRollback
        if self.one_writer and self.somebody_writes and (scope is None or not scope.transaction.connected):
            return errors.PoolSelfDeadlock
        if scope is not None:
            scope.transaction.connected, scope.pending = True, False
        return None

    # How a block ends: `error` is what leaves it.

    def leave(self, error: Error | None) -> Error | None:
        block = self.blocks[-1]
        scope = block.scope
        rolls_back = error is not None and block.rolls_back(error)
        if scope is None or block.joined:
            if scope is not None and rolls_back:
                scope.mark(error)
            self.blocks.pop()
            return error
        if scope.around is None and not (rolls_back or scope.rollback_only):
            refused = self._prepare(scope)
            rolls_back, error = refused is not None, refused or error
        self.blocks.pop()
        if rolls_back or scope.rollback_only:
            return self._roll_back(scope, error)
        if scope.around is None:
            return self._commit(scope, error)
        scope.around.words |= scope.words
        scope.around.hooks += scope.hooks
        return error

    def _prepare(self, scope: Scope) -> Error | None:
        if scope.pending and (refused := self._use(scope)):
            return refused
        for hook in scope.of("before_commit"):
            self.ran.append((hook.name, ()))
            if hook.does is Does.WRITE and (refused := self.write(hook.name)):
                return refused
            if hook.does in STOPPING:
                return STOPPING[hook.does]
        return None

    def _commit(self, scope: Scope, error: Error | None) -> Error | None:
        self.stored |= scope.words
        failed = self._run(scope.of("after_commit"))
        cancelled = self._run(scope.of("after_completion"), "committed")
        critical = [error for hook, error in failed if error is not None and hook.critical]
        if _cancelled(failed + cancelled):
            return asyncio.CancelledError
        return errors.AfterCommitError if critical else error

    def _roll_back(self, scope: Scope, error: Error | None) -> Error | None:
        deepest_first = sorted(scope.of("after_rollback"), key=lambda hook: -hook.depth)
        ended = self._run(deepest_first, error or scope.cause)
        if scope.around is None:
            ended += self._run(scope.of("after_completion"), "rolled back")
        else:
            scope.around.hooks += scope.of("after_completion")
        if _cancelled(ended):
            return asyncio.CancelledError
        return error if error or scope.asked_by_owner else errors.UnexpectedRollback

    def _run(self, hooks: list[Hook], *given: object) -> list[tuple[Hook, Error | None]]:
        """Run hooks that come after the end: what one does is a matter of its own."""
        return [(hook, self._run_one(hook, *given)) for hook in hooks]

    def _run_one(self, hook: Hook, *given: object) -> Error | None:
        self.ran.append((hook.name, given))
        if hook.does is Does.WRITE:
            if self.one_writer and self.somebody_writes:
                return errors.PoolSelfDeadlock
            self.stored.add(hook.name)
        return STOPPING.get(hook.does)


STOPPING: dict[Does, Error] = {Does.FAIL: HookFailed, Does.CANCEL: asyncio.CancelledError}


def _cancelled(ended: list[tuple[Hook, Error | None]]) -> bool:
    return any(hook.does is Does.CANCEL for hook, _ in ended)
