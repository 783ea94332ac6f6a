"""The price store in a Redis-protocol server: one connection, one transaction a batch.

A worker thread opens the connection, all else happens on the event loop
(docs/ADRs/0012). A call that is cancelled closes
the connection: what it sent is uncertain.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import attrs
import hiredis
from anyio.lowlevel import checkpoint_if_cancelled

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import Kind
from mdservice.observability.logging import get_logger
from mdservice.publish.store import WriteBatch
from mdservice.redis_io.commands import BatchPacker, pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection, connection_lost
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.replies import (
    READ_BYTES,
    collect,
    describe_refusal,
    hung_up,
    is_error,
    new_reader,
    refusal,
)

__all__ = [
    "CLIENT_NAME",
    "Identity",
    "RedisPriceStore",
    "RedisStream",
    "greet",
    "open_stream",
    "raise_refusal",
    "write_batch",
]


# An opened connection to a Redis-protocol server, used from the event loop.
#
# A thread opens a connection, since redis-py's way to do so blocks. From then on a batch is
# sent and its replies are read where it is made: a hop to a thread and back costs more than the
# server needs for a small batch.


_T = TypeVar("_T")


async def open_stream(
    address: RedisAddress, timeout_s: float, limiter: anyio.CapacityLimiter, name: str
) -> RedisStream:
    """Connect and log in, in a worker thread.

    Args:
        address: The server.
        timeout_s: How long connecting, and each wait for the server, may take.
        limiter: How many threads may be at work.
        name: How the connection is called in the server's ``CLIENT LIST``.

    Raises:
        StoreUnavailable: No connection within ``timeout_s``.
        StoreRefused: The login is refused.
    """
    link = RedisConnection(address)
    stream: RedisStream | None = None
    try:
        with anyio.move_on_after(timeout_s):
            await anyio.to_thread.run_sync(
                _open_named, link, name, abandon_on_cancel=True, limiter=limiter
            )
            stream = RedisStream(link, timeout_s)
    finally:
        if stream is None:
            link.close()  # which ends what the thread waits for
    if stream is None:
        raise StoreUnavailable(f"Redis at {address.shown} did not answer within {timeout_s:g} s")
    return stream


def _open_named(link: RedisConnection, name: str) -> None:
    link.open()
    link.call(pack(b"CLIENT", b"SETNAME", name.encode()))  # a refusal does not matter


class RedisStream:
    """One conversation at a time, on trio or asyncio, with or without TLS.

    Args:
        link: Open; it is not used from a thread any more, except to be closed.
        timeout_s: How long each wait for the server may take.
    """

    def __init__(self, link: RedisConnection, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._socket = link.opened_socket()
        self._socket.setblocking(False)
        self._reader = new_reader()
        self._buffer = bytearray(READ_BYTES)

    async def exchange(self, data: bytes, count: int) -> list[Any]:
        """Send ``data``, return the ``count`` replies that it has, errors among them.

        Whatever ends it early, cancelling too, leaves what was sent uncertain and the replies out
        of step: the caller then closes the connection.

        Raises:
            StoreUnavailable: The connection was lost, or the server did not answer in time.
        """
        await checkpoint_if_cancelled()
        try:
            await self._send(data)
            return await self._receive(count)
        except (OSError, hiredis.ProtocolError, anyio.ClosedResourceError) as exc:
            raise connection_lost(self._link.address, exc) from exc

    def close(self) -> None:
        """End the connection, and a call that waits for it; never raises."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
        self._link.close()

    async def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            sent = await self._when_ready(self._socket.send, rest, anyio.wait_writable)
            rest = rest[sent:]

    async def _receive(self, count: int) -> list[Any]:
        replies: list[Any] = []
        reader, buffer = self._reader, self._buffer
        while not collect(reader, replies, count):
            size = await self._when_ready(self._socket.recv_into, buffer, anyio.wait_readable)
            if size == 0:
                raise hung_up(replies)
            reader.feed(buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do
        return replies

    async def _when_ready(
        self, call: Callable[[Any], _T], argument: Any, wait: Callable[[Any], Awaitable[None]]
    ) -> _T:
        """Call the socket, again whenever it is ready for it."""
        while True:
            try:
                return call(argument)
            except BlockingIOError:
                ready = wait
            except ssl.SSLWantReadError:  # TLS has its own mind about who speaks next
                ready = anyio.wait_readable
            except ssl.SSLWantWriteError:
                ready = anyio.wait_writable
            with anyio.fail_after(self._timeout_s):
                await ready(self._socket)


# What is said on a connection: the greeting, with the fence, and a batch.


CLIENT_NAME: Final = "mdservice-writer"
"""How the connection is called in the server's ``CLIENT LIST``."""


@attrs.frozen
class Identity:
    """A connection as its server knows it; an id means nothing to another run of the server."""

    run_id: bytes
    client_id: int


def greet(
    link: RedisConnection,
    address: str,
    previous: Identity | None,
    packer: BatchPacker,
    database: int,
) -> Identity | None:
    """Open the link, fence the previous connection; return how the server knows this one.

    It blocks, so it runs in a thread. The packer learns whether it may say whose a batch is.

    None where the server does not tell, or refuses the fence: what that means stands at
    :class:`~mdservice.redis_io.store.RedisPriceStore`.

    Raises:
        StoreUnavailable, StoreRefused
    """
    link.open()
    _, client_id, info, multi, executed = link.call(
        pack(b"CLIENT", b"SETNAME", CLIENT_NAME.encode()),
        pack(b"CLIENT", b"ID"),
        pack(b"INFO", b"server"),
        # Were MULTI refused to this user, the commands of a batch would be executed one by one.
        pack(b"MULTI"),
        pack(b"EXEC"),
    )
    raise_refusal(address, [multi, executed])
    # A message that this user may not publish would have the server refuse the whole batch.
    (marked,) = link.call(packer.marker(database, 0))
    packer.marks_db = None if is_error(marked) else database
    run_id = _run_id(info)
    if run_id is None or not isinstance(client_id, int):
        return None
    if previous is not None and previous.run_id == run_id:
        (killed,) = link.call(pack(b"CLIENT", b"KILL", b"ID", b"%d" % previous.client_id))
        if is_error(killed):
            return None
    return Identity(run_id, client_id)


def _run_id(info: object) -> bytes | None:
    if not isinstance(info, bytes):
        return None
    for line in info.splitlines():
        name, _, value = line.partition(b":")
        if name == b"run_id" and value:
            return value
    return None


async def write_batch(
    stream: RedisStream, address: str, packer: BatchPacker, batch: WriteBatch
) -> list[str]:
    """Send a batch; return the texts of the commands that failed inside the transaction.

    Raises:
        StoreUnavailable, StoreRefused
    """
    packed = packer.batch(batch)
    replies = await stream.exchange(packed.data, packed.queued + 2)
    results = replies[-1]
    if isinstance(results, list):
        if hiredis.ReplyError not in set(map(type, results)):  # thousands of results, no errors
            return []
        return [str(result) for result in results if is_error(result)]
    if is_error(replies[0]) and not all(map(is_error, replies)):
        # MULTI alone was refused (its permission went away in mid-run), and what followed
        # was executed one by one: the next connect() says so.
        raise StoreUnavailable(
            describe_refusal(address, str(replies[0])) + "; part of the batch was executed"
        )
    raise_refusal(address, replies)
    raise StoreUnavailable(f"Redis at {address} answered EXEC with {results!r}")


def raise_refusal(address: str, replies: Iterable[object]) -> None:
    """Raise StoreRefused for the first of the replies that is an error."""
    for reply in replies:
        if is_error(reply):
            raise refusal(address, str(reply))


# One thread opens; a few more may hang for a while in a name resolution that was given up.
_THREADS: Final = 4
_KEYS_PER_READ: Final = 1_000

_log = get_logger(__name__)


class RedisPriceStore:
    """A :class:`~mdservice.publish.store.PriceStore` in Redis or Valkey.

    A connection that is lost in the middle of a write may leave bytes on their way that the
    server executes later. :meth:`connect` therefore ends the previous connection by
    ``CLIENT KILL ID`` before :meth:`last_batch` is read. Where the server refuses ``CLIENT``
    or ``INFO`` to this user, :attr:`can_fence` is False, and a batch that was under way when
    a connection broke may then be executed twice, or after a newer one. The same holds where
    one address leads to several servers in turn.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
        price_ttl_s: After how many seconds the keys of kinds without a life of their own expire.
        event_log: A stream to which the events of logged kinds are appended too, or None.
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
        link = RedisConnection(self._address)
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

    async def read_latest(self, kind: Kind[Any], symbols: Iterable[str]) -> dict[str, bytes]:
        """The latest values of these symbols, by symbol; those without one are left out.

        Raises:
            StoreUnavailable, StoreRefused
        """
        names = list(symbols)
        prefix = self._names.key_prefix(kind)
        found: dict[str, bytes] = {}
        for start in range(0, len(names), _KEYS_PER_READ):
            some = names[start : start + _KEYS_PER_READ]
            (values,) = await self._call(pack(b"MGET", *(prefix + s.encode() for s in some)))
            found.update(
                (name, value) for name, value in zip(some, values, strict=True) if value is not None
            )
        return found

    async def renew(self, kind: Kind[Any], symbols: Iterable[str]) -> Sequence[str]:
        """Let these values live for their whole life from now on; the symbols without a value.

        Raises:
            StoreUnavailable, StoreRefused
        """
        names = list(symbols)
        if not names:
            return ()
        prefix = self._names.key_prefix(kind)
        ttl = b"%d" % self._packer.ttl_s(kind)
        commands = (pack(b"EXPIRE", prefix + name.encode(), ttl) for name in names)
        replies = await self._call(*commands)
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
