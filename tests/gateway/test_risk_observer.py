"""The breaker and the limits in a program that only shows them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import msgspec
import pytest

from mdservice.errors import StoreUnavailable
from mdservice.gateway.make import make_tracker
from mdservice.gateway.risk_observer import RiskObserver
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.breaker import CLOSED, Breaker
from mdservice.pnl.limits import LimitState
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings
from mdservice.testing import FakePositions

START_NS = 1_795_543_200_000_000_000  # 2026-11-24T18:00:00Z
S_NS = 1_000_000_000


class RiskBench:
    """A tracker, its time, a breaker in Redis, and a gateway that answers."""

    def __init__(self, answer: Any = None, **settings: Any) -> None:
        self.now_s = 0.0
        given = Settings(redis_url="redis://127.0.0.1:1", **settings)
        self.tracker = make_tracker(FakePositions(), given, read_from="live", clock=self)
        self.breaker: Breaker | None = CLOSED
        self.asked: list[httpx.Request] = []

        async def breaker() -> Breaker:
            if self.breaker is None:
                raise StoreUnavailable("Redis is away")
            return self.breaker

        def respond(request: httpx.Request) -> httpx.Response:
            self.asked.append(request)
            if answer is None:
                raise httpx.ConnectError("refused")
            return (
                answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)
            )

        self.tracker.risk.breaker = breaker  # type: ignore[method-assign]
        http = HttpClient(httpx.MockTransport(respond))
        self.risk = RiskObserver(self.tracker, given, self, http)

    def monotonic(self) -> float:
        return self.now_s

    def utc_ns(self) -> int:
        return START_NS + int(self.now_s * S_NS)

    def hold(self, *lots: tuple[str, str, str]) -> None:
        held = [Position(s, Decimal(q), Decimal(p)) for s, q, p in lots]
        self.tracker.engine.set_positions(held)

    def quote(self, symbol: str, bid: float, ask: float) -> None:
        quote = Quote(symbol, bid, ask, 1, 1, self.utc_ns(), self.utc_ns())
        self.tracker.engine.update(quote, self.utc_ns())

    async def shown(self) -> Any:
        await self.risk.refresh()
        return self.risk.now(self.utc_ns())


async def test_own_limits_are_judged_for_showing_alone() -> None:
    bench = RiskBench(limits=("total pnl < -100", "* qty > 4"), alerts=("A price > 9 trip",))
    bench.hold(("A", "5", "10"), ("B", "1", "10"))
    bench.quote("A", 8, 8)
    found = await bench.shown()
    assert [(one.rule, one.subject, one.used) for one in found.limits] == [
        ("total pnl < -100", "total", None),
        ("* qty > 4", "A", Decimal("1.25")),
        ("A price > 9 trip", "A", Decimal("0.8888888889")),
        ("* qty > 4", "B", Decimal("0.25")),
    ]
    assert (found.breaker, found.judge) == (CLOSED, None)
    assert found.blind == ("B: no price is known",)
    assert bench.asked == []
    bench.quote("B", 10, 10)
    assert bench.risk.now(bench.utc_ns()) is found, "once a second"
    bench.now_s += 1
    assert bench.risk.now(bench.utc_ns()).blind == ()
    bench.now_s -= 100
    assert bench.risk.now(bench.utc_ns()) is not found, "a clock that was set back"


THEIRS = {
    "breaker": {"state": "closed", "rule": None, "subject": None, "value": None, "at": None},
    "limits": [{"rule": "A qty > 4", "subject": "A", "value": 1, "used": 0.25}],
    "blind": ["B: stale"],
    "on_trip": {},
}


async def test_without_own_limits_those_of_the_gateway_are_shown() -> None:
    bench = RiskBench(THEIRS, api_token="token")
    found = await bench.shown()
    assert found.limits == (LimitState("A qty > 4", "A", Decimal(1), Decimal("0.25")),)
    assert found.blind == ("B: stale",)
    assert "127.0.0.1:8002" in found.judge
    assert bench.asked[0].headers["authorization"] == "Bearer token"
    bench.breaker = Breaker("tripped", "x", "A", None, "2026-11-24T18:00:00Z")
    found = await bench.shown()
    assert (found.breaker, found.limits) == (bench.breaker, ()), "a gateway of another Redis"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {**THEIRS, "limits": []},
        {**THEIRS, "limits": [{"rule": 1}]},
        httpx.Response(401),
        httpx.Response(200, content=b"\xff"),
        httpx.Response(200, content=b'{"x":' + b"[" * 100_000),
    ],
)
async def test_without_limits_nothing_is_shown_until_the_breaker_has_tripped(answer: Any) -> None:
    bench = RiskBench(answer)
    assert await bench.shown() is None
    bench.breaker = None
    assert await bench.shown() is None
    bench.breaker = Breaker("tripped")
    assert (await bench.shown()).breaker == bench.breaker


async def test_a_page_gets_the_form_of_the_gateways_answer_once_a_second() -> None:
    bench = RiskBench(limits=("* qty > 4",))
    bench.hold(("A", "5", "10"))
    bench.quote("A", 8, 8)
    found = msgspec.json.decode(await bench.risk.encode() or b"")
    assert found == {
        "breaker": {"state": "closed", "rule": None, "subject": None, "value": None, "at": None},
        "limits": [{"rule": "* qty > 4", "subject": "A", "value": 5, "used": 1.25}],
        "blind": [],
    }
    bench.breaker = None
    assert await bench.risk.encode() is not None, "asked less than a second ago"
    bench.now_s += 1
    with pytest.raises(StoreUnavailable, match="Redis is away"):
        await bench.risk.encode()


async def test_a_page_gets_nothing_where_there_are_no_limits() -> None:
    bench = RiskBench()
    assert await bench.risk.encode() is None
