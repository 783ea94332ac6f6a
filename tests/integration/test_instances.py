"""Two services that publish the same names on one server: both notice, and readers do not mix."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

import mdservice
from mdservice.clock import SystemClock
from mdservice.model.redis_layout import Instance, RedisNames, decode_instance, encode_instance
from mdservice.sinks import instances as instances_module
from mdservice.sinks.instances import Instances
from mdservice.testing import FakeDriver
from tests.integration.outages import run, until

BOTH = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def url_of(server: Any, db: int = 0, login: str = "") -> str:
    return f"unix://{login}{server.path}?db={db}"


def make(server: Any, db: int = 0, prefix: str = "", url: str | None = None) -> Instances:
    return Instances(
        url or url_of(server, db),
        id=secrets.token_hex(8),
        feed="iex",
        delay_s=0.0,
        price_ttl_s=300,
        prefix=prefix,
        clock=SystemClock(),
    )


@asynccontextmanager
async def running(*all_of_them: Instances) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for one in all_of_them:
            await tasks.start(lambda one=one, **told: one.run(**told))
        yield
        tasks.cancel_scope.cancel()


async def say_nothing(_speaker: object) -> None:
    """As a service that was killed does."""


def record(server: Any, db: int = 0, prefix: str = "") -> Instance | None:
    with server.client(db=db) as client:
        return decode_instance(client.get(RedisNames(prefix).instance_key))


@BOTH
@pytest.mark.parametrize("dbs", [(0, 0), (0, 1)])
def test_both_services_report_each_other_until_one_is_gone(
    dbs: tuple[int, int], backend: str, fresh_valkey: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with AsyncExitStack() as stack:
            services = []
            for db in dbs:
                one = await stack.enter_async_context(
                    mdservice.open_service(
                        mdservice.Settings(redis_url=url_of(fresh_valkey, db), feed="simulator"),
                        drivers=[FakeDriver()],
                    )
                )
                services.append(one)
            await until(lambda: all(one.readiness().ready for one in services), 10)
            await until(lambda: all(one.status().state == "degraded" for one in services), 10)
            for one, other_db in zip(services, reversed(dbs), strict=True):
                (reason,) = one.status().reasons
                assert f"database {other_db} " in reason
                assert "MDSERVICE_KEY_PREFIX" in reason
                assert one.readiness().ready
                assert one.readiness().reasons == (reason,)
            async with mdservice.open_service(
                mdservice.Settings(
                    redis_url=url_of(fresh_valkey), feed="simulator", key_prefix="desk1:"
                ),
                drivers=[FakeDriver()],
            ) as apart:
                await anyio.sleep(2.5)
                assert apart.status().reasons == ()
            assert all(len(one.status().reasons) == 1 for one in services)
            await stack.aclose()

    run(body, backend)
    assert caplog.text.count("another_service_publishes_here") == 2


@BOTH
@pytest.mark.parametrize("killed", [False, True])
def test_the_report_ends_when_the_other_one_is_gone(
    killed: bool, backend: str, fresh_valkey: Any
) -> None:
    async def body() -> None:
        one, other = make(fresh_valkey), make(fresh_valkey, 1)
        async with running(one):
            async with running(other):
                await until(lambda: len(one.conflicts()) == len(other.conflicts()) == 1, 5)
                assert "database 1 " in one.conflicts()[0]
                if killed:
                    other._say_goodbye = say_nothing  # type: ignore[method-assign]
                    other_stops = anyio.current_time()
            if not killed:
                await until(lambda: not one.conflicts(), 1)
            else:
                await until(lambda: not one.conflicts(), 6)
                assert anyio.current_time() - other_stops > 2

    run(body, backend)


@BOTH
def test_the_record_is_of_the_first_service_in_a_database(backend: str, fresh_valkey: Any) -> None:
    async def body() -> None:
        first, second = make(fresh_valkey), make(fresh_valkey)
        async with running(first):
            await until(lambda: record(fresh_valkey) == first.own, 3)
            async with running(second):
                await anyio.sleep(2.2)
                assert record(fresh_valkey) == first.own
            async with running(make(fresh_valkey, 3)):
                await until(lambda: record(fresh_valkey, 3) is not None, 3)
        assert record(fresh_valkey) is None
        assert record(fresh_valkey, 3) is None
        with fresh_valkey.client() as client:
            assert client.dbsize() == 0

    run(body, backend)


@pytest.mark.parametrize("same_process", [False, True])
def test_the_record_of_a_killed_service_of_this_machine_is_taken_over_at_once(
    same_process: bool, fresh_valkey: Any
) -> None:
    async def body() -> None:
        one = make(fresh_valkey)
        dead = json.loads(encode_instance(one.own)) | {"id": "dead"}
        if not same_process:
            process = await anyio.open_process(["true"])
            await process.wait()
            await process.aclose()
            dead["pid"] = process.pid
        with fresh_valkey.client() as client:
            client.set("mdservice:instance", json.dumps(dead), px=60_000)
        async with running(one):
            await until(lambda: record(fresh_valkey) == one.own, 1)

    run(body, "trio")


@pytest.mark.parametrize(
    "change", [{"host": "elsewhere"}, {"pid_space": "other"}, {"pid": os.getppid()}]
)
def test_the_record_of_one_that_may_be_alive_is_left(change: Any, fresh_valkey: Any) -> None:
    async def body() -> None:
        one = make(fresh_valkey)
        alive = json.loads(encode_instance(one.own)) | {"id": "alive"} | change
        with fresh_valkey.client() as client:
            client.set("mdservice:instance", json.dumps(alive), px=3_000)
        async with running(one):
            await anyio.sleep(1.5)
            assert record(fresh_valkey) != one.own
            await until(lambda: record(fresh_valkey) == one.own, 5)

    run(body, "trio")


def test_without_the_rights_there_is_one_warning_and_no_harm(
    fresh_valkey: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances_module, "_AGAIN_IF_REFUSED_S", 0.1)
    with fresh_valkey.client() as client:
        client.execute_command(
            "ACL SETUSER desk on nopass ~price:* ~mdservice:writer:* resetchannels "
            "&price.updated &feed.status +@all"
        )
    url = url_of(fresh_valkey, login="desk:x@")

    async def body() -> None:
        async with mdservice.open_service(
            mdservice.Settings(redis_url=url, feed="simulator", symbols="AAPL"),
        ) as service:
            await until(lambda: service.readiness().ready, 10)
            await until(lambda: service.status().counters.prices_written > 0, 10)
            await anyio.sleep(1)
            assert service.status().reasons == ()

    run(body, "trio")
    assert caplog.text.count("other_services_cannot_be_noticed") == 1
    assert "redis_failed" not in caplog.text


def test_garbage_on_the_channel_is_passed_over(fresh_valkey: Any) -> None:
    async def body() -> None:
        one = make(fresh_valkey)
        async with running(one):
            await until(lambda: record(fresh_valkey) is not None, 3)
            with fresh_valkey.client() as client:
                for number in range(300):
                    client.publish("mdservice.instances", b'{"id":"%d"}' % number)
                    client.publish("mdservice.instances", b"\xff[1")
                    fake = json.loads(encode_instance(one.own)) | {"id": str(number)}
                    client.publish("mdservice.instances", json.dumps(fake))
            await until(lambda: one.conflicts() != (), 3)
            assert len(one.conflicts()) <= 100

    run(body, "trio")


@BOTH
def test_it_comes_back_with_the_server(backend: str, fresh_valkey: Any) -> None:
    async def body() -> None:
        one, other = make(fresh_valkey), make(fresh_valkey, 1)
        async with running(one, other):
            await until(lambda: len(one.conflicts()) == 1, 5)
            await anyio.to_thread.run_sync(fresh_valkey.kill)
            await until(lambda: one.conflicts() == (), 6)
            await anyio.to_thread.run_sync(fresh_valkey.start)
            await until(lambda: len(one.conflicts()) == len(other.conflicts()) == 1, 8)
            assert record(fresh_valkey) == one.own

    run(body, backend)
