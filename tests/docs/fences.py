"""The fenced blocks of the documentation's pages."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=indent)(?P=ticks) *$",
    re.MULTILINE | re.DOTALL,
)
_MARKS = re.compile(r"^ *(?:`{3,}|~{3,})", re.MULTILINE)

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=str,
)

RUN = {"sh", "console", "python"}
"""What is run."""
COMPARED = {"json"}
"""What the command before it has to answer, in structure."""
READ = {"toml"}
"""What the program has to understand."""
NOT_CODE = {"text"}
"""Diagrams, formats, and words."""
MARKUP = re.compile(r"\{(?!code|doctest|sourcecode|literalinclude)[\w-]+\}")
"""Directives of the site's, which are no code."""
FROM_CODE = re.compile(r"<!-- from the code: .*?<!-- end -->", re.DOTALL)
"""Parts of the reference that test_reference.py compares with the code that writes them."""


@attrs.frozen
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_known(self) -> bool:
        return (
            self.language in RUN | COMPARED | READ | NOT_CODE
            or MARKUP.fullmatch(self.language) is not None
        )


def blocks_of(text: str, page: str = "page.md") -> list[Block]:
    """All blocks of a page; the language is the first word of a fence's information.

    Raises:
        ValueError: A fence is not closed.
    """
    blocks = [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            (found["info"].split() or [""])[0],
            textwrap.dedent(found["text"]),
        )
        for found in _FENCE.finditer(text)
    ]
    if 2 * len(blocks) != len(_MARKS.findall(text)):
        raise ValueError(f"{page}: a fence is not closed, or stands in another")
    return blocks


def blocks_of_page(page: Path) -> list[Block]:
    text = FROM_CODE.sub(lambda part: "\n" * part[0].count("\n"), page.read_text())
    return blocks_of(text, str(page.relative_to(ROOT)))
