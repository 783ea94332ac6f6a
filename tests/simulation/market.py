"""The market of one run: every quote it makes is told apart from every other."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

import anyio
import attrs

from mdservice.simulator import SimQuote, Simulator
from mdservice.simulator.connection import Connection
from mdservice.simulator.feeds import STOCKS
from mdservice.testing import VirtualClock

Identity = tuple[str, int, float, float, float, float]

_STEP_NS = 1_000
_CALM_PAUSE_S = 1.0


@attrs.define
class Made:
    """A quote of the market, and what was done to it on its way.

    Attributes:
        at_s: When it was made.
        spoiled: A fault kept it from an open connection: it was muted or garbled.
        reordered: It was sent behind a newer one.
        duplicated: It was sent twice.
        left_out: The service said that the feed does not give it this symbol.
    """

    quote: SimQuote
    at_s: float
    spoiled: bool = False
    reordered: bool = False
    duplicated: bool = False
    left_out: bool = False


@attrs.frozen
class Pace:
    """How lively the market is.

    Attributes:
        pause_s: Mean time between two publications.
        burst: The most quotes in one of the larger ones.
        quiet_s: How long it is silent now and then; 0 for never.
    """

    pause_s: float = 0.3
    burst: int = 50
    quiet_s: float = 0.0


def identity_of(symbol: str, ts_ns: int, *content: float) -> Identity:
    """What makes a quote this one."""
    bid, ask, bid_size, ask_size = content
    return symbol, ts_ns, bid, ask, bid_size, ask_size


class Market:
    """Makes quotes with times that never go back, several at one time now and then."""

    def __init__(
        self, rng: random.Random, clock: VirtualClock, symbols: tuple[str, ...], pace: Pace
    ) -> None:
        self.made: dict[Identity, Made] = {}
        self.by_symbol: dict[str, list[tuple[Identity, Made]]] = {name: [] for name in symbols}
        self.shared_times: set[tuple[str, int]] = set()
        """A symbol and a time that several of its quotes have."""
        self.symbols = symbols
        self.open = True
        self.calm = False
        """Fewer quotes: long after the last fault more of them would tell nothing new."""
        self.lively = anyio.Event()
        """Set once it shall no longer fall silent."""
        self.quoted: Callable[[list[SimQuote]], None] = lambda _: None
        """Called with quotes before they are sent."""
        self._rng = rng
        self._clock = clock
        self._pace = pace
        self._last_ns = 0
        self._count = 0
        self._last_of = dict.fromkeys(symbols, 0)
        self._cents = {symbol: rng.randrange(1_000, 50_000) for symbol in symbols}

    async def run(self, simulator: Simulator, left_out: Callable[[], Collection[str]]) -> None:
        """Publish until cancelled; nothing while closed.

        Args:
            simulator: Where.
            left_out: Tells the symbols of which the service says that it does not get them.
        """
        rng, pace = self._rng, self._pace
        while True:
            # Shorter than any mute limit: a silence is meant where it is longer.
            pause_s = max(_CALM_PAUSE_S, pace.pause_s) if self.calm else pace.pause_s
            await anyio.sleep(min(4.0, rng.expovariate(1 / pause_s)))
            if pace.quiet_s and rng.random() < 0.003:
                with anyio.move_on_after(pace.quiet_s):
                    await self.lively.wait()
            if self.open:
                many = rng.random() < 0.03
                count = rng.randrange(1, pace.burst) if many else rng.randrange(1, 5)
                self.publish(simulator, count, left_out())

    def publish(self, simulator: Simulator, count: int, left_out: Collection[str]) -> None:
        """Make so many quotes and send them."""
        quotes = [self._next(index - count + 1) for index in range(count)]
        made = []
        now_s = anyio.current_time()
        for quote in quotes:
            one = Made(quote, now_s, left_out=quote.symbol in left_out)
            identity = identity_of(
                quote.symbol,
                quote.ts_event_ns,
                quote.bid,
                quote.ask,
                quote.bid_size,
                quote.ask_size,
            )
            self.made[identity] = one
            self.by_symbol[quote.symbol].append((identity, one))
            if self._last_of[quote.symbol] == quote.ts_event_ns:
                self.shared_times.add(identity[:2])
            self._last_of[quote.symbol] = quote.ts_event_ns
            made.append(one)
        for connection in list(simulator._connections.values()):
            if connection.session is not None and connection.session.feed is STOCKS:
                self._mark(connection, made)
        self.quoted(quotes)
        frames = [self._rng.randrange(1, 20) for _ in range(self._rng.randrange(4))]
        simulator.send_quotes(quotes, frames=frames)

    def may_come_again(self, identity: Identity) -> bool:
        """Whether a quote shares its time with one that was sent twice, or behind another.

        A new run knows the last of them alone, and not which of the others came before it.
        """
        symbol, ts_ns = identity[:2]
        return (symbol, ts_ns) in self.shared_times and any(
            one.duplicated or one.reordered
            for its_identity, one in self.by_symbol[symbol]
            if its_identity[1] == ts_ns
        )

    def _mark(self, connection: Connection, made: list[Made]) -> None:
        faults = connection.faults
        spoiled = faults.muted(anyio.current_time()) or faults._garble > 0
        reordered, duplicated = faults._reorder > 0, faults._duplicate > 0
        if not (spoiled or reordered or duplicated):
            return
        for one in made:
            one.spoiled |= spoiled
            one.reordered |= reordered
            one.duplicated |= duplicated

    def _next(self, steps_back: int) -> SimQuote:
        rng = self._rng
        symbol = rng.choice(self.symbols)
        now_ns = self._clock.utc_ns() + steps_back * _STEP_NS
        if self._last_ns and rng.random() < 0.1:
            ts_ns = self._last_ns
        else:
            ts_ns = max(self._last_ns + 1, now_ns)
        self._last_ns = ts_ns
        cents = self._cents[symbol] = max(100, self._cents[symbol] + rng.randrange(-5, 6))
        bid, ask = cents / 100, (cents + rng.randrange(1, 9)) / 100
        if rng.random() < 0.02:
            bid = 0.0
        self._count += 1
        # Counted, so that no two quotes are the same.
        return SimQuote(symbol, bid, ask, self._count, rng.randrange(1, 900), ts_ns)
