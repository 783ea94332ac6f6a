"""A FastAPI program that has mounted the router, a real Valkey behind it, on both event loops."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import attrs
import httpx
import pytest
from fastapi import Depends, FastAPI

from mdservice.clock import SystemClock
from mdservice.gateway import trading_allowed
from mdservice.gateway.make import make_tracker
from mdservice.gateway.router import tracker_router
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.settings import Settings
from mdservice.testing import FakePositions
from tests.integration.conftest import patient

PNL = "/api/v1/positions/pnl/realtime"
LIMIT_S = 60


def exact(text: str | bytes) -> dict[str, Any]:
    return dict(json.loads(text, parse_float=Decimal))


class Gateway:
    """The program, its client, and access to its Redis and its positions."""

    def __init__(self, valkey: Any, source: Any, client: httpx.AsyncClient, tracker: Any) -> None:
        self.tracker = tracker
        self.valkey = valkey
        self.source = source
        self.http = client
        self._seq = 0

    def quote(self, symbol: str, bid: float, ask: float, *, age_s: float = 0.0) -> Quote:
        self._seq += 1
        at_ns = SystemClock().utc_ns() - int(age_s * 1e9)
        return Quote(symbol, bid, ask, 1, 1, at_ns, at_ns, self._seq)

    def write(self, quote: Quote, *, publish: bool = True) -> Quote:
        """As the service does: the key, then the event."""
        payload = encode_quote(quote)
        with self.valkey.client() as client:
            client.set(f"price:{quote.symbol}", payload, px=300_000)
            if publish:
                client.publish("price.updated", payload)
        return quote

    async def pnl(self, status: int = 200) -> dict[str, Any]:
        answer = await self.http.get(PNL)
        assert answer.status_code == status, answer.text
        return exact(answer.text)

    async def until(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The first answer for which it holds."""
        while not condition(found := await self.pnl()):
            await anyio.sleep(0.02)
        return found


@asynccontextmanager
async def open_gateway(
    valkey: Any,
    source: Any = None,
    *,
    lifespan: bool = True,
    stale_after: float = 60,
    price_ttl: int = 300,
    positions_interval: float = 0.05,
    max_spread: float = 10.0,
    mark: Any = "mid",
    api_token: str | None = None,
    alert_webhook: str | None = None,
    **options: Any,
) -> AsyncIterator[Gateway]:
    source = source if source is not None else FakePositions()
    settings = Settings(
        stale_after=stale_after,
        price_ttl=price_ttl,
        positions_interval=positions_interval,
        max_spread=max_spread,
        mark=mark,
        api_token=api_token,
        alert_webhook=alert_webhook,
    )
    app = FastAPI()

    @app.post("/orders", dependencies=[Depends(trading_allowed)])
    async def place_order() -> str:
        return "placed"

    tracker = make_tracker(source, settings, redis_url=valkey.url, **options)
    app.include_router(tracker_router(tracker))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        gateway = Gateway(valkey, source, client, tracker)
        if not lifespan:
            try:
                yield gateway
            finally:
                await tracker.aclose()
            return
        async with app.router.lifespan_context(app):
            yield gateway


Body = Callable[..., Awaitable[None]]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest, valkey: Any) -> Callable[..., None]:
    """Runs ``body(gateway)`` with an open gateway, on either event loop."""

    def with_gateway(
        body: Body, source: Any = None, *, valkey_of_its_own: Any = None, **options: Any
    ) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                server = valkey_of_its_own or valkey
                async with open_gateway(server, source, **options) as gateway:
                    await body(gateway)

        anyio.run(main, backend=request.param)

    return with_gateway


def later(quote: Quote, seconds: float) -> Quote:
    return attrs.evolve(quote, ts_event_ns=quote.ts_event_ns + int(seconds * 1e9))
