"""Latest values and events in any process: :func:`open_prices` and :func:`open_stream`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from mdservice.client.discovery import (
    Discovery,
    GivenServer,
    ServiceServer,
    socket_of_the_service,
)
from mdservice.client.event_log import EventLogSource, parse_entry_id
from mdservice.client.http import NoAnswer
from mdservice.client.intake import Intake, Source
from mdservice.client.pubsub import PubSubSource
from mdservice.client.reader import Follower, Prices, Records
from mdservice.errors import ConfigurationError, InvalidChannel, StoreUnavailable
from mdservice.model.feeds import kinds_of
from mdservice.model.kinds import QUOTES
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbols
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.task_groups import block_tasks
from mdservice.settings.parsers import parse_event_log, parse_key_prefix

__all__ = ["CONNECT_LIMIT_S", "open_prices", "open_stream"]

CONNECT_LIMIT_S: Final = 5.0
_FIRST_S, _LIMIT_S = 0.1, 5.0
"""The back-off between two attempts to connect: the first bound, and the largest."""


@asynccontextmanager
async def open_prices(
    redis_url: str | None = None,
    symbols: Iterable[str] = (),
    *,
    event_log: str | None = None,
    after: str | None = None,
    prefix: str | None = None,
    socket: str | os.PathLike[str] | None = None,
    connect_limit_s: float = CONNECT_LIMIT_S,
) -> AsyncIterator[Prices]:
    """Read prices in this block, in any process, on trio or asyncio.

    ::

        async with mdservice.open_prices("redis://localhost:6379", ["AAPL"]) as prices:
            async for quote in prices:
                print(quote.symbol, quote.price)

    The prices in the keys come first, then every event. Nothing is lost between the two. When the
    block begins, the keys have been read. The reader detects a lost connection, a server that does
    not answer, a step in ``seq`` and a restart of the service. It then reads the keys again and
    delivers newer prices as updates.

    A program that falls 10,000 updates behind loses the oldest, but keeps the newest of each
    symbol. With ``event_log`` it loses none as long as the log has them.

    Args:
        redis_url: As ``MDSERVICE_REDIS_URL``: ``redis://``, ``rediss://``, ``unix://``,
            ``redis+sentinel://`` or ``redis+cluster://``. Without one, the service at
            ``socket`` is asked for its Redis and its key prefix. It reports the URL without a
            password.
        symbols: The symbols to read, in upper or lower case; none, or ``*``, for all.
        event_log: Read events from this stream, the service's ``MDSERVICE_EVENT_LOG``.
        after: With ``event_log``: continue after this entry, an earlier
            :attr:`~mdservice.Prices.position`, without reading the keys first; ``"0"`` is the
            log's beginning.
        prefix: The prefix of every key, channel and stream name, the service's
            ``MDSERVICE_KEY_PREFIX``; ``""`` for none. The default is ``""`` with a URL, and
            the prefix of the service without one.
        socket: The service's UNIX socket; by default ``MDSERVICE_SOCKET``, or else the default.
        connect_limit_s: How long the first connection may take, seconds. Later ones are retried
            without end.

    Raises:
        ConfigurationError: The URL, the log's name, ``after``, the prefix or the socket is
            invalid, or no URL was given and no service answers.
        InvalidSymbol: One of the symbols is not a symbol.
        StoreRefused: The server refuses the login or a command.
        StoreUnavailable: No connection within ``connect_limit_s``.
    """
    intake = Intake([QUOTES], _chosen(symbols))
    discovery = _discovery(redis_url, socket, _checked_prefix(prefix))
    source = _source(intake, event_log, after)
    async with _reading(intake, discovery, source, connect_limit_s) as follower:
        yield Prices(intake, follower)


@asynccontextmanager
async def open_stream(
    redis_url: str | None = None,
    symbols: Iterable[str] = (),
    channels: Iterable[str] = ("trades",),
    *,
    prefix: str | None = None,
    socket: str | os.PathLike[str] | None = None,
    connect_limit_s: float = CONNECT_LIMIT_S,
) -> AsyncIterator[Records]:
    """Read records of every kind in this block, in any process, on trio or asyncio.

    ::

        url = "redis://localhost:6379"
        async with mdservice.open_stream(url, ["AAPL"], ["trades", "statuses"]) as records:
            async for record in records:
                match record:
                    case mdservice.Trade():
                        print(record.symbol, record.price, record.size)
                    case mdservice.TradingStatus():
                        print(record.symbol, record.status_message)

    The latest value of each symbol and channel comes first, then every event. Nothing is lost
    between the two. The reader detects a lost connection, a server that does not answer, a step in
    ``seq`` and a restart of the service. It then reads the latest values again and delivers those
    that are newer. ``trades`` also brings corrections and cancellations; ``bars`` and
    ``updatedBars`` both bring bars and their updates. ``news`` begins with the newest articles of
    the stream, up to 50, and after a lost connection brings the articles that were published
    meanwhile.

    A program that falls 10,000 records behind loses the oldest trades, and gets the newest quote,
    price band and order book of each symbol, and the newest version of each bar. Corrections,
    cancellations, trading statuses, imbalances and news are kept.

    Args:
        redis_url: As for :func:`open_prices`.
        symbols: The symbols to read, in upper or lower case; none, or ``*``, for all. An article
            is read if it is about one of them.
        channels: Alpaca's names: ``quotes``, ``trades``, ``bars``, ``updatedBars``, ``dailyBars``,
            ``statuses``, ``lulds``, ``imbalances``, ``orderbooks``, ``news``.
        prefix: As for :func:`open_prices`.
        socket: Likewise.
        connect_limit_s: Likewise.

    Raises:
        ConfigurationError: The URL, the prefix or the socket is invalid, or no URL was given and
            no service answers.
        InvalidSymbol: One of the symbols is not a symbol.
        InvalidChannel: One of the channels is not a channel, or there is none.
        StoreRefused: The server refuses the login or a command.
        StoreUnavailable: No connection within ``connect_limit_s``.
    """
    kinds = kinds_of(channels)
    if not kinds:
        raise InvalidChannel("no channel was given: name at least one, such as trades")
    intake: Intake[Any] = Intake(kinds, _chosen(symbols))
    discovery = _discovery(redis_url, socket, _checked_prefix(prefix))
    async with _reading(intake, discovery, PubSubSource(intake), connect_limit_s) as follower:
        yield Records(intake, follower)


@asynccontextmanager
async def _reading(
    intake: Intake[Any], discovery: Discovery, source: Source, limit_s: float
) -> AsyncIterator[Follower]:
    """Read in the background; an error of the block is raised as it is, outside any group."""
    follower = Follower(discovery, source, Backoff(_FIRST_S, _LIMIT_S))
    async with block_tasks() as tasks:
        try:
            await _start(tasks, follower, limit_s)
            yield follower
        finally:
            intake.handover.close()


def _checked_prefix(prefix: str | None) -> str | None:
    try:
        return None if prefix is None else parse_key_prefix(prefix)
    except ValueError as exc:
        raise ConfigurationError(f"prefix: {exc}") from None


def _chosen(symbols: Iterable[str]) -> tuple[str, ...]:
    if isinstance(symbols, str):
        symbols = symbols.split(",")
    chosen = parse_symbols(symbols)
    return () if EVERY_SYMBOL in chosen else chosen


def _discovery(
    redis_url: str | None, socket: str | os.PathLike[str] | None, prefix: str | None
) -> Discovery:
    if redis_url is not None:
        return GivenServer(redis_url, prefix or "")
    return ServiceServer(socket_of_the_service(socket), prefix)


def _source(intake: Intake[Any], event_log: str | None, after: str | None) -> Source:
    if event_log is None:
        if after is not None:
            raise ConfigurationError(
                "after: set event_log too, since only an event log can be resumed"
            )
        return PubSubSource(intake)
    try:
        name = parse_event_log(event_log)
    except ValueError as exc:
        raise ConfigurationError(f"event_log: {exc}") from None
    return EventLogSource(intake, name, None if after is None else parse_entry_id(after))


async def _start(tasks: TaskGroup, follower: Follower, limit_s: float) -> None:
    with anyio.move_on_after(limit_s) as limit:
        await tasks.start(follower.run)
    if not limit.cancelled_caught:
        return
    if follower.last_kind is NoAnswer:
        raise ConfigurationError(follower.last_error)
    where = f"Redis at {follower.url}" if follower.url else "the service"
    reason = follower.last_error or f"{where} does not answer; is it running, and reachable?"
    raise StoreUnavailable(f"No latest values within {limit_s:g} s: {reason}")
