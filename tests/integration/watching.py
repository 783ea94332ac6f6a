"""``mdservice watch`` as a process with a terminal, or a pipe, of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import pytest

WITHIN_S = 60.0


def _take_terminal() -> None:
    """Have the terminal send this process its Ctrl-C."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Watch:
    """The command, with a terminal or a pipe of its own."""

    def __init__(self, service: Any, *args: str, terminal: tuple[int, int] | None, **env: str):
        end, other = pty.openpty() if terminal else os.pipe()
        if terminal:
            self._size(other, terminal)
        command = [*service.args[:3], "watch", *args]
        self.process = subprocess.Popen(
            command,
            stdin=other if terminal else subprocess.DEVNULL,
            stdout=other,
            stderr=subprocess.PIPE,
            cwd=service.folder,
            env={**service.env, "TERM": "xterm-256color", **env},
            start_new_session=bool(terminal),
            preexec_fn=_take_terminal if terminal else None,  # noqa: PLW1509 - it takes no lock
        )
        os.close(other)
        self.end = end
        self.text = ""
        self._errors = b""

    @staticmethod
    def _size(descriptor: int, size: tuple[int, int]) -> None:
        columns, lines = size
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        self._size(self.end, (columns, lines))

    def read(self, seconds: float = 0.05) -> str:
        """What came within that time; all of it is kept in ``text``."""
        came, ends = b"", time.monotonic() + seconds
        while (left_s := ends - time.monotonic()) > 0:
            if not select.select([self.end], [], [], left_s)[0]:
                break
            try:
                data = os.read(self.end, 65_536)
            except OSError:  # a terminal whose other side is gone
                data = b""
            if not data:
                time.sleep(max(0.0, min(left_s, 0.05)))
                break
            came += data
        told = came.decode(errors="replace")
        self.text += told
        return told

    def until(self, pattern: str, within: float = WITHIN_S) -> re.Match[str]:
        """Read until what comes from now on has this."""
        came, ends = "", time.monotonic() + within
        while time.monotonic() < ends:
            came += self.read()
            if found := re.search(pattern, came):
                return found
        pytest.fail(f"not within {within} s: {pattern} in {came[-3000:]!r}")

    def complains(self, words: str) -> None:
        """Wait until these words are on stderr."""
        ends = time.monotonic() + WITHIN_S
        errors = self.process.stderr
        assert errors is not None
        while words.encode() not in self._errors:
            assert time.monotonic() < ends, self._errors
            self.read()
            if select.select([errors], [], [], 0)[0]:
                self._errors += os.read(errors.fileno(), 65_536)

    def screen(self) -> list[str]:
        """The lines of the next whole screen, without colours."""
        self.read(0.1)
        came = self.until("\x1b\\[H[^\x07]*?\x1b\\[H")[0]
        text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", came)
        return [line.rstrip("\r") for line in text.split("\n")]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.end)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def ended(self) -> tuple[int, str]:
        """The exit code and what was written to stderr."""
        ends = time.monotonic() + WITHIN_S
        while self.process.poll() is None and time.monotonic() < ends:
            self.read()
        self.read()
        _out, errors = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, (self._errors + errors).decode()


def unread(descriptor: int) -> int:
    """Bytes that wait in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))
    return int(count)


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
