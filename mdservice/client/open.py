"""Latest prices and events in any process: :func:`open_prices`."""

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
from mdservice.client.reader import Follower, Prices
from mdservice.errors import ConfigurationError, StoreUnavailable
from mdservice.model.kinds import QUOTES
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbols
from mdservice.runtime.backoff import Backoff
from mdservice.settings.parsers import parse_event_log, parse_key_prefix

__all__ = ["CONNECT_LIMIT_S", "open_prices"]

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
        redis_url: ``redis://``, ``rediss://`` or ``unix://``. Without one, the service at
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
    intake = Intake(QUOTES, _chosen(symbols))
    discovery = _discovery(redis_url, socket, _checked_prefix(prefix))
    follower = Follower(discovery, _source(intake, event_log, after), Backoff(_FIRST_S, _LIMIT_S))
    error: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            await _start(tasks, follower, connect_limit_s)
            yield Prices(intake, follower)
        except Exception as exc:  # noqa: BLE001 - raised below, outside the group, as it is
            error = exc
        finally:
            intake.handover.close()
            tasks.cancel_scope.cancel()
    if error is not None:
        raise error


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
    raise StoreUnavailable(f"No prices within {limit_s:g} s: {reason}")
