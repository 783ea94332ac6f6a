"""Pieces of Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

__all__ = ["code", "fence", "paragraph", "table"]

_WIDTH = 100


def code(text: str) -> str:
    """``redis_url`` → `` `redis_url` ``."""
    return f"`{text}`"


def fence(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```"


def paragraph(text: str) -> str:
    """Text as lines of the width that the other pages have."""
    return textwrap.fill(
        " ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar within a cell is no end of it."""
    lines = [_row(head), "|" + "---|" * len(head)]
    lines += [_row([cell.replace("|", "\\|") for cell in row]) for row in rows]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
