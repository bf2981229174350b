"""The processes of the variants, seen from the one that drives them in turn."""

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from benchmarks._asgi import Cost
from benchmarks._environments import ROOT, python_of
from benchmarks._variants import Variant

ANSWER_SECONDS = 900.0  # of silence, after which a process is given up
STOP_SECONDS = 10.0


class WorkerError(Exception):
    """The process of a variant has ended or fallen silent; the message is the last thing that it said."""


class Process:
    """A process that serves ``variants``, with the Python of ``environment``, run by the command ``under`` if there is one."""

    def __init__(self, variants: Sequence[Variant], url: str, environment: Variant, under: Sequence[str] = ()) -> None:
        self._lock = Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        names = [variant.name for variant in variants]
        process = subprocess.Popen(
            [*under, python_of(environment), "-m", "benchmarks._worker", url, *names],
            cwd=ROOT,
            # No packages of the caller's in the environment of a peer.
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        assert process.stdin is not None  # noqa: S101  # pipes were asked for
        assert process.stdout is not None  # noqa: S101
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **command: Any) -> dict[str, Any]:
        with self._lock:
            try:
                self._stdin.write(json.dumps(command).encode() + b"\n")
                self._stdin.flush()
            except BrokenPipeError:
                pass  # it has ended: its last words tell why
            return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; the first one tells that the process is ready. Raises ``WorkerError`` if there is none."""
        if not select.select([self._stdout], [], [], ANSWER_SECONDS)[0]:
            raise WorkerError(f"no answer for {ANSWER_SECONDS:.0f} s")
        line = self._stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)  # it closes its answers before it says why
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return said.splitlines()[-1] if said else "ended without a word"

    def close(self) -> None:
        """End the process, if it has not ended by itself."""
        with self._process:
            self._stdin.close()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._errors.close()


@dataclass(frozen=True)
class Worker:
    """One variant in its process."""

    process: Process
    name: str
    versions: dict[str, str]

    def cost(self, method: str, path: str, requests: int) -> Cost:
        """What each of so many requests costs."""
        return Cost(**self.process.ask(do="cost", name=self.name, method=method, path=path, requests=requests))

    def memory(self, requests: int) -> dict[str, int]:
        """How large the process is after so many further requests."""
        return self.process.ask(do="memory", name=self.name, requests=requests)


@contextmanager
def started(
    url: str,
    variants: Sequence[Variant],
    failed: dict[Variant, str],
    *,
    together: bool = False,
    at: Variant | None = None,
) -> Iterator[dict[Variant, Worker]]:
    """Each variant in a process of its own, until the block ends. A peer that does not start goes into ``failed``.

    ``together``: one process for all, which is quicker to start and proves nothing. ``at``: the environment of this one.
    """
    groups = [tuple(variants)] if together else [(variant,) for variant in variants]
    with ExitStack() as stack:
        processes = [stack.enter_context(closing(Process(group, url, at or group[0]))) for group in groups]
        workers: dict[Variant, Worker] = {}
        for group, process in zip(groups, processes, strict=True):
            try:
                versions = process.answer()
            except WorkerError as error:
                if group[0].peer is None:
                    raise
                failed[group[0]] = f"does not start: {error}"
                continue
            workers |= {variant: Worker(process, variant.name, versions[variant.name]) for variant in group}
        yield workers
