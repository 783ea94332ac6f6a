"""What is said on a connection: the greeting, with the fence, and a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs
import hiredis

from mdservice.errors import StoreUnavailable
from mdservice.sinks.redis_advice import describe_refusal, refusal
from mdservice.sinks.redis_link import RedisLink
from mdservice.sinks.redis_replies import is_error
from mdservice.sinks.redis_stream import RedisStream
from mdservice.sinks.resp import BatchPacker, pack
from mdservice.sinks.store import WriteBatch

__all__ = ["CLIENT_NAME", "Identity", "greet", "raise_refusal", "write_batch"]

CLIENT_NAME: Final = "mdservice-writer"
"""How the connection is called in the server's ``CLIENT LIST``."""


@attrs.frozen
class Identity:
    """A connection as its server knows it; an id means nothing to another run of the server."""

    run_id: bytes
    client_id: int


def greet(
    link: RedisLink, address: str, previous: Identity | None, packer: BatchPacker, database: int
) -> Identity | None:
    """Open the link, fence the previous connection; return how the server knows this one.

    It blocks, so it runs in a thread. The packer learns whether it may say whose a batch is.

    None where the server does not tell, or refuses the fence: what that means stands at
    :class:`~mdservice.sinks.redis_store.RedisPriceStore`.

    Raises:
        StoreUnavailable, StoreRefused
    """
    link.open()
    _, client_id, info, multi, executed = link.call(
        pack(b"CLIENT", b"SETNAME", CLIENT_NAME.encode()),
        pack(b"CLIENT", b"ID"),
        pack(b"INFO", b"server"),
        # Were MULTI refused to this user, the commands of a batch would be executed one by one.
        pack(b"MULTI"),
        pack(b"EXEC"),
    )
    raise_refusal(address, [multi, executed])
    # A message that this user may not publish would have the server refuse the whole batch.
    (marked,) = link.call(packer.marker(database, 0))
    packer.marks_db = None if is_error(marked) else database
    run_id = _run_id(info)
    if run_id is None or not isinstance(client_id, int):
        return None
    if previous is not None and previous.run_id == run_id:
        (killed,) = link.call(pack(b"CLIENT", b"KILL", b"ID", b"%d" % previous.client_id))
        if is_error(killed):
            return None
    return Identity(run_id, client_id)


def _run_id(info: object) -> bytes | None:
    if not isinstance(info, bytes):
        return None
    for line in info.splitlines():
        name, _, value = line.partition(b":")
        if name == b"run_id" and value:
            return value
    return None


async def write_batch(
    stream: RedisStream, address: str, packer: BatchPacker, batch: WriteBatch
) -> list[str]:
    """Send a batch; return the texts of the commands that failed inside the transaction.

    Raises:
        StoreUnavailable, StoreRefused
    """
    packed = packer.batch(batch)
    replies = await stream.exchange(packed.data, packed.queued + 2)
    results = replies[-1]
    if isinstance(results, list):
        if hiredis.ReplyError not in set(map(type, results)):  # thousands of results, no errors
            return []
        return [str(result) for result in results if is_error(result)]
    if is_error(replies[0]) and not all(map(is_error, replies)):
        # MULTI alone was refused (its permission went away in mid-run), and what followed
        # was executed one by one: the next connect() says so.
        raise StoreUnavailable(
            describe_refusal(address, str(replies[0])) + "; part of the batch was executed"
        )
    raise_refusal(address, replies)
    raise StoreUnavailable(f"Redis at {address} answered EXEC with {results!r}")


def raise_refusal(address: str, replies: Iterable[object]) -> None:
    """Raise StoreRefused for the first of the replies that is an error."""
    for reply in replies:
        if is_error(reply):
            raise refusal(address, str(reply))
