"""Runs the programs of the documentation, block by block, where a reader would run them: in a folder of their own."""

import asyncio
import builtins
import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import threading
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from collections.abc import AsyncIterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import httpx
from fastapi import FastAPI

from tests.docs.pages import Block
from transact import Database, SyncDatabase


@contextlib.asynccontextmanager
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Start the application and talk to it; an error that it lets out becomes a 500, as a server does it."""
    app.middleware_stack = None  # the page may have added handlers since it was served last
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield http


class Program:
    """One program of a page: its namespace, what it printed, and the last error that it was meant to raise."""

    def __init__(self, name: str, folder: Path, database_url: str | None) -> None:
        self.module = ModuleType(re.sub(r"\W", "_", name))
        self.module.__dict__.update(client=client, database_url=database_url, folder=folder)
        self.folder = folder
        self.printed = io.StringIO()
        self.error: BaseException | None = None
        self.threads = set(threading.enumerate())

    async def run(self, blocks: list[Block]) -> None:
        sys.modules[self.module.__name__] = self.module  # pydantic and FastAPI look annotations up there
        sys.path.insert(0, str(self.folder))
        before, environment = set(sys.modules), dict(os.environ)
        os.environ.pop("PYTEST_ADDOPTS", None)  # a page that runs pytest shows what it prints without more
        try:
            for block in blocks:
                await self._take(block)
            await self._close_databases()
        finally:
            sys.path.remove(str(self.folder))
            os.environ.clear()
            os.environ.update(environment)
            for name in {self.module.__name__, *self._own_modules(before)}:
                sys.modules.pop(name, None)

    def _own_modules(self, before: set[str]) -> list[str]:
        return [
            name
            for name in set(sys.modules) - before
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(self.folder))
        ]

    async def _close_databases(self) -> None:
        for value in list(vars(self.module).values()):
            if isinstance(value, Database):
                await value.close()
            elif isinstance(value, SyncDatabase):
                value.close()
        for (
            thread
        ) in threading.enumerate():  # aiosqlite's, after a file that could not be opened, speak to the loop once more
            if "_connection_worker_thread" in thread.name and thread not in self.threads:
                await asyncio.to_thread(thread.join, 2)
        for _ in range(10):  # a transport that was aborted closes its socket a few turns of the loop later
            await asyncio.sleep(0)

    async def _take(self, block: Block) -> None:
        said = block.said
        if "not-run" in said:
            if block.language == "python":
                compiled(block)
        elif "file" in said:
            with (self.folder / said["file"]).open("a", encoding="utf-8") as file:
                file.write(block.code + "\n")
        elif "output" in said:
            printed, self.printed = self.printed.getvalue(), io.StringIO()
            assert_like(printed, block)
        elif "error" in said:
            assert self.error is not None, f"{block.place}: no block before has raised"
            assert_like(f"{type(self.error).__name__}: {self.error}", block)
        elif "server" in said:
            await asyncio.to_thread(converse, block, self.folder)
        else:
            await self._execute(block)

    async def _execute(self, block: Block) -> None:
        code = compiled(block)
        try:
            with contextlib.redirect_stdout(self.printed):
                vars(self.module).setdefault("__builtins__", builtins)  # as exec() does; a class body looks there
                result = FunctionType(code, vars(self.module))()
                if inspect.isawaitable(result):
                    await result
        except Exception as error:
            if type(error).__name__ != block.said.get("raises"):
                error.add_note(f"in {block.place}, which should raise {block.said.get('raises', 'nothing')}")
                raise
            self.error = error
        else:
            assert "raises" not in block.said, f"{block.place}: nothing was raised"


def compiled(block: Block) -> CodeType:
    """Compile a block so that a traceback shows the page and its line."""
    source = "\n" * (block.line - 1) + block.code
    return compile(source, str(block.page), "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def assert_like(said: str, block: Block) -> None:
    """What a program said is what the page shows; in the page … stands for anything."""
    pattern = ".*".join(re.escape(part) for part in " ".join(block.code.split()).split("…"))
    flat = " ".join(said.split())
    assert re.fullmatch(pattern, flat, re.DOTALL), f"{block.place} shows\n{block.code}\nbut the program said\n{said}"


_READY = re.compile(r"running on http://127\.0\.0\.1:(\d+)")


def converse(block: Block, folder: Path) -> None:
    """Serve the application of a console block for real, and run each `$ ` line of the block by a shell against it."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--no-access-log",
        "--port",
        "0",
        "--app-dir",
        str(folder),
        block.said["server"],
    ]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        log = ""
        try:
            for line in server.stderr:
                log += line
                if ready := _READY.search(line):
                    break
            else:
                raise AssertionError(f"{block.place}: the server did not start\n{log}")
            for said, expected in exchanges(block.code):
                line = said.replace(":8000", f":{ready[1]}")
                done = subprocess.run(
                    ["sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=30, check=False
                )
                shown = Block(block.page, block.line, "text", expected)
                assert_like(done.stdout.replace(f":{ready[1]}", ":8000") + done.stderr, shown)
        finally:
            server.terminate()


def exchanges(text: str) -> list[tuple[str, str]]:
    """The commands of a console block (after `$ `, continued by a backslash) and what each answers."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, answer = re.sub(r"\\\n\s*", "", part).partition("\n")
        assert shlex.split(command)[0] == "curl"
        found.append((f"{command} --silent --show-error", answer))
    return found
