"""The relay as it is seen from outside: at the start, in the status, the metrics and the check."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect


def relay_url(service: Any) -> str:
    """The URL that the start has printed."""
    found = re.search(r"relay +(ws://\S+)", service.stdout + service.stderr)
    assert found is not None, service.said
    return found[1]


@contextmanager
def logged_in(url: str) -> Iterator[ClientConnection]:
    with connect(url, proxy=None, open_timeout=30, user_agent_header="desk-bot/1") as client:
        client.recv(10)
        client.send(json.dumps({"action": "auth", "key": "any", "secret": "any"}))
        assert json.loads(client.recv(10)) == [{"T": "success", "msg": "authenticated"}]
        yield client


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_program_is_seen_from_the_printed_url_to_the_metrics(stage: Any, log_format: str) -> None:
    service = stage.program(
        "run", MDSERVICE_RELAY="127.0.0.1:0", MDSERVICE_LOG_FORMAT=log_format
    ).wait_ready()
    url = relay_url(service)
    address = url.removeprefix("ws://").removesuffix("/v2/iex")
    status = service.status()["relay"]
    assert (status["address"], status["clients"]) == (address, [])
    with logged_in(url) as client:
        client.send(json.dumps({"action": "subscribe", "quotes": ["AAPL", "MSFT"]}))
        client.recv(10)
        service.until(lambda s: s["relay"]["messages"] > 0)
        (seen,) = service.status()["relay"]["clients"]
        assert "desk-bot/1" in seen["name"]
        assert (seen["path"], seen["encoding"], seen["symbols"]) == ("/v2/iex", "json", 2)
        assert seen["address"].startswith("127.0.0.1:")
        lines = stage.beside(service, "status").stdout.splitlines()
        assert any(line.startswith(f"relay     {address}, 1 client,") for line in lines)
        assert any(line.startswith("desk-bot/1") for line in lines)
        metrics = service.http.get("/metrics").text
        assert "mdservice_relay_clients 1.0" in metrics
        assert re.search(r"^mdservice_relay_messages_total [1-9]", metrics, re.MULTILINE)
    service.until(lambda s: not s["relay"]["clients"])


def test_the_check_logs_in_to_the_relay_of_a_running_service(stage: Any) -> None:
    service = stage.program("run", MDSERVICE_RELAY="127.0.0.1:0").wait_ready()
    url = relay_url(service)
    address = url.removeprefix("ws://").removesuffix("/v2/iex")
    program = stage.beside(service, "check", MDSERVICE_RELAY=address)
    assert re.search(rf"^ok +relay +{re.escape(url)}: logged in$", program.stdout, re.MULTILINE)


def test_a_relay_that_is_off_is_in_no_output(stage: Any) -> None:
    service = stage.program("run", MDSERVICE_RELAY="off").wait_ready()
    assert "relay" not in service.stdout
    assert "relay" not in service.status()
    assert "mdservice_relay" not in service.http.get("/metrics").text


def test_where_the_default_address_is_in_use_the_start_prints_another(stage: Any) -> None:
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", 8765))
            other.listen()
            mine = True
        except OSError:  # another program's, which may end meanwhile
            mine = False
        service = stage.program("run").wait_ready()
        url = relay_url(service)
        assert not (mine and ":8765/" in url)
        with logged_in(url):
            pass


def test_a_chosen_address_in_use_is_a_configuration_error(stage: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        program = stage.program("run", MDSERVICE_RELAY=address)
        assert program.code(within=30) == 78
    assert "MDSERVICE_RELAY" in program.stderr + program.stdout
