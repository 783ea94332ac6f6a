"""The buffer that loses old quotes before new ones, against a slow one on a plain list."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mdservice.model.events import FeedStatus, RecordBatch, RoutedItem
from mdservice.model.kinds import QUOTES, Kind
from mdservice.model.quote import Quote
from mdservice.publish.conflation import ConflatingBuffer

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


Buffers.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
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
