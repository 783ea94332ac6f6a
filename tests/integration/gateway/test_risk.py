"""The limits of a mounted router, over HTTP: real FastAPI, real Valkey, both event loops."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI

from mdservice.client.discovery import GivenServer
from mdservice.errors import PositionsUnavailable
from mdservice.gateway import trading_allowed
from mdservice.gateway.make import make_tracker
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.gateway.risk_routes import BreakerAnswer, CheckAnswer, RiskAnswer
from mdservice.gateway.serve import serve_gateway
from mdservice.model.position import Position
from mdservice.pnl.breaker import Breaker
from mdservice.settings import Settings
from mdservice.testing import FakePositions
from tests.integration.conftest import patient
from tests.integration.gateway.conftest import Gateway, exact, open_gateway

RISK = "/api/v1/risk"
Run = Callable[..., None]


def held(symbol: str, qty: str = "10") -> Position:
    return Position(symbol, Decimal(qty), Decimal(150))


async def risk(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.http.get(RISK)
    assert answer.status_code == 200, answer.text
    RiskAnswer.model_validate_json(answer.text)
    return exact(answer.text)


async def until(gateway: Gateway, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    while not condition(found := await risk(gateway)):
        await anyio.sleep(0.02)
    return found


async def check(gateway: Gateway, side: str, qty: object, **more: object) -> list[str]:
    order = {"symbol": "AAPL", "side": side, "qty": qty, **more}
    answer = await gateway.http.post(f"{RISK}/check", json=order)
    assert answer.status_code == 200, answer.text
    found = CheckAnswer.model_validate_json(answer.text)
    assert found.allowed is (not found.reasons)
    return found.reasons


async def placed(gateway: Gateway) -> int:
    return (await gateway.http.post("/orders")).status_code


def tripped(found: dict[str, Any]) -> bool:
    return bool(found["breaker"]["state"] == "tripped")


def key_of(valkey: Any, key: str = "risk:breaker") -> tuple[Any, int]:
    with valkey.client() as client:
        content = client.get(key)
        return None if content is None else json.loads(content), client.ttl(key)


def test_a_limit_trips_the_breaker_until_it_is_reset(run: Run, valkey: Any) -> None:
    async def body(gateway: Gateway) -> None:
        await until(gateway, lambda found: found["blind"] == ["AAPL: no price is known"])
        assert await placed(gateway) == 503
        gateway.write(gateway.quote("AAPL", 100, 100))
        found = await until(gateway, lambda found: not found["blind"])
        assert found == {
            "breaker": dict.fromkeys(["rule", "subject", "value", "at"]) | {"state": "closed"},
            "limits": [
                {"rule": "AAPL qty > 20", "subject": "AAPL", "value": 10, "used": Decimal("0.5")},
                {"rule": "total pnl < -1000", "subject": "total", "value": -500, "used": Decimal("0.5")},
            ],
            "blind": [],
        }  # fmt: skip
        assert await placed(gateway) == 200
        assert await check(gateway, "buy", 10) == []
        assert await check(gateway, "buy", "10.5") == ["AAPL qty > 20: AAPL would be at 20.5"]
        assert len(await check(gateway, "buy", 10, price=151)) == 1
        gateway.write(gateway.quote("AAPL", 49, 49.5))
        found = await until(gateway, tripped)
        breaker = found["breaker"]
        assert (breaker["rule"], breaker["subject"]) == ("total pnl < -1000", "total")
        assert breaker["value"] == Decimal("-1007.5")
        assert await placed(gateway) == 423
        assert len(await check(gateway, "sell", 1)) == 1
        while key_of(valkey)[0] is None:
            await anyio.sleep(0.02)
        assert key_of(valkey) == ({**breaker, "value": -1007.5}, -1)
        answer = await gateway.http.post(f"{RISK}/reset")
        assert answer.status_code == 409
        gateway.write(gateway.quote("AAPL", 100, 100))
        while (answer := await gateway.http.post(f"{RISK}/reset")).status_code != 200:
            assert answer.status_code == 409, answer.text
            await anyio.sleep(0.02)
        assert BreakerAnswer.model_validate_json(answer.text).state == "closed"
        assert key_of(valkey) == (answer.json(), -1)
        assert await placed(gateway) == 200

    run(body, FakePositions([held("AAPL")]), limits=["AAPL qty > 20", "total pnl < -1000"])


def test_a_size_that_has_tripped_can_be_reduced(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 100, 100))
        gateway.write(gateway.quote("MSFT", 100, 100))
        await until(gateway, lambda found: tripped(found) and not found["blind"])
        while await check(gateway, "sell", 1):
            await anyio.sleep(0.02)
        assert len(await check(gateway, "sell", 11)) == 1
        assert len(await check(gateway, "buy", 1)) == 1
        assert len(await check(gateway, "buy", 1, symbol="MSFT")) == 1
        assert await placed(gateway) == 423

    run(body, FakePositions([held("AAPL")]), limits=["* value > 900"])


def test_a_price_that_stands_only_in_its_key_is_used(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        await until(gateway, lambda found: found["blind"] == ["AAPL: no price is known"])
        gateway.write(gateway.quote("AAPL", 100, 100), publish=False)
        gateway.write(gateway.quote("MSFT", 100, 100), publish=False)
        assert await placed(gateway) == 200
        assert await check(gateway, "buy", 1, symbol="MSFT") == []
        assert await check(gateway, "buy", 1, symbol="NVDA") == ["NVDA: no price is known"]

    run(body, FakePositions([held("AAPL")]), limits=["* value > 5000"])


@pytest.mark.parametrize(
    "order",
    [
        {"side": "buy", "qty": 1},
        {"symbol": "A A", "side": "buy", "qty": 1},
        {"symbol": "A", "side": "short", "qty": 1},
        {"symbol": "A", "side": "buy", "qty": 0},
        {"symbol": "A", "side": "buy", "qty": -1},
        {"symbol": "A", "side": "buy", "qty": "NaN"},
        {"symbol": "A", "side": "buy", "qty": "1e400"},
        {"symbol": "A", "side": "buy", "qty": 1, "price": 0},
        {"symbol": "A", "side": "buy", "qty": 1, "limit": 1},
        [],
    ],
)
def test_an_order_that_is_none_is_refused(run: Run, order: object) -> None:
    async def body(gateway: Gateway) -> None:
        assert (await gateway.http.post(f"{RISK}/check", json=order)).status_code == 422

    run(body)


def test_without_limits_everything_is_allowed(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        found = await risk(gateway)
        assert (found["limits"], found["blind"]) == ([], [])
        assert await check(gateway, "buy", 10**6) == []
        assert await placed(gateway) == 200

    run(body, FakePositions([held("AAPL")]))


def test_positions_that_are_not_known_stop_trading(run: Run) -> None:
    source = FakePositions([held("AAPL")])
    source.always = PositionsUnavailable("the broker is away")

    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 100, 100))
        found = await until(gateway, lambda found: len(found["blind"]) == 1)
        (reason,) = found["blind"]
        assert "the broker is away" in reason
        assert await placed(gateway) == 503
        assert reason in await check(gateway, "buy", 1)
        source.always = None
        await until(gateway, lambda found: not found["blind"])
        assert await placed(gateway) == 200
        source.always = PositionsUnavailable("away again")
        await until(gateway, lambda found: found["blind"])
        assert await placed(gateway) == 503

    run(body, source, limits=["AAPL qty > 20"])


def test_a_redis_that_is_gone_stops_trading(run: Run, fresh_valkey: Any) -> None:
    async def body(gateway: Gateway) -> None:
        await until(gateway, lambda found: not found["blind"])
        assert await placed(gateway) == 200
        fresh_valkey.kill()
        assert await placed(gateway) == 503
        assert (await gateway.http.get(RISK)).status_code == 503
        order = {"symbol": "AAPL", "side": "buy", "qty": 1}
        assert (await gateway.http.post(f"{RISK}/check", json=order)).status_code == 503
        assert (await gateway.http.post(f"{RISK}/reset")).status_code == 503

    run(
        body,
        FakePositions([held("AAPL")]),
        limits=["AAPL qty > 20"],
        valkey_of_its_own=fresh_valkey,
    )


@pytest.mark.parametrize("lifespan", [False])
def test_without_the_lifespan_nothing_is_judged(run: Run, lifespan: bool) -> None:
    async def body(gateway: Gateway) -> None:
        assert (await gateway.http.get(RISK)).status_code == 503
        assert (await gateway.http.post(f"{RISK}/reset")).status_code == 503
        refused = await gateway.http.post("/orders")
        assert refused.status_code == 503
        assert "does not run" in refused.text, "another gateway was asked"

    run(body, lifespan=lifespan, limits=["AAPL qty > 20"])


def test_a_reset_needs_the_token_where_there_is_one(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic token"}):
            answer = await gateway.http.post(f"{RISK}/reset", headers=header)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
        header = {"Authorization": "Bearer token"}
        assert (await gateway.http.post(f"{RISK}/reset", headers=header)).status_code == 200
        assert (await gateway.http.get(RISK)).status_code == 200

    run(body, api_token="token")


def test_two_gateways_share_a_breaker_which_a_restart_keeps(run: Run, valkey: Any) -> None:
    messages: list[bytes] = []

    async def body(one: Gateway) -> None:
        with valkey.client() as client:
            pubsub = client.pubsub()
            pubsub.subscribe("risk.breaker")
            while (pubsub.get_message(timeout=10) or {}).get("type") != "subscribe":
                pass
            async with open_gateway(
                valkey, FakePositions([held("AAPL")]), limits=["AAPL qty > 5"]
            ) as two:
                for gateway in (one, two):
                    await until(gateway, tripped)
                while key_of(valkey)[0] is None:
                    await anyio.sleep(0.02)
                client.publish("risk.breaker", "end")
                while (found := pubsub.get_message(timeout=10)) is None or found["data"] != b"end":
                    if found is not None:
                        messages.append(found["data"])
                await until(two, tripped)
            one.source.set()
            await until(one, lambda found: not found["limits"][0]["value"])
            async with open_gateway(valkey) as three:
                assert tripped(await risk(three))
                assert await placed(three) == 423
                assert (await three.http.post(f"{RISK}/reset")).status_code == 200
            await until(one, lambda found: not tripped(found))
            assert key_of(valkey)[0]["state"] == "closed"
        assert len(messages) == 1

    run(body, FakePositions([held("AAPL")]), limits=["AAPL qty > 5"])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_gateways_change_the_breaker_once(valkey: Any, backend: str) -> None:
    tripped_by_one = Breaker("tripped", "A qty > 1", "A", Decimal(2), "2026-11-20T15:51:44Z")
    changes: list[bool] = []

    def trip(found: Breaker | None) -> Breaker | None:
        return None if found is not None and found.tripped else tripped_by_one

    async def one_gateway() -> None:
        calls = RedisCalls(GivenServer(valkey.url))
        try:
            standing, changed = await calls.change_breaker(trip)
        finally:
            calls.close()
        assert standing == tripped_by_one
        changes.append(changed)

    async def main() -> None:
        with anyio.fail_after(patient(60)):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(one_gateway)

    anyio.run(main, backend=backend)
    assert sorted(changes) == [False] * 19 + [True]


class Hook(BaseHTTPRequestHandler):
    """Fails once, then keeps what is posted."""

    def do_POST(self) -> None:
        received: list[tuple[str | None, bytes]] = self.server.received  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["content-length"]))
        received.append((self.headers["x-mdservice-signature"], body))
        self.send_response(503 if len(received) == 1 else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_alerts_and_the_breaker_go_to_the_webhook(run: Run, valkey: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    received: list[tuple[str | None, bytes]] = []
    server.received = received  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 140, 140))
        await until(gateway, tripped)
        while len(received) < 3:
            await anyio.sleep(0.02)
        with valkey.client() as client:
            content = client.get("risk:breaker")
        bodies = [body for _, body in received]
        assert bodies[0] == bodies[1]
        assert set(bodies) > {content}
        assert {json.loads(body).get("kind") for body in bodies} == {"pnl", None}
        for signature, body in received:
            digest = hmac.new(b"token", body, hashlib.sha256).hexdigest()
            assert signature == f"sha256={digest}"

    try:
        run(
            body,
            FakePositions([held("AAPL")]),
            alerts=["AAPL pnl < -50 trip"],
            alert_webhook=f"http://127.0.0.1:{server.server_port}/hook",
            api_token="token",
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_key_that_is_no_breaker_stops_trading(run: Run, valkey: Any) -> None:
    with valkey.client() as client:
        client.set("risk:breaker", b"open")

    async def body(gateway: Gateway) -> None:
        assert await placed(gateway) == 503
        assert "risk:breaker" in (await gateway.http.get(RISK)).json()["detail"]

    run(body)


def test_another_program_asks_the_judging_gateway(
    valkey: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    app = FastAPI()

    @app.post("/orders", dependencies=[Depends(trading_allowed)])
    async def place_order() -> str:
        return "placed"

    async def status() -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://orders") as client:
            return (await client.post("/orders")).status_code

    async def main() -> None:
        settings = Settings(gateway_http="127.0.0.1:0", positions_interval=0.05)
        source = FakePositions([held("AAPL", "1")])
        tracker = make_tracker(source, settings, redis_url=valkey.url, limits=["AAPL qty > 5"])
        with anyio.fail_after(patient(60)):
            async with anyio.create_task_group() as tasks:
                address = await tasks.start(serve_gateway, tracker, settings)
                monkeypatch.setenv("MDSERVICE_GATEWAY_HTTP", address)
                while await status() != 200:
                    await anyio.sleep(0.05)
                source.set(held("AAPL", "6"))
                while await status() != 423:
                    await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()
            assert await status() == 503

    anyio.run(main)
