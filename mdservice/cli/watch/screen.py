"""What is shown at one moment, and its lines for a terminal of any size. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final, Literal

import attrs
from rich.cells import cell_len, set_cell_size
from rich.text import Text

__all__ = [
    "COLUMNS",
    "GAP",
    "Column",
    "Entry",
    "EntryStatus",
    "Lot",
    "Screen",
    "Sums",
    "View",
    "age_text",
    "choose",
    "money_text",
    "number_text",
    "percent_text",
    "price_text",
    "printable",
    "sign_style",
]

_LARGE: Final = Decimal("1e12")
_SMALL: Final = Decimal("1e-6")
_CENTS: Final = Decimal("0.005")
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
_TENTHS_BELOW_S = 10

EntryStatus = Literal["live", "closed", "stale", "unpriced", "old", "not asked", "HALTED"]
"""As in a P&L report; besides: ``old``, known from before the prices went away, ``not asked``, a
symbol that is not subscribed to, and ``HALTED``, a symbol whose trading is halted."""

GAP: Final = 2
_STATUS_STYLES: Final = {
    "live": "green",
    "closed": "cyan",
    "stale": "yellow",
    "unpriced": "magenta",
    "old": "yellow",
    "not asked": "magenta",
    "HALTED": "bold reverse red",
}

_END: Final = "Ctrl-C ends"
_WARNINGS, _WARNINGS_WHERE_LOW = 3, 1
_LOW: Final = 14
_LINES_OF_A_TEXT: Final = 2
_MORE: Final = " …"


@attrs.frozen
class View:
    """Everything that a screen shows.

    Attributes:
        state: The state of the service, in one or two words.
        well: Whether the service works normally.
        about: Details, the most important first.
        warnings: Why prices or positions may be out of date.
        hints: What to do about it.
        held: The first lots.
        held_count: The number of all lots.
        sums: None without positions.
        others: The first other symbols.
        others_count: The number of all other symbols.
    """

    state: str
    well: bool
    about: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    held: tuple[Entry, ...] = ()
    held_count: int = 0
    sums: Sums | None = None
    others: tuple[Entry, ...] = ()
    others_count: int = 0


@attrs.frozen
class Entry:
    """A symbol, or one lot of it.

    Attributes:
        symbol: ``AAPL``.
        status: One or two words.
        price: The mid, exact.
        bid: None without a bid.
        ask: Likewise.
        age_s: The age of the quote.
        change: The change of the price in the last moment; None without a change.
        lot: None for a symbol that is not held.
        last: The price of the last trade; None where trades are not subscribed.
        day_pct: The change since the day's open, per cent; None without a bar of the day.
        volume: The day's volume, likewise.
    """

    symbol: str
    status: EntryStatus
    price: Decimal | None = None
    bid: Decimal | None = None
    ask: Decimal | None = None
    age_s: float | None = None
    change: Decimal | None = None
    lot: Lot | None = None
    last: Decimal | None = None
    day_pct: Decimal | None = None
    volume: Decimal | None = None


@attrs.frozen
class Lot:
    """One lot of a position with its P&L; unknown values are None.

    Attributes:
        qty: Negative for a short position.
        avg_entry_price: Price per share.
        pnl: Exact.
        pnl_pct: Per cent of its cost.
    """

    qty: Decimal | None
    avg_entry_price: Decimal | None
    pnl: Decimal | None
    pnl_pct: Decimal | None


@attrs.frozen
class Sums:
    """The sums over all lots.

    Attributes:
        pnl: The P&L of the priced lots.
        pnl_pct: Per cent of their cost; None if that is 0.
        priced: The number of lots with a price, whatever their status.
        unpriced: The number of lots without a price.
    """

    pnl: Decimal
    pnl_pct: Decimal | None
    priced: int
    unpriced: int


class Screen:
    """Lays views out. Columns never get narrower while the terminal's width stays the same.

    Args:
        plain_text: Use only ASCII, for terminals without other characters.
        moving: Whether several views are shown in turn, so that changes can be marked.
    """

    def __init__(self, *, plain_text: bool = False, moving: bool = True) -> None:
        self._plain_text = plain_text
        self._left_out = () if moving else ("change",)
        self._room: int | None = None
        self._widths: dict[str, int] = {}
        self._decimals: dict[str, int] = {}

    def lines(self, view: View, width: int, height: int | None = None) -> list[Text]:
        """The lines of the screen, none of them wider than ``width``.

        Args:
            view: The view to show. It needs no more rows than ``height``.
            width: The cells of a line.
            height: The lines of the screen, all of which are used. None uses as many as the view
                needs, without a footer.
        """
        if width != self._room:
            self._room = width
            self._widths.clear()
            self._decimals.clear()
        head = self._head(view, width, height)
        hints = _paragraphs(view.hints, width, "cyan")
        sums = view.sums if view.held_count else None
        if height is None:
            table = self._table(view.held, sums, view.others, width)
            return [*head, *table, *hints]
        for spare in (0, 1):  # on a narrow screen, the sums need one more line
            room = max(1, height - len(head) - len(hints) - 2 - bool(sums) - spare)
            held = view.held[:room]
            others = view.others[: max(0, room - len(held) - bool(held))]
            body = [*head, *self._table(held, sums, others, width), *hints]
            if len(body) < height:
                break
        more = (view.held_count - len(held), view.others_count - len(others))
        space = [Text()] * (height - len(body) - 1)
        return [*body[: max(0, height - 1)], *space, _foot(more, width)][:height]

    def _head(self, view: View, width: int, height: int | None) -> list[Text]:
        low = height is not None and height < _LOW
        parts = _flow([view.state, *view.about], width, 1 if low else 2)
        lines = [Text(line) for line in parts]
        if lines:
            lines[0].stylize("bold green" if view.well else "bold red", 0, len(view.state))
        most = _WARNINGS_WHERE_LOW if low else _WARNINGS
        warnings = list(view.warnings)
        if height is not None and len(warnings) > most:
            left_out = len(warnings) - most
            warnings[most:] = [f"{left_out} more {'warning' if left_out == 1 else 'warnings'}"]
        space = [] if low else [Text()]
        return [*lines, *_paragraphs(warnings, width, "yellow"), *space]

    def _table(
        self, held: Sequence[Entry], sums: Sums | None, others: Sequence[Entry], width: int
    ) -> list[Text]:
        entries = [*held, *others]
        if not entries and sums is None:
            return [Text("no prices yet", style="dim")]
        placed = self._placed(entries, sums, width)
        headings = Text()
        for at in placed:
            name = at.column.name[: at.width]
            left = at.column.align == "left"
            headings.append(" " * (at.start - headings.cell_len))
            headings.append(name.ljust(at.width) if left else name.rjust(at.width), "dim")
        rows = [self._row(entry, index, placed) for index, entry in enumerate(entries)]
        total = [] if sums is None else _total(sums, placed, width)
        gap = [Text()] if held and others else []
        return [headings, *rows[: len(held)], *total, *gap, *rows[len(held) :]]

    def _placed(self, entries: Sequence[Entry], sums: Sums | None, width: int) -> list[_Placed]:
        columns = [
            column
            for column in COLUMNS
            if (sums is not None or not column.of_lots)
            and column.name not in self._left_out
            and (not column.if_known or any(column.text(entry) for entry in entries))
        ]
        texts = {column.name: self._texts(column, entries) for column in columns}
        extra = {}
        if sums is not None:
            extra = {"P&L": money_text(sums.pnl), "P&L %": percent_text(sums.pnl_pct)}
        for column in columns:
            cells = (*texts[column.name], column.name, extra.get(column.name, ""))
            longest = max(map(cell_len, cells))
            known = self._widths.get(column.name, column.least)
            self._widths[column.name] = max(longest, known)
        # Even the narrowest screen shows the symbols, cut if necessary.
        self._widths["symbol"] = min(self._widths["symbol"], width)
        found, start = [], 0
        for column in choose(columns, self._widths, width):
            wide = self._widths[column.name]
            found.append(_Placed(column, texts[column.name], wide, start))
            start += wide + GAP
        return found

    def _texts(self, column: Column, entries: Iterable[Entry]) -> list[str]:
        texts = [column.text(entry) for entry in entries]
        if self._plain_text:
            texts = [text.replace("▲", "^").replace("▼", "v") for text in texts]
            texts = [text.encode("ascii", "replace").decode() for text in texts]
        if column.align != "point":
            return texts
        behind = [len(text.partition(".")[2]) + ("." in text) for text in texts]
        most = max([self._decimals.get(column.name, 0), *behind])
        self._decimals[column.name] = most
        return [text + " " * (most - has) for text, has in zip(texts, behind, strict=True)]

    def _row(self, entry: Entry, index: int, placed: Sequence[_Placed]) -> Text:
        line = Text(no_wrap=True, overflow="crop")
        dim = "dim" if entry.status == "old" else ""
        for at in placed:
            text = at.texts[index]
            if cell_len(text) > at.width:
                text = set_cell_size(text, at.width - 1) + ("~" if self._plain_text else "…")
            fill = " " * (at.width - cell_len(text))
            line.append(" " * (at.start - line.cell_len))
            style = f"{dim} {at.column.style(entry)}".strip()
            line.append(text + fill if at.column.align == "left" else fill + text, style)
        line.rstrip()
        return line


def number_text(number: Decimal | None) -> str:
    """A quantity: ``1,250``, ``-2.5``; nine decimals at most, without trailing zeros."""
    return _exact(number, 0, 9)


def price_text(price: Decimal | None) -> str:
    """``187.135``, ``402.50``: from two to six decimals."""
    return _exact(price, 2, 6)


def money_text(amount: Decimal | None) -> str:
    """``+1,371.35``, rounded to cents; a sign unless that is 0."""
    if amount is None:
        return "-"
    if abs(amount) >= _LARGE:
        return f"{amount:+.4E}"
    return "0.00" if abs(amount) <= _CENTS else f"{amount:+,.2f}"


def percent_text(percent: Decimal | None) -> str:
    """``+24.76 %``; a sign unless that is 0."""
    return "-" if percent is None else f"{money_text(percent)} %"


def age_text(seconds: float | None) -> str:
    """``0.3 s``, ``12 s``, ``3 min``, ``5 h``, ``2 d``; cut, not rounded."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < _TENTHS_BELOW_S:
        return f"{int(seconds * 10) / 10:.1f} s"
    if seconds < _MINUTE_S:
        return f"{int(seconds)} s"
    if seconds < _HOUR_S:
        return f"{int(seconds) // _MINUTE_S} min"
    if seconds < _DAY_S:
        return f"{int(seconds) // _HOUR_S} h"
    return f"{int(seconds) // _DAY_S} d"


def printable(text: str) -> str:
    """The text on one line, without control characters."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def _exact(number: Decimal | None, least: int, most: int) -> str:
    """Grouped by thousands; numbers of many digits with an exponent."""
    if number is None:
        return "-"
    if number and not _SMALL <= abs(number) < _LARGE:
        return f"{number:.4E}"
    text = f"{number or Decimal(0):,.{most}f}"
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0").ljust(least, "0")
    return f"{whole}.{decimals}" if decimals else whole


@attrs.frozen
class Column:
    """One column.

    Attributes:
        name: Its heading.
        rank: A narrow terminal shows the columns of low rank first. Columns of the same rank
            appear together.
        least: The minimum width, so that the width seldom changes.
        of_lots: Whether only held lots have it.
        if_known: Whether it is left out where no entry has it.
        text: Returns the text of an entry.
        style: Returns the colour of an entry.
        align: ``point`` aligns the decimal points.
    """

    name: str
    rank: int
    least: int
    text: Callable[[Entry], str]
    style: Callable[[Entry], str] = lambda _entry: ""
    align: Literal["left", "right", "point"] = "right"
    of_lots: bool = False
    if_known: bool = False


def sign_style(amount: Decimal | None) -> str:
    """Green for a gain, red for a loss; the sign shows it too."""
    if not amount:
        return ""
    return "green" if amount > 0 else "red"


def _price(entry: Entry) -> str:
    change = entry.change
    arrow = " " if not change else "▲" if change > 0 else "▼"
    return f"{arrow} {price_text(entry.price)}"


def _change(entry: Entry) -> str:
    if not entry.change:
        return ""
    return f"{'+' if entry.change > 0 else ''}{price_text(entry.change)}"


def _known(text: Callable[[Decimal], str], number: Decimal | None) -> str:
    return "" if number is None else text(number)


COLUMNS: Final = (
    Column("symbol", 0, 6, lambda e: e.symbol, lambda _e: "bold", "left"),
    Column(
        "qty", 5, 5, lambda e: number_text(e.lot.qty) if e.lot else "", align="point", of_lots=True
    ),
    Column(
        "avg price",
        6,
        9,
        lambda e: price_text(e.lot.avg_entry_price) if e.lot else "",
        align="point",
        of_lots=True,
    ),
    Column("price", 1, 10, _price, lambda e: sign_style(e.change), "point"),
    Column("change", 9, 7, _change, lambda e: sign_style(e.change), "point"),
    Column("bid", 8, 8, lambda e: price_text(e.bid), align="point"),
    Column("ask", 8, 8, lambda e: price_text(e.ask), align="point"),
    Column("age", 7, 6, lambda e: age_text(e.age_s)),
    Column("last", 10, 9, lambda e: _known(price_text, e.last), align="point", if_known=True),
    Column(
        "day %",
        11,
        8,
        lambda e: _known(percent_text, e.day_pct),
        lambda e: sign_style(e.day_pct),
        if_known=True,
    ),
    Column("volume", 12, 9, lambda e: _known(number_text, e.volume), if_known=True),
    Column(
        "P&L",
        2,
        9,
        lambda e: money_text(e.lot.pnl) if e.lot else "",
        lambda e: sign_style(e.lot.pnl) if e.lot else "",
        of_lots=True,
    ),
    Column(
        "P&L %",
        4,
        9,
        lambda e: percent_text(e.lot.pnl_pct) if e.lot else "",
        lambda e: sign_style(e.lot.pnl_pct) if e.lot else "",
        of_lots=True,
    ),
    Column("status", 3, 8, lambda e: e.status, lambda e: _STATUS_STYLES[e.status], "left"),
)
"""From left to right."""


def choose(columns: Iterable[Column], widths: Mapping[str, int], room: int) -> Sequence[Column]:
    """The columns that fit, chosen by rank, in their own order.

    Args:
        columns: All, from left to right.
        widths: The width that each needs.
        room: The cells of a line.
    """
    columns = list(columns)
    used, ranks = -GAP, set[int]()
    for rank in sorted({column.rank for column in columns}):
        needed = sum(GAP + widths[column.name] for column in columns if column.rank == rank)
        if used + needed > room:
            break
        used += needed
        ranks.add(rank)
    return [column for column in columns if column.rank in ranks]


@attrs.frozen
class _Placed:
    """A column with its texts and its place."""

    column: Column
    texts: Sequence[str]
    width: int
    start: int


def _total(sums: Sums, placed: Sequence[_Placed], width: int) -> list[Text]:
    """The sums below their columns, and the counts of priced and unpriced lots beside or below."""
    counts = f"{sums.priced:,} priced, {sums.unpriced:,} unpriced"
    by_name = {at.column.name: at for at in placed}
    pnl, percent = money_text(sums.pnl), percent_text(sums.pnl_pct)
    amount = by_name.get("P&L")
    if amount is None:
        return [Text(line, "bold") for line in _flow(["total", pnl, percent, counts], width)]
    line, left = Text(no_wrap=True, overflow="crop"), f"total  {counts}"
    before = amount.start + amount.width - len(pnl)
    beside = len(left) + GAP <= before
    line.append(left if beside else "total", "bold")
    below = [] if beside else [counts]
    _put(line, pnl, before, sign_style(sums.pnl))
    share = by_name.get("P&L %")
    if share is not None:
        end = share.start + share.width
        _put(line, percent, end - len(percent), sign_style(sums.pnl_pct))
    else:
        below = [percent, *below]
    rest = _flow(below, width)
    return [line, *(Text(f"{text}", "bold") for text in rest)]


def _put(line: Text, text: str, start: int, style: str) -> None:
    line.append(" " * (start - line.cell_len))
    line.append(text, f"bold {style}".strip())


def _foot(more: tuple[int, int], width: int) -> Text:
    held, others = more
    kinds = ((held, "position"), (others, "symbol"))
    counts = ", ".join(f"{n:,} {kind}{'' if n == 1 else 's'}" for n, kind in kinds if n > 0)
    count = f"{held + others:,}"
    ways = [f"not shown: {counts}", f"not shown: {count}", f"+{count}"] if counts else []
    parts = [way for way in ways if len(way) <= width][:1]
    lines = _flow([*parts, _END], width)
    return Text(lines[0] if lines else "", "dim")


def _flow(parts: Iterable[str], width: int, most: int = 2) -> list[str]:
    """Put parts side by side on that many lines. Only the first part may be cut."""
    lines: list[str] = []
    for part in parts:
        if not part:
            continue
        if lines and len(lines[-1]) + GAP + len(part) <= width:
            lines[-1] += " " * GAP + part
        elif not lines:
            lines.append(part[:width])
        elif len(lines) < most and len(part) <= width:
            lines.append(part)
        else:
            break
    return lines


def _paragraphs(texts: Iterable[str], width: int, style: str) -> list[Text]:
    lines: list[str] = []
    for text in texts:
        lines += textwrap.wrap(
            " ".join(text.split()),
            max(width, len(_MORE)),
            max_lines=_LINES_OF_A_TEXT,
            placeholder=_MORE,
            break_on_hyphens=False,
        )
    return [Text(line[:width], style) for line in lines]
