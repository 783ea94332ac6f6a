"""Texts from outside that try to forge lines of the log, or to fill the metrics with labels."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from tests.integration.conftest import eventually

EVIL = 'x\n{"event":"forged"}\r\nforged\x1b[2J\x9b31m\u2028forged\x00"\\'


@contextmanager
def hostile_feed() -> Iterator[str]:
    """Lets clients log in, and then refuses with such a text; gives its URL."""

    def talk(websocket: ServerConnection) -> None:
        for message in (
            {"T": "success", "msg": "connected"},
            {"T": "success", "msg": "authenticated"},
        ):
            websocket.send(json.dumps([message]))
            websocket.recv()
        subscribed = {"T": "subscription", "quotes": ["AAPL", EVIL], EVIL: [EVIL]}
        websocket.send(json.dumps([subscribed]))
        websocket.send(json.dumps([{"T": EVIL, "S": EVIL}, {"T": "q", "S": EVIL, "t": EVIL}]))
        websocket.send(json.dumps([{"T": "error", "code": 500, "msg": EVIL}]))
        websocket.close(1011, EVIL[:30])

    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/v2/iex"
        finally:
            server.shutdown()
            thread.join()


def ask_raw(port: int, head: bytes) -> bytes:
    """The beginning of the answer to a request whose head is sent as it is."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as sock:
        sock.sendall(head)
        return sock.recv(65_536)


def attack(service: Any, http: int, relay: int) -> None:
    """Send such texts wherever the service takes some."""
    headers = (
        b"Host: 127.0.0.1\r\nUser-Agent: " + EVIL.encode().translate(None, b"\r\n\0") + b"\r\n"
    )
    for port in (http, relay):
        for path in (b"/%0aforged%1b[2J", b"/\x9bforged", b"/api/v1/market-data/latest/%0A/%1b"):
            ask_raw(port, b"GET " + path + b" HTTP/1.1\r\n" + headers + b"\r\n")
        ask_raw(port, b"\x1b[2Jforged\r\n\r\n")
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ask_raw(relay, b"GET /v2/iex HTTP/1.1\r\n" + upgrade + headers + b"\r\n")
    agent = 'forged\x9b31m"\\'
    url = f"ws://127.0.0.1:{relay}/v2/iex"
    with connect(url, user_agent_header=agent, proxy=None) as client:
        client.recv()
        client.send(json.dumps({"action": "auth", "key": EVIL, "secret": EVIL}))
        client.recv()
        client.send(json.dumps({"action": "subscribe", "quotes": [EVIL, "*" * 40], EVIL: [EVIL]}))
        client.recv()
        client.send(EVIL)
        client.recv()
        client.close(1000, EVIL[:30])
    answer = service.http.post("/api/v1/market-data/subscribe", json={"symbols": [EVIL]})
    assert answer.status_code == 422


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_event_stays_one_line_of_the_log(stage: Any, form: str) -> None:
    http, relay = stage.free_port(), stage.free_port()
    with hostile_feed() as url:
        service = stage.service(
            url,
            stage.valkey(),
            MDSERVICE_SYMBOLS="AAPL",
            MDSERVICE_HTTP=f"127.0.0.1:{http}",
            MDSERVICE_RELAY=f"127.0.0.1:{relay}",
            MDSERVICE_LOG_FORMAT=form,
        ).wait_answers()
        attack(service, http, relay)
        eventually(lambda: "forged" in service.stderr, within=60, what=lambda: service.said)
        eventually(lambda: "relay_client_left" in service.stderr, within=60, what=service.said)
        assert service.end() == 0
    for line in (service.stdout + service.stderr).splitlines():
        assert line.isprintable(), line
        if form == "json":
            assert json.loads(line)["event"] != "forged"
        else:
            assert not line.startswith(("forged", "{", "x")), line


def test_the_clients_of_the_relay_add_no_labels(stage: Any) -> None:
    """However many come, and whatever they are called."""
    http, relay = stage.free_port(), stage.free_port()
    simulator = stage.simulator()
    service = stage.service(
        simulator,
        stage.valkey(),
        MDSERVICE_SYMBOLS="AAPL",
        MDSERVICE_HTTP=f"127.0.0.1:{http}",
        MDSERVICE_RELAY=f"127.0.0.1:{relay}",
    ).wait_ready()

    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        text = httpx.get(f"http://127.0.0.1:{http}/metrics", trust_env=False).text
        return {
            (sample.name, frozenset(sample.labels.items()))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    seen = []
    for number in range(20):
        with connect(
            f"ws://127.0.0.1:{relay}/v2/iex", user_agent_header=f'"{number}\\', proxy=None
        ) as client:
            client.recv()
            client.send(json.dumps({"action": "auth", "key": "k", "secret": "s"}))
            client.recv()
            client.send(json.dumps({"action": "subscribe", "trades": [f"A{number}"]}))
            client.recv()
            ask_raw(http, b"GET /%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % number)
            seen.append(series())
            assert service.status()["relay"]["clients"][-1]["name"].startswith(f'"{number}\\')
    assert seen[-1] == seen[0]
