"""What every price store does, on both event loops; Redis ones against real servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import anyio
import attrs
import pytest

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    KINDS,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.publish.store import (
    Events,
    Message,
    PriceStore,
    RenewingStore,
    StreamStore,
    WriteBatch,
)
from mdservice.redis_io.cluster_store import open_price_store
from mdservice.redis_io.store import RedisPriceStore
from mdservice.testing import MemoryPriceStore, Slow
from tests.batches import write_batch
from tests.conftest import RealServer, free_port
from tests.integration.sentinels import Server
from tests.records import make_record

LIMIT_S = 60.0
READ_ONLY = "READONLY You can't write against a read only replica."
EVENTS_NODE_KEY = "{mdservice}"


class Backend(Protocol):
    """A store and what is behind it."""

    refusal: str
    number_key: str

    def make(self, *, instance: str = ..., event_log: str | None = ...) -> PriceStore: ...
    def get(self, key: str) -> bytes | None: ...
    def ttl_s(self, key: str) -> float: ...
    def published(self) -> list[tuple[str, bytes]]: ...
    def entries(self) -> list[tuple[str, bytes]]: ...
    def stream(self, name: str) -> list[dict[str, bytes]]: ...
    def drop_connection(self) -> None: ...
    def stop(self) -> None: ...
    def start(self) -> None: ...
    def refuse_writes(self) -> None: ...
    def accept_writes(self) -> None: ...
    @contextmanager
    def stalled(self) -> Iterator[None]: ...


class SettableClock:
    def monotonic(self) -> float:
        return 1_000.0

    def utc_ns(self) -> int:
        return 0


class MemoryBackend:
    refusal = "READONLY"
    number_key = "mdservice:writer:one"

    def __init__(self) -> None:
        self.store = MemoryPriceStore()

    def make(self, *, instance: str = "one", event_log: str | None = None) -> PriceStore:
        self.store = MemoryPriceStore(
            clock=SettableClock(), price_ttl_s=77, event_log=event_log, instance=instance
        )
        return self.store

    def get(self, key: str) -> bytes | None:
        return self.store.get(key)

    def ttl_s(self, key: str) -> float:
        return self.store._keys[key][1] - 1_000.0

    def published(self) -> list[tuple[str, bytes]]:
        return [
            (message.channel, message.payload)
            for batch in self.store.executed
            for message in batch.messages
        ]

    def entries(self) -> list[tuple[str, bytes]]:
        return list(self.store.entries)

    def stream(self, name: str) -> list[dict[str, bytes]]:
        entries = self.store.streams.get(name, ())
        return [{"id": id_.encode(), "data": payload} for id_, payload in entries]

    def drop_connection(self) -> None:
        self.store.drop_connection()

    def stop(self) -> None:
        self.store.restart()
        self.store.down = True

    def start(self) -> None:
        self.store.down = False

    def refuse_writes(self) -> None:
        self.store.refusal = READ_ONLY

    def accept_writes(self) -> None:
        self.store.refusal = None

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self.store.script.append(Slow(3_600.0))
        yield


class RedisBackend:
    refusal = "READONLY"
    number_key = "mdservice:writer:one"

    def __init__(self, server: Any) -> None:
        self.server = server
        self.client = server.client()
        self.listen()

    def listen(self) -> None:
        self.pubsub = self.client.pubsub(ignore_subscribe_messages=True)
        channels = [*(kind.event for kind in KINDS), "feed.status", "end"]
        self.pubsub.subscribe(*channels)
        assert not self.published()

    def close(self) -> None:
        self.pubsub.close()
        self.client.close()

    def make(self, *, instance: str = "one", event_log: str | None = None) -> PriceStore:
        return RedisPriceStore(
            self.server.url, price_ttl_s=77, event_log=event_log, instance=instance
        )

    def get(self, key: str) -> bytes | None:
        value: bytes | None = self.client.get(key)
        return value

    def ttl_s(self, key: str) -> float:
        return float(self.client.ttl(key))

    def published(self) -> list[tuple[str, bytes]]:
        self.client.publish("end", "")
        found: list[tuple[str, bytes]] = []
        while True:
            message = self.pubsub.get_message(timeout=5.0)
            if message is None:
                continue
            if message["channel"] == b"end":
                return found
            found.append((message["channel"].decode(), message["data"]))

    def entries(self) -> list[tuple[str, bytes]]:
        return [
            (fields[b"symbol"].decode(), fields[b"data"]) for _, fields in self.client.xrange("log")
        ]

    def stream(self, name: str) -> list[dict[str, bytes]]:
        return [
            {field.decode(): value for field, value in fields.items()}
            for _, fields in self.client.xrange(name)
        ]

    def drop_connection(self) -> None:
        for client in self.client.client_list():
            if client["name"] == "mdservice-writer":
                self.client.client_kill_filter(_id=client["id"])

    def stop(self) -> None:
        self.pubsub.close()
        self.server.kill()

    def start(self) -> None:
        self.server.start()
        self.listen()

    def refuse_writes(self) -> None:
        # Its primary is a port where nobody listens.
        self.client.replicaof("127.0.0.1", 1)

    def accept_writes(self) -> None:
        self.client.replicaof("NO", "ONE")

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self.server.stop_answering()
        try:
            yield
        finally:
            self.server.answer_again()


class ClusterBackend(RedisBackend):
    refusal = "NOREPLICAS"
    number_key = "mdservice:writer:{mdservice}:one"

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.cluster = server.client()
        self.set_up("0")

    def listen(self) -> None:
        # Messages of one node come in order.
        self.client = self.server.owner(EVENTS_NODE_KEY).client()
        super().listen()

    def close(self) -> None:
        super().close()
        self.cluster.close()
        self.set_up("0")

    def set_up(self, replicas: str) -> None:
        for node in self.server.primaries:
            node.ask("CONFIG", "SET", "min-replicas-to-write", replicas)

    def make(self, *, instance: str = "one", event_log: str | None = None) -> PriceStore:
        return open_price_store(
            self.server.url, price_ttl_s=77, event_log=event_log, instance=instance
        )

    def get(self, key: str) -> bytes | None:
        value: bytes | None = self.cluster.get(key)
        return value

    def ttl_s(self, key: str) -> float:
        return float(self.cluster.ttl(key))

    def entries(self) -> list[tuple[str, bytes]]:
        found = self.cluster.xrange("log")
        return [(fields[b"symbol"].decode(), fields[b"data"]) for _, fields in found]

    def stream(self, name: str) -> list[dict[str, bytes]]:
        return [
            {field.decode(): value for field, value in fields.items()}
            for _, fields in self.cluster.xrange(name)
        ]

    def drop_connection(self) -> None:
        for node in self.server.primaries:
            with node.client() as client:
                for one in client.client_list():
                    if one["name"] == "mdservice-writer":
                        client.client_kill_filter(_id=one["id"])

    def stop(self) -> None:
        self.pubsub.close()
        for node in self.server.primaries:
            node.kill()

    def start(self) -> None:
        self.server.restart()
        self.listen()

    def refuse_writes(self) -> None:
        self.set_up("1")

    def accept_writes(self) -> None:
        self.set_up("0")

    @contextmanager
    def stalled(self) -> Iterator[None]:
        for node in self.server.primaries:
            node.stop_answering()
        try:
            yield
        finally:
            for node in self.server.primaries:
                node.answer_again()


class SentinelBackend(RedisBackend):
    """The same behind a sentinel, which names the server."""

    def __init__(self, server: Any, sentinel: Server, name: str) -> None:
        self._url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{name}"
        super().__init__(server)

    def make(self, *, instance: str = "one", event_log: str | None = None) -> PriceStore:
        return RedisPriceStore(self._url, price_ttl_s=77, event_log=event_log, instance=instance)


@pytest.fixture(scope="module")
def sentinel() -> Iterator[Server]:
    """A sentinel that watches what it is asked to."""
    with ExitStack() as stack:
        port = free_port(stack)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sen-")))
        config = folder / "sentinel.conf"
        config.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n")
        server = Server(port, folder, str(config), "--sentinel")
        stack.callback(server.kill)
        server.start()
        yield server


@contextmanager
def sentinel_backend(sentinel: Server) -> Iterator[Backend]:
    with ExitStack() as stack:
        port = free_port(stack)
        server = RealServer("--port", str(port), "--bind", "127.0.0.1")
        stack.callback(server.close)
        server.start()
        name = f"prices-{port}"
        client = stack.enter_context(sentinel.client())
        client.execute_command("SENTINEL", "MONITOR", name, "127.0.0.1", port, 1)
        stack.callback(client.execute_command, "SENTINEL", "REMOVE", name)
        backend = SentinelBackend(server, sentinel, name)
        stack.callback(backend.close)
        yield backend


@pytest.fixture(params=["memory", "redis", "cluster", "sentinel"])
def behind(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "memory":
        yield MemoryBackend()
        return
    if request.param == "sentinel":
        with sentinel_backend(request.getfixturevalue("sentinel")) as made:
            yield made
        return
    backend = (
        ClusterBackend(request.getfixturevalue("cluster"))
        if request.param == "cluster"
        else RedisBackend(request.getfixturevalue("fresh_valkey"))
    )
    try:
        yield backend
    finally:
        backend.close()


def on_both_loops(test: Callable[[Backend], Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on trio and on asyncio, within a time limit."""

    @pytest.mark.parametrize("loop", ["trio", "asyncio"])
    def run(behind: Backend, loop: str) -> None:
        async def main() -> None:
            with anyio.fail_after(LIMIT_S):
                await test(behind)

        anyio.run(main, backend=loop)

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def price(symbol: str, seq: int = 1) -> bytes:
    return b'{"symbol": "%b", "seq": %d}' % (symbol.encode(), seq)


def event(symbol: str, seq: int = 1) -> Message:
    return Message("price.updated", price(symbol, seq), symbol)


def batch(number: int, *symbols: str) -> WriteBatch:
    return write_batch(
        number, {symbol: price(symbol, number) for symbol in symbols},
        [event(symbol, number) for symbol in symbols],
    )  # fmt: skip


@on_both_loops
async def test_a_new_writer_has_executed_nothing(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    assert await store.last_batch() == 0
    await store.aclose()


@on_both_loops
async def test_a_batch_sets_every_key_publishes_every_message_in_order(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    status = Message("feed.status", b'{"state": "gap"}')
    messages = [event("A", 1), status, event("B", 1), event("A", 2)]
    await store.write(write_batch(1, {"A": price("A", 2), "B": price("B", 1)}, messages))
    assert behind.get("price:A") == price("A", 2)
    assert behind.get("price:B") == price("B", 1)
    assert behind.published() == [(m.channel, m.payload) for m in messages]
    assert await store.last_batch() == 1
    await store.aclose()


def kind_batch(number: int, *kinds: Kind[Any]) -> WriteBatch:
    """A record of each kind, in order."""
    events, latest = [], {}
    for kind in kinds:
        record = make_record(kind, "A", number)
        payload = kind.encode(record)
        ids = [kind.stream.entry_id(record)] if kind.stream else []
        events.append(Events(kind.event, [payload], kind, ["A"], ids))
        if kind.has_key:
            latest[kind] = {"A": payload}
    return WriteBatch(number, latest, events)


KEYS = {
    QUOTES: ("price:A", 77),
    TRADES: ("trade:A", 77),
    BARS: ("bar:A", 86_400),
    DAILY_BARS: ("daily_bar:A", 5 * 86_400),
    STATUSES: ("trading_status:A", 86_400),
    LULDS: ("luld:A", 86_400),
    IMBALANCES: ("imbalance:A", 77),
    ORDERBOOKS: ("orderbook:A", 77),
}
"""The key of each kind of symbol A, and how long it lives, seconds."""
EVENTS = {
    QUOTES: "price.updated",
    TRADES: "trade.updated",
    CORRECTIONS: "trade.corrected",
    CANCELS: "trade.canceled",
    BARS: "bar.updated",
    DAILY_BARS: "daily_bar.updated",
    STATUSES: "trading_status.updated",
    LULDS: "luld.updated",
    IMBALANCES: "imbalance.updated",
    ORDERBOOKS: "orderbook.updated",
    NEWS: "news.published",
}


@on_both_loops
async def test_each_kind_has_its_key_and_its_time_to_live(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(kind_batch(1, *KINDS))
    for kind, (key, ttl_s) in KEYS.items():
        assert behind.get(key) == kind.encode(make_record(kind, "A", 1))
        assert ttl_s - 7 < behind.ttl_s(key) <= ttl_s
        assert await store.read_latest(kind, ["A"]) == {"A": behind.get(key)}
    await store.aclose()


@on_both_loops
async def test_events_of_every_kind_come_in_the_order_of_the_batch(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    order = [*KINDS, TRADES, QUOTES, CANCELS, TRADES]
    await store.write(kind_batch(1, *order))
    assert behind.published() == [
        (EVENTS[kind], kind.encode(make_record(kind, "A", 1))) for kind in order
    ]
    await store.aclose()


@on_both_loops
async def test_the_stream_of_news_has_an_entry_for_each_article(behind: Backend) -> None:
    store = behind.make(event_log="log")
    await store.connect()
    await store.write(kind_batch(1, NEWS, QUOTES))
    await store.write(kind_batch(2, NEWS))
    assert behind.stream("news") == [
        {"id": b"%d" % number, "data": NEWS.encode(make_record(NEWS, "A", number))}
        for number in (1, 2)
    ]
    assert len(behind.entries()) == 1, "the event log has price events alone"
    await store.aclose()


@on_both_loops
async def test_the_newest_entries_of_a_stream_are_read_back_oldest_first(behind: Backend) -> None:
    store = behind.make()
    assert isinstance(store, StreamStore)
    assert NEWS.stream is not None
    await store.connect()
    assert await store.read_newest(NEWS.stream, 5) == []
    for number in range(1, 4):
        await store.write(kind_batch(number, NEWS))
    written = [NEWS.encode(make_record(NEWS, "A", number)) for number in range(1, 4)]
    assert await store.read_newest(NEWS.stream, 5) == written
    assert await store.read_newest(NEWS.stream, 2) == written[1:]
    await store.aclose()


@on_both_loops
async def test_removed_values_are_gone_and_others_stay(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(kind_batch(1, QUOTES, TRADES, BARS))
    await store.write(WriteBatch(2, {}, (), deleted={TRADES: ["A", "NEVER"], BARS: []}))
    assert behind.get("trade:A") is None
    assert behind.get("price:A") is not None
    assert behind.get("bar:A") is not None
    assert await store.last_batch() == 2
    assert isinstance(store, RenewingStore)
    assert list(await store.renew(TRADES, ("A",))) == ["A"]
    await store.write(kind_batch(3, TRADES))
    assert behind.get("trade:A") == TRADES.encode(make_record(TRADES, "A", 3))
    await store.aclose()


@on_both_loops
async def test_each_kind_is_renewed_for_its_own_time(behind: Backend) -> None:
    store = behind.make()
    assert isinstance(store, RenewingStore)
    await store.connect()
    batch = kind_batch(1, *KEYS)
    await store.write(attrs.evolve(batch, ages_s={kind: {"A": 40} for kind in KEYS}))
    for kind, (key, ttl_s) in KEYS.items():
        assert behind.ttl_s(key) <= ttl_s - 40
        assert list(await store.renew(kind, ("A",))) == []
        assert ttl_s - 7 < behind.ttl_s(key) <= ttl_s
    await store.aclose()


@on_both_loops
async def test_keys_expire(behind: Backend) -> None:
    store = behind.make(instance="one")
    await store.connect()
    await store.write(batch(1, "A"))
    assert 70 < behind.ttl_s("price:A") <= 77
    assert 86_000 < behind.ttl_s(behind.number_key) <= 86_400
    await store.aclose()


@on_both_loops
async def test_prices_written_again_live_for_what_is_left(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    prices = {symbol: price(symbol, 1) for symbol in ("A", "B", "C")}
    await store.write(write_batch(1, prices, (), {"A": 30, "B": 77}))
    assert 40 < behind.ttl_s("price:A") <= 47
    assert 70 < behind.ttl_s("price:C") <= 77
    assert behind.get("price:A") == price("A", 1)
    assert behind.get("price:B") is None, "its time is over"
    assert await store.last_batch() == 1
    await store.aclose()


@on_both_loops
async def test_renewed_prices_live_their_whole_life_again_unchanged(behind: Backend) -> None:
    store = behind.make()
    assert isinstance(store, RenewingStore)
    await store.connect()
    await store.write(write_batch(1, {s: price(s, 1) for s in "AB"}, (), {"A": 40, "B": 40}))
    published = behind.published()
    assert list(await store.renew(QUOTES, ("A", "NONE", "B"))) == ["NONE"]
    assert list(await store.renew(QUOTES, ())) == []
    for symbol in "AB":
        assert 70 < behind.ttl_s(f"price:{symbol}") <= 77
        assert behind.get(f"price:{symbol}") == price(symbol, 1)
    assert behind.get("price:NONE") is None
    assert behind.published() == published
    assert await store.last_batch() == 1
    await store.aclose()


@on_both_loops
async def test_payload_and_symbol_are_kept_byte_for_byte(behind: Backend) -> None:
    store = behind.make(event_log="log")
    await store.connect()
    odd = b'100% %d %b\r\n$5\r\n*3\r\n \x00 \xff "\xc3\xa4"'
    symbol = "BRK.B/X-1"
    await store.write(write_batch(1, {symbol: odd}, [Message("price.updated", odd, symbol)]))
    assert behind.get(f"price:{symbol}") == odd
    assert behind.published() == [("price.updated", odd)]
    assert behind.entries() == [(symbol, odd)]
    await store.aclose()


@on_both_loops
async def test_a_batch_may_have_messages_alone_or_nothing_at_all(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(write_batch(1, {}, [Message("feed.status", b"{}")]))
    await store.write(write_batch(2, {}, []))
    assert behind.published() == [("feed.status", b"{}")]
    assert await store.last_batch() == 2
    await store.aclose()


@on_both_loops
async def test_a_large_batch_is_executed_whole(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    messages = [event(f"S{i % 700}", i) for i in range(5_000)]
    await store.write(write_batch(1, {f"S{i}": price(f"S{i}") for i in range(700)}, messages))
    assert [payload for _, payload in behind.published()] == [m.payload for m in messages]
    assert behind.get("price:S699") == price("S699")
    await store.aclose()


@on_both_loops
async def test_the_event_log_takes_price_events_alone(behind: Backend) -> None:
    store = behind.make(event_log="log")
    await store.connect()
    status = Message("feed.status", b"{}")
    await store.write(write_batch(1, {"A": price("A")}, [event("A", 1), status, event("A", 2)]))
    assert behind.entries() == [("A", price("A", 1)), ("A", price("A", 2))]
    await store.aclose()


@on_both_loops
async def test_without_an_event_log_there_is_none(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(batch(1, "A"))
    assert behind.entries() == []
    await store.aclose()


@on_both_loops
async def test_before_connect_nothing_works(behind: Backend) -> None:
    store = behind.make()
    with pytest.raises(StoreUnavailable, match="connect"):
        await store.write(batch(1, "A"))
    with pytest.raises(StoreUnavailable):
        await store.last_batch()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert behind.published() == []


@on_both_loops
async def test_a_lost_connection_is_reported_and_connect_heals_it(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(batch(1, "A"))
    behind.drop_connection()
    with pytest.raises(StoreUnavailable):
        await store.write(batch(2, "A"))
    await store.connect()
    assert await store.last_batch() == 1
    await store.write(batch(2, "A"))
    assert [payload for _, payload in behind.published()] == [price("A", 1), price("A", 2)]
    await store.aclose()


@on_both_loops
async def test_a_refused_batch_leaves_nothing_and_may_be_tried_again(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(batch(1, "A"))
    behind.refuse_writes()
    with pytest.raises(StoreRefused, match=behind.refusal):
        await store.write(batch(2, "A", "B"))
    assert await store.last_batch() == 1
    behind.accept_writes()
    await store.write(batch(2, "A", "C"))
    assert behind.get("price:B") is None
    assert behind.get("price:A") == price("A", 2)
    assert len(behind.published()) == 3
    await store.aclose()


@on_both_loops
async def test_ping_shows_whether_writes_are_taken(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.ping()
    behind.refuse_writes()
    with pytest.raises(StoreRefused, match=behind.refusal):
        await store.ping()
    behind.accept_writes()
    await store.ping()
    behind.drop_connection()
    with pytest.raises(StoreUnavailable):
        await store.ping()


@on_both_loops
async def test_ping_changes_no_batch_number(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.ping()
    assert await store.last_batch() == 0
    await store.write(batch(1, "A"))
    await store.ping()
    assert await store.last_batch() == 1
    await store.connect()
    await store.ping()
    assert await store.last_batch() == 1
    await store.aclose()


@on_both_loops
async def test_connecting_to_nothing_fails_and_works_once_it_is_there(behind: Backend) -> None:
    store = behind.make()
    behind.stop()
    with pytest.raises(StoreUnavailable):
        await store.connect()
    with pytest.raises(StoreUnavailable):
        await store.write(batch(1, "A"))
    behind.start()
    await store.connect()
    await store.write(batch(1, "A"))
    assert behind.published() == [("price.updated", price("A", 1))]
    await store.aclose()


@on_both_loops
async def test_a_server_that_restarts_has_forgotten(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(batch(1, "A"))
    behind.stop()
    with pytest.raises(StoreUnavailable):
        await store.write(batch(2, "A"))
    behind.start()
    await store.connect()
    assert await store.last_batch() == 0
    assert behind.get("price:A") is None
    await store.write(batch(2, "A"))
    assert await store.last_batch() == 2
    await store.aclose()


@on_both_loops
async def test_ping_of_a_server_that_came_back_empty_vouches_for_no_batch(
    behind: Backend,
) -> None:
    store = behind.make()
    await store.connect()
    await store.write(batch(7, "A"))
    behind.stop()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    behind.start()
    await store.connect()
    await store.ping()
    assert await store.last_batch() == 0, "the batch is gone with the server"
    await store.write(batch(8, "A"))
    await store.ping()
    assert await store.last_batch() == 8
    await store.aclose()


@on_both_loops
async def test_a_cancelled_write_is_uncertain_and_settled_by_connect(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(batch(1, "A"))
    with behind.stalled():
        with anyio.move_on_after(0.2) as scope:
            await store.write(batch(2, "A"))
        assert scope.cancelled_caught
        with pytest.raises(StoreUnavailable):
            await store.write(batch(3, "A"))
    await store.connect()
    if await store.last_batch() == 1:
        await store.write(batch(2, "A"))
    assert [payload for _, payload in behind.published()] == [price("A", 1), price("A", 2)]
    await store.aclose()


@on_both_loops
async def test_closing_twice_or_a_broken_connection_is_fine(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    behind.drop_connection()
    await store.aclose()
    await store.aclose()
    with pytest.raises(StoreUnavailable):
        await store.write(batch(1, "A"))
    await store.connect()
    await store.write(batch(1, "A"))
    await store.aclose()


@on_both_loops
async def test_connecting_again_keeps_what_was_written(behind: Backend) -> None:
    store = behind.make()
    await store.connect()
    await store.write(batch(1, "A"))
    await store.connect()
    assert await store.last_batch() == 1
    await store.write(batch(2, "A"))
    assert len(behind.published()) == 2
    await store.aclose()


@on_both_loops
async def test_prices_are_read_back_byte_for_byte(behind: Backend) -> None:
    store = behind.make()
    with pytest.raises(StoreUnavailable):
        await store.read_latest(QUOTES, ["A"])
    await store.connect()
    assert await store.read_latest(QUOTES, ["A"]) == {}
    await store.write(batch(1, "A", "B"))
    assert await store.read_latest(QUOTES, ["A", "B", "C"]) == {
        "A": price("A", 1),
        "B": price("B", 1),
    }
    assert await store.read_latest(QUOTES, []) == {}
    await store.connect()
    assert await store.read_latest(QUOTES, ["B"]) == {"B": price("B", 1)}
    behind.drop_connection()
    with pytest.raises(StoreUnavailable):
        await store.read_latest(QUOTES, ["A"])
    await store.aclose()
