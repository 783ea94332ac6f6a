"""``mdservice watch`` beside a running service: through a pipe and in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from typing import Any

import pytest

WITHIN_S = 15.0


@pytest.fixture(scope="module")
def service(module_stage: Any) -> Any:
    """The simulated desk, with its positions."""
    service = module_stage.program("run", MDSERVICE_GATEWAY_HTTP="127.0.0.1:0")
    return service.wait_ready()


def test_a_pipe_gets_plain_lines_until_it_is_closed(stage: Any, service: Any) -> None:
    watch = stage.program("watch", folder=service.folder)
    line = re.compile(
        r"^\S+Z AAPL [\d.]+ 120 @ [\d.]+ P&L [+-][\d,.]+ \([+-][\d.]+ %\) live$", re.MULTILINE
    )
    stage.eventually(lambda: line.search(watch.stdout), within=WITHIN_S, what=lambda: watch.said)
    assert "\x1b" not in watch.stdout
    assert watch.end(signal.SIGINT) == 0
    assert watch.stderr == ""


def test_nobody_reading_the_pipe_ends_it_quietly(stage: Any, service: Any) -> None:
    watch = stage.program("watch", "--once", folder=service.folder)
    assert watch.code() == 0
    with subprocess.Popen(
        watch.args[:-1],
        env=watch.env,
        cwd=service.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.wait(10) in (0, 1)
        assert b"Traceback" not in process.stderr.read()


def test_once_prints_the_table(stage: Any, service: Any) -> None:
    watch = stage.beside(service, "watch", "--once", "AAPL", "NOPE")
    assert watch.process.returncode == 0, watch.said
    head, names, aapl, nope, total = watch.stdout.splitlines()
    assert head.startswith("mdservice running  simulator by ")
    assert names.split()[0] == "symbol"
    assert aapl.split()[:3] == ["AAPL", "120", "182.4"]
    assert "no price" in nope
    assert total.startswith("total P&L ")


def test_without_a_service_it_says_what_to_do(stage: Any) -> None:
    watch = stage.program("watch")
    assert watch.code() == 1
    assert "mdservice run" in watch.stderr
    assert "Traceback" not in watch.stderr


class Terminal:
    """A pseudo-terminal with the command in it."""

    def __init__(self, program: Any, folder: Any, columns: int, lines: int) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns, lines)
        self.screen = b""
        self.process = subprocess.Popen(
            program.args,
            env={**program.env, "TERM": "xterm-256color"},
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern: str) -> re.Match[str]:
        """Read until it is there, colours taken off; what was read before is forgotten."""
        deadline = time.monotonic() + WITHIN_S
        self.screen = b""
        while True:
            text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.screen.decode(errors="replace"))
            if found := re.search(pattern, text):
                return found
            assert time.monotonic() < deadline, text[-2000:]
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if ready:
                self.screen += os.read(self.master, 65_536)

    def close(self) -> int:
        deadline = time.monotonic() + 10
        try:
            while self.process.poll() is None and time.monotonic() < deadline:
                if select.select([self.master], [], [], 0.05)[0]:
                    with contextlib.suppress(OSError):  # it has gone
                        os.read(self.master, 65_536)
            return self.process.wait(0.1)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            os.close(self.master)


def test_a_terminal_shows_a_table_that_follows_its_size(stage: Any, service: Any) -> None:
    program = stage.beside(service, "watch", "--once")
    program.args.remove("--once")
    terminal = Terminal(program, service.folder, 120, 30)
    try:
        terminal.until(r"symbol +qty +avg +price +bid +ask +age +P&L +% +status")
        terminal.until(r"AAPL +120 +182\.4 .*live")
        terminal.until(r"total P&L [+-][\d,.]+ \([+-][\d.]+ %\)  8 priced")
        terminal.resize(40, 8)
        terminal.until(r"symbol +qty +price +P&L( +%)?\s*\n")
        terminal.until(r"\d+ more; Ctrl-C ends")
        os.write(terminal.master, b"\x03")
        os.kill(terminal.process.pid, signal.SIGINT)  # its own session has no such terminal
    finally:
        code = terminal.close()
    assert code == 0


def test_a_service_that_ends_is_told_and_the_last_prices_stay(stage: Any) -> None:
    service = stage.program("run", MDSERVICE_GATEWAY_HTTP="127.0.0.1:0").wait_ready()
    watch = stage.program("watch", folder=service.folder)
    stage.eventually(lambda: " AAPL " in watch.stdout, within=WITHIN_S, what=lambda: watch.said)
    assert service.end() == 0
    stage.eventually(
        lambda: "service no answer: " in watch.stdout, within=WITHIN_S, what=lambda: watch.said
    )
    again = stage.program("run", folder=service.folder, MDSERVICE_GATEWAY_HTTP="127.0.0.1:0")
    again.wait_ready()
    stage.eventually(
        lambda: re.search(
            r"service running\n(?s:.*) AAPL ", watch.stdout.rpartition("no answer")[2]
        ),
        within=WITHIN_S,
        what=lambda: watch.said,
    )
    assert watch.end(signal.SIGINT) == 0
