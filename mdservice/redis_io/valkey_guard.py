"""The guard: a small process that holds an embedded server and ends it with its service.

It runs as a script with only the standard library, in a session of its own, so that
Ctrl-C on the terminal does not reach it. Its standard input is a pipe whose other end only
the service has, so end of file means that the service has ended, even by a kill. The guard then
kills the server (it saves nothing) and removes its socket and folder.

A parent-death signal would be simpler, but it follows the thread that started the process, not
the process: the server would be killed as soon as an idle worker thread of its service ends.

Usage: ``python -I -S valkey_guard.py SERVICE_PID START_TIMEOUT_S SOCKET BINARY``. It writes
one JSON line when the server answers, ``{"server_pid": …, "folder": …}``, or
``{"error": …}``, and exits with 0 when the service ended, 1 when the server did.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

# Checked now and then, because a child of the service that was forked without exec still holds
# the pipe.
_PARENT_CHECK_S = 1.0
_START_POLL_S = 0.005
_LOG_TAIL_BYTES = 2_000
_STDIN = 0
_LEFT_TO_THE_SERVICE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Service:
    """The process that started this one."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def ended(self, timeout_s: float, *wake: int) -> bool:
        """Wait at most ``timeout_s``; return whether the service has ended."""
        readable, _, _ = select.select([_STDIN, *wake], [], [], timeout_s)
        if _STDIN in readable and not os.read(_STDIN, 1):
            return True
        return os.getppid() != self._pid


def _start_server(binary: str, socket_path: str, folder: str) -> subprocess.Popen[bytes]:
    command = [binary, "--port", "0", "--unixsocket", socket_path, "--unixsocketperm", "600"]
    command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
    command += ["--dir", folder, "--loglevel", "warning", "--logfile", ""]
    # A service manager sends SIGTERM to every process at once, but the service still has to
    # write its last prices. So the server ignores SIGTERM and ends with the service.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_SERVICE)
    try:
        with Path(folder, "log").open("wb") as log:
            return subprocess.Popen(  # noqa: S603  the service found the program
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answers(socket_path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(socket_path)
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _log_tail(folder: str) -> str:
    with Path(folder, "log").open("rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
        return log.read().decode(errors="replace").strip()


def _identity(socket_path: str) -> tuple[int, int, int] | None:
    try:
        stat = Path(socket_path).stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns


def _report(**fields: object) -> None:
    # If the service has ended, the pipe shows that as well.
    with suppress(OSError):
        os.write(1, json.dumps(fields).encode() + b"\n")


def _wait_until_ready(
    server: subprocess.Popen[bytes], service: _Service, socket_path: str, limit_s: float
) -> str | None:
    """None once the server answers, else the reason why it does not."""
    deadline = time.monotonic() + limit_s
    while not _answers(socket_path):
        if server.poll() is not None:
            return f"it ended with code {server.returncode}"
        if service.ended(_START_POLL_S):
            return "the service ended"
        if time.monotonic() > deadline:
            return f"no answer within {limit_s:g} s"
    # An older server may have answered while this one failed to take its place.
    return None if server.poll() is None else f"it ended with code {server.returncode}"


def _hold(server: subprocess.Popen[bytes], service: _Service) -> int:
    """Wait until the service or the server has ended; return the exit code."""
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while server.poll() is None:
        if service.ended(_PARENT_CHECK_S, wake):
            return 0
    return 1


def _run(binary: str, socket_path: str, folder: str, service: _Service, limit_s: float) -> int:
    try:
        server = _start_server(binary, socket_path, folder)
    except OSError as exc:
        _report(error=f"{binary} cannot be run: {exc}")
        return 1
    identity = None
    try:
        problem = _wait_until_ready(server, service, socket_path, limit_s)
        identity = _identity(socket_path)
        if problem is not None:
            _report(error=f"{problem}: {_log_tail(folder)}".rstrip(": "))
            return 1
        _report(server_pid=server.pid, folder=folder)
        return _hold(server, service)
    finally:
        server.kill()
        server.wait()
        # By now the path may belong to the server of the service's next start.
        if identity is not None and _identity(socket_path) == identity:
            Path(socket_path).unlink()


def main(service_pid: str, limit_s: str, socket_path: str, binary: str) -> int:
    """Run a server for as long as the service runs; return the exit code."""
    for number in _LEFT_TO_THE_SERVICE:
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    folder = tempfile.mkdtemp(prefix="mdservice-")
    try:
        return _run(binary, socket_path, folder, _Service(int(service_pid)), float(limit_s))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
