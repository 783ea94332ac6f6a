"""The account's day in whole processes: broker, Valkey and `mdservice gateway`."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import httpx

KEYS = {"ALPACA_API_KEY": "key", "ALPACA_SECRET_KEY": "secret"}
WITHIN_S = 60.0


def exact(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def test_a_gateway_and_its_successor_agree_with_the_broker(stage: Any, fresh_valkey: Any) -> None:
    broker = stage.simulator(
        positions={"AAPL": (10, "180.5")}, sale_fee="0.0000278", rest_rate_limit=None
    )
    http = httpx.Client(timeout=30)
    stage.defer(http.close)

    def gained() -> Decimal:
        account = http.get(f"{broker.rest_url}/v2/account", headers={}).json()
        return Decimal(account["equity"]) - Decimal(account["last_equity"])

    def started() -> tuple[Any, str]:
        port = stage.free_port()
        program = stage.program(
            "gateway",
            MDSERVICE_REDIS_URL=fresh_valkey.url,
            MDSERVICE_GATEWAY_HTTP=f"127.0.0.1:{port}",
            MDSERVICE_POSITIONS="alpaca",
            MDSERVICE_POSITIONS_INTERVAL="0.1",
            MDSERVICE_TRADING_URL=broker.rest_url,
            **KEYS,
        )
        return program, f"http://127.0.0.1:{port}/api/v1/account/pnl/day"

    def day(url: str) -> Any:
        try:
            answer = http.get(url)
        except httpx.TransportError:
            return None
        return exact(answer.text) if answer.status_code == 200 else None

    def agrees(url: str, fills: int) -> Any:
        found = day(url)
        if found is None or found["total"] is None:
            return None
        counted = sum(one["fills"] for one in found["symbols"])
        near = abs(found["total"] - gained()) <= Decimal("0.01")
        return found if counted == fills and near else None

    gateway, url = started()
    stage.eventually(lambda: agrees(url, 0), within=WITHIN_S, what=lambda: (day(url), gateway.said))
    broker.trade("AAPL", -10, "200.25")
    broker.trade("KO", 3, "61.5")
    first = stage.eventually(
        lambda: agrees(url, 2), within=WITHIN_S, what=lambda: (day(url), gateway.said)
    )
    assert first["realized_pnl"] == 10 * (Decimal("200.25") - Decimal("180.5"))
    gateway.close()
    successor, url = started()
    second = stage.eventually(
        lambda: agrees(url, 2), within=WITHIN_S, what=lambda: (day(url), successor.said)
    )
    assert second["realized_pnl"] == first["realized_pnl"]
    assert second["fees"] > 0
    http.close()
