"""The hours of the market: an answer that is none leaves them unknown."""

from __future__ import annotations

import httpx
import pytest

from mdservice.model.market import Market
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient

DEEP = b'{"is_open":true,"x":%b}' % (b"[" * 20_000 + b"]" * 20_000)


async def asked(status: int, body: bytes) -> tuple[Market | None, str | None]:
    transport = httpx.MockTransport(lambda _request: httpx.Response(status, content=body))
    http = HttpClient(transport)
    clock = MarketClock("https://paper-api.alpaca.markets/v2", {}, http, "is not known")
    try:
        return await clock.ask(), clock.refused
    finally:
        await http.aclose()


async def test_the_answer_of_the_clock_is_read() -> None:
    assert await asked(200, b'{"is_open":true}') == (Market(is_open=True), None)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"is_open":1}', b'{"is_open":true,"next_open":"\xff"}', DEEP]
)
async def test_an_answer_that_is_no_clock_leaves_the_hours_unknown(body: bytes) -> None:
    market, refused = await asked(200, body)
    assert market is None
    assert "does not answer as Alpaca's clock does" in (refused or "")


@pytest.mark.parametrize(("status", "is_refused"), [(401, True), (404, True), (429, False)])
async def test_a_refusal_says_what_to_change_and_an_outage_does_not(
    status: int, is_refused: bool
) -> None:
    market, refused = await asked(status, b"")
    assert market is None
    assert (refused is not None) is is_refused
