"""The service with no settings at all: simulated prices in an embedded server; and its ends."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from mdservice.model.kinds import KINDS
from tests.integration.conftest import eventually, patient


def redis_of(service: Any) -> redis.Redis:
    """A client of the server that its status names."""
    return redis.Redis.from_url(service.status()["redis"]["url"])


@pytest.fixture(scope="module")
def plain(module_stage: Any) -> Any:
    service = module_stage.program("run").wait_ready()
    service.until(lambda s: s["counters"]["events_published"] > 50)
    return service


@pytest.fixture
def client(plain: Any) -> Iterator[redis.Redis]:
    with redis_of(plain) as client:
        yield client


def test_one_line_says_that_it_is_the_simulator_and_how_to_use_a_real_account(plain: Any) -> None:
    lines = [line for line in plain.stdout.splitlines() if "simulator" in line.lower()]
    assert any("ALPACA_API_KEY" in line and "ALPACA_SECRET_KEY" in line for line in lines)


def test_the_embedded_servers_address_is_shown_at_start_and_in_the_status(plain: Any) -> None:
    url = plain.status()["redis"]["url"]
    assert url.startswith("unix://")
    assert url in plain.stdout


def test_prices_appear_with_the_default_life(plain: Any, client: redis.Redis) -> None:
    keys = list(client.scan_iter("price:*"))
    assert len(keys) > 1
    for key in keys:
        assert 100 < client.ttl(key) <= 300
        assert f"price:{json.loads(client.get(key))['symbol']}".encode() == key


def test_events_are_published(client: redis.Redis) -> None:
    with client.pubsub() as pubsub:
        pubsub.subscribe("price.updated")
        pubsub.get_message(timeout=20)
        message = pubsub.get_message(timeout=20)
        assert message is not None
        assert message["channel"] == b"price.updated"


def test_its_redis_holds_nothing_but_what_the_contract_names(client: redis.Redis) -> None:
    eventually(lambda: client.exists("mdservice:progress"), what="mdservice:progress")
    names = {key.decode().partition(":")[0] for key in client.scan_iter("*")}
    keys = {kind.key_prefix.removesuffix(":") for kind in KINDS if kind.has_key}
    assert names <= keys | {"mdservice", "news"}
    own = {key.decode() for key in client.scan_iter("mdservice:*")}
    others = own - {"mdservice:instance", "mdservice:progress"}
    known = ("mdservice:writer:", "mdservice:day_start:")
    assert [name for name in others if not name.startswith(known)] == []


def test_the_embedded_server_listens_only_on_a_socket_beside_the_apis(
    plain: Any, client: redis.Redis
) -> None:
    path = Path(plain.status()["redis"]["url"].removeprefix("unix://"))
    assert path.parent == plain.socket.parent
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert client.config_get("port")["port"] == "0"


def test_the_apis_socket_is_for_its_owner_alone(plain: Any) -> None:
    assert stat.S_ISSOCK(plain.socket.stat().st_mode)
    assert stat.S_IMODE(plain.socket.stat().st_mode) == 0o600


def test_the_other_commands_find_it(module_stage: Any, plain: Any) -> None:
    status = module_stage.beside(plain, "status")
    assert status.process.returncode == 0, status.said
    assert plain.status()["redis"]["url"] in status.stdout
    health = module_stage.beside(plain, "health")
    assert health.process.returncode == 0, health.said
    assert len((health.stdout + health.stderr).strip().splitlines()) == 1


def test_status_as_json_is_the_apis(module_stage: Any, plain: Any) -> None:
    status = module_stage.beside(plain, "status", "--json")
    assert status.process.returncode == 0
    assert module_stage.exact(status.stdout).keys() == plain.status().keys()


def test_a_symbol_is_subscribed_to_and_taken_back_by_command(module_stage: Any, plain: Any) -> None:
    added = module_stage.beside(plain, "subscribe", "ibm", "ORCL")
    assert added.process.returncode == 0, added.said
    symbols = plain.get("/api/v1/market-data/subscriptions")["symbols"]
    assert {"IBM", "ORCL"} <= set(symbols)
    with redis_of(plain) as client:
        module_stage.eventually(lambda: client.exists("price:IBM"), what="a price of IBM")
    removed = module_stage.beside(plain, "unsubscribe", "IBM")
    assert removed.process.returncode == 0, removed.said
    symbols = plain.get("/api/v1/market-data/subscriptions")["symbols"]
    assert "IBM" not in symbols
    assert "ORCL" in symbols


def test_a_command_with_a_bad_symbol_fails_and_names_it(module_stage: Any, plain: Any) -> None:
    refused = module_stage.beside(plain, "subscribe", "NO GOOD!")
    assert refused.process.returncode in {1, 2}, refused.said
    assert "NO GOOD!" in refused.stderr


def test_nothing_on_stderr_looks_like_a_failure(plain: Any) -> None:
    assert "Traceback" not in plain.stderr
    assert '"level": "error"' not in plain.stderr
    warnings = [line for line in plain.stderr.splitlines() if '"level": "warning"' in line]
    # A busy machine may hold up the event loop, and another test's service has the relay's port.
    usual = ("event_loop_was_blocked", "relay_port_in_use")
    assert [line for line in warnings if not any(name in line for name in usual)] == []


def test_its_status_says_that_it_is_the_simulator(plain: Any) -> None:
    assert plain.status()["feed"]["name"] == "simulator"


def test_the_symbols_and_the_ttl_can_still_be_chosen(stage: Any) -> None:
    service = stage.program(
        "run", "--symbols", "IBM,ORCL", MDSERVICE_PRICE_TTL="7", MDSERVICE_LOG_FORMAT="json"
    ).wait_ready()
    with redis_of(service) as client:
        stage.eventually(lambda: len(list(client.scan_iter("price:*"))) == 2, what="two prices")
        assert set(client.scan_iter("price:*")) == {b"price:IBM", b"price:ORCL"}
        assert 0 < client.ttl("price:IBM") <= 7


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_0_and_everything_of_it_is_gone(stage: Any, by: Any) -> None:
    service = stage.program("run", MDSERVICE_EVENT_LOG="log").wait_ready()
    service.until(lambda s: s["counters"]["events_published"] > 20)
    with redis_of(service) as client:
        server = client.info("server")["process_id"]
    started = time.monotonic()
    assert service.end(by) == 0, service.said
    assert time.monotonic() - started < patient(5)
    stage.eventually(lambda: stage.is_gone(server), what="the server's end")
    left = {path.name for path in service.folder.iterdir() if path.is_socket()}
    assert left == set()
    assert "Traceback" not in service.stderr


def test_the_embedded_server_is_gone_within_2_s_of_its_services_violent_end(stage: Any) -> None:
    service = stage.program("run").wait_ready()
    with redis_of(service) as client:
        server = client.info("server")["process_id"]
        folder = Path(client.config_get("dir")["dir"])
    path = Path(service.status()["redis"]["url"].removeprefix("unix://"))
    assert not stage.is_gone(server)
    service.process.kill()
    service.process.wait()
    stage.eventually(
        lambda: stage.is_gone(server) and not path.exists(),
        within=2,
        what=lambda: f"gone: server {stage.is_gone(server)}, socket {not path.exists()}",
    )
    if folder != service.folder:
        stage.eventually(lambda: not folder.exists(), what=f"{folder}")


def test_it_starts_again_where_a_killed_one_left_its_socket(stage: Any) -> None:
    first = stage.program("run").wait_ready()
    first.process.kill()
    first.process.wait()
    assert first.socket.exists()
    second = stage.program("run", folder=first.folder).wait_ready()
    assert stat.S_IMODE(second.socket.stat().st_mode) == 0o600
    assert second.end() == 0


def test_without_a_runtime_folder_the_socket_is_in_a_0700_folder(stage: Any) -> None:
    folder = stage.folder()
    service = stage.program("run", folder=folder, XDG_RUNTIME_DIR="", TMPDIR=str(folder))
    socket = stage.eventually(
        lambda: next((p for p in folder.rglob("mdservice.sock") if p.is_socket()), None),
        what=lambda: f"a socket {service.said}",
    )
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert socket.parent != folder
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    service.socket = socket
    service.wait_ready()
    health = stage.beside(service, "health", XDG_RUNTIME_DIR="", TMPDIR=str(folder))
    assert health.process.returncode == 0, health.said
    assert service.end() == 0


def live_lines(shown: bytes) -> set[bytes]:
    """What was written over what stood in the line before."""
    return {part.partition(b"\r")[0] for part in re.split(rb"\r(?!\n)", shown)[1:]}


def test_on_a_terminal_a_live_line_shows_what_goes_through(stage: Any) -> None:
    service = stage.program("run")
    service.end(signal.SIGKILL)
    ours, theirs = os.openpty()
    shown = b""
    process = subprocess.Popen(
        service.args, stdin=theirs, stdout=theirs, stderr=theirs, cwd=service.folder,
        env={**service.env, "TERM": "xterm", "COLUMNS": "150"},
    )  # fmt: skip
    try:
        os.close(theirs)
        deadline = time.monotonic() + patient(30)
        while len(live_lines(shown)) < 3 and time.monotonic() < deadline:
            shown += os.read(ours, 4096)
        process.terminate()
        assert process.wait(patient(15)) == 0, shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"ALPACA_API_KEY" in shown
    assert len(live_lines(shown)) >= 3, shown
    assert b'{"' not in shown, "the log is for people here"
