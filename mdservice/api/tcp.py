"""The TCP listener of the API."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

import anyio

from mdservice.errors import ConfigurationError
from mdservice.settings_values import host_and_port

__all__ = ["tcp_address", "tcp_listeners"]

_BACKLOG = 128
_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_OtherAddress = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


async def tcp_listeners(
    http: str, *, token: str | None, setting: str = "MDSERVICE_HTTP"
) -> list[socket.socket]:
    """Listen at every address of the host, all at one port.

    Args:
        http: ``host:port``, an IPv6 address in brackets; port 0 takes a free one.
        setting: What errors call it.
        token: The API's token, without which only loopback addresses are taken.

    Raises:
        ConfigurationError: It is not host:port, the host is unknown, the port is taken or not
            allowed, or the address is not on loopback and there is no token.
    """
    try:
        host, port = host_and_port(http)
    except ValueError as error:
        raise ConfigurationError(f"{setting}: {error}") from error
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{setting}: the host {host} is unknown: {error}") from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    open_to_others = [address[0] for _, address in addresses if not _is_loopback(str(address[0]))]
    if open_to_others and token is None:
        raise ConfigurationError(
            f"{setting}: {http} is open to other machines, so it needs a token: set "
            "MDSERVICE_API_TOKEN, or listen on 127.0.0.1"
        )
    return _listen(addresses, http, setting)


def tcp_address(listener: socket.socket) -> str:
    """Where it listens, as ``127.0.0.1:8080`` or ``[::1]:8080``."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _listen(addresses: Sequence[_OtherAddress], http: str, setting: str) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    port = 0
    absent: OSError | None = None
    with ExitStack() as stack:
        for family, address in addresses:
            try:
                listener = _listen_at(family, (address[0], port or address[1], *address[2:]))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise _cannot_listen(http, error, setting) from error
                absent = error  # `localhost` may name an IPv6 address on a machine without any.
                continue
            stack.callback(listener.close)
            listeners.append(listener)
            port = listener.getsockname()[1]
        if not listeners:
            reason = absent or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
            raise _cannot_listen(http, reason, setting) from absent
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


def _cannot_listen(http: str, error: OSError, setting: str) -> ConfigurationError:
    reasons = {
        errno.EADDRINUSE: "the port is in use: stop the program that has it, or choose another",
        errno.EACCES: "ports below 1024 are not for every user: choose a higher one",
        errno.EADDRNOTAVAIL: "this machine has no such address: use 127.0.0.1 or one of its own",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return ConfigurationError(f"{setting}: cannot listen at {http}: {reason}")
