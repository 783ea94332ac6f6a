"""The sockets on which the API listens.

Only one service can listen at the path of a UNIX socket, and no other user can open it. TCP beyond
loopback requires a token.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex

import anyio

from mdservice.errors import ConfigurationError, SocketInUse
from mdservice.runtime.network import cannot_listen
from mdservice.runtime.runtime_dir import prepare_socket_folder
from mdservice.settings.parsers import SOCKET_PATH_BYTES, host_and_port, is_loopback

__all__ = ["tcp_address", "tcp_listeners", "unix_listener"]

_MODE = 0o600
_BACKLOG = 128
_TEMPORARY_NAME_BYTES = 9
_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


@contextmanager
def unix_listener(path: Path) -> Iterator[socket.socket]:
    """A listening socket at the path, mode 0600, inside this block.

    The path always leads to a socket that answers: the socket is bound under a temporary name
    and renamed. If two services start together, a lock file beside the path lets one of them
    win. A socket that a killed service left behind is replaced. At the end, the path is removed
    if it is still ours.

    Raises:
        SocketInUse: A running service has this path.
        ConfigurationError: The socket cannot be created there.
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
    if longest > SOCKET_PATH_BYTES:
        raise ConfigurationError(
            f"the socket's path is too long, {longest} bytes where the system takes "
            f"{SOCKET_PATH_BYTES}: set MDSERVICE_SOCKET to a shorter one ({path})"
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file of this path, which contains our process id."""
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
        os.close(descriptor)  # Its last owner removed it after we opened it.
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
    """Distinguish the socket of a running service from one that was left behind.

    The lock does the same for services of this version. A test connection also finds others.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(
            f"{path} exists and is not a socket: remove it, or set MDSERVICE_SOCKET to another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # Its queue is full: a service listens.
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
            # No client can connect before listen(), so none sees another mode.
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


async def tcp_listeners(
    http: str,
    *,
    token: str | None,
    setting: str = "MDSERVICE_HTTP",
    needed: str = "MDSERVICE_API_TOKEN",
    any_port: bool = False,
) -> list[socket.socket]:
    """Listen at every address of the host, with the same port.

    Args:
        http: ``host:port``, an IPv6 address in brackets; port 0 uses a free one.
        token: The API's token. Without it, only loopback addresses are allowed.
        setting: The name that errors use.
        needed: The setting without which other addresses are refused.
        any_port: Use a free port if this one cannot be used.

    Raises:
        ConfigurationError: ``http`` is not host:port, the host is unknown, the port is in use or
            not allowed, or the address is beyond loopback and there is no token.
    """
    try:
        host, port = host_and_port(http)
    except ValueError as error:
        raise ConfigurationError(f"{setting}: {error}") from error
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise cannot_listen(setting, http, error) from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    names = (str(address[0]).partition("%")[0] for _, address in addresses)
    if token is None and not all(map(is_loopback, names)):
        raise ConfigurationError(
            f"{setting}: {http} is open to other machines: set {needed}, or listen on 127.0.0.1"
        )
    try:
        return _listen(addresses, http, setting)
    except ConfigurationError:
        if not any_port:
            raise
    return _listen([(family, (at[0], 0, *at[2:])) for family, at in addresses], http, setting)


def tcp_address(listener: socket.socket) -> str:
    """The address, as ``127.0.0.1:8080`` or ``[::1]:8080``."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(addresses: Sequence[_Address], http: str, setting: str) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    port = 0
    absent: OSError | None = None
    with ExitStack() as stack:
        for family, address in addresses:
            try:
                listener = _listen_at(family, (address[0], port or address[1], *address[2:]))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise cannot_listen(setting, http, error) from error
                absent = error  # `localhost` may mean an IPv6 address on a machine without IPv6.
                continue
            stack.callback(listener.close)
            listeners.append(listener)
            port = listener.getsockname()[1]
        if not listeners:
            reason = absent or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
            raise cannot_listen(setting, http, reason) from absent
        stack.pop_all()
    return listeners


def _listen_at(family: socket.AddressFamily, address: tuple[str | int, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
