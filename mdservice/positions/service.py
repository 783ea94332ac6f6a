"""The positions that the service on this machine follows, asked for over its UNIX socket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from mdservice.api_client import NoAnswer, fetch
from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.parse import parse_positions

__all__ = ["ServicePositions"]

_CALL: Final = "/api/v1/positions"
_TIMEOUT_S: Final = 3.0
_OK: Final = 200
_UNAVAILABLE: Final = 503


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
        """The positions that it follows; none where it follows none.

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
        if status != _OK:
            raise PositionsRefused(f"{self.address} tells no positions (HTTP {status}): update it")
        found = parse_positions(body)
        self._has_answered = True
        self.out_of_date = "; ".join(_decode_warnings(body).warnings) or None
        return found

    async def aclose(self) -> None:
        """Nothing is kept open."""
