"""What a trip does at the broker: simulator, Valkey and gateways, each its own process."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_e2e_orders import KEYS, price

CONFIGURATION, ORDERS = "/v2/account/configurations", "/v2/orders"
SUSPEND, CANCEL = ("PATCH", CONFIGURATION), ("DELETE", ORDERS)
BOTH = "suspend_trade,cancel_orders"


class Desk:
    """A simulated account with open orders, and gateways that judge it."""

    def __init__(self, stage: Any, valkey: Any) -> None:
        self.stage, self.valkey = stage, valkey
        self.broker = stage.simulator()
        self.held = stage.folder() / "positions.json"
        row = {"symbol": "AAPL", "qty": 10, "avg_entry_price": "100"}
        self.held.write_text(json.dumps([row]))
        self.http = httpx.Client(timeout=30)
        order = {"symbol": "AAPL", "qty": "1", "side": "buy", "type": "limit", "limit_price": "1"}
        for _ in range(2):
            self.ask("POST", ORDERS, json={**order, "time_in_force": "day"})

    def ask(self, method: str, path: str, **options: Any) -> Any:
        headers = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
        url = f"{self.broker.rest_url}{path}"
        answer = self.http.request(method, url, headers=headers, **options)
        assert answer.is_success, answer.text
        return answer.json()

    def gateway(self, **env: str) -> tuple[Any, str]:
        port = self.stage.free_port()
        program = self.stage.program(
            "gateway",
            MDSERVICE_REDIS_URL=self.valkey.url,
            MDSERVICE_GATEWAY_HTTP=f"127.0.0.1:{port}",
            MDSERVICE_GATEWAY_POSITIONS=f"file:{self.held}",
            MDSERVICE_POSITIONS_INTERVAL="0.1",
            MDSERVICE_LIMITS="total pnl < -500",
            MDSERVICE_TRADING_URL=self.broker.rest_url,
            **{**KEYS, "MDSERVICE_ON_TRIP": BOTH, **env},
        )
        return program, f"http://127.0.0.1:{port}/api/v1/risk"

    def risk(self, url: str) -> Any:
        try:
            answer = self.http.get(url)
        except httpx.TransportError:
            return {}
        return answer.json() if answer.status_code == 200 else {}

    def until(self, url: str, condition: Any) -> Any:
        return self.stage.eventually(
            lambda: found if (found := self.risk(url)) and condition(found) else None,
            within=60,
            what=lambda: f"{self.risk(url)} {self.calls()}",
        )

    def calls(self) -> list[tuple[str, str]]:
        """What has changed the account, but for the orders placed."""
        asked = [(one.method, one.path) for one in self.broker.rest_requests]
        return [one for one in asked if one[0] in {"PATCH", "DELETE"}]

    def is_stopped(self) -> bool:
        return self.ask("GET", CONFIGURATION)["suspend_trade"] and not self.ask("GET", ORDERS)

    def close(self) -> None:
        self.http.close()


@pytest.fixture
def desk(stage: Any, fresh_valkey: Any) -> Any:
    found = Desk(stage, fresh_valkey)
    yield found
    found.close()


def judged(found: Any) -> bool:
    return bool(found["blind"] == [])


def settled(found: Any) -> bool:
    outcomes = found["on_trip"]["outcomes"]
    return bool(outcomes) and all(one["state"] != "pending" for one in outcomes)


def test_a_trip_stops_the_account_once(desk: Desk) -> None:
    price(desk.valkey, "AAPL", 100)
    (one, url), (two, other_url) = desk.gateway(), desk.gateway()
    for each in (url, other_url):
        found = desk.until(each, judged)
        assert found["on_trip"] == {
            "actions": BOTH.split(","), "trip": None, "outcomes": [],
        }  # fmt: skip
    assert desk.calls() == []
    price(desk.valkey, "AAPL", 40)
    for each in (url, other_url):
        found = desk.until(each, settled)
        assert found["on_trip"]["trip"] == found["breaker"]["at"]
        assert [one["state"] for one in found["on_trip"]["outcomes"]] == ["done", "done"]
    assert desk.is_stopped()
    for program in (one, two):
        assert program.end() == 0
    again, url = desk.gateway()
    desk.until(url, settled)
    price(desk.valkey, "AAPL", 100)
    desk.stage.eventually(
        lambda: desk.http.post(f"{url}/reset").status_code == 200, within=60, what=again.said
    )
    assert desk.until(url, judged)["breaker"]["state"] == "closed"
    assert desk.calls() == [SUSPEND, CANCEL]
    assert desk.is_stopped()


def test_a_gateway_that_is_killed_before_it_acts_does_so_after_its_restart(desk: Desk) -> None:
    price(desk.valkey, "AAPL", 100)
    gateway, url = desk.gateway()
    desk.until(url, judged)
    desk.broker.slow_rest(math.inf, path=CONFIGURATION)
    price(desk.valkey, "AAPL", 40)
    desk.stage.eventually(desk.calls, within=60, what=lambda: gateway.said)
    gateway.process.send_signal(signal.SIGKILL)
    assert gateway.code() == -signal.SIGKILL
    price(desk.valkey, "AAPL", 100)  # the limit does not hold any more: only Redis knows the trip
    _, plain_url = desk.gateway(MDSERVICE_ON_TRIP="")
    assert desk.until(plain_url, judged)["breaker"]["state"] == "tripped"
    _, url = desk.gateway()
    found = desk.until(url, settled)
    assert found["breaker"]["state"] == "tripped"
    assert desk.is_stopped()
    assert desk.calls() == [SUSPEND, SUSPEND, CANCEL]


def test_a_broker_that_fails_is_asked_again(desk: Desk) -> None:
    price(desk.valkey, "AAPL", 100)
    _, url = desk.gateway()
    desk.until(url, judged)
    desk.broker.refuse_rest(503, 0, "busy", path=CONFIGURATION)
    desk.broker.cut_rest(path=CONFIGURATION)
    price(desk.valkey, "AAPL", 40)
    found = desk.until(url, settled)
    assert [one["state"] for one in found["on_trip"]["outcomes"]] == ["done", "done"]
    assert desk.is_stopped()
    assert desk.calls()[-2:] == [SUSPEND, CANCEL]


@pytest.mark.parametrize(
    "env", [{}, {**KEYS, "MDSERVICE_FEED": "simulator"}, {"MDSERVICE_ON_TRIP": "close_positions"}]
)
def test_without_an_account_it_is_a_configuration_error(stage: Any, env: dict[str, str]) -> None:
    folder: Path = stage.folder()
    given = {"MDSERVICE_ON_TRIP": BOTH, "MDSERVICE_REDIS_URL": "redis://127.0.0.1:9", **env}
    gateway = stage.program("gateway", folder=folder, **given)
    assert gateway.code() == 78, gateway.said
    assert "on_trip" in gateway.stderr
    assert "secret" not in gateway.stderr
