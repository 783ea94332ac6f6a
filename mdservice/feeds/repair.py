"""After a lost connection: live quotes wait while what was missed is fetched from history."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feeds.history import QuoteHistory
from mdservice.logs import get_logger
from mdservice.model.events import Backfill, FeedItem, QuoteBatch
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL

__all__ = ["HOLD_LIMIT_S", "GapRepair"]

_log = get_logger(__name__)

HOLD_LIMIT_S = 15.0
"""How long live quotes wait behind a repair at most."""
_MOST_HELD = 200_000
_SETTLE_S = 1.0
"""History lags behind the stream a little; what it does not have yet cannot be fetched."""
_OVERLAP_NS = 5_000_000_000
"""History is asked from this long before the last accepted quote."""
_RETRY_S = 1.0
_LATEST_LIMIT_S = 3.0
_RELEASE_LIMIT_S = 5.0
"""The router takes at once; shielded, so that a connection lost just now loses no quote."""


class GapRepair:
    """Holds live quotes, fetches past ones, hands both on together.

    A connection that is lost again meanwhile changes nothing: what is held stays held, and the
    next connection's repair covers both outages. After :data:`HOLD_LIMIT_S` what is held is
    handed on as it is, and the gap stays one.

    Args:
        history: Where past quotes come from; None where the feed has no history.
        last_accepted_ns: The time of the newest quote that is out, or None.
        outbox: Takes what is handed on.
        clock: The time.
    """

    def __init__(
        self,
        history: QuoteHistory | None,
        last_accepted_ns: Callable[[], int | None],
        outbox: MemoryObjectSendStream[FeedItem],
        clock: Clock,
    ) -> None:
        self._history = history
        self._last_accepted_ns = last_accepted_ns
        self._outbox = outbox
        self._clock = clock
        self._held: list[Quote] = []
        self._holding = False
        self._releasing = False
        self._began = anyio.Event()
        self._deadline_s = 0.0

    def begin(self) -> None:
        """A connection is open: from now on live quotes wait, if there is anything to repair."""
        if self._history is None or self._last_accepted_ns() is None or self._holding:
            return
        self._holding = True
        self._deadline_s = anyio.current_time() + HOLD_LIMIT_S
        self._began.set()

    async def hand_on(self, quotes: Sequence[Quote]) -> None:
        """Live quotes: they wait while there is a repair, and go on otherwise."""
        if not self._holding:
            await self._outbox.send(QuoteBatch(quotes))
            return
        self._held.extend(quotes)
        if len(self._held) > _MOST_HELD:
            _log.warning("gap_not_repaired", reason="too many live quotes were waiting")
            await self._release((), repaired=False)

    async def repair(self, symbols: Sequence[str]) -> None:
        """Fetch what these symbols have missed, and hand it on with what is held."""
        start_ns = self._last_accepted_ns()
        if not self._holding or self._history is None or start_ns is None:
            return
        await anyio.sleep(_SETTLE_S)
        try:
            past = await self._fetch(self._history, symbols, start_ns - _OVERLAP_NS)
        except (HistoryRefused, HistoryUnavailable) as exc:
            _log.warning("gap_not_repaired", reason=str(exc))
            await self._release(await self._latest(self._history, symbols), repaired=False)
        else:
            await self._release(past, repaired=True)

    async def keep_limit(self) -> None:
        """Let go of what is held when it has waited long enough; runs until cancelled."""
        while True:
            await self._began.wait()
            self._began = anyio.Event()
            await anyio.sleep_until(self._deadline_s)
            if self._holding:
                _log.warning("gap_not_repaired", reason=f"it took over {HOLD_LIMIT_S:g} s")
                await self._release((), repaired=False)

    async def _fetch(
        self, history: QuoteHistory, symbols: Sequence[str], start_ns: int
    ) -> Sequence[Quote]:
        if EVERY_SYMBOL in symbols:
            raise HistoryRefused("the history of every symbol is too much")
        while True:
            try:
                return await history.quotes(symbols, start_ns, self._clock.utc_ns())
            except HistoryUnavailable as exc:
                if anyio.current_time() + _RETRY_S + _LATEST_LIMIT_S > self._deadline_s:
                    raise
                _log.warning("history_failed", reason=str(exc))
                await anyio.sleep(_RETRY_S)

    async def _latest(self, history: QuoteHistory, symbols: Sequence[str]) -> Sequence[Quote]:
        """At least the price is right at once."""
        known = [symbol for symbol in symbols if symbol != EVERY_SYMBOL]
        with anyio.move_on_after(_LATEST_LIMIT_S):
            try:
                return await history.latest(known) if known else ()
            except (HistoryRefused, HistoryUnavailable) as exc:
                _log.warning("latest_quotes_failed", reason=str(exc))
        return ()

    async def _release(self, past: Sequence[Quote], *, repaired: bool) -> None:
        """Hand on everything; live quotes that come meanwhile queue up behind it."""
        if self._releasing or not self._holding:
            return
        self._releasing = True
        try:
            with anyio.move_on_after(_RELEASE_LIMIT_S, shield=True):
                await self._let_go(past, repaired=repaired)
        finally:
            self._releasing = False

    async def _let_go(self, past: Sequence[Quote], *, repaired: bool) -> None:
        held, self._held = self._held, []
        await self._outbox.send(Backfill(past, held, self._clock.utc_ns(), repaired=repaired))
        while self._held:
            held, self._held = self._held, []
            await self._outbox.send(QuoteBatch(held))
        self._holding = False
