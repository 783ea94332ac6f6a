"""Events applied to the known positions, among answers of the source. On virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from itertools import accumulate
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from hypothesis import assume, given
from hypothesis import strategies as st

from mdservice.errors import PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.cache import SHOWN_S, PositionCache
from mdservice.positions.trade_updates import TradeUpdate
from mdservice.testing import FakePositions, VirtualClock
from tests.examples import examples

EVERY_S = 5.0


def held(symbol: str, qty: str = "1", price: str = "10") -> Position:
    return Position(symbol, Decimal(qty), Decimal(price))


class Bench:
    """A cache with its source, and events whose time is now."""

    def __init__(self, *positions: Position, symbols: Sequence[str] = ()) -> None:
        self.source = FakePositions(positions)
        self.clock = VirtualClock()
        self.cache = PositionCache(self.source, EVERY_S, self.clock, symbols)
        self._count = 0

    def fill(
        self, symbol: str, change: str, position_qty: str, price: str = "10", **more: Any
    ) -> TradeUpdate:
        self._count += 1
        qty = Decimal(change)
        return TradeUpdate(
            **{
                "event": "fill",
                "timestamp_ns": self.clock.utc_ns() + 1,
                "symbol": symbol,
                "order_id": "o",
                "execution_id": f"e{self._count}",
                "side": "sell" if qty < 0 else "buy",
                "qty": abs(qty),
                "price": Decimal(price),
                "position_qty": Decimal(position_qty),
                **more,
            }
        )

    async def answered(self) -> None:
        """Ask the source, and let the time of the answer pass."""
        self.cache.follow_events()
        await self.cache.refresh()
        await anyio.sleep(0.1)

    async def poll(self) -> None:
        while True:
            await self.cache.refresh_when_due()

    def qty(self, symbol: str) -> str | None:
        position = self.cache.position(symbol)
        return None if position is None else str(position.qty)

    def average(self, symbol: str) -> Decimal | None:
        position = self.cache.position(symbol)
        return None if position is None else position.avg_entry_price


async def test_a_fill_changes_the_position_at_once(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"), held("MSFT"))
    await bench.answered()
    assert bench.cache.apply(bench.fill("AAPL", "5", "15", "13"))
    assert bench.qty("AAPL") == "15"
    assert bench.average("AAPL") == 11, "10 at 10 and 5 at 13"
    assert [each.symbol for each in bench.cache.positions] == ["AAPL", "MSFT"]
    assert bench.cache.applied == 1


async def test_a_first_fill_opens_and_the_last_one_closes(autojump_clock: Any) -> None:
    bench = Bench()
    await bench.answered()
    assert bench.cache.apply(bench.fill("BTC/USD", "0.5", "0.5", "60000", asset_class="crypto"))
    (position,) = bench.cache.positions
    assert (position.symbol, position.priced_by) == ("BTCUSD", "BTC/USD")
    assert (position.asset_class, position.current_price) == ("crypto", 60000)
    await anyio.sleep(0.1)
    assert bench.cache.apply(bench.fill("BTC/USD", "-0.5", "0"))
    assert bench.cache.positions == ()


async def test_a_contract_of_options_is_of_a_hundred_shares(autojump_clock: Any) -> None:
    bench = Bench()
    await bench.answered()
    bench.cache.apply(bench.fill("AAPL281215C00200000", "2", "2", "3.5"))
    (position,) = bench.cache.positions
    assert (position.asset_class, position.multiplier) == ("us_option", 100)


@pytest.mark.parametrize("before", [(), (held("AAPL", "10"),)], ids=["new", "known"])
async def test_a_fill_during_a_request_whose_answer_does_not_have_it_is_applied(
    before: Sequence[Position], autojump_clock: Any
) -> None:
    bench = Bench(*before)
    await bench.answered()
    bench.source.delay_s = 0.2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.cache.refresh)
        await anyio.sleep(0.1)
        qty = "15" if before else "5"
        update = bench.fill("AAPL", "5", qty)
    # The answer has come, and it was made before the fill.
    assert bench.cache.apply(update)
    assert bench.qty("AAPL") == qty
    assert not bench.cache.apply(update)


async def test_a_fill_during_a_request_whose_answer_has_it_is_not_applied_again(
    autojump_clock: Any,
) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    bench.source.delay_s = 0.2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.cache.refresh)
        await anyio.sleep(0.1)
        first, second = bench.fill("AAPL", "5", "15"), bench.fill("AAPL", "5", "20")
        bench.source.positions = (held("AAPL", "20"),)
    assert not bench.cache.apply(first)
    assert bench.qty("AAPL") == "20"
    assert not bench.cache.apply(second)
    assert bench.qty("AAPL") == "20"


async def test_a_fill_before_a_request_never_changes_its_answer(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    update = bench.fill("AAPL", "5", "15")
    await anyio.sleep(0.1)
    await bench.cache.refresh()
    assert not bench.cache.apply(update), "the source has had time to know it"
    assert bench.qty("AAPL") == "10"


async def test_a_repeated_event_changes_nothing(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    update = bench.fill("AAPL", "5", "15")
    bench.cache.apply(update)
    assert not bench.cache.apply(update)
    bench.cache.apply(bench.fill("AAPL", "5", "20"))
    assert not bench.cache.apply(update)
    assert bench.qty("AAPL") == "20"
    assert bench.cache.late == 2


async def test_a_late_event_does_not_turn_the_quantity_back(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    first = bench.fill("AAPL", "5", "15")
    await anyio.sleep(0.1)
    assert bench.cache.apply(bench.fill("AAPL", "5", "20"))
    assert not bench.cache.apply(first)
    assert bench.qty("AAPL") == "20"


async def test_an_event_before_the_last_answer_is_not_applied_but_asked_for(
    autojump_clock: Any,
) -> None:
    bench = Bench(held("AAPL", "10"))
    bench.source.delay_s = 0.5
    early = bench.fill("AAPL", "5", "15")
    await anyio.sleep(0.1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.poll)
        await anyio.sleep(2)  # the answer came
        bench.source.set(held("AAPL", "40"))
        assert not bench.cache.apply(early)
        assert bench.qty("AAPL") == "10"
        await anyio.sleep(0.51)
        assert bench.qty("AAPL") == "40", "asked at once, and not at the interval"
        tasks.cancel_scope.cancel()


async def test_an_answer_that_was_asked_before_a_fill_does_not_undo_it(
    autojump_clock: Any,
) -> None:
    bench = Bench(held("AAPL", "10"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.poll)
        await anyio.sleep(1)
        bench.source.delay_s = 3.0
        bench.cache.want()
        await anyio.sleep(2)
        bench.cache.apply(bench.fill("AAPL", "5", "15"))
        await anyio.sleep(1.5)
        assert bench.cache.answers == 2
        assert bench.qty("AAPL") == "15"
        bench.source.set(held("AAPL", "15", "10.5"))
        await anyio.sleep(7)
        assert (bench.qty("AAPL"), bench.average("AAPL")) == ("15", Decimal("10.5"))
        tasks.cancel_scope.cancel()
    assert bench.cache.differences() == []


async def test_a_fill_before_the_first_answer_counts(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    bench.source.delay_s = 2.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.poll)
        await anyio.sleep(1)
        assert not bench.cache.apply(bench.fill("AAPL", "5", "15", "13"))
        await anyio.sleep(1.5)
        assert (bench.qty("AAPL"), bench.average("AAPL")) == ("15", Decimal(11))
        tasks.cancel_scope.cancel()


async def test_a_lost_event_is_noticed_by_the_next_one(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.poll)
        await anyio.sleep(1)
        bench.source.set(held("AAPL", "30", "12.5"))
        bench.cache.apply(bench.fill("AAPL", "5", "30"))
        assert bench.qty("AAPL") == "30"
        await anyio.sleep(2)
        assert bench.average("AAPL") == Decimal("12.5"), "asked before the interval was over"
        tasks.cancel_scope.cancel()


async def test_a_difference_is_reported_once_and_the_answer_counts(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(held("AAPL", "10"), held("MSFT"))
    await bench.answered()
    bench.source.set(held("AAPL", "30"), held("MSFT"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.poll)
        await anyio.sleep(EVERY_S + 0.1)
        assert bench.qty("AAPL") == "30"
        assert bench.cache.differences() == []
        await anyio.sleep(2)
        (text,) = bench.cache.differences()
        assert "AAPL" in text
        assert bench.cache.differed == 1
        await anyio.sleep(SHOWN_S)
        assert bench.cache.differences() == []
        tasks.cancel_scope.cancel()
    told = [each for each in caplog.records if each.getMessage().startswith("positions_differed")]
    assert len(told) == 1


async def test_a_difference_that_a_late_event_explains_is_none(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    update = bench.fill("AAPL", "5", "15")
    bench.source.set(held("AAPL", "15"))
    await anyio.sleep(0.1)
    await bench.cache.refresh()
    await anyio.sleep(1)
    assert not bench.cache.apply(update)
    await anyio.sleep(10)
    assert bench.cache.differences() == []
    assert bench.cache.differed == 0


async def test_without_events_an_answer_differs_from_nothing(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.cache.refresh()
    bench.source.set(held("AAPL", "30"))
    await bench.cache.refresh()
    await anyio.sleep(10)
    assert bench.cache.differences() == []


async def test_events_of_other_symbols_than_the_chosen_are_ignored(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"), symbols=["AAPL", "BTCUSD"])
    await bench.answered()
    assert not bench.cache.apply(bench.fill("MSFT", "5", "5"))
    assert bench.cache.apply(bench.fill("BTC/USD", "5", "5"))


async def test_fills_of_one_moment_follow_each_other(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    now_ns = bench.clock.utc_ns() + 1
    parts = [
        bench.fill("AAPL", "5", str(10 + 5 * count), timestamp_ns=now_ns) for count in (1, 2, 3)
    ]
    assert all(map(bench.cache.apply, parts))
    assert bench.qty("AAPL") == "25"
    assert not any(map(bench.cache.apply, parts))
    assert bench.qty("AAPL") == "25"


async def test_the_senders_position_is_taken_as_it_is(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    given = Position("AAPL", Decimal(15), Decimal("10.123"), lastday_price=Decimal(9))
    assert bench.cache.apply(bench.fill("AAPL", "5", "15"), [given])
    assert bench.cache.positions == (given,)
    newer = held("AAPL", "70")
    await anyio.sleep(0.1)
    assert not bench.cache.apply(bench.fill("AAPL", "5", "20"), [newer]), "it knows a later event"
    await anyio.sleep(0.1)
    assert bench.cache.apply(bench.fill("AAPL", "-15", "0"), [None])
    assert bench.cache.positions == ()


async def test_a_senders_position_that_does_not_follow_is_asked_for(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.poll)
        await anyio.sleep(1)
        fetches = len(bench.source.fetches)
        of_another = held("AAPL", "505")
        assert not bench.cache.apply(bench.fill("AAPL", "5", "505"), [of_another])
        assert bench.qty("AAPL") == "10"
        bench.source.set(held("AAPL", "25"))
        await anyio.sleep(0.01)
        assert len(bench.source.fetches) == fetches + 1
        assert bench.qty("AAPL") == "25", "the answer counts at once"
        tasks.cancel_scope.cancel()


async def test_a_sender_that_does_not_have_its_event_yet_is_asked_until_it_has(
    autojump_clock: Any,
) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.poll)
        await anyio.sleep(1)
        update = bench.fill("AAPL", "5", "15")
        assert not bench.cache.apply(update, [held("AAPL", "10")])
        await anyio.sleep(0.1)
        bench.source.set(held("AAPL", "15"))
        await anyio.sleep(0.6)
        assert bench.qty("AAPL") == "15"
        tasks.cancel_scope.cancel()


async def test_a_change_wakes_those_who_wait_for_one(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.cache.change, bench.cache.version, 1000)
        await anyio.sleep(1)
        bench.cache.apply(bench.fill("AAPL", "5", "15"))
    assert anyio.current_time() < 10


async def test_a_source_that_fails_leaves_what_the_events_say(autojump_clock: Any) -> None:
    bench = Bench(held("AAPL", "10"))
    await bench.answered()
    bench.source.always = PositionsUnavailable("away")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.poll)
        await anyio.sleep(1)
        bench.cache.apply(bench.fill("MSFT", "5", "5"))
        await anyio.sleep(20)
        assert bench.qty("MSFT") == "5"
        assert bench.cache.warning() == "away"
        tasks.cancel_scope.cancel()


class Exchange:
    """An account in one symbol whose fills, events and answers have any delays."""

    def __init__(
        self,
        changes: Sequence[int],
        times: Sequence[float],
        deliveries: Sequence[Sequence[float]],
        answers: Sequence[tuple[float, float]],
    ) -> None:
        self.address = "the exchange"
        self.totals = [0, *accumulate(changes)]
        self.times = sorted(times)
        self.deliveries = deliveries
        self.answers = answers
        self.asked = 0

    async def fetch(self) -> list[Position]:
        before_s, after_s = self.answers[self.asked % len(self.answers)]
        self.asked += 1
        await anyio.sleep(before_s)
        index = sum(time_s <= anyio.current_time() for time_s in self.times)
        total = self.totals[index]
        await anyio.sleep(after_s)
        return [Position("AAPL", Decimal(total), Decimal(10))] if total else []

    async def aclose(self) -> None:
        """Nothing is open."""


def run_on_virtual_time(main: Callable[[], Any]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


delays = st.floats(0, 4).map(lambda number: round(number, 1))
counts = st.integers(1, 6)


@examples(300)
@given(st.data(), counts, st.floats(0, 3))
def test_any_order_repetition_and_loss_never_goes_back_and_ends_at_the_account(
    data: st.DataObject, count: int, ahead_s: float
) -> None:
    changes = data.draw(
        st.lists(st.integers(-9, 9).filter(bool), min_size=count, max_size=count), "changes"
    )
    assume(len({0, *accumulate(changes)}) == count + 1)
    times = data.draw(st.lists(delays.map(lambda s: 2 * s), min_size=count, max_size=count))
    deliveries = data.draw(
        st.lists(st.lists(delays, max_size=3), min_size=count, max_size=count), "deliveries"
    )
    answers = data.draw(st.lists(st.tuples(delays, delays), min_size=1, max_size=4), "answers")
    exchange = Exchange(changes, times, deliveries, answers)
    seen: list[int] = []

    async def main() -> None:
        clock = VirtualClock()
        start_ns = clock.utc_ns()
        clock.step(ahead_s)
        cache = PositionCache(exchange, EVERY_S, clock)

        def look() -> None:
            position = cache.position("AAPL")
            if cache.answers:
                seen.append(exchange.totals.index(int(position.qty or 0) if position else 0))

        async def deliver(index: int, delay_s: float) -> None:
            await anyio.sleep(exchange.times[index] + delay_s)
            cache.apply(
                TradeUpdate(
                    "fill",
                    start_ns + int(exchange.times[index] * 1e9),
                    "AAPL",
                    execution_id=str(index),
                    side="buy" if changes[index] > 0 else "sell",
                    qty=Decimal(abs(changes[index])),
                    price=Decimal(10),
                    position_qty=Decimal(exchange.totals[index + 1]),
                )
            )
            look()

        async def poll() -> None:
            while True:
                await cache.refresh_when_due()
                look()

        async with anyio.create_task_group() as tasks:
            cache.follow_events()
            tasks.start_soon(poll)
            for index, delays_s in enumerate(exchange.deliveries):
                for delay_s in delays_s:
                    tasks.start_soon(partial(deliver, index, delay_s))
            await anyio.sleep(60)
            tasks.cancel_scope.cancel()

    run_on_virtual_time(main)
    assert seen == sorted(seen), "a quantity went back"
    assert seen[-1] == count
