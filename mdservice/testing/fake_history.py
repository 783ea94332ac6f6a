"""A history without a server: a test says what it holds, how far it lags and how it fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import anyio
import anyio.lowlevel
import attrs

from mdservice.errors import SymbolsRefused
from mdservice.model.quote import Quote

__all__ = ["FakeHistory", "HistoryRequest"]

_MOST_REQUESTS: Final = 10_000


@attrs.frozen
class HistoryRequest:
    """What was asked.

    Attributes:
        at_s: When, by the event loop's clock.
        call: ``quotes`` or ``latest``.
        symbols: Of which symbols.
        start_ns: From when, UTC nanoseconds; 0 for the latest.
        end_ns: Until when; 0 for the latest.
    """

    at_s: float
    call: str
    symbols: tuple[str, ...]
    start_ns: int = 0
    end_ns: int = 0


class FakeHistory:
    """A :class:`~mdservice.feeds.history.QuoteHistory` in this process.

    Passes the same contract suite as the real one.

    Attributes:
        lag_s: How long a quote takes to get into the past quotes; the latest do not lag.
        delay_s: How long every answer takes.
        script: What the next calls end with; each takes one, None lets it succeed.
        always: What every call ends with once the script is empty, or None.
        refuses: Symbols that make it refuse every list they are in, with its words.
        requests: What was asked, in order.
    """

    def __init__(self, lag_s: float = 0.0) -> None:
        self.lag_s = lag_s
        self.delay_s = 0.0
        self.rows_skipped = 0
        self.script: deque[Exception | None] = deque()
        self.always: Exception | None = None
        self.refuses: dict[str, str] = {}
        self.requests: deque[HistoryRequest] = deque(maxlen=_MOST_REQUESTS)
        self._recorded: list[tuple[float, Quote]] = []

    def add(self, quotes: Iterable[Quote]) -> None:
        """The market has made these quotes, now and in this order."""
        now_s = anyio.current_time()
        self._recorded.extend((now_s, attrs.evolve(quote, seq=0)) for quote in quotes)

    async def quotes(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> Sequence[Quote]:
        """See :meth:`mdservice.feeds.history.QuoteHistory.quotes`."""
        await self._answer(HistoryRequest(_now(), "quotes", tuple(symbols), start_ns, end_ns))
        known_s = _now() - self.lag_s
        found = [
            attrs.evolve(quote)
            for at_s, quote in self._recorded
            if quote.symbol in symbols
            and start_ns <= quote.ts_event_ns <= end_ns
            and at_s <= known_s
        ]
        return sorted(found, key=lambda quote: (quote.symbol, quote.ts_event_ns))

    async def latest(self, symbols: Sequence[str]) -> Sequence[Quote]:
        """See :meth:`mdservice.feeds.history.QuoteHistory.latest`."""
        await self._answer(HistoryRequest(_now(), "latest", tuple(symbols)))
        newest: dict[str, Quote] = {}
        for _, quote in self._recorded:
            last = newest.get(quote.symbol)
            if quote.symbol in symbols and (last is None or quote.ts_event_ns >= last.ts_event_ns):
                newest[quote.symbol] = quote
        return [attrs.evolve(newest[symbol]) for symbol in sorted(newest)]

    async def _answer(self, request: HistoryRequest) -> None:
        self.requests.append(request)
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(self.delay_s)
        outcome = self.script.popleft() if self.script else self.always
        if outcome is not None:
            raise outcome
        for symbol, words in self.refuses.items():
            if symbol in request.symbols:
                raise SymbolsRefused(words)


def _now() -> float:
    return anyio.current_time()
