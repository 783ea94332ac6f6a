"""What an earlier run wrote last: where this one goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from mdservice.errors import StoreError
from mdservice.logs import get_logger
from mdservice.model.decode import decode_quote
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.sinks.store import PriceStore

__all__ = ["READ_LIMIT_S", "read_last_quotes"]

_log = get_logger(__name__)

READ_LIMIT_S = 2.0
"""A store that is away must not hold up the start."""


async def read_last_quotes(
    store: PriceStore, symbols: Sequence[str], latest_ns: int
) -> Sequence[Quote]:
    """The quotes of the symbols' keys; none where the store does not answer.

    A key that cannot be read, or whose time is too far ahead, is left out and logged.

    Args:
        store: Connected here; the writer connects it anew.
        symbols: Of ``*`` nothing is known.
        latest_ns: The latest time that a quote may have, UTC nanoseconds.
    """
    named = [symbol for symbol in symbols if symbol != EVERY_SYMBOL]
    if not named:
        return ()
    prices: Mapping[str, bytes] = {}
    reason = f"no answer within {READ_LIMIT_S:g} s"
    try:
        with anyio.move_on_after(READ_LIMIT_S):
            await store.connect()
            prices = await store.read_prices(named)
            reason = ""
    except StoreError as exc:
        reason = str(exc)
    if reason:
        _log.warning("last_prices_not_read", url=store.address, reason=reason)
    found = [_read(symbol, payload, latest_ns) for symbol, payload in prices.items()]
    return [quote for quote in found if quote is not None]


def _read(symbol: str, payload: bytes, latest_ns: int) -> Quote | None:
    try:
        quote = decode_quote(payload)
    except ValueError as exc:
        reason = str(exc)
    else:
        if quote.symbol == symbol and quote.ts_event_ns <= latest_ns:
            return quote
        reason = f"it is of {quote.symbol} at {quote.timestamp}"
    _log.warning("last_price_ignored", key=f"price:{symbol}", reason=reason)
    return None
