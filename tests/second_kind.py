"""A second kind of record, made up: what a kind costs besides the code that makes its records.

The whole pipeline carries it (``tests/app/test_second_kind.py``), and a reader in another process
reads it (``tests/integration/client/test_second_kind.py``).
"""

from __future__ import annotations

import msgspec

from mdservice.model.kinds import Kind, Order, Overflow, Repair
from mdservice.model.timestamps import format_ns, parse_rfc3339

__all__ = ["DEPTHS", "Depth"]


class Depth(msgspec.Struct):
    """How many orders wait at an exchange."""

    symbol: str
    orders: int
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    wire: bytes | None = None


def encode(depth: Depth) -> bytes:
    return msgspec.json.encode(
        {
            "symbol": depth.symbol,
            "orders": depth.orders,
            "timestamp": format_ns(depth.ts_event_ns),
            "seq": depth.seq,
        }
    )


class WrittenDepth(msgspec.Struct):
    """The fields of what :func:`encode` has written."""

    symbol: str
    orders: int
    timestamp: str
    seq: int


def build(fields: WrittenDepth) -> Depth:
    event_ns = parse_rfc3339(fields.timestamp)
    return Depth(fields.symbol, fields.orders, event_ns, event_ns, fields.seq)


DEPTHS = Kind(
    channel="depths",
    key_prefix="depth:",
    event="depth.updated",
    marker="mdservice.batch.depths",
    ttl_s=60,
    logged=False,
    identity=lambda depth: (depth.symbol, depth.ts_event_ns, depth.orders),
    order=Order.DROP_OLDER,
    overflow=Overflow.LATEST_PER_SYMBOL,
    repair=Repair.FROM_HISTORY,
    encode=encode,
    parse=msgspec.json.Decoder(WrittenDepth).decode,
    build=build,
)
