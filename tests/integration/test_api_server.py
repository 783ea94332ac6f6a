"""The API on its real listeners, on trio and on asyncio."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from mdservice.errors import ConfigurationError, SocketInUse
from mdservice.http_api.listeners import unix_listener
from mdservice.http_api.server import ApiAddresses, serve_api
from mdservice.testing.fake_service import FakeService
from tests.integration.conftest import patient

BASE = "/api/v1/market-data"
TOKEN = "s3cret-token"
LIMIT_S = 60


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    def run_scenario(scenario: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                await scenario()

        anyio.run(bounded, backend=request.param)

    return run_scenario


Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="md-") as folder:
        yield Path(folder, "mdservice.sock")
        assert list(Path(folder).iterdir()) == [], "something was left behind"


@asynccontextmanager
async def serving(
    service: FakeService, path: Path, http: str | None = None, token: str | None = None
) -> AsyncIterator[ApiAddresses]:
    async with anyio.create_task_group() as tasks:

        async def serve(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            await serve_api(service, socket=path, http=http, token=token, task_status=task_status)

        yield await tasks.start(serve)
        tasks.cancel_scope.cancel()


def over_socket(path: Path) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    return httpx.AsyncClient(transport=transport, base_url="http://mdservice", timeout=30)


def over_tcp(addresses: ApiAddresses, token: str | None = None) -> httpx.AsyncClient:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=f"http://{addresses.http}", headers=headers, timeout=30)


async def next_event(lines: AsyncIterator[str]) -> tuple[str, dict[str, Any]]:
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            return name, json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended")


async def readers_become(service: FakeService, count: int) -> None:
    while service.readers != count:
        await anyio.sleep(0.005)


def test_answers_over_the_socket_without_a_token(run: Run, path: Path) -> None:
    async def scenario() -> None:
        service = FakeService()
        service.publish("BTC/USD", 0.1, 0.2)
        async with serving(service, path, token=TOKEN) as addresses:
            assert addresses == ApiAddresses(path, None)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with over_socket(path) as client:
                assert (await client.get("/health/ready")).json()["ready"] is True
                answer = await client.post(f"{BASE}/subscribe", json={"symbols": ["AAPL"]})
                assert answer.json()["status"] == "subscribed"
                price = await client.get(f"{BASE}/prices/BTC%2FUSD")
                assert b'"price":0.15,' in price.content
                assert "mdservice_feed_connected 1.0" in (await client.get("/metrics")).text
                assert (await client.get("/status")).json()["symbols"] == 1
                assert "server" not in price.headers

    run(scenario)


def test_events_arrive_one_by_one_while_the_stream_stays_open(run: Run, path: Path) -> None:
    async def scenario() -> None:
        service = FakeService()
        service.publish("AAPL", 1.0, 2.0)
        async with (
            serving(service, path),
            over_socket(path) as client,
            client.stream("GET", f"{BASE}/stream?symbols=AAPL") as answer,
        ):
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            name, event = await next_event(lines)
            assert (name, event["price"], event["seq"]) == ("price.updated", 1.5, 1)
            for seq in (2, 3, 4):
                service.publish("AAPL", 1.0, 2.0)
                assert (await next_event(lines))[1]["seq"] == seq
            service.close()
            assert [line async for line in lines if line] == []
            # The same connection serves on.
            assert (await client.get("/health/live")).status_code == 200

    run(scenario)


def test_a_client_that_leaves_the_stream_is_forgotten(run: Run, path: Path) -> None:
    async def scenario() -> None:
        service = FakeService()
        async with serving(service, path), over_socket(path) as client:
            async with client.stream("GET", f"{BASE}/stream"):
                await readers_become(service, 1)
            await readers_become(service, 0)

    run(scenario)


def test_open_streams_end_in_order_and_at_once_with_the_server(run: Run, path: Path) -> None:
    async def scenario() -> None:
        service = FakeService()
        async with over_socket(path) as client, anyio.create_task_group() as tasks:
            ended = anyio.Event()

            async def read() -> None:
                async with client.stream("GET", f"{BASE}/stream") as answer:
                    # A stream that is cut off would raise httpx.RemoteProtocolError.
                    assert [line async for line in answer.aiter_lines()] == []
                ended.set()

            async with serving(service, path):
                tasks.start_soon(read)
                await readers_become(service, 1)
                begin = time.monotonic()
            assert time.monotonic() - begin < patient(0.4), "the grace period was used up"
            await ended.wait()
        assert service.readers == 0

    run(scenario)


def test_a_client_that_does_not_read_delays_neither_others_nor_the_end(
    run: Run, path: Path
) -> None:
    async def scenario() -> None:
        service = FakeService()
        for number in range(5_000):
            service.publish(f"S{number}", 1.0, 2.0)
        with socket.socket(socket.AF_UNIX) as stalled:
            async with serving(service, path), over_socket(path) as client:
                stalled.connect(str(path))
                stalled.send(f"GET {BASE}/stream HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await readers_become(service, 1)
                for _ in range(20):
                    service.publish("S0", 1.0, 2.0)
                    assert (await client.get("/health/live")).status_code == 200
                assert service.readers == 1
                begin = time.monotonic()
            assert time.monotonic() - begin < patient(1.5)
        assert service.readers == 0

    run(scenario)


def test_idle_and_silent_connections_do_not_delay_the_end(run: Run, path: Path) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as half:
            async with over_socket(path) as client:
                async with serving(FakeService(), path):
                    assert (await client.get("/health/live")).status_code == 200
                    silent.connect(str(path))
                    half.connect(str(path))
                    half.send(b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab")
                    assert (await client.get("/health/live")).status_code == 200
                    begin = time.monotonic()
                assert time.monotonic() - begin < patient(1.5)

    run(scenario)


def test_a_body_too_long_is_answered_and_the_server_goes_on(run: Run, path: Path) -> None:
    async def scenario() -> None:
        async with serving(FakeService(), path), over_socket(path) as client:
            for url in (f"{BASE}/subscribe", "/nothing"):
                answer = await client.post(url, content=b"x" * 5_000_000)
                assert answer.status_code == 413
                assert "longer than" in answer.json()["detail"]
            assert (await client.get("/health/live")).status_code == 200

    run(scenario)


def test_what_is_not_http_does_no_harm(run: Run, path: Path, caplog: Any) -> None:
    async def scenario() -> None:
        async with serving(FakeService(), path), over_socket(path) as client:
            for noise in (b"\x16\x03\x01 hello\r\n\r\n", b"GET /" + b"a" * 70_000, b""):
                async with await anyio.connect_unix(path) as stream:
                    await stream.send(noise)
                    await stream.send_eof()
                    while True:
                        try:
                            await stream.receive()
                        except (anyio.EndOfStream, anyio.BrokenResourceError):
                            break
            assert (await client.get("/health/live")).status_code == 200

    run(scenario)
    assert caplog.text == ""


def test_a_second_service_is_refused_and_the_first_goes_on(run: Run, path: Path) -> None:
    async def scenario() -> None:
        async with serving(FakeService(), path):
            with pytest.raises(SocketInUse, match="MDSERVICE_SOCKET"):
                await serve_api(FakeService(), socket=path)
            async with over_socket(path) as client:
                assert (await client.get("/health/live")).status_code == 200

    run(scenario)


def test_over_tcp_the_token_is_asked_for_except_by_health(run: Run, path: Path) -> None:
    async def scenario() -> None:
        service = FakeService()
        async with serving(service, path, "127.0.0.1:0", TOKEN) as addresses:
            assert addresses.http is not None
            assert addresses.http.startswith("127.0.0.1:")
            assert not addresses.http.endswith(":0")
            async with over_tcp(addresses) as client:
                assert (await client.get("/health/live")).status_code == 200
                assert (await client.get("/health/ready")).status_code == 200
                for url in ("/status", "/metrics", f"{BASE}/stream", "/openapi.json"):
                    answer = await client.get(url)
                    assert answer.status_code == 401
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                answer = await client.post(f"{BASE}/subscribe", content=b"x" * 3_000_000)
                assert answer.status_code == 401
            async with over_tcp(addresses, TOKEN) as client:
                assert (await client.get("/status")).status_code == 200
            async with over_tcp(addresses, "wrong") as client:
                assert (await client.get("/status")).status_code == 401
            async with over_socket(path) as client:
                assert (await client.get("/status")).status_code == 200

    run(scenario)


def test_on_loopback_no_token_is_needed(run: Run, path: Path) -> None:
    async def scenario() -> None:
        async with (
            serving(FakeService(), path, "localhost:0") as addresses,
            over_tcp(addresses) as client,
        ):
            assert (await client.get("/status")).status_code == 200

    run(scenario)


def test_listens_on_ipv6(run: Run, path: Path) -> None:
    async def scenario() -> None:
        async with serving(FakeService(), path, "[::1]:0") as addresses:
            assert addresses.http is not None
            assert addresses.http.startswith("[::1]:")
            async with over_tcp(addresses) as client:
                assert (await client.get("/health/live")).status_code == 200

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    run(scenario)


def test_a_port_in_use_is_a_clear_error_and_frees_the_socket(run: Run, path: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            http = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(ConfigurationError, match=f"{http}: the port is in use"):
                await serve_api(FakeService(), socket=path, http=http)
        assert not path.exists()

    run(scenario)


@pytest.mark.parametrize(
    ("http", "token", "reason"),
    [
        ("0.0.0.0:0", None, "MDSERVICE_API_TOKEN"),
        ("[::]:0", None, "MDSERVICE_API_TOKEN"),
        ("0.0.0.0:0", "", "MDSERVICE_API_TOKEN"),
        ("8080", None, "host:port"),
        ("127.0.0.1:http", None, "host:port"),
        ("no-such-host.invalid:80", TOKEN, "is unknown"),
        ("192.0.2.1:0", TOKEN, "no such address"),
    ],
)
def test_a_bad_tcp_address_is_a_clear_error(
    run: Run, path: Path, http: str, token: str | None, reason: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigurationError, match="MDSERVICE_HTTP") as caught:
            await serve_api(FakeService(), socket=path, http=http, token=token)
        assert reason in str(caught.value)
        assert TOKEN not in str(caught.value)

    run(scenario)


def test_callers_beyond_the_limit_wait_for_a_place(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(FakeService(), path), over_socket(path) as client:
            first = await anyio.connect_unix(path)
            second = await anyio.connect_unix(path)
            answered = anyio.Event()

            async def call() -> None:
                assert (await client.get("/health/live")).status_code == 200
                answered.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                with anyio.move_on_after(0.2):
                    await answered.wait()
                assert not answered.is_set()
                await first.aclose()
                await answered.wait()
            await second.aclose()

    monkeypatch.setattr("mdservice.http_api.connections.MAX_CONNECTIONS", 2)
    run(scenario)


def test_callers_are_taken_in_again_once_there_are_descriptors(
    run: Run, path: Path, caplog: Any
) -> None:
    async def scenario() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with serving(FakeService(), path):
            with socket.socket(socket.AF_UNIX) as caller:
                lowest_free = os.dup(caller.fileno())
                os.close(lowest_free)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
                try:
                    caller.connect(str(path))
                    while "cannot accept a connection" not in caplog.text:
                        await anyio.sleep(0.01)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                caller.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                caller.setblocking(False)
                await anyio.wait_readable(caller)
                assert caller.recv(100).startswith(b"HTTP/1.1 200")

    run(scenario)


def test_websockets_are_refused(run: Run, path: Path) -> None:
    async def scenario() -> None:
        upgrade = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "sec-websocket-version": "13",
        }
        async with serving(FakeService(), path, "127.0.0.1:0", TOKEN) as addresses:
            for client in (over_socket(path), over_tcp(addresses)):
                async with client:
                    answer = await client.get(f"{BASE}/stream", headers=upgrade)
                    assert answer.status_code == 403

    run(scenario)


def test_serves_on_a_listener_that_it_is_given(run: Run, path: Path) -> None:
    async def scenario() -> None:
        with unix_listener(path) as listener:
            async with anyio.create_task_group() as tasks:

                async def serve(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
                    await serve_api(
                        FakeService(), socket=path, listener=listener, task_status=task_status
                    )

                await tasks.start(serve)
                async with over_socket(path) as client:
                    assert (await client.get("/health/live")).status_code == 200
                tasks.cancel_scope.cancel()
            assert path.exists(), "its file is the caller's"

    run(scenario)


def test_a_failure_of_the_service_is_500_and_is_logged(run: Run, path: Path, caplog: Any) -> None:
    class Broken(FakeService):
        def status(self) -> Any:
            raise ZeroDivisionError("the snapshot failed")

    async def scenario() -> None:
        async with serving(Broken(), path), over_socket(path) as client:
            answer = await client.get("/status")
            assert answer.status_code == 500
            assert "see its log for the reason" in answer.json()["detail"]
            assert (await client.get("/health/live")).status_code == 200

    run(scenario)
    assert "the snapshot failed" in caplog.text
    assert {record.name for record in caplog.records} == {"hypercorn.error"}


def test_ordinary_calls_are_not_logged(run: Run, path: Path, caplog: Any, capfd: Any) -> None:
    async def scenario() -> None:
        async with serving(FakeService(), path), over_socket(path) as client:
            await client.get("/status")

    with caplog.at_level("DEBUG", "hypercorn"):
        run(scenario)
    assert [record for record in caplog.records if record.name.startswith("hypercorn")] == []
    assert capfd.readouterr() == ("", "")
