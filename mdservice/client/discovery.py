"""Finds the Redis server with the prices: at a URL, or by asking the running service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread
import attrs

from mdservice.client.connection import TIMEOUT_S
from mdservice.client.http import NoAnswer, ask
from mdservice.errors import ConfigurationError
from mdservice.redis_io.connection import RedisLocator
from mdservice.redis_io.locator import locator_of
from mdservice.redis_io.names import RedisNames
from mdservice.runtime.runtime_dir import default_socket
from mdservice.settings.parsers import parse_key_prefix, parse_socket

__all__ = ["Discovery", "GivenServer", "Location", "ServiceServer", "socket_of_the_service"]

_ASK_TIMEOUT_S: Final = 1.0


@attrs.frozen
class Location:
    """The server with the prices, and its names.

    Attributes:
        address: The server.
        names: The keys and channels there.
    """

    address: RedisLocator
    names: RedisNames


def _location(url: str, prefix: str) -> Location:
    address = locator_of(url, timeout_s=TIMEOUT_S)
    names = RedisNames(prefix, clustered=address.clustered, sharded=address.sharded)
    return Location(address, names)


class Discovery(Protocol):
    """Finds the server before each attempt to connect."""

    async def find(self) -> Location:
        """The server, and the names there.

        Raises:
            NoAnswer: The service does not answer.
            ConfigurationError: The address or the prefix is invalid.
        """
        ...


class GivenServer:
    """The server that a URL leads to.

    Args:
        url: As :func:`~mdservice.redis_io.locator.locator_of` reads it.
        prefix: The prefix of every name there.

    Raises:
        ConfigurationError: The URL is invalid; it is not quoted.
    """

    def __init__(self, url: str, prefix: str = "") -> None:
        self._location = _location(url, prefix)

    async def find(self) -> Location:
        """The server, and the names there."""
        return self._location


class ServiceServer:
    """The server of the service whose API is at a UNIX socket.

    It asks the service each time, since an embedded server has a new address after a restart, and
    the service may have another key prefix. While the service does not answer, it uses the last
    answer.

    Args:
        socket: The service's UNIX socket.
        prefix: The prefix of every name; None for the service's own key prefix.
    """

    def __init__(self, socket: Path, prefix: str | None = None) -> None:
        self._socket = socket
        self._prefix = prefix
        self._answer = ("", "")
        """The URL and the prefix that the last location was made of."""
        self._last: Location | None = None

    async def find(self) -> Location:
        """The server, and the names there.

        Raises:
            NoAnswer: The service has never answered.
            ConfigurationError: Its socket's folder cannot be trusted.
        """
        try:
            url, prefix = await anyio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
        except NoAnswer as exc:
            if self._last is None:
                raise NoAnswer(
                    f"no Redis URL was given, and the service cannot be asked for its own: {exc}"
                    " (MDSERVICE_SOCKET)"
                ) from exc
        else:
            # The address keeps its certificates, whose loading holds up the event loop.
            if self._last is None or self._answer != (url, prefix):
                self._answer, self._last = (url, prefix), _location(url, prefix)
        return self._last

    def _ask(self) -> tuple[str, str]:
        """The URL and the prefix."""
        answer = ask(self._socket, "GET", "/status", timeout_s=_ASK_TIMEOUT_S)
        report = answer.content.get("redis")
        url = report.get("url") if isinstance(report, dict) else None
        if not answer.ok or not isinstance(report, dict) or not isinstance(url, str):
            raise NoAnswer(f"what answers at {self._socket} does not tell where its Redis is")
        if not url.startswith(
            ("redis://", "rediss://", "unix://", "redis+sentinel://", "redis+cluster://")
        ):
            raise NoAnswer(
                f"the service at {self._socket} writes to {url}, and readers read only from Redis"
            )
        if self._prefix is not None:
            return url, self._prefix
        try:
            # An older service without prefixes has no such field.
            return url, parse_key_prefix(report.get("key_prefix", ""))
        except ValueError as exc:
            raise NoAnswer(
                f"the key prefix of the service at {self._socket} cannot be used: {exc}"
            ) from None


def socket_of_the_service(
    given: str | os.PathLike[str] | None, environ: Mapping[str, str] | None = None
) -> Path:
    """The service's UNIX socket: as given, or else ``MDSERVICE_SOCKET``, or else the default.

    Raises:
        ConfigurationError: It cannot be the path of a socket.
    """
    environ = os.environ if environ is None else environ
    chosen = given if given is not None else environ.get("MDSERVICE_SOCKET")
    if chosen is None:
        return default_socket(environ)
    try:
        return parse_socket(chosen if isinstance(chosen, str) else Path(chosen))
    except ValueError as exc:
        name = "socket" if given is not None else "MDSERVICE_SOCKET"
        raise ConfigurationError(f"{name}: {exc}") from None
