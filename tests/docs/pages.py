"""What the documentation holds that can be checked: its code blocks, with what is said about them, its links and anchors.

Everything said about a block stands in an HTML comment, which no reader sees:

- ``<!-- doc: program=NAME -->`` before a block: the block belongs to that program of its page (default: ``page``). The
  Python blocks of a program run one after the other in one namespace; ``await`` works at the top level.
- ``<!-- python program=NAME … -->`` with code on the next lines: the same, for code that only the test needs.
- ``raises=CLASS``: the block must end with an error of that class name.
- ``error``: this text block is what the last such error says; ``…`` stands for anything.
- ``output``: this text block is what the program has printed since the last one.
- ``file=NAME``: the block is part of a file in the program's folder; several blocks are put together in their order.
- ``warns="TEXT"``: Python warns of that, because the program does on purpose what should not be done.
- ``server=MODULE:APP``: this console block's ``$ curl`` lines are sent to that application, and their answers compared.
- ``needs=postgresql``, ``needs=mariadb``: the program finds the URL of an empty database in ``database_url``.
- ``not-run="REASON"``: the block is only compiled.
"""

import itertools
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
KNOWN = {"program", "raises", "error", "output", "file", "server", "needs", "not-run", "warns"}

_HIDDEN = re.compile(r"\A<!-- python(?P<said>[^\n]*)\n(?P<code>.*)^-->\s*\Z", re.DOTALL | re.MULTILINE)
_SAID = re.compile(r"<!-- doc:(?P<said>.*?)-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One code block of a page: its language, its text, the line it begins on and what is said about it."""

    page: Path
    line: int
    language: str
    code: str
    said: dict[str, str] = field(default_factory=dict)
    hidden: bool = False

    @property
    def program(self) -> str:
        return self.said.get("program", "page")

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, the hidden ones included, in their order."""
    found: list[Block] = []
    said: dict[str, str] = {}
    for token in tokens(page):
        line = (token.map or [0])[0] + 1
        if token.type == "html_block":
            if hidden := _HIDDEN.match(token.content):
                found.append(
                    Block(page, line + 1, "python", hidden["code"], _options(hidden["said"], page), hidden=True)
                )
            for comment in _SAID.finditer(token.content):
                said |= _options(comment["said"], page)
        elif token.type == "fence":
            found.append(Block(page, line + 1, token.info.strip(), token.content, said))
            said = {}
    assert not said, f"{page.name}: {said} is said about no block"
    return found


def _options(text: str, page: Path) -> dict[str, str]:
    options = {name: value for name, _, value in (word.partition("=") for word in shlex.split(text))}
    assert options.keys() <= KNOWN, f"{page.name}: {options.keys() - KNOWN} is no word of tests/docs/pages.py"
    return options


def programs() -> dict[str, list[Block]]:
    """The blocks that run, by page and program."""
    found: dict[str, list[Block]] = {}
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python" or block.said.keys() & {"error", "output", "file", "server"}:
                found.setdefault(f"{page.relative_to(ROOT)}:{block.program}", []).append(block)
    return found


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    for token, inline in itertools.pairwise(tokens(page)):
        if token.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = 1
            while (anchor := slug if number == 1 else f"{slug}-{number - 1}") in found:
                number += 1
            found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    """Where a page's links lead."""
    return [
        str(child.attrs["href"])
        for token in tokens(page)
        for child in token.children or ()
        if child.type == "link_open"
    ]


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows, without the head, of the first table under a heading; cells as their source text."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("#") and line.lstrip("# ") == heading)
    rows: list[list[str]] = []
    for line in lines[start + 1 :]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]
