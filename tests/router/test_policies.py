"""Trades, statuses and news, bars and order books: each policy against a slow reading of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.bar import Bar, bar_identity
from mdservice.model.events import LatestChanged
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    KINDS,
    NEWS,
    ORDERBOOKS,
    STATUSES,
    TRADES,
    Kind,
    Order,
)
from mdservice.model.order_book import OrderBook
from mdservice.model.trade import Cancel, Correction, Trade, trade_identity
from mdservice.router import policies
from mdservice.router.policies import (
    MOST_BARS,
    MOST_RECENT,
    KeepAll,
    Merge,
    ReplaceSameTime,
    TradeSequencer,
    make_sequencer,
)
from mdservice.router.sequencer import Routed, Sequencer
from tests.examples import examples
from tests.records import make_record

S_NS = 10**9
NOW_NS = 1_795_189_904 * S_NS
TOLERANCE_NS = 60 * S_NS
HORIZON_NS = NOW_NS + TOLERANCE_NS
SYMBOLS = ("AAPL", "MSFT")


def trade(
    trade_id: int | None, at: int = 0, symbol: str = "AAPL", price: float = 1.0, **more: Any
) -> Trade:
    """A trade so many nanoseconds after now."""
    values = {"size": 1, "exchange": "V", "conditions": ("@",), "tape": "C", **more}
    return Trade(symbol, price, id=trade_id, ts_event_ns=NOW_NS + at, ts_recv_ns=NOW_NS, **values)


def correction(trade_id: int, corrected_id: int, price: float = 9.0, **more: Any) -> Correction:
    values = {"symbol": "AAPL", "exchange": "V", "tape": "C", "ts_event_ns": NOW_NS + 50, **more}
    return Correction(
        original_id=trade_id,
        original_price=1.0,
        original_size=1,
        original_conditions=("@",),
        corrected_id=corrected_id,
        corrected_price=price,
        corrected_size=5,
        corrected_conditions=("@", "I"),
        ts_recv_ns=0,
        **values,
    )


def cancel(trade_id: int, **more: Any) -> Cancel:
    values = {"symbol": "AAPL", "exchange": "V", "tape": "C", "ts_event_ns": NOW_NS + 60, **more}
    return Cancel(id=trade_id, price=1.0, size=1, action="cancel", ts_recv_ns=0, **values)


def bar(start: int, close: float = 1.0, symbol: str = "AAPL") -> Bar:
    return Bar(symbol, 1.0, 9.0, 1.0, close, 100, 3, None, NOW_NS + start, NOW_NS)


def book(at: int, bids: Any = (), asks: Any = (), *, whole: bool = False) -> OrderBook:
    return OrderBook("BTC/USD", tuple(bids), tuple(asks), NOW_NS + at, NOW_NS, whole=whole)


def route(sequencer: Sequencer[Any], *records: Any) -> Routed[Any]:
    return sequencer.route(records, NOW_NS, TOLERANCE_NS)


def copies(records: Iterable[Any]) -> list[Any]:
    return [attrs.evolve(record) for record in records]


def filled(sequencer: Sequencer[Any], past: Sequence[Any], live: Sequence[Any] = ()) -> list[Any]:
    """Route a repair as the router does; the records that it brings out."""
    before = sequencer.take_echoes()
    missing, echoes = sequencer.fill(past, live)
    accepted = route(sequencer, *missing).accepted
    sequencer.expect_again(echoes, before)
    return accepted


def ids(records: Iterable[Trade]) -> list[Any]:
    return [record.id for record in records]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_sequencer_of_its_policy(kind: Kind[Any]) -> None:
    sequencer = make_sequencer(kind)
    assert sequencer.in_order == (kind.order in (Order.DROP_OLDER, Order.MERGE))
    record = make_record(kind, at_ns=NOW_NS)
    assert route(sequencer, record).accepted == [record]
    assert record.seq == 1


# ---- trades, statuses and all else that is kept


trades = st.builds(
    trade,
    st.integers(0, 6),
    st.sampled_from([*range(4), TOLERANCE_NS, TOLERANCE_NS + 1]),
    st.sampled_from(SYMBOLS),
)


def kept(arriving: Iterable[Trade]) -> tuple[list[Trade], int, int]:
    """The policy, sentence by sentence, looking at the whole past each time."""
    accepted: list[Trade] = []
    repeats = future = 0
    for one in arriving:
        past = [other for other in accepted if other.symbol == one.symbol]
        if one.ts_event_ns > HORIZON_NS:
            future += 1
        elif one.id is not None and trade_identity(one) in map(trade_identity, past):
            repeats += 1
        else:
            newest = all(other.ts_event_ns <= one.ts_event_ns for other in past)
            accepted.append(attrs.evolve(one, seq=len(past) + 1, newest=newest))
    return accepted, repeats, future


def newest_of(accepted: Iterable[Any]) -> dict[str, Any]:
    """The newest record of each symbol by time; of those with one time, the last."""
    newest: dict[str, Any] = {}
    for one in accepted:
        if one.symbol not in newest or one.ts_event_ns >= newest[one.symbol].ts_event_ns:
            newest[one.symbol] = one
    return newest


@examples(200)
@given(st.lists(st.lists(trades, max_size=8), max_size=8))
def test_each_trade_is_accepted_once_and_late_ones_too(batches: list[list[Trade]]) -> None:
    expected, repeats, future = kept(one for batch in batches for one in batch)
    sequencer = TradeSequencer()
    results = [route(sequencer, *copies(batch)) for batch in batches]
    accepted = [one for result in results for one in result.accepted]
    assert accepted == expected
    assert [one.newest for one in accepted] == [one.newest for one in expected]
    assert sum(result.rejected for result in results) == repeats
    assert sum(len(result.ahead_ns) for result in results) == future
    latest = newest_of(expected)
    assert {symbol: sequencer.latest(symbol) for symbol in latest} == latest
    assert len(sequencer) == len(latest)


@examples(100)
@given(st.lists(trades.map(lambda one: attrs.evolve(one, id=None)), max_size=20))
def test_option_trades_of_the_stream_are_all_accepted(arriving: list[Trade]) -> None:
    expected, _, _ = kept(arriving)
    assert route(TradeSequencer(), *copies(arriving)).accepted == expected


@examples(100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=20))
def test_the_newest_status_by_time_is_the_latest(pairs: list[tuple[int, int]]) -> None:
    arriving = [make_record(STATUSES, "AAPL", 1 + n, NOW_NS + at) for n, at in pairs]
    sequencer = make_sequencer(STATUSES)
    accepted = route(sequencer, *arriving).accepted
    keys = [(one.ts_event_ns, one.reason_code) for one in arriving]
    assert [(one.ts_event_ns, one.reason_code) for one in accepted] == list(dict.fromkeys(keys))
    assert [one.seq for one in accepted] == list(range(1, len(accepted) + 1))
    for place, one in enumerate(accepted):
        before = accepted[:place]
        assert one.newest == all(other.ts_event_ns <= one.ts_event_ns for other in before)
    if accepted:
        assert sequencer.latest("AAPL") is newest_of(accepted)["AAPL"]


@pytest.mark.parametrize("kind", [CORRECTIONS, CANCELS, NEWS])
def test_a_kind_without_keys_is_kept_too(kind: Kind[Any]) -> None:
    sequencer = make_sequencer(kind)
    new, old = make_record(kind, number=2, at_ns=NOW_NS), make_record(kind, at_ns=NOW_NS - 1)
    again = attrs.evolve(new, ts_recv_ns=7, seq=0)
    routed = route(sequencer, new, old, again)
    assert (routed.accepted, routed.rejected) == ([new, old], 1)
    assert [new.seq, old.seq] == [1, 2]


@pytest.mark.parametrize(
    ("more", "accepted"),
    [
        ({}, 1),
        ({"exchange": "Q"}, 2),
        ({"tape": "A"}, 2),
        ({"symbol": "MSFT"}, 2),
        ({"at": 1}, 1),
        ({"price": 2.0}, 1),
    ],
)
def test_a_trade_is_the_same_by_exchange_tape_id_and_date(more: Any, accepted: int) -> None:
    assert len(route(TradeSequencer(), trade(7), trade(7, **more)).accepted) == accepted


def test_the_id_of_yesterday_is_another_trade_but_not_of_crypto() -> None:
    day_ns = 24 * 3_600 * S_NS
    assert len(route(TradeSequencer(), trade(7, -day_ns), trade(7)).accepted) == 2
    crypto = {"exchange": None, "tape": None}
    pair = (trade(7, -day_ns, **crypto), trade(7, **crypto))
    assert len(route(TradeSequencer(), *pair).accepted) == 1


def test_repeats_are_known_until_twice_as_many_came_and_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policies, "MOST_REMEMBERED", 10)
    sequencer = TradeSequencer()
    for number in range(100):
        assert len(route(sequencer, trade(number, number)).accepted) == 1
        recent = [trade(n, n) for n in range(max(0, number - 9), number + 1)]
        assert route(sequencer, *recent).accepted == []
        assert len(sequencer._young) + len(sequencer._old) <= 20
    assert len(route(sequencer, trade(0, 0)).accepted) == 1, "it is forgotten"
    assert sequencer.not_out_yet([trade(5, 5)]) == [], "history has it because it was out"


# ---- repairs of trades


@st.composite
def outages(draw: Any, *, options: bool) -> tuple[list[Trade], list[Trade], list[Trade]]:
    """Trades before, in and after an outage, in the order of arrival, some of them late."""
    made: list[Trade] = []
    for number in range(draw(st.integers(0, 14))):
        at = max(0, number // 2 - draw(st.sampled_from([0, 0, 0, 1, 2])))
        price = draw(st.sampled_from([1.0, 2.0])) if options else 1.0
        made.append(trade(None if options else number, at, draw(st.sampled_from(SYMBOLS)), price))
    start = draw(st.integers(0, len(made)))
    end = draw(st.integers(start, len(made)))
    return made[:start], made[start:end], made[end:]


def history_of(records: Iterable[Trade]) -> list[Trade]:
    return sorted(copies(records), key=lambda one: (one.symbol, one.ts_event_ns))


def counted(records: Iterable[Trade]) -> Counter[Hashable]:
    return Counter(map(trade_identity, records))


@examples(300)
@given(st.booleans().flatmap(lambda options: outages(options=options)), st.integers(0, 3))
def test_a_repair_brings_each_trade_once_also_with_a_history_that_lags(
    parts: tuple[list[Trade], list[Trade], list[Trade]], lag: int
) -> None:
    before, missed, live = parts
    sequencer = TradeSequencer()
    out = route(sequencer, *copies(before)).accepted
    sequencer.lose(SYMBOLS)
    every = [*before, *missed, *live]
    horizon = max((one.ts_event_ns for one in every), default=0) - lag
    past = history_of(one for one in every if one.ts_event_ns <= horizon)
    out = [*out, *filled(sequencer, past, copies(live))]
    streamed = counted([*before, *live])
    assert counted(out) == streamed + (counted(past) - streamed)
    if not lag:
        assert counted(out) == counted(every)
    numbers = {symbol: [one.seq for one in out if one.symbol == symbol] for symbol in SYMBOLS}
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())
    latest = newest_of(out)
    assert {s: sequencer.latest(s) for s in latest} == latest


@examples(200)
@given(st.booleans().flatmap(lambda options: outages(options=options)))
def test_the_stream_may_still_send_what_history_gave(
    parts: tuple[list[Trade], list[Trade], list[Trade]],
) -> None:
    before, missed, live = parts
    sequencer = TradeSequencer()
    out = route(sequencer, *copies(before)).accepted
    sequencer.lose(SYMBOLS)
    out = [*out, *filled(sequencer, history_of([*before, *missed, *live]))]
    routed = route(sequencer, *copies(live))
    assert routed.accepted == []
    assert routed.rejected == 0, "an echo does not count"
    assert counted(out) == counted([*before, *missed, *live])


@examples(200)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=12), st.randoms())
def test_through_many_outages_each_trade_is_out_once_with_a_bounded_memory(
    parts: list[tuple[bool, int]], rng: Any
) -> None:
    """Trades are up to two nanoseconds late; history is asked from five before the loss."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "MOST_REMEMBERED", 20)
        sequencer = TradeSequencer()
        market: list[Trade] = [trade(0, 0), trade(1, 0, "MSFT")]
        out = route(sequencer, *copies(market)).accepted
        for connected, count in parts:
            first = len(market)
            for number in range(first, first + count):
                at = number // 2 + 2 - rng.choice([0, 0, 1, 2])
                market.append(trade(number, at, rng.choice(SYMBOLS)))
            if connected:
                out += route(sequencer, *copies(market[first:])).accepted
                continue
            since_ns = (sequencer.newest_ns() or 0) - 5
            sequencer.lose(SYMBOLS)
            past = history_of(one for one in market if one.ts_event_ns >= since_ns)
            held = copies(market[len(market) - rng.randint(0, count) :])
            out += filled(sequencer, past, held)
        assert counted(out) == counted(market)
        latest = newest_of(out)
        assert {s: sequencer.latest(s) for s in latest} == latest


def test_a_late_trade_of_a_repair_is_published_and_is_not_the_latest() -> None:
    sequencer = TradeSequencer()
    route(sequencer, trade(1, 10))
    (late,) = filled(sequencer, [trade(2, 5), trade(1, 10)])
    assert (late.id, late.seq, late.newest) == (2, 2, False)
    latest = sequencer.latest("AAPL")
    assert latest is not None
    assert latest.id == 1


def test_after_an_earlier_run_history_brings_only_what_came_after_its_last_trade() -> None:
    sequencer = TradeSequencer()
    sequencer.start_from([trade(3, 10, seq=30)], resuming=True)
    past = [trade(1, 9), trade(2, 10), trade(3, 10), trade(4, 10), trade(5, 11)]
    assert ids(filled(sequencer, past, [trade(5, 11), trade(6, 8)])) == [6, 4, 5]
    latest = sequencer.latest("AAPL")
    assert latest is not None
    assert (latest.id, latest.seq) == (5, 3)


# ---- first prices of trades


def first(sequencer: Sequencer[Any], *records: Any, asked_ns: int = NOW_NS + 1) -> list[Any]:
    asked = {record.symbol: asked_ns for record in records}
    return sequencer.route_first(records, asked, NOW_NS, TOLERANCE_NS).accepted


def test_a_first_price_that_the_stream_repeats_is_published_once() -> None:
    for trade_id in (7, None):
        sequencer = TradeSequencer()
        assert len(first(sequencer, trade(trade_id, 5))) == 1
        routed = route(sequencer, trade(trade_id, 4, price=2.0, exchange="Q"), trade(trade_id, 5))
        assert [one.ts_event_ns - NOW_NS for one in routed.accepted] == [4]
        assert routed.rejected == 0
        assert not sequencer.is_first("AAPL")


def test_a_first_price_is_not_taken_where_the_stream_has_a_newer_trade() -> None:
    sequencer = TradeSequencer()
    route(sequencer, trade(1, 5))
    fetched = sequencer.route_first([trade(2, 4)], {"AAPL": NOW_NS + 1}, NOW_NS, TOLERANCE_NS)
    assert (fetched.accepted, list(fetched.known)) == ([], ["AAPL"])
    assert ids(first(sequencer, trade(2, 6))) == [2]


# ---- corrections and cancellations


@pytest.fixture
def three() -> TradeSequencer:
    sequencer = TradeSequencer()
    route(sequencer, trade(1, 1), trade(2, 2), trade(3, 3))
    return sequencer


def test_a_corrected_latest_trade_has_the_corrected_values_and_the_original_time_and_number(
    three: TradeSequencer,
) -> None:
    changed = three.correct(correction(3, 33))
    expected = trade(33, 3, price=9.0, size=5, conditions=("@", "I"), seq=3)
    assert changed == LatestChanged(TRADES, "AAPL", expected)
    assert three.latest("AAPL") == expected
    assert route(three, trade(33, 3)).accepted == [], "the corrected trade is not a new one"


def test_a_corrected_trade_that_is_not_the_latest_changes_it_when_it_becomes_that(
    three: TradeSequencer,
) -> None:
    assert three.correct(correction(2, 22)) is None
    changed = three.cancel(cancel(3))
    assert changed is not None
    assert changed.record == trade(22, 2, price=9.0, size=5, conditions=("@", "I"), seq=2)


def test_without_the_latest_trade_the_newest_remaining_one_is_the_latest(
    three: TradeSequencer,
) -> None:
    assert three.cancel(cancel(2)) is None
    changed = three.cancel(cancel(3))
    assert changed == LatestChanged(TRADES, "AAPL", trade(1, 1, seq=1)), "2 is canceled too"
    assert three.cancel(cancel(1)) == LatestChanged(TRADES, "AAPL", None)
    assert three.latest("AAPL") is None
    assert three.last_ns("AAPL") is None
    (later,) = route(three, trade(4, 0)).accepted
    assert (later.seq, later.newest) == (4, True)


def test_a_late_trade_can_be_the_newest_that_remains(three: TradeSequencer) -> None:
    route(three, trade(5, 9), trade(4, 4))
    changed = three.cancel(cancel(5))
    assert changed is not None
    assert changed.record is not None
    assert changed.record.id == 4


@pytest.mark.parametrize(
    "other", [{"exchange": "Q"}, {"tape": "A"}, {"symbol": "MSFT"}, {"ts_event_ns": NOW_NS * 2}]
)
def test_a_change_is_of_the_trade_with_its_exchange_tape_id_and_date(
    three: TradeSequencer, other: dict[str, Any]
) -> None:
    assert three.cancel(cancel(3, **other)) is None
    assert three.correct(correction(3, 33, **other)) is None
    latest = three.latest("AAPL")
    assert latest is not None
    assert (latest.id, latest.price) == (3, 1.0)


def test_a_canceled_trade_does_not_come_again(three: TradeSequencer) -> None:
    three.cancel(cancel(3))
    three.cancel(cancel(8))  # it was missed
    assert ids(filled(three, [trade(3, 3), trade(4, 3), trade(8, 5)])) == [4]
    three.cancel(cancel(4))
    assert first(three, trade(3, 3), asked_ns=NOW_NS * 2) == [], "REST does not know it yet"


def test_of_an_earlier_run_the_latest_trade_is_corrected_and_canceled() -> None:
    sequencer = TradeSequencer()
    sequencer.start_from([trade(7, 1, seq=70)], resuming=False)
    changed = sequencer.correct(correction(7, 77))
    assert changed is not None
    assert changed.record is not None
    assert (changed.record.id, changed.record.seq) == (77, 70)
    assert sequencer.newest_ns() is None, "it is not of this run"
    route(sequencer, trade(8, 2))
    back = sequencer.cancel(cancel(8))
    assert back is not None
    assert back.record is changed.record
    assert sequencer.latest("AAPL") is changed.record
    assert sequencer.cancel(cancel(77)) == LatestChanged(TRADES, "AAPL", None)


def test_only_the_newest_trades_are_kept_for_cancellations() -> None:
    sequencer = TradeSequencer()
    route(sequencer, *(trade(number, number) for number in range(1_000)))
    assert sum(map(len, sequencer._recent.values())) == MOST_RECENT
    route(sequencer, *(trade(1_000 + number, number) for number in range(100)))  # late ones
    for number in range(999, 999 - MOST_RECENT, -1):
        changed = sequencer.cancel(cancel(number))
        assert changed is not None
    assert changed.record is None


changes = st.one_of(
    st.builds(trade, st.integers(0, 5), st.integers(0, 6)),
    st.builds(correction, st.integers(0, 7), st.integers(6, 7), st.sampled_from([2.0, 3.0])),
    st.builds(cancel, st.integers(0, 7)),
)


@examples(300)
@given(st.lists(changes, max_size=8))
def test_corrections_and_cancellations_agree_with_a_table_of_all_trades(
    arriving: list[Trade | Correction | Cancel],
) -> None:
    sequencer = TradeSequencer()
    table: list[Trade] = []
    gone: set[Any] = set()
    count = 0

    def newest() -> Trade | None:
        return newest_of(table).get("AAPL")

    for one in copies(arriving):
        before = newest()
        if isinstance(one, Trade):
            accepted = route(sequencer, one).accepted
            if one.id in gone or one.id in ids(table):
                assert accepted == []
                continue
            count += 1
            assert [each.seq for each in accepted] == [count]
            table.append(one)
            assert one.newest == (newest() is one)
            continue
        named = one.id if isinstance(one, Cancel) else one.original_id
        place = next((at for at, each in enumerate(table) if each.id == named), None)
        if isinstance(one, Cancel):
            changed = sequencer.cancel(one)
            gone.add(named)
            if place is not None:
                del table[place]
        else:
            changed = sequencer.correct(one)
            gone.update((one.original_id, one.corrected_id) if place is not None else ())
            gone.add(one.corrected_id)
            if place is not None:
                table[place] = attrs.evolve(
                    table[place],
                    id=one.corrected_id,
                    price=one.corrected_price,
                    size=one.corrected_size,
                    conditions=one.corrected_conditions,
                )
        after = newest()
        if after == before:
            assert changed is None or changed.record == before
        else:
            assert changed == LatestChanged(TRADES, "AAPL", after)
        assert sequencer.latest("AAPL") == after


# ---- bars


bars = st.builds(
    bar,
    st.sampled_from([*range(4), TOLERANCE_NS, TOLERANCE_NS + 1]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(SYMBOLS),
)


def replaced(arriving: Iterable[Bar]) -> tuple[list[Bar], int, int]:
    """The policy, sentence by sentence, looking at the whole past each time."""
    accepted: list[Bar] = []
    repeats = future = 0
    for one in arriving:
        past = [other for other in accepted if other.symbol == one.symbol]
        versions = [other for other in past if other.ts_event_ns == one.ts_event_ns]
        if one.ts_event_ns > HORIZON_NS:
            future += 1
        elif versions and bar_identity(versions[-1]) == bar_identity(one):
            repeats += 1
        else:
            newest = all(other.ts_event_ns <= one.ts_event_ns for other in past)
            more = {"seq": len(past) + 1, "updated": bool(versions), "newest": newest}
            accepted.append(attrs.evolve(one, **more))
    return accepted, repeats, future


@examples(200)
@given(st.lists(st.lists(bars, max_size=8), max_size=8))
def test_each_version_of_a_bar_is_accepted_once(batches: list[list[Bar]]) -> None:
    expected, repeats, future = replaced(one for batch in batches for one in batch)
    sequencer = ReplaceSameTime(BARS)
    results = [route(sequencer, *copies(batch)) for batch in batches]
    accepted = [one for result in results for one in result.accepted]
    assert accepted == expected
    assert [one.newest for one in accepted] == [one.newest for one in expected]
    assert sum(result.rejected for result in results) == repeats
    assert sum(len(result.ahead_ns) for result in results) == future
    latest = newest_of(expected)
    assert {symbol: sequencer.latest(symbol) for symbol in latest} == latest


@examples(200)
@given(st.lists(bars, max_size=12), st.lists(bars, max_size=6), st.data())
def test_after_a_repair_the_stream_has_the_last_word_on_each_bar(
    before: list[Bar], live: list[Bar], data: Any
) -> None:
    sequencer = ReplaceSameTime(BARS)
    out = route(sequencer, *copies(before)).accepted
    sequencer.lose(SYMBOLS)
    starts = {(one.symbol, one.ts_event_ns) for one in (*before, *live)}
    missed = data.draw(st.lists(bars, max_size=4))
    starts |= {(one.symbol, one.ts_event_ns) for one in missed}
    past = [
        bar(start - NOW_NS, data.draw(st.sampled_from([1.0, 2.0])), symbol)
        for symbol, start in sorted(starts)
        if start <= HORIZON_NS
    ]
    out = [*out, *filled(sequencer, copies(past), copies(live))]
    versions = {(one.symbol, one.ts_event_ns): one.close for one in out}
    expected = {(one.symbol, one.ts_event_ns): one.close for one in (*past, *live)}
    assert versions == {key: close for key, close in expected.items() if key[1] <= HORIZON_NS}
    for symbol in SYMBOLS:
        mine = [one for one in out if one.symbol == symbol]
        assert [one.seq for one in mine] == list(range(1, len(mine) + 1))
        for place, one in enumerate(mine):
            same = [each for each in mine[:place] if each.ts_event_ns == one.ts_event_ns]
            assert one.updated == bool(same)
            assert not same or same[-1].close != one.close


def test_a_bar_of_an_earlier_run_is_known_by_its_start() -> None:
    sequencer = ReplaceSameTime(BARS)
    sequencer.start_from([attrs.evolve(bar(5), seq=9)], resuming=True)
    accepted = filled(sequencer, [bar(4, 7.0), bar(5), bar(6)], [bar(5, 2.0)])
    assert [(one.ts_event_ns - NOW_NS, one.updated, one.seq) for one in accepted] == [
        (5, True, 1),
        (6, False, 2),
    ]


def test_a_record_of_an_earlier_run_is_the_latest_where_rest_is_not_asked() -> None:
    bars, trades = ReplaceSameTime(BARS), TradeSequencer()
    last = attrs.evolve(bar(5), seq=9)
    bars.start_from([last], resuming=False)
    trades.start_from([trade(7, 1, seq=70)], resuming=False)
    assert bars.all_latest() == (last,)
    assert not trades.all_latest()  # until REST confirms it


def test_a_bar_from_history_that_the_stream_repeats_is_dropped_uncounted() -> None:
    sequencer = ReplaceSameTime(BARS)
    route(sequencer, bar(1))
    sequencer.lose(SYMBOLS)
    filled(sequencer, [bar(1), bar(2)])
    routed = route(sequencer, bar(2), bar(2), bar(2, 3.0))
    assert ([one.updated for one in routed.accepted], routed.rejected) == ([True], 1)


def test_a_version_that_history_and_the_stream_have_is_published_once() -> None:
    sequencer = ReplaceSameTime(BARS)
    accepted = filled(sequencer, [bar(1, 2.0)], [bar(1, 1.0), bar(1, 2.0)])
    assert [(one.close, one.updated) for one in accepted] == [(1.0, False), (2.0, True)]


def test_the_first_value_of_a_bar_may_be_a_newer_version_of_it() -> None:
    sequencer = ReplaceSameTime(BARS)
    route(sequencer, bar(1))
    assert first(sequencer, bar(1)) == []
    (update,) = first(sequencer, bar(1, 2.0))
    assert (update.updated, update.seq) == (True, 2)
    routed = route(sequencer, bar(1, 2.0))
    assert (routed.accepted, routed.rejected) == ([], 0)


def test_a_bar_that_is_too_old_to_be_known_counts_as_published_and_memory_is_bounded() -> None:
    sequencer = ReplaceSameTime(BARS)
    route(sequencer, *(bar(number) for number in range(10, 500)))
    assert sum(map(len, sequencer._contents.values())) == MOST_BARS
    forgotten = 499 - MOST_BARS
    assert sequencer.not_out_yet([bar(5), bar(forgotten, 2.0), bar(499)]) == []
    (late,) = route(sequencer, bar(forgotten, 2.0)).accepted
    assert (late.updated, late.newest) == (True, False)


# ---- order books


levels = st.lists(
    st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([0, 0.5, 4])), max_size=3
)
changes_of_books = st.builds(
    book,
    st.sampled_from([*range(4), TOLERANCE_NS + 1]),
    levels,
    levels,
    whole=st.booleans(),
)


@examples(300)
@given(st.lists(st.one_of(changes_of_books, st.none()), max_size=15))
def test_a_book_is_what_its_changes_since_the_last_whole_one_make(
    arriving: list[OrderBook | None],
) -> None:
    sequencer = Merge(ORDERBOOKS)
    since: list[OrderBook] = []
    published: list[OrderBook] = []
    rejected = 0
    for one in arriving:
        if one is None:  # the connection is lost
            sequencer.lose(("BTC/USD",))
            since = []
            continue
        routed = route(sequencer, attrs.evolve(one))
        if one.whole:
            since = []
        if one.whole or since:
            since.append(one)
        sides: list[dict[float, Any]] = [{}, {}]
        for each in since:
            for side, part in zip(sides, (each.bids, each.asks), strict=True):
                side.update(part)
        at_ns = max([one.ts_event_ns, *(each.ts_event_ns for each in published)])
        content = (
            tuple((p, sides[0][p]) for p in sorted(sides[0], reverse=True) if sides[0][p]),
            tuple((p, sides[1][p]) for p in sorted(sides[1]) if sides[1][p]),
            at_ns,
        )
        last = published[-1] if published else None
        if not since:
            rejected += 1
            assert (routed.accepted, routed.rejected) == ([], 1)
        elif one.ts_event_ns > HORIZON_NS:
            assert (routed.accepted, len(routed.ahead_ns)) == ([], 1)
        elif last is not None and content == (last.bids, last.asks, last.ts_event_ns):
            assert (routed.accepted, routed.rejected) == ([], 1)
        else:
            (whole,) = routed.accepted
            assert (whole.bids, whole.asks, whole.ts_event_ns) == content
            assert (whole.seq, whole.whole) == (len(published) + 1, True)
            published.append(whole)
            assert sequencer.latest("BTC/USD") is whole


@examples(300)
@given(st.lists(changes_of_books, max_size=15))
def test_who_applies_the_feeds_own_changes_has_the_book(arriving: list[OrderBook]) -> None:
    sequencer = Merge(ORDERBOOKS)
    copy: list[dict[float, Any]] = [{}, {}]
    by_wire: dict[bytes | None, OrderBook] = {}
    for number, change in enumerate(arriving):
        wire = b"%d" % number
        by_wire[wire] = change
        for whole in route(sequencer, attrs.evolve(change, wire=wire)).accepted:
            assert whole.wire in (wire, None), "its own change's"
            sent = by_wire.get(whole.wire, whole)  # without a wire, the whole book
            if sent.whole:
                copy = [{}, {}]
            for side, part in zip(copy, (sent.bids, sent.asks), strict=True):
                side.update(part)
            bids = tuple((p, size) for p, size in sorted(copy[0].items(), reverse=True) if size)
            asks = tuple((p, size) for p, size in sorted(copy[1].items()) if size)
            assert (bids, asks) == (whole.bids, whole.asks)


def test_only_a_change_after_one_from_the_future_is_sent_as_a_whole_book() -> None:
    sequencer = Merge(ORDERBOOKS)
    future = attrs.evolve(book(TOLERANCE_NS + 1, [(1.5, 1)]), wire=b"future")
    arriving = [
        attrs.evolve(book(0, [(1.0, 2)], whole=True), wire=b"whole"),
        attrs.evolve(book(1, [(1.0, 3)]), wire=b"change"),
        future,
        attrs.evolve(book(2, [(2.0, 3)]), wire=b"change"),
        attrs.evolve(book(3, [(2.0, 4)]), wire=b"change"),
        future,
        attrs.evolve(book(4, [(2.0, 5)], whole=True), wire=b"whole"),
    ]
    accepted = route(sequencer, *arriving).accepted
    assert [one.wire for one in accepted] == [b"whole", b"change", None, b"change", b"whole"]


def test_a_change_does_not_touch_the_book_that_is_published_already() -> None:
    sequencer = Merge(ORDERBOOKS)
    (whole,) = route(sequencer, book(0, [(1.0, 2), (1.5, 3)], [(2.0, 4)], whole=True)).accepted
    (changed,) = route(sequencer, book(1, [(1.5, 0)], [(2.5, 1)])).accepted
    assert (whole.bids, whole.asks) == (((1.5, 3), (1.0, 2)), ((2.0, 4),))
    assert (changed.bids, changed.asks) == (((1.0, 2),), ((2.0, 4), (2.5, 1)))
    assert ORDERBOOKS.encode(changed).startswith(b'{"symbol":"BTC/USD","bids":[[1.0,2]]')


def test_the_book_of_an_earlier_run_is_not_the_base_of_changes() -> None:
    sequencer = Merge(ORDERBOOKS)
    last = attrs.evolve(book(0, [(1.0, 2)], whole=True), seq=5)
    sequencer.start_from([last], resuming=True)
    assert route(sequencer, book(1, [(1.5, 1)])).rejected == 1
    (whole,) = route(sequencer, book(2, [(1.0, 2)], whole=True)).accepted
    assert whole.seq == 1


def test_a_lost_connection_with_every_symbol_forgets_every_book() -> None:
    sequencer = Merge(ORDERBOOKS)
    route(sequencer, book(0, [(1.0, 2)], whole=True))
    sequencer.lose(("*",))
    assert route(sequencer, book(1, [(1.5, 1)])).rejected == 1


def test_statuses_have_a_generic_sequencer() -> None:
    assert type(make_sequencer(STATUSES)) is KeepAll
