"""Readers of the channel against a real server that is lost, hangs, restarts or talks nonsense."""

from __future__ import annotations

import json

import anyio
import pytest

import mdservice
from mdservice.client import intake
from mdservice.client import pubsub as silence
from mdservice.client.intake import BACKLOG
from mdservice.errors import StoreRefused
from tests.integration.client.publisher import Publisher, gapless, known, on_both_loops, take, until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(intake, "KEYS_AT_MOST_EVERY_S", 0.05)


@on_both_loops
async def test_the_keys_come_first_then_events(publisher: Publisher) -> None:
    await publisher.write("MSFT", "AAPL")
    await publisher.write("AAPL")
    async with mdservice.open_prices(publisher.url) as prices:
        assert known(prices.prices()) == [("AAPL", 2), ("MSFT", 1)]
        assert known(await take(prices, 2)) == [("AAPL", 2), ("MSFT", 1)]
        await publisher.write("MSFT", "IBM", "MSFT")
        assert known(await take(prices, 3)) == [("MSFT", 2), ("IBM", 1), ("MSFT", 3)]
        assert prices.latest("msft") == publisher.written[-1]
        assert prices.latest("TSLA") is None
        assert known(prices.prices(["IBM", "TSLA"])) == [("IBM", 1)]
        status = prices.status()
        assert (status.connected, status.url, status.position) == (True, publisher.url, None)
        assert (status.events, status.missed, status.resyncs, status.reconnects) == (3, 0, 0, 0)
        assert (status.symbols, status.waiting) == (3, 0)


@on_both_loops
async def test_only_the_symbols_that_were_asked_for(publisher: Publisher) -> None:
    await publisher.write("AAPL", "MSFT")
    async with mdservice.open_prices(publisher.url, ["msft", "BRK.B"]) as prices:
        await publisher.write("AAPL", "BRK.B", "AAPL", "MSFT")
        assert known(await take(prices, 3)) == [("MSFT", 1), ("BRK.B", 1), ("MSFT", 2)]
        assert prices.latest("AAPL") is None


@on_both_loops
async def test_nothing_is_lost_between_keys_and_events(publisher: Publisher) -> None:
    names = [f"S{n}" for n in range(20)]
    stopped = anyio.Event()

    async def write() -> None:
        while not stopped.is_set():
            await publisher.write(*names)
            await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for _ in range(25):
            async with mdservice.open_prices(publisher.url) as prices:
                quotes = await take(prices, 200)
                assert gapless(quotes), known(quotes)
                assert prices.status().missed == 0
        stopped.set()


@on_both_loops
async def test_a_lost_connection_is_made_again_and_the_keys_show_what_was_missed(
    publisher: Publisher,
) -> None:
    async with mdservice.open_prices(publisher.url) as prices:
        await publisher.write("AAPL", "MSFT")
        await take(prices, 2)
        quotes: list[mdservice.Quote] = []
        for reconnects in (1, 2, 3):
            assert publisher.kill_readers()
            # In a key there is only the last of them; the others may come as events.
            await publisher.write("AAPL", "AAPL", "AAPL")
            while not quotes or quotes[-1] != publisher.written[-1]:
                quotes += await take(prices, 1)
            await until(lambda: prices.status().connected)
            assert prices.status().reconnects == reconnects
        status = prices.status()
        assert len(quotes) + status.missed == 9
        assert [quote.seq for quote in quotes] == sorted({quote.seq for quote in quotes})
        assert status.resyncs >= 3
        assert "was lost" in (status.last_error or "")


@on_both_loops
async def test_a_server_that_restarts_empty_is_followed_again(publisher: Publisher) -> None:
    await publisher.write("AAPL")
    async with mdservice.open_prices(publisher.url) as prices:
        await take(prices, 1)
        publisher.server.kill()
        await until(lambda: not prices.status().connected)
        assert prices.latest("AAPL") == publisher.written[0]
        publisher.server.start()
        await until(lambda: prices.status().connected)
        publisher.restart_service()
        await publisher.write("AAPL", "AAPL")
        assert known(await take(prices, 2)) == [("AAPL", 1), ("AAPL", 2)]
        status = prices.status()
        assert (status.starts, status.missed, status.reconnects) == (1, 0, 1)


@on_both_loops
async def test_a_server_that_hangs_is_noticed_and_followed_once_it_answers(
    publisher: Publisher,
) -> None:
    await publisher.write("AAPL")
    async with mdservice.open_prices(publisher.url) as prices:
        await take(prices, 1)
        publisher.server.stop_answering()
        try:
            await until(lambda: not prices.status().connected)
            assert "PING" in (prices.status().last_error or "")
        finally:
            publisher.server.answer_again()
        await until(lambda: prices.status().connected)
        await publisher.write("AAPL")
        assert known(await take(prices, 1)) == [("AAPL", 2)]


@on_both_loops
async def test_silence_alone_does_not_end_a_connection(publisher: Publisher) -> None:
    async with mdservice.open_prices(publisher.url) as prices:
        await anyio.sleep(3.2)
        assert prices.status().connected
        assert prices.status().reconnects == 0
        await publisher.write("AAPL")
        await take(prices, 1)


@on_both_loops
async def test_a_service_that_starts_again_is_noticed_and_the_keys_read_again(
    publisher: Publisher,
) -> None:
    await publisher.write("AAPL", "AAPL", "MSFT")
    async with mdservice.open_prices(publisher.url) as prices:
        assert known(await take(prices, 2)) == [("AAPL", 2), ("MSFT", 1)]
        publisher.restart_service()
        await publisher.write("MSFT", publish=False)
        await publisher.write("AAPL")
        assert known(await take(prices, 2)) == [("AAPL", 1), ("MSFT", 1)]
        await until(lambda: prices.status().resyncs == 1)
        assert prices.status().starts == 2


@on_both_loops
async def test_a_step_has_the_keys_read_again_for_the_other_symbols(publisher: Publisher) -> None:
    await publisher.write("AAPL", "MSFT")
    async with mdservice.open_prices(publisher.url) as prices:
        await take(prices, 2)
        await publisher.write("MSFT", publish=False)
        await publisher.write("AAPL", step=3)
        assert known(await take(prices, 2)) == [("AAPL", 4), ("MSFT", 2)]
        status = prices.status()
        assert (status.missed, status.resyncs, status.reconnects) == (2, 1, 0)


@on_both_loops
async def test_reading_the_keys_again_overtakes_no_event_that_is_on_its_way(
    publisher: Publisher,
) -> None:
    names = [f"S{n}" for n in range(50)]
    steps = 0
    async with mdservice.open_prices(publisher.url) as prices, anyio.create_task_group() as tasks:

        async def write() -> None:
            nonlocal steps
            for number in range(300):
                step = 2 if number % 10 == 9 else 1
                steps += step - 1
                await publisher.write("STEP", step=step)
                await publisher.write(*names)

        tasks.start_soon(write)
        quotes = await take(prices, 300 * 51)
        await until(lambda: len(publisher.written) == 300 * 51)
        assert known(quotes) == known(publisher.written)
        status = prices.status()
        assert status.missed == steps == 30
        assert status.resyncs > 1


@on_both_loops
async def test_a_slow_program_gets_the_newest_of_each_symbol(publisher: Publisher) -> None:
    names = [f"S{n}" for n in range(100)]
    async with mdservice.open_prices(publisher.url) as prices:
        for _ in range(250):
            await publisher.write(*names)
        await until(lambda: prices.latest("S99") == publisher.written[-1])
        status = prices.status()
        assert status.waiting == BACKLOG
        assert status.conflated == 25_000 - BACKLOG
        assert status.missed == 0
        quotes = await take(prices, BACKLOG)
        assert known(quotes[-100:]) == [(name, 250) for name in names]
        await publisher.write("S0")
        assert known(await take(prices, 1)) == [("S0", 251)]


@on_both_loops
async def test_garbage_is_counted_and_passed_over(publisher: Publisher) -> None:
    with publisher.server.client() as client:
        await publisher.write("AAPL")
        good = json.loads(client.get("price:AAPL"))
        client.set("price:BAD", b"\xff\x00")
        client.set("price:MSFT", json.dumps(good))  # of another symbol
        client.lpush("price:LIST", "1")
        async with mdservice.open_prices(publisher.url) as prices:
            await take(prices, 1)
            assert prices.status().decode_errors == 2
            for bad in (
                b"",
                b"null",
                b"[" * 10_000,
                b"\xff" * 100_000,
                json.dumps({**good, "seq": "x"}),
                json.dumps({**good, "timestamp": "yesterday"}),
                json.dumps({**good, "bid": -1}),
                json.dumps({**good, "symbol": "no symbol"}),
                json.dumps({**good, "symbol": "*"}),
                b'{"symbol":"AAPL","bid":1e999}',
            ):
                client.publish("price.updated", bad)
            await publisher.write("AAPL")
            assert known(await take(prices, 1)) == [("AAPL", 2)]
            status = prices.status()
            assert status.decode_errors == 12
            assert status.last_decode_error
            assert status.connected


@on_both_loops
async def test_a_refusal_in_mid_run_is_ridden_out(publisher: Publisher) -> None:
    with publisher.server.client() as client:
        async with mdservice.open_prices(publisher.url) as prices:
            client.execute_command("ACL", "SETUSER", "default", "resetchannels", "-subscribe")
            publisher.kill_readers()
            await until(lambda: "NOPERM" in (prices.status().last_error or ""))
            assert not prices.status().connected
            client.execute_command("ACL", "SETUSER", "default", "allchannels", "+subscribe")
            await until(lambda: prices.status().connected)
            await publisher.write("AAPL")
            await take(prices, 1)


@on_both_loops
async def test_the_rights_that_the_advice_names_suffice(publisher: Publisher) -> None:
    rules = "on >pw ~price:* ~log resetchannels &price.updated"
    rules += " +subscribe +ping +mget +scan +xread +xrange +xinfo"
    await publisher.write("AAPL")
    with publisher.server.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", *rules.split())
        url = f"unix://reader@{publisher.server.path}?password=pw"
        for more in ({}, {"event_log": "log"}):
            async with mdservice.open_prices(url, **more) as prices:
                await take(prices, 1)
        client.execute_command("ACL", "SETUSER", "reader", "-mget")
        with pytest.raises(StoreRefused, match=r"NOPERM.*MGET"):
            async with mdservice.open_prices(url):
                pass
