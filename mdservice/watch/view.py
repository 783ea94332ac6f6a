"""What there is to see at one moment: lines for positions and prices. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import attrs

from mdservice.model.quote import Quote
from mdservice.pnl.rows import PnlReport, Row

__all__ = ["Line", "Moves", "Service", "View", "make_view"]

Direction = Literal[-1, 0, 1]


@attrs.frozen
class Line:
    """A position, or the price of a symbol that is not held.

    Attributes:
        symbol: ``AAPL``.
        status: ``live``, ``stale``, ``unpriced``, or ``no price`` for one that is not held.
        price: The newest mid; None without one.
        bid: 0 where there is none; None without a quote.
        ask: Likewise.
        age_s: How old the newest quote is, seconds.
        move: Whether the price has just gone up or down.
        held: The position's row; None where it is not held.
    """

    symbol: str
    status: str
    price: Decimal | None
    bid: float | None
    ask: float | None
    age_s: float | None
    move: Direction
    held: Row | None = None


@attrs.frozen
class Service:
    """What the service says of itself, or why nothing is known.

    Attributes:
        state: ``running``, or ``no answer``.
        feed: ``iex by websockets``.
        reason: What is in the way, or None.
    """

    state: str = "asking…"
    feed: str = ""
    reason: str | None = None

    @classmethod
    def of_status(cls, status: Mapping[str, Any]) -> Service:
        """As ``/status`` tells."""
        feed = status.get("feed")
        feed = feed if isinstance(feed, dict) else {}
        reasons = status.get("reasons") or [None]
        name = f"{feed.get('name', '-')} by {feed.get('driver', '-')}"
        return cls(str(status.get("state", "-")), name, reasons[0])


@attrs.frozen
class View:
    """Everything on the screen.

    Attributes:
        lines: Positions first, in their source's order; then other symbols by name.
        total: Over the priced positions; None where nothing is held.
        total_pct: Of what these cost.
        priced: Positions with a price.
        unpriced: Positions without.
        events_per_s: Since the last look.
        service: The service's state.
        warnings: What may be out of date, and why.
    """

    lines: Sequence[Line]
    total: Decimal | None
    total_pct: Decimal | None
    priced: int
    unpriced: int
    events_per_s: float
    service: Service
    warnings: Sequence[str]


class Moves:
    """Which prices went up or down, for a moment after they did.

    Args:
        hold_s: For how long it is shown, seconds.
    """

    def __init__(self, hold_s: float = 2.0) -> None:
        self._hold_s = hold_s
        self._last: dict[str, tuple[Decimal, Direction, float]] = {}

    def see(self, symbol: str, price: Decimal | None, now_s: float) -> Direction:
        """The price now, and where it went last."""
        if price is None:
            self._last.pop(symbol, None)
            return 0
        before = self._last.get(symbol)
        if before is None:
            self._last[symbol] = price, 0, now_s
            return 0
        known, move, since_s = before
        if price != known:
            move, since_s = (1 if price > known else -1), now_s
            self._last[symbol] = price, move, since_s
        return move if now_s < since_s + self._hold_s else 0


def make_view(
    report: PnlReport | None,
    quotes: Mapping[str, Quote],
    symbols: Sequence[str],
    moves: Moves,
    *,
    total_pct: Decimal | None,
    events_per_s: float,
    service: Service,
    warnings: Sequence[str],
    now_ns: int,
) -> View:
    """Put it together.

    Args:
        report: Of all positions; None while they are not known.
        quotes: The newest of each symbol.
        symbols: Only these, in this order; empty for all.
        moves: Remembers the prices that were seen.
        total_pct: Of all positions.
        events_per_s: Since the last look.
        service: The service's state.
        warnings: What may be out of date.
        now_ns: UTC nanoseconds.
    """
    wanted = set(symbols)
    rows = [
        row for row in (report.positions if report else ()) if row.symbol in wanted or not wanted
    ]
    held = {row.symbol for row in rows}
    others = symbols or sorted(quotes)
    prices = {s: quotes[s].price if s in quotes else None for s in (*held, *others)}
    seen = {symbol: moves.see(symbol, price, now_ns / 1e9) for symbol, price in prices.items()}

    def line(symbol: str, row: Row | None) -> Line:
        quote = quotes.get(symbol)
        return Line(
            symbol=symbol,
            status=row.status if row else ("" if quote is not None else "no price"),
            price=row.current_price if row else prices[symbol],
            bid=quote.bid if quote else None,
            ask=quote.ask if quote else None,
            age_s=max(0.0, (now_ns - quote.ts_event_ns) / 1e9) if quote else None,
            move=seen[symbol],
            held=row,
        )

    lines = [line(row.symbol, row) for row in rows]
    lines += [line(symbol, None) for symbol in others if symbol not in held]
    return View(
        lines=lines,
        total=report.total_unrealized_pnl if report and report.positions else None,
        total_pct=total_pct,
        priced=report.priced if report else 0,
        unpriced=report.unpriced if report else 0,
        events_per_s=events_per_s,
        service=service,
        warnings=tuple(warnings),
    )
