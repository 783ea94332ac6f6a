"""What a trip does at the broker. On virtual time, with keys in memory."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx
import pytest

from mdservice.errors import ConfigurationError
from mdservice.gateway.on_trip import TradingAccount
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings
from tests.gateway.judging import FakeKeys, Gateway, running, until

RULE = "A pnl < -5"
URL = "https://broker.test"
SUSPEND = ("PATCH", "/v2/account/configurations")
CANCEL = ("DELETE", "/v2/orders")
SUSPENDED = httpx.Response(200, json={"suspend_trade": True})
CANCELED = httpx.Response(207, json=[{"id": "1", "status": 200}])


class Broker:
    """Answers each call with these, then as Alpaca does; None breaks the connection."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[str, str]] = []
        self.times_s: list[float] = []
        self.bodies: list[bytes] = []
        self.headers: list[httpx.Headers] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(await request.aread())
        self.calls.append((request.method, request.url.path))
        self.times_s.append(anyio.current_time())
        self.headers.append(request.headers)
        answers = self.answers.get(request.method, [])
        answer = answers.pop(0) if answers else (
            SUSPENDED if request.method == "PATCH" else CANCELED
        )  # fmt: skip
        if answer is None:
            raise httpx.ConnectError("refused")
        if answer == "hang":
            await anyio.sleep(3600)
        found: httpx.Response = httpx.Response(answer) if isinstance(answer, int) else answer
        return found

    def account(self, api_key: str = "key") -> TradingAccount:
        settings = Settings(api_key=api_key, secret_key="secret", trading_url=URL)
        return TradingAccount(settings, HttpClient(httpx.MockTransport(self)))


async def outcomes(gateway: Gateway) -> dict[str, tuple[str, str | None]]:
    assert gateway.risk.on_trip is not None
    found = json.loads(await gateway.risk.on_trip.report())
    return {one["action"]: (one["state"], one["detail"]) for one in found["outcomes"]}


async def settled(gateway: Gateway, limit_s: float = 1000) -> dict[str, tuple[str, str | None]]:
    with anyio.fail_after(limit_s):
        while not (found := await outcomes(gateway)) or "pending" in dict(found.values()):
            await anyio.sleep(0.1)
    return found


async def test_a_trip_suspends_trading_and_cancels_orders_once(autojump_clock: Any) -> None:
    keys, broker = FakeKeys(), Broker()
    one, two = (Gateway(keys, RULE, account=broker.account()) for _ in range(2))
    async with running(one, two):
        await anyio.sleep(5)
        assert broker.calls == []
        for gateway in (one, two):
            gateway.price(94)
        assert await settled(one) == {
            "suspend_trade": ("done", None),
            "cancel_orders": ("done", None),
        }
        await anyio.sleep(60)
        assert await outcomes(two) == await outcomes(one)
    assert broker.calls == [SUSPEND, CANCEL]
    assert json.loads(broker.bodies[0]) == {"suspend_trade": True}
    assert broker.headers[0]["apca-api-key-id"] == "key"
    assert broker.headers[1]["apca-api-secret-key"] == "secret"
    assert len(one.webhook.sent + two.webhook.sent) == 3


@pytest.mark.parametrize(("named", "call"), [("suspend_trade", SUSPEND), ("cancel_orders", CANCEL)])
async def test_only_what_is_named_is_done(autojump_clock: Any, named: str, call: Any) -> None:
    broker = Broker()
    gateway = Gateway(FakeKeys(), RULE, account=broker.account(), named=[named])
    async with running(gateway):
        gateway.price(94)
        assert await settled(gateway) == {named: ("done", None)}
    assert broker.calls == [call]


async def test_each_trip_has_its_own_actions_and_a_reset_has_none(autojump_clock: Any) -> None:
    keys, broker = FakeKeys(), Broker()
    gateway = Gateway(keys, RULE, account=broker.account())
    async with running(gateway):
        for trips in (1, 2):
            gateway.price(94)
            await until(lambda: len(broker.calls) == 2 * trips)  # noqa: B023
            await settled(gateway)
            gateway.price(100)
            await gateway.risk.reset([])
            await anyio.sleep(60)
    assert broker.calls == [SUSPEND, CANCEL] * 2


async def test_a_trip_by_another_gateway_is_its_own_matter(autojump_clock: Any) -> None:
    keys, broker = FakeKeys(), Broker()
    plain, acting = Gateway(keys, RULE), Gateway(keys, RULE, account=broker.account())
    async with running(plain):
        plain.price(94)
        await until(lambda: keys.value)
        async with running(acting):
            acting.price(94)
            await anyio.sleep(60)
    assert broker.calls == []


async def test_a_failing_broker_is_tried_again(autojump_clock: Any) -> None:
    broker = Broker(PATCH=[500, None, 429, "hang"], DELETE=[503])
    gateway = Gateway(FakeKeys(), RULE, account=broker.account())
    async with running(gateway):
        gateway.price(94)
        found = await settled(gateway)
    assert set(found.values()) == {("done", None)}
    # Orders may have been placed until trading was suspended, so they are canceled after it.
    assert broker.calls[-2:] == [SUSPEND, CANCEL]
    assert broker.calls.count(SUSPEND) == 5
    waits = [b - a for a, b in zip(broker.times_s, broker.times_s[1:], strict=False)]
    assert sum(waits) < 30


async def test_tries_have_an_end(autojump_clock: Any) -> None:
    broker = Broker(PATCH=[502] * 1000, DELETE=[None] * 1000)
    gateway = Gateway(FakeKeys(), RULE, account=broker.account())
    async with running(gateway):
        gateway.price(94)
        found = await settled(gateway)
        calls = len(broker.calls)
        await anyio.sleep(1000)
    assert [state for state, _ in found.values()] == ["failed", "failed"]
    assert found["suspend_trade"][1] == "HTTP 502"
    assert len(broker.calls) == calls
    assert broker.times_s[-1] - broker.times_s[0] < 360
    assert len([text for text in gateway.webhook.sent if "failed" in text]) == 2


async def test_a_refusal_is_final_and_the_other_action_is_done(autojump_clock: Any) -> None:
    refusal = httpx.Response(403, json={"code": 40310000, "message": "forbidden\x1b."})
    broker = Broker(PATCH=[refusal])
    gateway = Gateway(FakeKeys(), RULE, account=broker.account())
    async with running(gateway):
        gateway.price(94)
        assert await settled(gateway) == {
            "suspend_trade": ("failed", "HTTP 403: forbidden?."),
            "cancel_orders": ("done", None),
        }
    assert broker.calls == [SUSPEND, CANCEL]


async def test_what_the_answer_says_is_not_done_is_tried_again(autojump_clock: Any) -> None:
    still = httpx.Response(200, json={"suspend_trade": False})
    some = httpx.Response(207, json=[{"id": "1", "status": 200}, {"id": "2", "status": 500}])
    broker = Broker(PATCH=[still], DELETE=[CANCELED, some])
    gateway = Gateway(FakeKeys(), RULE, account=broker.account())
    async with running(gateway):
        gateway.price(94)
        assert set((await settled(gateway)).values()) == {("done", None)}
    assert broker.calls == [SUSPEND, CANCEL, SUSPEND, CANCEL, CANCEL]


async def test_a_reset_ends_the_tries(autojump_clock: Any) -> None:
    broker = Broker(PATCH=[500] * 1000)
    gateway = Gateway(FakeKeys(), RULE, account=broker.account(), named=["suspend_trade"])
    async with running(gateway):
        gateway.price(94)
        await until(lambda: len(broker.calls) == 2)
        gateway.price(100)
        await gateway.risk.reset([])
        assert (await settled(gateway))["suspend_trade"][0] == "left"
        calls = len(broker.calls)
        await anyio.sleep(600)
    assert len(broker.calls) == calls


async def test_a_gateway_that_died_is_replaced(autojump_clock: Any) -> None:
    keys, broker = FakeKeys(), Broker(PATCH=["hang"])
    dying = Gateway(keys, RULE, account=broker.account())
    async with running(dying):
        dying.price(94)
        await until(lambda: broker.calls)
    others = Broker()
    plain = Gateway(keys, RULE)
    partly = Gateway(keys, RULE, account=broker.account(), named=["suspend_trade"])
    of_another_account = Gateway(keys, RULE, account=others.account("other"))
    again, other = (Gateway(keys, RULE, account=broker.account()) for _ in range(2))
    async with running(plain, partly, of_another_account):
        await anyio.sleep(10)
        assert (len(broker.calls), others.calls) == (1, [])
        async with running(again, other):
            assert set((await settled(again)).values()) == {("done", None)}
            await anyio.sleep(60)
    assert broker.calls == [SUSPEND, SUSPEND, CANCEL]
    assert others.calls == []


async def test_a_settled_trip_is_not_acted_on_after_a_restart(autojump_clock: Any) -> None:
    keys, broker = FakeKeys(), Broker()
    gateway = Gateway(keys, RULE, account=broker.account())
    async with running(gateway):
        gateway.price(94)
        await settled(gateway)
    again = Gateway(keys, RULE, account=broker.account())
    again.price(90)
    async with running(again):
        await anyio.sleep(60)
        assert await outcomes(again) == await outcomes(gateway)
        keys.value = None
        await until(lambda: keys.value)
        await anyio.sleep(60)
    assert broker.calls == [SUSPEND, CANCEL]


async def test_actions_do_not_wait_for_redis(autojump_clock: Any) -> None:
    keys, broker = FakeKeys(), Broker()
    gateway = Gateway(keys, RULE, account=broker.account())
    async with running(gateway):
        await gateway.state()
        keys.away = True
        gateway.price(94)
        await until(lambda: len(broker.calls) == 2)
        await anyio.sleep(60)
        keys.away = False
        await until(lambda: keys.value)
        await anyio.sleep(60)
        assert keys.actions_value is not None
        assert keys.value is not None
        found = json.loads(keys.actions_value)
        assert found["trip"] == keys.value.at
        assert {one["state"] for one in found["actions"]} == {"done"}
    assert broker.calls == [SUSPEND, CANCEL]


async def test_a_breaker_that_was_never_read_may_be_tripped_already(autojump_clock: Any) -> None:
    keys, broker = FakeKeys(), Broker()
    keys.away = True
    gateway = Gateway(keys, RULE, account=broker.account())
    async with running(gateway):
        gateway.price(94)
        await anyio.sleep(60)
        assert broker.calls == []
        keys.away = False
        await settled(gateway)
    assert broker.calls == [SUSPEND, CANCEL]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"trip":1}', b"\xff"])
async def test_a_key_that_holds_anything_else_is_replaced(
    autojump_clock: Any, content: bytes
) -> None:
    keys, broker = FakeKeys(), Broker()
    keys.actions_value = content
    gateway = Gateway(keys, RULE, account=broker.account())
    async with running(gateway):
        assert await outcomes(gateway) == {}
        gateway.price(94)
        await settled(gateway)
        keys.actions_value = content
        await anyio.sleep(10)
        assert set((await outcomes(gateway)).values()) == {("done", None)}


@pytest.mark.parametrize(
    "given",
    [
        {"feed": "iex", "api_key": "key"},
        {"feed": "iex", "secret_key": "secret"},
        {"feed": "simulator", "api_key": "key", "secret_key": "secret"},
    ],
)
def test_it_needs_an_account(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="on_trip needs"):
        TradingAccount(Settings(**given), HttpClient())


def test_a_simulated_account_is_that_of_the_simulator() -> None:
    settings = Settings(
        feed="simulator", feed_url="ws://127.0.0.1:9/v2/test", api_key="key", secret_key="secret"
    )
    assert TradingAccount(settings, HttpClient()).url == "http://127.0.0.1:9"
