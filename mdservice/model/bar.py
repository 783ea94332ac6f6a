"""Bars of a minute or a day."""

from __future__ import annotations

from collections.abc import Hashable

import attrs

from mdservice.model.written import NOT_WRITTEN, WrittenForm

__all__ = ["BARS_FORM", "Bar", "bar_identity"]


@attrs.define
class Bar:
    """Prices and volume of one minute, or of one day.

    Attributes:
        symbol: ``AAPL``.
        open, high, low, close: Prices in the feed's currency.
        volume: Shares, or a fractional number of coins.
        trade_count: The number of trades; None where the feed does not say.
        vwap: The volume-weighted average price, likewise.
        updated: Whether a bar of the same symbol and start was published before.
        ts_event_ns: The start of the bar, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: Its number among the accepted bars of its symbol and event since the service started,
            from 1; 0 until it is accepted.
        newest: Whether no known bar of its symbol began later when it was accepted. A late bar is
            published, but is not its symbol's latest value.
        daily: Whether it is the bar of a day, from the channel ``dailyBars``, and not of a minute.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    open: float
    high: float
    low: float
    close: float
    volume: int | float
    trade_count: int | None
    vwap: float | None
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    updated: bool = False
    newest: bool = attrs.field(default=True, eq=False, metadata=NOT_WRITTEN)
    daily: bool = attrs.field(default=False, eq=False, metadata=NOT_WRITTEN)
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


def bar_identity(bar: Bar) -> Hashable:
    """The values that make a bar from history equal to one from the stream."""
    return (
        bar.symbol,
        bar.ts_event_ns,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        bar.trade_count,
        bar.vwap,
    )


BARS_FORM = WrittenForm(Bar)
