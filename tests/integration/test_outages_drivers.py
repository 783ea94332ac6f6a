"""Outages that take their time: the account's slot, and a driver that no longer gets through.

The market runs meanwhile, and every event that a real listener has heard is compared to it.
All of it runs side by side, each scene on a loop in a thread: it is mostly waiting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest

from mdservice.feed.alpaca import sdk_driver as sdk
from tests.integration.outages import Ear, Line, open_line, run, until

CONNECTED = ["connected", "gap", "gap_repaired"]


def driver_of(line: Line) -> str:
    return line.service.status().feed.driver


async def slot(server: Any, folder: Path, ear: Ear) -> None:
    async def wait(line: Line) -> None:
        await line.more()
        line.network.reset()
        await until(lambda: line.service.status().feed.phase == "waiting_for_slot")
        assert "406" in (line.service.status().feed.last_error or "")
        await line.not_ready(because="waiting for slot")
        await line.repaired()

    config = {"slot_hold_s": 2.0}
    async with (
        open_line(server, folder, "websockets", "RA,RB", config=config) as raw,
        open_line(server, folder, "alpaca-py", "SA,SB", config=config) as sdk_line,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, raw)
            tasks.start_soon(wait, sdk_line)
        for line in (raw, sdk_line):
            await line.stop(ear)
            line.check_complete(ear)
        assert ear.told("fatal", "fallback") == []


async def away(server: Any, folder: Path, ear: Ear, returns_to: str) -> None:
    async with open_line(server, folder, "auto", rest_too=True) as line:
        await line.more()
        assert driver_of(line) == "alpaca-py"
        line.network.down()
        for driver in dict.fromkeys(["websockets", returns_to]):
            await until(lambda driver=driver: driver_of(line) == driver)
        await line.more(10)
        await ear.hear_all(server)
        assert ear.told() == ["connected", "disconnected"]
        line.network.up()
        await line.repaired()
        line.network.reset()
        await line.repaired(2)
        await line.stop(ear)
        line.check_complete(ear)
        assert driver_of(line) == returns_to
        change = ["fallback"] if returns_to == "websockets" else []
        assert ear.told() == [
            *("connected", "disconnected", *change, *CONNECTED),
            *("disconnected", *CONNECTED),
        ]


async def away_until_raw_is_tried(server: Any, folder: Path, ear: Ear) -> None:
    await away(server, folder, ear, "websockets")


async def away_until_the_sdk_is_tried_again(server: Any, folder: Path, ear: Ear) -> None:
    await away(server, folder, ear, "alpaca-py")


async def stalled(server: Any, folder: Path, ear: Ear) -> None:
    config = {"connection_limit": None}
    async with open_line(server, folder, "auto", config=config) as line:
        await line.more()
        assert driver_of(line) == "alpaca-py"
        line.simulator.stall("upgrade", times=2)
        line.network.reset()
        await line.repaired()
        assert driver_of(line) == "websockets"
        line.network.reset()
        await line.repaired(2)
        await line.stop(ear)
        line.check_complete(ear)
        assert driver_of(line) == "websockets"
        assert ear.told() == [
            *("connected", "disconnected", "fallback", *CONNECTED),
            *("disconnected", *CONNECTED),
        ]


Scene = Callable[[Any, Path, Ear], Awaitable[None]]
SCENES: list[tuple[Scene, str]] = [
    (slot, "trio"),
    (slot, "asyncio"),
    (away_until_raw_is_tried, "trio"),
    (away_until_the_sdk_is_tried_again, "asyncio"),
    (stalled, "trio"),
]


def play(scene: Scene, backend: str, make_server: Callable[[], Any]) -> None:
    with TemporaryDirectory(prefix="out-") as folder, closing(make_server()) as server:
        server.start()
        with closing(Ear(server.path)) as ear:
            run(lambda: scene(server, Path(folder), ear), backend)


@pytest.fixture(scope="module")
def played(shared_valkey: Any) -> Iterator[dict[tuple[Scene, str], Future[None]]]:
    """Every scene, begun."""
    sdk._import_sdk()  # what it does to the warnings is not for several threads at once
    with ThreadPoolExecutor(len(SCENES)) as pool:
        yield {key: pool.submit(play, *key, type(shared_valkey)) for key in SCENES}


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_slot_of_a_dead_session_is_waited_for_and_the_gap_filled(
    played: Any, backend: str
) -> None:
    """By both drivers: Alpaca holds the slot for a while after a cut."""
    played[slot, backend].result()


def test_back_from_an_outage_by_raw_auto_has_changed_the_driver_once_and_lost_no_quote(
    played: Any,
) -> None:
    """The drivers alternated meanwhile; raw got through first and stays."""
    played[away_until_raw_is_tried, "trio"].result()


def test_back_from_an_outage_by_alpaca_py_auto_has_changed_nothing_and_lost_no_quote(
    played: Any,
) -> None:
    """The drivers alternated meanwhile, which is not reported."""
    played[away_until_the_sdk_is_tried_again, "asyncio"].result()


def test_a_driver_that_no_longer_gets_through_is_changed_once_without_losing_a_quote(
    played: Any,
) -> None:
    """Two upgrades are accepted and never answered."""
    played[stalled, "trio"].result()
