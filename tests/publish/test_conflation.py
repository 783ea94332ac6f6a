"""The buffer that loses old records before new ones, against slow ones on plain lists."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mdservice.model.events import AccountEvent, FeedStatus, LatestChanged, RecordBatch, RoutedItem
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    IMBALANCES,
    NEWS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
    Overflow,
)
from mdservice.model.quote import Quote
from mdservice.publish.conflation import ConflatingBuffer, records_of
from tests.examples import examples
from tests.records import make_record

Item = Quote | FeedStatus
SYMBOLS = ["AAPL", "MSFT", "SPY", " 1", "1"]


def quote(symbol: str, number: int = 0) -> Quote:
    return Quote(symbol, 1.0, 2.0, 1, 1, number, number)


def status(number: int = 0) -> FeedStatus:
    return FeedStatus("connected", number)


def put(buffer: ConflatingBuffer, items: Iterable[Item], kind: Kind[Any] = QUOTES) -> None:
    """Add items, neighbouring quotes as one batch."""
    for is_quote, some in groupby(items, lambda item: isinstance(item, Quote)):
        if is_quote:
            buffer.add(RecordBatch(kind, list(some)))
        else:
            for each in some:
                assert isinstance(each, FeedStatus)
                buffer.add(each)


def take(buffer: ConflatingBuffer, most: int) -> list[Item]:
    """Take items, each batch as its quotes."""
    taken: list[Item] = []
    for item in buffer.take(most):
        taken += _items(item)
    return taken


def _items(item: RoutedItem) -> list[Item]:
    if isinstance(item, FeedStatus):
        return [item]
    assert isinstance(item, RecordBatch)
    assert item.records, "no batch is empty"
    return list(item.records)


def seen(items: list[Item]) -> list[tuple[str, int]]:
    return [
        (i.symbol, i.ts_event_ns) if isinstance(i, Quote) else (i.state, i.at_ns) for i in items
    ]


class SlowBuffer:
    """A list whose first ``conflated_up_to`` items hold at most one quote of each symbol."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.items: list[Item] = []
        self.conflated = 0
        self._conflated_up_to = 0

    def extend(self, items: list[Item]) -> None:
        self.items += items
        while len(self.items) > self.limit and self._conflated_up_to < len(self.items):
            item = self.items[self._conflated_up_to]
            older = [
                place
                for place, other in enumerate(self.items[: self._conflated_up_to])
                if isinstance(item, Quote)
                and isinstance(other, Quote)
                and other.symbol == item.symbol
            ]
            if older:
                del self.items[older[0]]
                self.conflated += 1
            else:
                self._conflated_up_to += 1

    def take(self, most: int) -> list[Item]:
        taken, self.items = self.items[:most], self.items[most:]
        self._conflated_up_to = max(0, self._conflated_up_to - most)
        return taken


class Buffers(RuleBasedStateMachine):
    """Both buffers get the same; what went in is numbered, so that order can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ConflatingBuffer(8)
        self.slow = SlowBuffer(8)
        self.put_in: list[Item] = []
        self.taken: list[Item] = []
        self.largest = 0

    @rule(symbols=st.lists(st.sampled_from([*SYMBOLS, None]), max_size=12))
    def put_in_some(self, symbols: list[str | None]) -> None:
        items: list[Item] = []
        for symbol in symbols:
            number = len(self.put_in) + len(items)
            items.append(status(number) if symbol is None else quote(symbol, number))
        self.put_in += items
        put(self.buffer, items)
        self.buffer.add(RecordBatch(QUOTES, []))
        self.slow.extend(items)
        self.largest = max(self.largest, len(self.buffer))
        waiting = seen(self.slow.items)
        statuses = sum(name == "connected" for name, _ in waiting)
        symbols_waiting = len({name for name, _ in waiting} - {"connected"})
        assert len(self.buffer) <= max(self.buffer.limit, symbols_waiting + statuses)

    @rule(most=st.integers(0, 10))
    def take_some(self, most: int) -> None:
        taken = take(self.buffer, most)
        assert seen(taken) == seen(self.slow.take(most))
        self.taken += taken

    @rule(limit=st.integers(0, 10))
    def change_the_limit(self, limit: int) -> None:
        self.buffer.limit = self.slow.limit = limit

    @invariant()
    def agrees(self) -> None:
        assert len(self.buffer) == len(self.slow.items)
        assert self.buffer.conflated == self.slow.conflated

    @invariant()
    def nothing_is_lost_uncounted(self) -> None:
        assert len(self.put_in) == len(self.taken) + len(self.buffer) + self.buffer.conflated

    def teardown(self) -> None:
        everything = self.taken + take(self.buffer, 10_000)
        assert not len(self.buffer)
        survived = seen(everything)
        numbers = [number for _, number in survived]
        assert numbers == sorted(set(numbers)), "in the order in which they came"
        newest = dict(seen(self.put_in))
        assert {name: dict(survived)[name] for name in newest} == newest
        states = sum(isinstance(item, FeedStatus) for item in self.put_in)
        assert sum(isinstance(item, FeedStatus) for item in everything) == states


Buffers.TestCase.settings = examples(100, stateful_step_count=30)
TestBuffers = Buffers.TestCase


def test_is_a_queue_up_to_its_limit() -> None:
    buffer = ConflatingBuffer(1000)
    items = [quote("AAPL", number) for number in range(1000)]
    put(buffer, items)
    assert take(buffer, 300) + take(buffer, 10_000) == items
    assert buffer.conflated == 0


def test_beyond_it_the_oldest_are_conflated_and_the_newest_kept_one_and_all() -> None:
    buffer = ConflatingBuffer(100)
    put(buffer, [quote(SYMBOLS[number % 2], number) for number in range(1000)])
    taken = take(buffer, 1000)
    assert [item.ts_event_ns for item in taken if isinstance(item, Quote)] == [*range(900, 1000)]
    assert buffer.conflated == 900


def test_more_symbols_than_the_limit_keep_one_quote_each() -> None:
    buffer = ConflatingBuffer(10)
    for round_number in range(5):
        put(buffer, [quote(f"S{number}", round_number) for number in range(50)])
    assert len(buffer) == 50
    assert {item.ts_event_ns for item in take(buffer, 50) if isinstance(item, Quote)} == {4}
    assert buffer.conflated == 200


def test_a_state_keeps_its_place_between_the_quotes() -> None:
    buffer = ConflatingBuffer(3)
    put(
        buffer,
        [quote("AAPL", 0), status(1), quote("AAPL", 2), quote("AAPL", 3), quote("AAPL", 4)],
    )
    assert seen(take(buffer, 9)) == [("connected", 1), ("AAPL", 3), ("AAPL", 4)]


def test_states_alone_are_bounded_too_and_counted() -> None:
    buffer = ConflatingBuffer(10)
    for number in range(5000):
        buffer.add(status(number))
    assert len(buffer) <= 1010
    taken = take(buffer, 5000)
    assert taken[-1] == status(4999)
    assert buffer.conflated + len(taken) == 5000


def test_events_of_the_account_are_kept_while_quotes_give() -> None:
    buffer = ConflatingBuffer(3)
    events = [AccountEvent(b"%d" % number) for number in range(5)]
    for event in events:
        buffer.add(event)
        buffer.add(RecordBatch(QUOTES, [quote("AAPL", int(event.payload))]))
    assert [item for item in buffer.take(99) if isinstance(item, AccountEvent)] == events
    assert buffer.account_dropped == 0


def test_events_of_the_account_are_bounded_too_and_counted() -> None:
    buffer = ConflatingBuffer(10)
    for number in range(25_000):
        buffer.add(AccountEvent(b"%d" % number))
    taken = buffer.take(99_999)
    assert taken == [AccountEvent(b"%d" % number) for number in range(15_000, 25_000)]
    assert buffer.account_dropped == 15_000
    assert buffer.conflated == 0


def test_taking_nothing_takes_nothing() -> None:
    buffer = ConflatingBuffer(2)
    put(buffer, [quote("A"), quote("B"), quote("C")])
    assert buffer.take(0) == []
    assert len(buffer) == 3


def test_many_symbols_are_taken_out_in_linear_time() -> None:
    buffer = ConflatingBuffer(0)
    put(buffer, [quote(f"S{number}") for number in range(80_000)])
    started_s = time.process_time()  # other programs do not count
    while buffer.take(1_000):
        pass
    assert time.process_time() - started_s < 2.0


def test_counts_per_symbol_add_up() -> None:
    buffer = ConflatingBuffer(4)
    put(buffer, [quote(name, n) for n, name in enumerate(["A", "B", "A", "A", "B", "A", "C"])])
    assert Counter(name for name, _ in seen(take(buffer, 9))) == {"A": 2, "B": 1, "C": 1}
    assert buffer.conflated == 3


def test_records_of_two_kinds_do_not_replace_each_other() -> None:
    other = attrs.evolve(QUOTES, channel="others")
    buffer = ConflatingBuffer(2)
    for number in range(3):
        put(buffer, [quote("A", number)])
        put(buffer, [quote("A", number)], other)
    taken = buffer.take(9)
    assert [(item.kind, _items(item)) for item in taken if isinstance(item, RecordBatch)] == [
        (QUOTES, [quote("A", 2)]),
        (other, [quote("A", 2)]),
    ]
    assert buffer.conflated == 4


# ---- every kind


@attrs.frozen
class Seen:
    """One item: an event of a kind, or a changed latest value (which is no event).

    ``number`` is its place among all that went in.
    """

    kind: Kind[Any]
    symbol: str
    number: int
    time: int = 0
    late: bool = False
    event: bool = True


class SlowBufferOfKinds:
    """Reduces a plain list one item at a time, each as the policy of its kind says."""

    def __init__(self, limit: int, most_kept: int) -> None:
        self.limit, self.most_kept = limit, most_kept
        self.values: list[Seen] = []
        self.oldest: list[Seen] = []
        self.queue: list[Seen] = []
        self.conflated: Counter[Kind[Any]] = Counter()
        self.dropped: Counter[Kind[Any]] = Counter()

    def extend(self, items: Iterable[Seen]) -> None:
        self.queue += items
        while len(self.items) > self.limit and self.queue:
            self._reduce(self.queue.pop(0))

    @property
    def items(self) -> list[Seen]:
        return self.values + self.oldest + self.queue

    def take(self, most: int) -> list[Seen]:
        taken = self.items[:most]
        self.values = [item for item in self.values if item not in taken]
        self.oldest = [item for item in self.oldest if item not in taken]
        self.queue = [item for item in self.queue if item not in taken]
        return taken

    def _reduce(self, item: Seen) -> None:
        kind, policy = item.kind, item.kind.overflow
        if not item.event:
            self._replace(lambda one: not one.event and _same(one, item))
            self.oldest.append(item)
        elif policy is Overflow.DROP_OLDEST:
            self.dropped[kind] += 1
            if not item.late:
                self._replace(lambda one: not one.event and _same(one, item))
                self.oldest.append(attrs.evolve(item, event=False))
        else:
            if policy is Overflow.LATEST_PER_SYMBOL:
                self.conflated[kind] += self._replace(lambda one: _same(one, item))
            elif policy is Overflow.LATEST_PER_SYMBOL_AND_TIME:
                self.conflated[kind] += self._replace(
                    lambda one: _same(one, item) and one.time == item.time
                )
            self.oldest.append(item)
            self._limit(kind, policy)

    def _limit(self, kind: Kind[Any], policy: Overflow) -> None:
        kept = [one for one in self.oldest if one.kind is kind and one.event]
        if policy is not Overflow.LATEST_PER_SYMBOL and len(kept) > self.most_kept:
            self.oldest.remove(kept[0])
            self.dropped[kind] += 1
            if kind.has_key and not kept[0].late:
                self.values = [one for one in self.values if not _same(one, kept[0])]
                self.values.append(attrs.evolve(kept[0], event=False))

    def _replace(self, is_replaced: Callable[[Seen], bool]) -> int:
        before = len(self.oldest)
        self.oldest = [one for one in self.oldest if not is_replaced(one)]
        return before - len(self.oldest)


def _same(one: Seen, other: Seen) -> bool:
    return (one.kind, one.symbol) == (other.kind, other.symbol)


SOME_KINDS = (QUOTES, TRADES, CANCELS, BARS, STATUSES, NEWS)
ITEMS = st.lists(
    st.tuples(
        st.sampled_from(SOME_KINDS),
        st.sampled_from(["A", "B", "C"]),
        st.integers(1, 3),  # a bar's minute
        st.booleans(),  # late, where that can be
        st.booleans(),  # a trade's key changes without an event
    ),
    max_size=12,
)


class BuffersOfKinds(RuleBasedStateMachine):
    """Both buffers get the same items of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ConflatingBuffer(8, most_kept=5)
        self.slow = SlowBufferOfKinds(8, most_kept=5)
        self.newest_minutes: dict[str, int] = {}
        self.put_in: list[Seen] = []
        self.taken: list[Seen] = []

    @rule(drawn=ITEMS)
    def put_in_some(self, drawn: list[tuple[Kind[Any], str, int, bool, bool]]) -> None:
        items = []
        for kind, symbol, minute, maybe_late, changed in drawn:
            late = maybe_late
            event = kind is not TRADES or not changed
            if kind is BARS:
                late = minute < self.newest_minutes.get(symbol, 0)
                self.newest_minutes[symbol] = max(minute, self.newest_minutes.get(symbol, 0))
            items.append(
                Seen(
                    kind,
                    "*" if kind is NEWS else symbol,
                    len(self.put_in) + len(items) + 1,
                    minute if kind is BARS else 0,
                    late=late and event and kind.may_be_late,
                    event=event,
                )
            )
        self.put_in += items
        for (kind, is_event), some in groupby(items, lambda item: (item.kind, item.event)):
            group = list(some)
            if is_event:
                self.buffer.add(RecordBatch(kind, [record_of(item) for item in group]))
            else:
                for item in group:
                    self.buffer.add(LatestChanged(kind, item.symbol, record_of(item)))
        self.buffer.add(RecordBatch(QUOTES, []))
        self.slow.extend(items)

    @rule(most=st.integers(0, 10))
    def take_some(self, most: int) -> None:
        taken = self._take(most)
        assert taken == self.slow.take(most)
        self.taken += taken

    def _take(self, most: int) -> list[Seen]:
        items = []
        for item in self.buffer.take(most):
            if isinstance(item, RecordBatch):
                items += [seen_of(item.kind, record, event=True) for record in item.records]
            elif isinstance(item, LatestChanged):
                items.append(seen_of(item.kind, item.record, event=False))
        return items

    @rule(limit=st.integers(0, 10))
    def change_the_limit(self, limit: int) -> None:
        self.buffer.limit = self.slow.limit = limit

    @invariant()
    def agrees(self) -> None:
        assert len(self.buffer) == len(self.slow.items)
        assert self.buffer.conflated == self.slow.conflated.total()
        assert Counter(self.buffer.conflated_of) == self.slow.conflated
        assert self.buffer.dropped_of == self.slow.dropped

    def teardown(self) -> None:
        everything = self.taken + self._take(10_000)
        assert not len(self.buffer)
        for kind in SOME_KINDS:
            events = [one for one in everything if one.kind is kind and one.event]
            into = [one for one in self.put_in if one.kind is kind and one.event]
            lost = self.buffer.conflated_of.get(kind, 0) + self.buffer.dropped_of[kind]
            assert len(into) == len(events) + lost, "nothing is lost uncounted"
            numbers = [one.number for one in events]
            assert numbers == sorted(set(numbers)), "in the order in which they came"
            if kind.has_key:
                assert keys(kind, everything) == keys(kind, self.put_in)


def keys(kind: Kind[Any], items: list[Seen]) -> dict[str, int]:
    """What the keys hold in the end, if each item is written in turn."""
    return {one.symbol: one.number for one in items if one.kind is kind and not one.late}


def record_of(item: Seen) -> Any:
    record = make_record(item.kind, item.symbol, item.number, item.time or item.number)
    if item.late:
        record.newest = False
    return record


def seen_of(kind: Kind[Any], record: Any, *, event: bool) -> Seen:
    late = kind.may_be_late and not record.newest
    time_ns = record.ts_event_ns if kind is BARS else 0
    return Seen(kind, record.symbol, record.seq, time_ns, late, event)


BuffersOfKinds.TestCase.settings = examples(100, stateful_step_count=30)
TestBuffersOfKinds = BuffersOfKinds.TestCase


def fill(buffer: ConflatingBuffer, kind: Kind[Any], count: int, symbol: str = "A") -> None:
    """Add records numbered from 1, a hundred at a time."""
    for start in range(1, count + 1, 100):
        numbers = range(start, min(start + 100, count + 1))
        buffer.add(RecordBatch(kind, [make_record(kind, symbol, number) for number in numbers]))


def taken_seqs(buffer: ConflatingBuffer, kind: Kind[Any]) -> list[int]:
    items = buffer.take(1_000_000)
    batches = [item for item in items if isinstance(item, RecordBatch) and item.kind is kind]
    return [record.seq for batch in batches for record in batch.records]


def test_the_oldest_trades_are_dropped_and_the_newest_of_a_symbol_reaches_its_key() -> None:
    buffer = ConflatingBuffer(100)
    fill(buffer, TRADES, 50, "QUIET")
    fill(buffer, TRADES, 1_000, "BUSY")
    dropped = buffer.dropped_of[TRADES]
    assert buffer.conflated == 0, "trades are never conflated silently"
    first, *rest = buffer.take(1_000)
    assert first == LatestChanged(TRADES, "QUIET", make_record(TRADES, "QUIET", 50))
    seqs = [record.seq for item in rest if isinstance(item, RecordBatch) for record in item.records]
    assert seqs == [*range(1_001 - len(seqs), 1_001)]
    assert dropped == 1_050 - len(seqs)


def test_a_dropped_late_trade_does_not_reach_the_key() -> None:
    buffer = ConflatingBuffer(0)
    trades = [make_record(TRADES, "A", 2), make_record(TRADES, "A", 1)]
    trades[1].newest = False
    buffer.add(RecordBatch(TRADES, trades))
    assert buffer.take(9) == [LatestChanged(TRADES, "A", trades[0])]
    assert buffer.dropped_of[TRADES] == 2


def test_a_canceled_value_stays_away_though_its_trade_was_dropped() -> None:
    buffer = ConflatingBuffer(0)
    fill(buffer, TRADES, 3)
    buffer.add(LatestChanged(TRADES, "A", None))
    assert buffer.take(9) == [LatestChanged(TRADES, "A", None)]


@pytest.mark.parametrize("kind", [STATUSES, CORRECTIONS, CANCELS, IMBALANCES, NEWS], ids=repr)
def test_what_must_not_be_lost_is_kept_while_quotes_give(kind: Kind[Any]) -> None:
    buffer = ConflatingBuffer(100)
    for _ in range(10):
        fill(buffer, QUOTES, 100)
        fill(buffer, kind, 50)
    assert buffer.conflated_of == {QUOTES: buffer.conflated}
    assert taken_seqs(buffer, kind) == [*range(1, 51)] * 10
    assert not buffer.dropped_of


@pytest.mark.parametrize("kind", [STATUSES, CORRECTIONS, NEWS], ids=repr)
def test_even_what_is_kept_is_bounded_and_counted(kind: Kind[Any]) -> None:
    buffer = ConflatingBuffer(100, most_kept=1_000)
    fill(buffer, kind, 5_000)
    assert len(buffer) <= 1_000 + 100 + 1
    assert buffer.dropped_of[kind] == 4_000
    assert taken_seqs(buffer, kind) == [*range(4_001, 5_001)]


def test_bars_are_conflated_per_symbol_and_minute() -> None:
    buffer = ConflatingBuffer(2)
    bars = [make_record(BARS, "A", number, minute) for number, minute in enumerate([1, 2, 1, 3, 2])]
    for bar in bars:
        buffer.add(RecordBatch(BARS, [bar]))
    taken = records_of(buffer.take(9))
    assert [(bar.ts_event_ns, bar.seq) for bar in taken] == [(1, 2), (3, 3), (2, 4)]
    assert buffer.conflated_of == {BARS: 2}
