"""One connection to a Redis-protocol server, on the event loop.

The writer, the readers, the gateway and ``mdservice check`` all use it, on trio and on asyncio,
with or without TLS. redis-py parses the URL. All else happens here, on a non-blocking socket:
connecting, TLS, the login, and each exchange, with hiredis for the replies. A batch has thousands
of replies, and a client library spends more time on each than the server does.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast
from urllib.parse import quote

import anyio
import anyio.lowlevel
import hiredis
import redis
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.maint_notifications import MaintNotificationsConfig

from mdservice.errors import ConfigurationError, StoreError, StoreRefused, StoreUnavailable
from mdservice.redis_io.commands import pack
from mdservice.redis_io.replies import (
    READ_BYTES,
    Role,
    collect,
    hung_up,
    is_error,
    needs_new_connection,
    new_reader,
    refusal,
    refusal_code,
    role_of,
)
from mdservice.runtime.network import ca_file, tls_advice

__all__ = ["Opener", "RedisAddress", "RedisConnection", "RedisLocator", "no_answer"]

_POOL_ONLY: Final = ("max_connections", "timeout")
_NOT_IN_A_URL: Final = frozenset(
    {
        *("credential_provider", "socket_keepalive_options", "socket_type"),
        *("ssl_ocsp_context", "ssl_ocsp_expected_cert"),
        *("ssl_validate_ocsp", "ssl_validate_ocsp_stapled"),
    }
)
"""Arguments that only a program can pass to redis-py, or that need further libraries."""
_ROOM_S: Final = 0.01
"""Seconds before the next try where a UNIX socket's queue of connections is full."""
_LOST: Final = (OSError, hiredis.ProtocolError, anyio.ClosedResourceError)
"""The errors that mean that the connection is lost."""
_ADVICE: Final = "; start a server there, or correct the URL (MDSERVICE_REDIS_URL)"
_TLS_ADVICE: Final = "; if the server wants TLS, use rediss:// or ssl=true (MDSERVICE_REDIS_URL)"
_PLAIN_ADVICE: Final = (
    "; if the server has no TLS, use redis:// without ssl=true (MDSERVICE_REDIS_URL)"
)
_T = TypeVar("_T")


class RedisLocator(Protocol):
    """Finds the server, before each new connection.

    Most URLs name one server, a :class:`RedisAddress`. Others name those who know it.
    :func:`mdservice.redis_io.locator.locator_of` makes one from a URL.
    """

    @property
    def shown(self) -> str:
        """The URL without user and password; it can be used where no login is needed."""
        ...

    @property
    def database(self) -> int:
        """The number of the database."""
        ...

    @property
    def user(self) -> str:
        """Who logs in."""
        ...

    @property
    def timeout_s(self) -> float:
        """How long connecting, and each wait for the server, may take."""
        ...

    @property
    def clustered(self) -> bool:
        """Whether it leads to a cluster, where each key has its node."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether events are published to the nodes of a cluster by symbol."""
        ...

    @property
    def may_move(self) -> bool:
        """Whether :meth:`is_right` can ever be False."""
        ...

    async def is_right(self, server: RedisLocator) -> bool:
        """Whether a server that :meth:`reach` has found is still the one to use.

        An old primary may still take writes, which its successor never gets. Where this cannot be
        found out, the server is still the right one.
        """
        ...

    async def reach(self, connect: Opener, *, reads: bool) -> RedisConnection:
        """Find the server, and connect to it.

        Args:
            connect: Connects and logs in to one server. It may be called several times.
            reads: Whether the connection only reads, so that a replica will do.

        Raises:
            StoreUnavailable: The server is not found, or cannot be reached.
            StoreRefused: A server refuses the login or the database.
        """
        ...


class RedisAddress:
    """Where a server is and how to log in, from a ``redis://``, ``rediss://`` or ``unix://`` URL.

    Args:
        url: As redis-py reads it, query arguments included.
        timeout_s: How long connecting, and each wait for the server, may take.
        must_be: The role without which a connection is refused; None for any.

    Raises:
        ConfigurationError: The URL cannot be used. It is not quoted: it may hold a password.
    """

    def __init__(self, url: str, *, timeout_s: float, must_be: Role | None = None) -> None:
        self.clustered = self.sharded = False
        """Whether it leads to a cluster, where each key has its node; and so do events."""
        self.must_be = must_be
        """The role without which a connection is refused; None for any."""
        try:
            options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        except ValueError:
            # redis-py's message may quote a part of the password.
            raise ConfigurationError(
                "The Redis URL cannot be read: it starts with redis://, rediss:// or unix://, "
                "for instance redis://localhost:6379/0"
            ) from None
        for name in _POOL_ONLY:
            options.pop(name, None)
        kind: Any = options.pop("connection_class", Connection)
        self.shown = _without_secret(url, kind, options)
        """The URL without user and password; it can be used where no login is needed."""
        self.database = int(options.get("db") or 0)
        """The number of the database."""
        self.user = str(options.get("username") or "default")
        """Who logs in."""
        self.timeout_s = timeout_s
        """How long connecting, and each wait for the server, may take."""
        # Options for redis-py's own connections have no effect here.
        options.update(
            protocol=2,
            driver_info=None,
            retry=None,
            retry_on_timeout=False,
            retry_on_error=[],
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        # A text comes from a query argument; the scheme gives a class.
        if isinstance(kind, str) or not _NOT_IN_A_URL.isdisjoint(options):
            raise _bad_argument(self.shown)
        if issubclass(kind, SSLConnection):
            _trust_what_the_environment_names(options)
        try:
            self.options: Connection | UnixDomainSocketConnection = kind(**options)
            """The URL's parts, as redis-py understands them; it never connects."""
        except (TypeError, ValueError, redis.RedisError) as exc:
            raise _bad_argument(self.shown) from exc
        self._tls: tuple[ssl.SSLContext, list[int]] | None = None

    may_move = False
    """There is one server."""

    async def is_right(self, server: RedisLocator) -> bool:  # noqa: ARG002 - one server
        """See :class:`RedisLocator`: always."""
        return True

    async def reach(self, connect: Opener, *, reads: bool) -> RedisConnection:  # noqa: ARG002 - one server
        """See :class:`RedisLocator`: connect to this server."""
        return await connect(self)

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return isinstance(self.options, SSLConnection)

    def tls_context(self) -> ssl.SSLContext | None:
        """How to verify the server, None without TLS.

        It is rebuilt only after one of its files has changed, since loading the system's
        certificates blocks the event loop for about 60 ms.

        Raises:
            OSError: A file that the URL names cannot be used.
        """
        options = self.options
        if not isinstance(options, SSLConnection):
            return None
        files = [options.ca_certs, *(options.ca_path or "").split(os.pathsep)]
        files += [options.certfile, options.keyfile, ssl.get_default_verify_paths().cafile]
        changed_ns = [Path(file).stat().st_mtime_ns for file in files if file]
        if self._tls is None or self._tls[1] != changed_ns:
            self._tls = _make_context(options), changed_ns
        return self._tls[0]


def _bad_argument(shown: str) -> ConfigurationError:
    return ConfigurationError(
        f"The Redis URL for {shown} has a query argument that is not known or has a bad value; "
        "see redis-py's Redis.from_url"
    )


def _make_context(options: SSLConnection) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = options.check_hostname
    context.verify_mode = options.cert_reqs
    for flag in options.ssl_include_verify_flags or ():
        context.verify_flags |= flag
    for flag in options.ssl_exclude_verify_flags or ():
        context.verify_flags &= ~flag
    if options.certfile or options.keyfile:
        context.load_cert_chain(options.certfile, options.keyfile, options.certificate_password)
    authorities = options.ca_certs, options.ca_path, options.ca_data
    if any(one is not None for one in authorities):
        context.load_verify_locations(*authorities)
    if options.ssl_min_version is not None:
        context.minimum_version = options.ssl_min_version
    if options.ssl_ciphers:
        context.set_ciphers(options.ssl_ciphers)
    return context


def _trust_what_the_environment_names(options: dict[str, Any]) -> None:
    """Use the certificates of the environment, as other parts do, where the URL names none.

    Raises:
        ConfigurationError: An environment variable names a file that cannot be used.
    """
    if any(options.get(name) for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data")):
        return
    if options.get("ssl_cert_reqs") == "none":
        return
    file, folder = ca_file()
    # Without a variable, Python's own default is the system's certificates.
    options.update(
        {name: value for name, value in (("ssl_ca_certs", file), ("ssl_ca_path", folder)) if value}
    )


def _without_secret(url: str, kind: type, options: dict[str, Any]) -> str:
    database = options.get("db", 0)
    if kind is UnixDomainSocketConnection:
        return f"unix://{quote(options.get('path', ''))}" + (f"?db={database}" if database else "")
    host = options.get("host", "localhost")
    host = f"[{host}]" if ":" in host else host
    return f"{url.partition('://')[0]}://{host}:{options.get('port', 6379)}/{database}"


class RedisConnection:
    """One exchange at a time, on trio or asyncio. Made by :meth:`open`.

    After a call that an error or a cancellation ended early, it is unknown what the server has
    executed, and replies may still come. The caller then closes the connection. Only
    :meth:`receive` without ``data`` may be cancelled and called again.

    Args:
        sock: Connected; with TLS, after the handshake.
        server: The server.
    """

    settle_s = 0.0
    """How long after its key the event of a record may come out, seconds."""

    def __init__(self, sock: socket.socket, server: RedisAddress) -> None:
        sock.setblocking(False)
        self.server: RedisLocator = server
        """The server, for further connections to the same one."""
        self.address = server.shown
        """Where the server is, without user and password."""
        self._socket = sock
        self._timeout_s = server.timeout_s
        self._reader = new_reader()
        self._buffer = bytearray(READ_BYTES)

    @classmethod
    async def open(
        cls, address: RedisLocator, name: str, *, limit_s: float = inf, reads: bool = False
    ) -> RedisConnection:
        """Find the server, connect and log in.

        After a cancellation only a name resolution may still run for a while.

        Args:
            address: The server, or what finds it.
            name: The connection's name in the server's ``CLIENT LIST``.
            limit_s: The limit for all steps together, in seconds. Each step, such as connecting
                to one of a name's addresses, has the limit ``address.timeout_s``.
            reads: Whether the connection only reads, so that a replica will do.

        Raises:
            StoreUnavailable: No connection.
            StoreRefused: The server refuses the login or the database.
        """
        with anyio.move_on_after(limit_s):
            return await address.reach(partial(cls._to, name=name), reads=reads)
        raise no_answer(address, limit_s)

    @classmethod
    async def _to(cls, server: RedisAddress, name: str) -> RedisConnection:
        with ExitStack() as undo:
            try:
                connection = cls(await _connect(server), server)
                undo.callback(connection.close)
                await connection._secure(server)
                await connection._log_in(server.options, name)
                if server.must_be is not None:
                    await connection._check_role(server.must_be)
            except StoreError:
                raise
            except (*_LOST, ValueError) as exc:  # a name or a certificate that cannot be used
                raise StoreUnavailable(
                    f"cannot connect to Redis at {server.shown}: {_reason(exc)}"
                    f"{_advice(exc, encrypted=server.encrypted)}"
                ) from exc
            undo.pop_all()
            return connection

    async def servers(self) -> list[RedisConnection]:
        """A connection to each server: itself, or those of a cluster."""
        return [self]

    async def call(self, *commands: bytes) -> list[Any]:
        """Send packed commands and return their replies, the server's errors included.

        Raises:
            StoreUnavailable: As :meth:`exchange`.
        """
        return await self.exchange(b"".join(commands), len(commands))

    async def exchange(self, data: bytes, count: int) -> list[Any]:
        """Send ``data`` and return its ``count`` replies, errors included.

        Raises:
            StoreUnavailable: The connection was lost, or the server did not answer in time.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            return await self._exchange(data, count)
        except _LOST as exc:
            raise self._lost(exc) from exc

    async def send(self, data: bytes) -> None:
        """Send ``data``, whose replies a later :meth:`exchange` of no data returns.

        Raises:
            StoreUnavailable: The connection was lost.
        """
        try:
            await self._send(data)
        except _LOST as exc:
            raise self._lost(exc) from exc

    async def receive(self, wait_s: float, data: bytes = b"") -> list[Any]:
        """Send ``data``, then return all messages that have come, requested or not.

        For a connection on which the server also sends without a request, as it does to a
        subscriber. The result includes the server's errors.

        Args:
            wait_s: How long to wait for a first whole message, in seconds. Messages that have
                come by then are returned, even if the event loop was blocked for longer.
            data: What to send first.

        Returns:
            The messages in order; empty after ``wait_s``. The call reads once; further bytes
            in the kernel are left to the next call.

        Raises:
            StoreUnavailable: The connection was lost.
        """
        await anyio.lowlevel.checkpoint()  # a call that never waits must not starve other tasks
        try:
            await self._send(data)
            return await self._receive(anyio.current_time() + wait_s)
        except _LOST as exc:
            raise self._lost(exc) from exc

    async def readable(self) -> None:
        """Wait until data comes, or the connection is lost."""
        with suppress(*_LOST):  # the next call reports it
            await anyio.wait_readable(self._socket)

    def close(self) -> None:
        """Close the connection and end a call that waits for it; never raises."""
        if self._socket.fileno() >= 0:
            with suppress(RuntimeError):  # no event loop, so no call waits
                anyio.notify_closing(self._socket)
        self._socket.close()

    async def _secure(self, address: RedisAddress) -> None:
        context = address.tls_context()
        if context is None:
            return
        host = cast("Connection", address.options).host
        secured = self._socket = context.wrap_socket(
            self._socket, server_hostname=host, do_handshake_on_connect=False
        )
        await self._when_ready(lambda _: secured.do_handshake(), None, anyio.wait_readable)

    async def _log_in(self, options: Connection | UnixDomainSocketConnection, name: str) -> None:
        user, password = options.username or "", options.password or ""
        if user or password:
            words = [word.encode() for word in (user, password) if word or user]
            (reply,) = await self._exchange(pack(b"AUTH", *words), 1)
            if is_error(reply) and user and "wrong number of arguments" in str(reply):
                # A server before Redis 6 has no users.
                (reply,) = await self._exchange(pack(b"AUTH", words[1]), 1)
            if is_error(reply):
                _refuse_if_full(reply)
                raise _login_refused(self.address, str(reply))
        commands = [pack(b"CLIENT", b"SETNAME", name.encode())]
        if options.db:
            commands.append(pack(b"SELECT", b"%d" % options.db))
        named, *selected = await self._exchange(b"".join(commands), len(commands))
        _refuse_if_full(named)  # any other refusal of a name does not matter
        for reply in selected:
            if is_error(reply):
                raise refusal(self.address, str(reply))

    async def _check_role(self, wanted: Role) -> None:
        (reply,) = await self._exchange(pack(b"ROLE"), 1)
        role = role_of(reply)
        if role is None:
            return  # this user may not ask
        if role.name != wanted:
            raise StoreUnavailable(f"Redis at {self.address} is no {wanted}: it is a {role.name}")
        if not role.follows:
            raise StoreUnavailable(
                f"Redis at {self.address} is a replica without a connection to its primary"
            )

    async def _exchange(self, data: bytes, count: int) -> list[Any]:
        await self._send(data)
        replies: list[Any] = []
        reader, buffer = self._reader, self._buffer
        while not collect(reader, replies, count):
            size = await self._when_ready(self._socket.recv_into, buffer, anyio.wait_readable)
            if size == 0:
                raise hung_up(replies)
            reader.feed(buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do
        return replies

    async def _receive(self, until_s: float) -> list[Any]:
        reader, buffer, over = self._reader, self._buffer, False
        heard: list[Any] = []
        while True:
            collect(reader, heard, sys.maxsize)
            if heard or over:
                return heard
            left_s = until_s - anyio.current_time()
            over = left_s <= 0
            try:
                size = self._socket.recv_into(buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                ready = anyio.wait_readable
            except ssl.SSLWantWriteError:
                ready = anyio.wait_writable
            else:
                if size == 0:
                    raise hung_up(())
                reader.feed(buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do
                continue
            with anyio.move_on_after(left_s):
                await ready(self._socket)

    async def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            sent = await self._when_ready(self._socket.send, rest, anyio.wait_writable)
            rest = rest[sent:]

    async def _when_ready(
        self, call: Callable[[Any], _T], argument: Any, wait: Callable[[Any], Awaitable[None]]
    ) -> _T:
        """Call a socket function, and repeat it when the socket is ready, until it succeeds."""
        while True:
            try:
                return call(argument)
            except BlockingIOError:
                ready = wait
            except ssl.SSLWantReadError:  # TLS may have to read before it can write
                ready = anyio.wait_readable
            except ssl.SSLWantWriteError:
                ready = anyio.wait_writable
            with anyio.fail_after(self._timeout_s):
                await ready(self._socket)

    def _lost(self, exc: Exception) -> StoreUnavailable:
        return StoreUnavailable(
            f"The connection to Redis at {self.address} was lost: {_reason(exc)}; connecting again"
        )


Opener = Callable[[RedisAddress], Awaitable[RedisConnection]]
"""Connects and logs in to one server."""


async def _connect(address: RedisAddress) -> socket.socket:
    options = address.options
    if isinstance(options, UnixDomainSocketConnection):
        return await _connect_to(address, socket.AF_UNIX, options.path)
    error = OSError(f"{options.host} has no address")
    for family, _, _, _, where in await _resolve(options.host, options.port, address.timeout_s):
        try:
            return await _connect_to(address, family, where)
        except OSError as exc:
            error = exc
    raise error


async def _resolve(host: str, port: int, limit_s: float) -> Sequence[tuple[Any, ...]]:
    """The host's addresses, without a look-up where the host is an address itself."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        with anyio.fail_after(limit_s):
            return await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def _connect_to(address: RedisAddress, family: int, where: Any) -> socket.socket:
    with ExitStack() as undo:
        sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        if isinstance(address.options, Connection):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.options.socket_keepalive:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in address.options.socket_keepalive_options.items():
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
        with anyio.fail_after(address.timeout_s):
            while True:
                try:
                    sock.connect(where)
                except BlockingIOError:
                    if family == socket.AF_UNIX:
                        await anyio.sleep(_ROOM_S)  # the server's queue is full
                        continue
                    await anyio.wait_writable(sock)
                    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        raise OSError(error, os.strerror(error)) from None
                break
        undo.pop_all()
        return sock


def _reason(exc: Exception) -> str:
    if isinstance(exc, TimeoutError) and exc.strerror is None:
        return "no answer in time"
    if isinstance(exc, OSError) and exc.strerror is not None:
        return f"{exc.strerror}: {exc.filename}" if exc.filename else exc.strerror
    return str(exc).removesuffix(".") or type(exc).__name__


def no_answer(address: RedisLocator, limit_s: float) -> StoreUnavailable:
    """The error for a server that takes the connection and does not answer in time."""
    encrypted = isinstance(address, RedisAddress) and address.encrypted
    advice = _PLAIN_ADVICE if encrypted else ""  # a server without TLS waits for the end of a line
    return StoreUnavailable(f"Redis at {address.shown} did not answer within {limit_s:g} s{advice}")


def _advice(exc: Exception, *, encrypted: bool) -> str:
    """What to do about a connection that cannot be opened."""
    if advice := tls_advice(exc):
        return advice
    # One side waits for what the other does not send, or ends at the first byte.
    if encrypted and isinstance(exc, (ssl.SSLError, TimeoutError, ConnectionResetError)):
        return _PLAIN_ADVICE
    if not encrypted and isinstance(exc, (ConnectionResetError, BrokenPipeError)):
        return _TLS_ADVICE
    return _ADVICE


def _refuse_if_full(reply: object) -> None:
    """Raise for the error with which a full server refuses a new connection."""
    if is_error(reply) and (
        refusal_code(str(reply)) == "DENIED" or "max number of clients" in str(reply)
    ):
        raise hung_up([reply])


def _login_refused(address: str, text: str) -> StoreRefused:
    code = refusal_code(text)
    if code not in ("ERR", "WRONGPASS", "NOAUTH"):
        return refusal(address, text)
    reason = text.removeprefix(f"{code} ").removesuffix(".")
    return StoreRefused(
        f"Redis at {address} refused the login: {reason}; set user and password in the Redis "
        "URL (MDSERVICE_REDIS_URL)",
        reconnect=needs_new_connection(text),
        code=code,
    )
