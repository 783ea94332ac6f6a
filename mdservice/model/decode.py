"""Price objects as they were written, back as quotes."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339

__all__ = ["decode_quote"]

_Number = Annotated[float, msgspec.Meta(ge=0)]


class _Price(msgspec.Struct):
    """What :func:`mdservice.model.encode.encode_quote` writes; the price follows from the rest."""

    symbol: str
    bid: _Number
    ask: _Number
    bid_size: int | float
    ask_size: int | float
    timestamp: str
    seq: int


def decode_quote(payload: bytes) -> Quote:
    """The quote of a price object; it counts as received at its own time.

    Raises:
        ValueError: It is no price object.
    """
    price = msgspec.json.decode(payload, type=_Price)  # msgspec.DecodeError is a ValueError
    event_ns = parse_rfc3339(price.timestamp)
    return Quote(
        price.symbol,
        price.bid,
        price.ask,
        price.bid_size,
        price.ask_size,
        event_ns,
        event_ns,
        price.seq,
    )
