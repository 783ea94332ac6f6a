"""How quotes and messages look on the wire, and how a client's messages are read.

JSON has RFC 3339 timestamps in nanoseconds with trailing zeros cut; msgpack has timestamps
as extension -1. Written apart from the service's own codec, so that the two check each
other.

Source: Alpaca's streaming documentation, and its Go and Python clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation, localcontext
from typing import Any, Literal, Protocol, TypeVar

import attrs
import msgspec

from mdservice.model.timestamps import format_ns, parse_rfc3339

__all__ = [
    "ERROR_TEXTS",
    "EXACT",
    "PLACES",
    "TOO_LARGE",
    "Encoding",
    "Number",
    "OutFrame",
    "S",
    "SimQuote",
    "SimRecord",
    "decode_message",
    "encode_items",
    "encode_messages",
    "encode_quotes",
    "encode_timestamp",
    "error_message",
    "json_number",
    "plain",
    "to_decimal",
]

Number = Decimal | int | float | str
"""What a caller may give; a float counts as it is printed, so 0.1 is 0.1."""

EXACT = Context(prec=60)
"""Keeps every digit of the products and sums of what :func:`to_decimal` lets through."""

PLACES = Decimal("1e-9")
"""Of shares and of dollars: what Alpaca takes."""
TOO_LARGE = Decimal(10) ** 12
"""Numbers stay below it, positions too."""

ERROR_TEXTS: Mapping[int, str] = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    408: "v2 not enabled",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
    411: "insufficient scope",
    412: "option messages are only available in MsgPack format",
    413: "star subscription is not allowed for option quotes",
    500: "internal error",
}
"""Source: Alpaca's streaming documentation; 412 and 413 are worded from its description."""

Encoding = Literal["json", "msgpack"]

_SECOND_NS = 1_000_000_000
_TIMESTAMP = -1
_BROKEN_QUOTE = {"T": "q", "S": "AAPL", "bp": "no price", "ap": None, "t": 7.5}


def to_decimal(number: Number) -> Decimal:
    """The number with at most 9 decimal places, which is what Alpaca takes.

    Raises:
        ValueError: It is none, not finite, or 10^12 or more.
    """
    try:
        value = Decimal(str(number))
    except InvalidOperation:
        raise ValueError(f"{number!r} is not a number") from None
    if not value.is_finite() or abs(value) >= TOO_LARGE:
        raise ValueError(f"{number!r} is not a number below {TOO_LARGE:f}")
    return value.quantize(PLACES, context=EXACT)


def plain(value: Decimal) -> str:
    """``187.5``: no exponent, no zeros at the end, no minus before 0."""
    with localcontext(EXACT):
        return f"{value.normalize() + 0:f}"


def error_message(code: int) -> dict[str, Any]:
    """``{"T": "error", "code": 406, "msg": "connection limit exceeded"}``.

    A code that Alpaca does not document gets the text ``error``.
    """
    return {"T": "error", "code": code, "msg": ERROR_TEXTS.get(code, "error")}


class SimRecord(Protocol):
    """What the simulator uses of every record. A record is a frozen struct of msgspec."""

    @property
    def symbol(self) -> str:
        """``AAPL``."""
        ...

    @property
    def ts_event_ns(self) -> int:
        """The exchange's time, UTC nanoseconds; 0 if the simulator is to set it."""
        ...


S = TypeVar("S", bound=SimRecord)


class SimQuote(msgspec.Struct, frozen=True, gc=False):
    """One quote of the simulated market.

    Attributes:
        symbol: ``AAPL``.
        bid: Best bid; 0 means that no bid is active.
        ask: Best offer; 0 means that no offer is active.
        bid_size: Shares.
        ask_size: Shares.
        ts_event_ns: The exchange's time, UTC nanoseconds; 0 if :meth:`Simulator.send_quotes`
            is to set it.
        bid_exchange: One letter.
        ask_exchange: One letter.
        conditions: Condition codes.
        tape: ``A``, ``B`` or ``C``.
    """

    symbol: str
    bid: float
    ask: float
    bid_size: int = 100
    ask_size: int = 100
    ts_event_ns: int = 0
    bid_exchange: str = "V"
    ask_exchange: str = "V"
    conditions: tuple[str, ...] = ("R",)
    tape: str = "C"

    @classmethod
    def from_wire(cls, message: Mapping[str, Any]) -> SimQuote:
        """From Alpaca's field names; only ``S``, ``bp`` and ``ap`` are needed.

        ``t`` may be RFC 3339 text or UTC nanoseconds.

        Raises:
            KeyError: One of the three is missing.
            ValueError: ``t`` is no time.
        """
        t = message.get("t", 0)
        return cls(
            message["S"],
            message["bp"],
            message["ap"],
            message.get("bs", 100),
            message.get("as", 100),
            parse_rfc3339(t) if isinstance(t, str) else t,
            message.get("bx", "V"),
            message.get("ax", "V"),
            tuple(message.get("c", ("R",))),
            message.get("z", "C"),
        )


@attrs.frozen
class OutFrame:
    """One websocket message on its way out: its payload, and whether it is text."""

    data: bytes
    text: bool


class _WireQuote(
    msgspec.Struct,
    tag_field="T",
    tag="q",
    gc=False,
    rename={
        "symbol": "S",
        "bid_exchange": "bx",
        "bid": "bp",
        "bid_size": "bs",
        "ask_exchange": "ax",
        "ask": "ap",
        "ask_size": "as",
        "conditions": "c",
        "tape": "z",
        "timestamp": "t",
    },
):
    """``{"T":"q","S":"AAPL","bx":"V","bp":187.12,"bs":200,"ax":"V","ap":187.15,"as":300,…}``."""

    symbol: str
    bid_exchange: str
    bid: float
    bid_size: int
    ask_exchange: str
    ask: float
    ask_size: int
    conditions: tuple[str, ...]
    tape: str
    timestamp: Any


def encode_timestamp(ts_ns: int, encoding: Encoding) -> Any:
    """UTC nanoseconds as text without trailing zeros, or as msgpack's 64-bit timestamp."""
    if encoding == "json":
        return format_ns(ts_ns)[:-1].rstrip("0").rstrip(".") + "Z"
    second, fraction = divmod(ts_ns, _SECOND_NS)
    return msgspec.msgpack.Ext(_TIMESTAMP, (fraction << 34 | second).to_bytes(8, "big"))


def encode_quotes(
    quotes: Iterable[SimQuote], encoding: Encoding, *, spoil: bool = False
) -> OutFrame:
    """One frame with these quotes; ``spoil`` puts a quote that breaks the schema among them."""
    as_json = encoding == "json"
    number = json_number if as_json else float
    items: list[Any] = [
        _WireQuote(
            quote.symbol,
            quote.bid_exchange,
            number(quote.bid),
            quote.bid_size,
            quote.ask_exchange,
            number(quote.ask),
            quote.ask_size,
            quote.conditions,
            quote.tape,
            encode_timestamp(quote.ts_event_ns, encoding),
        )
        for quote in quotes
    ]
    if spoil:
        items.insert(len(items) // 2, _BROKEN_QUOTE)
    return encode_items(items, encoding)


def encode_messages(messages: Sequence[Mapping[str, Any]], encoding: Encoding) -> OutFrame:
    """One frame with these messages; a whole number under ``t`` becomes a timestamp."""
    return encode_items(
        [
            {**message, "t": encode_timestamp(message["t"], encoding)}
            if isinstance(message.get("t"), int)
            else message
            for message in messages
        ],
        encoding,
    )


def decode_message(payload: bytes, encoding: Encoding) -> Mapping[str, Any] | None:
    """A client's message; None where it is no object in this encoding."""
    try:
        if encoding == "json":
            return msgspec.json.decode(payload, type=dict[str, Any])
        return msgspec.msgpack.decode(payload, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def encode_items(items: Sequence[Any], encoding: Encoding) -> OutFrame:
    """One frame with these items, whose times are encoded already."""
    if encoding == "json":
        return OutFrame(msgspec.json.encode(items), text=True)
    return OutFrame(msgspec.msgpack.encode(items), text=False)


def json_number(price: float) -> float:
    """Whole prices without a fraction, as Go prints them: ``187``, not ``187.0``."""
    return int(price) if price == int(price) else price
