"""Both drivers through an HTTP proxy: one that forwards, and those that do not."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import anyio
import pytest

from mdservice.errors import FeedUnavailable
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.sdk_driver import AlpacaPyDriver
from mdservice.feed.alpaca.websockets_driver import WebsocketsDriver
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import Topic
from mdservice.simulator import SimulatorConfig, open_simulator
from tests.integration.conftest import patient

LIMIT_S = 60
FAR = "ws://feed.example:8765/v2/iex"
CREDENTIALS = Credentials("key", "secret")
DRIVERS = [WebsocketsDriver, AlpacaPyDriver]
FORWARDS = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Proxy:
    """Gives one answer to each CONNECT; after a consent it forwards to ``port``."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.port = 0
        self.asked: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://me:hidden-word@127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(LIMIT_S)
            head = b""
            while b"\r\n\r\n" not in head:
                more = client.recv(4096)
                if not more:
                    return
                head += more
            self.asked.append(head)
            client.sendall(self.answer)
            if self.answer != FORWARDS:
                return
            with socket.create_connection(("127.0.0.1", self.port), LIMIT_S) as server:
                back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
                back.start()
                self._copy(client, server)
                back.join(LIMIT_S)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Proxy(getattr(request, "param", FORWARDS))
    monkeypatch.setenv("HTTP_PROXY", made.url)
    yield made
    made.socket.close()


@pytest.mark.parametrize("driver_class", DRIVERS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_driver_logs_in_through_a_proxy(driver_class: type, backend: str, proxy: Proxy) -> None:
    async def main() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            async with open_simulator(SimulatorConfig(rate=0)) as simulator:
                proxy.port = int(simulator.url.split(":")[2].split("/")[0])
                async with driver_class(FAR, CREDENTIALS).connect(Followed(), time.time_ns) as link:
                    await link.subscribe([Topic("quotes", "AAPL")])
                    assert await link.receive()

    anyio.run(main, backend=backend)
    assert proxy.asked
    assert proxy.asked[0].startswith(b"CONNECT feed.example:8765 ")
    assert b"proxy-authorization: basic" in proxy.asked[0].lower()


@pytest.mark.parametrize("driver_class", DRIVERS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize(
    "proxy",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        b"\x00\xff garbage\r\n\r\n",
        b"",
    ],
    ids=["407", "502", "403", "garbage", "closes"],
    indirect=True,
)
def test_a_proxy_that_does_not_forward_is_an_outage_that_names_the_variable(
    driver_class: type, backend: str, proxy: Proxy
) -> None:
    async def main() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            async with driver_class(FAR, CREDENTIALS).connect(Followed(), time.time_ns):
                pass

    with pytest.raises(FeedUnavailable, match="HTTP_PROXY") as caught:
        anyio.run(main, backend=backend)
    assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize("driver_class", DRIVERS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize(
    ("answer", "host"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "localhost"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "localhost"),
        (b"", "localhost"),
        (b"", "a" * 64 + ".localhost"),
        (b"", "a..localhost"),
    ],
    ids=["plain-text", "alert", "closes", "long-label", "empty-label"],
)
def test_whatever_ends_the_opening_of_tls_is_an_outage(
    driver_class: type, backend: str, answer: bytes, host: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(4096)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f"wss://{host}:{listener.getsockname()[1]}/v2/iex"

        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                async with driver_class(url, CREDENTIALS).connect(Followed(), time.time_ns):
                    pass

        with pytest.raises(FeedUnavailable) as caught:
            anyio.run(main, backend=backend)
    # Another certificate would not help.
    assert "SSL_CERT_FILE" not in str(caught.value)
