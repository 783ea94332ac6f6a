"""The account's positions, by alpaca-py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions import source
from mdservice.positions.answer import read_answer
from mdservice.positions.threads import Threads
from mdservice.urls import mask_url

if TYPE_CHECKING:
    from mdservice.positions.alpaca_line import Line

__all__ = ["AlpacaPositions"]

_MEND = (
    "check ALPACA_API_KEY, ALPACA_SECRET_KEY and MDSERVICE_TRADING_URL: keys of a live account "
    "need https://api.alpaca.markets, those of a paper account https://paper-api.alpaca.markets"
)


class AlpacaPositions:
    """A :class:`~mdservice.positions.source.PositionSource` at Alpaca's trading API.

    alpaca-py is imported by the first fetch. It only knows blocking calls, so they are made in
    a thread; one that takes too long has its connection cut.

    Args:
        trading_url: ``https://paper-api.alpaca.markets``.
        api_key: Never shown.
        secret_key: Never shown.
    """

    def __init__(self, trading_url: str, api_key: str, secret_key: str) -> None:
        self._base_url = trading_url.rstrip("/")
        self._login = (api_key, secret_key)
        self.address = f"{mask_url(self._base_url)}/v2/positions"
        self._threads = Threads(self.address)
        self._lock = anyio.Lock()
        self._kept: _Call | None = None

    async def fetch(self) -> list[Position]:
        """See :meth:`mdservice.positions.source.PositionSource.fetch`."""
        limit_s = source.FETCH_LIMIT_S
        try:
            with anyio.fail_after(limit_s):
                async with self._lock:
                    return await self._ask()
        except TimeoutError as exc:
            raise PositionsUnavailable(
                f"{self.address} does not answer within {limit_s:g} s"
            ) from exc

    async def aclose(self) -> None:
        """See :meth:`mdservice.positions.source.PositionSource.aclose`."""
        call, self._kept = self._kept, None
        if call is not None:
            call.give_up()

    async def _ask(self) -> list[Position]:
        call, self._kept = self._kept or _Call(self._base_url, self._login, self.address), None
        answered = False
        try:
            positions = await self._threads.run(call.make)
            answered = True
        finally:
            if answered:
                self._kept = call
            else:
                call.give_up()
        return positions


class _Call:
    """A line to the API, made and used in a thread, and given up from the event loop."""

    def __init__(self, base_url: str, login: tuple[str, str], address: str) -> None:
        self._base_url = base_url
        self._login = login
        self._address = address
        self._line: Line | None = None
        self._given_up = False

    def make(self) -> list[Position]:
        """In a thread."""
        if self._line is None:
            try:
                from mdservice.positions.alpaca_line import Line
            except ImportError as exc:
                raise PositionsRefused(
                    f"alpaca-py, which asks {self._address}, cannot be imported ({exc}): "
                    "install alpaca-py, or take the positions from a URL or a file"
                ) from exc
            self._line = Line(self._base_url, *self._login)
        if self._given_up:
            self._line.cut()
        status, body = self._line.ask(self._address)
        return read_answer(status, body, self._address, _MEND)

    def give_up(self) -> None:
        """Let what is under way fail soon, and nothing more begin."""
        self._given_up = True
        if self._line is not None:
            self._line.cut()
