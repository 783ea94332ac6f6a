"""Bytes that are still on their way when a connection is lost must not be executed later."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from mdservice.errors import StoreUnavailable
from mdservice.publish.store import Message, WriteBatch
from mdservice.redis_io.store import RedisPriceStore
from tests.batches import write_batch
from tests.integration.conftest import patient

LIMIT_S = 60.0
EXECUTED = b"*5\r\n"  # EXEC's answer: the marker, a key, a message, an entry, the number


class SlowNetwork:
    """A proxy on loopback that can keep what clients send, and deliver it after they have gone."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.keeping = False
        self._kept: list[tuple[socket.socket, bytes]] = []
        self.arrived = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            thread = threading.Thread(target=self._forward, args=(client, server))
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        kept = b""
        with client, suppress(OSError):
            while True:
                for readable in select.select([client, server], [], [])[0]:
                    data = readable.recv(65_536)
                    if not data:
                        self._part(server, kept)
                        return
                    if readable is server:
                        client.sendall(data)
                    elif self.keeping:
                        kept += data
                    else:
                        server.sendall(data)
        self._part(server, kept)

    def _part(self, server: socket.socket, kept: bytes) -> None:
        if kept:
            self._kept.append((server, kept))
            self.arrived.set()
        else:
            server.close()

    def deliver(self) -> bytes:
        """Send on what was kept; return what the server says to it, nothing if it hung up."""
        assert self.arrived.wait(LIMIT_S)
        ((server, data),) = self._kept
        answer = b""
        with server, suppress(ConnectionError):
            server.settimeout(LIMIT_S)
            server.sendall(data)
            while EXECUTED not in answer:
                some = server.recv(65_536)
                if not some:
                    break
                answer += some
        return answer

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()


@pytest.fixture
def network(fresh_valkey: Any) -> Iterator[SlowNetwork]:
    network = SlowNetwork(fresh_valkey.path)
    try:
        yield network
    finally:
        fresh_valkey.kill()
        network.close()


def batch(number: int) -> WriteBatch:
    payload = b"%d" % number
    return write_batch(number, {"A": payload}, [Message("price.updated", payload, "A")])


async def lose_a_batch_on_its_way(store: RedisPriceStore, network: SlowNetwork) -> None:
    await store.connect()
    await store.write(batch(1))
    network.keeping = True
    with pytest.raises(StoreUnavailable):
        await store.write(batch(2))
    network.keeping = False


def events_of(server: Any) -> list[bytes]:
    with server.client() as client:
        return [fields[b"data"] for _, fields in client.xrange("log")]


def make(network: SlowNetwork) -> RedisPriceStore:
    return RedisPriceStore(network.url, instance="one", event_log="log", timeout_s=0.3)


async def test_late_bytes_are_not_executed_once_connect_has_returned(
    fresh_valkey: Any, network: SlowNetwork
) -> None:
    with trio.fail_after(patient(LIMIT_S)):
        store = make(network)
        await lose_a_batch_on_its_way(store, network)
        await store.connect()
        assert store.can_fence
        assert await store.last_batch() == 1
        assert await trio.to_thread.run_sync(network.deliver) == b""
        assert await store.last_batch() == 1
        await store.write(batch(2))
        assert events_of(fresh_valkey) == [b"1", b"2"]
        await store.aclose()


async def test_late_bytes_that_came_before_connect_are_seen_by_it(
    fresh_valkey: Any, network: SlowNetwork
) -> None:
    with trio.fail_after(patient(LIMIT_S)):
        store = make(network)
        await lose_a_batch_on_its_way(store, network)
        assert b"QUEUED" in await trio.to_thread.run_sync(network.deliver)
        await store.connect()
        assert await store.last_batch() == 2
        assert events_of(fresh_valkey) == [b"1", b"2"]
        await store.aclose()


@pytest.mark.parametrize("denied", ["-client|kill", "-client|id", "-info"])
async def test_without_the_permission_to_fence_a_batch_may_run_twice(
    fresh_valkey: Any, network: SlowNetwork, denied: str
) -> None:
    """What can_fence False means; it also shows that the tests above can fail."""
    with fresh_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "default", denied)
    with trio.fail_after(patient(LIMIT_S)):
        store = make(network)
        await lose_a_batch_on_its_way(store, network)
        await store.connect()
        assert not store.can_fence
        assert await store.last_batch() == 1
        assert b"QUEUED" in await trio.to_thread.run_sync(network.deliver)
        await store.write(batch(2))
        assert events_of(fresh_valkey) == [b"1", b"2", b"2"]
        await store.aclose()


async def test_after_a_restart_no_other_is_cut_off(fresh_valkey: Any) -> None:
    """A restarted server counts its clients from the start: the old id is a stranger's."""
    with trio.fail_after(patient(LIMIT_S)):
        store = RedisPriceStore(fresh_valkey.url, instance="one")
        await store.connect()
        with fresh_valkey.client() as client:
            (writer,) = [c for c in client.client_list() if c["name"] == "mdservice-writer"]
        fresh_valkey.kill()
        fresh_valkey.start()
        strangers = [fresh_valkey.client(single_connection_client=True) for _ in range(10)]
        try:
            ids = [stranger.client_id() for stranger in strangers]
            assert int(writer["id"]) in ids
            await store.connect()
            assert [stranger.client_id() for stranger in strangers] == ids
        finally:
            for stranger in strangers:
                stranger.close()
        await store.aclose()


async def test_only_one_connection_of_the_writer_is_left(valkey: Any) -> None:
    with trio.fail_after(patient(LIMIT_S)):
        store = RedisPriceStore(valkey.url, instance="one")
        for _ in range(3):
            await store.connect()
        with valkey.client() as client:
            names = [c["name"] for c in client.client_list()]
        assert names.count("mdservice-writer") == 1
        await store.aclose()
