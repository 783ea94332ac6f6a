"""TLS from end to end: sentinels with their servers, and a cluster.

The server that the tests bring has no TLS, so these need a ``redis-server`` or ``valkey-server``
with TLS on the PATH (Debian: ``apt-get install redis-server``), and are skipped without one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import attrs
import pytest
import redis

import mdservice
from mdservice.errors import StoreError
from mdservice.redis_io.store import RedisPriceStore
from mdservice.settings import Settings
from mdservice.testing import FakeDriver
from tests.cluster import wait_for
from tests.conftest import free_port
from tests.integration.conftest import patient
from tests.integration.sentinels import SERVICE

LIMIT_S = 90.0
SYMBOLS = ("AAPL", "MSFT", "SPY", "TSLA", "F")


@cache
def tls_program() -> str | None:
    """A server program with TLS, or None."""
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None and shutil.which("openssl") is not None:
            # A server without TLS refuses the option; one with it wants a certificate.
            told = subprocess.run(
                [path, "--port", "0", "--tls-port", "1"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LIMIT_S,
                check=False,
            ).stdout
            if b"tls-cert-file" in told:
                return path
    return None


pytestmark = pytest.mark.skipif(tls_program() is None, reason="needs a server with TLS")


@attrs.define
class Servers:
    """Servers with TLS on ports of their own, and nothing without it."""

    folder: Path
    ports: ExitStack
    ends: ExitStack

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    def make_certificate(self) -> None:
        """A self-signed one for loopback."""
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-keyout", str(self.folder / "key.pem"), "-out", str(self.certificate)]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)

    def port(self) -> int:
        return free_port(self.ports)

    def start(self, port: int, *options: str, config: str | None = None) -> None:
        """Run one; it answers when this returns."""
        folder = self.folder / str(port)
        folder.mkdir()
        lines = [
            *("port 0", f"tls-port {port}", "bind 127.0.0.1", 'save ""', f"dir {folder}"),
            *(f"tls-cert-file {self.certificate}", f"tls-key-file {self.folder / 'key.pem'}"),
            *(f"tls-ca-cert-file {self.certificate}", "tls-auth-clients no"),
            *("tls-replication yes", "tls-cluster yes", "loglevel warning"),
            *([config] if config is not None else []),
        ]
        (folder / "redis.conf").write_text("\n".join(lines) + "\n")
        program = tls_program()
        assert program is not None
        process = subprocess.Popen(
            [program, str(folder / "redis.conf"), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self.ends.callback(process.wait)
        self.ends.callback(process.kill)
        wait_for(lambda: self.ask(port, "PING"), f"{port} answers")

    def ask(self, port: int, *words: Any) -> Any:
        """The reply to a command."""
        with redis.Redis(
            port=port, ssl=True, ssl_ca_certs=str(self.certificate), socket_timeout=10, retry=None
        ) as client:
            return client.execute_command(*words)

    def is_primary(self, port: int) -> bool:
        """Whether it says so; while its role changes, it closes connections."""
        with suppress(redis.RedisError):
            return bool(self.ask(port, "ROLE")[0] == b"master")
        return False


@pytest.fixture
def servers() -> Iterator[Servers]:
    with TemporaryDirectory(prefix="tls-") as name, ExitStack() as ports, ExitStack() as ends:
        made = Servers(Path(name), ports, ends)
        made.make_certificate()
        yield made


@pytest.fixture
def sentinels(servers: Servers) -> tuple[Servers, int, int, int]:
    """A sentinel, a primary and its replica: the servers, and the port of each."""
    sentinel, primary, replica = servers.port(), servers.port(), servers.port()
    servers.start(primary)
    servers.start(replica, config=f"replicaof 127.0.0.1 {primary}")
    wait_for(lambda: servers.ask(replica, "ROLE")[3] == b"connected", "the replica follows")
    watch = f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 1"
    servers.start(sentinel, "--sentinel", config=watch)
    wait_for(lambda: servers.ask(sentinel, "SENTINEL", "REPLICAS", SERVICE), "it knows the replica")
    return servers, sentinel, primary, replica


@pytest.fixture
def cluster(servers: Servers) -> tuple[Servers, list[int]]:
    """Three nodes that share the slots: the servers and the ports."""
    ports, buses = [servers.port() for _ in range(3)], [servers.port() for _ in range(3)]
    for port, bus in zip(ports, buses, strict=True):
        servers.start(port, config=f"cluster-enabled yes\ncluster-port {bus}")
    bounds = [16_384 * place // 3 for place in range(4)]
    for place, port in enumerate(ports):
        servers.ask(port, "CLUSTER", "SET-CONFIG-EPOCH", place + 1)
        servers.ask(port, "CLUSTER", "ADDSLOTSRANGE", bounds[place], bounds[place + 1] - 1)
        for other, bus in zip(ports[:place], buses, strict=False):
            servers.ask(port, "CLUSTER", "MEET", "127.0.0.1", other, bus)

    def works(port: int) -> bool:
        state = str(servers.ask(port, "CLUSTER", "INFO"))
        return "cluster_state:ok" in state and "cluster_known_nodes:3" in state

    for port in ports:
        wait_for(lambda port=port: works(port), f"{port} sees a working cluster")
        wait_for(lambda port=port: len(servers.ask(port, "CLUSTER", "SLOTS")) == 3, "all slots")
    return servers, ports


@asynccontextmanager
async def publishing(url: str) -> AsyncIterator[Callable[[int], None]]:
    """A service that writes there; the function has its feed send a quote of each symbol."""
    feed = FakeDriver()
    settings = Settings(symbols=",".join(SYMBOLS), redis_url=url, mute_after=80_000.0)
    async with mdservice.open_service(settings, drivers=[feed]) as service:

        def send(bid: int) -> None:
            feed.send_quotes([{"S": symbol, "bp": bid, "ap": bid + 1} for symbol in SYMBOLS])

        while not service.readiness().ready:
            await anyio.sleep(0.05)
        yield send


async def hear(prices: Any, bid: int) -> None:
    """Read until each symbol has this bid."""
    left = set(SYMBOLS)
    while left:
        quote = await anext(prices)
        if quote.bid == bid:
            left.discard(quote.symbol)


@contextmanager
def limited() -> Iterator[None]:
    with anyio.fail_after(patient(LIMIT_S)):
        yield


def test_a_failover_behind_sentinels_with_tls(sentinels: tuple[Servers, int, int, int]) -> None:
    servers, sentinel, _, replica = sentinels
    url = f"redis+sentinel://127.0.0.1:{sentinel}/{SERVICE}?ssl=true"
    url += f"&ssl_ca_certs={servers.certificate}"

    async def body() -> None:
        with limited():
            async with publishing(url) as send, mdservice.open_prices(url, SYMBOLS) as prices:
                send(1)
                await hear(prices, 1)
                servers.ask(sentinel, "SENTINEL", "FAILOVER", SERVICE)
                while not servers.is_primary(replica):
                    await anyio.sleep(0.05)
                send(2)
                await hear(prices, 2)  # perhaps still from the old primary
                while json.loads(servers.ask(replica, "GET", "price:AAPL"))["bid"] != 2:
                    await anyio.sleep(0.05)

    anyio.run(body, backend="trio")


def test_a_cluster_with_tls(cluster: tuple[Servers, list[int]]) -> None:
    servers, ports = cluster
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    url = f"redis+cluster://{hosts}?ssl=true&ssl_ca_certs={servers.certificate}"

    async def body() -> None:
        with limited():
            async with publishing(url) as send, mdservice.open_prices(url, SYMBOLS) as prices:
                for bid in (1, 2, 3):
                    send(bid)
                    await hear(prices, bid)

    anyio.run(body, backend="trio")


@pytest.mark.parametrize("scheme", ["sentinel", "cluster"])
def test_what_is_missing_is_named(scheme: str, request: pytest.FixtureRequest) -> None:
    """A URL without TLS, and one that does not trust the certificate."""
    servers, ports, *_ = request.getfixturevalue(f"{scheme}s" if scheme == "sentinel" else scheme)
    port = ports if isinstance(ports, int) else ports[0]
    path = f"/{SERVICE}" if scheme == "sentinel" else ""

    async def reason(query: str) -> str:
        store = RedisPriceStore(f"redis+{scheme}://127.0.0.1:{port}{path}{query}", instance="one")
        with limited(), pytest.raises(StoreError) as caught:
            await store.connect()
        await store.aclose()
        return str(caught.value)

    assert "certificate" in anyio.run(reason, "?ssl=true", backend="trio").lower()
    assert "if the server wants TLS, use rediss://" in anyio.run(reason, "", backend="trio")
    assert servers.certificate.exists()
