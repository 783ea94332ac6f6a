"""The whole account as a gateway's clients see it: processes, a broker and Redis by hand."""

from __future__ import annotations

import json
import time
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from mdservice.simulator import crypto, options
from tests.integration.gateway.outside import (
    DAY,
    NIGHT_CLOCK,
    OPEN_CLOCK,
    Broker,
    Outside,
    held,
    rfc3339,
)
from tests.integration.machine_clock import MachineClock

D = Decimal
CALL, PUT = "AAPL261218C00200000", "AAPL261218P00180000"
ADJUSTED = "AAPL1261218C00200000"
OLD_S = 3_600
MINUTE_NS = 60 * 10**9


def opened(stage: Any, *, clock: Any = OPEN_CLOCK, **env: str) -> Outside:
    """A gateway beside a broker whose clock says that."""
    broker = Broker()
    broker.answers["/v2/clock"] = clock
    return Outside(stage, stage.valkey(), broker=broker, **env)


@pytest.fixture(scope="module")
def by_day(module_stage: Any) -> Outside:
    return opened(module_stage).ready()


@pytest.fixture(scope="module")
def by_night(module_stage: Any) -> Outside:
    return opened(module_stage, clock=NIGHT_CLOCK).ready()


@pytest.fixture(scope="module")
def without_clock(module_stage: Any) -> Outside:
    return opened(module_stage, clock=500).ready()


def known(at: Outside, is_open: bool | None) -> None:
    """Wait until the gateway knows the market's clock."""
    at.stage.eventually(lambda: (at.pnl()["market"] or {}).get("is_open") is is_open, what=at.pnl)


# ---- Rows and totals.


def test_rows_and_totals_keep_their_fields_and_add_those_of_the_account(by_day: Outside) -> None:
    by_day.hold(held("AAPL", "10", "150", current="160", lastday="155"))
    by_day.quote("AAPL", "169", "171", "170")
    row = by_day.until("AAPL", status="live")
    assert row.pop("last_updated")
    wanted = {
        "symbol": "AAPL",
        "qty": 10,
        "avg_entry_price": 150,
        "current_price": 170,
        "unrealized_pnl": 200,
        "unrealized_pnl_pct": D("13.3333"),
        "status": "live",
        "asset_class": "us_equity",
        "multiplier": 1,
        "market_value": 1700,
        "mark": "mid",
    }
    assert {name: row[name] for name in wanted} == wanted
    assert "day_pnl" in row
    found = by_day.pnl()
    assert found["total_unrealized_pnl"] == 200
    assert found["total_market_value"] == 1700
    assert (found["priced"], found["unpriced"]) == (1, 0)
    assert {"total_day_pnl", "realized_day_pnl", "market"} <= found.keys()


@pytest.mark.parametrize(
    ("world", "clock"), [("by_day", OPEN_CLOCK), ("by_night", NIGHT_CLOCK)], ids=["day", "night"]
)
def test_totals_have_the_markets_hours(
    world: str, clock: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    at: Outside = request.getfixturevalue(world)
    known(at, clock["is_open"])
    market = at.pnl()["market"]
    assert market.keys() == {"is_open", "next_open", "next_close"}
    for name in ("next_open", "next_close"):
        assert datetime.fromisoformat(market[name]) == datetime.fromisoformat(clock[name])


# ---- Asset classes.


def test_a_crypto_position_is_priced_by_the_pair_and_keeps_its_name(by_day: Outside) -> None:
    by_day.hold(held("BTCUSD", "0.25", "60000", lastday="61000", asset_class="crypto"))
    by_day.quote("BTC/USD", "64000", "64100", "64050")
    row = by_day.until("BTCUSD", status="live")
    assert (row["current_price"], row["asset_class"], row["multiplier"]) == (64050, "crypto", 1)
    assert (row["market_value"], row["unrealized_pnl"]) == (D("16012.5"), D("1012.5"))


def test_an_option_counts_a_hundred_times_unless_its_row_says_otherwise(by_day: Outside) -> None:
    by_day.hold(
        held(CALL, "-2", "5", asset_class="us_option"),
        held(ADJUSTED, "1", "5", asset_class="us_option", multiplier="10"),
    )
    by_day.quote(CALL, "5.9", "6.1", "6.0")
    by_day.quote(ADJUSTED, "5.9", "6.1", "6.0")
    row = by_day.until(CALL, status="live")
    assert (row["multiplier"], row["market_value"], row["unrealized_pnl"]) == (100, -1200, -200)
    row = by_day.until(ADJUSTED, status="live")
    assert (row["multiplier"], row["market_value"], row["unrealized_pnl"]) == (10, 60, 10)


def test_quantity_and_market_value_of_a_short_position_are_below_0(by_day: Outside) -> None:
    by_day.hold(held("MSFT", "-3", "400"), held("AAPL", "1.5", "100"))
    by_day.quote("MSFT", "389", "391", "390")
    by_day.quote("AAPL", "99", "101", "100")
    row = by_day.until("MSFT", status="live")
    assert (row["qty"], row["market_value"], row["unrealized_pnl"]) == (-3, -1170, 30)
    by_day.until("AAPL", status="live")
    assert by_day.pnl()["total_market_value"] == -1020


# ---- Status and mark.


def test_a_young_price_is_live_at_any_hour(by_night: Outside) -> None:
    known(by_night, False)
    by_night.hold(held("AAPL", "1", "100"))
    by_night.quote("AAPL", "99", "101", "100")
    by_night.until("AAPL", status="live", current_price=100)


def test_an_old_price_is_closed_where_its_market_is(by_night: Outside) -> None:
    known(by_night, False)
    by_night.hold(
        held("KO", "1", "60"),
        held(CALL, "1", "5", asset_class="us_option"),
        held("ETHUSD", "1", "3000", asset_class="crypto"),
    )
    by_night.quote("KO", "61", "63", "62", age_s=OLD_S)
    by_night.quote(CALL, "5.9", "6.1", "6.0", age_s=OLD_S)
    by_night.quote("ETH/USD", "3100", "3102", "3101", age_s=OLD_S)
    row = by_night.until("KO", status="closed")
    assert (row["current_price"], row["unrealized_pnl"], row["mark"]) == (62, 2, "mid")
    by_night.until(CALL, status="closed")
    by_night.until("ETHUSD", status="stale", current_price=3101)


def test_an_old_price_is_stale_while_its_market_is_open(by_day: Outside) -> None:
    known(by_day, True)
    by_day.hold(held("KO", "1", "60"))
    by_day.quote("KO", "61", "63", "62", age_s=OLD_S)
    by_day.until("KO", status="stale", current_price=62, unrealized_pnl=2)


def test_an_old_price_is_stale_while_the_clock_is_unknown(without_clock: Outside) -> None:
    without_clock.hold(held("KO", "1", "60"), held("PEP", "1", "60", current="61"))
    without_clock.quote("KO", "61", "63", "62", age_s=OLD_S)
    without_clock.until("KO", status="stale", current_price=62)
    without_clock.until("PEP", status="stale", current_price=61, mark="previous")
    assert without_clock.pnl()["market"] is None


def test_a_position_without_any_price_is_unpriced(by_day: Outside) -> None:
    by_day.hold(held("NONE", "1", "60"))
    row = by_day.until("NONE", status="unpriced")
    unknown = ("current_price", "unrealized_pnl", "market_value", "mark", "last_updated")
    assert [row[name] for name in unknown] == [None] * len(unknown)
    assert (by_day.pnl()["priced"], by_day.pnl()["unpriced"]) == (0, 1)


@pytest.mark.parametrize(
    ("bid", "ask", "price"), [("0", "0", None), ("90", "110", "100")], ids=["0/0", "too wide"]
)
def test_a_quote_that_cannot_be_used_leaves_the_last_usable_mark(
    by_day: Outside, bid: str, ask: str, price: str | None
) -> None:
    symbol = by_day.stage.new_symbol()
    by_day.hold(held(symbol, "10", "100"))
    by_day.quote(symbol, "104", "106", "105")
    before = by_day.until(symbol, status="live")
    by_day.quote(symbol, bid, ask, price)
    after = by_day.until(symbol, status="stale")
    for name in ("current_price", "unrealized_pnl", "market_value", "mark"):
        assert after[name] == before[name], name
    by_day.quote(symbol, "105", "107", "106")
    by_day.until(symbol, status="live", current_price=106)


def test_the_exit_mark_is_the_bid_of_a_long_and_the_ask_of_a_short_position(
    module_stage: Any,
) -> None:
    at = opened(module_stage, MDSERVICE_MARK="exit").ready()
    at.hold(held("LONG", "10", "100"), held("SHRT", "-10", "100"))
    for symbol in ("LONG", "SHRT"):
        at.quote(symbol, "104", "106", "105")
    at.until("LONG", status="live", current_price=104, mark="bid", unrealized_pnl=40)
    at.until("SHRT", status="live", current_price=106, mark="ask", unrealized_pnl=-60)
    at.quote("LONG", "0", "107", "107")
    at.quote("SHRT", "103", "0", "103")
    at.until("LONG", status="stale", current_price=104, mark="bid")
    at.until("SHRT", status="stale", current_price=106, mark="ask")


def test_the_last_mark_is_the_last_trade_that_updates_the_last_price(module_stage: Any) -> None:
    at = opened(module_stage, MDSERVICE_MARK="last", MDSERVICE_CHANNELS="quotes,trades").ready()
    at.hold(held("AAPL", "10", "100"))
    at.quote("AAPL", "104", "106", "105")
    at.trade("AAPL", "104.5")
    at.until("AAPL", status="live", current_price=D("104.5"), mark="last", unrealized_pnl=45)
    at.trade("AAPL", "90", '["@","I"]')  # an odd lot
    at.trade("AAPL", "104.75")
    at.until("AAPL", current_price=D("104.75"), mark="last")


@pytest.mark.parametrize(
    ("world", "status"), [("by_day", "stale"), ("by_night", "closed")], ids=["day", "night"]
)
def test_the_previous_mark_is_the_rows_own_price(
    world: str, status: str, request: pytest.FixtureRequest
) -> None:
    at: Outside = request.getfixturevalue(world)
    known(at, status == "stale")
    at.hold(
        held("CURR", "10", "100", current="103", lastday="101"),
        held("LAST", "10", "100", lastday="101"),
    )
    at.until("CURR", status=status, current_price=103, mark="previous", unrealized_pnl=30)
    at.until("LAST", status=status, current_price=101, mark="previous", unrealized_pnl=10)


def test_a_price_that_only_stands_in_redis_is_used(by_day: Outside) -> None:
    by_day.quote("QUIET", "49", "51", "50", publish=False)
    by_day.hold(held("QUIET", "2", "40"))
    by_day.until("QUIET", status="live", current_price=50, unrealized_pnl=20)


@pytest.mark.parametrize("with_service", [True, False], ids=["a service", "REST alone"])
def test_a_price_that_the_market_knows_is_used(stage: Any, with_service: bool) -> None:
    simulator, valkey, folder = stage.simulator(), stage.valkey(), stage.folder()
    simulator.send_quotes([{"S": "AAPL", "bp": 99, "ap": 101}])
    simulator.send_records(crypto.QUOTES, [crypto.SimPairQuote("BTC/USD", 64_000, 64_100)])
    simulator.send_records(options.QUOTES, [options.SimOptionQuote(CALL, 5.9, 6.1)])
    env = stage.account(simulator, valkey)
    if with_service:
        stage.program("run", folder=folder, **env).wait_ready()
    del env["MDSERVICE_TRADING_URL"], env["MDSERVICE_REDIS_URL"]
    broker = Broker()
    broker.answers["/v2/positions"] = [
        held("AAPL", "1", "90"),
        held("BTCUSD", "1", "60000", asset_class="crypto"),
        held(CALL, "1", "5", asset_class="us_option"),
    ]
    at = Outside(stage, valkey, broker=broker, folder=folder, **env).ready()
    at.until("AAPL", current_price=100, unrealized_pnl=10)
    at.until("BTCUSD", current_price=64_050, unrealized_pnl=4_050)
    at.until(CALL, current_price=6, unrealized_pnl=100)
    assert at.pnl()["unpriced"] == 0


# ---- Fills.


@pytest.fixture
def by_event(stage: Any) -> Outside:
    """A gateway that asks for the positions once a minute."""
    broker = Broker()
    broker.answers["/v2/positions"] = [held("AAPL", "9", "100"), held("MSFT", "5", "400")]
    at = Outside(stage, stage.valkey(), broker=broker, MDSERVICE_POSITIONS_INTERVAL="60").ready()
    stage.eventually(lambda: broker.listeners, what=lambda: at.program.said)
    # No answer of before the first event is under way once that after a reconnection is there.
    broker.answers["/v2/positions"] = [held("AAPL", "10", "100"), held("MSFT", "5", "400")]
    broker.drop()
    at.until("AAPL", qty=10)
    stage.eventually(lambda: broker.listeners, what=lambda: at.program.said)
    return at


def test_a_fill_shows_at_once_and_a_late_or_repeated_event_changes_nothing(
    by_event: Outside,
) -> None:
    broker, now_ns = by_event.broker, by_event.utc_ns()
    assert {key for said in broker.logins for key in said} <= {"action", "data", "key", "secret"}
    first = broker.update("AAPL", "buy", "5", "110", "15", now_ns)
    second = broker.update("AAPL", "buy", "5", "120", "20", now_ns + 1_000)
    # A late event may have the gateway ask: the broker's answer has all fills that it has sent.
    aapl = held("AAPL", "20", "105")
    broker.answers["/v2/positions"] = [held("AAPL", "15", "103"), held("MSFT", "5", "400")]
    broker.push(first)
    by_event.until("AAPL", qty=15)
    broker.answers["/v2/positions"] = [aapl, held("MSFT", "-2", "400")]
    broker.push(second.decode(), first, second, first)  # text frames too
    broker.push(broker.update("MSFT", "sell", "7", "400", "-2", now_ns + 2_000))
    # Where an answer was under way, both come with the next ones, and for a second not together.
    by_event.until("AAPL", qty=20)
    by_event.until("MSFT", qty=-2)  # it came behind all of them
    assert by_event.row("AAPL")["qty"] == 20
    broker.answers["/v2/positions"] = [aapl]
    broker.push(broker.update("MSFT", "buy", "2", "400", "0", now_ns + 3_000))
    by_event.stage.eventually(
        lambda: [row["symbol"] for row in by_event.pnl()["positions"]] == ["AAPL"],
        what=by_event.pnl,
    )
    tsla = held("TSLA", "-1", "340")
    broker.answers["/v2/positions"] = [aapl, tsla]
    broker.push(broker.update("TSLA", "sell", "1", "340", "-1", now_ns + 4_000))
    by_event.stage.eventually(
        lambda: any(row["symbol"] == "TSLA" for row in by_event.pnl()["positions"]),
        what=by_event.pnl,
    )
    assert by_event.row("TSLA")["qty"] == -1
    legs = [held(CALL, "2", "1.5", asset_class="us_option")]
    legs.append(held(PUT, "-4", "1.5", asset_class="us_option"))
    broker.answers["/v2/positions"] = [aapl, tsla, *legs]
    broker.push(broker.legs_update({CALL: ("buy", "2", "2"), PUT: ("sell", "4", "-4")}, now_ns))
    by_event.stage.eventually(
        lambda: {CALL, PUT} <= {row["symbol"] for row in by_event.pnl()["positions"]},
        what=by_event.pnl,
    )
    assert [by_event.row(symbol)["qty"] for symbol in (CALL, PUT)] == [2, -4]
    assert by_event.row(PUT)["multiplier"] == 100


def test_a_fill_that_was_lost_is_found_at_the_next_connection(by_event: Outside) -> None:
    broker = by_event.broker
    broker.answers["/v2/positions"] = [held("AAPL", "12", "101"), held("MSFT", "5", "400")]
    broker.drop()
    by_event.until("AAPL", qty=12, avg_entry_price=101)
    by_event.stage.eventually(
        lambda: any("AAPL" in text for text in by_event.pnl().get("warnings", ())),
        what=by_event.pnl,
    )


def test_a_difference_found_by_reconciling_is_logged_and_shown(by_day: Outside) -> None:
    symbol = by_day.stage.new_symbol()
    by_day.hold(held(symbol, "10", "100"))
    by_day.stage.eventually(lambda: by_day.broker.listeners)
    by_day.hold(held(symbol, "11", "100"))
    by_day.until(symbol, qty=11)
    by_day.stage.eventually(
        lambda: any(symbol in text for text in by_day.pnl().get("warnings", ())),
        what=by_day.pnl,
    )
    assert symbol in by_day.program.stderr


def test_a_refused_trading_login_is_degraded_and_not_repeated_at_once(stage: Any) -> None:
    broker = Broker()
    stage.defer(broker.close)
    broker.refuse = True
    simulator = stage.simulator()
    env = {
        "MDSERVICE_POSITIONS": "alpaca",
        "MDSERVICE_POSITIONS_INTERVAL": "0.1",
        "MDSERVICE_TRADING_URL": broker.url,
    }
    service = stage.service(simulator, stage.valkey(), **env).wait_answers()
    status = service.until(
        lambda status: status["state"] == "degraded" and broker.logins and status
    )
    assert status["reasons"]
    asked = len(broker.targets)
    stage.eventually(lambda: len(broker.targets) > asked + 3)
    assert len(broker.logins) <= 2, "at most once in each form"
    assert service.ready() == (True, [])


def test_events_of_the_account_are_published_with_the_position_as_it_is_then(stage: Any) -> None:
    broker, valkey = Broker(), stage.valkey()
    stage.defer(broker.close)
    broker.answers["/v2/positions"] = [held("AAPL", "9", "100")]
    env = {
        "MDSERVICE_POSITIONS": "alpaca",
        "MDSERVICE_POSITIONS_INTERVAL": "60",
        "MDSERVICE_TRADING_URL": f"{broker.url}/v2",
    }
    with valkey.client() as client:
        heard = client.pubsub()
        heard.subscribe("account.updated")
        assert heard.get_message(timeout=20)["type"] == "subscribe"
        service = stage.service(stage.simulator(), valkey, **env).wait_ready()
        stage.eventually(lambda: broker.listeners, what=lambda: service.said)
        # No answer of before the first event is under way once that after a reconnection is there.
        broker.answers["/v2/positions"] = [held("AAPL", "10", "100")]
        broker.drop()
        stage.eventually(
            lambda: [row["qty"] for row in service.get("/api/v1/positions")["positions"]] == [10]
        )
        stage.eventually(lambda: broker.listeners, what=lambda: service.said)
        at_ns = time.time_ns()
        broker.push(broker.update("AAPL", "buy", "5", "110.5", "15", at_ns))
        broker.push(broker.update("AAPL", "sell", "15", "111", "0", at_ns + 1_000))

        def next_one() -> dict[str, Any]:
            message = stage.eventually(lambda: heard.get_message(timeout=0.1))
            return dict(stage.exact(message["data"]))

        bought, sold = next_one(), next_one()
        heard.close()
    assert (bought["event"], bought["symbol"], bought["side"]) == ("fill", "AAPL", "buy")
    assert [D(bought[name]) for name in ("qty", "price", "position_qty")] == [5, D("110.5"), 15]
    assert bought["timestamp"] == rfc3339(at_ns)
    assert {"order_id", "execution_id"} <= bought.keys()
    assert (bought["position"]["symbol"], bought["position"]["qty"]) == ("AAPL", 15)
    assert (D(sold["position_qty"]), sold["position"]) == (0, None)
    broker.push(broker.update("TSLA", "sell", "1", "340", "-1", at_ns + 2_000))
    path = "/api/v1/market-data/subscriptions"
    stage.eventually(lambda: service.get(path)["sources"].get("TSLA") == ["positions"])


# ---- The day.

MORNING = "2026-11-20T10:00:00-05:00"


@pytest.fixture
def at_ten(stage: Any) -> Outside:
    """A gateway at ten o'clock in New York; to be started with its broker's activities."""
    clock = MachineClock(stage.folder(), MORNING)
    return Outside(stage, stage.valkey(), clock=clock, begins=False)


def dollars(row: dict[str, Any], *names: str) -> list[Any]:
    return [None if row[name] is None else D(row[name]) for name in names]


def test_the_day_counts_every_fill_against_the_last_close(at_ten: Outside) -> None:
    broker, now_ns = at_ten.broker, at_ten.utc_ns()
    # Held since yesterday, 15 bought at 90; 5 of them sold today.
    broker.fill_activity("HELD", "sell", "5", "110", now_ns - 20 * MINUTE_NS)
    # Bought today.
    broker.fill_activity("NEWS", "buy", "10", "103", now_ns - 15 * MINUTE_NS)
    # Opened and closed today, in two fills.
    broker.fill_activity("DONE", "buy", "4", "20", now_ns - 14 * MINUTE_NS)
    broker.fill_activity("DONE", "sell", "1", "21", now_ns - 13 * MINUTE_NS)
    broker.fill_activity("DONE", "sell", "3", "22.5", now_ns - 12 * MINUTE_NS)
    # Of yesterday, which counts for nothing.
    broker.fill_activity("HELD", "buy", "1", "1", now_ns - 20 * 60 * MINUTE_NS)
    broker.activities.append(
        {
            "id": "20261120000000000::fee00000-0000-4000-8000-000000000000",
            "activity_type": "FEE",
            "date": "2026-11-20",
            "net_amount": "-0.07",
            "description": "fee",
            "status": "executed",
        }
    )
    at_ten.begin()
    at_ten.ready()
    at_ten.hold(
        held("HELD", "10", "90", current="105", lastday="100"),
        held("NEWS", "10", "103", current="105", lastday="100"),
    )
    at_ten.quote("HELD", "104", "106", "105")
    at_ten.quote("NEWS", "104", "106", "105")
    for symbol in ("HELD", "NEWS"):
        at_ten.until(symbol, status="live")
    day = at_ten.stage.eventually(
        lambda: (found := at_ten.get(DAY)) and len(found["symbols"]) >= 3 and found,
        what=lambda: at_ten.get(DAY),
    )
    assert day["date"] == "2026-11-20"
    by_symbol = {row["symbol"]: row for row in day["symbols"]}
    # 5 * (110 - 90), by the average entry price; 1 * 1 + 3 * 2.5.
    assert dollars(by_symbol["HELD"], "realized_pnl", "fills", "qty") == [100, 1, 10]
    assert dollars(by_symbol["NEWS"], "realized_pnl", "fills", "qty") == [0, 1, 10]
    assert dollars(by_symbol["DONE"], "realized_pnl", "fills", "qty") == [D("8.5"), 3, 0]
    assert dollars(day, "realized_pnl", "fees") == [D("108.5"), D("0.07")]
    assert D(day["total"]) == D(day["realized_pnl"]) + D(day["unrealized_change"]) - D(day["fees"])
    # What HELD made against its last close: 10 * 5 now and 5 * 10 sold; NEWS 10 * 2.
    at_ten.until("HELD", day_pnl=100)
    at_ten.until("NEWS", day_pnl=20)
    at_ten.hold(held("DARK", "1", "50", current="51"))
    at_ten.quote("DARK", "51", "53", "52")
    at_ten.until("DARK", status="live", day_pnl=None)


def test_the_average_of_a_position_that_turned_is_found_though_positions_come_late(
    at_ten: Outside,
) -> None:
    broker, now_ns = at_ten.broker, at_ten.utc_ns()
    broker.fill_activity("MSFT", "sell_short", "20", "430", now_ns - 20 * 60 * MINUTE_NS)
    broker.fill_activity("MSFT", "buy", "30", "428", now_ns - 5 * MINUTE_NS)
    broker.answers["/v2/positions"] = 500
    at_ten.begin()
    at_ten.stage.eventually(
        lambda: any("activities" in target for target in broker.targets),
        within=30,
        what=lambda: at_ten.program.said,
    )
    broker.answers["/v2/positions"] = [held("MSFT", "10", "428", current="429", lastday="431")]
    at_ten.ready()
    at_ten.stage.eventually(
        lambda: [D(row["realized_pnl"] or 0) for row in at_ten.get(DAY)["symbols"]] == [40],
        what=lambda: at_ten.get(DAY),
    )


def test_the_day_is_not_answered_without_the_activities(at_ten: Outside) -> None:
    at_ten.broker.answers["/v2/account/activities"] = 500
    at_ten.begin()
    at_ten.ready()
    at_ten.hold(held("AAPL", "1", "100", current="101", lastday="100"))
    assert at_ten.get(DAY, 503)["detail"]


# ---- Positions from outside, read generously.

EXACT_PATH = "/desk/positions?owner=a%20b&x=1+2"


@pytest.fixture(scope="module")
def by_url(module_stage: Any) -> Outside:
    broker = Broker()
    broker.answers[EXACT_PATH] = []
    at = Outside(
        module_stage,
        module_stage.valkey(),
        broker=broker,
        MDSERVICE_GATEWAY_POSITIONS=broker.url + EXACT_PATH,
    )
    return at.ready()


def read(at: Outside, body: Any, *symbols: str) -> list[dict[str, Any]]:
    """Let the source answer that, and wait for these positions."""
    at.broker.answers[EXACT_PATH] = [held("MARK", "1", "1")]
    at.stage.eventually(lambda: [one["symbol"] for one in positions(at)] == ["MARK"])
    at.broker.answers[EXACT_PATH] = body
    at.stage.eventually(
        lambda: [one["symbol"] for one in positions(at)] == list(symbols),
        what=lambda: f"{positions(at)} {at.program.said}",
    )
    return positions(at)


def positions(at: Outside) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = at.get("/api/v1/positions")["positions"]
    return found


@pytest.mark.parametrize(
    "body", [b"null", {"positions": None}, 204, [], {"positions": []}], ids=str
)
def test_these_answers_mean_no_positions(by_url: Outside, body: Any) -> None:
    assert read(by_url, body) == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_list_is_read_bare_and_wrapped(by_url: Outside, wrapped: bool) -> None:
    rows = [held("AAPL", "2", "100")]
    (found,) = read(by_url, {"positions": rows} if wrapped else rows, "AAPL")
    assert (found["qty"], found["avg_entry_price"]) == (2, 100)


def test_the_url_is_asked_exactly_as_written(by_url: Outside) -> None:
    assert set(by_url.broker.targets) & {EXACT_PATH} == {EXACT_PATH}
    assert not [
        one for one in by_url.broker.targets if one.startswith("/desk") and one != EXACT_PATH
    ]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("us_equity", "us_equity"),
        ("AssetClass.US_EQUITY", "us_equity"),
        ("US_EQUITY", "us_equity"),
        ("stock", "us_equity"),
        ("Equity", "us_equity"),
        ("AssetClass.CRYPTO", "crypto"),
        ("Crypto", "crypto"),
        ("AssetClass.US_OPTION", "us_option"),
    ],
)
def test_asset_classes_are_read_in_every_form(by_url: Outside, said: str, meant: str) -> None:
    symbol = {"us_equity": "AAPL", "crypto": "BTCUSD", "us_option": CALL}[meant]
    read(by_url, [held(symbol, "2", "100", asset_class=said)], symbol)
    row = by_url.until(symbol, asset_class=meant)
    assert row["multiplier"] == (100 if meant == "us_option" else 1)


@pytest.mark.parametrize(
    ("qty", "side", "meant"),
    [
        ("2", "short", -2),
        ("-2", "short", -2),
        ("2", "PositionSide.SHORT", -2),
        ("2", "SHORT", -2),
        ("2", "PositionSide.LONG", 2),
        ("2", "Long", 2),
    ],
)
def test_sides_are_read_in_every_form(by_url: Outside, qty: str, side: str, meant: int) -> None:
    (found,) = read(by_url, [held("AAPL", qty, "100", side=side)], "AAPL")
    assert found["qty"] == meant


def test_a_row_that_cannot_be_used_costs_itself(by_url: Outside) -> None:
    good = json.dumps(held("AAPL", "2", "100"))
    bad = '{"symbol": "MSFT", "qty": NaN, "avg_entry_price": "1"}'
    by_url.broker.answers[EXACT_PATH] = f"[{bad}, {good}, 5, {{}}]".encode()

    def usable() -> Any:
        rows = [row for row in positions(by_url) if row["symbol"] != "MARK"]
        return [row for row in rows if row["qty"] is not None] if rows else None

    (found,) = by_url.stage.eventually(usable, what=lambda: positions(by_url))
    assert (found["symbol"], found["qty"]) == ("AAPL", 2)


def test_a_row_in_another_currency_is_read_from_its_dollars(by_url: Outside) -> None:
    row = held("AAPL", "2", "1000", current="1100", lastday="1050", swap_rate="10")
    row["usd"] = {"avg_entry_price": "100", "current_price": "110", "lastday_price": "105"}
    (found,) = read(by_url, [row], "AAPL")
    assert found["avg_entry_price"] == 100
    by_url.until("AAPL", current_price=110, mark="previous", unrealized_pnl=20)
