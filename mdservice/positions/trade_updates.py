"""Trade updates: the account's events of Alpaca's trading stream, and what they do to a position.

Pure: no socket, no event loop, no clock.

Source: Alpaca's documentation of the trading API, "Websocket streaming", and its Python and Go
clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final, get_args

import attrs
import msgspec

from mdservice.model.position import (
    AssetClass,
    Position,
    asset_class_of,
    default_multiplier,
    feed_symbol,
)
from mdservice.model.symbol import is_symbol, without_slash
from mdservice.model.timestamps import format_ns, parse_rfc3339
from mdservice.pnl.encode import encode_position
from mdservice.pnl.numbers import plain, sums_up
from mdservice.positions.parse import parse_positions

__all__ = [
    "KNOWN_EVENTS",
    "TradeUpdate",
    "decode_account_update",
    "encode_account_update",
    "parse_trade_updates",
    "position_after",
]

KNOWN_EVENTS: Final = frozenset(
    (
        *("accepted", "calculated", "canceled", "done_for_day", "expired", "fill", "new"),
        *("order_cancel_rejected", "order_replace_rejected", "partial_fill", "pending_cancel"),
        *("pending_new", "pending_replace", "rejected", "replaced", "restated", "stopped"),
        *("suspended", "held", "trade_bust", "trade_correct"),
    )
)
_FILLS: Final = frozenset(("fill", "partial_fill"))
_CLASSES: Final = get_args(AssetClass)
_MOST_TEXT: Final = 100
_MOST_LEGS: Final = 100
_PLACES: Final = Decimal("1e-9")
_DIVIDE: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)
_EXACT: Final = Context(prec=500)
_SELLS: Final = ("sell", "sell_short")


@attrs.frozen
class TradeUpdate:
    """What one event says about one symbol. An order with legs has one for each leg.

    Attributes:
        event: Alpaca's name: ``fill``, ``partial_fill``, ``new``, ``canceled`` ….
        timestamp_ns: When it happened at Alpaca, UTC nanoseconds.
        symbol: As orders write it: ``AAPL``, ``BTC/USD``; empty where the event names none.
        order_id: The order's id; that of the leg where it has one.
        execution_id: The event's id; empty where it has none.
        side: ``buy``, ``sell``; empty where it is not given.
        qty: What was filled; None for other events.
        price: Dollars a share; None for other events.
        position_qty: The position after the event, below 0 for a short one; None where the event
            does not change it.
        asset_class: Alpaca's name of the symbol's class; None where it is not given.
    """

    event: str
    timestamp_ns: int
    symbol: str
    order_id: str = ""
    execution_id: str = ""
    side: str = ""
    qty: Decimal | None = None
    price: Decimal | None = None
    position_qty: Decimal | None = None
    asset_class: AssetClass | None = None

    @property
    def priced_by(self) -> str:
        """The symbol under which the feed has its prices, as that of a position."""
        return feed_symbol(self.symbol, self.asset_class or asset_class_of(self.symbol))

    @property
    def identity(self) -> tuple[object, ...]:
        """The same for a repeat of the event, and for no other one."""
        values = (self.event, self.order_id, self.qty, self.price, self.position_qty)
        return (self.symbol, self.event, self.execution_id or values)

    @property
    def change(self) -> Decimal | None:
        """What it added to the position, below 0 for a sale; None if that is unknown."""
        if self.event not in _FILLS or self.qty is None or not self.side:
            return None
        return _EXACT.minus(self.qty) if self.side in _SELLS else self.qty

    @property
    def is_fill(self) -> bool:
        """Whether it is a fill with its price, which says how the average price changes."""
        return self.event in _FILLS and self.price is not None


def parse_trade_updates(data: msgspec.Raw) -> list[TradeUpdate]:
    """The updates of one event, in the order of its legs.

    Args:
        data: The ``data`` of a message of the stream ``trade_updates``.

    Raises:
        ValueError: It cannot be read, or misses what it needs.
    """
    try:
        event = _decode_event(data)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
    order = event.order
    if not 0 < len(event.event) <= _MOST_TEXT:
        raise ValueError("it has no event")
    moment = event.timestamp or event.at or order.filled_at or order.updated_at
    if not moment:
        raise ValueError("it has no timestamp")
    whole = TradeUpdate(
        event=event.event,
        timestamp_ns=parse_rfc3339(moment),
        symbol=order.symbol,
        order_id=order.id,
        execution_id=event.execution_id or event.event_id or "",
        side=order.side,
        qty=_number(event.qty, "qty"),
        price=_number(event.price, "price"),
        position_qty=_number(event.position_qty, "position_qty"),
        asset_class=_asset_class(order.asset_class, order.symbol),
    )
    updates = (list(_legs(whole, event)) if not order.symbol else []) or [whole]
    for update in updates:
        if update.symbol and not is_symbol(update.symbol):
            raise ValueError("it has no valid symbol")
        if update.event in _FILLS and (not update.symbol or update.position_qty is None):
            raise ValueError(f"a {update.event} without a symbol or a position_qty")
    return updates


def _legs(whole: TradeUpdate, event: _Event) -> Iterator[TradeUpdate]:
    """One update for each symbol of an order that has none of its own."""
    ordered = {leg.symbol: leg for leg in event.order.legs or ()}
    filled = {leg.symbol: leg for leg in event.legs or ()}
    quantities = {
        symbol: _number(qty, "position_qtys") for symbol, qty in (event.position_qtys or {}).items()
    }
    names = dict.fromkeys(name for name in (*filled, *quantities, *ordered) if name)
    if len(names) > _MOST_LEGS:
        raise ValueError(f"it has {len(names)} legs")
    for symbol in names:
        leg, part = filled.get(symbol, _NO_LEG), ordered.get(symbol, _NO_ORDER)
        own = quantities.get(symbol)
        yield attrs.evolve(
            whole,
            symbol=symbol,
            order_id=leg.order_id or part.id or whole.order_id,
            execution_id=leg.execution_id or whole.execution_id,
            side=leg.side or part.side,
            qty=_number(leg.qty, "qty"),
            price=_number(leg.price, "price"),
            position_qty=_number(leg.position_qty, "position_qty") if own is None else own,
            asset_class=_asset_class(part.asset_class, symbol),
        )


def position_after(held: Position | None, update: TradeUpdate) -> Position | None:
    """The position after an event with a ``position_qty``; None if it is closed.

    What adds to a position averages its price, what reduces it leaves the price alone, and what
    goes through 0 begins at the event's price.

    Source: Alpaca, "Position average entry price calculation".
    """
    qty, price = update.position_qty, update.price
    if not qty:
        return None
    before = None if held is None else held.qty
    average = None if held is None else held.avg_entry_price
    if not before or (before > 0) != (qty > 0):
        average = price
    elif price is not None and average is not None and abs(qty) > abs(before):
        added = _EXACT.multiply(_EXACT.subtract(qty, before), price)
        cost = _EXACT.add(_EXACT.multiply(before, average), added)
        average = _DIVIDE.divide(cost, qty).quantize(_PLACES, context=_DIVIDE)
    if held is not None:
        return attrs.evolve(held, qty=qty, avg_entry_price=average)
    asset_class = update.asset_class or asset_class_of(update.symbol)
    return Position(
        without_slash(update.symbol) if asset_class == "crypto" else update.symbol,
        qty,
        average,
        default_multiplier(asset_class),
        current_price=price,
        asset_class=asset_class,
    )


def encode_account_update(update: TradeUpdate, position: Position | None) -> bytes:
    """The message of the channel ``account.updated``; numbers are exact.

    Args:
        update: The event.
        position: The symbol's position now; None if it has none, or positions are not known.
    """
    row = "null" if position is None else encode_position(position)
    texts = {
        "event": update.event,
        "timestamp": format_ns(update.timestamp_ns),
        "symbol": update.symbol or None,
        "order_id": update.order_id or None,
        "execution_id": update.execution_id or None,
        "side": update.side or None,
    }
    numbers = {"qty": update.qty, "price": update.price, "position_qty": update.position_qty}
    written = [f'"{name}":{msgspec.json.encode(text).decode()}' for name, text in texts.items()]
    written += [
        f'"{name}":{"null" if number is None else plain(number)}'
        for name, number in numbers.items()
    ]
    return f'{{{",".join(written)},"position":{row}}}'.encode()


def decode_account_update(payload: bytes) -> tuple[TradeUpdate, Position | None]:
    """What :func:`encode_account_update` has encoded.

    Raises:
        ValueError: It is anything else.
    """
    try:
        message = _decode_message(payload)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
    position = None
    if bytes(message.position) != b"null":
        (position,) = parse_positions(b"[%b]" % bytes(message.position))
    update = TradeUpdate(
        event=message.event,
        timestamp_ns=parse_rfc3339(message.timestamp),
        symbol=message.symbol or "",
        order_id=message.order_id or "",
        execution_id=message.execution_id or "",
        side=message.side or "",
        qty=_number(message.qty, "qty"),
        price=_number(message.price, "price"),
        position_qty=_number(message.position_qty, "position_qty"),
        asset_class=None if position is None else position.asset_class,
    )
    return update, position


_NULL: Final = msgspec.Raw(b"null")
_decode_decimal = msgspec.json.Decoder(Decimal).decode


class _OrderLeg(msgspec.Struct, gc=False):
    id: str | None = None
    symbol: str = ""
    side: str = ""
    asset_class: str = ""


class _Order(msgspec.Struct, gc=False):
    id: str = ""
    symbol: str = ""
    side: str = ""
    asset_class: str = ""
    filled_at: str | None = None
    updated_at: str | None = None
    legs: list[_OrderLeg] | None = None


class _FilledLeg(msgspec.Struct, gc=False):
    symbol: str = ""
    order_id: str | None = None
    execution_id: str | None = None
    side: str = ""
    qty: msgspec.Raw = _NULL
    price: msgspec.Raw = _NULL
    position_qty: msgspec.Raw = _NULL


class _Event(msgspec.Struct, gc=False):
    event: str
    order: _Order
    timestamp: str | None = None
    at: str | None = None
    execution_id: str | None = None
    event_id: str | None = None
    qty: msgspec.Raw = _NULL
    price: msgspec.Raw = _NULL
    position_qty: msgspec.Raw = _NULL
    position_qtys: Mapping[str, msgspec.Raw] | None = None
    legs: Sequence[_FilledLeg] | None = None


class _Message(msgspec.Struct, gc=False):
    event: str
    timestamp: str
    position: msgspec.Raw
    symbol: str | None = None
    order_id: str | None = None
    execution_id: str | None = None
    side: str | None = None
    qty: msgspec.Raw = _NULL
    price: msgspec.Raw = _NULL
    position_qty: msgspec.Raw = _NULL


_NO_LEG: Final = _FilledLeg()
_NO_ORDER: Final = _OrderLeg()
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_message = msgspec.json.Decoder(_Message).decode


def _number(raw: Any, name: str) -> Decimal | None:
    """The exact number; None for null, and for an empty text."""
    if bytes(raw) in (b"null", b'""'):
        return None
    try:
        number = _decode_decimal(raw)
    except msgspec.MsgspecError:
        number = Decimal("nan")
    if not sums_up(number):
        raise ValueError(f"it has a value in {name} that is no usable number")
    return number


def _asset_class(written: str, symbol: str) -> AssetClass | None:
    """The class as the order names it, or else by the symbol; None without a symbol."""
    if not symbol:
        return None
    return written if written in _CLASSES else asset_class_of(symbol)  # type: ignore[return-value]
