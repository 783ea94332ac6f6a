"""The circuit breaker: its state, and its form in Redis and over HTTP."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec

from mdservice.model.timestamps import LATEST_NS, format_ns, parse_rfc3339
from mdservice.pnl.alerts import Alert
from mdservice.pnl.numbers import short, sums_up

__all__ = [
    "CLOSED",
    "Breaker",
    "decode_breaker",
    "encode_breaker",
    "has_lost",
    "reset_at",
    "tripped_by",
]


class Breaker(msgspec.Struct, frozen=True):
    """What the key ``risk:breaker`` holds.

    Attributes:
        state: ``tripped`` after a crossing of a limit, until a reset; else ``closed``.
        rule: The text of the crossed limit; None if closed, as are the others but ``at``.
        subject: The symbol, or ``total``.
        value: The value beyond the limit; of ``stale`` the age of the price in seconds.
        at: The time of the change, RFC 3339; None if there was none. It is after that of the change
            before, whatever the gateways' clocks say.
    """

    state: Literal["closed", "tripped"]
    rule: str | None = None
    subject: str | None = None
    value: Decimal | None = None
    at: str | None = None

    @property
    def tripped(self) -> bool:
        """Whether trading is stopped."""
        return self.state == "tripped"


CLOSED = Breaker("closed")
"""A breaker that has never tripped."""

_encode = msgspec.json.encode
_decoder = msgspec.json.Decoder(Breaker)


def tripped_by(crossing: Alert, *before: Breaker) -> Breaker:
    """The breaker after a crossing of a limit.

    Args:
        crossing: The crossing.
        before: What the breaker was before.
    """
    at = _at(crossing.at_ns, before)
    return Breaker("tripped", crossing.rule, crossing.symbol, crossing.value, at)


def reset_at(now_ns: int, *before: Breaker) -> Breaker:
    """The breaker after a reset; ``before`` is what it was."""
    return Breaker("closed", at=_at(now_ns, before))


def has_lost(found: Breaker | None, known: Breaker) -> bool:
    """Whether the key has lost a known trip: it is gone, or shows a state from before the trip.

    So it is after a failover to a replica that had not got the trip yet.
    """
    if not known.tripped or found is None:
        return known.tripped
    return not found.tripped and -1 < _at_ns(found) < _at_ns(known)


def _at(now_ns: int, before: tuple[Breaker, ...]) -> str:
    after_ns = max(map(_at_ns, before), default=-1)
    return format_ns(min(max(now_ns, after_ns + 1), LATEST_NS))


def _at_ns(breaker: Breaker) -> int:
    """When it changed, UTC nanoseconds; -1 if that is not known."""
    try:
        return -1 if breaker.at is None else parse_rfc3339(breaker.at)
    except ValueError:
        return -1


def encode_breaker(breaker: Breaker) -> bytes:
    """The content of the key, the message of the channel ``risk.breaker``, and the HTTP form.

    ``{"state":"tripped","rule":"AAPL pnl < -500","subject":"AAPL","value":-512.35,"at":"2026-…Z"}``
    """
    found = msgspec.structs.asdict(breaker)
    if breaker.value is not None:
        found["value"] = msgspec.Raw(short(breaker.value).encode())
    return _encode(found)


def decode_breaker(payload: bytes | None) -> Breaker:
    """The breaker in Redis; closed if there is none.

    Raises:
        ValueError: The text is not a breaker.
    """
    if payload is None:
        return CLOSED
    try:
        breaker = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ValueError(str(exc)) from exc
    if breaker.value is not None and not sums_up(breaker.value):
        raise ValueError("its value is not a plain number")
    return breaker
