"""What a Redis server's error replies mean, and what to do about them."""

from __future__ import annotations

__all__ = ["describe_refusal"]

_CLUSTER = "Redis Cluster cannot hold one transaction over all symbols; use a single server"
_LOGIN = "set user and password in the Redis URL (MDSERVICE_REDIS_URL)"
_ADVICE = {
    "OOM": "raise the server's maxmemory or let it evict keys; prices are kept here until then",
    "READONLY": "this server is a replica; set MDSERVICE_REDIS_URL to the primary",
    "NOPERM": (
        "allow this user MULTI, EXEC, SET, GET, MGET and PUBLISH (XADD for an event log) on the "
        "keys price:* and mdservice:writer:* and the channels price.updated and feed.status"
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
    "CLUSTERDOWN": _CLUSTER,
}


def describe_refusal(address: str, text: str) -> str:
    """One sentence for a person: who refused, in which words, and what to do.

    Args:
        address: The server's address, without a secret.
        text: The error reply, such as ``OOM command not allowed when used memory > 'maxmemory'.``
    """
    advice = _ADVICE.get(text.partition(" ")[0])
    said = f"Redis at {address} refused: {text.rstrip('.')}"
    return f"{said}; {advice}" if advice else said
