"""The API's UNIX socket: never two services behind one path, and never open to other users."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex

from mdservice.errors import ConfigurationError, SocketInUse
from mdservice.runtime_folder import prepare_socket_folder

__all__ = ["unix_listener"]

_MODE = 0o600
_BACKLOG = 128
_MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""What ``sockaddr_un`` holds, less its closing zero."""
_TEMPORARY_NAME_BYTES = 9


@contextmanager
def unix_listener(path: Path) -> Iterator[socket.socket]:
    """A listening socket at the path, mode 0600, for as long as the context lasts.

    The path always leads to a socket that answers: it is bound beside it and renamed into
    place. A lock file beside it lets one of two services that start together win. A socket
    that a killed service left behind is replaced. At the end, the path is removed if it is
    still ours.

    Raises:
        SocketInUse: A running service has this path.
        ConfigurationError: No socket can be made there.
    """
    path = path.absolute()
    _check_length(path)
    prepare_socket_folder(path)
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock(path))
            _refuse_live(path)
            listener, identity = _bind(path)
        except PermissionError as error:
            raise ConfigurationError(
                f"the socket {path} cannot be made: {error.strerror} "
                f"({error.filename or path}); set MDSERVICE_SOCKET to a path in a folder of yours"
            ) from error
        stack.enter_context(listener)
        stack.callback(_remove_ours, path, identity)
        yield listener


def _check_length(path: Path) -> None:
    longest = max(len(os.fsencode(path)), len(os.fsencode(path.parent)) + 1 + _TEMPORARY_NAME_BYTES)
    if longest > _MAX_PATH_BYTES:
        raise ConfigurationError(
            f"the socket's path is too long, {longest} bytes where the system takes "
            f"{_MAX_PATH_BYTES}: set MDSERVICE_SOCKET to a shorter one ({path})"
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file of this path, with our process id in it."""
    lock = path.with_name(path.name + ".lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise _in_use(path, holder) from None
        if _is_at(lock, os.fstat(descriptor)):
            break
        os.close(descriptor)  # Its last holder has removed it since we opened it.
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _in_use(path: Path, pid: str) -> SocketInUse:
    who = f"another service (process {pid})" if pid else "another service"
    stop = f"stop it (kill {pid})" if pid else "stop it"
    return SocketInUse(
        f"{who} already answers at {path}: {stop}, or set MDSERVICE_SOCKET to another path"
    )


def _refuse_live(path: Path) -> None:
    """Tell a socket that somebody listens on from one that was left behind.

    The lock says the same of a service of this version; the connection also finds any other.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(
            f"{path} exists and is no socket: remove it, or set MDSERVICE_SOCKET to another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # Its queue is full: somebody listens.
        raise _in_use(path, _peer_pid(probe))


def _peer_pid(connection: socket.socket) -> str:
    if not hasattr(socket, "SO_PEERCRED"):
        return ""
    form = struct.Struct("3i")
    try:
        pid, _, _ = form.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
        )
    except OSError:
        return ""
    return str(pid) if pid > 0 else ""


def _bind(path: Path) -> tuple[socket.socket, os.stat_result]:
    temporary = path.with_name("." + token_hex((_TEMPORARY_NAME_BYTES - 1) // 2))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(temporary))
        try:
            # Nobody can connect before listen(), so no one sees it with another mode.
            temporary.chmod(_MODE)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            identity = temporary.lstat()
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError:
        listener.close()
        raise
    return listener, identity


def _remove_ours(path: Path, identity: os.stat_result) -> None:
    if _is_at(path, identity):
        path.unlink(missing_ok=True)


def _is_at(path: Path, identity: os.stat_result) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (identity.st_dev, identity.st_ino)
