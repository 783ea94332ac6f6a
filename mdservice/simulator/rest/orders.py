"""Orders as Alpaca's trading API takes and tells them.

Only market orders are simulated, which are filled at once and whole.

Source: Alpaca's OpenAPI description of "Orders"; codes and texts from users' reports.
"""

from __future__ import annotations

import uuid
from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Literal, NoReturn

import msgspec

from mdservice.errors import InvalidSymbol
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol
from mdservice.model.timestamps import format_ns
from mdservice.simulator.decimals import EXACT, plain, to_decimal
from mdservice.simulator.desk import Trade
from mdservice.simulator.positions import Holding
from mdservice.simulator.rest.positions import asset_id
from mdservice.simulator.rest.refusal import RefusedRequest, malformed

__all__ = ["OrderRequest", "check_order", "describe_order", "parse_order", "parse_qty", "unusable"]

_FORBIDDEN, _UNPROCESSABLE = 403, 422
_INSUFFICIENT, _UNUSABLE = 40310000, 42210000
_PLACES = Decimal("1e-9")


class OrderRequest(msgspec.Struct, frozen=True):
    """``{"symbol":"AAPL","qty":"5","side":"buy","type":"market","time_in_force":"day"}``.

    Either ``qty``, in shares, or ``notional``, in dollars; both above 0.
    """

    symbol: str
    side: Literal["buy", "sell"]
    type: str
    time_in_force: Literal["day", "gtc", "opg", "cls", "ioc", "fok"]
    qty: Decimal | None = None
    notional: Decimal | None = None
    order_class: str | None = None
    extended_hours: bool | None = None
    client_order_id: str | None = None

    def shares(self, price: Decimal) -> Decimal:
        """Shares at this price in dollars, below 0 to sell them.

        Raises:
            RefusedRequest: The money is for too few shares, or for too many.
        """
        size = self.qty
        if size is None:
            with localcontext(EXACT):
                size = ((self.notional or 0) / price).quantize(_PLACES, ROUND_DOWN)
            size = parse_qty(size)
        return size if self.side == "buy" else -size


def parse_order(body: bytes) -> OrderRequest:
    """The order that a request's body asks for.

    Raises:
        RefusedRequest: It cannot be understood, or it is none that is simulated.
    """
    try:
        order = msgspec.json.decode(body, type=OrderRequest)
    except msgspec.DecodeError:
        malformed("request body format is invalid")
    try:
        symbol = parse_symbol(order.symbol)
    except InvalidSymbol:
        symbol = EVERY_SYMBOL
    if symbol == EVERY_SYMBOL:
        unusable(f'asset "{order.symbol[:32]}" not found')
    if order.type != "market" or order.order_class not in {None, "", "simple"}:
        unusable("only simple market orders are simulated")
    if (order.qty is None) == (order.notional is None):
        unusable("either qty or notional is required")
    qty = None if order.qty is None else parse_qty(order.qty)
    notional = None if order.notional is None else parse_qty(order.notional, "notional")
    return msgspec.structs.replace(order, symbol=symbol, qty=qty, notional=notional)


def parse_qty(text: Decimal | str, name: str = "qty") -> Decimal:
    """An amount above 0.

    Raises:
        RefusedRequest: It is none.
    """
    try:
        qty = to_decimal(text)
    except ValueError:
        malformed(f"{name} is invalid")
    if qty <= 0:
        unusable(f"{name} must be > 0")
    return qty


def check_order(holding: Holding | None, qty: Decimal) -> None:
    """Refuse what would go through 0, or sell a part of a share short.

    Raises:
        RefusedRequest: As Alpaca, whose users turn a position with two orders.
    """
    if holding is not None and (holding.qty > 0) != (qty > 0):
        if abs(qty) > abs(holding.qty):
            asked, there = plain(abs(qty)), plain(abs(holding.qty))
            raise RefusedRequest(
                _FORBIDDEN,
                _INSUFFICIENT,
                f"insufficient qty available for order (requested: {asked}, available: {there})",
            )
    elif qty < 0 and qty % 1:
        unusable("fractional orders cannot be sold short")


def describe_order(number: int, order: OrderRequest, trade: Trade) -> dict[str, object]:
    """A filled order as JSON; every number is a string.

    Args:
        number: Counts the orders; its id follows from it.
        order: What was asked for.
        trade: What came of it.
    """
    order_id = str(uuid.UUID(int=number, version=4))
    at = format_ns(trade.at_ns)
    stamps = ("created_at", "updated_at", "submitted_at", "filled_at")
    empty = (
        *("expired_at", "canceled_at", "failed_at", "replaced_at", "replaced_by", "replaces"),
        *("limit_price", "stop_price", "legs", "trail_percent", "trail_price", "hwm"),
    )
    return {
        "id": order_id,
        "client_order_id": order.client_order_id or order_id,
        **dict.fromkeys(stamps, at),
        "asset_id": asset_id(trade.symbol),
        "symbol": trade.symbol,
        "asset_class": "us_equity",
        "notional": None if order.notional is None else plain(order.notional),
        "qty": None if order.qty is None else plain(order.qty),
        "filled_qty": plain(abs(trade.qty)),
        "filled_avg_price": plain(trade.price),
        "order_class": "",
        "order_type": "market",
        "type": "market",
        "side": order.side,
        "time_in_force": order.time_in_force,
        "status": "filled",
        "extended_hours": bool(order.extended_hours),
        **dict.fromkeys(empty),
    }


def unusable(message: str) -> NoReturn:
    """Refuse an order that can be understood, but not be done.

    Raises:
        RefusedRequest: Always, 422.
    """
    raise RefusedRequest(_UNPROCESSABLE, _UNUSABLE, message)
