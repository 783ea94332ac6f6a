"""Announcements and the record, on virtual time and a Redis by script."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import hiredis
import msgspec
import pytest

from mdservice.errors import StoreUnavailable
from mdservice.publish import instances as instances_module
from mdservice.publish.instances import Instances
from mdservice.redis_io.connection import RedisAddress
from mdservice.redis_io.names import (
    ANNOUNCE_EVERY_S,
    GONE_AFTER_S,
    Instance,
    RedisNames,
    decode_instance,
)
from mdservice.testing import VirtualClock


class Redis:
    """One database: keys that expire, and one channel.

    Attributes:
        published: Every message.
    """

    def __init__(self) -> None:
        self.published: list[bytes] = []
        self._keys: dict[bytes, tuple[bytes, float]] = {}
        self._subscribers: list[Connection] = []

    async def open(self, _address: Any, _name: str, **_more: Any) -> Connection:
        await anyio.lowlevel.checkpoint()
        return Connection(self)

    def get(self, key: bytes) -> bytes | None:
        value, until_s = self._keys.get(key, (b"", 0.0))
        return value if anyio.current_time() < until_s else None

    def record(self) -> Instance | None:
        return decode_instance(self.get(RedisNames().instance_key))

    def lives_s(self, key: bytes = RedisNames().instance_key) -> float:
        """How long the record, or another key, still lives."""
        return self._keys[key][1] - anyio.current_time()

    def execute(self, connection: Connection, name: bytes, *words: bytes) -> Any:
        match name:
            case b"GET":
                return self.get(words[0])
            case b"SET":
                lives_s = int(words[3]) / (1e3 if words[2] == b"PX" else 1)
                self._keys[words[0]] = words[1], anyio.current_time() + lives_s
            case b"DEL":
                self._keys.pop(words[0], None)
            case b"SUBSCRIBE":
                self._subscribers.append(connection)
            case b"PUBLISH":
                self.published.append(words[1])
                for subscriber in self._subscribers:
                    subscriber.hear([b"message", words[0], words[1]])
        return b"OK"


class Connection:
    server = RedisAddress("redis://db", timeout_s=1.0)

    def __init__(self, server: Redis) -> None:
        self._server = server
        self._messages: deque[Any] = deque()
        self._came = anyio.Event()

    async def exchange(self, data: bytes, replies: int) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        reader = hiredis.Reader(notEnoughData=None)
        reader.feed(data)
        answers = [self._server.execute(self, *command) for command in iter(reader.gets, None)]
        assert len(answers) == replies
        return answers

    async def receive(self, wait_s: float) -> list[Any]:
        with anyio.move_on_after(wait_s):
            while not self._messages:
                self._came = anyio.Event()
                await self._came.wait()
        found = list(self._messages)
        self._messages.clear()
        return found

    def hear(self, message: Any) -> None:
        self._messages.append(message)
        self._came.set()

    def close(self) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Redis:
    server = Redis()
    monkeypatch.setattr(instances_module, "RedisConnection", server)
    return server


def make(name: str, db: int = 0) -> Instances:
    return Instances(
        f"redis://server/{db}",
        id=name,
        feed="iex",
        delay_s=0.0,
        price_ttl_s=300,
        prefix="",
        clock=VirtualClock(),
    )


@asynccontextmanager
async def running(one: Instances) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: one.run(task_status=task_status))
        await anyio.sleep(0.1)
        yield
        tasks.cancel_scope.cancel()


async def test_its_record_lives_as_long_as_the_service(server: Redis, autojump_clock: Any) -> None:
    one = make("one")
    async with running(one):
        for _ in range(20):
            await anyio.sleep(0.37)
            assert server.record() == one.own
            assert server.lives_s() > GONE_AFTER_S - ANNOUNCE_EVERY_S - 0.1
    assert server.record() is None


async def test_the_second_one_that_ends_leaves_the_record_of_the_first(
    server: Redis, autojump_clock: Any
) -> None:
    one, other = make("one"), make("other")
    async with running(one):
        async with running(other):
            await anyio.sleep(5)
            assert server.record() == one.own
        await anyio.sleep(1)  # it hears that the other one has ended
        assert server.record() == one.own
        assert one.others() == []
    assert server.record() is None


async def test_the_record_of_the_first_one_goes_to_the_second(
    server: Redis, autojump_clock: Any
) -> None:
    one, other = make("one"), make("other")
    async with anyio.create_task_group() as tasks:
        async with running(one):
            await tasks.start(lambda *, task_status: other.run(task_status=task_status))
            await anyio.sleep(5)
        await anyio.sleep(ANNOUNCE_EVERY_S + 0.1)
        assert server.record() == other.own
        tasks.cancel_scope.cancel()


async def test_its_progress_lives_as_long_as_a_price_and_is_there_for_the_next_run(
    server: Redis, autojump_clock: Any
) -> None:
    one, key = make("one"), RedisNames().progress_key
    assert await one.read_progress() is None
    async with running(one):
        for number in range(5):
            one.keep_progress(b"%d" % number)
            await anyio.sleep(ANNOUNCE_EVERY_S + 0.1)
            assert server.get(key) == b"%d" % number
            assert 298 < server.lives_s(key) <= 300
        one.keep_progress(b"the end")
    assert await make("next").read_progress() == b"the end"


async def test_a_second_service_leaves_the_progress_of_the_first(
    server: Redis, autojump_clock: Any
) -> None:
    one, other = make("one"), make("other")
    async with running(one):
        one.keep_progress(b"its own")
        async with running(other):
            other.keep_progress(b"the other's")
            await anyio.sleep(5)
        assert await make("next").read_progress() == b"its own"


async def test_without_an_answer_nothing_is_known_of_an_earlier_run(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    class Silent:
        async def open(self, *_: Any, **_more: Any) -> None:
            await anyio.sleep_forever()

    class Away:
        async def open(self, *_: Any, **_more: Any) -> None:
            raise StoreUnavailable("away")

    for server in (Silent(), Away()):
        monkeypatch.setattr(instances_module, "RedisConnection", server)
        assert await make("one").read_progress() is None


async def test_others_are_named_the_longest_running_first_and_by_their_database(
    server: Redis, autojump_clock: Any
) -> None:
    one = make("m")
    async with running(one):
        for name, db, since in (("z", 0, "2026-11-20"), ("a", 3, "2026-11-21")):
            other = msgspec.structs.replace(one.own, id=name, db=db, since=since)
            for each in (other, msgspec.structs.replace(other, id="m", host="not counted")):
                server.execute(
                    Connection(server),
                    b"PUBLISH",
                    b"mdservice.instances",
                    msgspec.json.encode(each),
                )
        await anyio.sleep(0.1)
        assert [other.id for other in one.others()] == ["z", "a"]
        same, elsewhere = one.conflicts()
        assert "keys in database 0 " in same
        assert "channels from database 3 " in elsewhere
        await anyio.sleep(GONE_AFTER_S + ANNOUNCE_EVERY_S)
        assert one.conflicts() == ()


async def test_it_says_goodbye_once(server: Redis, autojump_clock: Any) -> None:
    async with running(make("one")):
        await anyio.sleep(3)
    said = [decode_instance(message) for message in server.published]
    assert [one is not None and one.gone for one in said] == [False] * (len(said) - 1) + [True]
