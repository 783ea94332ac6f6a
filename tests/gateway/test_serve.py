"""The gateway's own application, without a server, Redis or a source that answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx

from mdservice.errors import PositionsUnavailable
from mdservice.gateway.make import make_tracker
from mdservice.gateway.serve import gateway_app
from mdservice.model.position import Position
from mdservice.settings import Settings
from mdservice.testing import FakePositions

POSITIONS = "/api/v1/positions"


@asynccontextmanager
async def opened(source: FakePositions) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(positions_interval=1)
    tracker = make_tracker(source, settings, redis_url="redis://127.0.0.1:1")
    transport = httpx.ASGITransport(app=gateway_app(tracker))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
    await tracker.aclose()


async def test_it_is_alive_without_positions_and_redis(autojump_clock: Any) -> None:
    source = FakePositions()
    source.always = PositionsUnavailable("away")
    async with opened(source) as client:
        answer = await client.get("/health/live")
        assert (answer.status_code, answer.json()) == (200, {"live": True})


async def test_positions_are_answered_once_they_are_known(autojump_clock: Any) -> None:
    source = FakePositions([Position("AAPL", Decimal(10), Decimal(150))])
    source.always = PositionsUnavailable("the source is away")
    async with opened(source) as client:
        answer = await client.get(POSITIONS)
        assert answer.status_code == 503
        assert "the source is away" in answer.json()["detail"]
    source.always = None
    async with opened(source) as client:
        found = (await client.get(POSITIONS)).json()
        row = {"symbol": "AAPL", "qty": 10, "avg_entry_price": 150, "asset_class": "us_equity"}
        row |= {"multiplier": 1, "current_price": None, "lastday_price": None}
        assert found == {"positions": [row]}


async def test_old_positions_come_with_a_warning(autojump_clock: Any, monkeypatch: Any) -> None:
    source = FakePositions([Position("AAPL", Decimal(10), Decimal(150))])
    async with opened(source) as client:
        assert "warnings" not in (await client.get(POSITIONS)).json()
        source.always = PositionsUnavailable("the source is away")
        monkeypatch.setattr("mdservice.clock.SystemClock.monotonic", lambda _: 1e12)
        found = (await client.get(POSITIONS)).json()
        assert [row["symbol"] for row in found["positions"]] == ["AAPL"]
        assert found["warnings"] == ["the source is away"]


async def test_metrics_have_limits_breaker_webhook_and_sums(autojump_clock: Any) -> None:
    tracker = make_tracker(
        FakePositions(
            [
                Position("AAPL", Decimal(10), Decimal(150)),
                Position("MSFT", Decimal(-15), Decimal(9)),
            ]
        ),
        Settings(alert_webhook="http://127.0.0.1:1/hook"),
        redis_url="redis://127.0.0.1:1",
        limits=["total pnl < -5", "AAPL qty > 40", "* qty < -20"],
    )
    assert tracker.webhook is not None
    transport = httpx.ASGITransport(app=gateway_app(tracker))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        await tracker.current_positions()
        tracker.webhook.send(b"{}", "")
        text = (await client.get("/metrics")).text
        for line in (
            "mdservice_gateway_rows_unpriced 2.0",
            "mdservice_breaker_tripped 0.0",
            "mdservice_limits_blind 2.0",
            'mdservice_limit_used_ratio{rule="total pnl < -5"} NaN',
            'mdservice_limit_used_ratio{rule="AAPL qty > 40"} 0.25',
            'mdservice_limit_used_ratio{rule="* qty < -20"} 0.75',
            "mdservice_gateway_unrealized_pnl_dollars 0.0",
            "mdservice_gateway_market_value_dollars 0.0",
            "mdservice_gateway_exposure_dollars 0.0",
            "mdservice_gateway_day_pnl_dollars NaN",
            "mdservice_webhook_waiting 1.0",
            "mdservice_webhook_dropped_total 0.0",
            "mdservice_breaker_trips_total 0.0",
            "mdservice_breaker_resets_total 0.0",
            "mdservice_limit_crossings_total 0.0",
        ):
            assert f"\n{line}\n" in text
        await tracker.aclose()
        assert "\nmdservice_webhook_dropped_total 1.0\n" in (await client.get("/metrics")).text
