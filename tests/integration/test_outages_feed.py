"""The feed's connections cut, frozen, refused and out of reach; under a market that goes on.

Each test ends with every event that a real listener has heard compared to the market's own record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest

from mdservice.errors import FeedRefused
from mdservice.feed.alpaca import sdk_driver, websockets_driver
from mdservice.simulator import Simulator, crypto, stocks
from mdservice.simulator.bars import MINUTE_NS, SimBar
from mdservice.simulator.kinds import SimKind
from tests.integration.outages import LINES, Ear, Line, open_line, restart_heard, run, until

each_line = pytest.mark.parametrize(("driver", "backend"), LINES)

FOR_GOOD: dict[int, Callable[[Simulator], None]] = {
    402: lambda simulator: simulator.refuse_next(402, when="auth", times=1000),
    409: lambda simulator: simulator.refuse_next(409, when="auth", times=1000),
    411: lambda simulator: simulator.refuse_next(411, when="auth", times=1000),
    401: lambda simulator: simulator.refuse_upgrade(401, times=1000),
    403: lambda simulator: simulator.refuse_upgrade(403, times=1000),
}
"""What Alpaca refuses for good, by code or HTTP status."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="out-") as name:  # short: it holds a socket
        yield Path(name)


# ---- cut and frozen


def slow_client(line: Line) -> None:
    line.simulator.send_error(407)
    line.simulator.drop("close")


CUTS: dict[str, Callable[[Line], None]] = {
    "reset on the way": lambda line: line.network.reset(),
    "407 and hung up": slow_client,
    "closed with 1011": lambda line: line.simulator.drop("close", code=1011),
}


@each_line
@pytest.mark.parametrize("how", CUTS)
def test_a_connection_that_ends_is_made_again_and_its_gap_filled(
    driver: str, backend: str, how: str, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(fresh_valkey, folder, driver) as line:
                await line.more()
                CUTS[how](line)
                await line.repaired()
                await line.more()
                await line.stop(ear)
                line.check_complete(ear)
                counters = line.service.status().counters
                assert (counters.reconnects, counters.gaps) == (1, 1)
                told = ["connected", "disconnected", "connected", "gap", "gap_repaired"]
                assert ear.told() == told

    run(body, backend)


@each_line
def test_a_frozen_connection_is_given_up_and_its_gap_filled(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    """Nothing gets through on it, in either direction, not even the end."""

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(
                fresh_valkey, folder, driver, mute_after=1, config={"connection_limit": None}
            ) as line:
                await line.more()
                line.network.freeze()
                await line.repaired()
                await line.stop(ear)
                line.check_complete(ear)
                told = ear.told("stale", "gap", "gap_repaired")
                assert told == ["stale", "gap", "gap_repaired"]

    run(body, backend)


@each_line
def test_a_peer_that_is_gone_is_found_by_pings_where_silence_is_right(
    driver: str,
    backend: str,
    fresh_valkey: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Statuses may not come for days, so nothing else shows that the socket is half open."""
    for module in (websockets_driver, sdk_driver):
        monkeypatch.setattr(module, "_PING_INTERVAL_S", 0.5)
        monkeypatch.setattr(module, "_PING_TIMEOUT_S", 0.4)

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(
                fresh_valkey,
                folder,
                driver,
                mute_after=1,
                channels=("statuses",),
                config={"connection_limit": None},
            ) as line:
                line.network.freeze()
                await until(lambda: line.service.status().counters.reconnects == 1)
                await line.ready()
                assert ear.told("stale") == []

    run(body, backend)


SILENT: dict[str, tuple[str, SimKind[Any], Callable[[int], Any]]] = {
    "bars of stocks": ("AAPL", stocks.BARS, lambda at_ns: a_bar("AAPL", at_ns)),
    "bars of crypto": ("BTC/USD", crypto.BARS, lambda at_ns: a_bar("BTC/USD", at_ns)),
    "order books": (
        "BTC/USD",
        crypto.ORDERBOOKS,
        lambda at_ns: crypto.SimBook("BTC/USD", ((at_ns % 97, 1),), ((99, 1),), True, at_ns),
    ),
}
"""The only kind that is subscribed, and its record of a time, UTC nanoseconds."""


def a_bar(symbol: str, at_ns: int) -> SimBar:
    return SimBar(symbol, 10, 12, 9, 11, 100, 5, 10.5, at_ns - at_ns % MINUTE_NS)


@pytest.mark.parametrize("silent", SILENT)
def test_a_mute_socket_without_quotes_is_given_up_by_what_rest_has(
    silent: str, fresh_valkey: Any, folder: Path
) -> None:
    symbol, kind, record = SILENT[silent]

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(
                fresh_valkey,
                folder,
                "websockets",
                symbols=symbol,
                mute_after=1,
                channels=(kind.channel,),
                feed="simulator",
                config={"connection_limit": None},
            ) as line:
                simulator = line.simulator
                await simulator.until(
                    lambda s: any(
                        symbol in c.subscriptions.get(kind.channel, ()) for c in s.connections
                    )
                )
                now_ns = time.time_ns()
                simulator.send_records(kind, [record(now_ns - 3 * MINUTE_NS)])
                await until(lambda: line.service.status().counters.events_published == 1)
                simulator.mute(feed=kind.feed.name)
                simulator.send_records(kind, [record(now_ns - 2 * MINUTE_NS + 1)])
                await until(lambda: "stale" in ear.told("stale"))

    run(body, "trio")


# ---- out of reach


@each_line
def test_a_network_that_is_away_for_stream_and_history_loses_no_quote(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(fresh_valkey, folder, driver, rest_too=True) as line:
                await line.more()
                line.network.down()
                await line.not_ready(because="cannot connect")
                await line.more()
                line.network.up()
                await line.repaired()
                await line.stop(ear)
                line.check_complete(ear)
                told = ["connected", "disconnected", "connected", "gap", "gap_repaired"]
                assert ear.told() == told

    run(body, backend)


@each_line
def test_feed_and_redis_lost_together_miss_nothing(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    """The feed comes back first, and is cut again before Redis is there."""

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as first:
            async with open_line(fresh_valkey, folder, driver, rest_too=True) as line:
                await line.more()
                await line.stop(first)
                fresh_valkey.kill()
                line.going = True
                await line.more_accepted()
                line.network.down()
                await line.not_ready(because="the feed is waiting")
                await line.not_ready(because="Redis is not connected")
                await line.more()
                line.network.up()
                await until(lambda: line.service.status().counters.gaps == 1)
                line.network.reset()
                with closing(restart_heard(fresh_valkey)) as second:
                    await until(lambda: line.service.status().counters.gaps == 2)
                    await until(lambda: second.told()[-1:] == ["gap_repaired"])
                    await line.ready()
                    await line.more()
                    await line.stop(second)
                    line.check_complete(first, second)
                    assert second.told("gap", "disconnected").count("gap") == 2

    run(body, backend)


# ---- refused for good


def of_code(code: int) -> str:
    """Symbols of the line that meets this refusal."""
    letters = "".join(chr(ord("A") + int(digit)) for digit in str(code))
    return f"{letters}X,{letters}Y"


@each_line
def test_a_refusal_for_good_in_mid_run_is_reported_and_what_is_known_stays(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    """Every refusal at once, each on a line of its own; the next try is half a minute away."""

    async def refuse(code: int, ear: Ear) -> None:
        symbols = of_code(code)
        async with open_line(fresh_valkey, folder, driver, symbols, every_s=0.02) as line:
            await line.more_accepted(20)
            FOR_GOOD[code](line.simulator)
            line.network.reset()
            await until(lambda: line.service.status().feed.phase == "refused")
            assert str(code) in (line.service.status().feed.last_error or "")
            assert line.service.status().state == "degraded"
            await until(lambda: line.service.status().redis.backlog == 0)
            await until(lambda: code in {m.get("code") for m in list(ear.states)})
            for symbol in line.symbols:
                heard = ear.events(symbol)
                assert [event["seq"] for event in heard] == [*range(1, len(heard) + 1)]
                latest = line.service.latest(symbol)
                assert latest is not None
                assert latest.seq == len(heard)

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with anyio.create_task_group() as tasks:
                for code in FOR_GOOD:
                    tasks.start_soon(refuse, code, ear)
            fatal = [message["code"] for message in ear.states if message["state"] == "fatal"]
            assert sorted(fatal) == sorted(FOR_GOOD)

    run(body, backend)


@each_line
def test_a_refusal_for_good_before_any_data_ends_the_service(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    async def start(code: int) -> None:
        symbols, prepare = of_code(code), FOR_GOOD[code]
        with pytest.raises(FeedRefused, match=str(code)) as caught:
            async with open_line(fresh_valkey, folder, driver, symbols, prepare=prepare):
                pytest.fail("it got ready")
        assert (caught.value.code, caught.value.http) == (code, code < 402 or code == 403)

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with anyio.create_task_group() as tasks:
                for code in FOR_GOOD:
                    tasks.start_soon(start, code)
            assert sorted(message["code"] for message in ear.states) == sorted(FOR_GOOD)
            assert set(ear.told()) == {"fatal"}

    run(body, backend)
