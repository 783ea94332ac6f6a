"""Gaps repaired for real: a market over TCP that keeps running, both drivers, a Valkey behind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import attrs
import pytest

from mdservice.app.service import Service, open_service
from mdservice.clock import SystemClock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory
from mdservice.model.events import FeedStatus
from mdservice.model.kinds import QUOTES
from mdservice.model.timestamps import parse_rfc3339
from mdservice.settings import Settings
from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from tests.integration.conftest import patient

LIMIT_S = 60
SYMBOLS = ("AAPL", "MSFT", "SPY")
both_drivers = pytest.mark.parametrize("driver", ["websockets", "alpaca-py"])
both_loops = pytest.mark.parametrize("backend", ["trio", "asyncio"])


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="gap-") as name:  # short: it holds a socket
        yield Path(name)


@attrs.define
class Scene:
    """A simulator, a Valkey, and services one after the other."""

    simulator: Simulator
    valkey: Any
    folder: Path
    driver: str
    statuses: list[FeedStatus] = attrs.field(factory=list)

    @asynccontextmanager
    async def service(self, *symbols: str, **more: Any) -> AsyncIterator[Service]:
        rest_url = self.simulator.rest_url
        settings = Settings(
            **{
                "api_key": "key",
                "secret_key": "secret",
                "feed": "iex",
                "feed_url": self.simulator.url,
                "rest_url": rest_url,
                "trading_url": rest_url,
                "driver": self.driver,
                "symbols": ",".join(symbols or SYMBOLS),
                "redis_url": self.valkey.url,
                "event_log": "log",
                "socket": self.folder / "s",
                **more,
            }
        )
        async with open_service(settings) as service, anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, service)
            yield service
            tasks.cancel_scope.cancel()

    async def _listen(self, service: Service) -> None:
        async with service.events() as events:
            async for item in events:
                if isinstance(item, FeedStatus):
                    self.statuses.append(item)

    def told(self, *names: str) -> list[str]:
        return [status.state for status in self.statuses if status.state in names]

    def events(self) -> list[dict[str, Any]]:
        with self.valkey.client() as client:
            return [json.loads(fields[b"data"]) for _, fields in client.xrange("log")]

    async def settle(self, service: Service, *symbols: str) -> None:
        """End the market, and wait until everything is written."""
        await service.unsubscribe(*(symbols or SYMBOLS))
        await until(lambda: service.status().redis.backlog == 0)
        await anyio.sleep(0.2)

        def through() -> bool:
            counters = service.status().counters
            out = counters.events_published + counters.events_conflated
            return service.status().redis.backlog == 0 and counters.quotes_accepted == out

        await until(through)

    def check_complete(self) -> None:
        """Every quote of the market since the first one is an event, once and in order."""
        events = self.events()
        for symbol in SYMBOLS:
            made = [
                (q.ts_event_ns, q.bid, q.ask) for q in self.simulator.history if q.symbol == symbol
            ]
            out = [
                (parse_rfc3339(e["timestamp"]), e["bid"], e["ask"])
                for e in events
                if e["symbol"] == symbol
            ]
            assert out
            start = made.index(out[0])
            missing = [quote for quote in made[start:] if quote not in set(out)]
            assert not missing, f"{symbol}: {len(missing)} of {len(made)}, {missing[:3]}"
            assert out == made[start:], symbol

    def check_numbers(self) -> None:
        """No number is left out."""
        for symbol in SYMBOLS:
            numbers = [event["seq"] for event in self.events() if event["symbol"] == symbol]
            assert numbers == list(range(1, len(numbers) + 1))


async def until(condition: Callable[[], Any], within_s: float = 30) -> None:
    with anyio.fail_after(patient(within_s)):
        while not condition():
            await anyio.sleep(0.01)


def run(
    body: Callable[[Scene], Awaitable[None]],
    valkey: Any,
    folder: Path,
    driver: str,
    backend: str = "trio",
    **config: Any,
) -> None:
    async def main() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            settings = SimulatorConfig(**{"rate": 300, "rest_rate_limit": None, **config})
            async with open_simulator(settings) as simulator:
                await body(Scene(simulator, valkey, folder, driver))

    anyio.run(main, backend=backend)


# ---- one run


@both_drivers
@both_loops
@pytest.mark.parametrize("how", ["reset", "half-close", "close"])
def test_no_quote_is_lost_or_repeated_by_a_lost_connection(
    backend: str, driver: str, how: Any, valkey: Any, folder: Path
) -> None:
    async def body(scene: Scene) -> None:
        async with scene.service() as service:
            await until(lambda: service.status().counters.quotes_accepted > 100)
            for repaired in (1, 2):
                scene.simulator.drop(how)
                await until(lambda n=repaired: service.status().counters.gaps_repaired == n)
                await anyio.sleep(0.3)
            await scene.settle(service)
            counters = service.status().counters
        assert (counters.gaps, counters.gaps_repaired, counters.reconnects) == (2, 2, 2)
        assert counters.events_conflated == 0
        assert counters.decode_errors == 0
        assert counters.quotes_accepted == len(scene.events())
        repaired_quotes = [s.details["quotes"] for s in scene.statuses if s.state == "gap_repaired"]
        assert counters.quotes_backfilled == sum(repaired_quotes) > 0
        assert scene.told("gap", "gap_repaired") == ["gap", "gap_repaired"] * 2
        scene.check_complete()
        scene.check_numbers()

    run(body, valkey, folder, driver, backend)


@both_drivers
def test_a_mute_socket_is_given_up_and_what_it_swallowed_is_fetched(
    driver: str, valkey: Any, folder: Path
) -> None:
    async def body(scene: Scene) -> None:
        async with scene.service(mute_after=1) as service:
            await until(lambda: service.status().counters.quotes_accepted > 100)
            scene.simulator.mute()
            await until(lambda: service.status().counters.gaps_repaired == 1)
            await scene.settle(service)
        assert scene.told("stale", "gap", "gap_repaired") == ["stale", "gap", "gap_repaired"]
        scene.check_complete()
        scene.check_numbers()

    run(body, valkey, folder, driver)


@both_drivers
def test_a_history_that_lags_is_waited_for(driver: str, valkey: Any, folder: Path) -> None:
    async def body(scene: Scene) -> None:
        async with scene.service() as service:
            await until(lambda: service.status().counters.quotes_accepted > 100)
            scene.simulator.drop()
            await until(lambda: service.status().counters.gaps_repaired == 1)
            await scene.settle(service)
        scene.check_complete()
        scene.check_numbers()

    # A busy machine has to read the pages before the live quotes are let go.
    run(body, valkey, folder, driver, rate=100, rest_lag_s=2.5, rest_page_size=50)


@both_drivers
def test_lost_again_in_the_middle_of_the_repair(driver: str, valkey: Any, folder: Path) -> None:
    async def body(scene: Scene) -> None:
        async with scene.service() as service:
            await until(lambda: service.status().counters.quotes_accepted > 100)
            for gaps in (1, 2, 3):
                scene.simulator.drop()
                await until(lambda n=gaps: service.status().counters.gaps == n)
                await anyio.sleep(0.2)
            await until(lambda: service.status().counters.gaps_repaired == 3)
            await scene.settle(service)
        assert scene.told("gap", "gap_repaired") == ["gap"] * 3 + ["gap_repaired"]
        scene.check_complete()
        scene.check_numbers()

    run(body, valkey, folder, driver, rest_lag_s=1.5)


def test_refused_history_leaves_the_gap_and_the_latest_price(valkey: Any, folder: Path) -> None:
    async def body(scene: Scene) -> None:
        simulator = scene.simulator
        async with scene.service("AAPL") as service:
            await simulator.until(lambda s: any(c.subscriptions["quotes"] for c in s.connections))
            simulator.send_quotes([{"S": "AAPL", "bp": 1, "ap": 2}])
            await until(lambda: service.status().counters.quotes_accepted == 1)
            simulator.refuse_rest(path="/v2/stocks/quotes")
            simulator.drop()
            await simulator.until(lambda s: not s.connections)
            simulator.send_quotes([{"S": "AAPL", "bp": bid, "ap": 9} for bid in (2, 3, 4)])
            await until(lambda: service.status().counters.quotes_accepted == 2)
            latest = service.latest("AAPL")
            assert latest is not None
            assert latest.bid == 4
            await until(lambda: "gap" in scene.told("gap"))
            counters = service.status().counters
        assert (counters.gaps, counters.gaps_repaired, counters.quotes_backfilled) == (1, 0, 1)
        assert scene.told("gap", "gap_repaired") == ["gap"]

    run(body, valkey, folder, "websockets", rate=0)


def test_ten_thousand_missed_quotes_of_a_hundred_symbols(valkey: Any, folder: Path) -> None:
    """Its time is measured elsewhere; here it must not be far off."""
    symbols = [f"S{number:02}" for number in range(100)]

    async def body(scene: Scene) -> None:
        simulator = scene.simulator
        async with scene.service(*symbols) as service:
            await until(lambda: service.readiness().ready)
            simulator.send_quotes([SimQuote(symbol, 1, 2) for symbol in symbols])
            await until(lambda: service.status().counters.quotes_accepted == 100)
            simulator.drop()
            await simulator.until(lambda s: not s.connections)
            missed = [SimQuote(s, n, n + 1) for n in range(2, 102) for s in symbols]
            simulator.send_quotes(missed)
            await until(lambda: service.status().feed.connected)
            began_s = anyio.current_time()
            await until(lambda: service.status().counters.gaps_repaired == 1)
            took_s = anyio.current_time() - began_s
            await until(lambda: service.status().redis.backlog == 0)
        assert took_s < patient(10)
        events = scene.events()
        assert len(events) == 10_100
        for symbol in symbols:
            bids = [event["bid"] for event in events if event["symbol"] == symbol]
            assert bids == list(range(1, 102))

    run(body, valkey, folder, "websockets", rate=0)


# ---- two runs


@both_drivers
def test_between_two_runs_no_quote_is_lost_or_repeated(
    driver: str, valkey: Any, folder: Path
) -> None:
    async def body(scene: Scene) -> None:
        for _ in range(2):
            async with scene.service() as service:
                await until(lambda: service.status().counters.quotes_accepted > 100)
                await until(lambda: not service.status().counters.gaps or repaired(service))
            await anyio.sleep(0.5)  # the market keeps running
        async with scene.service() as service:
            await until(lambda: repaired(service))
            await scene.settle(service)
            counters = service.status().counters
        assert (counters.gaps, counters.gaps_repaired) == (1, 1)
        assert counters.quotes_backfilled > 0
        scene.check_complete()
        first_of_runs = [e["seq"] for e in scene.events() if e["symbol"] == "AAPL"].count(1)
        assert first_of_runs == 3

    def repaired(service: Service) -> bool:
        return service.status().counters.gaps_repaired == 1

    run(body, valkey, folder, driver)


def test_a_killed_run_is_gone_on_with(stage: Any) -> None:
    """The process ends at once, in the middle of a busy market."""
    simulator, valkey = stage.simulator(rate=300, rest_rate_limit=None), stage.valkey()
    folder = stage.folder()
    env = {"MDSERVICE_SYMBOLS": ",".join(SYMBOLS), "MDSERVICE_EVENT_LOG": "log"}
    for _ in range(2):
        service = stage.service(simulator, valkey, **env).wait_ready()
        service.until(lambda s: s["counters"]["quotes_accepted"] > 100)
        service.process.kill()
        service.process.wait()
    service = stage.service(simulator, valkey, **env).wait_ready()
    service.until(lambda s: s["counters"]["gaps_repaired"] == 1)
    assert service.post("unsubscribe", json={"symbols": list(SYMBOLS)})["status"] == "unsubscribed"
    service.until(lambda s: s["counters"]["events_published"] == s["counters"]["quotes_accepted"])
    Scene(simulator.simulator, valkey, folder, "websockets").check_complete()
    assert service.end() == 0


# ---- the REST client over TCP


@both_loops
def test_history_over_tcp(backend: str) -> None:
    async def main() -> None:
        async with open_simulator(SimulatorConfig(rate=0, rest_page_size=100)) as simulator:
            start_ns = SystemClock().utc_ns()
            made = [SimQuote("AAPL", n, n + 1, ts_event_ns=start_ns + n) for n in range(1, 1_001)]
            simulator.send_quotes(made)
            history = AlpacaHistory(
                simulator.rest_url, "iex", Credentials("key", "secret"), SystemClock()
            )
            found = await history.past(QUOTES, ["AAPL"], start_ns, start_ns + 10**9)
            assert [q.ts_event_ns for q in found] == [q.ts_event_ns for q in made]
            assert [q.bid for q in await history.latest(QUOTES, ["AAPL"])] == [1_000]
            simulator.refuse_rest()
            with pytest.raises(HistoryRefused):
                await history.latest(QUOTES, ["AAPL"])
            simulator.cut_rest()
            with pytest.raises(HistoryUnavailable):
                await history.past(QUOTES, ["AAPL"], start_ns, start_ns + 10**9)

    anyio.run(main, backend=backend)


@both_loops
def test_a_host_that_cannot_be_reached_is_no_answer(backend: str) -> None:
    async def main() -> None:
        url = "http://127.0.0.1:9"  # the discard port: no listener
        history = AlpacaHistory(url, "iex", Credentials("key", "secret"), SystemClock())
        with anyio.fail_after(20), pytest.raises(HistoryUnavailable, match="no history from"):
            await history.latest(QUOTES, ["AAPL"])

    anyio.run(main, backend=backend)
