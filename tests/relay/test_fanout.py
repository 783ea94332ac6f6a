"""Who gets which record, and what waits for a client: both against naive models."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.feeds import CRYPTO, NEWS_FEED, STOCKS, Topic
from mdservice.model.kinds import BARS, CORRECTIONS, NEWS, ORDERBOOKS, QUOTES, TRADES
from mdservice.relay import fanout
from mdservice.relay.fanout import Backlog, Control, FanOut
from mdservice.relay.messages import Message
from tests.examples import examples
from tests.records import make_record

MOST_WAITING, MOST_BYTES, MOST_BEHIND, MOST_KEPT_BYTES = 8, 100, 6, 120


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOST_WAITING", "MOST_BYTES", "MOST_BEHIND", "MOST_KEPT_BYTES"):
        monkeypatch.setattr(fanout, name, globals()[name])


class FakeMessage(Message):
    """A message with the number that it has within its channel and symbol."""

    def __init__(
        self, channel: str, symbol: str, number: int, size: int = 1, *, is_whole: bool = False
    ) -> None:
        self.channel, self.symbol, self.number, self.size = channel, symbol, number, size
        self.latest_only = channel in ("quotes", "orderbooks")
        self.is_whole = is_whole

    def __repr__(self) -> str:
        return f"{self.channel}:{self.symbol}:{self.number}"

    def whole(self) -> FakeMessage:
        if self.channel != "orderbooks":
            return self
        return FakeMessage(self.channel, self.symbol, self.number, self.size, is_whole=True)


def quote(symbol: str = "A", number: int = 1, size: int = 1) -> Any:
    return FakeMessage("quotes", symbol, number, size)


def trade(symbol: str = "A", number: int = 1, size: int = 1) -> Any:
    return FakeMessage("trades", symbol, number, size)


def book(symbol: str = "A", number: int = 1) -> Any:
    return FakeMessage("orderbooks", symbol, number)


def drain(backlog: Backlog, most: int = 4, most_bytes: int = 1_000) -> list[Any]:
    """Everything that waits, in order; a frame with its records, a control by itself."""
    taken: list[Any] = []
    while (frame := backlog.take(most, most_bytes)) is not None:
        assert isinstance(frame, Control) or 0 < len(frame) <= most
        taken += [frame] if isinstance(frame, Control) else frame
    assert not backlog
    assert (len(backlog), backlog.controls, backlog.slow) == (0, 0, False)
    return taken


class TestBacklog:
    def test_an_empty_one_has_nothing(self) -> None:
        backlog = Backlog()
        assert not backlog
        assert backlog.take(10, 10) is None
        backlog.clear()
        backlog.drop({"quotes"}, {})
        assert len(backlog) == 0

    def test_keeps_the_order_and_puts_each_control_in_a_frame_of_its_own(self) -> None:
        backlog = Backlog()
        first, second = Control(b"1"), Control(b"2", closes=True)
        items = [quote("A", 1), trade("A", 1), first, quote("A", 2), quote("B", 1), second]
        for item in items:
            if isinstance(item, Control):
                backlog.add_control(item)
            else:
                assert backlog.add(item)
        assert (len(backlog), backlog.controls) == (4, 2)
        assert backlog.take(10, 100) == items[:2]
        assert backlog.take(10, 100) == first
        assert backlog.take(10, 100) == items[3:5]
        assert backlog.take(10, 100) == second
        assert backlog.take(10, 100) is None

    def test_a_frame_is_bounded_by_records_and_bytes(self) -> None:
        backlog = Backlog()
        for number in range(1, 8):
            backlog.add(quote("A", number, 10))
        assert [one.number for one in backlog.take(3, 1_000) or ()] == [1, 2, 3]  # type: ignore[union-attr]
        assert [one.number for one in backlog.take(100, 20) or ()] == [4, 5]  # type: ignore[union-attr]
        assert [one.number for one in backlog.take(100, 1) or ()] == [6]  # type: ignore[union-attr]
        assert [one.number for one in backlog.take(100, 1_000) or ()] == [7]  # type: ignore[union-attr]

    @pytest.mark.usefixtures("small")
    def test_a_burst_below_the_bound_loses_nothing(self) -> None:
        backlog = Backlog()
        sent = [quote("A", number) for number in range(MOST_WAITING)]
        assert all(map(backlog.add, sent))
        assert not backlog.slow
        assert drain(backlog) == sent
        assert backlog.conflated == 0

    @pytest.mark.usefixtures("small")
    @pytest.mark.parametrize("size", [1, MOST_BYTES // 2 + 1])
    def test_a_slow_client_gets_the_newest_quote_of_each_symbol(self, size: int) -> None:
        backlog = Backlog()
        number = 0
        while not backlog.slow:
            number += 1
            assert backlog.add(quote("AB"[number % 2], number, size))
        assert number == (MOST_WAITING + 1 if size == 1 else 2)
        newest = quote("C", number + 1)
        assert backlog.add(newest)
        taken = drain(backlog)
        assert {one.symbol: one.number for one in taken} == {
            "AB"[number % 2]: number, "BA"[number % 2]: number - 1, "C": number + 1
        }  # fmt: skip
        assert backlog.conflated == number - 2

    @pytest.mark.usefixtures("small")
    def test_a_client_that_has_received_everything_is_no_longer_slow(self) -> None:
        backlog = Backlog()
        for number in range(MOST_WAITING + 1):
            backlog.add(quote("A", number))
        assert backlog.slow
        drain(backlog)
        conflated = backlog.conflated
        sent = [quote("A", number) for number in range(MOST_WAITING)]
        assert all(map(backlog.add, sent))
        assert drain(backlog) == sent
        assert backlog.conflated == conflated

    @pytest.mark.usefixtures("small")
    def test_a_client_too_far_behind_in_trades_is_cut(self) -> None:
        backlog = Backlog()
        added = 0
        while backlog.add(trade("A", added)):
            assert backlog.add(quote("B", added))
            added += 1
            assert added < 100
        assert added == MOST_BEHIND
        backlog.clear()
        assert (len(backlog), backlog.slow, bool(backlog)) == (0, False, False)

    @pytest.mark.usefixtures("small")
    def test_a_client_too_many_bytes_behind_is_cut(self) -> None:
        backlog = Backlog()
        assert backlog.add(trade("A", 1, MOST_KEPT_BYTES))
        assert backlog.slow
        assert not backlog.add(trade("A", 2, 1))

    @pytest.mark.usefixtures("small")
    def test_quotes_do_not_wait_behind_endless_trades(self) -> None:
        backlog = Backlog()
        for number in range(MOST_WAITING + 1):
            backlog.add(quote("A", number))
        assert backlog.slow
        for number in range(4):
            backlog.add(trade("A", number))
        frame: Any = backlog.take(4, 1_000)
        assert [one.channel for one in frame] == ["trades", "trades", "quotes"]

    @pytest.mark.usefixtures("small")
    def test_a_large_record_does_not_keep_quotes_waiting(self) -> None:
        backlog = Backlog()
        for number in range(MOST_WAITING + 1):
            backlog.add(quote("A", number))
        backlog.add(trade("A", 1, 50))
        frame: Any = backlog.take(4, 40)
        assert [one.channel for one in frame] == ["trades", "quotes"]

    @pytest.mark.usefixtures("small")
    def test_a_symbol_that_is_conflated_keeps_its_turn(self) -> None:
        backlog = Backlog()
        for number in range(MOST_WAITING + 1):
            backlog.add(quote("A", number))
        backlog.add(quote("B", 1))
        backlog.add(quote("A", 99))
        assert [(one.symbol, one.number) for one in drain(backlog)] == [("A", 99), ("B", 1)]

    @pytest.mark.usefixtures("small")
    def test_a_control_does_not_wait_behind_conflated_quotes(self) -> None:
        backlog = Backlog()
        for number in range(MOST_WAITING + 1):
            backlog.add(quote("A", number))
        backlog.add_control(Control(b"x"))
        assert backlog.take(4, 100) == Control(b"x")

    def test_drop_removes_what_is_no_longer_subscribed(self) -> None:
        backlog = Backlog()
        kept = [trade("A"), quote("B"), book("A")]
        for item in [quote("A", 1), *kept, quote("A", 2)]:
            backlog.add(item)
        backlog.add_control(Control(b"x"))
        backlog.drop({"quotes"}, {Topic("quotes", "B")})
        assert (len(backlog), backlog.controls) == (3, 1)
        assert drain(backlog) == [*kept, Control(b"x")]
        assert backlog.conflated == 0

    def test_drop_of_every_symbol_keeps_those_subscribed_by_name(self) -> None:
        backlog = Backlog()
        for symbol in "ABC":
            backlog.add(quote(symbol))
        backlog.drop({"quotes"}, {Topic("quotes", "B")})
        assert [one.symbol for one in drain(backlog)] == ["B"]

    def test_drop_keeps_what_every_symbol_includes(self) -> None:
        backlog = Backlog()
        for symbol in "ABC":
            backlog.add(quote(symbol))
        backlog.drop({"quotes"}, {Topic("quotes", "*")})
        assert len(drain(backlog)) == 3

    @pytest.mark.usefixtures("small")
    def test_drop_removes_conflated_quotes_and_ends_slowness_with_them(self) -> None:
        backlog = Backlog()
        for number in range(MOST_WAITING + 1):
            backlog.add(quote("AB"[number % 2], number))
        backlog.drop({"quotes"}, {Topic("quotes", "B")})
        assert len(backlog) == 1
        assert backlog.slow
        backlog.drop({"quotes"}, {})
        assert (len(backlog), backlog.slow, bool(backlog)) == (0, False, False)


Step = tuple[str, str, str, int]


@examples(500)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("add"),
                st.sampled_from(["quotes", "trades", "orderbooks", "bars"]),
                st.sampled_from("AB"),
                st.sampled_from([1, 1, 1, 1, 30]),
            ),
            st.tuples(
                st.just("take"), st.just(""), st.just(""), st.sampled_from([1, 2, 3, 4, 100])
            ),
            st.tuples(st.just("control"), st.just(""), st.just(""), st.just(0)),
            st.tuples(
                st.just("drop"),
                st.sampled_from(["quotes", "trades", "orderbooks"]),
                st.sampled_from("AB"),
                st.just(0),
            ),
        ),
        max_size=80,
    )
)
def test_a_backlog_agrees_with_a_model(steps: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MOST_WAITING", "MOST_BYTES", "MOST_BEHIND", "MOST_KEPT_BYTES"):
            patch.setattr(fanout, name, globals()[name])
        run_steps(steps)


def run_steps(steps: list[Step]) -> None:
    backlog = Backlog()
    added: list[Any] = []  # what may still come, in order
    taken: list[Any] = []
    numbers: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], int] = {}
    dropped = controls = 0

    def check(frame: Any) -> None:
        for item in frame:
            if isinstance(item, Control):
                assert item is next(one for one in added if isinstance(one, Control))
                added.remove(item)
                continue
            key = item.channel, item.symbol
            same = [one for one in added if not isinstance(one, Control) if one_key(one) == key]
            assert item.number in [one.number for one in same], "twice, or out of order"
            skipped = [one for one in same if one.number < item.number]
            assert item.latest_only or not skipped, "lost"
            if item.channel == "orderbooks":
                before = first.get(key)
                assert item.is_whole or not skipped
                assert before is None or item.is_whole or item.number == before + 1
                first[key] = item.number
            gone = {id(one) for one in skipped}
            added[:] = [
                one
                for one in added
                if id(one) not in gone
                and not (
                    not isinstance(one, Control)
                    and one_key(one) == key
                    and one.number == item.number
                )
            ]
            taken.append(item)

    def one_key(one: Any) -> tuple[str, str]:
        return one.channel, one.symbol

    slow = False
    for step, channel, symbol, size in steps:
        if step == "add":
            numbers[channel, symbol] += 1
            message: Any = FakeMessage(channel, symbol, numbers[channel, symbol], size)
            if channel == "orderbooks" and (channel, symbol) not in first:
                message = message.whole()  # as a new subscriber gets
                first[channel, symbol] = message.number - 1
            fits = backlog.add(message)
            added.append(message)
            others = [one for one in added if isinstance(one, FakeMessage) and not one.latest_only]
            slow = backlog.slow
            behind = len(others) > MOST_BEHIND
            behind |= sum(one.size for one in others) > MOST_KEPT_BYTES
            assert fits is not (slow and behind)
            if not fits:
                return
        elif step == "take":
            was_slow = backlog.slow
            frame = backlog.take(size, 1_000)
            if frame is None:
                assert not backlog
            elif isinstance(frame, Control):
                check([frame])
            else:
                assert 0 < len(frame) <= max(size, 2)
                if not was_slow:
                    assert frame == added[: len(frame)], "not in order"
                check(frame)
        elif step == "control":
            controls += 1
            control = Control(b"%d" % controls)
            backlog.add_control(control)
            added.append(control)
        else:
            gone = [one for one in added if isinstance(one, FakeMessage)]
            gone = [one for one in gone if one_key(one) == (channel, symbol)]
            still = {Topic(channel, other) for other in "AB" if other != symbol}
            waiting = len(backlog)
            backlog.drop({channel}, still)
            dropped += waiting - len(backlog)
            first.pop((channel, symbol), None)
            lost = {id(one) for one in gone}
            added[:] = [one for one in added if id(one) not in lost]
            # those that were conflated away before the drop are counted as such
        total = sum(numbers.values())
        assert backlog.conflated == total - len(taken) - len(backlog) - dropped
        assert backlog.controls == sum(isinstance(one, Control) for one in added)
        assert bool(backlog) == bool(len(backlog) or backlog.controls)
    while (frame := backlog.take(3, 40)) is not None:
        check([frame] if isinstance(frame, Control) else frame)
    assert not added, "the newest of each symbol must come"
    assert not backlog.slow


class FakeClient:
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.got: list[Message] = []

    def receive(self, message: Message) -> None:
        self.got.append(message)

    def take(self) -> list[tuple[str, str]]:
        got, self.got = self.got, []
        return [(message.channel, message.symbol) for message in got]


def topics(*texts: str) -> list[Topic]:
    return [Topic(*text.split(":")) for text in texts]


class TestFanOut:
    def test_records_go_to_those_who_want_them(self) -> None:
        fan_out, one, other = FanOut(STOCKS), FakeClient(), FakeClient()
        fan_out.add(one, topics("quotes:AAPL", "quotes:MSFT"))
        fan_out.add(other, topics("quotes:*", "trades:AAPL"))
        fan_out.offer(QUOTES, [make_record(QUOTES, name) for name in ("AAPL", "TSLA", "MSFT")])
        fan_out.offer(TRADES, [make_record(TRADES, name) for name in ("AAPL", "TSLA")])
        assert one.take() == [("quotes", "AAPL"), ("quotes", "MSFT")]
        assert other.take() == [
            ("quotes", "AAPL"), ("quotes", "TSLA"), ("quotes", "MSFT"), ("trades", "AAPL"),
        ]  # fmt: skip

    def test_all_get_the_same_message(self) -> None:
        fan_out, one, other = FanOut(STOCKS), FakeClient(), FakeClient()
        fan_out.add(one, topics("quotes:AAPL"))
        fan_out.add(other, topics("quotes:*"))
        fan_out.offer(QUOTES, [make_record(QUOTES)])
        assert one.got[0] is other.got[0]

    def test_corrections_come_with_trades(self) -> None:
        fan_out, client = FanOut(STOCKS), FakeClient()
        fan_out.add(client, topics("trades:AAPL"))
        fan_out.offer(CORRECTIONS, [make_record(CORRECTIONS), make_record(CORRECTIONS, "MSFT")])
        assert client.take() == [("trades", "AAPL")]

    def test_bars_and_updated_bars_are_apart(self) -> None:
        fan_out, bars, updated = FanOut(STOCKS), FakeClient(), FakeClient()
        fan_out.add(bars, topics("bars:AAPL"))
        fan_out.add(updated, topics("updatedBars:AAPL"))
        bar = make_record(BARS)
        fan_out.offer(BARS, [bar, attrs.evolve(bar, updated=True), make_record(BARS, "MSFT")])
        assert bars.take() == [("bars", "AAPL")]
        assert updated.take() == [("updatedBars", "AAPL")]

    def test_an_article_comes_once(self) -> None:
        fan_out, client, every = FanOut(NEWS_FEED), FakeClient(), FakeClient()
        fan_out.add(client, topics("news:AAPL", "news:MSFT"))
        fan_out.add(every, topics("news:AAPL", "news:*"))
        article = attrs.evolve(make_record(NEWS), symbols=("TSLA", "AAPL", "MSFT"))
        fan_out.offer(NEWS, [article, attrs.evolve(article, symbols=("TSLA",))])
        assert len(client.take()) == 1
        assert len(every.take()) == 2

    def test_without_receivers_no_message_is_made(self) -> None:
        fan_out, client = FanOut(CRYPTO), FakeClient()
        fan_out.offer(ORDERBOOKS, [object()])  # type: ignore[list-item]
        fan_out.add(client, topics("quotes:BTC/USD"))
        fan_out.discard(client)
        fan_out.discard(client)
        fan_out.remove(client, topics("quotes:*", "trades:AAPL"))
        fan_out.offer(ORDERBOOKS, [object()])  # type: ignore[list-item]
        assert client.got == []


NAMES = ("A", "B", "*")
CLIENTS = st.integers(0, 2)
SOME = st.lists(
    st.builds(Topic, st.sampled_from(["quotes", "trades", "bars", "updatedBars"]),
              st.sampled_from(NAMES)),
    max_size=4,
)  # fmt: skip


@examples(500)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["add", "remove"]), CLIENTS, SOME),
            st.tuples(st.just("discard"), CLIENTS, st.just([])),
            st.tuples(
                st.just("offer"),
                st.sampled_from([0, 1, 2, 3]),
                st.lists(st.sampled_from("ABC"), max_size=4),
            ),
        ),
        max_size=20,
    )
)
def test_a_fan_out_agrees_with_a_model(steps: list[tuple[str, int, list[Any]]]) -> None:
    kinds = (QUOTES, TRADES, CORRECTIONS, BARS)
    fan_out = FanOut(STOCKS)
    clients = [FakeClient() for _ in range(3)]
    wanted: list[set[Topic]] = [set() for _ in clients]
    for step, number, given_ in steps:
        if step == "add":
            fan_out.add(clients[number], given_)
            wanted[number] |= set(given_)
        elif step == "remove":
            fan_out.remove(clients[number], given_)
            wanted[number] -= set(given_)
        elif step == "discard":
            fan_out.discard(clients[number])
            wanted[number].clear()
        else:
            kind = kinds[number]
            records = [make_record(kind, symbol, n) for n, symbol in enumerate(given_, 1)]
            if kind is BARS:
                records = [attrs.evolve(one, updated=one.seq % 2 == 0) for one in records]
            fan_out.offer(kind, records)
            for client, mine in zip(clients, wanted, strict=True):
                expected = [
                    (channel, record.symbol)
                    for record in records
                    for channel in [channel_of(kind, record)]
                    if mine & {Topic(channel, record.symbol), Topic(channel, "*")}
                ]
                assert client.take() == expected


def channel_of(kind: Any, record: Any) -> str:
    if kind is BARS:
        return "updatedBars" if record.updated else "bars"
    return str(kind.topics[0])
