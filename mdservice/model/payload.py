"""Quotes as the JSON text that readers see, and back."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import msgspec

from mdservice.model.quote import Quote, mid_number
from mdservice.model.timestamps import format_ns, parse_rfc3339, parse_written

__all__ = ["WrittenPrice", "encode_quote", "parse_price", "quote_of"]

_Number = Annotated[float, msgspec.Meta(ge=0)]

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


class WrittenPrice(msgspec.Struct, gc=False):
    """The fields to read from a price object; the price follows from them."""

    symbol: str
    bid: _Number
    ask: _Number
    bid_size: int | float
    ask_size: int | float
    timestamp: str
    seq: int


parse_price = msgspec.json.Decoder(WrittenPrice).decode
"""Returns the fields of a price object; raises a ValueError for any other text."""


def quote_of(price: WrittenPrice) -> Quote:
    """The quote of a price object, with its own time as the time of reception.

    Raises:
        ValueError: The timestamp is not valid.
    """
    timestamp = price.timestamp
    written_ns = parse_written(timestamp)
    event_ns = parse_rfc3339(timestamp) if written_ns is None else written_ns
    quote = Quote(
        price.symbol,
        price.bid,
        price.ask,
        price.bid_size,
        price.ask_size,
        event_ns,
        event_ns,
        price.seq,
    )
    if written_ns is not None:
        quote.written_time = timestamp  # type: ignore[misc]  # mypy does not see the base's slot
    return quote
