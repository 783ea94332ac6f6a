"""After a lost connection: live quotes wait while what was missed is fetched from history."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused
from mdservice.feeds.accepted import AcceptedQuotes
from mdservice.feeds.catch_up import CatchUp
from mdservice.feeds.history import QuoteHistory
from mdservice.feeds.outlet import Outlet
from mdservice.logs import get_logger
from mdservice.model.events import Backfill, FeedResumed, QuoteBatch
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL

__all__ = ["HOLD_LIMIT_S", "LATEST_LIMIT_S", "MOST_HELD", "MOST_SEEN", "GapRepair"]

_log = get_logger(__name__)

HOLD_LIMIT_S = 15.0
"""How long live quotes wait behind a repair at most."""
LATEST_LIMIT_S = 3.0
"""Of these, what is left for the latest quotes where history does not give the past ones."""
_FETCH_S = 2.0
"""Of the rest, what is left for fetching where history lags."""
_SPARE_S = 0.5
MOST_HELD = 200_000
MOST_SEEN = 1_000
"""Where every symbol is subscribed: of more symbols than these only the latest is asked."""
_OVERLAP_NS = 5_000_000_000
"""History is asked from this long before the last accepted quote."""
_ENOUGH_LIVE = 1_000
"""Live quotes of which history has to have one before it counts as complete."""
_LAST_WORDS_S = 0.5


class GapRepair:
    """Holds live quotes, fetches past ones, hands both on together.

    A connection that is lost again meanwhile changes nothing: what is held stays held, and the
    next connection's repair covers both outages. After :data:`HOLD_LIMIT_S` what is held is
    handed on as it is, and the gap stays one. Nothing that is held is lost by cancelling.

    Args:
        history: Where past quotes come from; None where the feed has no history.
        accepted: The quotes that are out.
        outlet: Takes what is handed on.
        clock: The time.
    """

    def __init__(
        self,
        history: QuoteHistory | None,
        accepted: AcceptedQuotes,
        outlet: Outlet,
        clock: Clock,
    ) -> None:
        self._history = history
        self._accepted = accepted
        self._outlet = outlet
        self._clock = clock
        self._held: list[Quote] = []
        self._holding = False
        self._began = anyio.Event()
        self._deadline_s = 0.0
        self._work = anyio.CancelScope()

    def begin(self) -> None:
        """A connection is open: from now on live quotes wait, if there is anything to repair."""
        nothing_is_out = self._accepted.complete_until_ns() is None
        if self._history is None or nothing_is_out or self._holding:
            return
        self._holding = True
        self._deadline_s = anyio.current_time() + HOLD_LIMIT_S
        self._began.set()
        self._began = anyio.Event()

    async def hand_on(self, quotes: Sequence[Quote]) -> None:
        """Live quotes: they wait while there is a repair, and go on otherwise."""
        if not self._holding:
            await self._outlet.send(QuoteBatch(quotes))
            return
        self._held.extend(quotes)
        if len(self._held) > MOST_HELD:
            self._give_up("too many live quotes were waiting")
            await self._outlet.flush()

    async def repair(self, symbols: Sequence[str]) -> None:
        """All is subscribed: say so, fetch what was missed, hand it on with what is held.

        Args:
            symbols: What the feed has acknowledged.
        """
        resumed_ns = self._clock.utc_ns()
        await self._outlet.send(FeedResumed(resumed_ns, symbols, repairing=self._holding))
        start_ns = self._accepted.complete_until_ns()
        if not self._holding or self._history is None or start_ns is None:
            return
        before = len(self._held)

        def live() -> Sequence[Quote]:
            return self._held[before : before + _ENOUGH_LIVE]

        asked = self._names(symbols)
        catch_up = CatchUp(self._history, asked, live, self._clock)
        with anyio.CancelScope() as self._work:
            reason = await self._why_not_all(catch_up, symbols, asked, start_ns - _OVERLAP_NS)
            if reason is not None:
                _log.warning("gap_not_repaired", reason=reason)
                limit_s = self._deadline_s - _SPARE_S - anyio.current_time()
                with anyio.move_on_after(min(LATEST_LIMIT_S, limit_s)):
                    await catch_up.add_latest(resumed_ns)
            self._let_go(catch_up.found, repaired=reason is None)
        await self._outlet.flush()

    async def keep_limit(self) -> None:
        """Let go of what is held when it has waited long enough; runs until cancelled."""
        while True:
            while not self._holding:
                await self._began.wait()
            if anyio.current_time() < self._deadline_s:
                await anyio.sleep_until(self._deadline_s)
            else:
                self._give_up(f"it took over {HOLD_LIMIT_S:g} s")
                await self._outlet.flush()

    async def stop(self) -> None:
        """Hand on what is held, within a moment."""
        self._give_up("the service stops")
        with anyio.move_on_after(_LAST_WORDS_S):
            await self._outlet.flush()

    def _names(self, symbols: Sequence[str]) -> Sequence[str]:
        """The symbols to ask for; where every one is subscribed, those seen so far."""
        seen = self._accepted.symbols() if EVERY_SYMBOL in symbols else ()
        return sorted({*symbols, *seen} - {EVERY_SYMBOL})

    async def _why_not_all(
        self, catch_up: CatchUp, symbols: Sequence[str], asked: Sequence[str], start_ns: int
    ) -> str | None:
        """Let it fetch what was missed; None where nothing of that is left."""
        if EVERY_SYMBOL in symbols and len(asked) > MOST_SEEN:
            return f"the history of {len(asked)} symbols is too much"
        limit_s = self._deadline_s - LATEST_LIMIT_S - anyio.current_time()
        complete = True
        try:
            with anyio.fail_after(limit_s):
                if asked:
                    complete = await catch_up.run(start_ns, limit_s - _FETCH_S)
        except HistoryRefused as exc:
            return str(exc)
        except TimeoutError:
            return catch_up.last_error or "history was too slow"
        if not complete:
            return catch_up.last_error or "history had not come up to the live quotes in time"
        if EVERY_SYMBOL in symbols:
            return "history cannot be asked for symbols that were never seen"
        return None

    def _give_up(self, reason: str) -> None:
        if self._holding:
            _log.warning("gap_not_repaired", reason=reason)
            self._let_go((), repaired=False)
        self._work.cancel()

    def _let_go(self, past: Sequence[Quote], *, repaired: bool) -> None:
        """Nothing waits any more; what comes from now on goes out behind this."""
        if not self._holding:
            return
        held, self._held = self._held, []
        self._holding = False
        self._outlet.add(Backfill(past, held, self._clock.utc_ns(), repaired=repaired))
