"""The protocol of a group's lease: who of several services of one account leads.

::

    look ──free──▶ claim ──▶ renew, every second ──▶ release
      ▲                        │
      └───────Deposed──────────┘

A claim raises the epoch and ends the connections of every earlier leader. Only then does the new
leader read and write. A leader registers each connection under its epoch before it writes on it,
and the group refuses that once another service has claimed. So a write costs nothing more.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import msgspec

from mdservice.clock import Clock
from mdservice.model.timestamps import format_ns

__all__ = [
    "LEASE_S",
    "LOOK_EVERY_S",
    "RENEW_EVERY_S",
    "Leader",
    "Lease",
    "MovingLease",
    "decode_leader",
    "encode_leader",
    "this_process",
]

LEASE_S: Final = 3.0
"""How long a lease lasts without a renewal, seconds."""
RENEW_EVERY_S: Final = 1.0
"""How often the leader renews it."""
LOOK_EVERY_S: Final = 0.1
"""How often a standby looks whether it is free."""


class Leader(msgspec.Struct, frozen=True):
    """A member of a group, as the lease names it.

    Attributes:
        id: A random name, new for each start of the service.
        host: The name of its machine.
        pid: Its process id.
        socket: The path of its API's socket.
        epoch: The number of its term in the group, from 1. 0 while it has not led.
        since: When its term began, RFC 3339; empty while it has not led.
    """

    id: str
    host: str
    pid: int
    socket: str
    epoch: int = 0
    since: str = ""

    @property
    def shown(self) -> str:
        """For a person: ``trader1 (process 4711)``."""
        return f"{self.host} (process {self.pid})"

    def leads(self, epoch: int, clock: Clock) -> Leader:
        """The same member at the start of its term."""
        return msgspec.structs.replace(self, epoch=epoch, since=format_ns(clock.utc_ns()))


def this_process(api_socket: Path) -> Leader:
    """This process as a member of a group, with a new id."""
    name = secrets.token_hex(8)  # noqa: TID251 - an id that no other member has
    return Leader(name, socket.gethostname(), os.getpid(), str(api_socket))


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Leader)


def encode_leader(leader: Leader) -> bytes:
    """One line of JSON."""
    return _encoder.encode(leader)


def decode_leader(payload: bytes | str) -> Leader:
    """Decode the text of :func:`encode_leader`.

    Raises:
        ValueError: It is any other text.
    """
    return _decoder.decode(payload)


class Lease(Protocol):
    """One member's view of the lease of its group. Calls may overlap."""

    @property
    def address(self) -> str:
        """Where the lease is kept, without any secret."""
        ...

    @property
    def last_error(self) -> str | None:
        """Why the last call failed; None after one that succeeded."""
        ...

    @property
    def own(self) -> Leader:
        """This member, with the epoch of its present or last term."""
        ...

    async def look(self) -> Leader | None:
        """Who leads now; None while the lease is free. Also shows that this standby is alive.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def claim(self) -> Leader | None:
        """Lead, unless another member does.

        Returns:
            This member in its new term, once no earlier leader can write any more. None if another
            member leads, or if after an outage one may come that knows a later term.

        Raises:
            StoreUnavailable, StoreRefused: It is not known whether the claim has succeeded. The
                next call claims again.
        """
        ...

    async def renew(self) -> bool:
        """Lead for another :data:`LEASE_S`; after an outage also with a new epoch.

        Returns:
            Whether a standby is alive.

        Raises:
            Deposed: Another member has claimed the lease.
            StoreUnavailable, StoreRefused
        """
        ...

    async def release(self) -> None:
        """Free the lease if it is this member's, so that a standby claims at once.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def remember(self, wishes: bytes) -> None:
        """Keep what the leader's programs want for the next leader.

        Raises:
            Deposed: Another member has claimed the lease; nothing was changed.
            StoreUnavailable, StoreRefused
        """
        ...

    async def recall(self) -> bytes | None:
        """What the last leader's programs wanted, or None.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def aclose(self) -> None:
        """Close the connection; never raises for a broken one."""
        ...


@runtime_checkable
class MovingLease(Protocol):
    """A lease whose server may be replaced by another one while it still answers."""

    async def watch(self) -> None:
        """Break the connection to a server that is replaced; returns if that cannot happen.

        A member runs it beside the other calls. Raises nothing.
        """
        ...
