"""Texts from outside that try to forge lines of the log, or to become keys and labels."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from mdservice.errors import ConfigurationError
from mdservice.settings import Settings
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


SYMBOLS = {
    "a pattern": "AA*",
    "another pattern": "A[AB]?L",
    "a hash tag": "{A}B",
    "nothing but braces": "{}",
    "a blank": "AA PL",
    "a line end": "AAPL\r\nFLUSHALL",
    "a zero byte": "A\0B",
    "too long": "A" * 33,
    "far too long": "A" * 100_000,
    "another script": "\uff21\uff21",
    "a letter that upper case makes plain": "ßA",
    "a path": "../AAPL",
    "nothing": "",
}


@pytest.mark.parametrize("symbol", SYMBOLS.values(), ids=SYMBOLS)
def test_settings_refuse_a_symbol_that_is_none(symbol: str) -> None:
    for name in ("symbols", "news"):
        with pytest.raises(ConfigurationError, match=f"setting {name} .*is not a symbol"):
            Settings(**{name: ("AAPL", symbol)})


def test_no_hostile_symbol_becomes_a_key(stage: Any) -> None:
    """None is taken by the API, the relay, or from the positions."""
    relay, valkey = stage.free_port(), stage.valkey()
    held = stage.folder() / "held.json"
    rows = [
        {"symbol": symbol, "qty": "1", "avg_entry_price": "1"}
        for symbol in (*SYMBOLS.values(), "*")
    ]
    held.write_text(json.dumps([*rows, {"symbol": "AAPL", "qty": "1", "avg_entry_price": "1"}]))
    service = stage.service(
        stage.simulator(),
        valkey,
        MDSERVICE_RELAY=f"127.0.0.1:{relay}",
        MDSERVICE_POSITIONS=f"file:{held}",
    ).wait_ready()
    base = "/api/v1/market-data"
    for symbol in SYMBOLS.values():
        answer = service.http.post(f"{base}/subscribe", json={"symbols": ["MSFT", symbol]})
        assert (answer.status_code, "is not a symbol" in answer.text) == (422, True), answer.text
        assert len(answer.text) < 1000
        if 0 < len(symbol) < 1000:
            answer = service.http.get(f"{base}/latest/quotes/{quote(symbol, safe='')}")
            assert answer.status_code in (404, 422), answer.text
    with connect(f"ws://127.0.0.1:{relay}/v2/iex", proxy=None) as client:
        client.recv()
        client.send(json.dumps({"action": "auth", "key": "k", "secret": "s"}))
        client.recv()
        for symbol in SYMBOLS.values():
            client.send(json.dumps({"action": "subscribe", "quotes": ["MSFT", symbol]}))
            (message,) = json.loads(client.recv())
            assert (message["T"], message["code"]) == ("error", 400), message
    eventually(lambda: list(service.get(f"{base}/subscriptions")["symbols"]) == ["AAPL"], what=held)
    with valkey.client() as client:
        names = [key for key in client.keys("*") if b":AAPL" not in key]
        assert all(name.startswith(b"mdservice:") for name in names), names
    assert len(service.status()["positions"]["problems"]) > 0
