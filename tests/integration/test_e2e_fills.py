"""Fills by event: simulator, service, Valkey and gateway as processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

PNL = "/api/v1/positions/pnl/realtime"
SLOW = {"MDSERVICE_POSITIONS_INTERVAL": "60"}
"""What shows sooner has come by an event."""
CALL, PUT = "AAPL281215C00200000", "AAPL281215P00200000"


class Account:
    """Hears ``account.updated`` in a thread, all in order."""

    def __init__(self, stage: Any, valkey: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self._client = valkey.client()
        self._pubsub = self._client.pubsub()
        self._pubsub.subscribe("account.updated")
        assert self._pubsub.get_message(timeout=20)["type"] == "subscribe"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        stage.defer(self.close)

    def _listen(self) -> None:
        while not self._stop.is_set():
            message = self._pubsub.get_message(timeout=0.1)
            if message is not None and message["type"] == "message":
                self.messages.append(json.loads(message["data"]))

    def fills(self) -> list[tuple[str, float]]:
        """Symbol and quantity of each fill so far."""
        fills = [each for each in list(self.messages) if "fill" in each["event"]]
        return [(each["symbol"], each["position_qty"]) for each in fills]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._pubsub.close()
        self._client.close()


class Gateway:
    """``mdservice gateway`` as a process."""

    def __init__(self, stage: Any, service: Any, env: dict[str, str], **more: str) -> None:
        port = stage.free_port()
        self.stage = stage
        self.program = stage.program(
            "gateway",
            folder=service.folder,
            **env | SLOW | more | {"MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{port}"},
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        stage.defer(self.http.close)

        def answers() -> bool:
            assert self.program.process.poll() is None, self.program.said
            try:
                return self.http.get("/api/v1/positions").status_code == 200
            except httpx.TransportError:
                return False

        stage.eventually(answers, within=30, what=lambda: self.program.said)

    def pnl(self) -> dict[str, Any]:
        return dict(self.http.get(PNL).json())

    def held(self) -> dict[str, float]:
        return {row["symbol"]: row["qty"] for row in self.pnl()["positions"]}

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of its stream, with what each holds."""
        with self.http.stream("GET", f"{PNL}/stream") as answer:
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))


def start(stage: Any, simulator: Any, valkey: Any, **env: str) -> tuple[Any, dict[str, str]]:
    """The service, with Alpaca's positions, and its variables."""
    given = stage.account(
        simulator, valkey, MDSERVICE_POSITIONS="alpaca", MDSERVICE_SYMBOLS="SPY", **SLOW, **env
    )
    service = stage.program("run", **given).wait_ready()
    service.until(lambda status: status["positions"]["updates"]["state"] == "following")
    return service, given


@pytest.mark.parametrize("text_updates", [False, True])
def test_a_fill_reaches_redis_the_feed_and_both_kinds_of_gateway(
    stage: Any, text_updates: bool
) -> None:
    simulator = stage.simulator(positions={"AAPL": (10, "100")}, text_updates=text_updates)
    valkey = stage.valkey()
    service, env = start(stage, simulator, valkey)
    account = Account(stage, valkey)
    of_service = Gateway(stage, service, env, MDSERVICE_POSITIONS="none")
    of_alpaca = Gateway(stage, service, env)
    stage.eventually(lambda: len(simulator.trading_connections) == 2)
    stage.eventually(lambda: all(c.subscriptions["streams"] for c in simulator.trading_connections))
    simulator.trade("AAPL", 5, 130)
    simulator.trade("BTC/USD", "0.5", 60000)
    for gateway in (of_service, of_alpaca):
        stage.eventually(lambda g=gateway: g.held() == {"AAPL": 15, "BTCUSD": 0.5})
    rows = {row["symbol"]: row for row in of_service.pnl()["positions"]}
    assert rows["AAPL"]["avg_entry_price"] == 110
    assert rows["BTCUSD"]["asset_class"] == "crypto"
    stage.eventually(lambda: account.fills() == [("AAPL", 15), ("BTC/USD", 0.5)])
    fill = next(each for each in account.messages if each["event"] == "fill")
    assert (fill["side"], fill["qty"], fill["price"]) == ("buy", 5, 130)
    assert fill["position"]["symbol"] == "AAPL"
    assert fill["position"]["qty"] == 15
    stage.eventually(
        lambda: (
            "positions"
            in service.get("/api/v1/market-data/subscriptions")["sources"].get("BTC/USD", [])
        )
    )
    assert service.counter("trade_updates_applied") == 2
    assert "mdservice_trade_updates_up 1.0" in service.http.get("/metrics").text


def test_late_and_repeated_events_never_turn_a_quantity_back(stage: Any) -> None:
    simulator = stage.simulator(positions={"AAPL": (10, "100")})
    valkey = stage.valkey()
    service, _ = start(stage, simulator, valkey)
    account = Account(stage, valkey)
    for _ in range(3):
        simulator.trade("AAPL", 5, 130)
    first, second, third = (u for u in simulator.trade_updates if u["event"] == "fill")
    for update in (first, third, second, first):
        simulator.send_trade_update(update)
    simulator.trade("AAPL", 1, 130)
    stage.eventually(lambda: account.fills()[-1:] == [("AAPL", 26)], what=account.fills)
    shown = [each["position"]["qty"] for each in account.messages if each["position"]]
    assert shown == sorted(shown)
    assert service.counter("trade_updates_late") == 4


def test_a_lost_fill_is_found_by_the_poll_and_reported(stage: Any) -> None:
    simulator = stage.simulator(positions={"AAPL": (10, "100")})
    valkey = stage.valkey()
    service, env = start(stage, simulator, valkey, MDSERVICE_LOG_FORMAT="json")
    gateway = Gateway(
        stage, service, env, MDSERVICE_POSITIONS="none", MDSERVICE_POSITIONS_INTERVAL="0.2"
    )
    simulator.mute(feed="trading")
    simulator.trade("AAPL", 20, 130)
    simulator.resume()
    simulator.send_raw(b"{", feed="trading")  # unreadable, so the positions are asked for
    stage.eventually(lambda: gateway.held() == {"AAPL": 30}, what=gateway.pnl)
    stage.eventually(
        lambda: any("AAPL" in text for text in gateway.pnl().get("warnings", [])),
        what=gateway.pnl,
    )
    assert service.status()["positions"]["differences"]
    assert service.counter("position_differences") == 1
    assert "positions_differed" in service.said
    assert service.status()["state"] == "running"


def test_a_multi_leg_fill_is_one_message_for_each_leg(stage: Any) -> None:
    simulator = stage.simulator(positions={CALL: (1, "3")}, cash=1_000_000)
    valkey = stage.valkey()
    service, env = start(stage, simulator, valkey)
    account = Account(stage, valkey)
    order = {
        "order_class": "mleg",
        "type": "market",
        "time_in_force": "day",
        "qty": "2",
        "legs": [
            {"symbol": CALL, "ratio_qty": "1", "side": "buy"},
            {"symbol": PUT, "ratio_qty": "1", "side": "sell"},
        ],
    }
    headers = {
        "APCA-API-KEY-ID": env["ALPACA_API_KEY"],
        "APCA-API-SECRET-KEY": env["ALPACA_SECRET_KEY"],
    }
    answer = httpx.post(f"{simulator.rest_url}/v2/orders", json=order, headers=headers)
    assert answer.status_code == 200, answer.text
    stage.eventually(lambda: account.fills() == [(CALL, 3), (PUT, -2)], what=account.messages)
    assert [each["position"]["multiplier"] for each in account.messages[-2:]] == [100, 100]
    held = {row["symbol"]: row["qty"] for row in service.get("/api/v1/positions")["positions"]}
    assert held == {CALL: 3, PUT: -2}


def test_a_refused_login_is_degraded_and_polling_goes_on(stage: Any) -> None:
    simulator = stage.simulator(positions={"AAPL": (10, "100")})
    simulator.refuse_next(402, feed="trading", times=1000)
    given = stage.account(
        simulator,
        stage.valkey(),
        MDSERVICE_POSITIONS="alpaca",
        MDSERVICE_SYMBOLS="SPY",
        MDSERVICE_POSITIONS_INTERVAL="0.1",
    )
    service = stage.program("run", **given).wait_ready()
    status = service.until(lambda s: s["state"] == "degraded" and s)
    assert status["positions"]["updates"]["state"] == "refused"
    assert "refuses the login" in str(status["reasons"])
    simulator.trade("AAPL", 5, 130)
    service.until(lambda s: s["positions"]["held"] == 1)
    stage.eventually(
        lambda: service.get("/api/v1/positions")["positions"][0]["qty"] == 15,
        what=service.status,
    )
    assert service.ready() == (True, [])
    assert service.end() == 0


def test_fills_during_an_outage_of_redis_are_published_after_it(stage: Any) -> None:
    simulator = stage.simulator(positions={"AAPL": (10, "100")})
    valkey = stage.valkey()
    service, _ = start(stage, simulator, valkey)
    valkey.kill()
    service.until(lambda s: not s["redis"]["connected"])
    simulator.trade("AAPL", 5, 130)
    service.until(lambda s: s["counters"]["trade_updates_applied"] == 1)
    valkey.start()
    account = Account(stage, valkey)
    simulator.trade("AAPL", 5, 130)
    stage.eventually(lambda: account.fills()[-1:] == [("AAPL", 20)], what=account.messages)
    service.until(lambda s: s["counters"]["account_updates_published"] == 4)
    assert service.counter("account_updates_dropped") == 0


def test_a_gateway_that_has_missed_a_fill_asks_when_redis_is_back(stage: Any) -> None:
    simulator = stage.simulator(positions={"AAPL": (10, "100")})
    valkey = stage.valkey()
    service, env = start(stage, simulator, valkey)
    gateway = Gateway(stage, service, env, MDSERVICE_POSITIONS="none")
    simulator.trade("AAPL", 5, 130)
    stage.eventually(lambda: gateway.held() == {"AAPL": 15}, what=gateway.pnl)
    valkey.kill()
    simulator.trade("AAPL", 5, 130)
    service.until(lambda s: s["counters"]["trade_updates_applied"] == 2)
    valkey.start()
    stage.eventually(lambda: gateway.held() == {"AAPL": 20}, what=gateway.pnl)


def test_check_tries_the_login(stage: Any) -> None:
    simulator = stage.simulator(positions={"AAPL": (10, "100")})
    env = stage.account(simulator, stage.valkey(), MDSERVICE_POSITIONS="alpaca")
    program = stage.program("check", **env)
    assert program.code() == 0, program.said
    assert "trading stream" in program.stdout
    assert "logged in" in program.stdout
    simulator.refuse_next(402, feed="trading", times=2)
    program = stage.program("check", **env)
    assert program.code() == 1
    assert "refuses the login" in program.stdout
