"""Valkey full, read-only, locked, stuttering, paused, cut off, killed; under a market that goes on.

Every event is heard by a real listener, and each test ends with all of them compared to the
market's own record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import attrs
import pytest
import redis

from mdservice.redis_io.names import RedisNames
from tests.integration.outages import LINES, Ear, Line, open_line, restart_heard, run, until

each_line = pytest.mark.parametrize(("driver", "backend"), LINES)
NOBODY = ("127.0.0.1", 9)  # the discard port: such a primary is never reached
BATCH = 2_000


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="out-") as name:  # short: it holds a socket
        yield Path(name)


def change_password(client: redis.Redis, *rules: str) -> None:
    """Passwords count at the login, so everybody has to log in again."""
    client.execute_command("ACL", "SETUSER", "default", *rules)
    client.client_kill_filter(_type="normal", skipme=True)


@attrs.frozen
class Refusal:
    """How a server that answers is made to take no writes, and what is said of it."""

    begin: Callable[[redis.Redis], Any]
    end: Callable[[redis.Redis], Any]
    said: str


REFUSALS = {
    "out of memory": Refusal(
        lambda client: client.config_set("maxmemory", "1"),
        lambda client: client.config_set("maxmemory", "0"),
        "OOM",
    ),
    "a replica": Refusal(
        lambda client: client.replicaof(*NOBODY),
        lambda client: client.replicaof("NO", "ONE"),
        "READONLY",
    ),
    "another password": Refusal(
        lambda client: change_password(client, "resetpass", ">other"),
        lambda client: change_password(client, "nopass"),
        "set user and password",
    ),
}


@each_line
@pytest.mark.parametrize("name", REFUSALS)
def test_a_server_that_takes_no_writes_for_a_while_misses_nothing(
    driver: str, backend: str, name: str, fresh_valkey: Any, folder: Path
) -> None:
    refusal = REFUSALS[name]

    async def body() -> None:
        client = fresh_valkey.client(single_connection_client=True)
        with closing(Ear(fresh_valkey.path)) as ear, client:
            async with open_line(fresh_valkey, folder, driver) as line:
                await line.more()
                refusal.begin(client)
                await line.not_ready(because=refusal.said)
                await line.more_accepted()
                assert line.service.status().redis.backlog > 0
                assert line.service.status().feed.connected
                refusal.end(client)
                await line.ready()
                await line.more()
                await line.stop(ear)
                line.check_complete(ear)
                assert ear.told() == ["connected"]

    run(body, backend)


@each_line
def test_a_server_that_stutters_misses_nothing(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(fresh_valkey, folder, driver) as line:
                for _ in range(8):
                    await line.more(10)
                    fresh_valkey.stop_answering()
                    await line.more_accepted(60)
                    fresh_valkey.answer_again()
                await line.stop(ear)
                line.check_complete(ear)

    run(body, backend)


def test_a_server_that_is_paused_until_it_is_given_up_misses_nothing(
    fresh_valkey: Any, folder: Path
) -> None:
    """Both drivers at once, at one server: it takes seconds to notice."""

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with (
                open_line(fresh_valkey, folder, "websockets", "RA,RB") as raw,
                open_line(fresh_valkey, folder, "alpaca-py", "SA,SB") as sdk,
            ):
                for line in (raw, sdk):
                    await line.more()
                fresh_valkey.stop_answering()
                for line in (raw, sdk):
                    await line.not_ready(because="Redis")
                    await line.more_accepted()
                fresh_valkey.answer_again()
                for line in (raw, sdk):
                    await line.ready()
                    await line.stop(ear)
                    line.check_complete(ear)

    run(body, "trio")


@each_line
def test_connections_cut_again_and_again_in_mid_flood_repeat_and_lose_nothing(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        client = fresh_valkey.client(single_connection_client=True)
        with closing(Ear(fresh_valkey.path)) as ear, client:
            async with open_line(fresh_valkey, folder, driver) as line:
                for _ in range(12):
                    line.send(200)
                    await anyio.sleep(0.02)  # some batches are on their way
                    client.client_kill_filter(_type="normal", skipme=True)
                    await line.more(5)
                await line.stop(ear)
                line.check_complete(ear)

    run(body, backend)


@each_line
def test_killed_between_two_writes_and_restarted_empty_it_misses_nothing(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as first:
            async with open_line(fresh_valkey, folder, driver) as line:
                await line.more()
                await line.stop(first)
                fresh_valkey.kill()
                line.going = True
                await line.not_ready()
                await line.more_accepted()
                with closing(restart_heard(fresh_valkey)) as second:
                    await line.ready()
                    await line.more()
                    await line.stop(second)
                    line.check_complete(first, second)

    run(body, backend)


@each_line
def test_killed_in_the_middle_of_a_write_all_that_it_has_not_acknowledged_is_written_again(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    """It has forgotten whether it executed that write, so this one alone may be heard twice."""

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as first:
            async with open_line(fresh_valkey, folder, driver) as line:
                await line.more()
                line.send(400)
                await anyio.sleep(0.02)
                fresh_valkey.kill()
                await line.not_ready(because="Redis is not connected")
                acknowledged = line.service.status().counters.events_published
                await line.more_accepted()
                with closing(restart_heard(fresh_valkey)) as second:
                    await line.ready()
                    await line.more()
                    await line.stop(second)
                    for place, symbol in enumerate(line.symbols):  # they are quoted in turn
                        of_it = len(range(place, acknowledged, len(line.symbols)))
                        after = [event["seq"] for event in second.events(symbol)]
                        assert after == list(range(of_it + 1, line.sent + 1))
                        before = [event["seq"] for event in first.events(symbol)]
                        assert before == list(range(1, len(before) + 1))
                        assert len(before) <= of_it + BATCH
                        with fresh_valkey.client() as client:
                            assert client.get(f"price:{symbol}") == second.raw[symbol][-1]
                    counters = line.service.status().counters
                    assert counters.events_published == counters.quotes_accepted
                    assert counters.events_conflated == 0

    run(body, backend)


@each_line
def test_beyond_the_backlog_the_oldest_are_conflated_and_counted(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    backlog = 10_000

    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as first:
            async with open_line(fresh_valkey, folder, driver, backlog=backlog) as line:
                await line.more()
                await line.stop(first)
                fresh_valkey.kill()
                await line.not_ready(because="Redis")
                before = line.sent
                for _ in range(20):
                    line.send(250)
                    await line.all_accepted()
                    assert line.service.status().redis.backlog <= backlog
                with closing(restart_heard(fresh_valkey)) as second:
                    await line.stop(second)
                    conflated = 0
                    for symbol in line.symbols:
                        numbers = [before, *(e["seq"] for e in second.events(symbol))]
                        steps = [after - seq for seq, after in pairwise(numbers)]
                        assert min(steps) >= 1
                        assert numbers[-1] == line.sent
                        conflated += sum(steps) - len(steps)
                        with fresh_valkey.client() as client:
                            assert client.get(f"price:{symbol}") == second.raw[symbol][-1]
                    assert sum(map(len, second.raw.values())) >= backlog - BATCH
                    counters = line.service.status().counters
                    assert counters.events_conflated == conflated > 0
                    accepted = counters.quotes_accepted
                    assert accepted == line.sent * len(line.symbols)
                    assert counters.events_published == accepted - conflated

    run(body, backend)


@each_line
def test_restarted_empty_it_has_the_prices_that_did_not_change_too(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        with closing(Ear(fresh_valkey.path)) as ear:
            async with open_line(fresh_valkey, folder, driver) as line:
                await line.more()
                await line.stop(ear)
                fresh_valkey.kill()
                await line.not_ready()
                with closing(restart_heard(fresh_valkey)) as second:
                    with fresh_valkey.client() as client:
                        await until(lambda: client.exists(*keys(line)) == 3)
                        prices = [json.loads(value) for value in client.mget(keys(line))]
                        left_s = [client.ttl(key) for key in keys(line)]
                    assert prices == [ear.events(s)[-1] for s in line.symbols]
                    assert all(0 < ttl_s <= 300 for ttl_s in left_s)
                    assert dict(second.raw) == {}, "a price that is put back is no event"
                    line.going = True
                    await line.more()
                    await line.stop(second)
                    line.check_complete(ear, second)

    def keys(line: Line) -> list[str]:
        return [f"price:{symbol}" for symbol in line.symbols]

    run(body, backend)


@each_line
def test_a_kind_that_the_user_may_not_write_degrades_the_service_and_quotes_go_on(
    driver: str, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        with fresh_valkey.client() as client, closing(Ear(fresh_valkey.path)) as ear:
            rules = f"on nopass {RedisNames().rights()} -del"
            client.execute_command("ACL", "SETUSER", "desk", *rules.split())
            url = fresh_valkey.url.replace("unix://", "unix://desk:any@")
            async with open_line(fresh_valkey, folder, driver, redis_url=url) as line:
                await line.more()
                status = line.service.status()
                assert (status.state, status.reasons) == ("running", ())
                await line.service.subscribe("AAPL", channels=["trades"])
                await line.more()
                status = line.service.status()
                assert (status.state, line.service.readiness().ready) == ("degraded", True)
                assert "DEL trade:*" in status.reasons[0]
                await line.stop(ear)
                line.check_complete(ear)

    run(body, backend)
