"""The whole service with a private authority's certificates, and behind a proxy."""

from __future__ import annotations

import importlib.util
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.from_thread
import pytest
from anyio.abc import ByteStream, SocketStream
from anyio.streams.tls import TLSListener

from tests.positions.web import open_web

LIMIT_S = 60.0
BYTES = 65_536
FAR = "alpaca.example"
HELD = {"AAPL": (10, "150.00")}
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CONSENT = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one for localhost and for the far host, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key)]
    command += ["-out", str(cert)]
    command += ["-addext", f"subjectAltName=DNS:localhost,DNS:{FAR},IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)
    return cert, key


class TlsFront(TLSListener):
    """Ends TLS, and forwards to a port of this machine or to a UNIX socket."""

    async def handle_handshake_error(self, exc: BaseException, stream: Any) -> None:
        """A client that does not trust the certificate hangs up."""
        await anyio.aclose_forcefully(stream)


class Server:
    """A forwarder on the simulators' loop.

    Attributes:
        served: Connections, or for a proxy requests, that came.
        refusing: Whether the proxy answers 502.
    """

    def __init__(self, portal: anyio.from_thread.BlockingPortal, target: int | Path) -> None:
        self._portal = portal
        self.target = target
        self.port = 0
        self.served = 0
        self.refused = 0
        self.refusing = False
        self._cuts: set[anyio.CancelScope] = set()

    @asynccontextmanager
    async def front(self, certificate: tuple[Path, Path]) -> AsyncIterator[Server]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        async with self._listening(self._forward, context):
            yield self

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[Server]:
        async with self._listening(self._answer, None):
            yield self

    @asynccontextmanager
    async def _listening(self, handler: Any, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
        plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = plain.extra(anyio.abc.SocketAttribute.local_port)
        listener: Any = plain if tls is None else TlsFront(plain, tls, standard_compatible=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handler)
            yield
            tasks.cancel_scope.cancel()
        await listener.aclose()

    def cut(self) -> None:
        """Close every connection that is forwarded."""

        def cancel() -> None:
            for scope in list(self._cuts):
                scope.cancel()

        self._portal.call(cancel)

    async def _forward(self, client: ByteStream, first: bytes = b"") -> None:
        self.served += 1
        with anyio.CancelScope() as scope, suppress(anyio.BrokenResourceError, OSError):
            self._cuts.add(scope)
            async with client, await self._connect() as server:
                if first:
                    await server.send(first)
                async with anyio.create_task_group() as tasks:

                    async def copy(source: ByteStream, target: ByteStream) -> None:
                        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                            while True:
                                await target.send(await source.receive(BYTES))
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(copy, client, server)
                    tasks.start_soon(copy, server, client)
        self._cuts.discard(scope)

    async def _connect(self) -> SocketStream:
        if isinstance(self.target, int):
            return await anyio.connect_tcp("127.0.0.1", self.target)
        return await anyio.connect_unix(str(self.target))  # type: ignore[return-value]

    async def _answer(self, client: ByteStream) -> None:
        head = b""
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while b"\r\n\r\n" not in head:
                head += await client.receive(BYTES)
            if self.refusing:
                self.refused += 1
                await client.send(BAD_GATEWAY)
            elif head.startswith(b"CONNECT "):
                await client.send(CONSENT)
                await self._forward(client)
            else:  # the whole URL, and one request to each connection
                line, rest = head.split(b"\r\n", 1)
                method, url, version = line.split(b" ")
                path = b"/" + url.split(b"/", 3)[3]
                line = b" ".join((method, path, version))
                await self._forward(client, line + b"\r\nConnection: close\r\n" + rest)
        await client.aclose()


@pytest.fixture
def servers(
    stage: Any, simulator_loop: anyio.from_thread.BlockingPortal, certificate: tuple[Path, Path]
) -> Iterator[Any]:
    """Opens fronts and proxies, and closes them when the processes of the stage have ended."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def opened(kind: str, target: int | Path) -> Server:
            server = Server(simulator_loop, target)
            opening = server.proxy() if kind == "proxy" else server.front(certificate)
            return stack.enter_context(simulator_loop.wrap_async_context_manager(opening))

        yield opened
        stage.close()


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def outcomes(check: Any) -> dict[str, str]:
    """What each part came to, by its name."""
    found = {line[6:18].strip(): line[:5].strip() for line in check.stdout.splitlines()}
    assert set(found) >= {"settings", "socket", *PARTS}, check.said
    return found


EVENTS = ("redis_failed", "feed_failed", "first_prices_failed", "positions_failed")
PARTS = ("feed", "data REST", "clock", "redis", "positions")
OTHERS = {"crypto": "v1beta3/crypto/us", "options": "v1beta1/indicative", "news": "v1beta1/news"}
"""The path of each other stream."""


@pytest.mark.parametrize("driver", ["websockets", "alpaca-py"])
def test_a_private_authority_is_trusted_by_every_part_or_by_none(
    driver: str, stage: Any, servers: Any, certificate: tuple[Path, Path]
) -> None:
    simulator, valkey = stage.simulator(positions=HELD), stage.valkey()
    feed, rest = (servers("front", port_of(simulator.url)) for _ in range(2))
    store = servers("front", valkey.path)
    with open_web() as web:
        web.hold([{"symbol": "AAPL", "qty": "10", "avg_entry_price": "150"}])
        positions = servers("front", web.server_port)
        env = stage.account(
            f"wss://localhost:{feed.port}/v2/iex",
            f"rediss://localhost:{store.port}",
            **{
                f"MDSERVICE_{name.upper()}_URL": f"wss://localhost:{feed.port}/{path}"
                for name, path in OTHERS.items()
            },
            MDSERVICE_REST_URL=f"https://localhost:{rest.port}",
            MDSERVICE_TRADING_URL=f"https://localhost:{rest.port}",
            MDSERVICE_DRIVER=driver,
            MDSERVICE_SYMBOLS="MSFT",
            MDSERVICE_POSITIONS="alpaca"
            if driver == "websockets"
            else f"https://localhost:{positions.port}/",
            MDSERVICE_POSITIONS_INTERVAL="0.2",
        )
        trusting = {**env, "SSL_CERT_FILE": str(certificate[0])}

        # Without the variable each part fails, goes on, and says what to set.
        service, check = stage.program("run", **env), stage.program("check", **env)
        assert check.code() == 1, check.said
        failed = {part for part, found in outcomes(check).items() if found == "FAIL"}
        assert failed == {*PARTS, *OTHERS, *(f"{name} REST" for name in OTHERS)}
        for line in check.stdout.splitlines():
            assert not line.startswith("FAIL") or "SSL_CERT_FILE" in line, line
        service.wait_answers()
        stage.eventually(
            lambda: all(event in service.stderr for event in EVENTS), what=lambda: service.said
        )
        for line in service.stderr.splitlines():
            if "CERTIFICATE_VERIFY_FAILED" in line:
                assert "SSL_CERT_FILE" in line, line
        status = service.status()
        assert "SSL_CERT_FILE" in status["feed"]["last_error"]
        assert "SSL_CERT_FILE" in status["positions"]["last_error"]
        assert "SSL_CERT_FILE" in " ".join(service.ready()[1])
        assert service.end() == 0, service.said

        # With it each part works, in both.
        check = stage.program("check", **trusting)
        assert check.code() == 0, check.said
        assert not {part for part, found in outcomes(check).items() if found != "ok"}, check.said
        service = stage.program("run", **trusting).wait_ready()
        stage.eventually(lambda: simulator.subscribed() == {"AAPL", "MSFT"}, what=service.status)
        simulator.quotes(("AAPL", 150, 151))
        stage.eventually(lambda: service.counter("events_published") >= 1, what=service.status)
        with valkey.client() as client:
            assert client.get("price:AAPL")
        report = service.status()
        assert (report["feed"]["driver"], report["positions"]["state"]) == (driver, "ok")
        assert "CERTIFICATE" not in service.stderr
        assert "market_hours_unknown" not in service.stderr
        assert service.end() == 0, service.said


@pytest.mark.skipif(
    importlib.util.find_spec("socksio") is not None
    and importlib.util.find_spec("python_socks") is not None,
    reason="the extra socks is installed",
)
@pytest.mark.parametrize("command", ["run", "check", "gateway"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks://me:hidden-word@127.0.0.1:1080/"),
        ("https_proxy", "socks5://127.0.0.1:1080"),
    ],
)
def test_a_socks_proxy_without_the_extra_is_exit_78(
    command: str, variable: str, value: str, stage: Any
) -> None:
    env = {
        "ALPACA_API_KEY": "PKE2E",
        "ALPACA_SECRET_KEY": "e2e-secret",
        "MDSERVICE_REDIS_URL": stage.valkey().url,
        "MDSERVICE_POSITIONS": "alpaca",
        variable: value,
    }
    program = stage.program(command, **env)
    assert program.code() == 78, program.said
    assert variable in program.said
    assert "mdservice[socks]" in program.said
    assert "Traceback" not in program.said
    assert "hidden-word" not in program.said
    if command == "check":
        found = outcomes(program)
        assert {part: found[part] for part in PARTS} == {
            "feed": "FAIL", "data REST": "FAIL", "clock": "FAIL", "redis": "ok",
            "positions": "FAIL",
        }  # fmt: skip


@pytest.mark.parametrize(("driver", "tls"), [("websockets", False), ("alpaca-py", True)])
def test_a_proxy_that_answers_502_for_some_time_is_waited_for(
    driver: str, tls: bool, stage: Any, servers: Any, certificate: tuple[Path, Path]
) -> None:
    simulator, valkey = stage.simulator(positions=HELD), stage.valkey()
    port = port_of(simulator.url)
    proxy = servers("proxy", servers("front", port).port if tls else port)
    proxy.refusing = True
    s = "s" * tls
    variable = f"HTTP{s.upper()}_PROXY"
    service = stage.service(
        f"ws{s}://{FAR}/v2/iex",
        valkey,
        MDSERVICE_REST_URL=f"http{s}://{FAR}",
        MDSERVICE_TRADING_URL=f"http{s}://{FAR}",
        MDSERVICE_DRIVER=driver,
        MDSERVICE_SYMBOLS="MSFT",
        MDSERVICE_POSITIONS="alpaca",
        MDSERVICE_POSITIONS_INTERVAL="0.2",
        SSL_CERT_FILE=str(certificate[0]),
        **{variable: f"http://127.0.0.1:{proxy.port}"},
    ).wait_answers()

    def waits() -> None:
        before, until = proxy.refused, time.monotonic() + 1.0
        stage.eventually(lambda: proxy.refused > before + 5 and time.monotonic() > until)
        # Both are asked again while this looks, so the error is read with the state.
        status = service.until(
            lambda s: (
                not s["feed"]["connected"]
                and "502" in (s["feed"]["last_error"] or "")
                and "502" in (s["positions"]["last_error"] or "")
                and s
            )
        )
        assert variable in status["feed"]["last_error"]
        assert not service.ready()[0]

    waits()
    proxy.refusing = False
    service.wait_ready()
    stage.eventually(lambda: simulator.subscribed() == {"AAPL", "MSFT"}, what=service.status)
    simulator.quotes(("AAPL", 150, 151))
    stage.eventually(lambda: service.counter("events_published") >= 1, what=service.status)

    # Once more, in the middle of the work.
    proxy.refusing = True
    proxy.cut()
    waits()
    proxy.refusing = False
    service.wait_ready()
    stage.eventually(lambda: simulator.subscribed() == {"AAPL", "MSFT"}, what=service.status)
    service.until(lambda status: status["positions"]["state"] == "ok")
    assert service.counter("reconnects") >= 1
    assert service.end() == 0, service.said
    assert "Traceback" not in service.said
