"""A primary that is demoted behind one address: left for the new one, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.abc
import pytest
import redis

import mdservice
from mdservice.client.connection import CLIENT_NAME
from mdservice.client.discovery import GivenServer
from mdservice.errors import StoreRefused
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.redis_io.store import RedisPriceStore
from mdservice.simulator import SimQuote
from tests.conftest import RealServer
from tests.integration.conftest import patient
from tests.integration.network import Network
from tests.integration.outages import LINES, Ear, open_line, run, until

LEFT_WITHIN_S = 5.0
NOWHERE = ("127.0.0.1", 9)  # the discard port: nothing answers


def wait_until(condition: Callable[[], Any], limit_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def demote(old: redis.Redis) -> None:
    old.replicaof(*NOWHERE)


def demote_and_refuse_stale_reads(old: redis.Redis) -> None:
    old.config_set("replica-serve-stale-data", "no")
    old.replicaof(*NOWHERE)


def isolate(old: redis.Redis) -> None:
    old.config_set("min-replicas-to-write", "1")


def break_disk(old: redis.Redis) -> None:
    """Let a background save fail, after which the server takes no writes."""
    old.config_set("save", "3600 1")
    (Path(old.config_get("dir")["dir"]) / "dump.rdb").mkdir()
    old.bgsave()
    wait_until(lambda: old.info("persistence")["rdb_last_bgsave_status"] == "err")


WAYS = {
    "READONLY": demote,
    "MASTERDOWN": demote_and_refuse_stale_reads,
    "NOREPLICAS": isolate,
    "MISCONF": break_disk,
}


class Pair:
    """A primary and its replica behind one address, which leads to one of them."""

    def __init__(self, primary: RealServer, replica: RealServer) -> None:
        self.primary, self.replica = primary, replica
        self.network = Network(primary.path)
        self._replication = Network(primary.path)
        self.url = f"redis://127.0.0.1:{self.network.port}"
        with replica.client() as client:
            client.replicaof("127.0.0.1", self._replication.port)
        wait_until(self._in_step)

    def _in_step(self) -> bool:
        with self.primary.client() as primary, self.replica.client() as replica:
            copy = replica.info("replication")
            offset = primary.info("replication")["master_repl_offset"]
            return bool(copy["master_link_status"] == "up" and copy["slave_repl_offset"] == offset)

    def fail_over(self, leave: Callable[[redis.Redis], Any]) -> None:
        """Change the roles, without losing a write and without cutting a connection."""
        with self.primary.client() as old, self.replica.client() as new:
            old.execute_command("CLIENT", "PAUSE", 10_000, "WRITE")
            wait_until(self._in_step)
            new.replicaof("NO", "ONE")
            self.network.lead_to(self.replica.path)
            wait_until(lambda: old.info("replication")["connected_slaves"] == 0)
            leave(old)
            old.execute_command("CLIENT", "UNPAUSE")

    def fail_over_without_the_last(self) -> None:
        """The same, but the replica has not got what came after :meth:`cut`."""
        with self.primary.client() as old, self.replica.client() as new:
            new.replicaof("NO", "ONE")
            self.network.lead_to(self.replica.path)
            demote(old)

    def cut(self) -> None:
        """Bring the replica in step, and then nothing more."""
        wait_until(self._in_step)
        self._replication.down()
        with self.replica.client() as replica:
            wait_until(lambda: replica.info("replication")["master_link_status"] == "down")

    def close(self) -> None:
        self.network.close()
        self._replication.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="dem-") as name:  # short: it holds a socket
        yield Path(name)


@pytest.fixture
def pair() -> Iterator[Pair]:
    replica = RealServer()
    with closing(RealServer("--repl-diskless-sync-delay", "0")) as primary, closing(replica):
        primary.start()
        replica.start()
        with closing(Pair(primary, replica)) as made:
            yield made


@pytest.mark.parametrize(("driver", "backend"), LINES)
@pytest.mark.parametrize("way", WAYS)
def test_it_is_left_within_seconds_and_each_event_is_out_once(
    way: str, driver: str, backend: str, pair: Pair, folder: Path
) -> None:
    async def body() -> None:
        # The replica hears what it is sent by its primary, and then what it takes itself.
        with closing(Ear(pair.replica.path)) as ear:
            async with open_line(pair.replica, folder, driver, redis_url=pair.url) as line:
                await line.more()
                before = line.service.status().counters.events_published
                await anyio.to_thread.run_sync(pair.fail_over, WAYS[way])
                with anyio.fail_after(patient(LEFT_WITHIN_S)):
                    await line.more()
                    await line.ready()
                assert line.service.status().counters.events_published > before
                await line.stop(ear)
                line.check_complete(ear)

    run(body, backend)


@pytest.mark.parametrize("way", ["READONLY", "MASTERDOWN"])
def test_a_reader_leaves_it_too(way: str, pair: Pair, folder: Path) -> None:
    async def body() -> None:
        async with (
            open_line(pair.replica, folder, "websockets", "AAPL", redis_url=pair.url) as line,
            mdservice.open_prices(pair.url, ["AAPL"]) as prices,
        ):
            await line.more()
            await anyio.to_thread.run_sync(pair.fail_over, WAYS[way])
            with anyio.fail_after(patient(LEFT_WITHIN_S)):
                await until(lambda: prices.status().reconnects == 1)
            line.going = False
            await until(lambda: (quote := prices.latest("AAPL")) and quote.seq == line.sent)

    run(body, "trio")


def test_what_a_lagging_replica_lacks_is_written_again_and_reported(
    pair: Pair, folder: Path
) -> None:
    async def body() -> None:
        symbols, redis_url = "AAPL,QUIET", pair.url
        with closing(Ear(pair.replica.path)) as ear:
            async with (
                open_line(pair.replica, folder, "websockets", symbols, redis_url=redis_url) as line,
                mdservice.open_prices(pair.replica.url, ["QUIET"]) as prices,
            ):
                await line.more()
                line.going = False
                await line.all_accepted()
                await until(lambda: line.service.status().redis.backlog == 0)
                await anyio.to_thread.run_sync(pair.cut)
                line.simulator.send_quotes([SimQuote("QUIET", 7_777, 7_778)])
                with pair.primary.client() as client:
                    await until(lambda: b"7777" in client.get("price:QUIET"))
                await anyio.to_thread.run_sync(pair.fail_over_without_the_last)
                await until(lambda: "gap" in ear.told())
                (gap,) = [state for state in ear.states if state["state"] == "gap"]
                assert (gap["feed"], gap["channel"], gap["symbols"]) == (
                    "stocks",
                    "quotes",
                    ["QUIET"],
                )
                assert gap["refreshed"]
                with pair.replica.client() as client:
                    assert b"7777" in client.get("price:QUIET")
                await until(lambda: (quote := prices.latest("QUIET")) and quote.bid == 7_777)
                assert ear.last_seq("QUIET") == line.sent, "no event is published again"

    run(body, "trio")


@pytest.mark.parametrize("way", ["READONLY", "MASTERDOWN"])
def test_a_gateway_leaves_it_too(way: str, pair: Pair) -> None:
    async def body() -> None:
        calls = RedisCalls(GivenServer(pair.url))
        await calls.prices(["AAPL"])
        await calls.publish("pnl.alert", [b"one"])
        await anyio.to_thread.run_sync(pair.fail_over, WAYS[way])
        with pair.replica.client() as client, client.pubsub() as heard:
            heard.subscribe("pnl.alert")
            assert heard.get_message(timeout=20)
            await calls.publish("pnl.alert", [b"two"])
            message = heard.get_message(timeout=20)
            assert message is not None
            assert message["data"] == b"two"
            client.set(
                "price:AAPL",
                b'{"symbol":"AAPL","price":1.5,"bid":1,"ask":2,"bid_size":1,"ask_size":1,'
                b'"timestamp":"2026-11-27T15:00:00.000000000Z","seq":1}',
            )
        assert [quote.ask for quote in await calls.prices(["AAPL"]) if quote] == [2]
        calls.close()

    run(body, "trio")


def test_a_gateway_may_read_a_replica_for_good(pair: Pair) -> None:
    async def body() -> None:
        calls = RedisCalls(GivenServer(pair.replica.url))
        used = set()
        with pair.replica.client() as client:
            for _ in range(3):
                assert await calls.prices(["AAPL"]) == [None]
                used.update(c["id"] for c in client.client_list() if c["name"] == CLIENT_NAME)
        assert len(used) == 1
        calls.close()

    run(body, "trio")


# ---- refusals before the first command


LATER = "-{code} not now\r\n"
CODES = ["LOADING", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "NOREPLICAS", "UNBLOCKED"]


class Front:
    """Answers one command of the greeting of the first connection with an error.

    Every later connection is led to a real server.
    """

    def __init__(self, target: Path, command: bytes, code: str) -> None:
        self._target, self._command = target, command
        self._error = LATER.format(code=code).encode()
        self.connections = 0

    async def serve(self, client: anyio.abc.SocketStream) -> None:
        self.connections += 1
        refuses = self.connections == 1
        server = await anyio.connect_unix(self._target)
        async with client, server, anyio.create_task_group() as tasks:
            tasks.start_soon(self._forward, server, client, tasks.cancel_scope)
            while True:
                try:
                    data = await client.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    break
                if refuses and self._command in data.upper():
                    await client.send(self._error * data.count(b"*"))
                else:
                    await server.send(data)
            tasks.cancel_scope.cancel()

    async def _forward(
        self, source: anyio.abc.SocketStream, to: anyio.abc.SocketStream, scope: anyio.CancelScope
    ) -> None:
        try:
            while True:
                await to.send(await source.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            scope.cancel()


GREETINGS = {
    "AUTH": (b"AUTH", "redis://:secret@127.0.0.1:{port}"),
    "SELECT": (b"SELECT", "redis://127.0.0.1:{port}/3"),
    "CLIENT": (b"MULTI", "redis://127.0.0.1:{port}"),
}


async def with_front(
    server: Any, command: bytes, code: str, body: Callable[[Front, int], Any]
) -> None:
    front = Front(server.path, command, code)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, front.serve)
        await body(front, port)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("greeting", GREETINGS)
def test_a_refusal_while_connecting_says_that_a_new_connection_may_help(
    greeting: str, code: str, valkey: Any
) -> None:
    command, url = GREETINGS[greeting]

    async def body(_front: Front, port: int) -> None:
        store = RedisPriceStore(url.format(port=port), instance="one", timeout_s=5.0)
        with pytest.raises(StoreRefused, match=code) as caught:
            await store.connect()
        assert caught.value.reconnect
        await store.aclose()

    run(partial(with_front, valkey, command, code, body), "trio")


@pytest.mark.parametrize("code", ["LOADING", "MASTERDOWN", "CLUSTERDOWN"])
@pytest.mark.parametrize("command", ["SELECT", "SUBSCRIBE", "MGET"])
def test_a_reader_comes_back_after_a_refusal_of_its_first_connection(
    command: str, code: str, valkey: Any
) -> None:
    async def body(front: Front, port: int) -> None:
        url = f"redis://127.0.0.1:{port}/3"
        with anyio.fail_after(patient(LEFT_WITHIN_S)):
            async with mdservice.open_prices(url, ["AAPL"]) as prices:
                assert prices.status().connected
        assert front.connections > 1

    run(partial(with_front, valkey, command.encode(), code, body), "asyncio")
