"""An HTTP server on loopback that answers, or misbehaves, as the test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_STEP_S = 0.02
_LIMIT_S = 5.0

Behaviour = Callable[["Asked"], None]


class Web(ThreadingHTTPServer):
    """What it was asked is in ``paths`` and ``headers``."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self) -> None:
        self.body = b"[]"
        self.status = 200
        self.extra: dict[str, str] = {}
        self.behaviour: Behaviour = answer
        self.paths: list[str] = []
        self.headers: list[Any] = []
        self.connections = 0
        self.open = 0
        self.asked = threading.Event()
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), Asked)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def hold(self, document: Any) -> None:
        """Answer with this, and well."""
        self.body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.status, self.extra, self.behaviour = 200, {}, answer

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Asked(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Web
    timeout = _LIMIT_S * 4

    def log_message(self, *_arguments: Any) -> None:
        pass

    def handle(self) -> None:
        self.server.open += 1
        try:
            super().handle()
        finally:
            self.server.open -= 1

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.headers.append(self.headers)
        self.server.asked.set()
        self.server.behaviour(self)

    def write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()


# Behaviours


def answer(asked: Asked) -> None:
    web = asked.server
    asked.send_response_only(web.status)
    for name, value in {"Content-Length": str(len(web.body)), **web.extra}.items():
        asked.send_header(name, value)
    asked.end_headers()
    asked.write(web.body)


def stall(asked: Asked) -> None:
    asked.close_connection = True
    asked.server.ended.wait()


def hang_up(asked: Asked) -> None:
    asked.close_connection = True


def cut_body(asked: Asked) -> None:
    asked.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[{")
    asked.close_connection = True


def cut_body_of_no_length(asked: Asked) -> None:
    asked.write(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[{"symbol"')
    asked.close_connection = True


def no_http(asked: Asked) -> None:
    asked.write(b"SSH-2.0-OpenSSH_9.6\r\n\x00\xff\r\n")
    asked.close_connection = True


def bad_compression(asked: Asked) -> None:
    asked.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Encoding: gzip\r\n\r\nnope")
    asked.close_connection = True


def trickle(start: bytes) -> Behaviour:
    """After this, a byte now and then for ever."""

    def behave(asked: Asked) -> None:
        asked.close_connection = True
        asked.write(start)
        while not asked.server.ended.wait(_STEP_S):
            asked.write(b" ")

    return behave


trickle_headers = trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ")
trickle_body = trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n[")


def endless(asked: Asked) -> None:
    """As much as the client takes."""
    asked.close_connection = True
    asked.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    block = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    while not asked.server.ended.is_set():
        asked.write(block)


def close_after(asked: Asked) -> None:
    """Answer as if the connection would stay, and close it when it is used again."""
    if getattr(asked, "used", False):
        asked.close_connection = True
        return
    asked.used = True  # type: ignore[attr-defined]
    answer(asked)


@contextmanager
def open_web() -> Iterator[Web]:
    with Web() as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield web
        finally:
            web.ended.set()
            web.shutdown()
            thread.join(_LIMIT_S)


def nowhere() -> str:
    """The URL of a port that has no listener."""
    with Web() as web:
        return web.url
