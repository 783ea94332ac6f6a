"""What a lost connection has missed, fetched once history has come up to the live quotes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feeds.history import HalvingHistory
from mdservice.feeds.missing import Missed
from mdservice.feeds.subscriptions import chunks
from mdservice.logs import get_logger
from mdservice.model.quote import Quote, identity

__all__ = ["QUIET_S", "CatchUp"]

_log = get_logger(__name__)

QUIET_S = 2.0
"""By how much history may lag where no live quote tells that it does."""
_LOOK_S = 0.05
_RETRY_S = 1.0
_FAILURES_WITHOUT_ANSWER = 4
"""Live quotes wait meanwhile; a REST host that cannot be reached at all is not worth 15 s."""
_PROBE_S, _PROBE_LIMIT_S = 0.2, 1.0
_PROBED_SYMBOLS = 10
_LATER_NS = 1_000_000_000
"""So much later a quote came later for certain, although times are not all in order."""
_AHEAD_NS = 60_000_000_000
"""History is asked up to so long after now: this machine's clock may be behind the exchange's."""
_SYMBOLS_AT_ONCE = 200


class CatchUp:
    """One repair's questions to history.

    History lags behind the stream, by how much is not known. It has everything that was missed
    once it has a live quote, or one that is clearly later than the first of them; so it is
    asked for these before it is asked for all. In a quiet market there is no live quote: then
    a lag of :data:`QUIET_S` is allowed for.

    Args:
        history: Past quotes.
        missed: Whose, and from when.
        live: The quotes that came since all was subscribed; the first thousand will do.
        clock: The time.

    Attributes:
        symbols: All that are asked for.
        found: What history had, in the order of times within each symbol; also after an error.
        complete: The symbols of which that is all; also after an error.
        refused: The symbols that history refused, with the reason.
        believed: Whether nothing showed that history was up to date, in a quiet market.
        last_error: Why history did not answer the last time, or None.
    """

    def __init__(
        self,
        history: HalvingHistory,
        missed: Sequence[Missed],
        live: Callable[[], Sequence[Quote]],
        clock: Clock,
    ) -> None:
        self.found: list[Quote] = []
        self.complete: frozenset[str] = frozenset()
        self.refused: dict[str, str] = {}
        self.believed = False
        self.last_error: str | None = None
        self._answered = False
        self._history = history
        self._missed = missed
        self.symbols = [symbol for part in missed for symbol in part.symbols]
        self._live = live
        self._clock = clock

    async def run(self, patience_s: float) -> bool:
        """Fetch all that was missed.

        Without an answer it asks again, as long as there was one before: the caller sets the
        limit.

        Args:
            patience_s: How long to wait for a history that lags; then what it has is fetched.

        Returns:
            Whether that is all.

        Raises:
            HistoryRefused
        """
        up_to_date = False
        with anyio.move_on_after(patience_s):
            await self._until_up_to_date()
            up_to_date = True
        for part in self._missed:
            self.found += await self._fetch(part.symbols, part.since_ns)
            if self._clock_is_behind(part.since_ns):
                raise HistoryRefused("this machine's clock is behind the feed's; set the clock")
            if up_to_date:
                self.complete |= frozenset(part.symbols) - self.refused.keys()
        return up_to_date

    def _clock_is_behind(self, since_ns: int) -> bool:
        """History was then asked for too short a time, and its quotes count as future ones."""
        horizon_ns = self._clock.utc_ns() + _AHEAD_NS
        return since_ns > horizon_ns or any(q.ts_event_ns > horizon_ns for q in self._live())

    async def add_latest(self, until_ns: int) -> None:
        """At least the price is right at once: the newest quotes up to this time.

        Newer ones come over the stream, and one of them that came before those that the stream
        has yet to bring would make these look old. What was found is kept when cancelled.
        """
        newest = {quote.symbol: quote.ts_event_ns for quote in self.found}
        try:
            for symbols in chunks(self.symbols, _SYMBOLS_AT_ONCE):
                latest = await self._history.latest(symbols)
                self.found += [
                    quote
                    for quote in latest.quotes
                    if newest.get(quote.symbol, -1) < quote.ts_event_ns <= until_ns
                ]
        except (HistoryRefused, HistoryUnavailable) as exc:
            _log.warning("latest_quotes_failed", reason=str(exc))

    async def _until_up_to_date(self) -> None:
        began_s = anyio.current_time()
        # A refusal is to be known at once, not only when there is something to ask for.
        await self._fetch(self.symbols[:_PROBED_SYMBOLS], self._clock.utc_ns())
        pause_s = _PROBE_S
        while True:
            live = [quote for quote in self._live() if quote.symbol not in self.refused]
            if not live:
                await anyio.sleep(_LOOK_S)
                if anyio.current_time() >= began_s + QUIET_S:
                    self.believed = True
                    return
            elif await self._has_one_of(live):
                return
            else:
                await anyio.sleep(pause_s)
                pause_s = min(_PROBE_LIMIT_S, pause_s * 1.5)

    async def _has_one_of(self, live: Sequence[Quote]) -> bool:
        first_ns = live[0].ts_event_ns
        symbols = list(dict.fromkeys(quote.symbol for quote in live))[:_PROBED_SYMBOLS]
        # Times alone do not tell: quotes of one time may come one after the other.
        came_live = {identity(quote) for quote in live}
        return any(
            identity(quote) in came_live or quote.ts_event_ns >= first_ns + _LATER_NS
            for quote in await self._fetch(symbols, first_ns)
        )

    async def _fetch(self, symbols: Sequence[str], start_ns: int) -> list[Quote]:
        """Ask until there is an answer; give up early on a history that has never answered."""
        failures = 0
        while True:
            end_ns = max(start_ns, self._clock.utc_ns() + _AHEAD_NS)
            try:
                found = await self._history.quotes(symbols, start_ns, end_ns)
            except HistoryUnavailable as exc:
                self.last_error = str(exc)
                _log.warning("history_failed", reason=str(exc))
                failures += 1
                if failures >= _FAILURES_WITHOUT_ANSWER and not self._answered:
                    raise HistoryRefused(f"history has not answered: {exc}") from exc
                await anyio.sleep(_RETRY_S)
            else:
                self._answered = True
                self.last_error = None
                self.refused |= found.refused
                return list(found.quotes)
