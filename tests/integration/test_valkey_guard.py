"""The guard alone, by its own rules: a pipe in, one line out, an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from mdservice.redis_io import valkey_guard
from mdservice.redis_io.embedded import find_server

LIMIT_S = 60.0
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def socket_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="g-") as folder:
        yield Path(folder) / "s"


@pytest.fixture
def start(socket_path: Path) -> Iterator[Start]:
    """Starts a guard; every one is gone at the end of the test."""
    guards: list[subprocess.Popen[bytes]] = []

    def start(
        binary: Path | None = None, *, limit_s: float = 30.0, service: int | None = None
    ) -> subprocess.Popen[bytes]:
        pid = os.getpid() if service is None else service
        command = [sys.executable, valkey_guard.__file__, str(pid), str(limit_s)]
        command += [str(socket_path), str(binary or find_server())]
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        guards.append(guard)
        return guard

    yield start
    for guard in guards:
        guard.communicate(timeout=LIMIT_S)


def report(guard: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert guard.stdout is not None
    fields: dict[str, Any] = json.loads(guard.stdout.readline())
    return fields


def let_go(guard: subprocess.Popen[bytes]) -> int:
    assert guard.stdin is not None
    guard.stdin.close()
    guard.stdin = None
    return guard.wait(LIMIT_S)


def test_it_reports_a_server_that_answers_and_ends_it_when_let_go(
    start: Start, socket_path: Path
) -> None:
    guard = start()
    facts = report(guard)
    with redis.Redis(unix_socket_path=str(socket_path)) as client:
        assert client.info("server")["process_id"] == facts["server_pid"]
    assert Path(facts["folder"]).is_dir()
    assert let_go(guard) == 0
    assert not Path(facts["folder"]).exists()
    assert not socket_path.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(facts["server_pid"], 0)


def test_it_ends_with_its_server(start: Start, socket_path: Path) -> None:
    guard = start()
    facts = report(guard)
    os.kill(facts["server_pid"], signal.SIGKILL)
    assert guard.wait(LIMIT_S) == 1
    assert not Path(facts["folder"]).exists()
    assert not socket_path.exists()


def test_a_socket_that_somebody_else_has_put_there_stays(start: Start, socket_path: Path) -> None:
    guard = start()
    report(guard)
    socket_path.unlink()
    socket_path.write_text("another's")
    assert let_go(guard) == 0
    assert socket_path.read_text() == "another's"


def test_a_socket_that_is_gone_already_is_no_error(start: Start, socket_path: Path) -> None:
    guard = start()
    report(guard)
    socket_path.unlink()
    assert let_go(guard) == 0


def test_it_does_not_hear_the_signals_of_a_terminal_or_a_service_manager(start: Start) -> None:
    guard = start()
    report(guard)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        guard.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        guard.wait(0.2)
    assert let_go(guard) == 0


def test_a_service_that_is_not_its_parent_is_gone(start: Start) -> None:
    guard = start(service=os.getppid())
    assert "the service ended" in report(guard).get("error", "the service ended")
    assert guard.wait(LIMIT_S) in {0, 1}


def test_let_go_during_the_start_it_ends_at_once(start: Start, tmp_path: Path) -> None:
    stuck = tmp_path / "server"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    guard = start(stuck, limit_s=60.0)
    assert let_go(guard) == 1
    assert report(guard) == {"error": "the service ended"}


def test_a_server_that_does_not_start_is_reported_with_its_last_words(
    start: Start, tmp_path: Path, socket_path: Path
) -> None:
    assert "cannot be run" in report(start(tmp_path / "nothing"))["error"]
    broken = tmp_path / "server"
    broken.write_text("#!/bin/sh\nyes | head -c 5000; echo the last words; exit 7\n")
    broken.chmod(0o755)
    error = report(start(broken))["error"]
    assert error.startswith("it ended with code 7: ")
    assert error.endswith("the last words")
    assert len(error) < 2_100
    stuck = tmp_path / "stuck"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    assert report(start(stuck, limit_s=0.1)) == {"error": "no answer within 0.1 s"}
    assert not socket_path.exists()
