"""Checks the rights of the service on a Redis server, without effect.

A server checks a user's rights, its memory, its role and its disk when it queues a command of a
transaction. Commands are therefore queued as ``run`` sends them, with the real names. Nothing is
executed: ``mdservice check`` closes its connection before ``EXEC``, and the writer queues a broken
command too, so that the server drops the transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import attrs

from mdservice.model.kinds import KINDS, QUOTES, TRADES, Kind
from mdservice.publish.store import Refusable
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection, RedisLocator
from mdservice.redis_io.names import (
    ACCOUNT_CHANNEL,
    INSTANCES_CHANNEL,
    STATUS_CHANNEL,
    RedisNames,
)
from mdservice.redis_io.replies import REDIRECTIONS, is_error, refusal, refusal_code

__all__ = ["MissingRights", "RedisRights", "missing_rights", "try_rights"]

_CLIENT_NAME: Final = "mdservice-check"
_BROKEN: Final = pack(b"GET")
"""A command without its key."""


@attrs.frozen
class RedisRights:
    """The rights that the server refuses.

    Attributes:
        missing: Rights that ``run`` requires: ``PUBLISH price.updated``.
        reduced: Rights that ``run`` can do without, with the consequence.
        refused: The server's message if it refuses for another reason.
    """

    missing: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    refused: str | None = None


@attrs.frozen
class MissingRights:
    """The rights that the writer's user lacks.

    Attributes:
        needed: Those without which the server refuses every write: ``PUBLISH price.updated``.
        others: The kinds and channels that cannot be written, each with what is missing. Never
            quotes.
    """

    needed: str = ""
    others: Mapping[Refusable, str] = attrs.field(factory=dict)


async def missing_rights(
    connection: RedisConnection, names: RedisNames, event_log: str | None
) -> MissingRights:
    """Try the rights to write each kind, on a connection that may use ``MULTI`` and ``EXEC``.

    Raises:
        StoreUnavailable, StoreRefused
    """
    needed = {**_to_write(names, QUOTES), **_to_write_any(names, event_log)}
    others: dict[Refusable, dict[str, bytes]] = {
        kind: _to_write(names, kind) for kind in KINDS if kind is not QUOTES
    }
    others[ACCOUNT_CHANNEL] = _to_publish(names, ACCOUNT_CHANNEL)
    # Without MULTI, the server would execute the commands.
    (multi,) = await connection.call(pack(b"MULTI"))
    if is_error(multi):
        raise refusal(connection.address, str(multi))
    commands = [command for each in (needed, *others.values()) for command in each.values()]
    replies = iter(await connection.call(*commands, _BROKEN, pack(b"EXEC")))

    def refused(rights: Iterable[str]) -> str:
        answers = [(right, next(replies)) for right in rights]
        return ", ".join(
            right
            for right, reply in answers
            if is_error(reply) and refusal_code(str(reply)) == "NOPERM"
        )

    missing = refused(needed)
    found = {one: refused(rights) for one, rights in others.items()}
    return MissingRights(missing, {one: rights for one, rights in found.items() if rights})


async def try_rights(
    address: RedisLocator,
    names: RedisNames,
    *,
    event_log: str | None,
    renew_prices: bool,
    timeout_s: float,
    kinds: Collection[Kind[Any]] = (QUOTES,),
    account: bool = False,
    group: str | None = None,
) -> RedisRights:
    """Queue each command that ``run`` sends, and execute none.

    Args:
        address: The server.
        names: Its keys and channels.
        event_log: The stream's name without the prefix, or None.
        renew_prices: Whether the service renews prices.
        timeout_s: How long connecting, and each wait for the server, may take.
        kinds: The kinds of records that the settings want, quotes among them. The service can do
            without the rights for the others until a program subscribes them.
        account: Whether the service publishes the events of the account.
        group: The service's standby group, whose lease needs the rights to fence.

    Raises:
        StoreUnavailable, StoreRefused
    """
    needed, useful = _commands(names, event_log, kinds, renew_prices=renew_prices)
    if group is not None:
        needed |= {right: useful.pop(right)[0] for right in ("CLIENT ID", "CLIENT KILL", "INFO")}
        needed["EVAL"] = pack(b"EVAL", b"return 1", b"0")
        for key in names.group_keys(group):
            needed[f"SET {key.decode()}"] = pack(b"SET", key, b"{}")
    if account:
        late = "without it the gateway sees fills only when it asks for positions"
        for right, command in _to_publish(names, ACCOUNT_CHANNEL).items():
            useful[right] = command, late
    others = {kind: _of_kind(names, kind) for kind in KINDS if kind not in kinds}
    connection = await RedisConnection.open(address, _CLIENT_NAME, limit_s=timeout_s)
    found: list[RedisRights] = []
    try:
        for server in await connection.servers():  # each node of a cluster has its own users
            refused, reduced = await _try_on(server, needed, useful, others)
            if address.clustered:
                refused, reduced = _not_redirected(refused), _not_redirected(reduced)
            found.append(_result(refused, reduced))
    finally:
        connection.close()
    return RedisRights(
        tuple(dict.fromkeys(name for rights in found for name in rights.missing)),
        tuple(dict.fromkeys(name for rights in found for name in rights.reduced)),
        next((rights.refused for rights in found if rights.refused is not None), None),
    )


_Refusals = list[tuple[str, str]]
"""The names of rights, each with the server's message."""


async def _try_on(
    connection: RedisConnection,
    needed: Mapping[str, bytes],
    useful: Mapping[str, tuple[bytes, str]],
    others: Mapping[Kind[Any], dict[str, bytes]],
) -> tuple[_Refusals, _Refusals]:
    """Which of the needed, and of the other rights, a server refuses."""
    # Without MULTI, the server would execute the commands.
    (multi,) = await connection.exchange(pack(b"MULTI"), 1)
    if is_error(multi):
        return [("MULTI", str(multi))], []
    # A refused EXEC ends the transaction too, and the server would execute further commands.
    (executed,) = await connection.exchange(pack(b"EXEC"), 1)
    if is_error(executed):
        return [("EXEC", str(executed))], []
    (multi,) = await connection.exchange(pack(b"MULTI"), 1)
    if is_error(multi):
        return [("MULTI", str(multi))], []
    replies = await connection.exchange(b"".join(needed.values()), len(needed))
    refused = [
        (name, str(reply)) for name, reply in zip(needed, replies, strict=True) if is_error(reply)
    ]
    commands = [command for command, _ in useful.values()]
    replies = await connection.exchange(b"".join(commands), len(commands))
    reduced = [
        (f"{name} ({without})", str(reply))
        for (name, (_, without)), reply in zip(useful.items(), replies, strict=True)
        if is_error(reply)
    ]
    for kind, commands_of in others.items():
        replies = await connection.exchange(b"".join(commands_of.values()), len(commands_of))
        reduced += _reduced_kind(kind, dict(zip(commands_of, replies, strict=True)))
    return refused, reduced


def _not_redirected(refusals: _Refusals) -> _Refusals:
    """Without those that only say that another node of the cluster serves the key."""
    return [(name, text) for name, text in refusals if refusal_code(text) not in REDIRECTIONS]


def _reduced_kind(kind: Kind[Any], replies: dict[str, Any]) -> _Refusals:
    """One entry for all rights of a kind that nothing in the settings wants."""
    refused = {name: str(reply) for name, reply in replies.items() if is_error(reply)}
    if not refused:
        return []
    without = f"without these, {kind.channel} are not written"
    text = next((t for t in refused.values() if refusal_code(t) != "NOPERM"), None)
    return [(f"{', '.join(refused)} ({without})", text or next(iter(refused.values())))]


def _of_kind(names: RedisNames, kind: Kind[Any]) -> dict[str, bytes]:
    """The commands that records of a kind need, by the name of each right."""
    commands = _to_write(names, kind)
    if kind.has_key:
        key = names.key_prefix(kind) + b"AAPL"
        commands[f"MGET {names.keys(kind).decode()}"] = pack(b"MGET", key)
    return commands


def _to_write(names: RedisNames, kind: Kind[Any]) -> dict[str, bytes]:
    """The commands without which records of a kind cannot be written, likewise."""
    commands = {}
    if kind.has_key:
        keys, key = names.keys(kind).decode(), names.key_prefix(kind) + b"AAPL"
        commands[f"SET {keys}"] = pack(b"SET", key, b"{}", b"EX", b"300")
        if kind is TRADES:
            commands[f"DEL {keys}"] = pack(b"DEL", key)
    if kind.stream is not None:
        stream = names.stream(kind.stream)
        limit = (b"MAXLEN", b"~", b"%d" % kind.stream.maxlen)
        words = (b"XADD", stream, *limit, b"*", b"id", b"1", b"data", b"{}")
        commands[f"XADD {stream.decode()}"] = pack(*words)
    return commands | _to_publish(names, kind.event)


def _to_publish(names: RedisNames, name: str) -> dict[str, bytes]:
    channel = names.channel(name)
    return {f"PUBLISH {channel.decode()}": pack(b"PUBLISH", channel, b"{}")}


def _to_write_any(names: RedisNames, event_log: str | None) -> dict[str, bytes]:
    """The commands of every batch, likewise."""
    writer, writers = names.writer_key("check"), names.writer_key("*").decode()
    commands = {
        f"SET {writers}": pack(b"SET", writer, b"0", b"EX", b"1"),
        f"GET {writers}": pack(b"GET", writer),
        **_to_publish(names, STATUS_CHANNEL),
    }
    if event_log is not None:
        log = names.event_log(event_log)
        words = (b"XADD", log, b"MAXLEN", b"~", b"100000", b"*", b"symbol", b"AAPL", b"data", b"{}")
        commands[f"XADD {log.decode()}"] = pack(*words)
    return commands


def _result(refused: _Refusals, reduced: _Refusals) -> RedisRights:
    others = [text for _, text in refused if refusal_code(text) != "NOPERM"]
    return RedisRights(
        missing=tuple(name for name, text in refused if refusal_code(text) == "NOPERM"),
        reduced=tuple(name for name, text in reduced if refusal_code(text) == "NOPERM"),
        refused=others[0] if others else None,
    )


def _commands(
    names: RedisNames, event_log: str | None, kinds: Collection[Kind[Any]], *, renew_prices: bool
) -> tuple[dict[str, bytes], dict[str, tuple[bytes, str]]]:
    """The required and the optional commands, by the name of each right."""
    instance = names.instance_key
    needed: dict[str, bytes] = {}
    for kind in kinds:
        needed.update(_of_kind(names, kind))
    needed.update(_to_write_any(names, event_log))

    fence = "without it a write whose connection broke may be executed twice"
    notice = "without it other services on this server are not noticed"
    instances = names.channel(INSTANCES_CHANNEL)
    key = instance.decode()
    useful = {
        "CLIENT ID": (pack(b"CLIENT", b"ID"), fence),
        "CLIENT KILL": (pack(b"CLIENT", b"KILL", b"ID", b"0"), fence),
        "INFO": (pack(b"INFO", b"server"), fence),
        f"PUBLISH {instances.decode()}": (pack(b"PUBLISH", instances, b"{}"), notice),
        f"SUBSCRIBE {instances.decode()}": (pack(b"SUBSCRIBE", instances), notice),
        f"GET {key}": (pack(b"GET", instance), notice),
        f"SET {key}": (pack(b"SET", instance, b"{}", b"PX", b"1"), notice),
        f"DEL {key}": (
            pack(b"DEL", instance),
            "without it a service that has ended is remembered for 3.5 s",
        ),
    }
    for kind in kinds:
        marker = names.channel(kind.marker)
        useful[f"PUBLISH {marker.decode()}"] = (
            pack(b"PUBLISH", marker, b"check 0 0"),
            "without it readers cannot separate the events of two services",
        )
        if kind.stream is not None:
            stream = names.stream(kind.stream)
            useful[f"XREVRANGE {stream.decode()}"] = (
                pack(b"XREVRANGE", stream, b"+", b"-", b"COUNT", b"1"),
                "without it a new run publishes what the last one has published again",
            )
        if renew_prices and kind.has_key:
            useful[f"EXPIRE {names.keys(kind).decode()}"] = (
                pack(b"EXPIRE", names.key_prefix(kind) + b"AAPL", b"300"),
                "without it each renewal of a value is a whole write",
            )
    return needed, useful
