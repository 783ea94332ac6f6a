"""What a book tells, as JSON."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
import msgspec

from mdservice.gateway.book import PnlBook
from mdservice.pnl.encode import PnlEncoder, encode_positions
from mdservice.pnl.rows import PnlReport

__all__ = ["Answers"]


_PAUSE_S: Final = 0.02
_PAUSE_PER_COST: Final = 20.0


class Answers:
    """Encodes the reports of one book."""

    def __init__(self, book: PnlBook) -> None:
        self._book = book
        self._encoder = PnlEncoder()

    async def positions(self) -> bytes:
        """``{"positions":[{"symbol":"AAPL","qty":10,"avg_entry_price":150.00}]}``.

        Raises:
            PositionsUnavailable: They are not known yet.
        """
        held = await self._book.current_positions()
        return encode_positions(held.positions, self._book.positions_warnings())

    async def whole(self) -> bytes:
        """Every position at its price, with ``warnings`` where something may be out of date.

        Raises:
            PositionsUnavailable: The positions are not known yet.
        """
        return self._encode(await self._book.report())

    async def stream(self, ended: Callable[[], bool]) -> AsyncIterator[tuple[str, str]]:
        """The names and the data of events: ``pnl`` with everything, then ``pnl.changed``.

        After each there is a pause; what changes meanwhile goes out in one. It is the longer the
        more there is to tell, so that no reader takes more than a small part of the event loop.

        Args:
            ended: Whether nobody wants more.
        """
        async for report in self._book.updates(ended):
            began_s = time.perf_counter()
            data = self._encode(report, live=True).decode()
            cost_s = time.perf_counter() - began_s
            yield "pnl" if report.whole else "pnl.changed", data
            await anyio.sleep(max(_PAUSE_S, cost_s * _PAUSE_PER_COST))

    def _encode(self, report: PnlReport, *, live: bool = False) -> bytes:
        body = self._encoder.encode(report)
        warnings = self._book.warnings(live=live)
        if (unusable := self._book.unusable()) is not None:
            warnings.append(unusable)
        if not warnings:
            return body
        return b'%b,"warnings":%b}' % (body[:-1], msgspec.json.encode(warnings))
