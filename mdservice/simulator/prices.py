"""The price of one symbol: a seeded random walk in whole cents, with a spread.

Pure: a walk reads no clock. The n-th quote of a symbol depends on the seed, the symbol and
the settings alone, never on when it is asked for or on what other symbols do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mdservice.simulator.universe import start_cents, tape_of
from mdservice.simulator.wire import SimQuote

__all__ = ["PriceWalk"]

_CONDITIONS = ("R",)
_CENTS = 100
_ROUND_LOT = 100
_PULL_AT = 0.25
"""How far from its start, as a part of it, a price begins to be pulled back."""
_NO_EXCHANGE = " "


class PriceWalk:
    """Quotes of one symbol, one after the other.

    Always ``bid < ask`` in whole cents, from one cent up, where both sides are active.

    Args:
        symbol: Its name, hashed into the seed and into an unknown symbol's start price.
        seed: The simulator's seed.
        exchanges: Exchange codes to choose from.
        zero_side_ratio: Which part of the quotes has one side without a price, 0 to 1.
    """

    def __init__(
        self,
        symbol: str,
        seed: int,
        *,
        exchanges: Sequence[str] = ("V",),
        zero_side_ratio: float = 0.0,
    ) -> None:
        self.symbol = symbol
        start = start_cents(symbol)
        self._random = random.Random(f"{seed}:{symbol}")  # noqa: S311 - reproducible, no secret
        self._exchanges = tuple(exchanges)
        self._tape = tape_of(symbol)
        self._bid = max(1, start)
        self._low = max(1, round(start * (1 - _PULL_AT)))
        self._high = max(self._low + 1, round(start * (1 + _PULL_AT)))
        self._step = max(1, start // 20_000)
        self._spread = max(1, start // 10_000)
        self._zero_below = round(zero_side_ratio * 65_536)

    def next(self, ts_event_ns: int) -> SimQuote:
        """The next quote, stamped with the time given (UTC nanoseconds)."""
        bits = self._random.getrandbits(64)
        bid = self._walk(bits & 0xFF)
        ask = bid + self._spread + (bits >> 8 & 0xFF) * (self._spread + 2) // 256
        exchanges = self._exchanges
        bid_size = _ROUND_LOT * (1 + (bits >> 16 & 0xFF) % 9)
        ask_size = _ROUND_LOT * (1 + (bits >> 24 & 0xFF) % 9)
        bid_exchange = exchanges[(bits >> 32 & 0x7F) % len(exchanges)]
        ask_exchange = exchanges[(bits >> 39 & 0x7F) % len(exchanges)]
        if (bits >> 48) < self._zero_below:
            if bits & 0x100:
                bid, bid_size, bid_exchange = 0, 0, _NO_EXCHANGE
            else:
                ask, ask_size, ask_exchange = 0, 0, _NO_EXCHANGE
        return SimQuote(
            self.symbol,
            bid / _CENTS,
            ask / _CENTS,
            bid_size,
            ask_size,
            ts_event_ns,
            bid_exchange,
            ask_exchange,
            _CONDITIONS,
            self._tape,
        )

    def _walk(self, byte: int) -> int:
        """Move the bid by up to three steps and return it."""
        # The difference of two equal draws: no drift, and small steps are the likely ones.
        bid = self._bid + ((byte & 3) - (byte >> 2 & 3)) * self._step
        if bid < self._low:
            bid += 3 * self._step
        elif bid > self._high:
            bid -= 3 * self._step
        self._bid = max(1, bid)
        return self._bid
