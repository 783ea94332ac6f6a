"""Starts ``mdservice`` many times without importing it each time.

``python -m mdservice run`` spends most of its start on imports: more than a second of processor
time. A fork server, a process of its own for each worker of pytest, has imported the program once
and forks for each start. What it starts is a process like any other, with its own environment,
folder and output; only its command line in ``/proc`` is the server's.

:class:`tests.integration.conftest.Program` says what is started afresh all the same.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from mdservice.feed.alpaca import sdk_driver

__all__ = ["ForkServer", "Forked"]

_START_LIMIT_S = 120.0
_LARGEST_BYTES = 1 << 17
_ROOT = Path(__file__).parents[2]
_PRELOADED = (
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "httpcore",
    "httpx",
    "hypercorn.asyncio",
    "mdservice.app.run",
    "mdservice.cli.checks",
    "mdservice.cli.watch.screen",
    "mdservice.observability.log_output",
    "mdservice.publish.instances",
    "mdservice.redis_io.cluster_store",
    "mdservice.redis_io.embedded",
    "mdservice.redis_io.store",
    "mdservice.relay.server",
    "mdservice.simulator",
    "websockets.trio.client",
)
"""Those that take long."""


class Forked:
    """A program that the server has started, with the part of ``Popen`` that tests use.

    Args:
        pid: Its process id.
        answers: Brings its exit code.

    Attributes:
        returncode: Its exit code, below 0 for a signal; None until its end has been noticed.
    """

    def __init__(self, pid: int, answers: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._answers = answers

    def poll(self) -> int | None:
        """The exit code if it has ended."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit code.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("mdservice", timeout or 0.0)
        return code

    def _look(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            self._answers.settimeout(timeout_s)
            try:
                text = self._answers.recv(64)
            except (TimeoutError, BlockingIOError):
                return None
            self._answers.close()
            assert text, "the fork server has ended"
            self.returncode = int(text)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The test's side of the server. Starts it; :meth:`close` ends it."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(_ROOT),
            # A process with threads must not fork: those of numpy and of pyarrow.
            "OPENBLAS_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=_ROOT,
                env=environment,
            )
        self._requests.settimeout(_START_LIMIT_S)
        assert self._requests.recv(64) == b"ready"

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        out: IO[bytes],
        err: IO[bytes],
    ) -> Forked:
        """Start ``mdservice ARGUMENTS`` with exactly this environment."""
        request = {"arguments": arguments, "environment": environment, "folder": str(folder)}
        answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = [theirs.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
        answers.settimeout(_START_LIMIT_S)
        return Forked(int(answers.recv(64)), answers)

    def close(self) -> None:
        """End the server; the programs that it has started go on."""
        self._requests.close()
        self._process.wait(_START_LIMIT_S)


def _preload() -> None:
    """Import what the commands import, and nothing that starts a thread."""
    for name in _PRELOADED:
        importlib.import_module(name)
    sdk_driver._import_sdk()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads must not fork"


def _serve(requests: socket.socket) -> None:
    """Fork for each request, and report each end. Returns in the child, and at the end."""
    children: dict[int, socket.socket] = {}
    awake, waker = socket.socketpair()
    waker.setblocking(False)
    awake.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    requests.send(b"ready")
    while True:
        ready = select.select([requests, awake], [], [])[0]
        if awake in ready:
            awake.recv(4_096)
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    _report(children.pop(pid), os.waitstatus_to_exitcode(status))
        if requests not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, _LARGEST_BYTES, 3)
        if not message:
            return
        answer, out, err = descriptors
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, interrupted)
            for open_socket in (requests, awake, waker, *children.values()):
                open_socket.close()
            os.close(answer)
            for descriptor, number in ((out, 1), (err, 2)):
                os.dup2(descriptor, number)
                os.close(descriptor)
            _become(**json.loads(message))
            return
        os.close(out)
        os.close(err)
        children[pid] = socket.socket(fileno=answer)
        _report(children[pid], pid)


def _report(answers: socket.socket, number: int) -> None:
    """Send the test a process id, or an exit code at the end."""
    with contextlib.suppress(OSError):  # the test may not wait for it
        answers.send(str(number).encode())


def _become(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Run the program, as ``python -m mdservice`` does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    tempfile.tempdir = None
    sys.argv = ["mdservice", *arguments]
    runpy.run_module("mdservice", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _preload()
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
