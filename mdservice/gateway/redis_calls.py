"""The Redis calls of a gateway, over one connection that stays open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import anyio

from mdservice.client.connection import in_thread, open_link, refuse_errors
from mdservice.client.discovery import Discovery
from mdservice.client.http import NoAnswer
from mdservice.errors import StoreError, StoreRefused, StoreUnavailable
from mdservice.model.payload import QuoteDecoder
from mdservice.model.quote import Quote
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection
from mdservice.redis_io.names import Instance, RedisNames, decode_instance

__all__ = ["RedisCalls"]

_WAIT_S: Final = 5.0
"""How long a call waits for those before it."""
_ROLE: Final = pack(b"ROLE")
_T = TypeVar("_T")


def _open(link: RedisConnection) -> bool:
    """Open the link; whether the server is a primary, as far as this user may ask."""
    open_link(link)
    (role,) = link.call(_ROLE)
    return isinstance(role, list) and not _is_replica(role)


def _is_replica(role: object) -> bool:
    return isinstance(role, list) and role[:1] == [b"slave"]


class RedisCalls:
    """Reads prices and publishes, one call at a time; connects anew after a failure.

    Cancelling a call leaves nothing half done that a later one could see.

    Args:
        discovery: Finds the server, and the names there, before each connection.
    """

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._names = RedisNames()
        self._record = b""
        """The question for the service's record."""
        self.service: Instance | None = None
        """The service that writes the keys, as it last named itself; None where it did not."""
        self._limiter = anyio.CapacityLimiter(2)
        self._one_call = anyio.Lock()
        self._link: RedisConnection | None = None
        self._was_primary = False
        """Whether the server was a primary when the connection was opened."""
        self._address = ""
        self._decoder = QuoteDecoder()
        self._asked: tuple[Sequence[str], bytes] = ((), b"")
        """The symbols of the last question, and the question."""
        self._seen: dict[str, tuple[bytes, Quote]] = {}
        """Each key's last content, decoded: most prices are read more often than they change."""

    async def prices(self, symbols: Sequence[str]) -> dict[str, Quote]:
        """The prices that stand in the keys of these symbols, in one round trip.

        Symbols whose key is gone, or holds anything else, are left out.

        Raises:
            StoreUnavailable: No connection, or no answer in time.
            StoreRefused: The server refuses the login or the command.
            ConfigurationError: The address cannot be used.
        """
        return await self._call(self._read, symbols) if symbols else {}

    async def publish(self, channel: str, messages: Sequence[bytes]) -> None:
        """Publish the messages in order, on the channel behind the prefix.

        Each at least once: where a connection is lost in the middle, some may go out twice.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`prices`.
        """
        await self._call(self._publish, channel, messages)

    def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _call(self, function: Callable[..., _T], *args: object) -> _T:
        try:
            with anyio.fail_after(_WAIT_S):
                await self._one_call.acquire()
        except TimeoutError:
            raise StoreUnavailable("Redis is too slow: other calls wait for it") from None
        try:
            kept = self._link is not None
            try:
                return await self._try(function, *args)
            except StoreError as exc:
                # A kept connection may have died long ago, or lead to a demoted server.
                if not kept or (isinstance(exc, StoreRefused) and not exc.reconnect):
                    raise
            return await self._try(function, *args)
        finally:
            self._one_call.release()

    async def _try(self, function: Callable[..., _T], *args: object) -> _T:
        done = False
        try:
            link = self._link or await self._connect()
            result = await in_thread(self._limiter, link, function, *args)
            done = True
        finally:
            if not done:
                self.close()
        return result

    async def _connect(self) -> RedisConnection:
        try:
            location = await self._discovery.find()
        except NoAnswer as exc:
            raise StoreUnavailable(str(exc)) from exc
        self._address, self._names = location.address.shown, location.names
        self._record, self._asked = pack(b"GET", self._names.instance_key), ((), b"")
        self._link = RedisConnection(location.address)
        self._was_primary = await in_thread(self._limiter, self._link, _open)
        return self._link

    def _read(self, link: RedisConnection, symbols: Sequence[str]) -> dict[str, Quote]:
        if symbols != self._asked[0]:
            self._asked = symbols, pack(b"MGET", *map(self._names.price_key, symbols))
        role, record, values = link.call(_ROLE, self._record, self._asked[1])
        self._refuse_demoted(role)
        refuse_errors(self._address, (values,))
        self.service = decode_instance(record) or self.service
        found: dict[str, Quote] = {}
        for symbol, payload in zip(symbols, values, strict=True):
            if payload is None:
                continue
            seen = self._seen.get(symbol)
            if seen is not None and seen[0] == payload:
                found[symbol] = seen[1]
                continue
            quote = self._decoder.decode(payload)
            if quote is not None and quote.symbol == symbol:
                self._seen[symbol] = (payload, quote)
                found[symbol] = quote
        return found

    def _refuse_demoted(self, role: object) -> None:
        """A replica answers reads, and takes messages that only its own subscribers hear."""
        if self._was_primary and _is_replica(role):
            raise StoreRefused(
                f"Redis at {self._address} was a primary and is a replica now; connecting again",
                reconnect=True,
            )

    def _publish(self, link: RedisConnection, channel: str, messages: Sequence[bytes]) -> None:
        self._refuse_demoted(link.call(_ROLE)[0])
        name = self._names.channel(channel)
        commands = (pack(b"PUBLISH", name, message) for message in messages)
        refuse_errors(self._address, link.call(*commands))
