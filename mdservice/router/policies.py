"""The sequencers of trades, statuses and news, of bars, and of order books. Pure.

One class for each order policy besides :attr:`Order.DROP_OLDER`, which is
:class:`~mdservice.router.sequencer.Sequencer` itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Final

import attrs

from mdservice.model.bar import Bar
from mdservice.model.events import LatestChanged
from mdservice.model.kinds import TRADES, Kind, Order, R
from mdservice.model.order_book import Level, OrderBook
from mdservice.model.trade import Cancel, Correction, Trade, changed_trade, trade_identity
from mdservice.router.sequencer import Fetched, Routed, Sequencer, merge, without_number

__all__ = [
    "MOST_BARS",
    "MOST_RECENT",
    "MOST_REMEMBERED",
    "KeepAll",
    "Merge",
    "ReplaceSameTime",
    "TradeSequencer",
    "make_sequencer",
]

MOST_REMEMBERED = 100_000
"""The accepted records of a kind that are remembered, to recognise repeats: between this many and
twice as many. A repair asks history for the last 30 s before the loss, so this suffices for 3,300
trades a second. Above that, trades that a lost connection missed and that were late by more than
is remembered stay missing. Two times 100,000 identities take about 35 MB. One limit for all
symbols, since what counts is how long a record is remembered."""
MOST_RECENT = 8
"""The newest trades of each symbol that are kept, to find the newest one that is not canceled.
A trade under eight newer ones is no longer the latest when it is canceled."""
MOST_BARS = 30
"""The newest bars of each symbol whose contents are remembered, half an hour of minutes. Updates
come within two minutes."""

_time = attrgetter("ts_event_ns")


class KeepAll(Sequencer[R]):
    """Accepts every record once, late ones too; the latest value is the newest by time.

    It implements :attr:`Order.KEEP_ALL`. Of records with the same time, the later arrival is the
    newest. It remembers the identities of the last accepted records in two generations: when the
    younger one is full, the older one is forgotten. A repeat of a forgotten record is accepted from
    the stream. From history, a record counts as accepted if it is not newer than what was forgotten
    of its symbol.
    """

    in_order: ClassVar[bool] = False

    def __init__(self, kind: Kind[R]) -> None:
        super().__init__(kind)
        self._marks_late = kind.may_be_late
        self._counts: dict[str, int] = {}
        self._young: dict[Hashable, int] = {}
        """The identities of the last accepted records, and how often each was accepted."""
        self._old: dict[Hashable, int] = {}
        self._old_until_ns: dict[str, int] = {}
        """The time of each symbol's latest record when the older generation was complete."""
        self._out_until_ns: dict[str, int] = {}
        """The same of the forgotten generations."""

    def start_from(self, records: Iterable[R], *, resuming: bool) -> None:
        """Continue where an earlier run ended: from history accept nothing older."""
        last = list(records)
        super().start_from(last, resuming=resuming)
        self._young |= {self._identity(record): 1 for record in last}
        self._out_until_ns |= {record.symbol: record.ts_event_ns - 1 for record in last}

    def number_on(self, numbers: Mapping[str, int]) -> None:
        """Number each symbol's records after this number, instead of from 1."""
        self._counts.update(numbers)

    def route(self, records: Iterable[R], now_ns: int, tolerance_ns: int) -> Routed[R]:
        """Accept new records and number them in place; mark the late ones.

        It rejects records from the future, and repeats. An echo, and the repeat of a first price,
        is dropped and not counted.
        """
        identity = self._identity
        latest = self._latest
        firsts = self._firsts
        counts = self._counts
        young, old = self._young, self._old
        horizon_ns = now_ns + tolerance_ns
        accepted: list[R] = []
        ahead_ns: list[int] = []
        rejected = 0
        for record in records:
            event_ns = record.ts_event_ns
            if event_ns > horizon_ns:
                ahead_ns.append(event_ns - now_ns)
                continue
            one = identity(record)
            if one in young or one in old:
                again = self._is_new_again(record, one)
                if not again:
                    rejected += again is False
                    continue
                young[one] = young.get(one, 0) + 1
            else:
                young[one] = 1
            symbol = record.symbol
            last = latest.get(symbol)
            if last is None:
                latest[symbol] = record
            else:
                # Share one string: otherwise each record of a backlog keeps its own copy.
                record.symbol = symbol = last.symbol
                if event_ns >= last.ts_event_ns:
                    latest[symbol] = record
                    if firsts:
                        firsts.discard(symbol)
                elif self._marks_late:
                    record.newest = False  # type: ignore[attr-defined]  # these kinds have it
            record.seq = counts[symbol] = counts.get(symbol, 0) + 1
            accepted.append(record)
        if len(young) >= MOST_REMEMBERED:
            self._forget_oldest()
        return Routed(accepted, rejected, ahead_ns)

    def _is_new_again(self, record: R, one: Hashable) -> bool | None:
        """Whether to accept a record that equals an accepted one; None to drop it uncounted."""
        symbol = record.symbol
        if symbol in self._firsts and one == self._identity(self._latest[symbol]):
            self._firsts.discard(symbol)
            return None
        if self._echoes and self._is_echo(record):
            return None
        return self._may_repeat(record)

    def _may_repeat(self, record: R) -> bool:  # noqa: ARG002 - of trades it depends on it
        """Whether the exchange sends equal records that are not the same one."""
        return False

    def _forget_oldest(self) -> None:
        self._out_until_ns |= self._old_until_ns
        self._old_until_ns = {s: record.ts_event_ns for s, record in self._latest.items()}
        self._old, self._young = self._young, {}

    def _remember(self, one: Hashable) -> None:
        """Accept no record of this identity any more."""
        if one not in self._old:
            self._young.setdefault(one, 1)

    def was_accepted(self, record: R) -> bool:
        """Whether an equal record was accepted lately."""
        one = self._identity(record)
        return one in self._young or one in self._old

    def route_first(
        self, records: Iterable[R], asked_ns: Mapping[str, int], now_ns: int, tolerance_ns: int
    ) -> Fetched[R]:
        """Accept first prices; not one that was accepted and has been canceled since."""
        wanted = [
            record
            for record in records
            if not self.was_accepted(record)
            or record.ts_event_ns <= (self.last_ns(record.symbol) or 0)
        ]
        return super().route_first(wanted, asked_ns, now_ns, tolerance_ns)

    def _accept_first(self, record: R, last: R | None) -> None:  # noqa: ARG002 - counts itself
        self._young[self._identity(record)] = 1
        record.seq = self._counts[record.symbol] = self._counts.get(record.symbol, 0) + 1

    def not_out_yet(self, records: Sequence[R]) -> list[R]:
        """Return the past records that were not accepted.

        Records that may repeat are counted: each accepted one drops one equal past record. Of an
        earlier run, only the last record of each symbol is known. The records that history has
        before it were published too.
        """
        before = self._places_of_earlier(records)
        matched: Counter[Hashable] = Counter()
        found = []
        for place, record in enumerate(records):
            one = self._identity(record)
            out = self._young.get(one, 0) + self._old.get(one, 0)
            if out and (matched[one] < out or not self._may_repeat(record)):
                matched[one] += 1
                continue
            symbol = record.symbol
            if record.ts_event_ns <= self._out_until_ns.get(symbol, -1):
                continue
            if before and place < before.get(symbol, -1):
                earlier = self._earlier[symbol]
                if record.ts_event_ns == earlier.ts_event_ns:
                    continue
            found.append(record)
        return found

    def _places_of_earlier(self, records: Sequence[R]) -> dict[str, int]:
        """Where each symbol's last record of the earlier run is among these."""
        places = {}
        for place, record in enumerate(records) if self._earlier else ():
            earlier = self._earlier.get(record.symbol)
            if earlier is not None and self._identity(record) == self._identity(earlier):
                places[record.symbol] = place
        return places

    def fill(self, past: Sequence[R], live: Sequence[R]) -> tuple[list[R], list[R]]:
        """Join the past records that were not accepted with the live ones, by time."""
        missing = merge(self._kind, self.not_out_yet(past), live)
        from_history = {id(record) for record in past}
        return missing, [record for record in missing if id(record) in from_history]


class TradeSequencer(KeepAll[Trade]):
    """Accepts every trade once, and applies corrections and cancellations to the latest ones.

    Trades without an id, of options, have nothing that tells a repeat from another trade. So all
    from the stream are accepted.
    """

    def __init__(self) -> None:
        super().__init__(TRADES)
        self._recent: dict[str, list[Trade]] = {}
        """The newest trades of each symbol by time, as corrected, without the canceled ones."""

    def start_from(self, records: Iterable[Trade], *, resuming: bool) -> None:
        """Continue where an earlier run ended: from history accept nothing older."""
        last = list(records)
        super().start_from(last, resuming=resuming)
        self._recent |= {trade.symbol: [trade] for trade in last}

    def route(self, records: Iterable[Trade], now_ns: int, tolerance_ns: int) -> Routed[Trade]:
        """Accept new trades and number them in place; mark the late ones."""
        routed = super().route(records, now_ns, tolerance_ns)
        self._add_recent(routed.accepted)
        return routed

    def route_first(
        self, records: Iterable[Trade], asked_ns: Mapping[str, int], now_ns: int, tolerance_ns: int
    ) -> Fetched[Trade]:
        """Accept first prices; not one that was accepted and has been canceled since."""
        fetched = super().route_first(records, asked_ns, now_ns, tolerance_ns)
        self._add_recent(fetched.accepted)
        return fetched

    def _may_repeat(self, record: Trade) -> bool:
        return record.id is None

    def _add_recent(self, trades: Iterable[Trade]) -> None:
        recents = self._recent
        for trade in trades:
            recent = recents.get(trade.symbol)
            if recent is None:
                recents[trade.symbol] = [trade]
                continue
            if trade.newest:
                recent.append(trade)
            else:
                recent.insert(bisect_right(recent, trade.ts_event_ns, key=_time), trade)
            if len(recent) > MOST_RECENT:
                del recent[0]

    def correct(self, correction: Correction) -> LatestChanged[Trade] | None:
        """Apply a correction; return the latest trade of the symbol if that was corrected."""
        original = changed_trade(correction)
        if original is None:
            return None
        if correction.corrected_id is not None:
            again = attrs.evolve(correction, original_id=correction.corrected_id)
            self._remember(changed_trade(again))
        symbol = correction.symbol
        recent = self._recent.get(symbol, [])
        place = _place(recent, original)
        if place is None:
            return None
        trade = recent[place]
        recent[place] = corrected = attrs.evolve(
            trade,
            id=trade.id if correction.corrected_id is None else correction.corrected_id,
            price=trade.price if correction.corrected_price is None else correction.corrected_price,
            size=trade.size if correction.corrected_size is None else correction.corrected_size,
            conditions=correction.corrected_conditions,
            newest=True,
            wire=None,
        )
        if trade is self._earlier.get(symbol):
            self._earlier[symbol] = corrected
        return self._change_latest(corrected) if place == len(recent) - 1 else None

    def cancel(self, cancel: Cancel) -> LatestChanged[Trade] | None:
        """Forget a canceled trade; return the latest trade of the symbol if it was that one.

        The trade is not accepted any more, also from history. Without another known trade, the
        symbol has none.
        """
        canceled = changed_trade(cancel)
        if canceled is None:
            return None
        self._remember(canceled)
        symbol = cancel.symbol
        recent = self._recent.get(symbol, [])
        place = _place(recent, canceled)
        if place is None:
            return None
        del recent[place]
        if place < len(recent):
            return None
        self._firsts.discard(symbol)
        if recent:
            return self._change_latest(recent[-1])
        del self._latest[symbol]
        return LatestChanged(self._kind, symbol, None)

    def _change_latest(self, trade: Trade) -> LatestChanged[Trade]:
        symbol = trade.symbol
        if trade is self._earlier.get(symbol):
            self._latest[symbol] = without_number(trade)
            self._confirmed.add(symbol)
        else:
            self._latest[symbol] = trade
        return LatestChanged(self._kind, symbol, trade)


def _place(trades: Sequence[Trade], one: Hashable) -> int | None:
    places = (place for place, trade in enumerate(trades) if trade_identity(trade) == one)
    return next(places, None)


class ReplaceSameTime(Sequencer[Bar]):
    """Accepts every version of a bar once; the latest value is the bar that starts last.

    It implements :attr:`Order.REPLACE_SAME_TIME`. It remembers the contents of each symbol's last
    bars. A bar that starts earlier counts as published, so it is an update; from history it is not
    accepted.
    """

    in_order: ClassVar[bool] = False

    def __init__(self, kind: Kind[Bar]) -> None:
        super().__init__(kind)
        self._counts: dict[str, int] = {}
        self._contents: dict[str, dict[int, int]] = {}
        """By symbol and start the hash of the last accepted version: equal hashes of two versions
        are as good as impossible, and a hash is much smaller than a bar."""
        self._out_until_ns: dict[str, int] = {}
        """By symbol the start of the newest bar that is forgotten."""

    def start_from(self, records: Iterable[Bar], *, resuming: bool) -> None:
        """Continue where an earlier run ended: from history accept no older bar."""
        last = list(records)
        super().start_from(last, resuming=resuming)
        for bar in last:
            self._contents[bar.symbol] = {bar.ts_event_ns: hash(self._identity(bar))}
            self._out_until_ns[bar.symbol] = bar.ts_event_ns - 1

    def number_on(self, numbers: Mapping[str, int]) -> None:
        """Number each symbol's bars after this number, instead of from 1."""
        self._counts.update(numbers)

    def route(self, records: Iterable[Bar], now_ns: int, tolerance_ns: int) -> Routed[Bar]:
        """Accept new bars and versions, and number them in place; mark updates and late bars.

        It rejects bars from the future, and repeats. An echo, and the repeat of a first price, is
        dropped and not counted.
        """
        latest = self._latest
        horizon_ns = now_ns + tolerance_ns
        accepted: list[Bar] = []
        ahead_ns: list[int] = []
        rejected = 0
        for bar in records:
            symbol = bar.symbol
            if bar.ts_event_ns > horizon_ns:
                ahead_ns.append(bar.ts_event_ns - now_ns)
                continue
            if self.was_accepted(bar):
                rejected += not self._is_expected(bar)
                continue
            last = latest.get(symbol)
            if last is None:
                latest[symbol] = bar
            else:
                bar.symbol = symbol = last.symbol
                if bar.ts_event_ns >= last.ts_event_ns:
                    latest[symbol] = bar
                    self._firsts.discard(symbol)
                else:
                    bar.newest = False
            self._accept(bar)
            accepted.append(bar)
        return Routed(accepted, rejected, ahead_ns)

    def _is_expected(self, bar: Bar) -> bool:
        """Whether a repeat is an echo, or that of a first price."""
        last = self._latest[bar.symbol]
        if bar.symbol in self._firsts and bar.ts_event_ns == last.ts_event_ns:
            self._firsts.discard(bar.symbol)
            return True
        return bool(self._echoes) and self._is_echo(bar)

    def _accept(self, bar: Bar) -> None:
        symbol, start_ns = bar.symbol, bar.ts_event_ns
        contents = self._contents.setdefault(symbol, {})
        bar.updated = start_ns in contents or start_ns <= self._out_until_ns.get(symbol, -1)
        bar.seq = self._counts[symbol] = self._counts.get(symbol, 0) + 1
        contents[start_ns] = hash(self._identity(bar))
        if len(contents) > MOST_BARS:
            oldest_ns = min(contents)
            del contents[oldest_ns]
            self._out_until_ns[symbol] = max(oldest_ns, self._out_until_ns.get(symbol, -1))

    def was_accepted(self, record: Bar) -> bool:
        """Whether this is the last accepted version of a bar."""
        contents = self._contents.get(record.symbol)
        return (
            contents is not None
            and record.ts_event_ns in contents
            and contents[record.ts_event_ns] == hash(self._identity(record))
        )

    def _is_newer(self, record: Bar, last: Bar) -> bool:
        return record.ts_event_ns > last.ts_event_ns or (
            record.ts_event_ns == last.ts_event_ns and not self.was_accepted(record)
        )

    def _accept_first(self, record: Bar, last: Bar | None) -> None:  # noqa: ARG002 - likewise
        self._accept(record)

    def not_out_yet(self, records: Sequence[Bar]) -> list[Bar]:
        """Return the past bars whose start, or whose version, was not accepted."""
        return [
            bar
            for bar in records
            if bar.ts_event_ns > self._out_until_ns.get(bar.symbol, -1)
            and not self.was_accepted(bar)
        ]

    def fill(self, past: Sequence[Bar], live: Sequence[Bar]) -> tuple[list[Bar], list[Bar]]:
        """Join the past bars that were not accepted with the live ones, by time.

        The live versions of a bar come after the one that only history has: the stream has the
        last word, since history may lag behind it.
        """
        came = {self._identity(bar) for bar in live}
        missing = [bar for bar in self.not_out_yet(past) if self._identity(bar) not in came]
        return sorted([*missing, *live], key=_time), missing


class Merge(Sequencer[OrderBook]):
    """Applies each change to the symbol's whole book, and accepts the result.

    It implements :attr:`Order.MERGE`. A book is unknown until the stream sends a whole one, also
    after a lost connection; until then changes are rejected.
    """

    def __init__(self, kind: Kind[OrderBook]) -> None:
        super().__init__(kind)
        self._books: dict[str, tuple[_Side, _Side]] = {}
        """The bids and the asks of each known book."""
        self._unsent: set[str] = set()
        """The symbols of which the last change was kept, but not returned."""

    def route(
        self, records: Iterable[OrderBook], now_ns: int, tolerance_ns: int
    ) -> Routed[OrderBook]:
        """Apply changes; return the whole books, numbered.

        The ``wire`` of a book is that of its change.

        A book that equals the last one, also in its time, is rejected. A book with the time of a
        future record is not returned, but its change is kept: otherwise the next ones would be
        applied to a wrong book.
        """
        latest = self._latest
        accepted: list[OrderBook] = []
        ahead_ns: list[int] = []
        rejected = 0
        for change in records:
            symbol = change.symbol
            book = ({}, {}) if change.whole else self._books.get(symbol)
            if book is None:
                rejected += 1
                continue
            self._books[symbol] = book
            for side, levels in zip(book, (change.bids, change.asks), strict=True):
                _apply(side, levels)
            if change.ts_event_ns > now_ns + tolerance_ns:
                ahead_ns.append(change.ts_event_ns - now_ns)
                self._unsent.add(symbol)
                continue
            last = latest.get(symbol)
            whole = OrderBook(
                symbol if last is None else last.symbol,
                tuple(sorted(book[0].items(), reverse=True)),
                tuple(sorted(book[1].items())),
                change.ts_event_ns if last is None else max(change.ts_event_ns, last.ts_event_ns),
                change.ts_recv_ns,
            )
            # Without its own wire, a book is sent as a whole: it also has the change before.
            if change.whole or symbol not in self._unsent:
                whole.wire = change.wire
            self._unsent.discard(symbol)
            if last is not None and self._identity(whole) == self._identity(last):
                rejected += symbol not in self._firsts
                self._firsts.discard(symbol)
                continue
            whole.seq = 1 if last is None else last.seq + 1
            latest[symbol] = whole
            self._firsts.discard(symbol)
            accepted.append(whole)
        if self._numbers:
            self._number_on(accepted)
        return Routed(accepted, rejected, ahead_ns)

    def lose(self, symbols: Collection[str]) -> None:
        """Forget all books, since changes are missing, also of those that are unsubscribed now."""
        super().lose(symbols)
        self._books.clear()
        self._unsent.clear()

    def fill(
        self,
        past: Sequence[OrderBook],  # noqa: ARG002 - there is none
        live: Sequence[OrderBook],
    ) -> tuple[list[OrderBook], list[OrderBook]]:
        """Return the live changes as they came: there is no history of books."""
        return list(live), []


_Side = dict[float, int | float]


def _apply(side: _Side, levels: Iterable[Level]) -> None:
    for price, size in levels:
        if size:
            side[price] = size
        else:
            side.pop(price, None)


_BY_ORDER: Final[Mapping[Order, type[Sequencer[Any]]]] = {
    Order.DROP_OLDER: Sequencer,
    Order.KEEP_ALL: KeepAll,
    Order.REPLACE_SAME_TIME: ReplaceSameTime,
    Order.MERGE: Merge,
}


def make_sequencer(kind: Kind[Any]) -> Sequencer[Any]:
    """A sequencer by the kind's order policy."""
    return TradeSequencer() if kind is TRADES else _BY_ORDER[kind.order](kind)
