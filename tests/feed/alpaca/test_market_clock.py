"""Whether the market is open, by Alpaca's clock; open where nobody says."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaMarketClock
from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing import VirtualClock


def clock_of(simulator: Any, feed: str = "iex") -> AlpacaMarketClock:
    return AlpacaMarketClock(
        simulator.rest_url + "/", feed, Credentials("key", "secret"), SimulatorTransport(simulator)
    )


@pytest.mark.parametrize("feed", ["iex", "sip", "delayed_sip"])
async def test_the_exchanges_hours_are_asked(autojump_clock: Any, feed: str) -> None:
    config = SimulatorConfig(rate=0)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        market = clock_of(simulator, feed)
        for is_open in (True, False):
            simulator.market_open = is_open
            assert await market.is_open() is is_open


@pytest.mark.parametrize("feed", ["test", "boats", "overnight", "simulator"])
async def test_some_feeds_are_always_open_and_nobody_is_asked(
    autojump_clock: Any, feed: str
) -> None:
    config = SimulatorConfig(rate=0)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        simulator.market_open = False
        assert await clock_of(simulator, feed).is_open()
        assert not simulator.rest_requests


@pytest.mark.parametrize("fault", ["refuse_rest", "cut_rest", "garble_rest", "slow_rest"])
async def test_without_an_answer_it_counts_as_open(autojump_clock: Any, fault: str) -> None:
    config = SimulatorConfig(rate=0)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        simulator.market_open = False
        if fault == "slow_rest":
            simulator.slow_rest(1_000)
        else:
            getattr(simulator, fault)()
        assert await clock_of(simulator).is_open()
        assert anyio.current_time() <= 6
        assert not await clock_of(simulator).is_open()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::x", "paper"])
async def test_where_nobody_can_be_asked_it_counts_as_open(url: str) -> None:
    with anyio.fail_after(10):
        assert await AlpacaMarketClock(url, "iex", Credentials("key", "secret")).is_open()


async def test_a_reason_is_logged_once_until_it_is_another(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = SimulatorConfig(rate=0)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        market = clock_of(simulator)
        for status, logged in ((404, 1), (404, 1), (503, 2), (404, 3)):
            simulator.refuse_rest(status)
            assert await market.is_open()
            assert caplog.text.count("market_hours_unknown") == logged
