"""Readers of the event log against a real server: nothing missed, also across their own restart."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import mdservice
from mdservice.client import intake
from mdservice.errors import ConfigurationError, StoreRefused
from mdservice.model.payload import encode_quote
from tests.integration.client.publisher import Publisher, gapless, known, on_both_loops, take, until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "KEYS_AT_MOST_EVERY_S", 0.05)


def open_log(publisher: Publisher, *symbols: str, after: str | None = None) -> Any:
    return mdservice.open_prices(publisher.url, symbols, event_log="log", after=after)


def last_id(publisher: Publisher) -> str:
    with publisher.server.client() as client:
        return str(client.xrevrange("log", count=1)[0][0].decode())


@on_both_loops
async def test_the_keys_come_first_then_entries(publisher: Publisher) -> None:
    await publisher.write("MSFT", "AAPL", "AAPL")
    end = last_id(publisher)
    async with open_log(publisher) as prices:
        assert prices.position is None
        assert known(await take(prices, 1)) == [("AAPL", 2)]
        assert prices.position is None
        assert known(await take(prices, 1)) == [("MSFT", 1)]
        assert prices.position == end
        await publisher.write("IBM", "AAPL")
        assert known(await take(prices, 2)) == [("IBM", 1), ("AAPL", 3)]
        assert prices.position == prices.status().position == last_id(publisher)
        assert prices.latest("AAPL") == publisher.written[-1]


@on_both_loops
async def test_a_log_that_does_not_exist_yet_is_waited_for(publisher: Publisher) -> None:
    async with open_log(publisher) as prices:
        assert prices.position == "0-0"
        await publisher.write("AAPL")
        assert known(await take(prices, 1)) == [("AAPL", 1)]
        assert prices.status().trimmed == 0


@on_both_loops
async def test_nothing_is_lost_between_keys_and_entries(publisher: Publisher) -> None:
    names = [f"S{n}" for n in range(20)]
    stopped = anyio.Event()

    async def write() -> None:
        while not stopped.is_set():
            await publisher.write(*names)
            await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for _ in range(15):
            async with open_log(publisher) as prices:
                quotes = await take(prices, 200)
                assert gapless(quotes), known(quotes)
        stopped.set()


@on_both_loops
async def test_a_program_that_restarts_goes_on_where_it_was_and_misses_nothing(
    publisher: Publisher,
) -> None:
    names = [f"S{n}" for n in range(7)]
    rounds, seen = 400, []

    async def write() -> None:
        for _ in range(rounds):
            await publisher.write(*names)

    position: str | None = "0"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for count in [1, 5, 700, 3, 499, 500, 501, 0]:
            async with open_log(publisher, after=position) as prices:
                seen += await take(prices, count or rounds * 7 - len(seen))
                position = prices.position
                assert prices.status().trimmed == 0
    assert known(seen) == known(publisher.written)


@on_both_loops
async def test_a_slow_program_loses_nothing(publisher: Publisher) -> None:
    names = [f"S{n}" for n in range(100)]
    async with open_log(publisher) as prices:
        for _ in range(250):
            await publisher.write(*names)
        assert prices.status().waiting <= 500
        quotes = await take(prices, 25_000)
        assert known(quotes) == known(publisher.written)
        assert prices.status().conflated == prices.status().missed == 0


@on_both_loops
async def test_position_passes_symbols_that_are_not_wanted(publisher: Publisher) -> None:
    await publisher.write("AAPL")
    async with open_log(publisher, "aapl") as prices:
        await take(prices, 1)
        await publisher.write("MSFT", "MSFT")
        await until(lambda: prices.position == last_id(publisher))
        await publisher.write("AAPL", "MSFT", "MSFT")
        assert known(await take(prices, 1)) == [("AAPL", 2)]
        await until(lambda: prices.position == last_id(publisher))
        assert prices.latest("MSFT") is None


@on_both_loops
async def test_a_lost_connection_loses_nothing(publisher: Publisher) -> None:
    seen: list[mdservice.Quote] = []
    async with open_log(publisher) as prices:
        for reconnects in (1, 2, 3):
            await publisher.write("AAPL", "MSFT")
            seen += await take(prices, 1)
            assert publisher.kill_readers()
            await publisher.write("AAPL", "MSFT")
            # The connection is not looked at before what was read is taken.
            seen += await take(prices, 3)
            assert prices.status().reconnects == reconnects
        assert known(seen) == known(publisher.written)
        assert prices.status().missed == 0


@on_both_loops
async def test_entries_that_were_cut_before_they_were_read_are_noticed(
    publisher: Publisher,
) -> None:
    await publisher.write("AAPL", "IBM")
    async with open_log(publisher) as prices:
        await take(prices, 2)
        with publisher.server.client() as client:
            assert publisher.kill_readers()
            await publisher.write("IBM", "AAPL", "AAPL", "AAPL")
            await publisher.write("MSFT", "AAPL")
            client.xtrim("log", maxlen=2, approximate=False)
        quotes = await take(prices, 3)
        # What the log still has, in order, and then what only the key tells.
        assert known(quotes) == [("MSFT", 1), ("AAPL", 5), ("IBM", 2)]
        status = prices.status()
        assert (status.trimmed, status.resyncs, status.missed) == (1, 1, 3)
        await publisher.write("IBM")
        assert known(await take(prices, 1)) == [("IBM", 3)]
        assert prices.status().trimmed == 1


@on_both_loops
async def test_entries_that_were_cut_while_the_program_was_away_are_noticed(
    publisher: Publisher,
) -> None:
    await publisher.write("AAPL")
    position = last_id(publisher)
    await publisher.write("AAPL", "IBM", "AAPL")
    with publisher.server.client() as client:
        client.xtrim("log", maxlen=1, approximate=False)
    async with open_log(publisher, after=position) as prices:
        assert known(await take(prices, 2)) == [("AAPL", 3), ("IBM", 1)]
        assert prices.status().trimmed == 1


@on_both_loops
async def test_a_log_that_begins_again_is_read_from_its_start(publisher: Publisher) -> None:
    """A server whose clock is behind, or an old position: the new ids are below ours."""
    await publisher.write("AAPL")
    async with open_log(publisher) as prices:
        await take(prices, 1)
        payloads = [encode_quote(publisher.quote("AAPL")) for _ in range(3)]
        with publisher.server.client() as client:
            client.delete("log")
            for number, payload in enumerate(payloads, 1):
                client.xadd("log", {"symbol": "AAPL", "data": payload}, id=f"5-{number}")
        assert known(await take(prices, 3)) == [("AAPL", n) for n in (2, 3, 4)]
        assert prices.position == "5-3"
        assert prices.status().trimmed == 1


@on_both_loops
async def test_a_log_that_lost_its_end_is_not_read_twice(publisher: Publisher) -> None:
    """As after a crash with ``appendfsync everysec``, or when a replica takes over."""
    await publisher.write("AAPL", "AAPL", "AAPL", "IBM")
    with publisher.server.client() as client:
        entries = client.xrange("log")
        async with open_log(publisher, after=entries[1][0].decode()) as prices:
            assert known(await take(prices, 2)) == [("AAPL", 3), ("IBM", 1)]
            position = prices.position
        client.delete("log")
        for entry_id, fields in entries[:2]:
            client.xadd("log", fields, id=entry_id)
        async with open_log(publisher, after=position) as prices:
            await until(lambda: prices.status().trimmed == 1)
            assert known(await take(prices, 2)) == [("AAPL", 3), ("IBM", 1)]  # from the keys
            await publisher.write("AAPL")
            assert known(await take(prices, 1)) == [("AAPL", 4)]
            assert prices.status().missed == 0


@on_both_loops
async def test_a_position_from_another_server_is_noticed_at_once(publisher: Publisher) -> None:
    await publisher.write("AAPL", "AAPL")
    async with open_log(publisher, after="99999999999999-0") as prices:
        assert known(await take(prices, 2)) == [("AAPL", 1), ("AAPL", 2)]
        assert prices.position == last_id(publisher)


@on_both_loops
async def test_a_server_that_restarts_empty_is_followed_again(publisher: Publisher) -> None:
    await publisher.write("AAPL", "AAPL")
    async with open_log(publisher) as prices:
        await take(prices, 1)
        publisher.server.kill()
        await until(lambda: not prices.status().connected)
        publisher.server.start()
        publisher.restart_service()
        await publisher.write("AAPL", "MSFT")
        assert known(await take(prices, 2)) == [("AAPL", 1), ("MSFT", 1)]
        assert prices.status().trimmed == 1
        assert prices.status().starts == 1


@on_both_loops
async def test_garbage_is_counted_and_passed_over(publisher: Publisher) -> None:
    async with open_log(publisher) as prices:
        await publisher.write("AAPL")
        with publisher.server.client() as client:
            client.xadd("log", {"other": "x"})
            client.xadd("log", {"symbol": "AAPL", "data": b"\xff"})
            client.xadd("log", {"data": "[1]", "more": "x"})
        await publisher.write("AAPL")
        assert known(await take(prices, 2)) == [("AAPL", 1), ("AAPL", 2)]
        assert prices.status().decode_errors == 3
        assert prices.position == last_id(publisher)


@on_both_loops
async def test_a_server_that_hangs_is_noticed_and_followed_once_it_answers(
    publisher: Publisher,
) -> None:
    async with open_log(publisher) as prices:
        publisher.server.stop_answering()
        try:
            await until(lambda: not prices.status().connected)
        finally:
            publisher.server.answer_again()
        await until(lambda: prices.status().connected)
        await publisher.write("AAPL")
        assert known(await take(prices, 1)) == [("AAPL", 1)]


@on_both_loops
async def test_a_key_that_is_no_stream_is_reported(publisher: Publisher) -> None:
    with publisher.server.client() as client:
        client.set("log", "text")
    with pytest.raises(StoreRefused, match="MDSERVICE_EVENT_LOG"):
        async with open_log(publisher):
            pass


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"event_log": "log", "after": "$"}, "after"),
        ({"event_log": "log", "after": "1-2-3"}, "after"),
        ({"event_log": "log", "after": ""}, "after"),
        ({"after": "1-2"}, "event_log"),
        ({"event_log": "price:AAPL"}, "event_log"),
        ({"event_log": ""}, "event_log"),
    ],
)
async def test_what_cannot_be_followed_is_refused(more: Any, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        async with mdservice.open_prices("unix:///nowhere", **more):
            pass
