"""The webhook against real servers that mean no good, on both event loops."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from mdservice.gateway import webhook as module
from mdservice.gateway.webhook import Webhook
from mdservice.runtime.network import HttpClient
from tests.integration.conftest import patient

Behave = Callable[[socket.socket, "Server"], None]
PATH = "/services/T0/B0/HIDDENSECRET"


class Server:
    """Reads each request and then does as it is told."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.requests: list[bytes] = []
        self.ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.ended.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            while not self.ended.is_set():
                request = self._read(connection)
                if not request:
                    return
                self.requests.append(request)
                self.behave(connection, self)

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += (part := connection.recv(65536))
            if not part:
                return b""
        head, _, body = data.partition(b"\r\n\r\n")
        (length,) = (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def bodies(self) -> list[bytes]:
        return [request.partition(b"\r\n\r\n")[2] for request in self.requests]

    def close(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._listener.close()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def serving() -> Iterator[Callable[[Behave], Server]]:
    servers: list[Server] = []

    def serve(behave: Behave) -> Server:
        servers.append(Server(behave))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Webhook]:
    """Runs a webhook while ``body(webhook)`` runs, with short waits; returns it closed."""
    monkeypatch.setattr(module, "_TIMEOUT_S", 1.0)
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.001)

    def run_webhook(url: str, body: Callable[[Webhook], Awaitable[None]]) -> Webhook:
        async def main() -> Webhook:
            webhook = Webhook(url, "token", HttpClient())
            with anyio.fail_after(patient(120)):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(webhook.run)
                    await body(webhook)
                    tasks.cancel_scope.cancel()
                await webhook.aclose()
            return webhook

        return anyio.run(main, backend=request.param)

    return run_webhook


async def deliver_two(webhook: Webhook) -> None:
    for number in (1, 2):
        webhook.send(b"%d" % number, "")
    while webhook.sent + webhook.dropped < 2:
        await anyio.sleep(0.01)


def answer(status: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def trickle(connection: socket.socket, server: Server, text: bytes = b"x: y\r\n") -> None:
    while not server.ended.is_set():
        connection.sendall(text)
        time.sleep(0.05)


def never_answers(connection: socket.socket, server: Server) -> None:
    server.ended.wait(60)


def trickles_headers(connection: socket.socket, server: Server) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    trickle(connection, server)


def informs_for_ever(connection: socket.socket, server: Server) -> None:
    trickle(connection, server, b"HTTP/1.1 103 Early Hints\r\n\r\n")


def hangs_up(connection: socket.socket, server: Server) -> None:
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def speaks_nonsense(connection: socket.socket, server: Server) -> None:
    connection.sendall(b"\x00\xffSSH-2.0\r\n\r\n")


@pytest.mark.parametrize(
    "behave", [never_answers, trickles_headers, informs_for_ever, hangs_up, speaks_nonsense]
)
def test_what_never_answers_is_tried_five_times(serving: Any, run: Any, behave: Behave) -> None:
    server = serving(behave)
    webhook = run(f"http://127.0.0.1:{server.port}{PATH}", deliver_two)
    assert (webhook.sent, webhook.dropped) == (0, 2)
    assert server.bodies() == [b"1"] * 5 + [b"2"] * 5


def trickles_a_body(connection: socket.socket, server: Server) -> None:
    connection.sendall(answer("200 OK", length=10**6))
    trickle(connection, server)


def cuts_its_body(connection: socket.socket, server: Server) -> None:
    connection.sendall(answer("200 OK", body=b"x", length=10**6))
    hangs_up(connection, server)


def answers_hugely(connection: socket.socket, server: Server) -> None:
    connection.sendall(answer("200 OK", length=2**33))
    while not server.ended.is_set():
        connection.sendall(b"x" * 2**20)


def is_content(connection: socket.socket, server: Server) -> None:
    connection.sendall(answer("204 No Content", "Set-Cookie: a=b"))


@pytest.mark.parametrize("behave", [trickles_a_body, cuts_its_body, answers_hugely, is_content])
def test_a_message_that_was_taken_is_sent_once(serving: Any, run: Any, behave: Behave) -> None:
    server = serving(behave)
    webhook = run(f"http://127.0.0.1:{server.port}{PATH}", deliver_two)
    assert (webhook.sent, webhook.dropped) == (2, 0)
    assert server.bodies() == [b"1", b"2"]


def test_a_kept_connection_that_ends_makes_no_sixth_try(serving: Any, run: Any) -> None:
    def takes_one(connection: socket.socket, server: Server) -> None:
        if len(server.requests) == 1:
            is_content(connection, server)
        else:
            hangs_up(connection, server)

    server = serving(takes_one)
    webhook = run(f"http://127.0.0.1:{server.port}{PATH}", deliver_two)
    assert (webhook.sent, webhook.dropped) == (1, 1)
    assert server.bodies() == [b"1"] + [b"2"] * 5


@pytest.mark.parametrize("status", ["301 Moved", "307 Temporary Redirect", "404 No", "429 Slow"])
def test_what_is_refused_goes_nowhere_else(serving: Any, run: Any, status: str) -> None:
    other = serving(is_content)

    def refuses(connection: socket.socket, server: Server) -> None:
        connection.sendall(answer(status, f"Location: http://127.0.0.1:{other.port}/"))

    server = serving(refuses)
    webhook = run(f"http://127.0.0.1:{server.port}{PATH}", deliver_two)
    assert (webhook.sent, webhook.dropped) == (0, 2)
    assert server.bodies() == [b"1", b"2"]
    assert other.requests == []


@pytest.mark.parametrize("behave", [is_content, hangs_up, speaks_nonsense])
def test_no_log_line_has_the_url(
    serving: Any, run: Any, behave: Behave, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serving(behave)
    url = f"HTTP://user:PASSWORDHIDDEN@LOCALHOST:{server.port}{PATH}/?key=QUERYHIDDEN"
    run(url, deliver_two)
    assert f"POST {PATH}/?key=QUERYHIDDEN".encode() in server.requests[0]
    assert b"authorization: basic" in server.requests[0].lower()
    said = "\n".join([caplog.text, *(record.getMessage() for record in caplog.records)])
    assert said
    for secret in ("HIDDEN", PATH, "token"):
        assert secret not in said, json.dumps(said)
