"""A recorded service and a replayed one leave the same bytes, whatever happened meanwhile."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import pytest

import mdservice
from mdservice.journal.replay import MAX_SPEED, Replay, open_journal, open_replay
from mdservice.simulator import Simulator, SimulatorConfig, open_simulator
from mdservice.testing import MemoryPriceStore
from tests.integration.conftest import patient
from tests.integration.outages import run, until

EVERYTHING = (
    *("quotes", "trades", "bars", "updatedBars", "dailyBars", "statuses", "lulds", "imbalances"),
    "orderbooks",
)
SYMBOLS = ("AAPL", "MSFT", "BTC/USD", "AAPL261218C00200000")
LIVELY = {
    "trades_per_quote": 0.5,
    "late_trade_ratio": 0.02,
    "correction_ratio": 0.05,
    "cancel_ratio": 0.05,
    "imbalance_ratio": 0.1,
    "halt_every_s": 1.0,
    "news_every_s": 0.2,
    "crypto_rate": 200.0,
    "options_rate": 200.0,
    "rest_rate_limit": None,
}


def settings_of(folder: Path, url: str, **more: Any) -> mdservice.Settings:
    given: dict[str, Any] = {
        "feed": "simulator",
        "feed_url": url,
        "symbols": SYMBOLS,
        "channels": EVERYTHING,
        "news": ("*",),
        "relay": "off",
        "socket": folder / "s",
        "driver": "websockets",
    }
    return mdservice.Settings(**given | more)


def contents(store: MemoryPriceStore) -> dict[str, bytes]:
    """Every key, and the articles of the stream of news, without the ids that Redis gives them."""
    return {
        **{key: value for key, (value, _) in store._keys.items() if "mdservice" not in key},
        **{
            f"{name} {place}": payload
            for name, entries in store.streams.items()
            for place, (_, payload) in enumerate(entries)
        },
    }


@asynccontextmanager
async def recording(
    folder: Path, simulator: Simulator, store: MemoryPriceStore, **more: Any
) -> AsyncIterator[mdservice.Service]:
    settings = settings_of(folder, simulator.url, journal=folder / "journal", **more)
    limit = "mdservice.app.service.DRAIN_LIMIT_S"
    # A busy machine may not write in three seconds all that the journal has.
    with patch(limit, 60.0):
        async with mdservice.open_service(settings, store=store) as service:
            yield service


async def check_replayed(
    folder: Path,
    expected: dict[str, bytes],
    speed: float = MAX_SPEED,
    feeds: int = 4,
    **more: Any,
) -> Replay:
    """Let a service get the journal; it leaves what the recorded one has left."""
    store = MemoryPriceStore()
    async with open_replay(open_journal([folder / "journal"]), speed=speed) as replay:
        settings = settings_of(folder, replay.url, **more)
        async with mdservice.open_service(settings, store=store):
            await until(
                lambda: len(replay.players) == feeds and all(p.ended for p in replay.players)
            )
            with anyio.move_on_after(patient(20)):  # the last bytes are still on their way
                await until(lambda: contents(store) == expected, within_s=60)
        assert not [player.error for player in replay.players if player.error]
    found = contents(store)
    assert found.keys() == expected.keys()
    differ = {key: (found[key], expected[key]) for key in found if found[key] != expected[key]}
    assert not differ
    return replay


@pytest.mark.parametrize("speed", [MAX_SPEED, 1.0])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_every_channel_of_every_feed_is_the_same(
    backend: str, speed: float, tmp_path: Path
) -> None:
    async def body() -> None:
        store = MemoryPriceStore()
        async with (
            open_simulator(SimulatorConfig(rate=500, **LIVELY)) as simulator,
            recording(tmp_path, simulator, store),
        ):
            await until(lambda: len(contents(store)) > 15)
            await anyio.sleep(2)
        replay = await check_replayed(tmp_path, contents(store), speed)
        assert {player.feed.name for player in replay.players} == {
            *("stocks", "crypto", "options", "news")
        }

    run(body, backend)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("lag_s", [0.0, 0.3])
def test_outages_with_their_repairs_are_the_same(seed: int, lag_s: float, tmp_path: Path) -> None:
    async def body() -> None:
        store = MemoryPriceStore()
        config = SimulatorConfig(seed=seed, rate=500, rest_lag_s=lag_s, **LIVELY)
        async with (
            open_simulator(config) as simulator,
            recording(tmp_path, simulator, store) as service,
        ):

            def streaming() -> bool:
                return all(f.phase == "streaming" for f in service.status().feeds.values())

            await until(lambda: len(contents(store)) > 15)
            drops = 0
            while drops < 3 or not service.status().counters.quotes_backfilled:
                await anyio.sleep(0.5)  # a cut between two quotes leaves no gap
                simulator.drop()
                await until(lambda: not service.status().feed.connected)
                await until(streaming)
                drops += 1
            await anyio.sleep(1)
        await check_replayed(tmp_path, contents(store))

    run(body, "trio")


def test_first_prices_of_rest_are_the_same(tmp_path: Path) -> None:
    """Those of the start, and of symbols that are subscribed and unsubscribed later."""
    channels = ("quotes", "trades")

    async def body() -> None:
        store = MemoryPriceStore()
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:

            def quote(symbol: str, bid: float) -> None:
                simulator.send_quotes([{"S": symbol, "bp": bid, "ap": bid + 1}])

            for symbol in ("AAPL", "MSFT", "NVDA"):
                quote(symbol, 100)  # in REST alone
            more = {"symbols": ("AAPL", "MSFT"), "channels": channels, "news": ()}
            async with recording(tmp_path, simulator, store, **more) as service:
                await until(lambda: service.status().counters.prices_fetched == 2)
                quote("AAPL", 101)
                await service.subscribe("NVDA")
                await until(lambda: service.status().counters.prices_fetched == 3)
                quote("NVDA", 102)
                quote("NVDA", 103)
                await until(lambda: getattr(service.latest("NVDA"), "seq", 0) == 3)
                await service.unsubscribe("NVDA")
                quote("NVDA", 104)
                await service.subscribe("NVDA")
                await until(lambda: getattr(service.latest("NVDA"), "bid", 0) == 104)
                quote("AAPL", 105)
                await until(lambda: getattr(service.latest("AAPL"), "bid", 0) == 105)
        more["symbols"] = ("AAPL", "MSFT", "NVDA")
        expected = contents(store)
        assert b'"seq":4' in expected["price:NVDA"]
        await check_replayed(tmp_path, expected, feeds=1, **more)

    run(body, "asyncio")


@pytest.mark.parametrize(("recorded", "replaying"), [("websockets", "alpaca-py")])
def test_any_driver_replays_what_any_has_recorded(
    recorded: str, replaying: str, tmp_path: Path
) -> None:
    async def body() -> None:
        store = MemoryPriceStore()
        async with (
            open_simulator(SimulatorConfig(rate=500, **LIVELY)) as simulator,
            recording(tmp_path, simulator, store, driver=recorded),
        ):
            await until(lambda: len(contents(store)) > 15)
        await check_replayed(tmp_path, contents(store), driver=replaying)

    run(body, "asyncio")


def test_messages_that_the_service_refuses_are_refused_again(tmp_path: Path) -> None:
    more = {"symbols": ("AAPL",), "channels": ("quotes",), "news": ()}

    async def body() -> None:
        store = MemoryPriceStore()
        async with (
            open_simulator(SimulatorConfig(rate=0)) as simulator,
            recording(tmp_path, simulator, store, **more) as service,
        ):
            await until(lambda: "AAPL" in service.channels())
            now_ns = simulator._clock.utc_ns()
            for number, (bid, ahead_s) in enumerate([(1, 0), (2, 120), (3, 0.001), (4, -9)]):
                at_ns = now_ns + int(ahead_s * 1e9) + number
                simulator.send_messages(
                    [{"T": "q", "S": "AAPL", "bp": bid, "ap": 9, "bs": 1, "as": 1, "t": at_ns}]
                )
            simulator.send_raw(b"broken")
            await until(lambda: service.status().counters.decode_errors == 2)
        expected = contents(store)
        assert b'"bid":3' in expected["price:AAPL"]
        replay = await check_replayed(tmp_path, expected, feeds=1, **more)
        assert replay.players[0].messages in (2, 3)  # the one from the future is not sent

    run(body, "trio")


def redis_contents(server: Any) -> dict[bytes, Any]:
    """Every key that carries a record, and the articles of the stream of news."""
    with server.client() as client:
        keys = [key for key in client.keys("*") if not key.startswith((b"mdservice:", b"news"))]
        found: dict[bytes, Any] = {key: client.get(key) for key in keys}
        return found | {b"news": [entry[b"data"] for _, entry in client.xrange("news")]}


def test_the_program_replays_a_day_after_a_kill_into_another_redis(stage: Any) -> None:
    """As a user does it: the service is killed in the middle, the command names what to run."""
    simulator = stage.simulator(**{"rate": 300, **LIVELY})
    valkey, other = stage.valkey(), stage.valkey()
    folder = stage.folder()
    service = stage.service(
        simulator,
        valkey,
        MDSERVICE_JOURNAL=str(folder / "journal"),
        MDSERVICE_SYMBOLS=",".join(SYMBOLS),
        MDSERVICE_CHANNELS=",".join(EVERYTHING),
        MDSERVICE_NEWS="*",
    ).wait_ready()
    stage.eventually(lambda: len(redis_contents(valkey)) > 15)
    simulator.mute()
    received = -1

    def quiet() -> bool:
        nonlocal received
        before = received
        journal = service.status()["journal"]
        received = journal["written"]
        done = received == before and not journal["waiting_bytes"]
        return done and not service.status()["redis"]["backlog"]

    stage.eventually(quiet)
    service.end(signal.SIGKILL)

    replay = stage.program("replay", str(folder / "journal"), "--speed", "max")
    line = stage.eventually(
        lambda: [line for line in replay.stdout.splitlines() if "to use it: " in line]
    )[0]
    message = json.loads(line)["message"].strip().removeprefix("to use it: ")
    words = shlex.split(message)
    env = dict(word.split("=", 1) for word in words if word.startswith("MDSERVICE_"))
    again = stage.program(
        *words[words.index("mdservice") + 1 :],
        **env,
        MDSERVICE_REDIS_URL=other.url,
        MDSERVICE_DRIVER="websockets",
        MDSERVICE_RELAY="off",
    ).wait_ready()
    stage.eventually(
        lambda: redis_contents(other) == redis_contents(valkey),
        within=60,
        what=lambda: f"{redis_contents(other)} {redis_contents(valkey)} {replay.said}",
    )
    stage.eventually(lambda: "messages sent" in replay.stdout)
    assert again.end() == 0
    assert replay.end() == 0


@pytest.mark.parametrize("broken", [False, True])
def test_a_recorded_fault_is_a_test_that_fails_while_the_fault_is_there(
    stage: Any, broken: bool
) -> None:
    simulator, valkey, folder = stage.simulator(), stage.valkey(), stage.folder()
    journal = str(folder / "journal")
    service = stage.service(
        simulator, valkey, MDSERVICE_JOURNAL=journal, MDSERVICE_SYMBOLS="AAPL"
    ).wait_ready()
    if broken:
        simulator.send_raw(b"broken")
    simulator.quotes(("AAPL", 187.12, 187.15))
    service.until(lambda status: status["counters"]["quotes_accepted"])
    assert service.end() == 0
    program = stage.example("recorded_day.py", journal)
    assert program.code() == int(broken)
    assert program.stdout == "AAPL 187.12 187.15 seq 1\n"
    assert ("decode_errors == 0" in program.stderr) == broken
