"""The hours of the market: an answer that is none leaves them unknown."""

from __future__ import annotations

from contextlib import aclosing
from email.utils import formatdate

import anyio
import httpx
import pytest

from mdservice.model.market import Market
from mdservice.runtime.market_clock import ClockAhead, MarketClock
from mdservice.runtime.network import HttpClient
from mdservice.testing import VirtualClock

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


DATE, DATE_S = "Mon, 30 Nov 2026 12:00:00 GMT", 1_796_040_000


def judged(*ahead_s: float) -> float | None:
    check = ClockAhead()
    for seconds in ahead_s:
        check.add(int((DATE_S + seconds) * 1e9), DATE)
    return check.seconds()


def test_a_clock_is_ahead_if_three_answers_in_turn_say_it() -> None:
    assert judged(31, 31) is None
    assert judged(31, 31, 31) == 30
    assert judged(31, 1, 31) is None
    assert judged(31, 31, 31, 1) is None


def test_an_answer_says_by_how_much_the_clock_is_ahead_at_least() -> None:
    """Its time has whole seconds."""
    assert judged(6, 6, 6) is None
    assert judged(6.2, 6.2, 6.2) == 5.2


def test_a_clock_that_is_behind_or_a_slow_answer_is_not_ahead() -> None:
    assert judged(-300, -300, -300) is None


@pytest.mark.parametrize("date", [None, "", "soon", "Mon, 30 Nov 99999 12:00:00 GMT"])
def test_an_answer_without_a_time_says_nothing(date: str | None) -> None:
    check = ClockAhead()
    for _ in range(3):
        check.add(DATE_S * 10**9, date)
    assert check.seconds() is None


async def test_the_answers_are_compared_with_the_clock(autojump_clock: object) -> None:
    here = VirtualClock()

    def answer(_request: httpx.Request) -> httpx.Response:
        date = formatdate(here.utc_ns() / 1e9 - 100, usegmt=True)
        return httpx.Response(503, headers={"Date": date})

    http = HttpClient(httpx.MockTransport(answer))
    clock = MarketClock("https://paper-api.alpaca.markets", {}, http, "is not known")
    async with aclosing(http), anyio.create_task_group() as tasks:
        tasks.start_soon(clock.follow, here, lambda _: None)
        await anyio.sleep(35)
        assert clock.check.seconds() == pytest.approx(99.5, abs=0.6)
        tasks.cancel_scope.cancel()
