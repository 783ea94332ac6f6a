"""What a lost connection has missed, fetched until history has come up to the live quotes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feeds.history import QuoteHistory
from mdservice.feeds.subscriptions import chunks
from mdservice.logs import get_logger
from mdservice.model.quote import Quote

__all__ = ["QUIET_S", "CatchUp"]

_log = get_logger(__name__)

QUIET_S = 2.0
"""By how much history may lag where no live quote tells that it does."""
_RETRY_S = 1.0
_POLL_S, _POLL_LIMIT_S = 0.25, 1.0
_FAILURES_WITHOUT_ANSWER = 4
"""Live quotes wait meanwhile; a REST host that cannot be reached at all is not worth 15 s."""
_TAIL_NS = 20_000_000_000
"""History that is asked again is asked from this long before its newest quote: all of a repair
happens within a shorter time, so what is older was complete."""
_AHEAD_NS = 60_000_000_000
"""History is asked up to so long after now: this machine's clock may be behind the exchange's."""
_SYMBOLS_AT_ONCE = 200


class CatchUp:
    """One repair's questions to history.

    History lags behind the stream, by how much is not known. It has everything that was missed
    once it has the first live quote or a later one; what is asked after that is complete. In a
    quiet market there is no live quote: then a lag of :data:`QUIET_S` is allowed for.

    Args:
        history: Past quotes.
        symbols: Whose.
        first_live_ns: The time of the first quote that came after all was subscribed, if any.
        clock: The time.

    Attributes:
        found: What history had, in the order of times within each symbol; also after an error.
        last_error: Why history did not answer the last time, or None.
    """

    def __init__(
        self,
        history: QuoteHistory,
        symbols: Sequence[str],
        first_live_ns: Callable[[], int | None],
        clock: Clock,
    ) -> None:
        self.found: list[Quote] = []
        self.last_error: str | None = None
        self._answered = False
        self._history = history
        self._symbols = symbols
        self._first_live_ns = first_live_ns
        self._clock = clock

    async def run(self, start_ns: int) -> None:
        """Fetch all from this time on, UTC nanoseconds, until nothing is missing.

        Without an answer it asks again, as long as there was one before: the caller sets the
        limit.

        Raises:
            HistoryRefused
        """
        began_s = anyio.current_time()
        tail_ns = start_ns
        complete = False
        while not complete:
            # Asked before fetching: its pages are read one after the other.
            complete = self._history_is_up_to_date(anyio.current_time() - began_s)
            newer = await self._fetch(tail_ns)
            self.found = [quote for quote in self.found if quote.ts_event_ns < tail_ns] + newer
            tail_ns = max(start_ns, (_newest_ns(self.found) or start_ns) - _TAIL_NS)
            elapsed_s = anyio.current_time() - began_s
            if not complete and not self._history_is_up_to_date(elapsed_s):
                await anyio.sleep(max(_POLL_S, min(_POLL_LIMIT_S, elapsed_s)))

    async def add_latest(self, until_ns: int) -> None:
        """At least the price is right at once: the newest quotes up to this time.

        Newer ones come over the stream, and one of them that came before those that the stream
        has yet to bring would make these look old. What was found is kept when cancelled.
        """
        newest = {quote.symbol: quote.ts_event_ns for quote in self.found}
        try:
            for symbols in chunks(self._symbols, _SYMBOLS_AT_ONCE):
                self.found += [
                    quote
                    for quote in await self._history.latest(symbols)
                    if newest.get(quote.symbol, -1) < quote.ts_event_ns <= until_ns
                ]
        except (HistoryRefused, HistoryUnavailable) as exc:
            _log.warning("latest_quotes_failed", reason=str(exc))

    async def _fetch(self, start_ns: int) -> list[Quote]:
        """Ask until there is an answer; give up early on a history that has never answered."""
        failures = 0
        while True:
            end_ns = self._clock.utc_ns() + _AHEAD_NS
            try:
                found = await self._history.quotes(self._symbols, start_ns, max(start_ns, end_ns))
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
                return list(found)

    def _history_is_up_to_date(self, elapsed_s: float) -> bool:
        live_ns = self._first_live_ns()
        if live_ns is None:
            return elapsed_s >= QUIET_S
        newest_ns = _newest_ns(self.found)
        return newest_ns is not None and newest_ns >= live_ns


def _newest_ns(quotes: Sequence[Quote]) -> int | None:
    return max((quote.ts_event_ns for quote in quotes), default=None)
