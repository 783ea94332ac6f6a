"""Where the prices are: at a given URL, or wherever the running service has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread

from mdservice.api_client import NoAnswer, ask
from mdservice.errors import ConfigurationError
from mdservice.prices.links import TIMEOUT_S
from mdservice.runtime_folder import default_socket
from mdservice.settings_values import parse_socket
from mdservice.sinks.redis_link import RedisAddress

__all__ = ["GivenServer", "ServiceServer", "Whereabouts", "socket_of_the_service"]

_ASK_TIMEOUT_S: Final = 1.0


class Whereabouts(Protocol):
    """Finds the server before each attempt to connect."""

    async def find(self) -> RedisAddress:
        """The server's address.

        Raises:
            NoAnswer: The service was to tell, and does not answer.
            ConfigurationError: What is known cannot be used.
        """
        ...


class GivenServer:
    """A server at a URL.

    Raises:
        ConfigurationError: The URL cannot be used; it is not quoted.
    """

    def __init__(self, url: str) -> None:
        self._address = RedisAddress(url, timeout_s=TIMEOUT_S)

    async def find(self) -> RedisAddress:
        """The server's address."""
        return self._address


class ServiceServer:
    """The server of the service whose API is at a UNIX socket.

    The service is asked anew each time, since an embedded server has another address after a
    restart; while it does not answer, the last address serves.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._last: RedisAddress | None = None

    async def find(self) -> RedisAddress:
        """The server's address.

        Raises:
            NoAnswer: The service has never answered.
            ConfigurationError: Its socket's folder cannot be trusted.
        """
        try:
            url = await anyio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
        except NoAnswer as exc:
            if self._last is None:
                raise NoAnswer(
                    f"open_prices() was given no Redis URL, and the service cannot be asked: {exc}"
                    " (MDSERVICE_SOCKET)"
                ) from exc
        else:
            self._last = RedisAddress(url, timeout_s=TIMEOUT_S)
        return self._last

    def _ask(self) -> str:
        answer = ask(self._socket, "GET", "/status", timeout_s=_ASK_TIMEOUT_S)
        report = answer.content.get("redis")
        url = report.get("url") if isinstance(report, dict) else None
        if not answer.ok or not isinstance(url, str):
            raise NoAnswer(f"what answers at {self._socket} does not tell where its Redis is")
        return url


def socket_of_the_service(
    given: str | os.PathLike[str] | None, environ: Mapping[str, str] | None = None
) -> Path:
    """The service's UNIX socket: as given, else ``MDSERVICE_SOCKET``, else the default one.

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
