"""``rediss://``: the same store through TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import mdservice
from mdservice.errors import StoreUnavailable
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.publish.store import Message
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.store import RedisPriceStore
from tests.batches import write_batch
from tests.conftest import free_port
from tests.integration.conftest import patient
from tests.integration.sentinels import Server

LIMIT_S = 60.0
_CA_FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key)]
    command += ["-out", str(cert)]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)
    return cert, key


class TlsFront:
    """Ends TLS in front of a server, one question and answer after the other."""

    def __init__(self, target: Path, certificate: tuple[Path, Path]) -> None:
        self._target = str(target)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            # A client that does not trust the certificate hangs up: on to the next.
            with suppress(OSError), socket.socket(socket.AF_UNIX) as server:
                server.connect(self._target)
                plain.settimeout(LIMIT_S)
                with self._context.wrap_socket(plain, server_side=True) as client:
                    self._pass_on(client, server)

    def _pass_on(self, client: ssl.SSLSocket, server: socket.socket) -> None:
        client.settimeout(0.02)
        server.settimeout(0.02)
        while not self._closing.is_set():  # a test that fails leaves its connection open
            for source, target in ((client, server), (server, client)):
                with suppress(TimeoutError):
                    data = source.recv(1 << 20)
                    if not data:
                        return
                    target.settimeout(LIMIT_S)
                    target.sendall(data)
                    target.settimeout(0.02)

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def front(valkey: Any, certificate: tuple[Path, Path]) -> Iterator[TlsFront]:
    front = TlsFront(valkey.path, certificate)
    try:
        yield front
    finally:
        front.close()


async def test_a_batch_through_tls(
    valkey: Any, front: TlsFront, certificate: tuple[Path, Path]
) -> None:
    url = f"rediss://localhost:{front.port}?ssl_ca_certs={certificate[0]}"
    store = RedisPriceStore(url, instance="one")
    messages = [Message("price.updated", b"x" * 200, "A")] * 2_000
    with trio.fail_after(patient(LIMIT_S)):
        await store.connect()
        await store.write(write_batch(1, {"A": b"x"}, messages))
        assert await store.last_batch() == 1
        await store.aclose()
    with valkey.client() as client:
        assert client.get("price:A") == b"x"


async def test_a_certificate_of_an_unknown_authority_is_not_trusted(front: TlsFront) -> None:
    store = RedisPriceStore(f"rediss://localhost:{front.port}", instance="one")
    with trio.fail_after(patient(LIMIT_S)):
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            await store.connect()


async def test_a_server_without_tls_is_named_as_the_likely_reason(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = free_port(stack)
        server = Server(port, tmp_path, "--port", str(port), "--bind", "127.0.0.1", "--save", "")
        stack.callback(server.kill)
        server.start()
        store = RedisPriceStore(f"rediss://127.0.0.1:{port}", instance="one")
        with trio.fail_after(patient(LIMIT_S)):
            with pytest.raises(StoreUnavailable, match="if the server has no TLS, use redis://"):
                await store.connect()


async def test_a_server_that_wants_tls_is_named_as_the_likely_reason(front: TlsFront) -> None:
    store = RedisPriceStore(f"redis://127.0.0.1:{front.port}", instance="one")
    with trio.fail_after(patient(LIMIT_S)):
        with pytest.raises(StoreUnavailable, match="if the server wants TLS, use rediss://"):
            await store.connect()


@pytest.mark.parametrize("variable", _CA_FILES)
async def test_a_certificate_that_the_environment_names_is_trusted(
    front: TlsFront,
    certificate: tuple[Path, Path],
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for other in ("SSL_CERT_DIR", *_CA_FILES):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(certificate[0]))
    store = RedisPriceStore(f"rediss://localhost:{front.port}", instance="one")
    with trio.fail_after(patient(LIMIT_S)):
        await store.connect()
        await store.ping()
        await store.aclose()


async def test_readers_hear_through_tls(
    valkey: Any, front: TlsFront, certificate: tuple[Path, Path]
) -> None:
    url = f"rediss://localhost:{front.port}?ssl_ca_certs={certificate[0]}"
    payload = encode_quote(Quote("AAPL", 1.0, 2.0, 1, 1, 1, 1, 1))
    with valkey.client() as client, trio.fail_after(patient(LIMIT_S)):
        async with mdservice.open_prices(url, event_log="log") as prices:
            for _ in range(2_000):
                client.xadd("log", {"symbol": "AAPL", "data": payload})
                client.xadd("log", {"symbol": "MSFT", "data": payload.replace(b"AAPL", b"MSFT")})
            assert {(await anext(prices)).symbol for _ in range(2)} == {"AAPL", "MSFT"}
        address = RedisAddress(url, timeout_s=5.0)
        with closing(await RedisConnection.open(address, "test")) as connection:
            await connection.call(pack(b"SUBSCRIBE", b"c"))
            assert await connection.receive(0.1) == []
            client.publish("c", b"x" * 100_000)
            # The two may come in one read or in several.
            heard = await connection.receive(5.0, pack(b"PING"))
            while len(heard) < 2 and (more := await connection.receive(5.0)):
                heard += more
            assert heard == [[b"message", b"c", b"x" * 100_000], [b"pong", b""]]


async def test_certificates_are_loaded_again_after_a_change(
    front: TlsFront, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(certificate[0].read_bytes())
    address = RedisAddress(f"rediss://localhost:{front.port}?ssl_ca_certs={trusted}", timeout_s=5.0)
    with trio.fail_after(patient(LIMIT_S)):
        (await RedisConnection.open(address, "test")).close()
        assert address.tls_context() is address.tls_context()
        trusted.write_text("no certificate")
        with pytest.raises(StoreUnavailable):
            await RedisConnection.open(address, "test")
        trusted.unlink()
        with pytest.raises(StoreUnavailable, match=f"No such file or directory: {trusted}"):
            await RedisConnection.open(address, "test")
        trusted.write_bytes(certificate[0].read_bytes())
        (await RedisConnection.open(address, "test")).close()
