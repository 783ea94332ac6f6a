"""A socket that is open and says nothing: dead, or is the market quiet?

Pings prove the transport, market data proves the feed. After the mute limit history is asked for
the newest quotes: newer than ours means that the socket is dead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio

from mdservice.errors import FeedUnavailable, HistoryRefused, HistoryUnavailable
from mdservice.feeds.history import QuoteHistory
from mdservice.logs import get_logger
from mdservice.model.quote import Quote

__all__ = ["LONGEST_S", "MuteWatch"]

_log = get_logger(__name__)

LONGEST_S = 600.0
"""The longest silence between two looks, seconds."""
_ANSWER_LIMIT_S = 5.0
_MOST_ASKED = 200


class MuteWatch:
    """Judges the silence of one feed, over all of its connections.

    Args:
        limit_s: Silence after which history is asked, seconds. Doubled while the market is
            quiet or nobody answers, up to :data:`LONGEST_S`; data brings it back.
        history: Where the newest quotes are asked; None means that nobody answers.
        is_open: Whether the market is open; silence counts only then.
        latest: The last accepted quote of a symbol.
    """

    def __init__(
        self,
        limit_s: float,
        history: QuoteHistory | None,
        is_open: Callable[[], Awaitable[bool]],
        latest: Callable[[str], Quote | None],
    ) -> None:
        self._first_s = limit_s
        self._limit_s = limit_s
        self._history = history
        self._is_open = is_open
        self._latest = latest
        self._since_s = 0.0
        """From when the silence counts."""

    def data_came(self) -> None:
        """Market data: the feed lives."""
        self._since_s = anyio.current_time()
        self._limit_s = self._first_s

    async def watch(
        self,
        symbols: Callable[[], Sequence[str]],
        subscribed_ns: int,
        tell_stale: Callable[[str], Awaitable[None]],
    ) -> None:
        """Watch one connection, from the moment of its subscription, until cancelled.

        Args:
            symbols: What is subscribed now; while it is nothing, silence is right.
            subscribed_ns: That moment, UTC nanoseconds.
            tell_stale: Told why the connection is given up.

        Raises:
            FeedUnavailable: The socket is dead, or nobody can tell.
        """
        self._since_s = anyio.current_time()
        while True:
            since_s = self._since_s
            await anyio.sleep_until(since_s + self._limit_s)
            if self._since_s != since_s:
                continue  # data came
            if not symbols() or not await self._is_open():
                self._since_s = anyio.current_time()
                continue
            verdict = await self._why_dead(symbols(), subscribed_ns)
            if self._since_s != since_s:
                continue
            silent_s, self._limit_s = self._limit_s, min(LONGEST_S, self._limit_s * 2)
            if verdict is not None:
                reason = f"no market data for {silent_s:g} s, {verdict}"
                await tell_stale(reason)
                raise FeedUnavailable(reason)
            self._since_s = anyio.current_time()
            _log.info("feed_is_quiet", silent_s=silent_s, next_look_s=self._limit_s)

    async def _why_dead(self, symbols: Sequence[str], subscribed_ns: int) -> str | None:
        """Why the socket has to be given up, or None where the market is quiet."""
        if self._history is None:
            return "and there is no history to ask whether the market is quiet"
        try:
            with anyio.fail_after(_ANSWER_LIMIT_S):
                newest = await self._history.latest(list(symbols)[:_MOST_ASKED])
        except (HistoryRefused, HistoryUnavailable, TimeoutError) as exc:
            return f"and history does not tell whether the market is quiet ({exc})"
        for quote in newest:
            ours = self._latest(quote.symbol)
            if quote.ts_event_ns > (ours.ts_event_ns if ours else subscribed_ns):
                return f"while {quote.symbol} has a newer quote than ours: the socket is dead"
        return None
