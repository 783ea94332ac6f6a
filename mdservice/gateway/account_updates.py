"""Applies the events of the channel ``account.updated`` to a gateway's positions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from typing import Any, Final

import anyio

from mdservice.client.connection import (
    CLIENT_NAME,
    connected_to,
    refuse_cut_off,
    refuse_errors,
    refuse_moved,
)
from mdservice.client.discovery import Discovery
from mdservice.client.pubsub import Silence
from mdservice.errors import MDServiceError, StoreUnavailable
from mdservice.observability.logging import get_logger, masked
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate, decode_account_update
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection, RedisLocator
from mdservice.redis_io.names import ACCOUNT_CHANNEL
from mdservice.runtime.backoff import Backoff

__all__ = ["AccountUpdates"]

_log = get_logger(__name__)

_WAIT_S: Final = 1.0
_FIRST_S, _LIMIT_S = 0.2, 5.0
_ROLE_EVERY_S: Final = 3.0
"""How often the server is asked whether it still gets events. A subscribed connection cannot ask.
"""
_PING: Final = pack(b"PING")


class AccountUpdates:
    """Reads the service's events of the account; connects again after any loss.

    What a lost connection has missed, the positions' source has: it is asked again at once.

    Args:
        discovery: Finds the server, and the names there, before each connection.
        positions: The positions of the service.
        came: Called with each event after it was applied.
    """

    def __init__(
        self,
        discovery: Discovery,
        positions: PositionCache,
        came: Callable[[TradeUpdate], Awaitable[None]],
    ) -> None:
        self._discovery = discovery
        self._positions = positions
        self._came = came
        self._error: str | None = None

    def warning(self) -> str | None:
        """None: a Redis that is away is reported with the prices."""
        return None

    async def run(self) -> None:
        """Read until cancelled."""
        backoff = Backoff(_FIRST_S, _LIMIT_S)
        while True:
            try:
                await self._read(backoff)
            except MDServiceError as exc:
                reason = masked(str(exc))
                if reason != self._error:
                    _log.info("account_updates_lost", reason=reason)
                self._error = reason
            await anyio.sleep(backoff.next_s())

    async def _read(self, backoff: Backoff) -> None:
        """One connection, until it is lost."""
        location = await self._discovery.find()
        channel = location.names.channel(ACCOUNT_CHANNEL)
        with closing(
            await RedisConnection.open(location.address, CLIENT_NAME, reads=True)
        ) as connection:
            answers = await connection.exchange(pack(b"SUBSCRIBE", channel), 1)
            refuse_errors(location.address.shown, answers)
            self._error = None
            backoff.reset()
            self._positions.want()
            silence = Silence(anyio.current_time())
            role_s = anyio.current_time()
            while True:
                if anyio.current_time() - role_s >= _ROLE_EVERY_S:
                    await refuse_moved(location.address, connection.server)
                    await _refuse_cut_off(connection.server)
                    role_s = anyio.current_time()
                ping = _PING if silence.ask(anyio.current_time()) else b""
                replies = await connection.receive(_WAIT_S, ping)
                if silence.too_long(anyio.current_time(), anything=bool(replies)):
                    raise StoreUnavailable(
                        f"Redis at {location.address.shown} does not answer a PING"
                    )
                await self._take(replies)

    async def _take(self, replies: Iterable[Any]) -> None:
        for reply in replies:
            if not isinstance(reply, list) or reply[:1] != [b"message"]:
                continue
            try:
                update, position = decode_account_update(reply[2])
            except ValueError as exc:
                _log.warning("account_update_unreadable", reason=str(exc)[:200])
                self._positions.want()
                continue
            self._positions.apply(update, [position])
            await self._came(update)


async def _refuse_cut_off(server: RedisLocator) -> None:
    async with connected_to(server) as connection:
        (role,) = await connection.call(pack(b"ROLE"))
        refuse_cut_off(connection.address, role)
