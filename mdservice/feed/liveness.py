"""A socket that is open and says nothing: dead, or is the market quiet?

Pings prove the transport, market data proves the feed. After the limit, history is asked for
the newest quotes: newer than ours means that the socket is dead. Without quotes it is asked for
trades, bars, order books or news. The other kinds may rightly be silent for days, and nothing in
REST shows that the stream owes one: there the drivers' pings alone judge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal

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
from mdservice.model.feeds import Topic, symbols_of
from mdservice.model.kinds import NEWS, ORDERBOOKS, QUOTES, Kind, R, Record
from mdservice.model.order_book import OrderBook
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger
from mdservice.runtime.task_groups import run_together

__all__ = ["LONGEST_S", "Hours", "Judge", "Liveness"]

_log = get_logger(__name__)

LONGEST_S = 600.0
"""The longest silence between two looks, seconds."""
_ANSWER_LIMIT_S = 5.0
_MOST_ASKED = 200
_SYMBOL_CHECK_S = 60.0
"""How often the silence of single symbols is looked at, at most."""
_ON_ITS_WAY_NS = 5_000_000_000
"""A record that is younger than this may still be on its way over the stream."""
_MOST_NAMED = 10
_NOT_BY_SYMBOL = (NEWS, ORDERBOOKS)
"""Kinds whose single symbols are not checked: news has none, and a book comes by subscribing."""


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


Hours = Literal["open", "extended", "closed"]
"""What the silence of a feed means. ``open``: the feed is dead unless history shows a quiet market.
``extended``: it is dead only if history has newer records. ``closed``: nothing."""


@attrs.frozen
class Judge(Generic[R]):
    """A kind by whose newest records the silence of a feed is judged.

    Attributes:
        kind: The kind.
        history: Where its newest records are asked for; None where the feed has no history.
        accepted: Its accepted records.
    """

    kind: Kind[R]
    history: HalvingHistory[R] | None
    accepted: AcceptedRecords

    def is_on_its_way(self, record: R, now_ns: int) -> bool:
        """Whether the stream may still send it: a bar comes after its minute."""
        ended_ns = record.ts_event_ns + int(self.kind.span_s * 1e9)
        return ended_ns > now_ns - _ON_ITS_WAY_NS

    def is_known(self, record: R) -> bool:
        """Whether it is a book that looks like ours: its time may be that of REST's answer."""
        ours = self.accepted.latest(record.symbol)
        if not (isinstance(record, OrderBook) and isinstance(ours, OrderBook)):
            return False
        return (record.bids[:1], record.asks[:1]) == (ours.bids[:1], ours.asks[:1])


class Liveness:
    """Judges the silence of one feed, over all of its connections.

    Args:
        limit_s: Silence after which history is asked, seconds. Doubled while the market is
            quiet or history does not answer, up to :data:`LONGEST_S`; data brings it back.
        judges: The kinds by which silence is judged; the first that is subscribed counts.
        hours: Returns what silence means now.
        utc_ns: The clock, UTC nanoseconds.
        refresh: Called with a kind and the newest records of symbols that stay silent although
            others flow, and when history was asked, UTC nanoseconds.
    """

    def __init__(
        self,
        limit_s: float,
        judges: Sequence[Judge[Any]],
        hours: Callable[[], Awaitable[Hours]],
        utc_ns: Callable[[], int],
        refresh: Callable[[Kind[Any], Sequence[Any], int], Awaitable[None]],
    ) -> None:
        self._first_s = limit_s
        self._limit_s = limit_s
        self._judges = judges
        self._hours = hours
        self._utc_ns = utc_ns
        self._refresh = refresh
        self._since_s = 0.0
        """From when the silence counts."""
        self._data_s = float("-inf")
        """When market data came last, by the event loop's clock."""
        self._subscribed_ns: dict[Topic, int] = {}
        """Since when each topic is subscribed on this connection."""
        self._unheard: set[str] = set()
        """The symbols that have had no quote on this connection."""
        self._known_ns: dict[str, int] = {}
        """The times that the last look found: the same times again show nothing new."""
        self._awaited_ns: dict[str, int] = {}
        """The times of records that may have been on their way at the last check of their symbol:
        where the stream has not brought them by the next check, it has missed them."""
        self._asked: deque[str] = deque()
        """The symbols in the order in which they are checked for silence of their own."""
        self._sooner = anyio.Event()
        """Set where the next look is due earlier than it was."""

    def begin(self) -> None:
        """A connection is open: nothing is subscribed on it yet."""
        self._subscribed_ns = {}
        self._awaited_ns = {}
        self._unheard = set()

    def subscribed(self, topics: Iterable[Topic], at_ns: int) -> None:
        """These are subscribed, all of them; the silence of the first is judged from now on.

        Args:
            topics: As the feed acknowledged them.
            at_ns: When, UTC nanoseconds.
        """
        since_ns = self._subscribed_ns
        if not since_ns:
            self._since_s = anyio.current_time()
        all_of_them = frozenset(topics)
        new = all_of_them.difference(since_ns)
        since_ns.update(dict.fromkeys(new, at_ns))
        gone = since_ns.keys() - all_of_them if len(since_ns) > len(all_of_them) else ()
        for topic in gone:
            del since_ns[topic]
        self._unheard.difference_update(symbols_of(gone, QUOTES))
        self._unheard.update(symbols_of(new, QUOTES))
        self._unheard.discard(EVERY_SYMBOL)
        for judge in self._judges:
            if gone and judge.history is not None:
                judge.history.forget(symbols_of(gone, judge.kind))

    def data_came(self, kind: Kind[Any], records: Iterable[Record]) -> None:
        """Market data: the feed lives."""
        self._since_s = self._data_s = anyio.current_time()
        if self._unheard and kind is QUOTES:
            self._unheard.difference_update([record.symbol for record in records])
        if self._limit_s != self._first_s:
            self._limit_s = self._first_s
            self._sooner.set()

    def without_quotes(self, now_ns: int) -> list[str]:
        """Symbols without a quote for the limit since they were subscribed."""
        before_ns = now_ns - int(self._first_s * 1e9)
        since_ns, channel = self._subscribed_ns, QUOTES.channel
        return sorted(
            symbol
            for symbol in self._unheard
            if since_ns.get(Topic(channel, symbol), before_ns) <= before_ns
        )

    def _since_ns(self, kind: Kind[Any]) -> dict[str, int]:
        """Since when each symbol of a kind is subscribed; updated bars alone owe nothing."""
        return {
            topic.symbol: at_ns
            for topic, at_ns in self._subscribed_ns.items()
            if topic.channel == kind.channel
        }

    def _judge(self) -> Judge[Any] | None:
        """The first kind that is subscribed."""
        channels = {topic.channel for topic in self._subscribed_ns}
        return next((j for j in self._judges if j.kind.channel in channels), None)

    async def watch(self, tell_stale: Callable[..., Awaitable[None]]) -> None:
        """Watch one connection until cancelled; while nothing is subscribed silence is right.

        Args:
            tell_stale: Called with the reason when the connection is given up, and with the
                reason and ``symbols`` when some of its symbols were silent.

        Raises:
            FeedUnavailable: The socket is dead, or history cannot rule that out.
        """
        await run_together(
            partial(self._watch_feed, tell_stale), partial(self._watch_symbols, tell_stale)
        )

    async def _watch_feed(self, tell_stale: Callable[..., Awaitable[None]]) -> None:
        while True:
            since_s, limit_s = self._since_s, self._limit_s
            with anyio.CancelScope(deadline=since_s + limit_s):
                await self._sooner.wait()
                self._sooner = anyio.Event()
                continue
            if self._since_s != since_s:
                continue  # data came
            looked = None
            if self._subscribed_ns:
                looked = await self._look(await self._hours(), limit_s)
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

    async def _look(self, hours: Hours, silent_s: float) -> _Look | None:
        """Ask history whether the market is quiet; None if silence means nothing now."""
        judge = self._judge()
        if hours == "closed":
            return None
        if judge is None:
            return _Look(None)  # a status or a price limit may not come for days
        looked = await self._ask_whether_quiet(judge)
        usual = silent_s < self._first_s + judge.kind.span_s  # of bars, that come each minute
        if (hours == "extended" or usual) and not looked.certain:
            return _Look(None)
        return looked

    async def _ask_whether_quiet(self, judge: Judge[Any]) -> _Look:
        asked = self._to_ask(judge)
        if judge.history is None or not asked:
            return _Look("and there is nothing to ask whether the market is quiet")
        try:
            with anyio.fail_after(_ANSWER_LIMIT_S):
                found = await judge.history.latest(asked)
        except TimeoutError:
            return _Look("and history does not answer whether the market is quiet")
        except SymbolsRefused as exc:
            # It answers, but refuses this request: that does not show a dead socket.
            _log.warning("quiet_market_check_refused", reason=str(exc))
            return _Look(None)
        except (HistoryRefused, HistoryUnavailable) as exc:
            return _Look(f"and history does not show whether the market is quiet ({exc})")
        newest = found.records
        if judge.kind.span_s:
            now_ns = self._utc_ns()
            newest = [record for record in newest if not judge.is_on_its_way(record, now_ns)]
        since_ns = self._since_ns(judge.kind)
        newer = [
            record.symbol
            for record in newest
            if record.ts_event_ns > self._ours_ns(judge, since_ns, record)
            and not judge.is_known(record)
        ]
        self._known_ns = {record.symbol: record.ts_event_ns for record in newest}
        if newer:
            one = "quote" if judge.kind is QUOTES else "record"
            return _Look(f"while {newer[0]} has a newer {one} than ours", certain=True)
        # A refused symbol does not show that the socket is dead.
        return _Look(None)

    def _ours_ns(self, judge: Judge[Any], since_ns: Mapping[str, int], record: Record) -> int:
        """The newest time of the symbol that is known; at least from when it is subscribed."""
        accepted = judge.accepted
        ours_ns = accepted.last_ns(record.symbol)
        if ours_ns is None:
            ours_ns = since_ns.get(record.symbol, record.ts_event_ns)
        elif accepted.is_first(record.symbol):  # the stream owes what came since, and no more
            ours_ns = max(ours_ns, since_ns.get(record.symbol, ours_ns))
        return max(ours_ns, self._known_ns.get(record.symbol, ours_ns))

    def _to_ask(self, judge: Judge[Any]) -> Sequence[str]:
        """Those subscribed; where they are many, those whose records are the newest."""
        symbols = set(self._since_ns(judge.kind))
        if EVERY_SYMBOL in symbols and judge.kind is not NEWS:
            symbols = (symbols | set(judge.accepted.symbols())) - {EVERY_SYMBOL}
        by_time = sorted(symbols, key=lambda s: (-(judge.accepted.last_ns(s) or 0), s))
        return by_time[:_MOST_ASKED]

    async def _watch_symbols(self, tell_stale: Callable[..., Awaitable[None]]) -> None:
        """Find symbols that stay silent while others flow, refresh and report them."""
        every_s = max(_SYMBOL_CHECK_S, self._first_s)
        while True:
            await anyio.sleep(every_s)
            judge = self._judge()
            flowing = anyio.current_time() - self._data_s < self._first_s
            if judge is None or judge.history is None or not flowing:
                continue
            if judge.kind in _NOT_BY_SYMBOL:
                continue
            silent = self._silent(judge, every_s + judge.kind.span_s)
            if silent and await self._hours() != "closed":
                await self._refresh_silent(judge, silent, tell_stale)

    def _silent(self, judge: Judge[Any], limit_s: float) -> list[str]:
        """The next symbols to check, of those without a record for a while, in turn."""
        subscribed = self._since_ns(judge.kind)
        if EVERY_SYMBOL in subscribed:
            return []
        known = [symbol for symbol in self._asked if symbol in subscribed]
        self._asked = deque((*(subscribed.keys() - set(known)), *known))
        silent: list[str] = []
        before_ns = self._utc_ns() - int(limit_s * 1e9)
        for _ in range(len(self._asked)):
            if len(silent) >= _MOST_ASKED:
                break
            symbol = self._asked.popleft()
            self._asked.append(symbol)
            last = judge.accepted.latest(symbol)
            if last is None or last.ts_recv_ns <= before_ns:
                silent.append(symbol)
        return silent

    async def _refresh_silent(
        self,
        judge: Judge[Any],
        silent: Sequence[str],
        tell_stale: Callable[..., Awaitable[None]],
    ) -> None:
        since_ns = self._since_ns(judge.kind)
        began_ns = {symbol: judge.accepted.last_ns(symbol) for symbol in silent}
        found: Sequence[Any] = ()
        asked_ns = self._utc_ns()
        try:
            with anyio.fail_after(_ANSWER_LIMIT_S):
                found = (await judge.history.latest(silent)).records if judge.history else ()
        except (TimeoutError, HistoryRefused, HistoryUnavailable) as exc:
            _log.info("silent_symbols_not_checked", reason=str(exc) or "no answer in time")
            return
        missed = []
        for record in found:
            ours_ns = self._ours_ns(judge, since_ns, record)
            awaited_ns = self._awaited_ns.pop(record.symbol, ours_ns)
            if judge.accepted.last_ns(record.symbol) != began_ns[record.symbol]:
                continue
            if awaited_ns <= ours_ns < record.ts_event_ns and judge.is_on_its_way(record, asked_ns):
                self._awaited_ns[record.symbol] = record.ts_event_ns
            elif record.ts_event_ns > ours_ns:
                missed.append(record)
        if not missed:
            return
        symbols = sorted(record.symbol for record in missed)
        self._known_ns.update((record.symbol, record.ts_event_ns) for record in missed)
        await self._refresh(judge.kind, missed, asked_ns)
        await tell_stale(
            f"the feed sends nothing of {', '.join(symbols[:_MOST_NAMED])}, and REST has newer "
            f"{judge.kind.channel}",
            symbols=symbols,
        )
