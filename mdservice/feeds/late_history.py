"""What history had not told yet when it was asked in a quiet market.

Where no live quote shows how far history has come, a repair allows for a lag and believes it
(:data:`mdservice.feeds.catch_up.QUIET_S`). Some time later history is asked once more: what it
has then and had not before was missed, and is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import anyio
import attrs

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feeds.catch_up import Missed
from mdservice.feeds.history import QuoteHistory
from mdservice.logs import get_logger
from mdservice.model.events import LateQuotes
from mdservice.model.quote import Identity, Quote, identity

__all__ = ["LOOK_AGAIN_S", "Believed", "LateHistory"]

_log = get_logger(__name__)

LOOK_AGAIN_S = 20.0
"""After so long history has what it will ever have, as far as is known."""

_MOST_TRIES = 5


@attrs.frozen
class Believed:
    """A repair whose history was believed to be up to date.

    Attributes:
        missed: What it asked for.
        found: What it got, and what the stream had brought by then.
        lasts_ns: The time of each symbol's last quote that was out before, UTC nanoseconds.
        until_ns: Later quotes may have come over the stream, UTC nanoseconds.
    """

    missed: Sequence[Missed]
    found: Sequence[Quote]
    lasts_ns: Mapping[str, int]
    until_ns: int

    def concerns(self, quote: Quote) -> bool:
        """Whether the repair should have brought it."""
        last_ns = self.lasts_ns.get(quote.symbol)
        return last_ns is not None and last_ns < quote.ts_event_ns <= self.until_ns


class LateHistory:
    """Looks once more at what repairs have believed.

    Args:
        history: Past quotes.
        clock: The time.
    """

    def __init__(self, history: QuoteHistory, clock: Clock) -> None:
        self._history = history
        self._clock = clock
        self._believed: list[tuple[float, int, Believed]] = []
        """When to look, for the how manieth time, at what."""
        self._added = anyio.Event()

    def check(self, believed: Believed) -> None:
        """Look at it again in a while; kept until that is done."""
        self._believed.append((anyio.current_time() + LOOK_AGAIN_S, 1, believed))
        self._added.set()

    async def next(self) -> LateQuotes:
        """Wait for the next find; a history that does not answer is asked a few times more."""
        while True:
            while not self._believed:
                self._added = anyio.Event()
                await self._added.wait()
            due_s, tries, believed = self._believed[0]
            await anyio.sleep_until(due_s)
            late: Sequence[Quote] = ()
            again = []
            try:
                late = await self._late(believed)
            except (HistoryRefused, HistoryUnavailable) as exc:
                _log.warning("history_not_checked", reason=str(exc))
                if tries < _MOST_TRIES:
                    again = [(anyio.current_time() + LOOK_AGAIN_S, tries + 1, believed)]
            self._believed[:1] = again
            if late:
                _log.warning("history_was_late", quotes=len(late))
                from_ns = min(believed.lasts_ns[quote.symbol] for quote in late)
                return LateQuotes(late, from_ns, believed.until_ns)

    async def _late(self, believed: Believed) -> list[Quote]:
        known: Counter[Identity] = Counter(map(identity, believed.found))
        late = []
        for part in believed.missed:
            for quote in await self._history.quotes(
                part.symbols, part.since_ns, max(part.since_ns, believed.until_ns)
            ):
                if known[identity(quote)]:
                    known[identity(quote)] -= 1
                elif believed.concerns(quote):
                    late.append(quote)
        return late
