"""After a lost connection: live quotes wait while what was missed is fetched from history."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import anyio

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, NoHistory
from mdservice.feeds.accepted import AcceptedQuotes
from mdservice.feeds.catch_up import CatchUp
from mdservice.feeds.history import HalvingHistory
from mdservice.feeds.late_history import Believed, Horizon, LateHistory
from mdservice.feeds.missing import Missed, MissingQuotes
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
_ENOUGH_LIVE = 1_000
"""Live quotes of which history has to have one before it counts as complete."""
_LAST_WORDS_S = 0.5
_MOST_NAMED = 50


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
        history: HalvingHistory | None,
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
        self._late = LateHistory(history, clock) if history is not None else None
        self._horizon = Horizon(0)
        self._resumed = False
        """Whether this connection's return was told."""
        self._left_out: frozenset[str] = frozenset()
        """Wanted, and not given when this was last told."""
        self._missing = MissingQuotes(accepted)
        self._connected_before = False
        self._refused: str | None = None

    @property
    def refused(self) -> str | None:
        """Why history refused the last repair as a whole, or None."""
        return self._refused

    @property
    def set_aside(self) -> Mapping[str, str]:
        """The symbols that history refuses, with the reason: their gaps stay."""
        return self._history.set_aside if self._history is not None else {}

    @property
    def symbols_refused(self) -> int:
        """How often history refused a symbol."""
        return self._history.symbols_refused if self._history is not None else 0

    @property
    def decode_errors(self) -> int:
        """Quotes from history whose symbol is none."""
        return self._history.decode_errors if self._history is not None else 0

    @property
    def unfollowed(self) -> int:
        """Quotes from history of symbols that were not asked for."""
        return self._history.unfollowed if self._history is not None else 0

    def begin(self) -> None:
        """A connection is open: from now on live quotes wait, if there is anything to repair."""
        now_ns = self._clock.utc_ns()
        if not self._connected_before:  # what an earlier run had was lost with it
            self._missing.lose(self._accepted.symbols(), now_ns)
            self._connected_before = True
        self._resumed = False
        self._horizon = Horizon(now_ns)
        if self._missing:
            self._hold()

    def symbols(self) -> frozenset[str]:
        """Those of which quotes are missing that a repair will fetch."""
        missing = self._missing.symbols()
        if self._history is not None and not self._connected_before:
            missing |= frozenset(self._accepted.symbols())
        return missing

    def lost(self, followed: Iterable[str]) -> None:
        """The connection has ended: of what it followed, quotes are missing."""
        self._missing.lose(followed, self._clock.utc_ns())

    def expect(self, symbols: Iterable[str]) -> None:
        """These were left out and may come back: live quotes wait, if any of them misses some.

        :meth:`repair` has to follow.
        """
        if any(symbol in self._missing for symbol in symbols):
            self._horizon = Horizon(self._clock.utc_ns())
            self._hold()

    def _hold(self) -> None:
        if self._history is None or self._holding:
            return
        self._holding = True
        self._deadline_s = anyio.current_time() + HOLD_LIMIT_S
        self._began.set()
        self._began = anyio.Event()

    async def hand_on(self, quotes: Sequence[Quote]) -> None:
        """Live quotes: they wait while there is a repair, and go on otherwise."""
        self._horizon.came(quotes)
        if not self._holding:
            await self._outlet.send(QuoteBatch(quotes))
            return
        self._held.extend(quotes)
        if len(self._held) > MOST_HELD:
            self._give_up("too many live quotes were waiting")
            await self._outlet.flush()

    async def repair(self, followed: Collection[str], left_out: Collection[str] = ()) -> None:
        """All is subscribed: say so, fetch what was missed, hand it on with what is held.

        Args:
            followed: What the feed has acknowledged.
            left_out: What is wanted and not given; its quotes are fetched once it is back.
        """
        self._resumed = True
        self._missing.follow(followed, self._clock.utc_ns())
        if self._history is not None and EVERY_SYMBOL not in followed:
            self._history.forget(self._history.set_aside.keys() - {*followed, *left_out})
        back = self._missing.back(followed, left_out)
        resumed_ns = await self._tell(followed, left_out, repairing=self._holding and bool(back))
        if not self._holding or self._history is None:
            self._missing.told(back)
            return
        before = len(self._held)

        def live() -> Sequence[Quote]:
            return self._held[before : before + _ENOUGH_LIVE]

        catch_up = CatchUp(self._history, back, live, self._clock)
        with anyio.CancelScope() as self._work:
            reason = await self._why_not_all(catch_up, followed)
            if reason is not None:
                _log.warning("gap_not_repaired", reason=reason)
                limit_s = self._deadline_s - _SPARE_S - anyio.current_time()
                with anyio.move_on_after(min(LATEST_LIMIT_S, limit_s)):
                    await catch_up.add_latest(resumed_ns)
            if catch_up.believed and self._holding:
                self._look_again_at(catch_up, back)
            every = EVERY_SYMBOL in followed
            self._let_go(catch_up.found, frozenset() if every else catch_up.complete)
        self._missing.told(back)
        await self._outlet.flush()

    async def tell_late(self) -> None:
        """Hand on what history had not told repairs in time; runs until cancelled."""
        while self._late is not None:
            self._outlet.add(await self._late.next())
            await self._outlet.flush()

    def _look_again_at(self, catch_up: CatchUp, missed: Sequence[Missed]) -> None:
        if self._late is None:
            return
        lasts_ns = {symbol: part.since_ns for part in missed for symbol in part.symbols}
        lasts_ns |= {quote.symbol: quote.ts_event_ns for quote in catch_up.found}
        for symbol in lasts_ns:
            lasts_ns[symbol] = self._accepted.last_ns(symbol) or lasts_ns[symbol]
        self._late.check(
            Believed(
                missed,
                [*catch_up.found, *self._held],
                {symbol: lasts_ns[symbol] for symbol in catch_up.complete},
                self._horizon,
            )
        )

    async def subscriptions_changed(
        self, followed: Collection[str], left_out: Collection[str]
    ) -> None:
        """A request was served: a symbol that had been left out may be back.

        What was missing of it is told, and not fetched: others' quotes do not wait for that.
        """
        if not self._resumed:
            return  # :meth:`repair` will tell
        self._missing.follow(followed, self._clock.utc_ns())
        if self._left_out.intersection(followed):
            if not self._holding:
                self._missing.told(self._missing.back(followed, left_out))
            await self._tell(followed, left_out, repairing=False)
        else:
            self._left_out = frozenset(left_out)

    async def _tell(
        self, followed: Collection[str], left_out: Collection[str], *, repairing: bool
    ) -> int:
        now_ns = self._clock.utc_ns()
        self._left_out = frozenset(left_out)
        resumed = FeedResumed(now_ns, frozenset(followed), repairing, self._left_out)
        await self._outlet.send(resumed)
        return now_ns

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

    async def _why_not_all(self, catch_up: CatchUp, followed: Collection[str]) -> str | None:
        """Let it fetch what was missed; None where nothing of that is left."""
        if EVERY_SYMBOL in followed and len(catch_up.symbols) > MOST_SEEN:
            return f"the history of {len(catch_up.symbols)} symbols is too much"
        limit_s = self._deadline_s - LATEST_LIMIT_S - anyio.current_time()
        complete = True
        try:
            with anyio.fail_after(limit_s):
                if catch_up.symbols:
                    complete = await catch_up.run(limit_s - _FETCH_S)
                    self._refused = None
        except HistoryRefused as exc:
            self._refused = None if isinstance(exc, NoHistory) else str(exc)
            return str(exc)
        except TimeoutError:
            return catch_up.last_error or "history was too slow"
        if not complete:
            return catch_up.last_error or "history had not come up to the live quotes in time"
        if catch_up.refused:
            _log.warning(
                "gap_not_repaired",
                symbols=sorted(catch_up.refused)[:_MOST_NAMED],
                reason=next(iter(catch_up.refused.values())),
            )
        if EVERY_SYMBOL in followed:
            return "history cannot be asked for symbols that were never seen"
        return None

    def _give_up(self, reason: str) -> None:
        if self._holding:
            _log.warning("gap_not_repaired", reason=reason)
            self._let_go((), frozenset())
        self._work.cancel()

    def _let_go(self, past: Sequence[Quote], complete: frozenset[str]) -> None:
        """Nothing waits any more; what comes from now on goes out behind this."""
        if not self._holding:
            return
        held, self._held = self._held, []
        self._holding = False
        self._outlet.add(Backfill(past, held, self._clock.utc_ns(), complete))
