"""A service without a feed and without Redis, for tests of code that uses a service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import anyio
import attrs

from mdservice.errors import SubscriptionRefused
from mdservice.model.events import FeedStatus
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.status import (
    ActorReport,
    Counters,
    FeedReport,
    Inbox,
    Latencies,
    Latency,
    PositionsReport,
    Readiness,
    RedisReport,
    Status,
)
from mdservice.model.symbol import parse_symbols

__all__ = ["FakeOutcome", "FakeService"]


@attrs.frozen
class FakeOutcome:
    """The result of a change of the subscribed symbols."""

    status: Literal["subscribed", "unsubscribed", "pending"]
    symbols: tuple[str, ...]


class _Reader:
    """What one reader has not read yet: the latest quote per symbol, and the feed's states."""

    def __init__(self, symbols: frozenset[str], states_kept: int = 64) -> None:
        self._symbols = symbols
        self._states_kept = states_kept
        self._quotes: dict[str, Quote] = {}
        self._states: list[FeedStatus] = []
        self._filled = anyio.Event()

    def offer(self, event: Quote | FeedStatus) -> None:
        if isinstance(event, FeedStatus):
            self._states = [*self._states, event][-self._states_kept :]
        elif not self._symbols or event.symbol in self._symbols:
            self._quotes[event.symbol] = event
        else:
            return
        self._filled.set()

    def close(self) -> None:
        self._filled.set()

    async def events(self, service: FakeService) -> AsyncIterator[Quote | FeedStatus]:
        while True:
            await self._filled.wait()
            while self._states:
                yield self._states.pop(0)
            while self._quotes:
                yield self._quotes.pop(next(iter(self._quotes)))
            if service.closed:
                return
            self._filled = anyio.Event()


class FakeService:
    """Keeps subscriptions, latest prices and readers as the real service does.

    Args:
        limit: The feed's symbol limit; beyond it, subscriptions are refused.

    Attributes:
        feed_connected: While it is false, changes are ``pending`` and it is not ready.
        redis_connected: While it is false, it is not ready.
        alive: The result of :meth:`liveness`.
        closed: Set by :meth:`close`.
        held: Its positions.
        not_given: Symbols that its feed does not grant, with the reason.
    """

    def __init__(self, *, limit: int = 30) -> None:
        self.feed_connected = True
        self.redis_connected = True
        self.alive = True
        self.closed = False
        self._limit = limit
        self.held: list[Position] = []
        self.not_given: dict[str, str] = {}
        self._sources: dict[str, set[str]] = {}
        self._latest: dict[str, Quote] = {}
        self._readers: set[_Reader] = set()
        self._accepted = 0

    @property
    def readers(self) -> int:
        """The number of open streams."""
        return len(self._readers)

    def publish(self, symbol: str, bid: float, ask: float, *, ts_event_ns: int = 0) -> Quote:
        """Accept a quote: number it, keep it, and offer it to the readers."""
        last = self._latest.get(symbol)
        seq = last.seq + 1 if last else 1
        quote = Quote(symbol, bid, ask, 2, 3, ts_event_ns, ts_event_ns, seq)
        self._latest[symbol] = quote
        self._accepted += 1
        self._offer(quote)
        return quote

    def announce(self, status: FeedStatus) -> None:
        """Send a change of the feed's state to the readers."""
        self._offer(status)

    def close(self) -> None:
        """End the readers' streams."""
        self.closed = True
        for reader in self._readers:
            reader.close()

    def _offer(self, event: Quote | FeedStatus) -> None:
        for reader in self._readers:
            reader.offer(event)

    def positions(self) -> Sequence[Position]:
        """The positions in :attr:`held`."""
        return tuple(self.held)

    async def subscribe(self, *symbols: str, source: str = "api") -> FakeOutcome:
        """Subscribe to these symbols, all or none of them."""
        wanted = parse_symbols(symbols)
        if len(set(self._sources) | set(wanted)) > self._limit:
            raise SubscriptionRefused(
                f"the feed takes {self._limit} symbols: unsubscribe some first",
                code=405,
                symbols=wanted,
            )
        for symbol in wanted:
            self._sources.setdefault(symbol, set()).add(source)
        return FakeOutcome("subscribed" if self.feed_connected else "pending", wanted)

    async def unsubscribe(self, *symbols: str, source: str = "api") -> FakeOutcome:
        """Unsubscribe from these symbols; ``api`` also overrides the settings."""
        unwanted = parse_symbols(symbols)
        leaving = {"api", "settings"} if source == "api" else {source}
        for symbol in unwanted:
            sources = self._sources.get(symbol, set())
            sources -= leaving
            if not sources:
                self._sources.pop(symbol, None)
        return FakeOutcome("unsubscribed" if self.feed_connected else "pending", unwanted)

    def subscriptions(self) -> dict[str, list[str]]:
        """The sources of each wanted symbol."""
        return {symbol: sorted(sources) for symbol, sources in self._sources.items()}

    def channels(self) -> dict[str, list[str]]:
        """Every wanted symbol that the feed grants, while it is connected."""
        given = self._sources.keys() - self.not_given.keys() if self.feed_connected else ()
        return {symbol: ["quotes"] for symbol in sorted(given)}

    def left_out(self) -> dict[str, dict[str, str]]:
        """The symbols in :attr:`not_given`."""
        return {symbol: {"quotes": why} for symbol, why in self.not_given.items()}

    def latest(self, symbol: str) -> Quote | None:
        """The last quote of a symbol."""
        return self._latest.get(symbol)

    def prices(self, symbols: Iterable[str] | None = None) -> list[Quote]:
        """The last quotes of these symbols, or of all."""
        names = self._latest if symbols is None else symbols
        return [self._latest[name] for name in names if name in self._latest]

    @asynccontextmanager
    async def events(self, *symbols: str) -> AsyncIterator[AsyncIterator[Quote | FeedStatus]]:
        """The latest prices, then each event, conflated for a slow reader."""
        reader = _Reader(frozenset(symbols))
        for quote in self._latest.values():
            reader.offer(quote)
        self._readers.add(reader)
        try:
            yield reader.events(self)
        finally:
            self._readers.discard(reader)

    def readiness(self) -> Readiness:
        """Ready while both the feed and Redis are connected."""
        reasons = [] if self.feed_connected else ["the feed is not connected"]
        reasons += [] if self.redis_connected else ["Redis does not answer"]
        return Readiness(not reasons, tuple(reasons))

    def liveness(self) -> Readiness:
        """As :attr:`alive` says."""
        return Readiness(self.alive, () if self.alive else ("the watchdog does not run",))

    def status(self) -> Status:
        """A status with a figure in every field."""
        readiness = self.readiness()
        symbols = len(self._sources)
        return Status(
            state="running" if readiness.ready else "degraded",
            reasons=readiness.reasons,
            feed=FeedReport(
                name="test",
                driver="websockets",
                phase="streaming" if self.feed_connected else "waiting",
                connected=self.feed_connected,
                subscribed=self.feed_connected,
                reconnects=1,
                last_error=None if self.feed_connected else "the connection was lost",
                wanted=symbols,
                acknowledged=symbols,
                left_out={"NOPE": "invalid symbol"},
            ),
            redis=RedisReport(self.redis_connected, "unix:///run/redis.sock", None, backlog=7),
            symbols=symbols,
            uptime_s=12.5,
            actors={
                "router": ActorReport("running", 0, 0.25, Inbox(3, 1000)),
                "writer": ActorReport("restarting", 2, 4.0, Inbox(0, 8), "connection lost"),
            },
            counters=Counters(
                quotes_received=self._accepted + 5, quotes_accepted=self._accepted, gaps=2
            ),
            latency_ms=Latencies(Latency(1.5, 4.0, 9.0), Latency()),
            loop_lag_ms=2.0,
            positions=PositionsReport(
                source="fake positions",
                state="ok",
                held=len(self.held),
                followed=symbols,
                left_out=("NOPE",),
                problems={"N/A": "not a stock"},
                age_s=1.5,
                last_error=None,
            ),
        )
