"""Orders through the limits: broker, Valkey, judging gateway and order program, each its own."""

from __future__ import annotations

import json
import signal
from decimal import Decimal
from typing import Any

import httpx
import pytest

from mdservice.clock import SystemClock
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote

WITHIN_S = 60.0
KEYS = {"ALPACA_API_KEY": "key", "ALPACA_SECRET_KEY": "secret"}


@pytest.fixture
def broker(stage: Any) -> Any:
    return stage.simulator()


def price(valkey: Any, symbol: str, price: float) -> None:
    at_ns = SystemClock().utc_ns()
    payload = encode_quote(Quote(symbol, price, price, 1, 1, at_ns, at_ns, 1))
    with valkey.client() as client:
        client.set(f"price:{symbol}", payload)
        client.publish("price.updated", payload)


def test_orders_are_placed_only_within_the_limits(
    stage: Any, fresh_valkey: Any, broker: Any
) -> None:
    port, orders_port = stage.free_port(), stage.free_port()
    folder = stage.folder()
    held = folder / "positions.json"

    def hold(qty: int) -> None:
        row = {"symbol": "AAPL", "qty": qty, "avg_entry_price": "100"}
        held.write_text(json.dumps({"positions": [row]}))

    hold(10)
    gateway_env = {
        "MDSERVICE_REDIS_URL": fresh_valkey.url,
        "MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{port}",
        "MDSERVICE_GATEWAY_POSITIONS": f"file:{held}",
        "MDSERVICE_POSITIONS_INTERVAL": "0.1",
        "MDSERVICE_LIMITS": "AAPL qty > 15; total pnl < -500",
        **KEYS,
    }
    gateway = stage.program("gateway", **gateway_env)
    program = stage.example(
        "place_orders.py",
        str(orders_port),
        MDSERVICE_GATEWAY_HTTP=f"127.0.0.1:{port}",
        MDSERVICE_TRADING_URL=broker.rest_url,
        **KEYS,
    )
    http = httpx.Client(timeout=30)
    risk = f"http://127.0.0.1:{port}/api/v1/risk"

    def place(qty: str) -> httpx.Response | None:
        order = {"symbol": "AAPL", "side": "buy", "qty": qty}
        try:
            return http.post(f"http://127.0.0.1:{orders_port}/orders", json=order)
        except httpx.TransportError:
            return None

    def until(status: int, qty: str) -> httpx.Response:
        found: httpx.Response = stage.eventually(
            lambda: answer if (answer := place(qty)) and answer.status_code == status else None,
            within=WITHIN_S,
            what=lambda: f"{place(qty)} {program.said} {gateway.said}",
        )
        return found

    until(503, "1")
    price(fresh_valkey, "AAPL", 100)
    until(403, "6")
    placed = until(200, "1").json()
    assert (placed["symbol"], Decimal(placed["qty"]), placed["side"]) == ("AAPL", 1, "buy")
    price(fresh_valkey, "AAPL", 40)
    until(423, "1")
    assert http.post(f"{risk}/reset").status_code == 409
    gateway.process.send_signal(signal.SIGKILL)
    until(503, "1")
    again = stage.program("gateway", **gateway_env)
    until(423, "1")
    price(fresh_valkey, "AAPL", 100)
    stage.eventually(
        lambda: http.post(f"{risk}/reset").status_code == 200,
        within=WITHIN_S,
        what=lambda: again.said,
    )
    until(200, "1")
    http.close()
