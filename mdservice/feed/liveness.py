"""A socket that is open and says nothing: dead, or is the market quiet?

Pings prove the transport, market data proves the feed. After the limit, history is asked for
the newest quotes: newer than ours means that the socket is dead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import anyio
import attrs

from mdservice.errors import (
    FeedUnavailable,
    HistoryRefused,
    HistoryUnavailable,
    SymbolsRefused,
)
from mdservice.feed.gap_repair.missing import AcceptedRecords
from mdservice.feed.history import HalvingHistory
from mdservice.model.kinds import Record
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger

__all__ = ["LONGEST_S", "Liveness"]

_log = get_logger(__name__)

LONGEST_S = 600.0
"""The longest silence between two looks, seconds."""
_ANSWER_LIMIT_S = 5.0
_MOST_ASKED = 200


@attrs.frozen
class _Look:
    """What a look has shown.

    Attributes:
        why_dead: Why the socket has to be given up, or None where the market is quiet.
        certain: Whether history shows it.
    """

    why_dead: str | None
    certain: bool = False

    def next_limit_s(self, limit_s: float, first_s: float) -> float:
        """How long the silence may last until the next look."""
        return first_s if self.certain else max(first_s, min(LONGEST_S, limit_s * 2))


class Liveness:
    """Judges the silence of one feed, over all of its connections.

    Args:
        limit_s: Silence after which history is asked, seconds. Doubled while the market is
            quiet or history does not answer, up to :data:`LONGEST_S`; data brings it back.
        history: Where the newest quotes are asked for; None where the feed has no history.
        is_open: Whether the market is open; silence counts only then.
        accepted: The quotes that are out.
    """

    def __init__(
        self,
        limit_s: float,
        history: HalvingHistory[Any] | None,
        is_open: Callable[[], Awaitable[bool]],
        accepted: AcceptedRecords,
    ) -> None:
        self._first_s = limit_s
        self._limit_s = limit_s
        self._history = history
        self._is_open = is_open
        self._accepted = accepted
        self._since_s = 0.0
        """From when the silence counts."""
        self._subscribed_ns: dict[str, int] = {}
        """Since when each symbol is subscribed on this connection."""
        self._unheard: set[str] = set()
        """Those that have had no quote on this connection."""
        self._known_ns: dict[str, int] = {}
        """The times that the last look found: the same times again show nothing new."""
        self._sooner = anyio.Event()
        """Set where the next look is due earlier than it was."""

    def begin(self) -> None:
        """A connection is open: nothing is subscribed on it yet."""
        self._subscribed_ns = {}
        self._unheard = set()

    def subscribed(self, symbols: Iterable[str], at_ns: int) -> None:
        """These are subscribed, all of them; the silence of the first is judged from now on.

        Args:
            symbols: As the feed acknowledged them.
            at_ns: When, UTC nanoseconds.
        """
        before = self._subscribed_ns
        self._subscribed_ns = {symbol: before.get(symbol, at_ns) for symbol in symbols}
        new = self._subscribed_ns.keys() - before.keys() - {EVERY_SYMBOL}
        self._unheard = (self._unheard & self._subscribed_ns.keys()) | new
        if self._history is not None:
            self._history.forget(before.keys() - self._subscribed_ns.keys())
        if not before:
            self._since_s = anyio.current_time()

    def data_came(self, quotes: Iterable[Record]) -> None:
        """Market data: the feed lives."""
        self._since_s = anyio.current_time()
        if self._unheard:
            self._unheard.difference_update([quote.symbol for quote in quotes])
        if self._limit_s != self._first_s:
            self._limit_s = self._first_s
            self._sooner.set()

    def without_quotes(self, now_ns: int) -> list[str]:
        """Symbols without a quote for the limit since they were subscribed."""
        before_ns = now_ns - int(self._first_s * 1e9)
        return sorted(s for s in self._unheard if self._subscribed_ns[s] <= before_ns)

    async def watch(self, tell_stale: Callable[[str], Awaitable[None]]) -> None:
        """Watch one connection until cancelled; while nothing is subscribed silence is right.

        Args:
            tell_stale: Called with the reason when the connection is given up.

        Raises:
            FeedUnavailable: The socket is dead, or history cannot rule that out.
        """
        while True:
            since_s, limit_s = self._since_s, self._limit_s
            with anyio.CancelScope(deadline=since_s + limit_s):
                await self._sooner.wait()
                self._sooner = anyio.Event()
                continue
            if self._since_s != since_s:
                continue  # data came
            looked = None
            if self._subscribed_ns and await self._is_open():
                looked = await self._look()
            if self._since_s != since_s:
                continue
            self._since_s = anyio.current_time()
            if looked is None:
                continue
            self._limit_s = looked.next_limit_s(limit_s, self._first_s)
            if looked.why_dead is not None:
                reason = f"no market data for {limit_s:g} s, {looked.why_dead}"
                await tell_stale(reason)
                raise FeedUnavailable(reason)
            _log.info("feed_is_quiet", silent_s=limit_s, next_look_s=self._limit_s)

    async def _look(self) -> _Look:
        """Ask history whether the market is quiet."""
        asked = self._to_ask()
        if self._history is None or not asked:
            return _Look("and there is nothing to ask whether the market is quiet")
        try:
            with anyio.fail_after(_ANSWER_LIMIT_S):
                found = await self._history.latest(asked)
        except TimeoutError:
            return _Look("and history does not answer whether the market is quiet")
        except SymbolsRefused as exc:
            # It answers, but refuses this request: that does not show a dead socket.
            _log.warning("quiet_market_check_refused", reason=str(exc))
            return _Look(None)
        except (HistoryRefused, HistoryUnavailable) as exc:
            return _Look(f"and history does not show whether the market is quiet ({exc})")
        newest = found.records
        newer = [quote.symbol for quote in newest if quote.ts_event_ns > self._ours_ns(quote)]
        self._known_ns = {quote.symbol: quote.ts_event_ns for quote in newest}
        if newer:
            return _Look(f"while {newer[0]} has a newer quote than ours", certain=True)
        # A refused symbol does not show that the socket is dead.
        return _Look(None)

    def _ours_ns(self, quote: Record) -> int:
        """The newest time of the symbol that is known; at least from when it is subscribed."""
        ours_ns = self._accepted.last_ns(quote.symbol)
        if ours_ns is None:
            ours_ns = self._subscribed_ns.get(quote.symbol, quote.ts_event_ns)
        elif self._accepted.is_first(quote.symbol):  # the stream owes what came since, and no more
            ours_ns = max(ours_ns, self._subscribed_ns.get(quote.symbol, ours_ns))
        return max(ours_ns, self._known_ns.get(quote.symbol, ours_ns))

    def _to_ask(self) -> Sequence[str]:
        """Those subscribed; where they are many, those that were quoted last."""
        symbols = set(self._subscribed_ns)
        if EVERY_SYMBOL in symbols:
            symbols = (symbols | set(self._accepted.symbols())) - {EVERY_SYMBOL}
        by_time = sorted(symbols, key=lambda s: (-(self._accepted.last_ns(s) or 0), s))
        return by_time[:_MOST_ASKED]
