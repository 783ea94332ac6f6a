"""What is shown at one moment, and its lines for a terminal of any size. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final, Literal

import attrs
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mdservice.cli.watch.keys import FROM_THE_SMALLEST
from mdservice.gateway.risk_observer import SeenRisk
from mdservice.pnl.limits import LimitState

__all__ = [
    "COLUMNS",
    "GAP",
    "Account",
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
_END_BY_KEY: Final = "q or Ctrl-C ends"
_PER_LIMIT: Final = 8
"""A screen shows a limit for each so many lines."""
_WIDEST_BAR, _NARROWEST_BAR = 24, 4
_PER_CENT: Final = 7
_NARROW: Final = 60
"""On a narrower screen, the rows that have no room are named before the keys."""
_MUCH: Final = Decimal("0.8")
_LARGE_FRACTION: Final = Decimal("9.995")
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
        start: How many lots and other symbols are above those.
        account: What is known of the whole account.
        risk: The breaker and the limits; None where they are not known.
        order: The column by which rows are sorted; None for the usual order.
        reverse: Whether the other way round.
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
    start: int = 0
    account: Account | None = None
    risk: SeenRisk | None = None
    order: str | None = None
    reverse: bool = False


@attrs.frozen
class Account:
    """The sums over the account; unknown values are None.

    Attributes:
        day_pnl: The P&L since the last close.
        realized: What today's fills realised; None also where fills are not followed, so that the
            P&L of the day is that of the positions alone.
        market_value: Of the priced lots.
        exposure: The sum of their absolute market values.
    """

    day_pnl: Decimal | None = None
    realized: Decimal | None = None
    market_value: Decimal | None = None
    exposure: Decimal | None = None


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
        market_value: Negative if short.
        day_pnl: The P&L since the last close.
    """

    qty: Decimal | None
    avg_entry_price: Decimal | None
    pnl: Decimal | None
    pnl_pct: Decimal | None
    market_value: Decimal | None = None
    day_pnl: Decimal | None = None


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
        keys: Whether the user can press keys.

    Attributes:
        rows: How many lots and other symbols the last lines show.
    """

    def __init__(
        self, *, plain_text: bool = False, moving: bool = True, keys: bool = False
    ) -> None:
        self.rows = 0
        self._keys = keys
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
        if height is None:
            self.rows = len(view.held) + len(view.others)
            return [*head, *self._table(view, view.held, view.others, width), *hints]
        sums = bool(view.sums and view.held_count)
        for spare in range(4):  # on a narrow screen, the sums need more lines
            room = max(1, height - len(head) - len(hints) - 2 - sums - spare)
            held = view.held[:room]
            others = view.others[: max(0, room - len(held) - bool(held))]
            body = [*head, *self._table(view, held, others, width), *hints]
            if len(body) < height:
                break
        self.rows = len(held) + len(others)
        foot = self._foot(view, len(held), len(others), width)
        space = [Text()] * (height - len(body) - 1)
        return [*body[: max(0, height - 1)], *space, foot][:height]

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
        risk = self._risk(view.risk, width, height)
        return [*lines, *_paragraphs(warnings, width, "yellow"), *risk, *space]

    def _risk(self, risk: SeenRisk | None, width: int, height: int | None) -> list[Text]:
        """The breaker, and the limits that are used most, as many as have room."""
        if risk is None:
            return []
        low = height is not None and height < _LOW
        room = len(risk.limits) if height is None else 0 if low else max(1, height // _PER_LIMIT)
        shown = risk.limits[:room]
        lines = [] if low and not _is_tripped(risk) else _breaker(risk, len(shown), width)
        names = [_limit_name(limit) for limit in shown]
        values = [_limit_value(limit) for limit in shown]
        wide = min(max(map(cell_len, names), default=0), max(8, width - _PER_CENT - GAP))
        value_wide = max(map(len, values), default=0)
        used = wide + GAP + _PER_CENT
        with_values = used + GAP + value_wide <= width
        used += (GAP + value_wide) * with_values
        bar = min(_WIDEST_BAR, width - used - GAP)
        for limit, name, value in zip(shown, names, values, strict=True):
            style = _used_style(limit.used)
            line = Text(no_wrap=True, overflow="crop")
            line.append(self._cut(name, wide).ljust(wide))
            if with_values:
                line.append(" " * GAP + value.rjust(value_wide))
            if bar >= _NARROWEST_BAR:
                line.append(" " * GAP)
                full = min(bar, int((limit.used or 0) * bar + Decimal("0.5")))
                full_char, rest_char = ("#", "-") if self._plain_text else ("█", "░")
                line.append(full_char * full, style)
                line.append(rest_char * (bar - full), "dim")
            line.append(" " * GAP + _used_text(limit.used).rjust(_PER_CENT), style)
            line.truncate(width)
            lines.append(line)
        return lines

    def _foot(self, view: View, held: int, others: int, width: int) -> Text:
        """What is not shown, and the keys; the most important first."""
        ways = _not_shown(view.held_count - held, view.others_count - others)
        if view.start:
            total = view.held_count + view.others_count
            text = f"{view.start + 1:,}-{view.start + held + others:,} of {total:,}"
            ways = [f"rows {text}", text]
        texts = [*(f"{way}  {_END}" for way in ways[:1]), *ways, _END]
        if self._keys:
            arrows, order = "up/down" if self._plain_text else "↑↓", view.order or "size"
            every = f"{arrows} PgUp PgDn Home End"
            keys = (
                f"{every}  s sorts by {order}  r reverses  {_END_BY_KEY}",
                f"{arrows}  s sorts: {order}  r reverses  q ends",
                f"{arrows}  s {order}  r  q ends",
                "q ends",
            )
            clear, shortest = ways[:-1] or [""], ways[-1:]
            texts = [f"{way}  {some}".strip() for some in keys for way in clear]
            texts += [f"{way}  {some}" for some in keys for way in shortest] + ways
            if width < _NARROW:
                texts = ways[:1] + texts
        return Text(next((text for text in texts if len(text) <= width), ""), "dim")

    def _table(
        self, view: View, held: Sequence[Entry], others: Sequence[Entry], width: int
    ) -> list[Text]:
        sums = view.sums if view.held_count else None
        entries = [*held, *others]
        if not entries and sums is None:
            return [Text("no prices yet", style="dim")]
        placed = self._placed(entries, view, width)
        headings = Text()
        for at in placed:
            name = self._heading(at.column, view)[: at.width]
            left = at.column.align == "left"
            headings.append(" " * (at.start - headings.cell_len))
            headings.append(name.ljust(at.width) if left else name.rjust(at.width), "dim")
        rows = [self._row(entry, index, placed) for index, entry in enumerate(entries)]
        total = [] if sums is None else _total(sums, placed, width)
        account = [] if sums is None or view.account is None else _account(view.account, width)
        gap = [Text()] if held and others else []
        return [headings, *rows[: len(held)], *total, *account, *gap, *rows[len(held) :]]

    def _heading(self, column: Column, view: View) -> str:
        if column.name != view.order:
            return column.name
        down = (column.name in FROM_THE_SMALLEST) is view.reverse
        return (
            f"{column.name} {('v' if down else '^') if self._plain_text else '▼' if down else '▲'}"
        )

    def _placed(self, entries: Sequence[Entry], view: View, width: int) -> list[_Placed]:
        sums = view.sums if view.held_count else None
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
            heading = self._heading(column, view)
            cells = (*texts[column.name], heading, extra.get(column.name, ""))
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
            text = self._cut(at.texts[index], at.width)
            fill = " " * (at.width - cell_len(text))
            line.append(" " * (at.start - line.cell_len))
            style = f"{dim} {at.column.style(entry)}".strip()
            line.append(text + fill if at.column.align == "left" else fill + text, style)
        line.rstrip()
        return line

    def _cut(self, text: str, width: int) -> str:
        if cell_len(text) <= width:
            return text
        return set_cell_size(text, width - 1) + ("~" if self._plain_text else "…")


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


def _cents_text(amount: Decimal) -> str:
    """``12,000.50``, ``-300.00``: an amount without a sign for more than 0."""
    return money_text(amount).removeprefix("+")


def _known(text: Callable[[Decimal], str], number: Decimal | None) -> str:
    return "" if number is None else text(number)


COLUMNS: Final = (
    Column("symbol", 0, 6, lambda e: e.symbol, lambda _e: "bold", "left"),
    Column(
        "qty", 5, 5, lambda e: number_text(e.lot.qty) if e.lot else "", align="point", of_lots=True
    ),
    Column(
        "avg price",
        7,
        9,
        lambda e: price_text(e.lot.avg_entry_price) if e.lot else "",
        align="point",
        of_lots=True,
    ),
    Column("price", 1, 10, _price, lambda e: sign_style(e.change), "point"),
    Column("change", 11, 7, _change, lambda e: sign_style(e.change), "point"),
    Column("bid", 10, 8, lambda e: price_text(e.bid), align="point"),
    Column("ask", 10, 8, lambda e: price_text(e.ask), align="point"),
    Column("age", 9, 6, lambda e: age_text(e.age_s)),
    Column("last", 12, 9, lambda e: _known(price_text, e.last), align="point", if_known=True),
    Column(
        "day %",
        13,
        8,
        lambda e: _known(percent_text, e.day_pct),
        lambda e: sign_style(e.day_pct),
        if_known=True,
    ),
    Column("volume", 14, 9, lambda e: _known(number_text, e.volume), if_known=True),
    Column(
        "value",
        8,
        9,
        lambda e: _known(_cents_text, e.lot.market_value) if e.lot else "",
        of_lots=True,
        if_known=True,
    ),
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
        6,
        9,
        lambda e: percent_text(e.lot.pnl_pct) if e.lot else "",
        lambda e: sign_style(e.lot.pnl_pct) if e.lot else "",
        of_lots=True,
    ),
    Column(
        "day P&L",
        4,
        9,
        lambda e: _known(money_text, e.lot.day_pnl) if e.lot else "",
        lambda e: sign_style(e.lot.day_pnl) if e.lot else "",
        of_lots=True,
        if_known=True,
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


def _account(account: Account, width: int) -> list[Text]:
    """``day +123.45  realised +50.00  value 12,000.00  exposure 45,000.00``, of what is known."""
    parts = [
        (f"{name} {text(amount)}", amount if signed else None)
        for name, amount, text, signed in (
            (
                "day of held" if account.realized is None else "day",
                account.day_pnl,
                money_text,
                True,
            ),
            ("realised", account.realized, money_text, True),
            ("value", account.market_value, _cents_text, False),
            ("exposure", account.exposure, _cents_text, False),
        )
        if amount is not None
    ]
    lines = [Text(no_wrap=True, overflow="crop")]
    for part, amount in parts:
        gap = GAP if lines[-1] else 0
        if lines[-1] and lines[-1].cell_len + gap + len(part) > width:
            lines.append(Text(no_wrap=True, overflow="crop"))
            gap = 0
        lines[-1].append(" " * gap).append(part[:width], f"bold {sign_style(amount)}".strip())
    return [line for line in lines if line]


def _is_tripped(risk: SeenRisk) -> bool:
    return risk.breaker is not None and risk.breaker.tripped


def _breaker(risk: SeenRisk, shown: int, width: int) -> list[Text]:
    """The state of the breaker, the number of limits, and why they are blind."""
    breaker, count = risk.breaker, len(risk.limits)
    if breaker is None:
        lines = [Text("breaker not known", "yellow")]
    elif breaker.tripped:
        value = "" if breaker.value is None else f" at {number_text(breaker.value)}"
        at = f", {breaker.at[:19]}Z" if breaker.at else ""
        text = printable(f"BREAKER TRIPPED: {breaker.rule}; {breaker.subject}{value}{at}")
        lines = _paragraphs([text], width, "bold reverse red")
    else:
        lines = [Text("breaker closed", "green")]
    if count:
        left_out = f", {shown} shown" if shown < count else ""
        judge = "" if risk.judge is None else f", judged by {risk.judge}"
        part = f"{count} {'limit' if count == 1 else 'limits'}{left_out}{judge}"
        if lines[-1].cell_len + GAP + len(part) <= width:
            lines[-1].append(" " * GAP).append(part, "dim not bold not reverse")
        elif judge:
            lines += _paragraphs([part], width, "dim")
    lines[-1].truncate(width)
    blind = [printable(reason) for reason in risk.blind]
    if len(blind) > 1:
        blind[1:] = [f"and {len(blind) - 1} more"]
    return lines + (_paragraphs([f"blind: {', '.join(blind)}"], width, "yellow") if blind else [])


def _limit_name(limit: LimitState) -> str:
    """The rule, with the symbol of one that is for each."""
    if limit.rule.startswith("* ") and limit.subject != "*":
        return printable(f"{limit.subject} {limit.rule[2:]}")
    return printable(limit.rule)


def _limit_value(limit: LimitState) -> str:
    if limit.value is not None and limit.rule.removesuffix(" trip").endswith(" stale"):
        return age_text(float(limit.value))
    return _exact(limit.value, 0, 4)


def _used_style(used: Decimal | None) -> str:
    if used is None:
        return "magenta"
    return "bold red" if used > 1 else "yellow" if used >= _MUCH else "green"


def _used_text(used: Decimal | None) -> str:
    if used is None:
        return "blind"
    return f"{used * 100:.0f} %" if used < _LARGE_FRACTION else "> 999 %"


def _put(line: Text, text: str, start: int, style: str) -> None:
    line.append(" " * (start - line.cell_len))
    line.append(text, f"bold {style}".strip())


def _not_shown(held: int, others: int) -> list[str]:
    """How many rows have no room: a long text and shorter ones; empty if all have."""
    kinds = ((held, "position"), (others, "symbol"))
    counts = ", ".join(f"{n:,} {kind}{'' if n == 1 else 's'}" for n, kind in kinds if n > 0)
    count = f"{held + others:,}"
    return [f"not shown: {counts}", f"not shown: {count}", f"+{count}"] if counts else []


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
