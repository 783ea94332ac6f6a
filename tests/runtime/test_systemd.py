"""Notifications to systemd, read from a socket such as systemd's. On virtual time."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.runtime.systemd import Systemd

Receive = Callable[[], list[str]]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[dict[str, str], Receive]]:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        server.setblocking(False)

        def receive() -> list[str]:
            found = []
            while True:
                try:
                    found.append(server.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield {"NOTIFY_SOCKET": address}, receive


async def test_it_says_when_it_is_ready_what_it_does_and_that_it_stops(
    autojump_clock: Any, systemd: tuple[dict[str, str], Receive]
) -> None:
    environ, receive = systemd
    state = "starting"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Systemd(environ).keep_informed, lambda: True, lambda: state)
        await anyio.sleep(1)
        assert receive() == ["READY=1\nSTATUS=starting"]
        state = "running,\n 2 symbols"
        await anyio.sleep(60)
        assert receive() == ["STATUS=running, 2 symbols"]
        tasks.cancel_scope.cancel()
    assert receive() == ["STOPPING=1"]


async def test_signs_of_life_come_in_time_and_stop_while_it_is_not_alive(
    autojump_clock: Any, systemd: tuple[dict[str, str], Receive]
) -> None:
    environ, receive = systemd
    environ |= {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    alive = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Systemd(environ).keep_informed, lambda: alive, lambda: "running")
        await anyio.sleep(0.5)
        assert receive() == ["READY=1\nSTATUS=running\nWATCHDOG=1"]
        for _ in range(20):
            await anyio.sleep(1.5)  # half of the limit
            assert "WATCHDOG=1" in receive()
        alive = False
        await anyio.sleep(2)
        receive()
        await anyio.sleep(60)
        assert receive() == []
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
async def test_no_signs_of_life_where_systemd_wants_none(
    autojump_clock: Any, systemd: tuple[dict[str, str], Receive], environ: dict[str, str]
) -> None:
    of_systemd, receive = systemd
    async with anyio.create_task_group() as tasks:
        notify = Systemd(environ | of_systemd).keep_informed
        tasks.start_soon(notify, lambda: True, lambda: "running")
        await anyio.sleep(10)
        tasks.cancel_scope.cancel()
    assert receive() == ["READY=1\nSTATUS=running", "STOPPING=1"]


async def test_an_abstract_socket_is_found(autojump_clock: Any) -> None:
    name = f"mdservice-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0" + name)
        with anyio.move_on_after(1):
            notify = Systemd({"NOTIFY_SOCKET": f"@{name}"}).keep_informed
            await notify(lambda: True, lambda: "running")
        assert server.recv(4096) == b"READY=1\nSTATUS=running"


async def test_ready_is_sent_again_until_systemd_has_it(
    autojump_clock: Any, tmp_path: Path
) -> None:
    address = str(tmp_path / "late")
    async with anyio.create_task_group() as tasks:
        notify = Systemd({"NOTIFY_SOCKET": address}).keep_informed
        tasks.start_soon(notify, lambda: True, lambda: "running")
        await anyio.sleep(10)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(address)
            await anyio.sleep(10)
            assert server.recv(4096) == b"READY=1\nSTATUS=running"
        tasks.cancel_scope.cancel()


async def test_without_systemd_it_does_nothing(autojump_clock: Any) -> None:
    with anyio.fail_after(1):
        await Systemd({}).keep_informed(lambda: True, lambda: "running")
