"""The Redis store against a real server that refuses, stalls, hangs up or talks nonsense."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import attrs
import pytest
import trio

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import BARS, KINDS, NEWS, QUOTES, TRADES
from mdservice.publish.store import Events, Message, WriteBatch
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.store import RedisPriceStore
from tests.batches import write_batch
from tests.integration.conftest import patient, published_so_far

LIMIT_S = 60.0


def batch(number: int, size: int = 1) -> WriteBatch:
    payload = b"%d" % number
    return write_batch(number, {"A": payload}, [Message("price.updated", payload, "A")] * size)


def make(url: str, **options: Any) -> RedisPriceStore:
    return RedisPriceStore(url, instance="one", **options)


async def test_a_full_server_refuses_the_whole_batch(valkey: Any) -> None:
    store = make(valkey.url)
    await store.connect()
    with valkey.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreRefused, match="maxmemory"):
            await store.write(batch(1))
        with pytest.raises(StoreRefused, match="maxmemory"):
            await store.ping()
        client.config_set("maxmemory", "0")
        assert client.keys() == []
    await store.write(batch(1))
    assert await store.last_batch() == 1
    await store.aclose()


async def test_memory_that_runs_out_between_queueing_and_exec_refuses_the_batch(
    valkey: Any,
) -> None:
    store = make(valkey.url, event_log="log")
    await store.connect()
    with valkey.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used + 400_000)
        large = write_batch(1, {f"S{i}": b"x" * 1_000 for i in range(5_000)}, [])
        with pytest.raises(StoreRefused, match="OOM") as refused:
            await store.write(large)
        assert refused.value.code == "OOM"
        client.config_set("maxmemory", "0")
        assert client.dbsize() == 0
    await store.aclose()


async def test_a_login_is_asked_for_and_its_password_never_shown(fresh_valkey: Any) -> None:
    with fresh_valkey.client() as client:
        client.config_set("requirepass", "hunter2")
    path = fresh_valkey.path
    with pytest.raises(StoreRefused, match=r"NOAUTH.*MDSERVICE_REDIS_URL"):
        await make(f"unix://{path}").connect()
    store = make(f"unix://{path}?password=hunter3")
    with pytest.raises(StoreRefused, match="refused the login") as caught:
        await store.connect()
    assert caught.value.code == "WRONGPASS"
    assert "hunter" not in str(caught.value)
    store = make(f"unix://{path}?password=hunter2")
    await store.connect()
    await store.write(batch(1))
    await store.aclose()


async def test_a_user_with_no_right_to_publish_writes_nothing(fresh_valkey: Any) -> None:
    with fresh_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-publish")
        store = make(fresh_valkey.url)
        await store.connect()
        with pytest.raises(StoreRefused, match=r"NOPERM.*allow this user"):
            await store.write(batch(1))
        assert client.keys() == []
    await store.aclose()


async def test_the_rights_that_the_advice_names_suffice(
    fresh_valkey: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rules = "on >pw ~price:* ~mdservice:writer:* &price.updated &feed.status ~log"
    rules += " +multi +exec +set +get +publish +xadd"
    with fresh_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "writer", *rules.split())
    store = make(f"unix://writer@{fresh_valkey.path}?password=pw", event_log="log")
    await store.connect()
    assert not store.can_fence
    await store.connect()
    assert caplog.text.count("redis_cannot_be_fenced") == 1
    await store.write(batch(1))
    await store.ping()
    assert await store.last_batch() == 1
    assert store.command_errors == 0
    await store.aclose()


async def test_a_kind_whose_marker_is_not_allowed_goes_without_and_the_others_keep_theirs(
    fresh_valkey: Any,
) -> None:
    channels = " ".join(f"&{kind.event}" for kind in KINDS)
    rules = f"on >pw ~* resetchannels {channels} &mdservice.batch &mdservice.batch.bars +@all"
    with fresh_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "writer", *rules.split())
        with client.pubsub(ignore_subscribe_messages=True) as heard:
            heard.psubscribe("*")
            store = make(f"unix://writer@{fresh_valkey.path}?password=pw")
            await store.connect()
            events = [Events(kind.event, [b"{}"], kind, ["A"]) for kind in (TRADES, BARS)]
            published_so_far(heard)  # of the greeting
            await store.write(WriteBatch(1, {}, events))
            messages = published_so_far(heard)
    assert [message["channel"] for message in messages] == [
        b"mdservice.batch",
        b"mdservice.batch.bars",
        b"trade.updated",
        b"bar.updated",
    ]
    await store.aclose()


def mixed_batch(number: int) -> WriteBatch:
    """A quote, a trade and an article."""
    news = Events(NEWS.event, [b"{}"], NEWS, ["AAPL"], ["1"])
    events = [Events(kind.event, [b"{}"], kind, ["AAPL"]) for kind in (QUOTES, TRADES)]
    values = {kind: {"AAPL": b"{}"} for kind in (QUOTES, TRADES)}
    return WriteBatch(number, values, [*events, news])


LIMITED = {
    "-del": (TRADES, "DEL trade:*"),
    "resetkeys ~price:* ~mdservice:* ~news": (TRADES, "SET trade:*, DEL trade:*"),
    "resetchannels &price.updated &feed.status &news.published": (TRADES, "PUBLISH trade.updated"),
    "-xadd": (NEWS, "XADD news"),
}
"""What is taken from a user, the kind that it then may not write, and the rights that are named."""


@pytest.mark.parametrize("change", LIMITED)
async def test_a_kind_that_may_not_be_written_goes_without_and_the_others_go_on(
    fresh_valkey: Any, change: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("mdservice.redis_io.store.LOOK_AGAIN_S", 0.0)
    kind, rights = LIMITED[change]
    other = TRADES if kind is NEWS else NEWS
    with fresh_valkey.client() as client:
        line = f"on >pw {RedisNames().rights()} {change}"
        client.execute_command("ACL", "SETUSER", "writer", *line.split())
        url = f"unix://writer@{fresh_valkey.path}?password=pw"
        store = RedisPriceStore(url, instance="i", kinds=(QUOTES, TRADES, NEWS))
        await store.connect()
        assert client.keys() == []
        assert rights in store.refused[kind]
        assert not {QUOTES, other} & store.refused.keys()
        assert caplog.text.count("redis_rights_missing") == 1
        await store.write(mixed_batch(1))
        written = {b"price:AAPL", b"mdservice:writer:i", b"trade:AAPL" if kind is NEWS else b"news"}
        assert set(client.keys()) == written
        assert store.command_errors == 1
        assert rights in (store.last_command_error or "")
        assert not await store.renew(kind, ["AAPL"])

        line = f"on >pw {RedisNames().rights()}"
        client.execute_command("ACL", "SETUSER", "writer", *line.split())
        await store.write(mixed_batch(2))
        assert {b"trade:AAPL", b"news"} <= set(client.keys())
        assert (store.refused, store.command_errors) == ({}, 1)
    await store.aclose()


async def test_without_the_right_to_the_accounts_channel_everything_else_is_written(
    fresh_valkey: Any, caplog: Any
) -> None:
    with fresh_valkey.client() as client:
        rules = RedisNames().rights().replace(" &account.updated", "")
        client.execute_command("ACL", "SETUSER", "writer", "on", ">pw", *rules.split())
        store = make(f"unix://writer@{fresh_valkey.path}?password=pw")
        await store.connect()
        assert store.refused == {"account.updated": "PUBLISH account.updated"}
        assert "not_written=['account.updated']" in caplog.text
        mixed = mixed_batch(1)
        await store.write(
            attrs.evolve(mixed, events=[*mixed.events, Events("account.updated", [b"{}"])])
        )
        assert {b"price:AAPL", b"trade:AAPL", b"news"} <= set(client.keys())
        assert store.command_errors == 1
    await store.aclose()


async def test_a_missing_right_that_stops_all_writes_is_named(fresh_valkey: Any) -> None:
    with fresh_valkey.client() as client:
        rules = f"on >pw {RedisNames().rights()} resetchannels &price.updated"
        client.execute_command("ACL", "SETUSER", "writer", *rules.split())
        store = make(f"unix://writer@{fresh_valkey.path}?password=pw", event_log="log")
        await store.connect()
        with pytest.raises(StoreRefused, match=r"NOPERM.*PUBLISH feed\.status, XADD log"):
            await store.write(batch(1))
    await store.aclose()


async def test_without_transactions_connect_is_refused(fresh_valkey: Any) -> None:
    store = make(fresh_valkey.url)
    await store.connect()
    with fresh_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-multi")
        # In mid-run the commands of a batch are then executed one by one: it is uncertain.
        with pytest.raises(StoreUnavailable, match="part of the batch"):
            await store.write(batch(1))
        with pytest.raises(StoreRefused, match="multi"):
            await store.connect()
        client.execute_command("ACL", "SETUSER", "default", "+multi")
    await store.connect()
    assert await store.last_batch() == 1
    await store.aclose()


async def test_a_command_that_fails_inside_is_counted_and_the_rest_stands(valkey: Any) -> None:
    store = make(valkey.url, event_log="log")
    await store.connect()
    with valkey.client() as client:
        client.set("log", "no stream")
        await store.write(batch(1, size=2))
        assert client.get("price:A") == b"1"
    assert store.command_errors == 2
    assert store.last_command_error is not None
    assert store.last_command_error.startswith("WRONGTYPE")
    assert await store.last_batch() == 1
    await store.aclose()


async def test_the_event_log_is_trimmed(valkey: Any) -> None:
    store = make(valkey.url, event_log="log", event_log_maxlen=100)
    await store.connect()
    await store.write(batch(1, size=3_000))
    with valkey.client() as client:
        assert 100 <= client.xlen("log") <= 300
    await store.aclose()


async def test_what_was_forgotten_does_not_come_back_with_a_ping(valkey: Any) -> None:
    store = make(valkey.url)
    await store.connect()
    await store.write(batch(7))
    await store.forget()
    with valkey.client() as client:
        assert client.get("mdservice:writer:one") is None
    await store.ping()
    assert await store.last_batch() == 0
    await store.write(batch(8))
    assert await store.last_batch() == 8
    await store.aclose()


async def test_a_foreign_value_under_the_number_key_is_refused(valkey: Any) -> None:
    store = make(valkey.url)
    await store.connect()
    with valkey.client() as client:
        client.set("mdservice:writer:one", "seven")
    with pytest.raises(StoreRefused, match="mdservice:writer:one"):
        await store.last_batch()
    await store.aclose()


async def test_the_database_of_the_url_is_used(valkey: Any) -> None:
    store = make(f"{valkey.url}?db=3")
    await store.connect()
    await store.write(batch(1))
    with valkey.client(db=3) as client:
        assert client.get("price:A") == b"1"
    await store.aclose()


async def test_a_database_that_is_not_there_is_refused(valkey: Any) -> None:
    with pytest.raises(StoreRefused, match="out of range"):
        await make(f"{valkey.url}?db=3000").connect()


async def test_prices_are_read_back_and_unknown_ones_left_out(valkey: Any) -> None:
    store = make(valkey.url)
    await store.connect()
    prices = {f"S{i}": b"%d" % i for i in range(2_500)}
    await store.write(write_batch(1, prices, []))
    assert await store.read_latest(QUOTES, [*prices, "NONE"]) == prices
    assert await store.read_latest(QUOTES, []) == {}
    await store.aclose()


async def test_who_hears_an_event_finds_that_price_or_a_newer_one(valkey: Any) -> None:
    store = make(valkey.url)
    await store.connect()
    last = 300
    behind: list[tuple[int, int]] = []

    def read(started: Callable[[], None]) -> None:
        with valkey.client() as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("price.updated")
            assert not published_so_far(pubsub)
            started()
            heard = 0
            while heard < last:
                message = pubsub.get_message(timeout=1.0)
                if message is not None:
                    heard, found = int(message["data"]), int(client.get("price:A"))
                    if found < heard:
                        behind.append((heard, found))

    with trio.fail_after(patient(LIMIT_S)):
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                trio.to_thread.run_sync, read, lambda: trio.from_thread.run_sync(ready.set)
            )
            await ready.wait()
            for number in range(1, last + 1):
                await store.write(batch(number))
    assert behind == []
    await store.aclose()


@contextmanager
def stopped(server: Any) -> Iterator[None]:
    server.stop_answering()
    try:
        yield
    finally:
        server.answer_again()


async def test_a_server_that_does_not_answer_is_given_up(fresh_valkey: Any) -> None:
    store = make(fresh_valkey.url, timeout_s=0.2)
    await store.connect()
    with trio.fail_after(patient(LIMIT_S)):
        with stopped(fresh_valkey):
            with pytest.raises(StoreUnavailable):
                await store.write(batch(1))
            with pytest.raises(StoreUnavailable):
                await store.connect()
        while not store.connected:  # within 0.2 s, which a busy machine does not always manage
            with suppress(StoreUnavailable):
                await store.connect()
                await store.ping()
    await store.aclose()


def test_cancelled_calls_free_their_threads(fresh_valkey: Any) -> None:
    """More calls are given up than there are threads; each shuts its socket, so none is stuck."""

    async def main() -> None:
        store = make(fresh_valkey.url, timeout_s=3_600.0)
        with anyio.fail_after(patient(LIMIT_S)):
            with stopped(fresh_valkey):
                for _ in range(8):
                    with anyio.move_on_after(0.03) as scope:
                        await store.connect()
                    assert scope.cancelled_caught
                    assert not store.connected
            await store.connect()
            await store.ping()
            await store.aclose()

    for loop in ("trio", "asyncio"):
        anyio.run(main, backend=loop)


Answer = Callable[[anyio.abc.SocketStream], Awaitable[None]]


async def greeted_by(*answers: bytes) -> StoreUnavailable:
    """What connect() says to a server with these answers, after which it hangs up."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            for answer in answers:
                await stream.receive()
                await stream.send(answer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        with pytest.raises(StoreUnavailable) as caught:
            await make(f"redis://127.0.0.1:{port}", timeout_s=2.0).connect()
        tasks.cancel_scope.cancel()
    return caught.value


async def test_nonsense_is_no_redis_server() -> None:
    with trio.fail_after(patient(LIMIT_S)):
        assert "127.0.0.1" in str(await greeted_by(b"HTTP/1.1 400 Bad Request\r\n\r\n"))


async def test_a_server_that_hangs_up_in_the_middle_of_an_answer() -> None:
    with trio.fail_after(patient(LIMIT_S)):
        assert "closed" in str(await greeted_by(b"+OK\r\n", b":7\r\n$100\r\nrun_"))


async def test_the_reason_of_a_server_that_refuses_connections_is_reported() -> None:
    reason = b"-ERR max number of clients reached\r\n"
    with trio.fail_after(patient(LIMIT_S)):
        assert "max number of clients" in str(await greeted_by(reason))


async def test_a_name_that_is_no_host_is_unavailable() -> None:
    with trio.fail_after(patient(LIMIT_S)):
        with pytest.raises(StoreUnavailable, match="cannot connect"):
            await make("redis://a..b:6379").connect()
