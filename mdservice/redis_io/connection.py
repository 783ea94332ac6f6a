"""One connection to a Redis-protocol server, used from worker threads.

redis-py opens it (URL, TLS, login, database). After that its socket is read with hiredis
directly: a batch has thousands of replies, and redis-py's ``read_response`` spends more time
on each than the server does.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import quote

import hiredis
import redis
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.maint_notifications import MaintNotificationsConfig

from mdservice.errors import ConfigurationError, StoreRefused, StoreUnavailable
from mdservice.redis_io.replies import (
    MISSING,
    READ_BYTES,
    collect,
    describe_refusal,
    hung_up,
    needs_new_connection,
    new_reader,
)
from mdservice.runtime.network import ca_file, tls_advice

__all__ = ["RedisAddress", "RedisConnection", "connection_lost"]

_POOL_ONLY: Final = ("max_connections", "timeout")


class RedisAddress:
    """Where a server is and how to log in, from a ``redis://``, ``rediss://`` or ``unix://`` URL.

    Args:
        url: As redis-py reads it, query arguments included.
        timeout_s: How long connecting, and each wait for the server, may take.

    Raises:
        ConfigurationError: The URL cannot be used. It is not quoted: it may hold a password.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        try:
            options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        except ValueError:
            # Its words may quote a part of the password.
            raise ConfigurationError(
                "The Redis URL cannot be read: it starts with redis://, rediss:// or unix://, "
                "for instance redis://localhost:6379/0"
            ) from None
        for name in _POOL_ONLY:
            options.pop(name, None)
        self._class: type[Connection | UnixDomainSocketConnection] = options.pop(
            "connection_class", Connection
        )
        self.shown = _without_secret(url, self._class, options)
        """The URL without user and password; it can be used where no login is needed."""
        self.database = int(options.get("db") or 0)
        """The number of the database."""
        self.user = str(options.get("username") or "default")
        """Who logs in."""
        # One request, one reply, no push messages; nothing that redis-py adds for itself.
        options.update(
            protocol=2,
            decode_responses=False,
            driver_info=None,
            client_name=None,
            health_check_interval=0,
            retry=None,
            retry_on_timeout=False,
            retry_on_error=[],
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        if issubclass(self._class, SSLConnection):
            _trust_what_the_environment_names(options)
        self._options = options
        try:
            self.connection()
        except (TypeError, ValueError, redis.RedisError) as exc:
            raise ConfigurationError(
                f"The Redis URL for {self.shown} has a query argument that is not known or has "
                "a bad value; see redis-py's Redis.from_url"
            ) from exc

    def connection(self) -> Connection | UnixDomainSocketConnection:
        """A new connection, not yet opened."""
        return self._class(**self._options)


def _trust_what_the_environment_names(options: dict[str, Any]) -> None:
    """Certificates as for every other part, where the URL names none itself.

    Raises:
        ConfigurationError: A variable of the environment names what cannot be used.
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
    """A connection that one worker thread at a time uses, and that any thread may close.

    Closing while a thread waits for the server ends that wait; the thread then lets go of the
    socket itself, so that its number is not reused under its hands.
    """

    def __init__(self, address: RedisAddress) -> None:
        self._address = address.shown
        self._connection = address.connection()
        self._reader = new_reader()
        self._buffer = bytearray(READ_BYTES)
        self._lock = threading.Lock()
        self._in_use = False
        self._closed = False

    def open(self) -> None:
        """Connect and log in.

        Raises:
            StoreUnavailable, StoreRefused
        """
        with self._use():
            try:
                self._connection.connect()  # type: ignore[no-untyped-call]
            except (
                redis.ResponseError,
                redis.AuthenticationError,
                redis.exceptions.AuthorizationError,
                redis.exceptions.BusyLoadingError,
            ) as exc:
                text = _reply_text(exc)
                raise StoreRefused(
                    _login_refused(self._address, exc, text),
                    reconnect=needs_new_connection(text),
                ) from exc
            except (redis.RedisError, OSError, UnicodeError) as exc:
                advice = tls_advice(exc)
                raise StoreUnavailable(
                    f"No connection to Redis at {self._address}: {str(exc).removesuffix('.')}"
                    f"{advice}; it is tried again."
                    + ("" if advice else " Is the server running, and the address right?")
                ) from exc

    def call(self, *commands: bytes) -> list[Any]:
        """Send packed commands, return their replies; the server's errors are among these.

        Raises:
            StoreUnavailable
        """
        return self.exchange(b"".join(commands), len(commands))

    def exchange(self, data: bytes, count: int) -> list[Any]:
        """Send ``data``, return the ``count`` replies that it has.

        Raises:
            StoreUnavailable: The connection was lost, or the server did not answer in time;
                the link is closed and what was sent is uncertain.
        """
        with self._use(), self._told_when_lost():
            return self._exchange(data, count)

    def receive(self, wait_s: float, data: bytes = b"") -> list[Any]:
        """Send ``data``, then return all that has come, whether it was asked for or not.

        For a connection on which the server speaks of its own accord, as it does to a
        subscriber. The server's errors are among what is returned.

        Args:
            wait_s: How long to wait for a first whole message, in seconds, above 0.
            data: What to say first.

        Returns:
            What has come, in order; empty after ``wait_s``. What lies in the kernel beyond
            one read is left to the next call.

        Raises:
            StoreUnavailable: The connection was lost; the link is closed.
        """
        with self._use(), self._told_when_lost():
            return self._receive(wait_s, data)

    def _receive(self, wait_s: float, data: bytes) -> list[Any]:
        sock = self.opened_socket()
        if data:
            sock.sendall(data)
        patience_s = sock.gettimeout()
        deadline_s = time.monotonic() + wait_s
        heard: list[Any] = []
        gets, buffer = self._reader.gets, self._buffer
        try:
            while True:
                while (reply := gets()) is not MISSING:
                    heard.append(reply)
                left_s = deadline_s - time.monotonic()
                if heard or left_s <= 0:
                    return heard
                sock.settimeout(left_s)
                size = sock.recv_into(buffer)
                if size == 0:
                    raise ConnectionResetError("the server closed it")
                self._reader.feed(buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do
        except TimeoutError:
            return heard
        finally:
            sock.settimeout(patience_s)

    @contextmanager
    def _told_when_lost(self) -> Iterator[None]:
        try:
            yield
        except (OSError, hiredis.ProtocolError) as exc:
            self.close()
            raise connection_lost(self._address, exc) from exc

    def _exchange(self, data: bytes, count: int) -> list[Any]:
        sock = self.opened_socket()
        sock.sendall(data)
        replies: list[Any] = []
        reader, buffer = self._reader, self._buffer
        while not collect(reader, replies, count):
            size = sock.recv_into(buffer)
            if size == 0:
                raise hung_up(replies)
            reader.feed(buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do
        return replies

    @property
    def address(self) -> str:
        """Where the server is, without user and password."""
        return self._address

    def opened_socket(self) -> socket.socket:
        """The connection's socket.

        Raises:
            ConnectionResetError: It is not open.
        """
        sock = self._socket
        if sock is None:
            raise ConnectionResetError("it was never opened")
        return sock

    @property
    def _socket(self) -> socket.socket | None:
        # redis-py has no public name for it.
        sock: socket.socket | None = self._connection._sock  # noqa: SLF001
        return sock

    def _disconnect(self) -> None:
        self._connection.disconnect()  # type: ignore[no-untyped-call]

    @contextmanager
    def _use(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise StoreUnavailable(f"The connection to Redis at {self._address} is closed")
            self._in_use = True
        try:
            yield
        finally:
            with self._lock:
                self._in_use = False
                closed = self._closed
            if closed:
                self._disconnect()

    def close(self) -> None:
        """End the connection; never raises, and never waits for the server."""
        with self._lock:
            self._closed = True
            in_use, sock = self._in_use, self._socket
        if not in_use:
            self._disconnect()
        elif sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def connection_lost(address: str, exc: Exception) -> StoreUnavailable:
    """What a connection's end is told as."""
    if isinstance(exc, TimeoutError):
        reason = "no answer in time"
    else:
        reason = str(exc) or type(exc).__name__
    return StoreUnavailable(
        f"The connection to Redis at {address} was lost: {reason}; connecting again"
    )


def _reply_text(exc: redis.RedisError) -> str:
    """The server's error reply; redis-py takes the code of those that it knows off its front."""
    code, text = getattr(exc, "status_code", None), str(exc)
    return f"{code} {text}" if code and code != "ERR" else text


def _login_refused(address: str, exc: redis.RedisError, text: str) -> str:
    if isinstance(exc, redis.AuthenticationError):
        return (
            f"Redis at {address} refused the login: {exc}; set user and password in the Redis "
            "URL (MDSERVICE_REDIS_URL)"
        )
    return describe_refusal(address, text)
