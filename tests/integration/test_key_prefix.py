"""A prefix stands in front of every name, for the writer, the readers and the gateway."""

from __future__ import annotations

import json
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

import mdservice
from mdservice.errors import ConfigurationError
from mdservice.gateway.make import make_book
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.model.position import Position
from mdservice.prices.whereabouts import GivenServer
from mdservice.sinks.redis_store import RedisPriceStore
from mdservice.sinks.store import Message, WriteBatch
from mdservice.testing import FakePositions
from tests.integration.outages import open_line, run, until

PREFIXES = ["desk1:", "a%d.", "x-"]


def names_published(server: Any) -> Any:
    pubsub = server.client().pubsub(ignore_subscribe_messages=True)
    pubsub.psubscribe("*")
    pubsub.get_message(timeout=1.0)
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
                await line.more()
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
                calls = RedisCalls(GivenServer(url), prefix)
                assert set(await calls.prices(["AAPL"])) == {"AAPL"}
                await calls.publish("pnl.alert", [b"{}"])
                calls.close()
            channels = set()
            while (message := await anyio.to_thread.run_sync(pubsub.get_message)) is not None:
                channels.add(message["channel"].decode())
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
                WriteBatch(1, {"AAPL": payload}, [Message("price.updated", payload, "AAPL")])
            )
            assert await store.last_batch() == 1
            assert await store.read_prices(["AAPL"]) == {"AAPL": payload}
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
            await line.more()
            source = FakePositions([Position("AAPL", Decimal(10), Decimal(1))])
            for prefix, status in (("desk1:", "live"), ("", "unpriced")):
                settings = mdservice.Settings(redis_url=fresh_valkey.url, key_prefix=prefix)
                book = make_book(source, settings)
                async with book.running():
                    await until(lambda book=book: book.prices_status() is not None)
                    (row,) = (await book.report()).positions
                    assert row.status == status

    run(body, "trio")
