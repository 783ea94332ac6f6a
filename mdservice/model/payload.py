"""Quotes as the JSON text that readers see, and back."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated

import msgspec

from mdservice.errors import InvalidSymbol
from mdservice.model.quote import Quote, mid_number
from mdservice.model.symbol import is_symbol
from mdservice.model.timestamps import format_ns, parse_rfc3339

__all__ = ["QuoteDecoder", "decode_quote", "encode_quote"]

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


def decode_quote(payload: bytes) -> Quote:
    """The quote of a price object, with its own time as the time of reception.

    Raises:
        ValueError: The text is not a price object.
    """
    return _quote(_decode(payload))  # msgspec.DecodeError is a ValueError


class QuoteDecoder:
    """Decodes payloads, selects those of some symbols, and counts the invalid ones.

    Args:
        symbols: The symbols to select; empty means all.
    """

    def __init__(self, symbols: Iterable[str] = ()) -> None:
        self._wanted = frozenset(symbols)
        self._seen = set(self._wanted)
        self.errors = 0
        """Payloads that are not a price object, or whose symbol is not valid."""
        self.last_error: str | None = None
        """The error of the last of them."""

    def decode(self, payload: object) -> Quote | None:
        """The quote; None for another symbol, and for an invalid payload, which is counted."""
        try:
            price = _decode(payload)  # type: ignore[arg-type]  # anything else is a TypeError
            symbol = price.symbol
            if self._wanted:
                return _quote(price) if symbol in self._wanted else None
            if symbol not in self._seen:
                self._check(symbol)
            return _quote(price)
        except (ValueError, TypeError, InvalidSymbol) as exc:
            self.errors += 1
            self.last_error = str(exc)
            return None

    def decode_all(self, payloads: Iterable[object]) -> list[Quote]:
        """The selected quotes of the payloads, in order."""
        decode = self.decode
        return [quote for payload in payloads if (quote := decode(payload)) is not None]

    def _check(self, symbol: str) -> None:
        if not is_symbol(symbol):
            raise InvalidSymbol(f"{symbol!r} is not the symbol of a quote")
        self._seen.add(symbol)


class _WrittenPrice(msgspec.Struct):
    """The fields to read from a price object; the price follows from them."""

    symbol: str
    bid: _Number
    ask: _Number
    bid_size: int | float
    ask_size: int | float
    timestamp: str
    seq: int


_decode = msgspec.json.Decoder(_WrittenPrice).decode


def _quote(price: _WrittenPrice) -> Quote:
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
