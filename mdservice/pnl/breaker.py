"""The circuit breaker: its state, and its form in Redis and over HTTP."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec

from mdservice.model.timestamps import format_ns
from mdservice.pnl.alerts import Alert
from mdservice.pnl.numbers import short, sums_up

__all__ = ["CLOSED", "Breaker", "decode_breaker", "encode_breaker", "reset_at", "tripped_by"]


class Breaker(msgspec.Struct, frozen=True):
    """What the key ``risk:breaker`` holds.

    Attributes:
        state: ``tripped`` after a crossing of a limit, until a reset; else ``closed``.
        rule: The text of the crossed limit; None if closed, as are the others but ``at``.
        subject: The symbol, or ``total``.
        value: The value beyond the limit; of ``stale`` the age of the price in seconds.
        at: The time of the change, RFC 3339; None if there was none.
    """

    state: Literal["closed", "tripped"] = "closed"
    rule: str | None = None
    subject: str | None = None
    value: Decimal | None = None
    at: str | None = None

    @property
    def tripped(self) -> bool:
        """Whether trading is stopped."""
        return self.state == "tripped"


CLOSED = Breaker()
"""A breaker that has never tripped."""

_encode = msgspec.json.encode
_decoder = msgspec.json.Decoder(Breaker)


def tripped_by(crossing: Alert) -> Breaker:
    """The breaker after a crossing of a limit."""
    return Breaker(
        "tripped", crossing.rule, crossing.symbol, crossing.value, format_ns(crossing.at_ns)
    )


def reset_at(now_ns: int) -> Breaker:
    """The breaker after a reset."""
    return Breaker(at=format_ns(now_ns))


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
