"""Every kind through the router: what the contract says about its order and its gaps."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest

from mdservice.model.events import (
    Backfill,
    FeedItem,
    FeedLost,
    FeedResumed,
    FeedStatus,
    FirstRecords,
    LateRecords,
    LatestChanged,
    RecordBatch,
    Refreshed,
    encode_status,
)
from mdservice.model.feeds import CRYPTO, FEEDS, NEWS_FEED, OPTIONS, STOCKS, Feed, Topic
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.model.timestamps import format_ns
from mdservice.model.trade import Cancel, Correction
from tests.records import make_record
from tests.router.conftest import SECOND_NS, Bench, MakeBench

OPTION = "AAPL261218C00200000"


def made(
    bench: Bench, kind: Kind[Any], number: int, at_s: float = 0.0, symbol: str = "AAPL"
) -> Any:
    """A record that is not numbered yet."""
    record = make_record(kind, symbol, number, bench.start_ns + int(at_s * SECOND_NS))
    record.seq = 0
    return record


def batch(bench: Bench, kind: Kind[Any], *places: tuple[int, float]) -> RecordBatch[Any]:
    return RecordBatch(kind, [made(bench, kind, number, at_s) for number, at_s in places])


def correction(bench: Bench, trade_id: int, at_s: float = 30.0) -> RecordBatch[Correction]:
    record = made(bench, CORRECTIONS, trade_id, at_s)
    return RecordBatch(CORRECTIONS, [record])


def cancel(bench: Bench, trade_id: int, at_s: float = 30.0) -> RecordBatch[Cancel]:
    return RecordBatch(CANCELS, [made(bench, CANCELS, trade_id, at_s)])


def lost(bench: Bench, *channels: str, symbol: str = "AAPL", at_s: float = 40.0) -> FeedLost:
    at_ns = bench.start_ns + int(at_s * SECOND_NS)
    return FeedLost(at_ns, frozenset(Topic(each, symbol) for each in channels), "reset")


def resumed(bench: Bench, kind: Kind[Any], *symbols: str, **more: Any) -> FeedResumed:
    followed = frozenset(symbols or ("AAPL",))
    at_ns = bench.start_ns + 50 * SECOND_NS
    return FeedResumed(kind, at_ns, followed, **{"repairing": False, **more})


def gap(bench: Bench, channel: str, from_s: float, *symbols: str, **more: Any) -> dict[str, Any]:
    return {
        "channel": channel,
        "from": format_ns(bench.start_ns + int(from_s * SECOND_NS)),
        "to": format_ns(bench.start_ns + 50 * SECOND_NS),
        "symbols": list(symbols or ("AAPL",)),
        **more,
    }


# ---- "Order and overflow", sentence by sentence


@pytest.mark.parametrize("kind", [TRADES, CORRECTIONS, CANCELS, STATUSES])
async def test_each_is_published_once_in_the_order_of_arrival(
    autojump_clock: Any, open_bench: MakeBench, kind: Kind[Any]
) -> None:
    async with open_bench() as bench:
        places = [(3, 3.0), (1, 1.0), (2, 2.0)]
        await bench.send(batch(bench, kind, *places), batch(bench, kind, *places))
        out = [item for item in bench.items if isinstance(item, RecordBatch)]
        assert [[record.seq for record in item.records] for item in out] == [[1, 2, 3]]
        times = [record.ts_event_ns - bench.start_ns for record in out[0].records]
        assert times == [3 * SECOND_NS, SECOND_NS, 2 * SECOND_NS]
        assert bench.router.snapshot().rejected[kind.channel] == 3


async def test_articles_are_published_once_and_again_where_they_were_updated(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=NEWS_FEED) as bench:
        article = made(bench, NEWS, 1)
        update = attrs.evolve(
            article, ts_event_ns=article.ts_event_ns + SECOND_NS, headline="Corrected"
        )
        await bench.send(RecordBatch(NEWS, [article, attrs.evolve(article), update]))
        (item,) = bench.items
        assert isinstance(item, RecordBatch)
        assert item.records == [article, update]


async def test_a_late_trade_is_an_event_and_not_the_latest(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(batch(bench, TRADES, (1, 5.0)), batch(bench, TRADES, (2, 4.0)))
        records = [record for item in bench.items for record in item.records]
        assert [(record.id, record.newest) for record in records] == [(1, True), (2, False)]
        latest = bench.router.sequencer(TRADES).latest("AAPL")
        assert latest is not None
        assert latest.id == 1


async def test_all_option_trades_of_the_stream_are_published_and_at_a_repair_they_are_counted(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    def trades(count: int) -> list[Any]:
        one = attrs.evolve(made(bench, TRADES, 7, symbol=OPTION), id=None)
        return [attrs.evolve(one) for _ in range(count)]

    async with open_bench(feed=OPTIONS) as bench:
        await bench.send(
            RecordBatch(TRADES, trades(2)),
            lost(bench, "trades", symbol=OPTION),
            resumed(bench, TRADES, OPTION, repairing=True),
            Backfill(TRADES, trades(5), trades(1), bench.start_ns, frozenset((OPTION,))),
        )
        out = [record.seq for each in bench.items if isinstance(each, RecordBatch)
               for record in each.records]  # fmt: skip
        assert out == [1, 2, 3, 4, 5]
        assert bench.gaps[-1]["trades"] == 2


async def test_the_key_shows_the_corrected_trade_before_the_correction_is_published(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(batch(bench, TRADES, (7, 1.0)), correction(bench, 7))
        trade, changed, event = bench.items
        assert isinstance(trade, RecordBatch)
        assert isinstance(changed, LatestChanged)
        assert isinstance(event, RecordBatch)
        (original,) = trade.records
        assert changed.kind is TRADES
        assert changed.record == attrs.evolve(
            original, id=8, price=1.25, size=20, conditions=("@",)
        )
        assert (event.kind, event.records[0].seq) == (CORRECTIONS, 1)
        assert bench.wanted == []


async def test_after_a_cancellation_the_key_shows_the_newest_remaining_trade_or_rests_latest(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(batch(bench, TRADES, (1, 1.0), (2, 2.0)), cancel(bench, 2))
        assert bench.wanted == []
        await bench.send(cancel(bench, 1), cancel(bench, 1))
        changed = [item for item in bench.items if isinstance(item, LatestChanged)]
        assert [item.record and item.record.id for item in changed] == [1, None]
        assert bench.wanted == [(TRADES, "AAPL")]
        asked_ns = {"AAPL": bench.start_ns + 31 * SECOND_NS}
        await bench.send(
            FirstRecords(TRADES, [made(bench, TRADES, 1, 1.0)], asked_ns),  # still the canceled one
            FirstRecords(TRADES, [made(bench, TRADES, 9, 0.5)], asked_ns),
        )
        latest = bench.router.sequencer(TRADES).latest("AAPL")
        assert latest is not None
        assert (latest.id, latest.seq) == (9, 3)
        assert bench.router.snapshot().fetched["trades"] == 1


@pytest.mark.parametrize("kind", [BARS, DAILY_BARS])
async def test_a_bar_says_whether_it_replaces_one_that_was_published(
    autojump_clock: Any, open_bench: MakeBench, kind: Kind[Any]
) -> None:
    async with open_bench() as bench:
        await bench.send(
            batch(bench, kind, (1, 0.0), (2, 0.0)), batch(bench, kind, (3, 60.0), (4, 0.0))
        )
        records = [record for item in bench.items for record in item.records]
        assert [record.updated for record in records] == [False, True, False, True]
        assert [record.newest for record in records] == [True, True, True, False]
        assert [record.seq for record in records] == [1, 2, 3, 4]


async def test_an_order_book_is_whole_and_its_bids_and_asks_are_best_first(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=CRYPTO) as bench:
        whole = made(bench, ORDERBOOKS, 1, 1.0, "BTC/USD")
        change = attrs.evolve(whole, bids=((1.5, 1),), asks=((1.75, 2),), whole=False)
        early = attrs.evolve(change, symbol="ETH/USD")
        await bench.send(RecordBatch(ORDERBOOKS, [whole, change, early]))
        (item,) = bench.items
        assert isinstance(item, RecordBatch)
        assert [(book.bids, book.asks, book.whole) for book in item.records] == [
            (((1, 2),), ((2, 3.5),), True),
            (((1.5, 1), (1, 2)), ((1.75, 2), (2, 3.5)), True),
        ]
        assert bench.router.snapshot().rejected["orderbooks"] == 1


@pytest.mark.parametrize("kind", STOCKS.kinds)
async def test_a_record_from_the_future_costs_only_itself(
    autojump_clock: Any, open_bench: MakeBench, kind: Kind[Any]
) -> None:
    async with open_bench() as bench:
        await bench.send(batch(bench, kind, (1, 61.0), (2, 1.0)))
        assert bench.router.snapshot().accepted[kind.channel] == 1
        assert bench.router.snapshot().future_records == 1


# ---- gaps of each channel


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
async def test_each_message_names_the_feed_and_each_gap_its_channel(
    autojump_clock: Any, open_bench: MakeBench, feed: Feed
) -> None:
    kind = TRADES if TRADES in feed.kinds else NEWS
    symbol = "*" if kind is NEWS else "AAPL"
    async with open_bench(feed=feed) as bench:
        name = "quote_router" if feed is STOCKS else f"{feed.name}_router"
        assert bench.router.name == name
        await bench.send(
            batch(bench, kind, (1, 7.0)),
            lost(bench, kind.channel, symbol=symbol),
            resumed(bench, kind, symbol, repairing=True),
            Backfill(kind, [made(bench, kind, 2, 8.0)], [], bench.start_ns, frozenset((symbol,))),
        )
        statuses = [item for item in bench.items if isinstance(item, FeedStatus)]
        assert [item.state for item in statuses] == ["disconnected", "gap", "gap_repaired"]
        assert {item.feed for item in statuses} == {feed.name}
        assert bench.gaps == [
            gap(bench, kind.channel, 7.0, symbol),
            gap(bench, kind.channel, 7.0, symbol, **{kind.channel: 1}),
        ]
        text = encode_status(statuses[1]).decode()
        assert f'"feed":"{feed.name}","channel":"{kind.channel}","from":' in text
        assert bench.router.snapshot().backfilled[kind.channel] == 1


async def test_corrections_and_cancellations_have_no_gap_of_their_own(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            batch(bench, TRADES, (1, 1.0)),
            correction(bench, 1),
            lost(bench, "trades"),
            *(resumed(bench, kind) for kind in (TRADES, CORRECTIONS, CANCELS)),
        )
        assert bench.gaps == [gap(bench, "trades", 1.0)]


async def test_bars_and_updated_bars_have_one_gap(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            batch(bench, BARS, (1, 1.0)),
            lost(bench, "bars", "updatedBars"),
            resumed(bench, BARS),
        )
        assert bench.gaps == [gap(bench, "bars", 1.0)]


async def test_a_channel_is_missing_only_where_it_was_subscribed(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            batch(bench, TRADES, (1, 1.0)),
            batch(bench, QUOTES, (1, 2.0)),
            lost(bench, "trades"),
            resumed(bench, QUOTES),
            resumed(bench, TRADES),
        )
        assert bench.gaps == [gap(bench, "trades", 1.0)]


@pytest.mark.parametrize("symbol", ["AAPL", "*"])
async def test_a_channel_without_history_is_told_even_before_its_first_record(
    autojump_clock: Any, open_bench: MakeBench, symbol: str
) -> None:
    async with open_bench() as bench:
        await bench.send(
            batch(bench, QUOTES, (1, 9.0)),
            lost(bench, "statuses", symbol=symbol),
            resumed(bench, STATUSES, symbol),
        )
        assert bench.gaps == [gap(bench, "statuses", 9.0, symbol)], "since the last of any kind"


async def test_a_channel_without_history_has_one_gap_also_where_records_have_come_again(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        topics = frozenset(Topic("lulds", symbol) for symbol in ("AAPL", "MSFT"))
        await bench.send(
            batch(bench, LULDS, (1, 1.0)),
            FeedLost(bench.start_ns, topics, "reset"),
            batch(bench, LULDS, (2, 49.0)),  # before the other symbol was acknowledged
            resumed(bench, LULDS, "AAPL", "MSFT"),
        )
        assert bench.gaps == [gap(bench, "lulds", 1.0, "AAPL", "MSFT")]


async def test_without_any_record_it_is_told_from_the_loss_on(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(lost(bench, "statuses"), resumed(bench, STATUSES))
        assert bench.gaps == [gap(bench, "statuses", 40.0)]


async def test_after_a_refresh_alone_the_next_gap_begins_where_the_last_one_ended(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=OPTIONS) as bench:
        topics = frozenset((Topic("quotes", OPTION),))
        stream = made(bench, QUOTES, 1, 1.0, OPTION)
        first = made(bench, QUOTES, 2, 49.0, OPTION)
        await bench.send(
            RecordBatch(QUOTES, [stream]),
            FeedLost(bench.start_ns + 40 * SECOND_NS, topics, "reset"),
            resumed(bench, QUOTES, OPTION, refreshing=True),
            FirstRecords(QUOTES, [first], {OPTION: bench.start_ns + 50 * SECOND_NS}),
            Refreshed(QUOTES, bench.start_ns, frozenset((OPTION,))),
            FeedLost(bench.start_ns + 90 * SECOND_NS, topics, "reset"),  # nothing came before it
            resumed(bench, QUOTES, OPTION),
        )
        assert bench.gaps == [
            gap(bench, "quotes", 1.0, OPTION, refreshed=True),
            gap(bench, "quotes", 50.0, OPTION),
        ]


def ahead(bench: Bench) -> list[FeedItem]:
    """A connection that has brought a luld at 51 s, and a repair that history takes to 59 s."""
    past = [made(bench, QUOTES, 2, 45.0), made(bench, QUOTES, 3, 59.0)]
    trades = [made(bench, TRADES, 2, 58.0)]
    complete = frozenset(("AAPL",))
    return [
        batch(bench, QUOTES, (1, 10.0)),
        batch(bench, TRADES, (1, 9.0)),
        lost(bench, "quotes", "trades", "lulds", "statuses"),
        *(resumed(bench, kind, repairing=True) for kind in (QUOTES, TRADES)),
        *(resumed(bench, kind) for kind in (LULDS, STATUSES)),
        RecordBatch(LULDS, [made(bench, LULDS, 1, 51.0)]),
        Backfill(QUOTES, past, [], bench.start_ns, complete),
        Backfill(TRADES, trades, [], bench.start_ns, complete),
    ]


async def test_a_gap_begins_where_the_stream_was_and_not_where_history_was(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(*ahead(bench))
        before = len(bench.gaps)
        quotes = bench.router.sequencer(QUOTES)
        assert quotes.complete_until_ns() == bench.start_ns + 51 * SECOND_NS
        topics = [Topic(channel, "AAPL") for channel in ("quotes", "trades", "lulds", "statuses")]
        await bench.send(
            FeedLost(bench.start_ns, frozenset((*topics, Topic("quotes", "MSFT"))), "reset"),
            resumed(bench, QUOTES, "AAPL", "MSFT"),
            *(resumed(bench, kind) for kind in (TRADES, LULDS, STATUSES)),
        )
        starts = {(each["channel"], *each["symbols"]): each["from"] for each in bench.gaps[before:]}
        assert starts == {
            (channel, symbol): format_ns(bench.start_ns + at_s * SECOND_NS)
            for channel, symbol, at_s in (
                ("quotes", "AAPL", 59),  # none before it can be published any more
                ("quotes", "MSFT", 51),
                ("trades", "AAPL", 51),  # their corrections are not in history
                ("lulds", "AAPL", 51),
                ("statuses", "AAPL", 51),
            )
        }


async def test_what_only_history_has_brought_at_the_end_leaves_a_gap_of_the_others(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(*ahead(bench))
        before = len(bench.gaps)
        await bench.send(lost(bench, "quotes", "trades", "lulds", "statuses", at_s=61))
        bench.inbox.outbox.close()
        await anyio.wait_all_tasks_blocked()
        at_end = [(each["channel"], each["from"]) for each in bench.gaps[before:]]
        reached = format_ns(bench.start_ns + 51 * SECOND_NS)
        assert at_end == [(channel, reached) for channel in ("trades", "statuses", "lulds")]


@pytest.mark.parametrize("symbol", ["AAPL", "*"])
async def test_a_stream_that_has_passed_history_leaves_no_gap_at_the_end(
    autojump_clock: Any, open_bench: MakeBench, symbol: str
) -> None:
    async with open_bench() as bench:
        await bench.send(*ahead(bench))
        before = len(bench.gaps)
        await bench.send(batch(bench, QUOTES, (4, 59.5)))
        await bench.send(lost(bench, "quotes", "trades", "lulds", symbol=symbol, at_s=61))
        bench.inbox.outbox.close()
        await anyio.wait_all_tasks_blocked()
        assert bench.gaps[before:] == []


async def test_a_refresh_that_the_end_of_the_service_cuts_short_leaves_its_gap_reported(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=OPTIONS) as bench:
        topics = frozenset((Topic("quotes", OPTION),))
        await bench.send(
            RecordBatch(QUOTES, [made(bench, QUOTES, 1, 1.0, OPTION)]),
            FeedLost(bench.start_ns + 40 * SECOND_NS, topics, "reset"),
            resumed(bench, QUOTES, OPTION, refreshing=True),
            RecordBatch(QUOTES, [made(bench, QUOTES, 2, 51.0, OPTION)]),
            FeedLost(bench.start_ns + 52 * SECOND_NS, topics, "stopped"),
        )
        assert bench.gaps == []
        bench.inbox.outbox.close()
        await anyio.wait_all_tasks_blocked()
        (reported,) = bench.gaps
        assert reported["from"] == gap(bench, "quotes", 1.0)["from"]
        assert reported["symbols"] == [OPTION]
        assert "refreshed" not in reported


async def test_a_kind_with_rare_records_is_repaired_from_its_subscription_on(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=NEWS_FEED) as bench:
        news = bench.router.sequencer(NEWS)
        assert news.complete_until_ns() is None
        await bench.send(resumed(bench, NEWS, "*"))
        assert news.complete_until_ns() == bench.start_ns + 50 * SECOND_NS
        await bench.send(lost(bench, "news", symbol="*"), resumed(bench, NEWS, "*"))
        assert bench.gaps == [gap(bench, "news", 50.0, "*")]


async def test_the_articles_of_a_repair_are_counted_whatever_they_are_about(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=NEWS_FEED) as bench:
        topics = frozenset(Topic("news", symbol) for symbol in ("AAPL", "MSFT"))
        both = frozenset(("AAPL", "MSFT"))
        await bench.send(
            batch(bench, NEWS, (1, 1.0)),
            FeedLost(bench.start_ns, topics, "reset"),
            resumed(bench, NEWS, *both, repairing=True),
            Backfill(NEWS, batch(bench, NEWS, (1, 1.0), (2, 2.0)).records, [], 0, both),
        )
        assert bench.gaps == [
            gap(bench, "news", 1.0, *sorted(both)),
            gap(bench, "news", 1.0, *sorted(both), news=1),
        ]


async def test_a_refreshed_channel_has_one_gap_once_the_latest_values_are_out(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=OPTIONS) as bench:
        quotes = [made(bench, QUOTES, number, 5.0, symbol) for number, symbol in enumerate("AB", 1)]
        topics = frozenset(Topic("quotes", symbol) for symbol in "AB")
        again = FeedLost(bench.start_ns + 45 * SECOND_NS, topics, "reset")
        await bench.send(
            RecordBatch(QUOTES, quotes),
            FeedLost(bench.start_ns + 40 * SECOND_NS, topics, "reset"),
            resumed(bench, QUOTES, "A", "B", refreshing=True),
            again,  # before the latest values came
            resumed(bench, QUOTES, "A", "B", refreshing=True),
        )
        assert bench.gaps == []
        first = made(bench, QUOTES, 3, 49.0, "A")
        asked_ns = {"A": bench.start_ns + 50 * SECOND_NS}
        await bench.send(
            FirstRecords(QUOTES, [first], asked_ns),
            Refreshed(QUOTES, bench.start_ns, frozenset("A"), frozenset("B")),
        )
        assert [getattr(item, "kind", None) for item in bench.items[-3:]] == [QUOTES, None, None]
        assert bench.gaps == [
            gap(bench, "quotes", 5.0, "A", refreshed=True),
            gap(bench, "quotes", 5.0, "B"),
        ]
        assert bench.router.snapshot().gaps == 2


async def test_a_refresh_of_other_symbols_does_not_end_the_one_under_way(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=OPTIONS) as bench:
        topics = frozenset(Topic("quotes", symbol) for symbol in "AB")
        await bench.send(
            RecordBatch(QUOTES, [made(bench, QUOTES, 1, 5.0, "A")]),
            FeedLost(bench.start_ns, topics, "reset"),
            resumed(bench, QUOTES, "A", left_out=frozenset("B"), refreshing=True),
            resumed(bench, QUOTES, "A", "B", refreshing=True),
            Refreshed(QUOTES, bench.start_ns, frozenset("B")),
        )
        assert bench.gaps == [gap(bench, "quotes", 5.0, "B", refreshed=True)]
        await bench.send(Refreshed(QUOTES, bench.start_ns, frozenset("A")))
        assert bench.gaps[1:] == [gap(bench, "quotes", 5.0, "A", refreshed=True)]


async def test_a_repair_of_trades_goes_behind_those_that_came_since(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            batch(bench, TRADES, (1, 1.0)),
            lost(bench, "trades"),
            Backfill(TRADES, [], [made(bench, TRADES, 4, 4.0)], bench.start_ns),  # was given up
            lost(bench, "trades"),
            resumed(bench, TRADES, repairing=True),
            Backfill(
                TRADES,
                [made(bench, TRADES, number, number) for number in (1, 2, 3, 4)],
                [],
                bench.start_ns,
                frozenset(("AAPL",)),
            ),
        )
        out = [item for item in bench.items if isinstance(item, RecordBatch)]
        assert [[trade.id for trade in item.records] for item in out] == [[1], [4], [2, 3]]
        assert [each.get("trades") for each in bench.gaps] == [None, 2], "repaired as a whole"


async def test_late_records_of_trades_go_out_and_leave_no_gap(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            batch(bench, TRADES, (5, 5.0)),
            LateRecords(
                TRADES,
                [made(bench, TRADES, 3, 3.0), made(bench, TRADES, 5, 5.0)],
                bench.start_ns,
                bench.start_ns + 5 * SECOND_NS,
            ),
        )
        assert bench.router.snapshot().accepted["trades"] == 2
        assert bench.gaps == [], "the other one is out already"


async def test_an_earlier_run_leaves_a_gap_of_each_channel_that_was_followed(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        bench.router.start_from(QUOTES, [made(bench, QUOTES, 1, 2.0)], resuming=True)
        bench.router.start_from(TRADES, [made(bench, TRADES, 1, 1.0)], resuming=True)
        kinds: list[FeedItem] = [resumed(bench, kind) for kind in (QUOTES, TRADES, STATUSES)]
        await bench.send(*kinds)
        assert bench.gaps == [
            gap(bench, "quotes", 2.0),
            gap(bench, "trades", 1.0),
            gap(bench, "statuses", 2.0),
        ]


# ---- the rest


async def test_only_quotes_and_trades_check_the_clock(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        for kind in (BARS, STATUSES):
            await bench.send(*(batch(bench, kind, (n, 300.0)) for n in range(1, 101)))
        assert bench.router.snapshot().clock_behind_s is None
        await bench.send(*(batch(bench, TRADES, (n, 300.0)) for n in range(1, 101)))
        assert bench.router.snapshot().clock_behind_s == pytest.approx(300)


async def test_counts_are_kept_by_channel(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench(feed=CRYPTO) as bench:
        await bench.send(batch(bench, TRADES, (1, 1.0), (1, 1.0)), batch(bench, BARS, (1, 1.0)))
        now = bench.router.snapshot()
        assert (now.quotes_accepted, now.quotes_stale) == (0, 0)
        zeros = dict.fromkeys(kind.channel for kind in CRYPTO.kinds)
        assert now.accepted.keys() == zeros.keys()
        assert (now.accepted["trades"], now.rejected["trades"]) == (1, 1)
        assert (now.accepted["bars"], now.rejected["bars"]) == (1, 0)


async def test_a_feed_without_quotes_counts_none(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(feed=NEWS_FEED) as bench:
        await bench.send(batch(bench, NEWS, (1, 1.0)))
        now = bench.router.snapshot()
        assert now.accepted == {"news": 1}
        counts = (now.symbols, now.quotes_accepted, now.quotes_stale)
        assert (*counts, now.quotes_backfilled, now.prices_fetched) == (0, 0, 0, 0, 0)
