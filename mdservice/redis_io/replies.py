"""Parses a server's replies, and explains its refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import attrs
import hiredis

from mdservice.errors import StoreRefused, StoreUnavailable

__all__ = [
    "ANY_ERROR",
    "MISSING",
    "READ_BYTES",
    "REDIRECTIONS",
    "Role",
    "ServerRole",
    "array",
    "collect",
    "describe_refusal",
    "hung_up",
    "is_error",
    "malformed",
    "needs_new_connection",
    "new_reader",
    "refusal",
    "refusal_code",
    "role_of",
]


# What a Redis server's error replies mean, and what to do about them.


_CLUSTER = (
    "this server is a node of a cluster; write redis+cluster:// instead of redis:// "
    "(MDSERVICE_REDIS_URL)"
)
_LOGIN = "set user and password in the Redis URL (MDSERVICE_REDIS_URL)"
_ADVICE = {
    "OOM": "raise the server's maxmemory or let it evict keys; prices are kept here until then",
    "READONLY": "this server is a replica; set MDSERVICE_REDIS_URL to the primary",
    "NOPERM": (
        "allow this user what the service needs: `mdservice check` prints the ACL line. For prices "
        "alone: MULTI, EXEC, SET, GET, MGET and PUBLISH (XADD for an event log) on the keys "
        "price:* and mdservice:* and the channels price.updated and feed.status, with "
        "MDSERVICE_KEY_PREFIX in front of each"
    ),
    "MISCONF": "the server cannot save its data and refuses writes; look at its disk and its log",
    "LOADING": "the server is still loading its data; it is tried again",
    "BUSY": "a script blocks the server; end it with SCRIPT KILL",
    "NOREPLICAS": "too few replicas are connected to the server; look at min-replicas-to-write",
    "MASTERDOWN": "this replica has lost its primary; set MDSERVICE_REDIS_URL to the primary",
    "DENIED": "the server runs in protected mode; give it a password, or bind it to loopback",
    "NOAUTH": _LOGIN,
    "WRONGPASS": _LOGIN,
    "CROSSSLOT": _CLUSTER,
    "MOVED": _CLUSTER,
    "CLUSTERDOWN": (
        "a part of the cluster has no working node; start the failed node, or wait until its "
        "replica takes over"
    ),
    "TRYAGAIN": "a slot of the cluster is on its way to another node; it is tried again",
    "UNBLOCKED": "the server became a replica; connecting again",
}
_RECONNECT: Final = frozenset(
    {
        # The server is not the primary any more; another server behind the address is.
        "READONLY",
        "MASTERDOWN",
        "UNBLOCKED",
        # A primary that has lost its replicas: they may have elected another one.
        "NOREPLICAS",
        # A primary that cannot save, or starts: an operator or a sentinel moves the address.
        "MISCONF",
        "LOADING",
        # Another node behind the address may have a working view of the cluster.
        "CLUSTERDOWN",
        # The connection is not logged in any more; connecting logs in again.
        "NOAUTH",
    }
)
"""Refusals that a new connection may cure at once.

The others concern the command, the user or the data, so every server behind the address gives
them: ``NOPERM``, ``WRONGPASS``, ``OOM``, ``BUSY``, ``CROSSSLOT``, ``MOVED``, ``ASK``,
``TRYAGAIN``, ``WRONGTYPE``. The writer connects again for these as well, but only after a few
seconds.
"""
REDIRECTIONS: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})
"""Refusals of a cluster's node for a key that another node serves, now or soon."""
_ABORTED: Final = "EXECABORT Transaction discarded because of: "


def refusal_code(text: str) -> str:
    """The first word of an error reply; of an aborted transaction, the code of its reason."""
    return text.removeprefix(_ABORTED).partition(" ")[0]


def needs_new_connection(text: str) -> bool:
    """Whether a new connection to the same address may cure the refusal."""
    return refusal_code(text) in _RECONNECT


def refusal(address: str, text: str) -> StoreRefused:
    """The error for a server's error reply.

    Args:
        address: The server's address, without a secret.
        text: The error reply.
    """
    return StoreRefused(
        describe_refusal(address, text),
        reconnect=needs_new_connection(text),
        code=refusal_code(text),
    )


def describe_refusal(address: str, text: str) -> str:
    """One sentence for a person: which server refused, its words, and what to do.

    Args:
        address: The server's address, without a secret.
        text: The error reply, such as ``OOM command not allowed when used memory > 'maxmemory'.``
    """
    advice = _ADVICE.get(refusal_code(text))
    said = f"Redis at {address} refused: {text.rstrip('.')}"
    return f"{said}; {advice}" if advice else said


READ_BYTES: Final = 65_536
"""The most bytes of one read."""
_NO_OBJECT: Final = (TypeError, ValueError, OverflowError, RecursionError)
"""The errors of hiredis for replies that are right, but no objects, such as a map by lists."""
MISSING: Final = object()
"""What a reader returns while it has no whole reply."""


def new_reader() -> hiredis.Reader:
    """A reader that returns :data:`MISSING` for no reply, since None is a reply."""
    return hiredis.Reader(notEnoughData=MISSING)


def collect(reader: hiredis.Reader, replies: list[Any], count: int) -> bool:
    """Append the whole replies that have come, up to ``count``; return whether that is reached.

    Further replies stay in the reader.

    Raises:
        hiredis.ProtocolError: What has come is no reply.
    """
    gets = reader.gets
    try:
        while len(replies) < count:
            if (reply := gets()) is MISSING:
                return False
            replies.append(reply)
    except _NO_OBJECT as exc:
        raise hiredis.ProtocolError(f"a reply that cannot be read: {exc}") from exc
    return True


ANY_ERROR: Final = hiredis.ReplyError
"""The type of a server's errors, for a look at thousands of replies."""


def is_error(reply: object) -> bool:
    """Whether a reply is an error of the server."""
    return isinstance(reply, hiredis.ReplyError)


def array(address: str, reply: object, length: int) -> list[Any]:
    """The reply, which has to be an array of this length.

    Raises:
        StoreUnavailable: It is anything else.
    """
    if not isinstance(reply, list) or len(reply) != length:
        raise malformed(address)
    return reply


Role = Literal["primary", "replica"]
"""What a server is to the others that hold the same data."""


@attrs.frozen
class ServerRole:
    """What a server is to the others that hold the same data.

    Attributes:
        name: Its role.
        follows: Whether it is in step with its primary; always for a primary itself.
    """

    name: Role
    follows: bool = True


def role_of(reply: object) -> ServerRole | None:
    """The answer to ``ROLE``; None if it tells nothing, as where the user may not ask."""
    if not isinstance(reply, list) or not reply:
        return None
    if reply[0] == b"slave":
        return ServerRole("replica", follows=reply[3:4] == [b"connected"])
    return ServerRole("primary") if reply[0] == b"master" else None


def malformed(address: str) -> StoreUnavailable:
    """The error for a reply that no Redis server gives to the command."""
    return StoreUnavailable(
        f"What answers at {address} does not answer as Redis does; connecting again. Is the "
        "address right?"
    )


def hung_up(replies: Sequence[object]) -> ConnectionResetError:
    """The error for a connection that the server closed, with the reason that it sent before."""
    reasons = [f": {reply}" for reply in replies[-1:] if is_error(reply)]
    return ConnectionResetError("the server closed it" + "".join(reasons))
