"""What a market of stocks reports besides quotes, on the wire and in REST's answers.

Source: Alpaca's streaming documentation, its OpenAPI description, and its Go client.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal

import msgspec

from mdservice.simulator.wire import (
    Encoding,
    OutFrame,
    encode_items,
    encode_timestamp,
    json_number,
)

__all__ = [
    "SimCancel",
    "SimCorrection",
    "SimImbalance",
    "SimLimits",
    "SimStatus",
    "SimTrade",
    "bar_row",
    "encode_bars",
    "encode_cancels",
    "encode_corrections",
    "encode_daily_bars",
    "encode_imbalances",
    "encode_limits",
    "encode_statuses",
    "encode_trades",
    "encode_updated_bars",
    "encoder",
    "rower",
    "trade_row",
]


class SimTrade(msgspec.Struct, frozen=True, gc=False):
    """One trade of the simulated market.

    Attributes:
        symbol: ``AAPL``.
        price: Dollars a share.
        size: Shares.
        id: Rises with each trade of a symbol and exchange.
        ts_event_ns: The time of the trade, UTC nanoseconds; 0 if the simulator is to set it.
        exchange: One letter.
        conditions: Condition codes.
        tape: ``A``, ``B`` or ``C``.
        update: What became of it, as REST says: ``canceled``; ``incorrect`` where another trade
            corrects it; ``corrected`` for that other one.
    """

    symbol: str
    price: float
    size: int
    id: int
    ts_event_ns: int = 0
    exchange: str = "V"
    conditions: tuple[str, ...] = ("@",)
    tape: str = "C"
    update: Literal["canceled", "incorrect", "corrected"] | None = None

    @property
    def valid(self) -> bool:
        """Whether it took place as it says."""
        return self.update in {None, "corrected"}


class SimCorrection(msgspec.Struct, frozen=True, gc=False):
    """A trade that was wrong, and what is right. The trade's own time stays."""

    symbol: str
    exchange: str
    original_id: int
    original_price: float
    original_size: int
    original_conditions: tuple[str, ...]
    corrected_id: int
    corrected_price: float
    corrected_size: int
    corrected_conditions: tuple[str, ...]
    ts_event_ns: int = 0
    tape: str = "C"


class SimCancel(msgspec.Struct, frozen=True, gc=False):
    """A trade that did not take place; ``action`` is ``C``, or ``E`` for an error."""

    symbol: str
    id: int
    exchange: str
    price: float
    size: int
    action: Literal["C", "E"] = "C"
    ts_event_ns: int = 0
    tape: str = "C"


class SimStatus(msgspec.Struct, frozen=True, gc=False):
    """A change of a symbol's trading status, with the codes of its tape."""

    symbol: str
    status_code: str
    status_message: str
    reason_code: str
    reason_message: str
    ts_event_ns: int = 0
    tape: str = "C"


class SimLimits(msgspec.Struct, frozen=True, gc=False):
    """The prices between which a symbol may trade, with the indicator of its tape."""

    symbol: str
    limit_up: float
    limit_down: float
    indicator: str
    ts_event_ns: int = 0
    tape: str = "C"


class SimImbalance(msgspec.Struct, frozen=True, gc=False):
    """An imbalance of orders in an auction, at a price."""

    symbol: str
    price: float
    ts_event_ns: int = 0
    tape: str = "C"


def _reader(
    fields: Mapping[str, str], prices: Collection[str]
) -> Callable[[Any, Encoding], dict[str, Any]]:
    """Returns a function that writes a record under Alpaca's names; ``t`` is a time."""
    names = tuple(fields)
    read = attrgetter(*fields.values())

    def write(record: Any, encoding: Encoding) -> dict[str, Any]:
        message = dict(zip(names, read(record), strict=True))
        message["t"] = encode_timestamp(message["t"], encoding)
        number = json_number if encoding == "json" else float
        for name in prices:
            message[name] = number(message[name])
        return message

    return write


def encoder(
    tag: str, fields: Mapping[str, str], prices: Collection[str]
) -> Callable[..., OutFrame]:
    """Returns the encoder of a kind.

    Args:
        tag: The value of ``T``, which comes first.
        fields: The record's attributes by Alpaca's names, in the order of the message.
        prices: The names of the numbers with a fraction.
    """
    write = _reader(fields, prices)
    broken = {"T": tag, "S": "AAPL", "p": "no price", "t": 7.5}

    def encode(records: Sequence[Any], encoding: Encoding, /, *, spoil: bool = False) -> OutFrame:
        items: list[Any] = [{"T": tag, **write(record, encoding)} for record in records]
        if spoil:
            items.insert(len(items) // 2, broken)
        return encode_items(items, encoding)

    return encode


def rower(fields: Mapping[str, str], prices: Collection[str]) -> Callable[[Any], dict[str, Any]]:
    """Returns the function that writes a record for REST's answers."""
    write = _reader(fields, prices)
    return lambda record: write(record, "json")


_TRADE = {
    "i": "id",
    "S": "symbol",
    "x": "exchange",
    "p": "price",
    "s": "size",
    "t": "ts_event_ns",
    "c": "conditions",
    "z": "tape",
}
_BAR = {
    "S": "symbol",
    "o": "open",
    "h": "high",
    "l": "low",
    "c": "close",
    "v": "volume",
    "t": "ts_event_ns",
    "n": "trade_count",
    "vw": "vwap",
}
_CORRECTION = {
    "S": "symbol",
    "x": "exchange",
    "oi": "original_id",
    "op": "original_price",
    "os": "original_size",
    "oc": "original_conditions",
    "ci": "corrected_id",
    "cp": "corrected_price",
    "cs": "corrected_size",
    "cc": "corrected_conditions",
    "t": "ts_event_ns",
    "z": "tape",
}
_CANCEL = {
    "S": "symbol",
    "i": "id",
    "x": "exchange",
    "p": "price",
    "s": "size",
    "a": "action",
    "t": "ts_event_ns",
    "z": "tape",
}
_STATUS = {
    "S": "symbol",
    "sc": "status_code",
    "sm": "status_message",
    "rc": "reason_code",
    "rm": "reason_message",
    "t": "ts_event_ns",
    "z": "tape",
}
_LIMITS = {
    "S": "symbol",
    "u": "limit_up",
    "d": "limit_down",
    "i": "indicator",
    "t": "ts_event_ns",
    "z": "tape",
}
_IMBALANCE = {"S": "symbol", "p": "price", "t": "ts_event_ns", "z": "tape"}
_BAR_PRICES = ("o", "h", "l", "c", "vw")

encode_trades = encoder("t", _TRADE, ("p",))
encode_bars = encoder("b", _BAR, _BAR_PRICES)
encode_updated_bars = encoder("u", _BAR, _BAR_PRICES)
encode_daily_bars = encoder("d", _BAR, _BAR_PRICES)
encode_corrections = encoder("c", _CORRECTION, ("op", "cp"))
encode_cancels = encoder("x", _CANCEL, ("p",))
encode_statuses = encoder("s", _STATUS, ())
encode_limits = encoder("l", _LIMITS, ("u", "d"))
encode_imbalances = encoder("i", _IMBALANCE, ("p",))

bar_row = rower({name: field for name, field in _BAR.items() if name != "S"}, _BAR_PRICES)
_plain_trade_row = rower({name: field for name, field in _TRADE.items() if name != "S"}, ("p",))


def trade_row(trade: SimTrade) -> dict[str, Any]:
    """A trade in REST's answers; ``u`` says that it was changed later."""
    row = _plain_trade_row(trade)
    if trade.update is not None:
        row["u"] = trade.update
    return row
