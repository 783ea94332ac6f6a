"""Order books of crypto pairs."""

from __future__ import annotations

from collections.abc import Hashable

import attrs

from mdservice.model.written import NOT_WRITTEN, WrittenForm

__all__ = ["ORDERBOOKS_FORM", "Level", "OrderBook", "order_book_identity"]

Level = tuple[float, int | float]
"""A price, and the size that is offered or wanted there."""


@attrs.define
class OrderBook:
    """The order book of one symbol.

    Before the router it may be a change of the book: then it has the changed levels, in any order,
    and a size of 0 removes a level.

    Attributes:
        symbol: ``BTC/USD``.
        bids, asks: Price and size of each level, best first.
        ts_event_ns: The time of the last change, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: Its number among the accepted books of its symbol since the service started, from 1;
            0 until it is accepted.
        whole: Whether it is the whole book and replaces what was known. False for a change.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    whole: bool = attrs.field(default=True, eq=False, metadata=NOT_WRITTEN)
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


def order_book_identity(book: OrderBook) -> Hashable:
    """The values that make two books equal."""
    return book.symbol, book.ts_event_ns, book.bids, book.asks


ORDERBOOKS_FORM = WrittenForm(OrderBook)
