"""Commands that ask, against a server on a real UNIX socket with scripted answers."""

from __future__ import annotations

import json
import os
import socketserver
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mdservice.cli import cli
from mdservice.cli.checks import find_running
from mdservice.client.http import NoAnswer, ask
from mdservice.errors import ConfigurationError
from mdservice.settings import Settings
from tests.integration.conftest import patient

READY = ("GET", "/health/ready")
LIVE = ("GET", "/health/live")
STATUS = ("GET", "/status")
SUBSCRIBE = ("POST", "/api/v1/market-data/subscribe")
UNSUBSCRIBE = ("POST", "/api/v1/market-data/unsubscribe")


class Service(socketserver.ThreadingUnixStreamServer):
    """Answers by method and path; ``None`` hangs up, ``...`` is silent until the end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[tuple[str, str], Any] = {}
        self.bodies: list[Any] = []
        self.ended = threading.Event()
        super().__init__(str(path), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_arguments: Any) -> None:
        pass

    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        if length:
            self.server.bodies.append(json.loads(self.rfile.read(length)))
        answer = self.server.answers.get((self.command, self.path), (404, {"detail": "Not Found"}))
        if answer is ...:
            self.server.ended.wait(20)
            return
        if answer is None:
            return
        status, content = answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="md-") as name:
        yield Path(name)


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    with Service(folder / "s") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join(5)


@pytest.fixture
def invoke(
    service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    for name in list(os.environ):
        if name.startswith(("MDSERVICE_", "ALPACA_", "APCA_", "REDIS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, [*arguments, "--socket", str(service.path)])

    return run


@pytest.mark.parametrize(
    ("ready", "live", "code", "line"),
    [
        ((200, {"ready": True, "reasons": []}), None, 0, "ready"),
        (
            (503, {"ready": False, "reasons": ["the feed is away", "redis too"]}),
            (200, {"ready": True, "reasons": []}),
            1,
            "alive but not ready: the feed is away; redis too",
        ),
        (
            (503, {"ready": False, "reasons": ["x"]}),
            (503, {"ready": False, "reasons": ["the watchdog stands"]}),
            1,
            "not well: the watchdog stands",
        ),
        ((500, {"detail": "broken"}), (200, {}), 1, "alive but not ready: broken"),
    ],
)
def test_health_says_in_one_line_and_by_its_code(
    service: Service, invoke, ready: Any, live: Any, code: int, line: str
) -> None:
    service.answers = {READY: ready, LIVE: live}
    result = invoke("health")
    assert (result.exit_code, result.stdout) == (code, line + "\n")


@pytest.mark.parametrize("answer", [None, (200, b"<html>"), (200, b"[1]"), (200, b"\xff")])
def test_what_is_not_a_service_is_no_answer(service: Service, invoke, answer: Any) -> None:
    service.answers = {READY: answer}
    result = invoke("health")
    assert result.exit_code == 2
    assert result.stdout.startswith("no answer: ")
    assert result.stdout.count("\n") == 1


def test_a_service_that_is_silent_is_not_waited_for_long(service: Service) -> None:
    service.answers = {STATUS: ...}
    begin = time.monotonic()
    with pytest.raises(NoAnswer, match=r"does not answer within 0\.2 s"):
        ask(service.path, "GET", "/status", timeout_s=0.2)
    assert time.monotonic() - begin < patient(5)


def test_a_socket_left_behind_is_no_answer(folder: Path) -> None:
    Service(folder / "dead").server_close()
    assert (folder / "dead").is_socket()
    with pytest.raises(NoAnswer, match="no service answers at"):
        ask(folder / "dead", "GET", "/status")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
def test_another_users_socket_is_reported(service: Service) -> None:
    service.path.chmod(0)
    with pytest.raises(NoAnswer, match="another user's"):
        ask(service.path, "GET", "/status")


def test_a_folder_that_others_can_write_to_is_not_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    own = folder / f"mdservice-{os.geteuid()}"
    own.mkdir()
    own.chmod(0o777)
    assert stat.S_IMODE(own.stat().st_mode) == 0o777
    with pytest.raises(ConfigurationError, match="open to other users"):
        ask(own / "mdservice.sock", "GET", "/status")


def test_status_is_a_table_without_colours_and_json_where_asked(service: Service, invoke) -> None:
    content = {"state": "running", "uptime_s": 5, "symbols": 2, "counters": {"gaps": 1}}
    service.answers = {STATUS: (200, content)}
    result = invoke("status")
    assert result.exit_code == 0
    assert result.stdout.startswith("service   running, up 5 s, 2 symbols\n")
    assert "\x1b" not in result.stdout
    assert json.loads(invoke("status", "--json").stdout) == content


def test_a_refused_status_is_1(service: Service, invoke) -> None:
    service.answers = {STATUS: (500, {"detail": "an error"})}
    result = invoke("status")
    assert (result.exit_code, result.stderr) == (
        1,
        "mdservice: the service refused to report its status: an error\n",
    )


def test_symbols_are_sent_raised_and_without_repeats(service: Service, invoke) -> None:
    service.answers = {
        SUBSCRIBE: (200, {"status": "subscribed", "symbols": ["AAPL", "BRK.B"]}),
        UNSUBSCRIBE: (200, {"status": "unsubscribed", "symbol": "AAPL", "symbols": ["AAPL"]}),
    }
    result = invoke("subscribe", "aapl,brk.b", "AAPL")
    assert (result.exit_code, result.stdout) == (0, "subscribed: AAPL, BRK.B\n")
    assert invoke("unsubscribe", "AAPL").stdout == "unsubscribed: AAPL\n"
    assert service.bodies == [{"symbols": ["AAPL", "BRK.B"]}, {"symbols": ["AAPL"]}]


def test_a_pair_without_its_slash_is_subscribed_with_a_note(service: Service, invoke) -> None:
    service.answers = {SUBSCRIBE: (200, {"status": "subscribed", "symbols": ["BTCUSD", "AAPL"]})}
    result = invoke("subscribe", "BTCUSD", "AAPL")
    assert (result.exit_code, result.stdout) == (0, "subscribed: BTCUSD, AAPL\n")
    assert "BTC/USD" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_channels_are_sent_where_they_are_named(service: Service, invoke) -> None:
    answer = {"symbols": ["AAPL"]}
    service.answers = {
        SUBSCRIBE: (200, {"status": "subscribed", **answer}),
        UNSUBSCRIBE: (200, {"status": "unsubscribed", **answer}),
    }
    assert invoke("subscribe", "AAPL", "--channels", "quotes, trades").exit_code == 0
    assert invoke("unsubscribe", "--channels=trades", "AAPL").exit_code == 0
    assert service.bodies == [
        {"symbols": ["AAPL"], "channels": ["quotes", "trades"]},
        {"symbols": ["AAPL"], "channels": ["trades"]},
    ]


@pytest.mark.parametrize("given", ["tardes", "corrections", "news", "", ","])
def test_a_channel_that_is_none_is_a_usage_error(service: Service, invoke, given: str) -> None:
    result = invoke("subscribe", "AAPL", "--channels", given)
    assert result.exit_code == 2
    assert "--channels" in result.stderr
    assert service.bodies == []


def test_a_pending_subscription_says_so(service: Service, invoke) -> None:
    service.answers = {SUBSCRIBE: (200, {"status": "pending", "symbols": ["AAPL"]})}
    assert invoke("subscribe", "AAPL").stdout.startswith("pending: AAPL (the feed is down")


@pytest.mark.parametrize(
    ("detail", "told"), [("the limit is 30", "the limit is 30"), ([{"loc": 1}], '[{"loc": 1}]')]
)
def test_a_refused_subscription_is_1_with_the_reason(
    service: Service, invoke, detail: Any, told: str
) -> None:
    service.answers = {SUBSCRIBE: (409, {"detail": detail})}
    result = invoke("subscribe", "AAPL")
    assert (result.exit_code, result.stderr) == (1, f"mdservice: subscribe failed: {told}\n")


def test_check_finds_a_running_service(service: Service) -> None:
    settings = Settings(socket=service.path)
    service.answers = {
        STATUS: (200, {"state": "running", "feed": {"name": "iex", "connected": True}})
    }
    assert find_running(settings) == "running, iex connected"
    service.answers = {STATUS: (200, {"feed": {"last_error": "406"}})}
    assert find_running(settings) == "running, - not connected, last error: 406"
    service.answers = {STATUS: None}
    assert find_running(settings) is None
