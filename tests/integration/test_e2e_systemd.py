"""The service and the gateway as units of ``Type=notify``, beside a socket such as systemd's."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import patient

UNITS = Path(__file__).parents[2] / "docs" / "operations" / "systemd"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(patient(20))
        yield server


def until(server: socket.socket, wanted: str) -> list[str]:
    """All lines until the wanted one."""
    found: list[str] = []
    while wanted not in found:
        found += server.recv(4096).decode().splitlines()
    return found


def test_the_service_says_when_it_is_ready_that_it_lives_and_that_it_stops(
    stage: Any, systemd: socket.socket
) -> None:
    environment = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "1000000"}
    service = stage.service(
        stage.simulator(), stage.valkey(), MDSERVICE_SYMBOLS="AAPL", **environment
    )
    until(systemd, "READY=1")
    until(systemd, "STATUS=running, symbols: 1")
    until(systemd, "WATCHDOG=1")
    until(systemd, "WATCHDOG=1")
    service.process.send_signal(signal.SIGTERM)
    until(systemd, "STOPPING=1")
    assert service.code() == 0, service.said


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", ["mdservice.service", "mdservice-gateway.service"])
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path, unit: str) -> None:
    text = (UNITS / unit).read_text()
    program = tmp_path / "mdservice"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for line in text.splitlines():
        if line.startswith("ExecStart="):
            text = text.replace(line.partition("=")[2].split()[0], str(program))
    (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    mine = [line for line in (done.stdout + done.stderr).splitlines() if unit in line]
    assert mine == []
