"""An account of stocks, crypto and options, long, short and in fractions: whole processes."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import httpx
import pytest

from mdservice.model.timestamps import format_ns
from mdservice.simulator import crypto, options, stocks

WITHIN_S = 60.0
CALL, PUT = "AAPL281215C00200000", "SPY281215P00600000"
HELD = {
    "AAPL": ("10", "150.25"),
    "MSFT": ("-3", "431.2"),
    "NVDA": ("0.333333333", "171.255"),
    "BTC/USD": ("0.123456789", "60123.45"),
    "ETH/USD": ("2.5", "3000.000000001"),
    CALL: ("3", "12.35"),
    PUT: ("-2", "40.1"),
}
CLASSES = {
    "BTCUSD": ("crypto", crypto.QUOTES, 1),
    "ETHUSD": ("crypto", crypto.QUOTES, 1),
    CALL: ("us_option", options.QUOTES, 100),
    PUT: ("us_option", options.QUOTES, 100),
}
STOCK = ("us_equity", stocks.QUOTES, 1)


def price_by_hand(simulator: Any, kind: Any, symbol: str, when: str) -> set[Decimal]:
    """The mids of the simulator's own records of that time."""
    return {
        (Decimal(str(quote.bid)) + Decimal(str(quote.ask))) / 2
        for quote in list(simulator.history_of(kind))
        if quote.symbol == symbol and format_ns(quote.ts_event_ns) == when
    }


@pytest.mark.parametrize("source", ["service", "alpaca"])
def test_every_position_is_priced_and_the_sums_are_exact(stage: Any, source: str) -> None:
    simulator = stage.simulator(
        positions=HELD, rate=40, crypto_rate=40, options_rate=40, halt_every_s=None
    )
    valkey = stage.valkey()
    service = stage.service(
        simulator, valkey, MDSERVICE_POSITIONS="alpaca", MDSERVICE_POSITIONS_INTERVAL="0.2"
    ).wait_ready()
    env = stage.account(simulator, valkey, MDSERVICE_GATEWAY_HTTP="127.0.0.1:0")
    if source == "alpaca":
        env["MDSERVICE_POSITIONS"] = "alpaca"
    gateway = stage.program("gateway", folder=service.folder, **env)
    url = gateway_url(stage, gateway)

    def all_live() -> Any:
        found = stage.exact(httpx.get(url, timeout=30).text)
        rows = found.get("positions", [])
        done = len(rows) == len(HELD) and {row["status"] for row in rows} == {"live"}
        return done and found

    found = stage.eventually(
        all_live, within=WITHIN_S, what=lambda: (httpx.get(url).text, service.status())
    )
    rows = {row["symbol"]: row for row in found["positions"]}
    assert list(rows) == [symbol.replace("/", "") for symbol in HELD]
    total = Decimal(0)
    for feed_symbol, (qty, avg) in HELD.items():
        symbol = feed_symbol.replace("/", "")
        row = rows[symbol]
        _asset_class, kind, multiplier = CLASSES.get(symbol, STOCK)
        price = Decimal(row["current_price"])
        assert price in price_by_hand(simulator, kind, feed_symbol, row["last_updated"])
        assert (row["qty"], row["avg_entry_price"]) == (Decimal(qty), Decimal(avg))
        pnl = (price - Decimal(avg)) * Decimal(qty) * multiplier
        assert row["unrealized_pnl"] == pnl
        cost = abs(Decimal(qty)) * Decimal(avg) * multiplier
        assert row["unrealized_pnl_pct"] == round(pnl / cost * 100, 4)
        total += pnl
    assert found["total_unrealized_pnl"] == total
    assert (found["priced"], found["unpriced"]) == (len(HELD), 0)
    assert "warnings" not in found

    status = service.status()
    assert status["positions"]["problems"] == {}
    feeds = {name: feed["connected"] for name, feed in status["feeds"].items()}
    assert feeds == {"stocks": True, "crypto": True, "options": True, "news": False}
    alpacas = {row["symbol"]: row for row in simulator_positions(simulator)}
    of_gateway = stage.exact(httpx.get(url.replace("/pnl/realtime", ""), timeout=30).text)
    for told in (service.get("/api/v1/positions"), of_gateway):
        for row in told["positions"]:
            asset_class, _, multiplier = CLASSES.get(row["symbol"], STOCK)
            assert (row["asset_class"], row["multiplier"]) == (asset_class, multiplier)
            assert row["lastday_price"] == Decimal(alpacas[row["symbol"]]["lastday_price"])
            assert row["current_price"] > 0
    assert [row["symbol"] for row in told["positions"]] == list(rows)


def simulator_positions(simulator: Any) -> Any:
    headers = {"APCA-API-KEY-ID": "k", "APCA-API-SECRET-KEY": "s"}
    return httpx.get(f"{simulator.rest_url}/v2/positions", headers=headers, timeout=30).json()


def gateway_url(stage: Any, gateway: Any) -> Any:
    return stage.eventually(lambda: re.search(r"p&l +(http\S+)", gateway.stdout), within=WITHIN_S)[
        1
    ]


def write_positions(stage: Any) -> str:
    """Positions whose source knows no prices."""
    file = stage.folder() / "positions.json"
    rows = [
        {"symbol": symbol, "qty": qty, "avg_entry_price": avg}
        for symbol, (qty, avg) in HELD.items()
    ]
    file.write_text(json.dumps(rows))
    return f"file:{file}"


def service_with_prices(stage: Any, simulator: Any, valkey: Any, positions: str) -> Any:
    """A service that has a price of each position."""
    env = {"MDSERVICE_POSITIONS": positions, "MDSERVICE_RENEW_PRICES": "off"}
    service = stage.service(simulator, valkey, **env).wait_ready()
    latest = "/api/v1/market-data/latest/quotes"
    stage.eventually(lambda: len(service.get(latest)["records"]) == len(HELD), within=WITHIN_S)
    return service


def when_priced(stage: Any, gateway: Any) -> Any:
    """The first answer in which no position is without a price."""
    url = gateway_url(stage, gateway)

    def all_priced() -> Any:
        found = stage.exact(httpx.get(url, timeout=30).text)
        return found.get("priced") == len(HELD) and found

    return stage.eventually(all_priced, within=WITHIN_S, what=lambda: httpx.get(url).text)


def test_after_the_service_ended_prices_come_from_alpaca(stage: Any) -> None:
    simulator, valkey = stage.simulator(rate=40), stage.valkey()
    positions = write_positions(stage)
    assert service_with_prices(stage, simulator, valkey, positions).end() == 0
    with valkey.client() as client:
        client.flushall()
    env = stage.account(simulator, valkey, MDSERVICE_POSITIONS=positions)
    gateway = stage.program("gateway", **env, MDSERVICE_GATEWAY_HTTP="127.0.0.1:0")
    for row in when_priced(stage, gateway)["positions"]:
        _, kind, _ = CLASSES.get(row["symbol"].replace("/", ""), STOCK)
        hand = price_by_hand(simulator, kind, row["symbol"], row["last_updated"])
        assert row["current_price"] in hand
        assert row["mark"] == "mid"


def test_a_price_whose_key_is_gone_comes_from_the_service(stage: Any) -> None:
    simulator, valkey = stage.simulator(rate=40), stage.valkey()
    positions = write_positions(stage)
    service = service_with_prices(stage, simulator, valkey, positions)
    for feed in ("stocks", "crypto", "options"):
        simulator.mute(feed=feed)
    with valkey.client() as client:
        client.delete(*client.keys("price:*"))
    gateway = stage.program(
        "gateway",
        folder=service.folder,
        MDSERVICE_REDIS_URL=valkey.url,
        MDSERVICE_POSITIONS=positions,
        MDSERVICE_GATEWAY_HTTP="127.0.0.1:0",
    )
    when_priced(stage, gateway)
