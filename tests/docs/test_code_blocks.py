"""Every code block of the documentation does what its page says."""

import asyncio
import gc
import re
import shlex
import shutil
import subprocess
import tomllib
from contextlib import ExitStack

import pytest

from tests.conftest import lasting_database
from tests.docs.pages import PAGES, ROOT, Block, blocks, programs
from tests.docs.programs import Program

PROGRAMS = programs()
NEEDS = {"postgresql": "pg18-asyncpg", "mariadb": "mariadb"}
SHELL = [block for page in PAGES for block in blocks(page) if block.language == "sh"]


def with_warnings(name: str) -> object:
    told = [part.said["warns"] for part in PROGRAMS[name] if "warns" in part.said]
    return pytest.param(name, marks=[pytest.mark.filterwarnings(f"ignore:{text}") for text in told])


@pytest.mark.parametrize("name", [with_warnings(name) for name in PROGRAMS])
def test_a_program_of_the_documentation_runs_and_says_what_its_page_shows(name, request, tmp_path, monkeypatch):
    parts = PROGRAMS[name]
    if any("server" in part.said for part in parts) and shutil.which("curl") is None:
        pytest.skip("curl is missing")
    needs = {part.said["needs"] for part in parts if "needs" in part.said}
    assert len(needs) <= 1
    databases = ExitStack()
    url = lasting_database(request.config, NEEDS[needs.pop()], tmp_path, databases) if needs else None
    for variable in ("TRANSACT_URL", "TRANSACT_POOL_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    with databases:
        asyncio.run(Program(name, tmp_path, url).run(parts))
    gc.collect()  # what a program leaves behind is found in its own test


def test_every_code_block_is_of_a_language_that_is_checked():
    for page in PAGES:
        for block in blocks(page):
            checked = block.language in {"python", "sh"} or block.said.keys() & {"error", "output", "file", "server"}
            assert checked or "not-run" in block.said, f"{block.place}: nothing checks this {block.language!r} block"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_a_shell_block_names_commands_options_and_extras_that_exist(block: Block):
    subprocess.run(["sh", "-n"], input=block.code, text=True, check=True)
    for line in re.sub(r"\\\n", " ", block.code).splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            _check_command(words, block)


def _check_command(words: list[str], block: Block) -> None:
    command, *arguments = words
    if command.startswith("./scripts/"):
        _check_script(command, arguments, block)
    elif command in {"pip", "python"} and "install" in arguments:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        asked = {extra for word in arguments for part in re.findall(r"\[([\w,]+)\]", word) for extra in part.split(",")}
        assert asked <= project["optional-dependencies"].keys() | {"standard"}, f"{block.place}: {asked}"
    else:
        assert command in {"cd", "uvicorn", "fastapi", "pytest", "export", "python"}, f"{block.place}: {command}?"
        if command == "python" and arguments[0] != "-m":
            assert (ROOT / arguments[0]).is_file(), f"{block.place}: {arguments[0]} does not exist"


def _check_script(command: str, arguments: list[str], block: Block) -> None:
    script = ROOT / command
    assert script.is_file(), f"{block.place}: {command} does not exist"
    text = script.read_text(encoding="utf-8")
    head = text[: text.find("\nset ")]
    for option in (word for word in arguments if word.startswith("--")):
        assert option.partition("=")[0] in head, f"{block.place}: {command} says nothing of {option}"
