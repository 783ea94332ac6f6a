"""How a reader begins and ends: addresses, refusals, limits, errors, cancellation."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import mdservice
from mdservice.errors import (
    ConfigurationError,
    InvalidSymbol,
    StoreRefused,
    StoreUnavailable,
)
from mdservice.simulator import SimQuote, SimulatorConfig, open_simulator
from tests.integration.client.publisher import Publisher, known, on_both_loops, take, until
from tests.integration.conftest import patient


async def refused(*args: Any, **options: Any) -> Exception:
    """The error with which the block is not entered."""
    with pytest.raises(mdservice.MDServiceError) as caught:
        async with mdservice.open_prices(*args, **options):
            pytest.fail("it was entered")
    return caught.value


@on_both_loops
async def test_a_wrong_password_is_reported_at_once_and_never_shown(publisher: Publisher) -> None:
    with publisher.server.client() as client:
        client.config_set("requirepass", "hunter2")
    started_s = time.monotonic()
    error = await refused(f"unix://{publisher.server.path}?password=hunter3")
    assert isinstance(error, StoreRefused)
    assert "hunter" not in str(error)
    assert isinstance(await refused(publisher.url), StoreRefused)
    assert time.monotonic() - started_s < patient(5)
    async with mdservice.open_prices(f"unix://{publisher.server.path}?password=hunter2") as prices:
        assert prices.status().url == publisher.url
    with publisher.server.client(password="hunter2") as client:
        client.config_set("requirepass", "")


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter2@host", "redis://:hunter2@host:x", "", "redis://host?hunter2=1", "hunter2"],
)
async def test_a_bad_url_is_refused_without_being_quoted(url: str) -> None:
    error = await refused(url)
    assert isinstance(error, ConfigurationError)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("symbols", [["AAPL", "no symbol"], "AAPL,,", [""], ["ß"]])
async def test_a_bad_symbol_is_refused(symbols: Any) -> None:
    assert isinstance(await refused("redis://localhost", symbols), InvalidSymbol)


@on_both_loops
async def test_a_server_that_is_away_is_waited_for_within_the_limit(publisher: Publisher) -> None:
    publisher.server.kill()
    error = await refused(publisher.url, connect_limit_s=0.5)
    assert isinstance(error, StoreUnavailable)
    assert "0.5 s" in str(error)
    assert "start a server there" in str(error)

    async def start() -> None:
        await anyio.sleep(0.3)
        await anyio.to_thread.run_sync(publisher.server.start)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        async with mdservice.open_prices(publisher.url) as prices:
            assert prices.status().connected
            assert prices.status().reconnects == 0


@on_both_loops
async def test_a_server_that_says_nothing_is_given_up_at_the_limit(publisher: Publisher) -> None:
    publisher.server.stop_answering()
    started_s = time.monotonic()
    try:
        error = await refused(publisher.url, connect_limit_s=0.5)
    finally:
        publisher.server.answer_again()
    assert isinstance(error, StoreUnavailable)
    assert "does not answer" in str(error)
    assert time.monotonic() - started_s < patient(5)


@on_both_loops
async def test_a_server_that_speaks_something_else_is_given_up_at_the_limit(
    publisher: Publisher,
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, answer)
        error = await refused(f"redis://127.0.0.1:{port}", connect_limit_s=0.5)
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    assert isinstance(error, StoreUnavailable)


@on_both_loops
async def test_an_error_in_the_block_comes_out_as_it_is(publisher: Publisher) -> None:
    for mine in (KeyError("mine"), ExceptionGroup("mine", [KeyError("one"), KeyError("two")])):
        with pytest.raises(type(mine)) as caught:
            async with mdservice.open_prices(publisher.url):
                raise mine
        assert caught.value is mine


@on_both_loops
async def test_after_the_block_what_has_come_is_given_out_and_then_it_ends(
    publisher: Publisher,
) -> None:
    await publisher.write("AAPL", "MSFT")
    async with mdservice.open_prices(publisher.url) as prices:
        pass
    assert known([quote async for quote in prices]) == [("AAPL", 1), ("MSFT", 1)]
    assert [quote async for quote in prices] == []


@pytest.mark.parametrize("log", [None, "log"])
@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_cancelled_at_any_moment_it_ends_soon_and_leaves_nothing(
    publisher: Publisher, loop: str, log: str | None
) -> None:
    @on_both_loops
    async def scene(publisher: Publisher) -> None:
        await publisher.write("AAPL", "MSFT")
        before = len(list(Path("/proc/self/fd").iterdir()))
        for step in range(60):
            started_s = anyio.current_time()
            with anyio.move_on_after(step * 0.0005) as scope:
                async with mdservice.open_prices(publisher.url, event_log=log) as prices:
                    await take(prices, 2)
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert anyio.current_time() - started_s < patient(5)
        await until(lambda: not publisher.readers())
        await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 2)

    scene(publisher, loop)


@on_both_loops
async def test_it_ends_soon_while_the_server_hangs(publisher: Publisher) -> None:
    for log in (None, "log"):
        async with mdservice.open_prices(publisher.url, event_log=log):
            publisher.server.stop_answering()
            started_s = anyio.current_time()
        assert anyio.current_time() - started_s < patient(5)
        publisher.server.answer_again()


@on_both_loops
async def test_several_tasks_may_take_updates(publisher: Publisher) -> None:
    seen: list[mdservice.Quote] = []
    async with mdservice.open_prices(publisher.url) as prices:

        async def listen() -> None:
            while True:
                seen.append(await anext(prices))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            tasks.start_soon(listen)
            for count in range(1, 6):
                await publisher.write("AAPL")
                await until(lambda n=count: len(seen) == n)  # type: ignore[misc]
            tasks.cancel_scope.cancel()
    assert known(seen) == [("AAPL", n) for n in range(1, 6)]


# ---- where the service has its prices


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_without_a_url_the_service_says_where_its_prices_are(
    stage: Any, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedded server has another address after each start, so it is asked for each time."""
    folder = stage.folder()
    service = stage.program("run", folder=folder)
    stage.eventually(service.answers, what="the service")
    monkeypatch.setenv("MDSERVICE_SOCKET", str(service.socket))

    async def scene() -> None:
        async with mdservice.open_prices() as prices:
            first = await take(prices, 200)
            url, followed = prices.status().url, prices.status().service
            assert url == service.status()["redis"]["url"]
            service.process.kill()
            await until(lambda: not prices.status().connected)
            stage.program("run", folder=folder)
            await until(lambda: prices.status().service != followed)
            await until(lambda: prices.status().connected)
            assert prices.status().url != url
            await take(prices, prices.status().waiting + 50)
            symbols = {quote.symbol for quote in first}
            await until(lambda: symbols <= {quote.symbol for quote in prices.prices()})

    async def limited() -> None:
        with anyio.fail_after(patient(90)):
            await scene()

    anyio.run(limited, backend=loop)


@on_both_loops
async def test_what_the_feed_brings_arrives_quote_by_quote(publisher: Publisher) -> None:
    folder = Path(tempfile.mkdtemp(prefix="md-"))
    async with open_simulator(SimulatorConfig(rate=0)) as simulator:
        settings = mdservice.Settings(
            feed="simulator",
            feed_url=simulator.url,
            redis_url=publisher.url,
            symbols=("AAPL", "MSFT"),
            event_log="log",
            socket=folder / "md.sock",
        )
        for log in (None, "log"):
            async with mdservice.open_service(settings) as service:
                await until(lambda s=service: s.readiness().ready)  # type: ignore[misc]
                async with mdservice.open_prices(publisher.url, ["AAPL"], event_log=log) as prices:
                    await until(lambda p=prices: p.status().connected)  # type: ignore[misc]
                    before = prices.status().waiting
                    await take(prices, before)
                    simulator.send_quotes(
                        [SimQuote(s, n, n + 0.5) for n in range(1, 501) for s in ("AAPL", "MSFT")]
                    )
                    quotes = await take(prices, 500)
                    assert known(quotes) == [("AAPL", n) for n in range(1, 501)]
                    assert [quote.bid for quote in quotes] == list(range(1, 501))
                    assert quotes[-1].price == service.latest("AAPL").price  # type: ignore[union-attr]
    shutil.rmtree(folder)


async def test_without_a_url_and_without_a_service_the_error_says_what_to_do(
    tmp_path: Path,
) -> None:
    error = await refused(socket=tmp_path / "none.sock", connect_limit_s=0.2)
    assert isinstance(error, ConfigurationError)
    assert "none.sock" in str(error)
    assert "MDSERVICE_SOCKET" in str(error)


async def test_what_is_no_service_is_reported(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        error = await refused(socket=tmp_path / "s", connect_limit_s=2.5)
    assert isinstance(error, ConfigurationError)
    assert "does not answer" in str(error)


async def test_a_socket_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(await refused(socket="/" + "x" * 200), ConfigurationError)
    monkeypatch.setenv("MDSERVICE_SOCKET", "")
    error = await refused()
    assert isinstance(error, ConfigurationError)
    assert "MDSERVICE_SOCKET" in str(error)


def test_importing_costs_no_redis() -> None:
    code = "import mdservice, sys; print(sorted({'redis', 'hiredis', 'anyio'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"
