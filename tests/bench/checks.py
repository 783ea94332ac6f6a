"""What must be true after a load: the last price of each symbol, and that no quote is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import msgspec
import redis

from tests.bench.tape import SPREAD_CENTS, bid_cents, quotes_of, symbol_names

_NEAR = 1e-6
"""A plain handler's mid has float residue."""
_MOST_TOLD = 3


@attrs.frozen
class Market:
    """How many symbols are quoted, how many quotes a frame holds, and how they are written."""

    symbols: int = 500
    per_frame: int = 10
    encoding: str = "msgpack"


def wrong_prices(store: redis.Redis, market: Market, frames: int) -> list[str]:
    """Say which keys do not hold the last quote of the frames that were sent."""
    symbols = symbol_names(market.symbols)
    values: Any = store.mget([f"price:{symbol}" for symbol in symbols])
    wrong = []
    for index, (symbol, value) in enumerate(zip(symbols, values, strict=True)):
        quotes = quotes_of(index, frames, market.symbols, market.per_frame)
        if quotes == 0:
            continue
        cents = bid_cents(index, quotes - 1)
        found = msgspec.json.decode(value) if value else {}
        expected = {"symbol": symbol, "bid": cents / 100, "ask": (cents + SPREAD_CENTS) / 100}
        mid = (cents + SPREAD_CENTS / 2) / 100
        if (
            not expected.items() <= found.items()
            or abs(found.get("price", 0) - mid) > _NEAR
            or found.get("seq", quotes) != quotes
        ):
            wrong.append(f"{symbol} is {found}, but should be {expected}, number {quotes}")
            if len(wrong) == _MOST_TOLD:
                break
    return wrong


def wrong_counts(
    sent: int, heard: int, out_of_order: int, counters: Mapping[str, int] | None
) -> list[str]:
    """Say where the numbers of quotes and events do not add up.

    Args:
        sent: Quotes since the program's start.
        heard: Events since then.
        out_of_order: Events that were not newer than their symbol's last.
        counters: The program's own, where it has any; without, every quote is an event.
    """
    counts = {"sent": sent, "heard": heard, **(counters or {})}
    wrong = [f"{out_of_order} events were out of order"] if out_of_order else []
    expected = sent
    if counters is not None:
        expected = counters["quotes_accepted"] - counters["events_conflated"]
        if not counters["quotes_received"] == counters["quotes_accepted"] == sent:
            wrong.append(f"not every quote was received and accepted: {counts}")
        if counters["events_published"] != expected:
            wrong.append(f"published is not accepted less conflated: {counts}")
    if heard != expected:
        wrong.append(f"{heard} events were heard instead of {expected}: {counts}")
    return wrong
