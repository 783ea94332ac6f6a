"""The handle of a program that reads prices."""

from __future__ import annotations

import time
from collections.abc import Iterable

from mdservice.model.quote import Quote
from mdservice.model.redis_layout import Instance
from mdservice.model.symbol import parse_symbol, parse_symbols
from mdservice.prices.follower import Follower
from mdservice.prices.intake import Intake
from mdservice.prices.status import PricesStatus

__all__ = ["Prices"]


class Prices:
    """Iterates over updates without end. Made by :func:`mdservice.open_prices`.

    To be used from the event loop that opened it. Updates of a symbol never go back in time
    and none comes twice. A step in ``seq`` tells that some were missed or conflated, a ``seq``
    that begins again that the service was started anew.
    """

    def __init__(self, intake: Intake, follower: Follower) -> None:
        self._intake = intake
        self._follower = follower

    def __aiter__(self) -> Prices:
        return self

    async def __anext__(self) -> Quote:
        return await self._intake.handover.take()

    @property
    def position(self) -> str | None:
        """With an event log: the id up to which all updates have been given out.

        Stored once the last update has been dealt with, and passed as ``after`` at the next
        start, it makes the program miss nothing in between. None without an event log, and
        before all first prices have been given out.
        """
        return self._intake.handover.position

    def latest(self, symbol: str) -> Quote | None:
        """The newest known quote of a symbol, perhaps one that waits to be iterated over.

        With an event log it is not ahead of the iteration by more than one read.

        Raises:
            InvalidSymbol
        """
        return self._intake.order.latest(parse_symbol(symbol))

    def prices(self, symbols: Iterable[str] | None = None) -> list[Quote]:
        """The newest known quote of each of the symbols, or of all; unknown ones are left out.

        Raises:
            InvalidSymbol
        """
        order = self._intake.order
        if symbols is None:
            return sorted(order.all_latest(), key=lambda quote: quote.symbol)
        found = (order.latest(symbol) for symbol in parse_symbols(symbols))
        return [quote for quote in found if quote is not None]

    def status(self) -> PricesStatus:
        """Everything about this reader at this moment."""
        intake, follower = self._intake, self._follower
        decoders = (intake.event_decoder, intake.key_decoder)
        errors = [decoder.last_error for decoder in decoders if decoder.last_error is not None]
        return PricesStatus(
            connected=follower.connected,
            url=follower.url,
            reconnects=max(0, follower.connections - 1),
            last_error=follower.last_error,
            events=intake.events,
            missed=intake.order.missed,
            left_out=intake.order.left_out,
            conflated=intake.handover.conflated,
            decode_errors=sum(decoder.errors for decoder in decoders),
            last_decode_error=errors[0] if errors else None,
            resyncs=intake.resyncs,
            starts=intake.order.starts,
            trimmed=intake.trimmed,
            symbols=len(intake.order),
            waiting=len(intake.handover),
            position=intake.handover.position,
            service=None if intake.following is None else intake.following.id,
            foreign=intake.foreign,
        )

    @property
    def service(self) -> Instance | None:
        """The service that is followed, as it names itself; None where it does not."""
        return self._intake.following

    def rivals(self) -> list[Instance]:
        """Other services that write to the same keys now: these cannot be told apart."""
        return self._intake.rivals(time.monotonic())
