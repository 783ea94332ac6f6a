"""What is shown, from positions, quotes, time and what the service says."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from mdservice.cli.watch.gather import Flow, GatewayDay, Gatherer, MarketWatch, ServiceWatch
from mdservice.cli.watch.keys import Browse
from mdservice.cli.watch.show import PlainLines, entry_text
from mdservice.client.http import NoAnswer
from mdservice.client.reader import PricesStatus
from mdservice.gateway.make import make_tracker
from mdservice.model.kinds import DAILY_BARS, TRADES
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.trading_status import TradingStatus
from mdservice.runtime.network import HttpFailed
from mdservice.settings import Settings
from mdservice.testing import FakePositions
from tests.records import make_record

START_NS = 1_795_543_200_000_000_000  # 2026-11-24T18:00:00Z
S_NS = 1_000_000_000


class Bench:
    """A gatherer, its time, and a handle on all that it reads."""

    def __init__(self, *chosen: str, delay_s: float = 0.0, gateway: Any = None) -> None:
        self.now_s = 0.0
        self.events = 0
        self.connected = True
        settings = Settings(socket=Path("/nowhere/x.sock"), redis_url="redis://127.0.0.1:1")
        self.tracker = make_tracker(FakePositions(), settings, read_from="live", clock=self)
        self.tracker.prices_status = self._prices  # type: ignore[method-assign]
        self.engine = self.tracker.engine
        self.service = ServiceWatch(settings.socket, subscriptions=True)
        self.service.answered = True
        self.service.status = {"state": "running", "feed": {"name": "iex", "connected": True}}
        self.market = MarketWatch(())
        self.day = None if gateway is None else GatewayDay(self.tracker, settings, gateway)
        self.gatherer = Gatherer(
            self.tracker, self.service, chosen,
            stale_after_s=60, delay_s=delay_s, clock=self, market=self.market,
            day=self.day,
        )  # fmt: skip

    def monotonic(self) -> float:
        return self.now_s

    def utc_ns(self) -> int:
        return START_NS + int(self.now_s * S_NS)

    def _prices(self) -> PricesStatus:
        error = None if self.connected else "Redis is away"
        more = {"decode_errors": 0, "last_decode_error": None, "resyncs": 0, "starts": 0}
        return PricesStatus(
            self.connected, "redis://x", 0, error, self.events, 0, 0, 0,
            **more, trimmed=0, symbols=0, waiting=0, position=None,
        )  # fmt: skip

    def hold(self, *lots: tuple[str, str, str]) -> None:
        self.engine.set_positions([Position(s, Decimal(q), Decimal(p)) for s, q, p in lots])

    def quote(self, symbol: str, bid: float, ask: float, age_s: float = 0.0) -> None:
        self.events += 1
        at_ns = self.utc_ns() - int(age_s * S_NS)
        self.engine.update(Quote(symbol, bid, ask, 1, 1, at_ns, at_ns), self.utc_ns())

    def statuses(self) -> dict[str, str]:
        view = self.gatherer.view()
        return {entry.symbol: entry.status for entry in (*view.held, *view.others)}

    def texts(self) -> list[str]:
        return [entry_text(entry) for _place, entry in self.gatherer.changes()]


def test_positions_come_first_what_cost_most_at_the_top_then_the_rest_by_name() -> None:
    bench = Bench()
    bench.hold(("A", "1", "5"), ("B", "-10", "5"), ("C", "2", "5"), ("A", "3", "5"))
    for symbol in ("Z", "M", "C"):
        bench.quote(symbol, 1, 2)
    view = bench.gatherer.view()
    assert [(e.symbol, e.lot and e.lot.qty) for e in view.held] == [
        ("B", -10), ("A", 3), ("C", 2), ("A", 1),
    ]  # fmt: skip
    assert [entry.symbol for entry in view.others] == ["M", "Z"]
    bench.quote("C", 1000, 2000)
    again = bench.gatherer.view()
    assert [e.symbol for e in again.held] == [e.symbol for e in view.held], "prices move no row"


def test_what_a_lot_cost_counts_its_multiplier() -> None:
    bench = Bench()
    shares = Position("SHARES", Decimal(90), Decimal(1))
    contract = Position("CONTRACT", Decimal(1), Decimal(1), multiplier=Decimal(100))
    bench.engine.set_positions([shares, contract])
    assert [entry.symbol for entry in bench.gatherer.view().held] == ["CONTRACT", "SHARES"]


def test_sums_and_numbers_are_exact() -> None:
    bench = Bench()
    bench.hold(("AAPL", "10", "150.00"), ("MSFT", "1", "1"))
    bench.quote("AAPL", 187.12, 187.15, age_s=0.5)
    view = bench.gatherer.view()
    apple = view.held[0]
    assert (apple.price, apple.bid, apple.ask) == (
        Decimal("187.135"), Decimal("187.12"), Decimal("187.15"),
    )  # fmt: skip
    assert apple.age_s == pytest.approx(0.5)
    assert apple.lot is not None
    assert (apple.lot.pnl, apple.lot.pnl_pct) == (Decimal("371.35"), Decimal("24.7567"))
    assert view.sums is not None
    assert (view.sums.pnl, view.sums.priced, view.sums.unpriced) == (Decimal("371.35"), 1, 1)
    assert bench.statuses() == {"AAPL": "live", "MSFT": "unpriced"}


def test_a_change_is_shown_for_a_moment() -> None:
    bench = Bench()
    bench.quote("A", 10, 10)
    assert bench.gatherer.view().others[0].change is None, "nothing was before"
    bench.quote("A", 9, 9)
    assert bench.gatherer.view().others[0].change == -1
    bench.now_s += 1
    assert bench.gatherer.view().others[0].change == -1
    bench.now_s += 1
    assert bench.gatherer.view().others[0].change is None


def test_only_as_much_as_is_shown_is_made() -> None:
    bench = Bench()
    bench.hold(*((f"H{n}", "1", "1") for n in range(50)))
    for n in range(500):
        bench.quote(f"S{n:03}", 1, 2)
    view = bench.gatherer.view(10)
    assert (len(view.held), view.held_count, len(view.others), view.others_count) == (
        10, 50, 10, 500,
    )  # fmt: skip


def test_prices_become_stale_with_time_alone() -> None:
    bench = Bench()
    bench.hold(("A", "1", "1"))
    bench.quote("A", 1, 1)
    bench.quote("B", 1, 1)
    assert bench.statuses() == {"A": "live", "B": "live"}
    bench.now_s = 61
    assert bench.statuses() == {"A": "stale", "B": "stale"}


def test_a_late_feed_is_not_stale() -> None:
    bench = Bench(delay_s=900)
    bench.quote("B", 1, 1, age_s=910)
    assert bench.statuses() == {"B": "live"}
    assert bench.gatherer.view().others[0].age_s == pytest.approx(10)


def test_what_redis_answered_before_it_went_away_is_marked() -> None:
    bench = Bench()
    bench.hold(("A", "1", "1"))
    bench.quote("A", 1, 1)
    bench.quote("B", 1, 1)
    bench.connected = False
    assert bench.statuses() == {"A": "old", "B": "old"}
    bench.connected = True
    assert bench.statuses() == {"A": "live", "B": "live"}


def test_a_service_that_went_away_is_said_and_its_prices_are_marked() -> None:
    bench = Bench()
    bench.quote("B", 1, 1)
    bench.gatherer.view()
    bench.quote("B", 2, 2)
    bench.service.failure = NoAnswer("no service answers at x")
    assert bench.statuses() == {"B": "live"}, "events still come"
    bench.now_s += 4
    view = bench.gatherer.view()
    assert (view.state, view.well) == ("service away", False)
    assert view.warnings == ("no service answers at x; what is shown is from before",)
    assert view.others[0].status == "old"
    bench.service.failure = None
    assert bench.statuses() == {"B": "live"}


def test_a_service_that_was_never_there_marks_nothing() -> None:
    bench = Bench()
    bench.service.answered = False
    bench.service.failure = NoAnswer("no service answers at x")
    bench.quote("B", 1, 1)
    bench.now_s += 10
    view = bench.gatherer.view()
    assert (view.state, view.others[0].status) == ("no service", "live")


def test_the_reasons_of_a_degraded_service_are_warnings() -> None:
    bench = Bench()
    bench.service.status = {"state": "degraded", "reasons": ["the feed is\x1b[2J away"]}
    view = bench.gatherer.view()
    assert (view.state, view.well) == ("degraded", False)
    assert view.warnings == ("the feed is?[2J away",)


def test_chosen_symbols_are_shown_in_their_order_held_or_not() -> None:
    bench = Bench("Z", "A", "H")
    bench.service._subscribed = frozenset({"A", "H"})
    bench.hold(("H", "1", "1"))
    view = bench.gatherer.view()
    assert [entry.symbol for entry in (*view.held, *view.others)] == ["H", "Z", "A"]
    assert bench.statuses() == {"H": "unpriced", "Z": "not asked", "A": "unpriced"}
    assert view.hints == ("not subscribed: Z; run mdservice subscribe Z",)
    bench.service._subscribed = frozenset({"*"})
    assert bench.statuses()["Z"] == "unpriced"
    assert not bench.gatherer.view().hints


@pytest.mark.parametrize("chosen", ["BTCUSD", "BTC/USD"])
def test_a_pair_is_chosen_with_its_slash_or_without(chosen: str) -> None:
    bench = Bench(chosen, "ETHUSD")
    bench.service._subscribed = frozenset({"BTC/USD", "ETH/USD"})
    coins = Position("BTCUSD", Decimal("0.5"), Decimal(60_000), asset_class="crypto")
    bench.engine.set_positions([coins])
    bench.quote("BTC/USD", 62_000, 62_000)
    bench.quote("ETH/USD", 3_000, 3_000)
    view = bench.gatherer.view()
    assert [(e.symbol, e.price, e.lot and e.lot.pnl) for e in view.held] == [
        ("BTC/USD", 62_000, 1_000)
    ]
    assert [(entry.symbol, entry.price) for entry in view.others] == [("ETHUSD", 3_000)]
    assert view.hints == ()


def test_why_a_position_is_never_priced_is_reported() -> None:
    bench = Bench()
    bench.engine.set_positions([Position("A", None, Decimal(1), problem="qty is \x07 missing")])
    assert bench.gatherer.view().hints == ("A: qty is ? missing",)


def test_changes_are_reported_once_each() -> None:
    bench = Bench()
    bench.hold(("AAPL", "10", "150.00"))
    bench.quote("AAPL", 187.12, 187.15)
    bench.quote("IBM", 5, 5)
    assert bench.texts() == [
        "AAPL 187.135 10 @ 150.00 P&L +371.35 (+24.76 %) live",
        "IBM 5.00 live",
    ]
    assert bench.texts() == []
    bench.quote("IBM", 6, 6)
    assert bench.texts() == ["IBM 6.00 live"]
    bench.connected = False
    assert bench.texts() == [
        "AAPL 187.135 10 @ 150.00 P&L +371.35 (+24.76 %) old", "IBM 6.00 old",
    ]  # fmt: skip
    bench.hold()
    assert bench.texts() == ["AAPL 187.135 old"]


def test_lines_begin_with_the_time_and_are_not_repeated() -> None:
    bench, lines = Bench("X"), PlainLines()
    bench.service._subscribed = frozenset()
    first = lines.changed(bench.gatherer.changes(), START_NS + 5)
    assert first == ["2026-11-24T18:00:00Z X - not asked (mdservice subscribe X)"]
    bench.hold(("X", "1", "1"))
    bench.quote("X", 2, 2)
    assert len(lines.changed(bench.gatherer.changes(), START_NS)) == 1
    bench.now_s += 1
    bench.quote("X", 2, 2)  # newer, and otherwise the same
    assert lines.changed(bench.gatherer.changes(), START_NS) == []


def test_warnings_are_reported_once_and_their_end() -> None:
    lines = PlainLines()
    assert lines.notes((), START_NS) == []
    assert lines.notes(("a",), START_NS) == ["2026-11-24T18:00:00Z # a"]
    assert lines.notes(("a", "b"), START_NS) == ["2026-11-24T18:00:00Z # b"]
    assert lines.notes((), START_NS) == ["2026-11-24T18:00:00Z # all is well again"]


def test_the_flow_is_that_of_the_last_seconds() -> None:
    flow = Flow()
    flow.note(1_000, 0.0, START_NS)
    assert (flow.per_s, flow.last_ns, flow.quiet(START_NS)) == (None, None, True)
    for tenth in range(1, 101):
        flow.note(1_000 + tenth * 20, tenth / 10, START_NS + tenth)
    assert flow.per_s == pytest.approx(200)
    assert flow.last_ns == START_NS + 100
    assert not flow.quiet(START_NS + S_NS)
    flow.note(5, 11.0, START_NS)  # counted from 0 again
    assert flow.per_s is None


def test_the_head_shows_the_feed_the_flow_and_the_last_event() -> None:
    bench = Bench()
    bench.gatherer.view()
    bench.now_s += 1
    bench.events += 200
    assert bench.gatherer.view().about == ("200 events/s", "feed iex", "last event 18:00:01 UTC")
    feed: dict[str, Any] = {"name": "iex", "connected": False}
    bench.service.status = {"state": "running", "feed": feed, "simulator": True}
    assert "feed iex not connected" in bench.gatherer.view().about
    assert "simulated prices" in bench.gatherer.view().about


# ---- Trades, days and halts


class Latest:
    """The latest records of a reader."""

    def __init__(self, **of: dict[str, Any]) -> None:
        self._of = of

    def latest(self, symbol: str, channel: str) -> Any:
        return self._of.get(channel, {}).get(symbol)


def halt(symbol: str, code: str, tape: str = "C", at_ns: int = 1, **more: Any) -> TradingStatus:
    reason = more.get("reason", "News Pending")
    return TradingStatus(symbol, code, "Trading Halt", "T1", reason, tape, at_ns, at_ns)


def test_the_last_trade_and_the_day_are_shown_where_they_are_known() -> None:
    bench = Bench()
    bench.hold(("AAPL", "10", "150"))
    bench.quote("AAPL", 209.5, 210.5)
    bench.quote("MSFT", 99, 101)
    trade = make_record(TRADES, "AAPL")
    trade.price = 210.02
    day = make_record(DAILY_BARS, "AAPL")
    day.open, day.close, day.volume = 200, 209.0, 8_104_311
    days = {"AAPL": day, "MSFT": attrs.evolve(day, symbol="MSFT", open=110, close=99)}
    bench.market._records = Latest(trades={"AAPL": trade}, dailyBars=days)  # type: ignore[assignment]
    view = bench.gatherer.view()
    shown = {
        entry.symbol: (entry.last, entry.day_pct, entry.volume)
        for entry in (*view.held, *view.others)
    }
    assert shown == {
        "AAPL": (Decimal("210.02"), Decimal("5.01"), Decimal(8_104_311)),
        "MSFT": (None, Decimal(-10), Decimal(8_104_311)),
    }
    lines = bench.texts()
    assert any("last 210.02 day +5.01 % volume 8,104,311 live" in line for line in lines)
    assert bench.texts() == []
    trade.price = 211.0
    assert len(bench.texts()) == 1, "a trade is a change"


def test_a_halted_symbol_is_marked_until_trading_resumes() -> None:
    bench = Bench()
    bench.hold(("AAPL", "10", "150"))
    bench.quote("AAPL", 209.5, 210.5)
    bench.quote("MSFT", 99, 101)
    for status in (halt("AAPL", "H", at_ns=5), halt("MSFT", "2", "A", at_ns=5)):
        bench.market.take(status)
    assert bench.statuses() == {"AAPL": "HALTED", "MSFT": "HALTED"}
    assert bench.gatherer.view().hints[:2] == (
        "AAPL is halted: News Pending", "MSFT is halted: News Pending",
    )  # fmt: skip
    assert any(line.endswith("HALTED") for line in bench.texts())
    bench.market.take(halt("AAPL", "Q", at_ns=6))  # quotes resume, trading does not yet
    bench.market.take(halt("AAPL", "T", at_ns=4))  # late: the end of an earlier halt
    bench.market.take(halt("MSFT", "5", "A", at_ns=6))  # a price indication
    assert bench.statuses() == {"AAPL": "HALTED", "MSFT": "HALTED"}
    bench.market.take(halt("AAPL", "T", at_ns=7))
    bench.market.take(halt("MSFT", "3", "A", at_ns=7))
    assert bench.statuses() == {"AAPL": "live", "MSFT": "live"}
    assert bench.gatherer.view().hints == ()


def order(bench: Bench, column: Any, *, reverse: bool = False) -> list[str]:
    view = bench.gatherer.view(10, Browse(order=column, reverse=reverse))
    assert view.order == (None if column == "size" else column)
    return [entry.symbol for entry in (*view.held, *view.others)]


def three_lots() -> Bench:
    bench = Bench()
    bench.hold(("A", "1", "10"), ("B", "-5", "10"), ("C", "3", "10"), ("D", "1", "1"))
    for symbol, price in (("A", 30), ("B", 9), ("C", 8), ("Y", 2), ("Z", 1)):
        bench.quote(symbol, price, price)
    return bench


@pytest.mark.parametrize(
    ("column", "symbols"),
    [
        ("size", "BCADYZ"),
        ("symbol", "ABCDYZ"),
        ("P&L", "ABCDYZ"),
        ("P&L %", "ABCDYZ"),
        ("qty", "CADBYZ"),
        ("price", "ABCDYZ"),
        ("value", "ACBDYZ"),
    ],
)
def test_rows_are_sorted_by_a_column_what_is_unknown_comes_last(column: Any, symbols: str) -> None:
    assert "".join(order(three_lots(), column)) == symbols


def test_an_order_can_be_reversed_and_follows_prices_every_two_seconds() -> None:
    bench = three_lots()
    assert order(bench, "P&L", reverse=True) == ["C", "B", "A", "D", "Y", "Z"]
    bench.quote("C", 100, 100)
    assert order(bench, "P&L", reverse=True) == ["C", "B", "A", "D", "Y", "Z"]
    bench.now_s += 2
    assert order(bench, "P&L", reverse=True) == ["B", "A", "C", "D", "Y", "Z"]
    assert order(bench, "size", reverse=True) == ["D", "A", "C", "B", "Z", "Y"]
    assert order(bench, "status") == ["B", "C", "A", "D", "Y", "Z"]
    bench.now_s += 61
    bench.quote("B", 9, 9)
    assert order(bench, "age") == ["C", "A", "B", "D", "Y", "Z"]


@pytest.mark.parametrize(
    ("start", "shown"), [(0, "ABC"), (2, "CDY"), (4, "YZ"), (5, "Z"), (99, "Z")]
)
def test_a_view_begins_at_any_row(start: int, shown: str) -> None:
    view = three_lots().gatherer.view(3, Browse(start=start, order="symbol"))
    assert "".join(e.symbol for e in (*view.held, *view.others))[: len(shown)] == shown
    assert (view.held_count, view.others_count, view.start) == (4, 2, min(start, 5))


def test_the_day_and_the_exposure_are_those_of_the_positions() -> None:
    bench = Bench()
    ten = Decimal(10)
    bench.engine.set_positions(
        [Position("A", ten, ten, lastday_price=Decimal(9)), Position("B", -ten, ten)]
    )
    bench.quote("A", 12, 12)
    bench.quote("B", 11, 11)
    view = bench.gatherer.view()
    assert view.account is not None
    assert (view.account.market_value, view.account.exposure) == (10, 230)
    assert (view.account.day_pnl, view.account.realized) == (None, None)
    by_symbol = {entry.symbol: entry.lot for entry in view.held}
    assert by_symbol["A"] is not None
    assert (by_symbol["A"].market_value, by_symbol["A"].day_pnl) == (120, 30)


class FakeGateway:
    """Answers as a gateway's HTTP API, or not at all."""

    def __init__(self) -> None:
        self.body: bytes | None = None

    async def get(self, url: str, **_: Any) -> Any:
        assert url == "http://127.0.0.1:8002/api/v1/account/pnl/day"
        if self.body is None:
            raise HttpFailed("nothing listens", "network")
        return SimpleNamespace(body=self.body)


SOLD = b'{"date":"2026-11-20","realized_pnl":12.50,"unrealized_change":-2,"symbols":[%b]}'


@pytest.mark.parametrize(
    ("body", "known"),
    [
        (SOLD % b'{"symbol":"A","qty":10},{"symbol":"GONE","qty":0}', True),
        (SOLD % b"", True),
        (SOLD % b'{"symbol":"A","qty":9}', False),
        (SOLD % b'{"symbol":"OTHER","qty":1}', False),
        (SOLD.replace(b"12.50", b"null") % b"", False),
        (b'{"detail":"the activities of the account are not known"}', False),
        (None, False),
    ],
    ids=["same", "no trades", "other quantity", "not held", "not known", "503", "no gateway"],
)
async def test_the_day_is_that_of_the_gateway_of_the_same_account(
    body: bytes | None, known: bool
) -> None:
    gateway = FakeGateway()
    bench = Bench(gateway=gateway)
    bench.hold(("A", "10", "10"))
    bench.quote("A", 12, 12)
    day = bench.day
    assert day is not None
    for gateway.body, shown in ((body, known), (None, False)):
        await day.refresh()
        account = bench.gatherer.view().account
        assert account is not None
        found = account.day_pnl, account.realized
        assert found == ((Decimal("10.5"), Decimal("12.5")) if shown else (None, None))
