"""What an enemy of the limits tries, on both event loops."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request

from mdservice.gateway import pnl_router, trading_allowed
from mdservice.gateway.risk_routes import _body
from mdservice.model.position import Position
from mdservice.settings import Settings
from mdservice.testing import FakePositions
from tests.integration.conftest import patient
from tests.integration.gateway.test_risk import RISK, held, placed, tripped, until

Run = Callable[..., None]


@pytest.mark.parametrize(
    "body",
    [
        b'{"symbol":"AAPL","side":"buy","qty":NaN}',
        b'{"symbol":"AAPL","side":"buy","qty":Infinity}',
        b'{"symbol":"AAPL","side":"buy","qty":1,"price":NaN}',
        b'{"symbol":"AAPL","side":"buy","qty":1e400}',
        b'{"symbol":"AAPL","side":"buy","qty":1e-400}',
        b'{"symbol":"AAPL","side":"buy","qty":"-0"}',
        b'{"symbol":"AAPL","side":"buy","qty":"-1"}',
        b'{"symbol":"AAPL","side":"buy","qty":true}',
        b'{"symbol":"AAPL","side":"buy","qty":"1 or more"}',
        b'{"symbol":"AAPL","side":"buy","qty":"' + b"9" * 101 + b'"}',
        b'{"symbol":"AAPL","side":"buy","qty":' + b"9" * 2000 + b"}",
        b'{"symbol":"AAPL","side":"buy","qty":[1]}',
        b'{"symbol":"AAPL","side":"buy","qty":1,"price":"1e999999999"}',
        b'{"symbol":"*","side":"buy","qty":1}',
        b'{"symbol":"total","side":"BUY","qty":1}',
        b'{"symbol":null,"side":"buy","qty":1}',
        b"[" * 3000,
        b"\xff\xfe",
        b"null",
        b"",
    ],
)
def test_an_absurd_order_is_no_order(run: Run, body: bytes) -> None:
    async def main(gateway: Any) -> None:
        gateway.write(gateway.quote("AAPL", 100, 100))
        await until(gateway, lambda found: not found["blind"])
        answer = await gateway.http.post(f"{RISK}/check", content=body)
        assert answer.status_code == 422, answer.text
        assert len(answer.text) < 1000

    run(main, FakePositions([held("AAPL")]), limits=["AAPL qty > 20"])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_more_of_a_body_is_kept_than_an_order_has(backend: str) -> None:
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b" " * 1024, "more_body": True}

    async def main() -> None:
        with pytest.raises(HTTPException) as raised:
            await _body(Request({"type": "http"}, receive))
        assert raised.value.status_code == 413

    anyio.run(main, backend=backend)
    assert received < 10


@pytest.mark.parametrize("spelling", ["BTCUSD", "BTC/USD", "btcusd"])
@pytest.mark.parametrize("limit", ["BTC/USD qty > 2", "BTCUSD qty > 2", "* qty > 2"])
def test_a_pair_is_the_same_in_each_spelling(run: Run, spelling: str, limit: str) -> None:
    async def main(gateway: Any) -> None:
        async def check(side: str, qty: str) -> list[str]:
            order = {"symbol": spelling, "side": side, "qty": qty}
            answer = await gateway.http.post(f"{RISK}/check", json=order)
            assert answer.status_code == 200, answer.text
            return list(answer.json()["reasons"])

        gateway.write(gateway.quote("BTC/USD", 64_000, 64_010), publish=False)
        while await check("buy", "2"):
            await anyio.sleep(0.02)
        assert len(await check("buy", "2.000000001")) == 1
        pair = Position("BTCUSD", Decimal("2.5"), Decimal(60_000), asset_class="crypto")
        gateway.source.set(pair)
        await until(gateway, tripped)
        while await check("sell", "0.5"):
            await anyio.sleep(0.02)
        assert await check("sell", "2.5") == []
        assert len(await check("sell", "2.6")) == 1, "it would be short"
        assert len(await check("buy", "0.1")) == 1

    run(main, limits=[limit])


def test_an_order_that_turns_a_position_round_is_judged_as_such(run: Run) -> None:
    async def main(gateway: Any) -> None:
        for symbol, price in (("AAPL", 100), ("MSFT", 50)):
            gateway.write(gateway.quote(symbol, price, price))

        async def reasons(symbol: str, side: str, qty: int) -> int:
            order = {"symbol": symbol, "side": side, "qty": qty}
            answer = await gateway.http.post(f"{RISK}/check", json=order)
            return len(answer.json()["reasons"])

        await until(gateway, lambda found: not found["blind"])
        assert await reasons("AAPL", "sell", 20) == 0
        assert await reasons("AAPL", "sell", 26) == 1, "-16, of at least -15"
        assert await reasons("MSFT", "buy", 25) == 0
        assert await reasons("MSFT", "buy", 40) == 1
        gateway.source.set(held("AAPL", "10"), held("MSFT", "-30"))
        await until(gateway, tripped)
        assert await reasons("MSFT", "buy", 30) == 0, "it closes what has tripped"
        assert await reasons("MSFT", "buy", 31) == 1, "it reduces, and turns round"
        assert await reasons("MSFT", "sell", 1) == 1
        assert await reasons("AAPL", "sell", 1) == 1

    run(
        main,
        FakePositions([held("AAPL", "10"), held("MSFT", "-10")]),
        limits=["* qty < -15", "* qty > 20"],
    )


def test_an_option_counts_its_multiplier_before_it_is_held(run: Run) -> None:
    option = "AAPL281215C00200000"

    async def main(gateway: Any) -> None:
        gateway.write(gateway.quote(option, 25, 25))

        async def allowed(qty: int) -> bool:
            order = {"symbol": option, "side": "sell", "qty": qty}
            answer = await gateway.http.post(f"{RISK}/check", json=order)
            return bool(answer.json()["allowed"])

        while not await allowed(1):
            await anyio.sleep(0.02)
        assert await allowed(4)
        assert not await allowed(5), "5 contracts of 100 at 25 are 12,500"

    run(main, limits=["total exposure > 10000"])


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        '"tripped"',
        '{"status":"tripped"}',
        '{"state":"CLOSED"}',
        '{"state":"closed","value":1e400}',
        "\x00",
    ],
)
def test_a_key_edited_to_nonsense_never_allows_trading(run: Run, valkey: Any, content: str) -> None:
    async def main(gateway: Any) -> None:
        gateway.write(gateway.quote("AAPL", 100, 100))
        await until(gateway, lambda found: not found["blind"])
        assert await placed(gateway) == 200
        with valkey.client() as client:
            client.set("risk:breaker", content)
            assert await placed(gateway) == 503
            assert (await gateway.http.post(f"{RISK}/reset")).status_code == 503
            gateway.source.set(held("AAPL", "30"))
            assert await placed(gateway) == 503
            client.delete("risk:breaker")
        await until(gateway, tripped)

    run(main, FakePositions([held("AAPL")]), limits=["AAPL qty > 20"])


def test_a_redis_that_comes_back_empty_keeps_the_trip(run: Run, valkey: Any) -> None:
    async def main(gateway: Any) -> None:
        gateway.write(gateway.quote("AAPL", 100, 100))
        await until(gateway, tripped)
        gateway.source.set(held("AAPL", "1"))
        await until(gateway, lambda found: found["limits"][0]["value"] == 1)
        with valkey.client() as client:
            while (before := client.get("risk:breaker")) is None:  # it counts before it is written
                await anyio.sleep(0.02)
            for _ in range(5):
                client.flushall()
                gateway.write(gateway.quote("AAPL", 100, 100))
                assert await placed(gateway) == 423
            while client.get("risk:breaker") != before:
                await anyio.sleep(0.02)
            older = json.loads(before) | {"state": "closed", "at": "2020-01-01T00:00:00Z"}
            client.set("risk:breaker", json.dumps(older))
            assert await placed(gateway) == 423
            while client.get("risk:breaker") != before:
                await anyio.sleep(0.02)
        while (answer := await gateway.http.post(f"{RISK}/reset")).status_code != 200:
            assert answer.status_code == 409, answer.text
        assert await placed(gateway) == 200

    run(main, FakePositions([held("AAPL", "30")]), limits=["AAPL qty > 20"])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_two_routers_of_one_application_both_judge(valkey: Any, backend: str) -> None:
    sources = [[held("AAPL", "1")], [held("MSFT", "1")]]

    async def main() -> None:
        app = FastAPI()

        @app.post("/orders", dependencies=[Depends(trading_allowed)])
        async def place_order() -> str:
            return "placed"

        for number, source in enumerate(sources):
            prefix = f"{valkey.url}", f"/desk{number}"
            settings = Settings(key_prefix=f"d{number}:", positions_interval=0.05)
            router = pnl_router(
                lambda source=source: source,  # type: ignore[misc]
                settings=settings,
                redis_url=prefix[0],
                limits=["* qty > 5"],
            )
            app.include_router(router, prefix=prefix[1])
        transport = httpx.ASGITransport(app=app)
        with anyio.fail_after(patient(60)):
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://orders") as client,
                app.router.lifespan_context(app),
            ):

                async def status() -> int:
                    return (await client.post("/orders")).status_code

                while await status() != 200:
                    await anyio.sleep(0.05)
                for source in sources:
                    source[0] = held(source[0].symbol, "6")
                    while await status() != 423:
                        await anyio.sleep(0.05)
                    source[0] = held(source[0].symbol, "1")
                    desk = f"/desk{sources.index(source)}{RISK}/reset"
                    while (await client.post(desk)).status_code != 200:
                        await anyio.sleep(0.05)
                    assert await status() == 200

    anyio.run(main, backend=backend)


@pytest.fixture
def trickling() -> Iterator[int]:
    """The port of a gateway that never ends its answer."""
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not ended.is_set():
                try:
                    connection.sendall(b" ")
                except OSError:
                    return
                time.sleep(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    ended.set()
    thread.join(30)
    listener.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_gateway_that_never_ends_its_answer_stops_trading(
    trickling: int, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MDSERVICE_GATEWAY_HTTP", f"127.0.0.1:{trickling}")
    app = FastAPI()

    @app.post("/orders", dependencies=[Depends(trading_allowed)])
    async def place_order() -> str:
        return "placed"

    async def main() -> None:
        transport = httpx.ASGITransport(app=app)
        with anyio.fail_after(patient(30)):
            async with httpx.AsyncClient(transport=transport, base_url="http://orders") as client:
                assert (await client.post("/orders")).status_code == 503

    anyio.run(main, backend=backend)
