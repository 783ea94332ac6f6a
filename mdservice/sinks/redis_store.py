"""The price store in a Redis-protocol server: one connection, one transaction a batch.

A worker thread opens the connection, all else happens on the event loop
(docs/ADRs/0012). A call that is cancelled closes
the connection: what it sent is uncertain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.logs import get_logger
from mdservice.model.redis_layout import RedisNames
from mdservice.sinks.redis_link import RedisAddress, RedisLink
from mdservice.sinks.redis_session import Identity, greet, raise_refusal, write_batch
from mdservice.sinks.redis_stream import RedisStream
from mdservice.sinks.resp import BatchPacker, pack
from mdservice.sinks.store import WriteBatch

__all__ = ["RedisPriceStore"]

# One thread opens; a few more may hang for a while in a name resolution that was given up.
_THREADS: Final = 4
_KEYS_PER_READ: Final = 1_000

_log = get_logger(__name__)


class RedisPriceStore:
    """A :class:`~mdservice.sinks.store.PriceStore` in Redis or Valkey.

    A connection that is lost in the middle of a write may leave bytes on their way that the
    server executes later. :meth:`connect` therefore ends the previous connection by
    ``CLIENT KILL ID`` before :meth:`last_batch` is read. Where the server refuses ``CLIENT``
    or ``INFO`` to this user, :attr:`can_fence` is False, and a batch that was under way when
    a connection broke may then be executed twice, or after a newer one. The same holds where
    one address leads to several servers in turn.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
        price_ttl_s: After how many seconds a price expires.
        event_log: A stream to which price events are appended too, or None.
        event_log_maxlen: About how many entries the stream keeps.
        instance: Names the writer. A new name for each start of the service, since batches
            are counted from 1 again.
        prefix: What stands in front of every key, channel and stream name.
        timeout_s: How long connecting, and each wait for the server, may take.

    Raises:
        ConfigurationError: The URL cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        instance: str,
        price_ttl_s: int = 300,
        event_log: str | None = None,
        event_log_maxlen: int = 100_000,
        prefix: str = "",
        timeout_s: float = 5.0,
    ) -> None:
        self._address = RedisAddress(url, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._names = RedisNames(prefix)
        self._packer = BatchPacker(
            price_ttl_s=price_ttl_s,
            event_log=event_log,
            event_log_maxlen=event_log_maxlen,
            instance=instance,
            prefix=prefix,
        )
        self._number_key = self._names.writer_key(instance)
        self._price_ttl = b"%d" % price_ttl_s
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._stream: RedisStream | None = None
        self._unfenced: Identity | None = None
        self._said_unfenced = False
        self._number: int | None = None
        self._command_errors = 0
        self._last_command_error: str | None = None

    @property
    def address(self) -> str:
        """Where the server is, without user and password."""
        return self._address.shown

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._stream is not None

    @property
    def can_fence(self) -> bool:
        """Whether the next :meth:`connect` can end the connection of now."""
        return self._unfenced is not None

    @property
    def command_errors(self) -> int:
        """How many commands failed inside an executed transaction.

        For instance an ``XADD`` to a key that is no stream.
        """
        return self._command_errors

    @property
    def last_command_error(self) -> str | None:
        """The server's words for the last of them."""
        return self._last_command_error

    async def connect(self) -> None:
        """Open a connection, after ending the previous one where the server still holds it.

        Raises:
            StoreUnavailable: No connection within ``timeout_s``.
            StoreRefused: The login, or a command that is needed, is refused.
        """
        self._drop()
        link = RedisLink(self._address)
        try:
            with anyio.move_on_after(self._timeout_s) as scope:
                self._unfenced = await anyio.to_thread.run_sync(
                    partial(
                        greet,
                        link,
                        self.address,
                        self._unfenced,
                        self._packer,
                        self._address.database,
                    ),
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )
                self._stream = RedisStream(link, self._timeout_s)
        finally:
            if self._stream is None:
                link.close()  # which ends what the thread waits for
        if scope.cancelled_caught:
            raise StoreUnavailable(
                f"Redis at {self.address} did not answer within {self._timeout_s:g} s; "
                "it is tried again"
            )
        if self.can_fence:
            self._said_unfenced = False
        elif not self._said_unfenced:
            self._said_unfenced = True
            _log.warning(
                "redis_cannot_be_fenced",
                url=self.address,
                reason="this user may not use CLIENT or INFO: a write whose connection broke may "
                "be executed twice",
            )

    async def last_batch(self) -> int:
        """The number of this instance's last executed batch, or 0.

        Raises:
            StoreUnavailable, StoreRefused
        """
        (reply,) = await self._call(pack(b"GET", self._number_key))
        try:
            self._number = int(reply or 0)
        except ValueError as exc:
            key = self._number_key.decode()
            raise StoreRefused(
                f"The key {key} at {self.address} holds no batch number; delete it"
            ) from exc
        return self._number

    async def write(self, batch: WriteBatch) -> None:
        """Execute the batch as one transaction: every key, then every message, the number.

        A command that fails inside the executed transaction does not undo the others: the
        batch counts as executed, and :attr:`command_errors` tells.

        Raises:
            StoreUnavailable: The connection was lost; the batch may or may not be executed.
            StoreRefused: Nothing was executed; the connection can be used again.
        """
        self._number = None
        with self._conversation() as stream:
            failed = await write_batch(stream, self.address, self._packer, batch)
        self._number = batch.number
        if failed:
            self._command_errors += len(failed)
            self._last_command_error = failed[-1]

    async def ping(self) -> None:
        """Ask whether the server answers and would take writes.

        It stores the last batch's number again: what a replica, a full or a misconfigured
        server refuses, a plain ``PING`` would not show.

        Raises:
            StoreUnavailable, StoreRefused
        """
        if self._number is None:
            # Not known: one that is there must stay.
            await self._call(self._packer.number(0, b"NX"))
        else:
            await self._call(self._packer.number(self._number))

    async def read_prices(self, symbols: Iterable[str]) -> dict[str, bytes]:
        """The price objects of these symbols, those without one left out.

        Raises:
            StoreUnavailable, StoreRefused
        """
        names = list(symbols)
        prices: dict[str, bytes] = {}
        for start in range(0, len(names), _KEYS_PER_READ):
            some = names[start : start + _KEYS_PER_READ]
            (values,) = await self._call(pack(b"MGET", *map(self._names.price_key, some)))
            prices.update(
                (name, value) for name, value in zip(some, values, strict=True) if value is not None
            )
        return prices

    async def renew(self, symbols: Iterable[str]) -> Sequence[str]:
        """Let these prices live for ``price_ttl_s`` from now on; the symbols without a price.

        Raises:
            StoreUnavailable, StoreRefused
        """
        names = list(symbols)
        if not names:
            return ()
        key = self._names.price_key
        replies = await self._call(*(pack(b"EXPIRE", key(s), self._price_ttl) for s in names))
        return [name for name, reply in zip(names, replies, strict=True) if not reply]

    async def forget(self) -> None:
        """Remove the batch number, so that nothing of this writer is left behind.

        Raises:
            StoreUnavailable, StoreRefused
        """
        self._number = None
        await self._call(pack(b"DEL", self._number_key))

    async def aclose(self) -> None:
        """Close the connection; never raises for a broken one."""
        self._drop()

    async def _call(self, *commands: bytes) -> list[Any]:
        """The replies to some commands, none of which may be an error."""
        with self._conversation() as stream:
            replies = await stream.exchange(b"".join(commands), len(commands))
            raise_refusal(self.address, replies)
        return replies

    @contextmanager
    def _conversation(self) -> Iterator[RedisStream]:
        """The connection; whatever ends the block badly ends it too."""
        stream = self._stream
        if stream is None:
            raise StoreUnavailable(f"No connection to Redis at {self.address}: connect() first")
        usable = False
        try:
            yield stream
            usable = True
        except StoreRefused:
            usable = True  # the server has answered everything: the connection is in step
            raise
        finally:
            if not usable:
                stream.close()
                if stream is self._stream:
                    self._stream = None

    def _drop(self) -> None:
        stream, self._stream, self._number = self._stream, None, None
        if stream is not None:
            stream.close()
