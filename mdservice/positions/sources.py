"""The source of positions that the settings name, and the running service's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from mdservice.client.http import NoAnswer, fetch
from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.observability.masking import quoted
from mdservice.positions.file import FilePositions
from mdservice.positions.http import OK, AlpacaPositions, HttpPositions
from mdservice.positions.parse import parse_positions
from mdservice.positions.source import PositionSource
from mdservice.runtime.network import HttpClient

__all__ = ["ServicePositions", "open_source"]

_CALL: Final = "/api/v1/positions"
_TIMEOUT_S: Final = 3.0
_UNAVAILABLE: Final = 503
_FILE: Final = "file:"


def open_source(
    text: str,
    *,
    trading_url: str,
    api_key: str | None,
    secret_key: str | None,
    http: HttpClient | None = None,
) -> PositionSource | None:
    """The source, which has asked nothing yet; None for ``none``.

    Args:
        text: ``none``, ``alpaca``, an ``http(s)://`` URL or ``file:PATH``.
        trading_url: For ``alpaca``: ``https://paper-api.alpaca.markets``.
        api_key: For ``alpaca``, which needs it; goes nowhere else.
        secret_key: Likewise.
        http: Shared with other parts; the source has one of its own where not given.

    Raises:
        ConfigurationError: The text is none of these, a key is missing, or the environment has
            a proxy or certificates that cannot be used.
    """
    if text == "none":
        return None
    if text == "alpaca":
        return _of_alpaca(trading_url, api_key, secret_key, http)
    if text.startswith(_FILE):
        return FilePositions(text.removeprefix(_FILE))
    if "://" in text:
        return HttpPositions(text, http=http)
    raise ConfigurationError(
        f"MDSERVICE_POSITIONS: {quoted(text)} is not one of none, alpaca, an http:// or https:// "
        "URL, file:PATH"
    )


def _of_alpaca(
    trading_url: str, api_key: str | None, secret_key: str | None, http: HttpClient | None
) -> PositionSource:
    if not api_key or not secret_key:
        missing = "ALPACA_SECRET_KEY" if api_key else "ALPACA_API_KEY"
        raise ConfigurationError(
            f"positions of alpaca need a key and its secret: set {missing}, or take the positions "
            "from elsewhere with MDSERVICE_POSITIONS"
        )
    return AlpacaPositions(trading_url, api_key, secret_key, http)


class _Warnings(msgspec.Struct):
    warnings: list[str] = []
    detail: str = "it does not know them"


_decode_warnings = msgspec.json.Decoder(_Warnings).decode


class ServicePositions:
    """A :class:`~mdservice.positions.source.PositionSource`: the running service's own.

    Where nobody names a source, this is one. So where a service has never answered there are no
    positions, and :attr:`out_of_date` says why; once it has, that it no longer does is an error.

    Args:
        socket: The service's UNIX socket.

    Attributes:
        out_of_date: Why what was told last may not be true, or None.
    """

    def __init__(self, socket: Path) -> None:
        self.address = f"the service at {socket}"
        self._socket = socket
        self._has_answered = False
        self.out_of_date: str | None = None

    async def fetch(self) -> Sequence[Position]:
        """Ask it over its UNIX socket; no positions where it follows none.

        Raises:
            PositionsUnavailable: The service answers no longer.
            PositionsRefused: It is an older service, or another program.
        """
        return await anyio.to_thread.run_sync(self._fetch, abandon_on_cancel=True)

    def _fetch(self) -> Sequence[Position]:
        try:
            status, body = fetch(self._socket, "GET", _CALL, timeout_s=_TIMEOUT_S)
        except NoAnswer as exc:
            if not self._has_answered:
                self.out_of_date = str(exc)
                return ()
            raise PositionsUnavailable(str(exc)) from exc
        except ConfigurationError as exc:
            raise PositionsRefused(str(exc)) from exc
        if status == _UNAVAILABLE:
            raise PositionsUnavailable(f"{self.address}: {_decode_warnings(body).detail}")
        if status != OK:
            raise PositionsRefused(f"{self.address} tells no positions (HTTP {status}): update it")
        found = parse_positions(body)
        self._has_answered = True
        self.out_of_date = "; ".join(_decode_warnings(body).warnings) or None
        return found

    async def aclose(self) -> None:
        """Nothing is kept open."""
