"""A prefix stands in front of every name, for the writer, the readers and the gateway."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import attrs
import pytest

import mdservice
from mdservice.client.discovery import GivenServer, ServiceServer
from mdservice.client.http import NoAnswer
from mdservice.errors import ConfigurationError
from mdservice.gateway.make import make_tracker
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.http_api.server import serve_api
from mdservice.model.kinds import QUOTES
from mdservice.model.position import Position
from mdservice.publish.store import Message
from mdservice.redis_io.store import RedisPriceStore
from mdservice.testing import FakePositions
from tests.batches import write_batch
from tests.integration.conftest import patient, published_so_far
from tests.integration.outages import Line, open_line, run, until

PREFIXES = ["desk1:", "a%d.", "x-"]


def names_published(server: Any) -> Any:
    pubsub = server.client().pubsub(ignore_subscribe_messages=True)
    pubsub.psubscribe("*")
    assert not published_so_far(pubsub)
    return pubsub


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_every_key_channel_and_stream_has_it(
    prefix: str, backend: str, fresh_valkey: Any, tmp_path: Path
) -> None:
    async def body() -> None:
        pubsub = names_published(fresh_valkey)
        with closing(pubsub), fresh_valkey.client() as client:
            async with open_line(
                fresh_valkey, tmp_path, "websockets", "AAPL", key_prefix=prefix, event_log="log"
            ) as line:
                await line.written()
                keys = [key.decode() for key in client.keys("*")]
                url = fresh_valkey.url
                async with (
                    mdservice.open_prices(url, prefix=prefix) as prices,
                    mdservice.open_prices(url, prefix=prefix, event_log="log", after="0") as log,
                    mdservice.open_prices(url) as others,
                ):
                    assert (await anext(prices)).symbol == "AAPL"
                    assert (await anext(log)).seq == 1
                    await line.more()
                    assert not others.prices()
                calls = RedisCalls(GivenServer(url, prefix))
                assert [quote and quote.symbol for quote in await calls.prices(["AAPL"])] == [
                    "AAPL"
                ]
                await calls.publish("pnl.alert", [b"{}"])
                calls.close()
            messages = await anyio.to_thread.run_sync(published_so_far, pubsub)
            channels = {message["channel"].decode() for message in messages}
        assert f"{prefix}price:AAPL" in keys
        assert f"{prefix}log" in keys
        assert {f"{prefix}{name}" for name in ("price.updated", "feed.status", "pnl.alert")} <= (
            channels
        )
        assert [name for name in (*keys, *channels) if not name.startswith(prefix)] == []

    run(body, backend)


def test_two_services_with_other_prefixes_share_a_server(valkey: Any) -> None:
    async def body() -> None:
        for prefix, payload in (("a:", b'{"a":1}'), ("b:", b'{"b":1}')):
            store = RedisPriceStore(valkey.url, instance="one", prefix=prefix)
            await store.connect()
            await store.write(
                write_batch(1, {"AAPL": payload}, [Message("price.updated", payload, "AAPL")])
            )
            assert await store.last_batch() == 1
            assert await store.read_latest(QUOTES, ["AAPL"]) == {"AAPL": payload}
            await store.aclose()
        with valkey.client() as client:
            assert json.loads(client.get("a:price:AAPL")) == {"a": 1}

    run(body, "trio")


@pytest.mark.parametrize(
    "prefix",
    ["a b", "a\n", "a*", "a?", "[a]", "a\\", "{a}", "ä:", "a\0", "x" * 65, '"', "price:", 7],
)
def test_a_prefix_that_breaks_names_is_refused(prefix: Any) -> None:
    async def body() -> None:
        async with mdservice.open_prices("redis://127.0.0.1:9", prefix=prefix):
            pass

    if prefix != "a\n":  # blanks around a setting are taken off
        with pytest.raises(ConfigurationError, match="prefix"):
            mdservice.Settings(key_prefix=prefix)
        with pytest.raises(ConfigurationError, match="prefix"):
            run(body, "trio")


def test_the_gateway_reads_behind_it(fresh_valkey: Any, tmp_path: Path) -> None:
    async def body() -> None:
        async with open_line(
            fresh_valkey, tmp_path, "websockets", "AAPL", key_prefix="desk1:"
        ) as line:
            await line.written()
            source = FakePositions([Position("AAPL", Decimal(10), Decimal(1))])
            for prefix, status in (("desk1:", "live"), ("", "unpriced")):
                settings = mdservice.Settings(redis_url=fresh_valkey.url, key_prefix=prefix)
                tracker = make_tracker(source, settings)
                async with tracker.running():
                    await until(lambda tracker=tracker: tracker.prices_status() is not None)
                    (row,) = (await tracker.report()).positions
                    assert row.status == status

    run(body, "trio")


# ---- learned from the service


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: a UNIX socket's path has about a hundred bytes."""
    path = Path(tempfile.mkdtemp(prefix="md-"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def open_served_line(server: Any, folder: Path, **more: Any) -> AsyncIterator[Line]:
    """A line whose service answers at the socket ``api`` in the folder."""
    async with (
        open_line(server, folder, "websockets", "AAPL", **more) as line,
        anyio.create_task_group() as tasks,
    ):

        async def serve(*, task_status: Any) -> None:
            await serve_api(line.service, socket=folder / "api", task_status=task_status)

        await tasks.start(serve)
        await line.written()
        yield line
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("prefix", [None, "", *PREFIXES])
def test_a_reader_without_a_url_learns_it(
    prefix: str | None, backend: str, fresh_valkey: Any, folder: Path
) -> None:
    given = {} if prefix is None else {"key_prefix": prefix}

    async def body() -> None:
        async with open_served_line(fresh_valkey, folder, event_log="log", **given) as line:
            assert line.service.status().redis.key_prefix == (prefix or "")
            socket = folder / "api"
            async with (
                mdservice.open_prices(socket=socket) as prices,
                mdservice.open_prices(socket=socket, event_log="log", after="0") as log,
            ):
                assert (await anext(prices)).symbol == "AAPL"
                assert (await anext(log)).seq == 1
                await until(lambda: prices.status().events > 0)
                await until(lambda: prices.service is not None)

    run(body, backend)


@pytest.mark.parametrize("given", ["", "other:"])
def test_a_prefix_that_is_given_to_a_reader_wins(
    given: str, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        async with (
            open_served_line(fresh_valkey, folder, key_prefix="desk1:") as line,
            mdservice.open_prices(socket=folder / "api", prefix=given) as others,
            mdservice.open_prices(socket=folder / "api", prefix="desk1:") as prices,
        ):
            await line.more()
            await until(lambda: prices.status().events > 0)
            assert not others.prices()

    run(body, "trio")


@pytest.mark.parametrize("read_from", ["keys", "live"])
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, "live"),
        ({"key_prefix": "desk1:"}, "live"),
        ({"key_prefix": ""}, "unpriced"),
        ({"key_prefix": "other:"}, "unpriced"),
    ],
)
def test_a_gateway_without_a_url_learns_it(
    given: dict[str, str], status: str, read_from: Any, fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        source = FakePositions([Position("AAPL", Decimal(10), Decimal(1))])
        settings = mdservice.Settings(socket=folder / "api", **given)
        pubsub = names_published(fresh_valkey)
        with closing(pubsub):
            async with open_served_line(fresh_valkey, folder, key_prefix="desk1:"):
                tracker = make_tracker(
                    source, settings, read_from=read_from, alerts=["AAPL pnl > 0.01"]
                )
                async with tracker.running():
                    await until(lambda: tracker.prices_status() is not None)
                    with anyio.fail_after(patient(30)):
                        while (await tracker.report()).positions[0].status != status:
                            await anyio.sleep(0.02)
                    if status == "live":
                        await until(lambda: heard(pubsub, "desk1:pnl.alert"))

    run(body, "trio")


def heard(pubsub: Any, channel: str) -> bool:
    while (message := pubsub.get_message()) is not None:
        if message["channel"].decode() == channel:
            return True
    return False


def test_readers_learn_another_prefix_when_they_connect_again(
    fresh_valkey: Any, folder: Path
) -> None:
    async def body() -> None:
        source = FakePositions([Position("AAPL", Decimal(10), Decimal(1))])
        socket = folder / "api"
        tracker = make_tracker(source, mdservice.Settings(socket=socket))
        async with anyio.create_task_group() as tasks:
            readers: list[mdservice.Prices] = []

            async def read(log: str | None) -> None:
                async with mdservice.open_prices(socket=socket, event_log=log) as prices:
                    readers.append(prices)
                    async for _ in prices:
                        pass

            async with open_served_line(
                fresh_valkey, folder, key_prefix="one:", event_log="log"
            ) as line:
                tasks.start_soon(read, None)
                tasks.start_soon(read, "log")
                await until(lambda: len(readers) == 2 and all(r.latest("AAPL") for r in readers))
                assert (await tracker.report()).positions[0].status == "live"
            with fresh_valkey.client() as client:
                client.flushall()
            async with open_served_line(
                fresh_valkey, folder, key_prefix="two:", event_log="log"
            ) as line:
                for connection in ("normal", "pubsub"):
                    with fresh_valkey.client() as client:
                        client.execute_command("CLIENT", "KILL", "TYPE", connection)
                await line.ready()
                before = [reader.status().events for reader in readers]
                await until(
                    lambda: all(
                        reader.status().events > events
                        for reader, events in zip(readers, before, strict=True)
                    )
                )
                assert (await tracker.report()).positions[0].status == "live"
            tasks.cancel_scope.cancel()

    run(body, "trio")


@pytest.mark.parametrize(
    ("report", "refused"),
    [
        ({}, False),  # a service of a version that had no prefixes
        ({"key_prefix": ""}, False),
        ({"key_prefix": "a b"}, True),
        ({"key_prefix": None}, True),
        ({"key_prefix": 7}, True),
    ],
)
def test_an_answer_whose_prefix_cannot_be_used_is_no_answer(
    report: dict[str, Any], refused: bool, folder: Path
) -> None:
    async def body() -> None:
        content = json.dumps({"redis": {"url": "redis://127.0.0.1:9/0", **report}}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

        async def answer(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.receive()
                await stream.send(head % len(content) + content)

        listener = await anyio.create_unix_listener(folder / "api", mode=0o600)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            if refused:
                with pytest.raises(NoAnswer, match="prefix"):
                    await ServiceServer(folder / "api").find()
            else:
                assert (await ServiceServer(folder / "api").find()).names.prefix == ""
            found = await ServiceServer(folder / "api", "x:").find()
            assert found.names.prefix == "x:"
            tasks.cancel_scope.cancel()

    run(body, "trio")


@pytest.mark.parametrize(
    ("flags", "environ", "chosen"),
    [
        ({}, {}, None),
        ({}, {"MDSERVICE_KEY_PREFIX": ""}, None),  # an empty variable counts as not set
        ({}, {"MDSERVICE_KEY_PREFIX": "a:"}, "a:"),
        ({"key_prefix": ""}, {"MDSERVICE_KEY_PREFIX": "a:"}, ""),
    ],
)
def test_settings_know_whether_it_was_chosen(
    flags: dict[str, str], environ: dict[str, str], chosen: str | None, tmp_path: Path
) -> None:
    config = tmp_path / "mdservice.toml"
    config.write_text("[mdservice]\n")
    settings = mdservice.load_settings(config, flags, environ)
    for one in (settings, attrs.evolve(settings, feed="simulator")):
        assert one.chosen_key_prefix == chosen
        assert one.key_prefix == (chosen or "")
