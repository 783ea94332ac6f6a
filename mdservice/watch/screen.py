"""The view as a table that fits into a terminal, whatever its size. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final

import attrs
from rich.console import Group, RenderableType
from rich.text import Text

from mdservice.watch.view import Line, View

__all__ = ["screen"]

_GAP: Final = "  "
_ARROWS: Final = {1: "▲", -1: "▼", 0: " "}
_COLOURS: Final = {"live": "green", "stale": "yellow", "unpriced": "red", "no price": "red"}
_STATES: Final = {"running": "green", "starting": "yellow", "degraded": "red", "no answer": "red"}
_MINUTE_S, _HOUR_S = 60, 3_600
_FIXED_LINES: Final = 3
"""The head, the names of the columns, the foot."""


@attrs.frozen
class _Column:
    """A column, and how soon it is left out where there is no room: the highest first."""

    title: str
    text: Callable[[Line], str]
    style: Callable[[Line], str]
    leaves: int
    left: bool = False


def _plain(_line: Line) -> str:
    return ""


def _signed(line: Line) -> str:
    pnl = line.held.unrealized_pnl if line.held else None
    return "" if pnl is None else "green" if pnl > 0 else "red" if pnl < 0 else ""


def _price(line: Line) -> str:
    if line.price is None:
        return "-"
    return f"{'~' if line.status == 'stale' else _ARROWS[line.move]} {_number(line.price)}"


def screen(view: View, width: int, height: int, foot: str = "") -> RenderableType:
    """As many lines as there is room for; what is left out is said.

    Args:
        view: What there is.
        width: Columns of the terminal.
        height: Its lines.
        foot: The last line.
    """
    notes = [Text(text, style="yellow", overflow="ellipsis", no_wrap=True) for text in _notes(view)]
    totals = _total(view)
    room = height - _FIXED_LINES - len(notes) - (totals is not None)
    shown = view.lines[: max(1, room)] if len(view.lines) > room else view.lines
    left_out = len(view.lines) - len(shown)
    parts: list[Text] = [_head(view), *notes, *_table(shown, width)]
    if totals is not None:
        parts.append(totals)
    last = "; ".join(filter(None, (f"{left_out} more" if left_out else "", foot)))
    if last:
        parts.append(Text(last, style="dim"))
    for part in parts:
        part.no_wrap = True
        part.rstrip()
        part.truncate(width, overflow="ellipsis")
    return Group(*parts)


def _notes(view: View) -> list[str]:
    found = [view.service.reason] if view.service.reason else []
    return [text for text in dict.fromkeys((*found, *view.warnings)) if text]


def _head(view: View) -> Text:
    state = view.service.state
    return Text.assemble(
        "mdservice ",
        (state, _STATES.get(state, "")),
        f"{_GAP}{view.service.feed}{_GAP}{view.events_per_s:,.0f} events/s",
    )


def _total(view: View) -> Text | None:
    if view.total is None:
        return None
    style = "green" if view.total > 0 else "red" if view.total < 0 else ""
    pct = f" ({view.total_pct:+.2f} %)" if view.total_pct is not None else ""
    rest = f", {view.unpriced} without a price" if view.unpriced else ""
    count = f"{view.priced} priced{rest}"
    return Text.assemble(
        ("total P&L ", "bold"), (f"{_money(view.total)}{pct}", style), f"{_GAP}{count}"
    )


def _table(lines: Sequence[Line], width: int) -> list[Text]:
    """One text a line; columns that do not fit are left out, the least important first."""
    columns = [column for column in _COLUMNS if any(column.text(line) for line in lines)]
    cells = {column.title: [column.text(line) for line in lines] for column in columns}

    def wide(column: _Column) -> int:
        return max(len(column.title), *map(len, cells[column.title])) if lines else 0

    while len(columns) > 1 and sum(map(wide, columns)) + len(_GAP) * (len(columns) - 1) > width:
        columns.remove(max(columns, key=lambda column: column.leaves))
    found = [Text(_GAP.join(_put(c, c.title, wide(c)) for c in columns).rstrip(), style="dim")]
    for place, line in enumerate(lines):
        text = Text()
        for number, column in enumerate(columns):
            text.append(_GAP if number else "")
            text.append(_put(column, cells[column.title][place], wide(column)), column.style(line))
        found.append(text)
    return found


def _put(column: _Column, text: str, width: int) -> str:
    return text.ljust(width) if column.left else text.rjust(width)


def _number(value: Decimal | None) -> str:
    return "-" if value is None else f"{value:f}"


def _side(value: float | None) -> str:
    return f"{value:g}" if value and value == int(value) else repr(value) if value else "-"


def _money(value: Decimal) -> str:
    return f"{value:+,.2f}"


def _pnl(line: Line) -> str:
    if line.held is None:
        return ""
    pnl = line.held.unrealized_pnl
    return "-" if pnl is None else _money(pnl)


def _pct(line: Line) -> str:
    if line.held is None:
        return ""
    pct = line.held.unrealized_pnl_pct
    return "-" if pct is None else f"{pct:+.2f}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.0f} h"


def _status(line: Line) -> str:
    return line.status


def _status_colour(line: Line) -> str:
    return _COLOURS.get(line.status, "")


_COLUMNS: Final = (
    _Column("symbol", lambda line: line.symbol, lambda _: "bold", 0, left=True),
    _Column("qty", lambda line: _number(line.held.qty) if line.held else "", _plain, 3),
    _Column("avg", lambda line: _number(line.held.avg_entry_price) if line.held else "", _plain, 6),
    _Column("price", _price, lambda line: {1: "green", -1: "red", 0: ""}[line.move], 1),
    _Column("bid", lambda line: _side(line.bid), _plain, 8),
    _Column("ask", lambda line: _side(line.ask), _plain, 9),
    _Column("age", lambda line: _age(line.age_s), _plain, 7),
    _Column("P&L", _pnl, _signed, 2),
    _Column("%", _pct, _signed, 4),
    _Column("status", _status, _status_colour, 5, left=True),
)
