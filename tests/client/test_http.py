"""A call over the UNIX socket: the request's bytes, and what an answer means."""

from __future__ import annotations

import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mdservice.client.http import Answer, NoAnswer, ask, fetch

LIMIT_S = 30.0
Serve = Callable[[bytes], list[bytes]]


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the service listens, in a folder of this user's own."""
    with tempfile.TemporaryDirectory(prefix="md-") as folder:
        yield Path(folder) / "s"


@pytest.fixture
def serve(path: Path) -> Iterator[Serve]:
    """Give one answer; the list has the request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(LIMIT_S)
        listener.bind(str(path))
        listener.listen()
        threads: list[threading.Thread] = []

        def start(answer: bytes) -> list[bytes]:
            requests: list[bytes] = []

            def run() -> None:
                client, _ = listener.accept()
                with client:
                    client.settimeout(LIMIT_S)
                    requests.append(whole(client))
                    client.sendall(answer)

            threads.append(threading.Thread(target=run))
            threads[-1].start()
            return requests

        yield start
        for thread in threads:
            thread.join(LIMIT_S)


def whole(client: socket.socket) -> bytes:
    """A request with its body, which is sent by itself."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += client.recv(65_536)
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length is not None and len(body) < int(length[1]):
        body += client.recv(65_536)
    return head + b"\r\n\r\n" + body


def answer(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


def test_a_question_has_no_body(path: Path, serve: Serve) -> None:
    requests = serve(answer("200 OK", b'{"state":"running"}'))
    found = ask(path, "GET", "/status", timeout_s=LIMIT_S)
    assert (found.ok, found.content) == (True, {"state": "running"})
    (request,) = requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"GET /status HTTP/1.1\r\n")
    assert b"content-type" not in head.lower()
    assert body == b""


def test_content_is_sent_as_json(path: Path, serve: Serve) -> None:
    requests = serve(answer("409 Conflict", b'{"detail":"symbol limit exceeded"}'))
    found = ask(path, "POST", "/subscribe", {"symbols": ["AAPL"]}, timeout_s=LIMIT_S)
    assert (found.ok, found.status, found.reason) == (False, 409, "symbol limit exceeded")
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: application/json" in head.lower()
    assert body == b'{"symbols": ["AAPL"]}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"detail": "no"}, "no"),
        ({"detail": [{"msg": "too long"}]}, '[{"msg": "too long"}]'),
        ({}, "HTTP 500"),
    ],
)
def test_the_reason_of_a_failure_is_a_text(content: dict[str, Any], reason: str) -> None:
    assert Answer(500, content).reason == reason


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"\xff"])
def test_an_answer_that_is_no_object_is_of_another_program(
    body: bytes, path: Path, serve: Serve
) -> None:
    serve(answer("200 OK", body))
    with pytest.raises(NoAnswer, match="is not mdservice"):
        ask(path, "GET", "/status", timeout_s=LIMIT_S)


def test_a_body_comes_as_it_is(path: Path, serve: Serve) -> None:
    serve(answer("503 Service Unavailable", b"not json"))
    assert fetch(path, "GET", "/health/ready", timeout_s=LIMIT_S) == (503, b"not json")


@pytest.mark.parametrize("data", [b"", b"SSH-2.0-x\r\n"])
def test_a_broken_connection_is_no_answer(data: bytes, path: Path, serve: Serve) -> None:
    serve(data)
    with pytest.raises(NoAnswer, match="broke the connection off"):
        ask(path, "GET", "/status", timeout_s=LIMIT_S)


def test_without_a_service_it_says_how_to_start_one(path: Path) -> None:
    with pytest.raises(NoAnswer, match="mdservice run"):
        ask(path, "GET", "/status")


def test_it_does_not_wait_for_ever(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(NoAnswer, match=r"does not answer within 0\.05 s"):
            ask(path, "GET", "/status", timeout_s=0.05)
