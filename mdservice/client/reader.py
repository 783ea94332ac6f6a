"""The reader of a program: its connection loop, its status, and iteration over updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Generic, Self

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.client.discovery import Discovery
from mdservice.client.http import NoAnswer
from mdservice.client.intake import Intake, Source
from mdservice.errors import (
    ConfigurationError,
    MDServiceError,
    StoreRefused,
    StoreUnavailable,
)
from mdservice.model.feeds import kinds_of
from mdservice.model.kinds import QUOTES, R
from mdservice.model.quote import Quote
from mdservice.model.symbol import parse_symbol, parse_symbols
from mdservice.observability.logging import get_logger
from mdservice.redis_io.names import Instance
from mdservice.runtime.backoff import Backoff

__all__ = ["ChannelCounts", "Follower", "Prices", "PricesStatus", "Records", "RecordsStatus"]


_log = get_logger(__name__)

_STEADY_S: Final = 1.0
"""A connection that lasted this long resets the back-off."""
_PASSING: Final = (
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "max number of clients",
)
"""Refusals that are temporary. At the start, any other refusal is raised."""


class Follower:
    """Connects a source to the server, and reconnects after each failure.

    Args:
        discovery: Finds the server.
        source: Reads from the server.
        backoff: The waits between two attempts.
    """

    def __init__(self, discovery: Discovery, source: Source, backoff: Backoff) -> None:
        self.url: str | None = None
        self.connected = False
        self.connections = 0
        self.last_error: str | None = None
        self.last_kind: type[MDServiceError] | None = None
        self._discovery = discovery
        self._source = source
        self._backoff = backoff
        self._since_s = 0.0

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Read until cancelled; started once the first connection has read all keys.

        Raises:
            StoreRefused: The server refused the first connection, and not only for a time.
            ConfigurationError: The address is invalid. Only before the first connection.
        """

        def connected() -> None:
            self.connected = True
            self.connections += 1
            self._since_s = anyio.current_time()
            if self.connections == 1:
                task_status.started()
            else:
                _log.info("prices_connected_again", url=self.url)

        while True:
            try:
                location = await self._discovery.find()
                self.url = location.address.shown
                await self._source.follow(location, connected)
            except (StoreUnavailable, NoAnswer) as exc:
                self._note(exc)
            except (StoreRefused, ConfigurationError) as exc:
                if not self.connections and not any(word in str(exc) for word in _PASSING):
                    raise
                self._note(exc)
            await anyio.sleep(self._backoff.next_s())

    def _note(self, exc: MDServiceError) -> None:
        was_connected, self.connected = self.connected, False
        self.last_error, self.last_kind = str(exc), type(exc)
        if was_connected:
            _log.warning("prices_disconnected", url=self.url, reason=str(exc))
            if anyio.current_time() - self._since_s >= _STEADY_S:
                self._backoff.reset()


@attrs.frozen
class PricesStatus:
    """A snapshot of a reader.

    Attributes:
        connected: Whether it is connected and has read the current prices.
        url: The address of the server, without any secret; None before the first attempt.
        reconnects: Connections after the first.
        last_error: Why the last attempt or connection ended, or None.
        events: Updates that came as events, from the channel or the log.
        missed: Accepted quotes that this reader did not get, as far as ``seq`` shows: the service
            conflated them, or the reader was disconnected.
        left_out: Quotes that were not newer than the known ones: both keys and events have them,
            or the feed went back in time.
        conflated: Updates that were conflated because the program was too slow.
        decode_errors: Unreadable payloads, which were dropped.
        last_decode_error: The error of the last of them, or None.
        resyncs: How often the keys were read again.
        starts: How often a symbol's ``seq`` began again, because the service restarted.
        trimmed: How often entries of the event log were deleted before they were read, or the
            log began again.
        symbols: Symbols with a price.
        waiting: Updates that wait for the program to take them.
        position: With an event log, the id of the last entry that the program was given.
        service: The id of the service that is read; None if the service does not announce itself.
        foreign: Events that other services published on the same channels, which were dropped.
        lost: How often events were lost on the way to this reader's server: it is a replica that
            was cut off, or was one until its primary failed. The keys were read again.
    """

    connected: bool
    url: str | None
    reconnects: int
    last_error: str | None
    events: int
    missed: int
    left_out: int
    conflated: int
    decode_errors: int
    last_decode_error: str | None
    resyncs: int
    starts: int
    trimmed: int
    symbols: int
    waiting: int
    position: str | None
    service: str | None = None
    foreign: int = 0
    lost: int = 0


@attrs.frozen
class ChannelCounts:
    """What a reader of records has counted of one channel.

    Attributes:
        events: Records that came as events.
        missed: Accepted records that this reader did not get, as far as ``seq`` shows.
        left_out: Records that were not newer than the known ones, or came before.
        starts: How often a symbol's ``seq`` began again, because the service restarted.
        conflated: Records that were lost to newer ones because the program was too slow.
        dropped: Records that were dropped because the program was too slow: trades first.
        decode_errors: Unreadable payloads, which were dropped.
        symbols: Symbols with a latest value.
    """

    events: int
    missed: int
    left_out: int
    starts: int
    conflated: int
    dropped: int
    decode_errors: int
    symbols: int


@attrs.frozen(kw_only=True)
class RecordsStatus(PricesStatus):
    """A snapshot of a reader of records; ``symbols`` and the counts are those of all channels.

    Attributes:
        dropped: Records that were dropped because the program was too slow.
        channels: The counts of each channel: ``trades``, ``corrections``, ``cancelErrors``,
            ``bars`` (with ``updatedBars``) …
    """

    dropped: int
    channels: Mapping[str, ChannelCounts]


class _Reader(Generic[R]):
    """Iterates over updates without end. Use it only in the event loop that opened it."""

    def __init__(self, intake: Intake[R], follower: Follower) -> None:
        self._intake = intake
        self._follower = follower

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        return await self._intake.handover.take()

    @property
    def service(self) -> Instance | None:
        """The service that is read; None if the service does not announce itself."""
        return self._intake.following

    def rivals(self) -> list[Instance]:
        """Other services that now write the same keys; the reader cannot separate their records."""
        return self._intake.rivals(anyio.current_time())

    def _counts(self) -> dict[str, Any]:
        """The values of :class:`PricesStatus`."""
        intake, follower = self._intake, self._follower
        states = intake.states.values()
        decoders = [one for state in states for one in (state.event_decoder, state.key_decoder)]
        errors = [decoder.last_error for decoder in decoders if decoder.last_error is not None]
        return {
            "connected": follower.connected,
            "url": follower.url,
            "reconnects": max(0, follower.connections - 1),
            "last_error": follower.last_error,
            "events": sum(state.events for state in states),
            "missed": sum(state.order.missed for state in states),
            "left_out": sum(state.order.left_out for state in states),
            "conflated": intake.handover.conflated,
            "decode_errors": sum(decoder.errors for decoder in decoders),
            "last_decode_error": errors[0] if errors else None,
            "resyncs": intake.resyncs,
            "starts": sum(state.order.starts for state in states),
            "trimmed": intake.trimmed,
            "symbols": sum(len(state.order) for state in states),
            "waiting": len(intake.handover),
            "position": intake.handover.position,
            "service": None if intake.following is None else intake.following.id,
            "foreign": intake.foreign,
            "lost": intake.lost,
        }


class Prices(_Reader[Quote]):
    """Iterates over updates without end. Made by :func:`mdservice.open_prices`.

    Use it only in the event loop that opened it. Updates of a symbol never go back in time, and
    none comes twice. A step in ``seq`` shows that quotes were missed or conflated. A ``seq`` that
    begins again shows that the service restarted.
    """

    @property
    def position(self) -> str | None:
        """With an event log: the id of the last entry whose updates the program has got.

        Store it after you have processed an update, and pass it as ``after`` at the next start to
        miss nothing in between. It is None without an event log, and until the program has got
        the prices that were read from the keys at the start.
        """
        return self._intake.handover.position

    def latest(self, symbol: str) -> Quote | None:
        """The newest known quote of a symbol, perhaps before the iteration reaches it.

        With an event log, it is at most one read of the log ahead of the iteration.

        Raises:
            InvalidSymbol
        """
        return self._intake.states[QUOTES].order.latest(parse_symbol(symbol))

    def prices(self, symbols: Iterable[str] | None = None) -> list[Quote]:
        """The newest known quote of each of these symbols, or of all; without one it is omitted.

        Raises:
            InvalidSymbol
        """
        order = self._intake.states[QUOTES].order
        if symbols is None:
            return sorted(order.all_latest(), key=lambda quote: quote.symbol)
        found = (order.latest(symbol) for symbol in parse_symbols(symbols))
        return [quote for quote in found if quote is not None]

    def status(self) -> PricesStatus:
        """A snapshot of this reader."""
        return PricesStatus(**self._counts())


class Records(_Reader[Any]):
    """Iterates over records of several kinds without end. Made by :func:`mdservice.open_stream`.

    It yields :class:`~mdservice.Quote`, :class:`~mdservice.Trade`, :class:`~mdservice.Correction`,
    :class:`~mdservice.Cancel`, :class:`~mdservice.Bar`, :class:`~mdservice.TradingStatus`,
    :class:`~mdservice.LimitBand`, :class:`~mdservice.Imbalance`, :class:`~mdservice.OrderBook` and
    :class:`~mdservice.Article`. Use it only in the event loop that opened it.

    The records of a symbol and kind come in the order in which the service accepted them, and none
    comes twice. A trade or bar may be late: its time is then older than that of one before. A step
    in ``seq`` shows that records were missed, conflated or dropped. After a lost connection, the
    latest value of a symbol comes again if it has changed. A ``seq`` that begins again shows that
    the service restarted.
    """

    def latest(self, symbol: str, channel: str = "trades") -> Any:
        """The latest value of a symbol on a channel, as in its key; None if none is known.

        News, corrections and cancellations have no latest value.

        Raises:
            InvalidSymbol
            InvalidChannel: There is no such channel.
        """
        name = parse_symbol(symbol)
        (kind, *_) = kinds_of([channel])
        state = self._intake.states.get(kind)
        return None if state is None else state.order.latest(name)

    def status(self) -> RecordsStatus:
        """A snapshot of this reader."""
        handover = self._intake.handover
        channels = {
            kind.channel: ChannelCounts(
                events=state.events,
                missed=state.order.missed,
                left_out=state.order.left_out,
                starts=state.order.starts,
                conflated=handover.conflated_of(kind),
                dropped=handover.dropped_of(kind),
                decode_errors=state.event_decoder.errors + state.key_decoder.errors,
                symbols=len(state.order) if kind.has_key else 0,
            )
            for kind, state in self._intake.states.items()
        }
        dropped = sum(counts.dropped for counts in channels.values())
        return RecordsStatus(**self._counts(), dropped=dropped, channels=channels)
