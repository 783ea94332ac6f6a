"""The whole account as a gateway's clients see it: processes, a broker and Redis by hand."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

import pytest

from tests.integration.gateway.outside import (
    OPEN_CLOCK,
    Broker,
    Outside,
    held,
    rfc3339,
)

D = Decimal
CALL, PUT = "AAPL261218C00200000", "AAPL261218P00180000"
ADJUSTED = "AAPL1261218C00200000"


def opened(stage: Any, *, clock: Any = OPEN_CLOCK, **env: str) -> Outside:
    """A gateway beside a broker whose clock says that."""
    broker = Broker()
    broker.answers["/v2/clock"] = clock
    return Outside(stage, stage.valkey(), broker=broker, **env)


@pytest.fixture(scope="module")
def by_day(module_stage: Any) -> Outside:
    return opened(module_stage).ready()


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


def test_a_price_that_only_stands_in_redis_is_used(by_day: Outside) -> None:
    by_day.quote("QUIET", "49", "51", "50", publish=False)
    by_day.hold(held("QUIET", "2", "40"))
    by_day.until("QUIET", status="live", current_price=50, unrealized_pnl=20)


# ---- Fills.


@pytest.fixture
def by_event(stage: Any) -> Outside:
    """A gateway that asks for the positions once a minute."""
    broker = Broker()
    broker.answers["/v2/positions"] = [held("AAPL", "10", "100"), held("MSFT", "5", "400")]
    at = Outside(stage, stage.valkey(), broker=broker, MDSERVICE_POSITIONS_INTERVAL="60").ready()
    stage.eventually(lambda: broker.listeners, what=lambda: at.program.said)
    return at


def test_a_fill_shows_at_once_and_a_late_or_repeated_event_changes_nothing(
    by_event: Outside,
) -> None:
    broker, now_ns = by_event.broker, by_event.utc_ns()
    assert {key for said in broker.logins for key in said} <= {"action", "data", "key", "secret"}
    first = broker.update("AAPL", "buy", "5", "110", "15", now_ns)
    second = broker.update("AAPL", "buy", "5", "120", "20", now_ns + 1_000)
    broker.push(first)
    by_event.until("AAPL", qty=15)
    broker.push(second.decode(), first, second, first)  # text frames too
    broker.push(broker.update("MSFT", "sell", "7", "400", "-2", now_ns + 2_000))
    by_event.until("MSFT", qty=-2)  # it came behind all of them
    assert by_event.row("AAPL")["qty"] == 20
    broker.push(broker.update("MSFT", "buy", "2", "400", "0", now_ns + 3_000))
    by_event.stage.eventually(
        lambda: [row["symbol"] for row in by_event.pnl()["positions"]] == ["AAPL"],
        what=by_event.pnl,
    )
    broker.push(broker.update("TSLA", "sell", "1", "340", "-1", now_ns + 4_000))
    by_event.stage.eventually(
        lambda: any(row["symbol"] == "TSLA" for row in by_event.pnl()["positions"]),
        what=by_event.pnl,
    )
    assert by_event.row("TSLA")["qty"] == -1
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
    broker.answers["/v2/positions"] = [held("AAPL", "10", "100", lastday="99")]
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
