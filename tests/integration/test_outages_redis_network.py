"""The network to Redis cut in mid-write, away, and without a way back, while the server itself lives on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest

from tests.integration.network import Network
from tests.integration.outages import LINES, Ear, open_line, run

each_line = pytest.mark.parametrize(("driver", "backend"), LINES)


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="out-") as name:  # short: it holds a socket
        yield Path(name)


@pytest.fixture
def way(fresh_valkey: Any) -> Iterator[Network]:
    """TCP to the server; ears are at the server itself, so they hear all that it publishes."""
    with closing(Network(fresh_valkey.path)) as network:
        yield network


@each_line
def test_reset_again_and_again_in_mid_write_nothing_is_repeated_or_lost(
    driver: str, backend: str, fresh_valkey: Any, way: Network, folder: Path
) -> None:
    async def body() -> None:
        url = f"redis://127.0.0.1:{way.port}"
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(fresh_valkey, folder, driver, redis_url=url) as line:
                for number in range(15):
                    line.send(200)
                    await anyio.sleep(0.003 * (number % 5))
                    way.reset()
                    await line.more(5)
                await line.stop(ear)
                line.check_complete(ear)

    run(body, backend)


@each_line
def test_away_for_a_while_it_misses_nothing(
    driver: str, backend: str, fresh_valkey: Any, way: Network, folder: Path
) -> None:
    async def body() -> None:
        url = f"redis://127.0.0.1:{way.port}"
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(fresh_valkey, folder, driver, redis_url=url) as line:
                await line.more()
                way.down()
                await line.not_ready(because="Redis is not connected")
                await line.more_accepted()
                way.up()
                await line.ready()
                await line.stop(ear)
                line.check_complete(ear)

    run(body, backend)


def test_a_write_whose_answer_never_comes_is_not_repeated(
    fresh_valkey: Any, way: Network, folder: Path
) -> None:
    """Both drivers at once: it takes seconds to give the connection up."""

    async def body() -> None:
        url = f"redis://127.0.0.1:{way.port}"
        with closing(Ear(fresh_valkey.path)) as ear:
            async with (
                open_line(fresh_valkey, folder, "websockets", "RA,RB", redis_url=url) as raw,
                open_line(fresh_valkey, folder, "alpaca-py", "SA,SB", redis_url=url) as sdk,
            ):
                for line in (raw, sdk):
                    await line.more()
                way.swallow_answers()
                for line in (raw, sdk):
                    await line.not_ready(because="Redis is not connected")
                for line in (raw, sdk):
                    await line.ready()
                    await line.stop(ear)
                    line.check_complete(ear)

    run(body, "trio")
