"""A service without a feed and without Redis, for tests of code that uses a service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any, Literal

import anyio
import attrs

from mdservice.errors import InvalidChannel, SubscriptionRefused
from mdservice.model.events import FeedStatus, RecordBatch
from mdservice.model.feeds import kinds_of, topics_of
from mdservice.model.kinds import NEWS, QUOTES, Kind, R
from mdservice.model.news import Article
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.status import (
    ActorReport,
    ChannelCounters,
    Counters,
    FeedReport,
    Histogram,
    Inbox,
    JournalStatus,
    Latencies,
    Latency,
    NativeBuckets,
    PositionsReport,
    Readiness,
    RedisReport,
    RelayClassReport,
    RelayClient,
    RelayStatus,
    StandbyReport,
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
    """What one reader has not read yet: the latest record per symbol and kind, and the states."""

    def __init__(
        self, symbols: frozenset[str], kinds: frozenset[Kind[Any]], states_kept: int = 64
    ) -> None:
        self._symbols = symbols
        self._kinds = kinds
        self._states_kept = states_kept
        self._records: dict[tuple[Kind[Any], str], RecordBatch[Any]] = {}
        self._states: list[FeedStatus] = []
        self._filled = anyio.Event()

    def offer(self, event: RecordBatch[Any] | FeedStatus) -> None:
        if isinstance(event, FeedStatus):
            self._states = [*self._states, event][-self._states_kept :]
        elif event.kind not in self._kinds:
            return
        else:
            records = event.records
            if self._symbols:
                records = event.kind.of_symbols(records, self._symbols)
            for record in records:
                self._records[event.kind, record.symbol] = RecordBatch(event.kind, [record])
        self._filled.set()

    def close(self) -> None:
        self._filled.set()

    async def batches(self, service: FakeService) -> AsyncIterator[RecordBatch[Any] | FeedStatus]:
        while True:
            await self._filled.wait()
            while self._states:
                yield self._states.pop(0)
            while self._records:
                yield self._records.pop(next(iter(self._records)))
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
        redis_accepts: While it is false, Redis refuses to write.
        alive: The result of :meth:`liveness`.
        closed: Set by :meth:`close`.
        held: Its positions.
        not_given: Symbols that its feed does not grant, with the reason.
    """

    def __init__(self, *, limit: int = 30) -> None:
        self.feed_connected = True
        self.redis_connected = True
        self.redis_accepts = True
        self.alive = True
        self.closed = False
        self._limit = limit
        self.held: list[Position] = []
        self.not_given: dict[str, str] = {}
        self._wanted: dict[str, dict[str, set[str]]] = {}
        """By symbol and source: the channels."""
        self._latest: dict[Kind[Any], dict[str, Any]] = {}
        self._articles: list[Article] = []
        self._readers: set[_Reader] = set()
        self._states: list[FeedStatus] = []
        self._accepted = 0

    @property
    def readers(self) -> int:
        """The number of open streams."""
        return len(self._readers)

    def publish(self, symbol: str, bid: float, ask: float, *, ts_event_ns: int = 0) -> Quote:
        """Accept a quote: number it, keep it, and offer it to the readers."""
        last = self.latest_record(QUOTES, symbol)
        seq = last.seq + 1 if last else 1
        quote = Quote(symbol, bid, ask, 2, 3, ts_event_ns, ts_event_ns, seq)
        self._accepted += 1
        self.publish_record(QUOTES, quote)
        return quote

    def publish_record(self, kind: Kind[R], record: R) -> None:
        """Keep a record of any kind, and offer it to the readers."""
        if isinstance(record, Article):
            self._articles.append(record)
        elif kind.has_key:
            self._latest.setdefault(kind, {})[record.symbol] = record
        self._offer(RecordBatch(kind, [record]))

    def announce(self, status: FeedStatus) -> None:
        """Send a change of the feed's state to the readers."""
        self._states.append(status)
        self._offer(status)

    def states_since(self, count: int) -> tuple[list[FeedStatus], int]:
        """The changes of the feeds' states after the first ``count``, and how many there were."""
        return self._states[count:], len(self._states)

    def close(self) -> None:
        """End the readers' streams."""
        self.closed = True
        for reader in self._readers:
            reader.close()

    def _offer(self, event: RecordBatch[Any] | FeedStatus) -> None:
        for reader in self._readers:
            reader.offer(event)

    def positions(self) -> Sequence[Position]:
        """The positions in :attr:`held`."""
        return tuple(self.held)

    async def subscribe(
        self, *symbols: str, channels: Iterable[str] | None = None, source: str = "api"
    ) -> FakeOutcome:
        """Subscribe to channels of these symbols, all or none of them."""
        wanted = self._topics(symbols, ("quotes",) if channels is None else channels)
        if len(set(self._wanted) | set(wanted)) > self._limit:
            raise SubscriptionRefused(
                f"the feed takes {self._limit} symbols: unsubscribe some first",
                code=405,
                symbols=tuple(wanted),
            )
        for symbol, names in wanted.items():
            self._wanted.setdefault(symbol, {}).setdefault(source, set()).update(names)
        return FakeOutcome("subscribed" if self.feed_connected else "pending", tuple(wanted))

    async def unsubscribe(
        self, *symbols: str, channels: Iterable[str] | None = None, source: str = "api"
    ) -> FakeOutcome:
        """Unsubscribe from these symbols or channels; ``api`` also overrides the settings."""
        unwanted = self._topics(symbols, channels)
        for symbol, names in unwanted.items():
            sources = self._wanted.get(symbol, {})
            for leaving in {source, "settings"} if source == "api" else {source}:
                left = sources.get(leaving, set())
                left -= left if channels is None else names
                if not left:
                    sources.pop(leaving, None)
            if not sources:
                self._wanted.pop(symbol, None)
        return FakeOutcome("unsubscribed" if self.feed_connected else "pending", tuple(unwanted))

    def _topics(
        self, symbols: Iterable[str], channels: Iterable[str] | None
    ) -> dict[str, set[str]]:
        """The channels of each symbol, which its class has; an empty set without channels."""
        named = None if channels is None else tuple(channels)
        wanted: dict[str, set[str]] = {symbol: set() for symbol in parse_symbols(symbols)}
        if named is None:
            return wanted
        kinds_of(named)
        for channel, symbol in topics_of(wanted, named):
            wanted[symbol].add(channel)
        for symbol, names in wanted.items():
            if not names:
                raise InvalidChannel(f"{symbol} has none of the channels {', '.join(named)}")
        return wanted

    def subscriptions(self) -> dict[str, list[str]]:
        """The sources of each wanted symbol."""
        return {symbol: sorted(sources) for symbol, sources in self._wanted.items()}

    def channels(self) -> dict[str, list[str]]:
        """Every wanted symbol that the feed grants, with its channels, while it is connected."""
        given = self._wanted.keys() - self.not_given.keys() if self.feed_connected else ()
        return {
            symbol: sorted(set().union(*self._wanted[symbol].values())) for symbol in sorted(given)
        }

    def left_out(self) -> dict[str, dict[str, str]]:
        """The symbols in :attr:`not_given`."""
        return {symbol: {"quotes": why} for symbol, why in self.not_given.items()}

    def latest_record(self, kind: Kind[R], symbol: str) -> R | None:
        """The latest record of a kind and symbol."""
        found: R | None = self._latest.get(kind, {}).get(symbol)
        return found

    def latest_records(self, kind: Kind[R], symbols: Iterable[str] | None = None) -> list[R]:
        """The latest records of these symbols, or of all."""
        latest: dict[str, R] = self._latest.get(kind, {})
        names = latest if symbols is None else symbols
        return [latest[name] for name in names if name in latest]

    def news(self, symbols: Iterable[str], limit: int) -> list[Article]:
        """The newest articles, the newest first."""
        wanted = frozenset(symbols)
        found = NEWS.of_symbols(self._articles, wanted) if wanted else self._articles
        return found[: -limit - 1 : -1]

    @asynccontextmanager
    async def batches(
        self, *symbols: str, channels: Iterable[str] = ("quotes",)
    ) -> AsyncIterator[AsyncIterator[RecordBatch[Any] | FeedStatus]]:
        """The latest records, then each event, conflated for a slow reader."""
        kinds = kinds_of(channels)
        reader = _Reader(frozenset(symbols), frozenset(kinds))
        for kind in kinds:
            reader.offer(RecordBatch(kind, self.latest_records(kind)))
        self._readers.add(reader)
        try:
            yield reader.batches(self)
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
        symbols = len(self._wanted)
        feed = FeedReport(
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
            silent=3,
            silent_symbols=4,
            received={"quotes": self._accepted + 5},
            decode_errors=3,
            gaps=2,
            gaps_repaired=1,
        )
        return Status(
            state="running" if readiness.ready else "degraded",
            reasons=readiness.reasons,
            feed=feed,
            feeds={"stocks": feed},
            channels={
                "quotes": ChannelCounters(received=self._accepted + 5, accepted=self._accepted)
            },
            redis=RedisReport(
                self.redis_connected,
                "unix:///run/redis.sock",
                None,
                backlog=7,
                backlog_limit=100_000,
                refusal=None if self.redis_accepts else "READONLY",
            ),
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
            histograms={
                "feed_to_redis": Histogram(
                    {0.002: 7, 0.01: 9, inf: 10}, 0.25, NativeBuckets({-72: 6, -54: 2, -18: 1})
                ),
                "redis_write": Histogram({0.002: 3, inf: 4}, 0.5),
            },
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
            relay=RelayStatus(
                address="127.0.0.1:8765",
                clients=(
                    RelayClient(
                        name="bot",
                        address="127.0.0.1:50412",
                        path="/v2/test",
                        encoding="msgpack",
                        connected_s=8.5,
                        symbols=symbols,
                        sent=700,
                        rate=20.5,
                        backlog=1,
                        conflated=3,
                    ),
                ),
                cut=2,
                messages=900,
                conflated=4,
                classes={
                    "local": RelayClassReport(clients=1, cut=1, messages=800, conflated=4),
                    "remote": RelayClassReport(cut=1, messages=100),
                },
            ),
            journal=JournalStatus(
                folder="/var/lib/journal",
                written=1_000,
                dropped=5,
                waiting_bytes=64,
                bytes=4_096,
                last_error=None,
            ),
            standby=StandbyReport(
                group="desk1",
                leader="trader1 (process 4711)",
                epoch=3,
                since="2026-11-20T15:51:44.208912345Z",
                leads=True,
                standby_alive=True,
                terms=1,
                dropped=6,
            ),
        )
