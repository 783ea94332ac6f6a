"""Quotes and feed states as the JSON text that readers see."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from mdservice.model.events import FeedStatus
from mdservice.model.quote import Quote, mid_number
from mdservice.model.timestamps import format_ns

__all__ = ["encode_quote", "encode_status"]


class _Price(msgspec.Struct, gc=False):
    """The price object and the event; see :func:`encode_quote`."""

    symbol: str
    price: float | Decimal | None
    bid: float
    ask: float
    bid_size: int | float
    ask_size: int | float
    timestamp: str
    seq: int


_encoder = msgspec.json.Encoder(decimal_format="number")


def encode_quote(quote: Quote) -> bytes:
    """The price object: key, event and HTTP answer are these same bytes.

    ``{"symbol":"AAPL","price":187.135,"bid":187.12,"ask":187.15,"bid_size":2,"ask_size":3,
    "timestamp":"2026-11-20T15:51:44.208912345Z","seq":1042}``; ``price`` is the exact decimal
    mid as a JSON number, or null.
    """
    return _encoder.encode(
        _Price(
            quote.symbol,
            mid_number(quote.bid, quote.ask),
            quote.bid,
            quote.ask,
            quote.bid_size,
            quote.ask_size,
            format_ns(quote.ts_event_ns),
            quote.seq,
        )
    )


def encode_status(status: FeedStatus) -> bytes:
    """The ``feed.status`` message: ``{"state":"connected","at":"2026-…Z",…details}``."""
    return _encoder.encode({"state": status.state, "at": format_ns(status.at_ns), **status.details})
