"""The endpoints of the trading API that see and change positions.

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
from mdservice.simulator.http import Call, RefusedRequest, malformed
from mdservice.simulator.market import tape_of
from mdservice.simulator.paper_account import Holding, PaperAccount, Trade, start_price
from mdservice.simulator.wire import EXACT, PLACES, plain, to_decimal

__all__ = [
    "OrderRequest",
    "TradingApi",
    "asset_id",
    "check_order",
    "describe_order",
    "describe_position",
    "parse_order",
    "parse_qty",
    "unusable",
]

_ASSETS = uuid.UUID("6f1d3f0e-5d0b-5c36-9a52-7c0c5f3f6b11")
_EXCHANGES = {"A": "NYSE", "B": "ARCA", "C": "NASDAQ"}
_RATIO_PLACES = Decimal("1e-16")
_FORBIDDEN, _UNPROCESSABLE = 403, 422
_INSUFFICIENT, _UNUSABLE = 40310000, 42210000
_NOT_FOUND, _NO_POSITION = 404, 40410000
_OK = 200
_WHOLE = 100


class TradingApi:
    """Answers ``/v2/positions``, ``/v2/positions/AAPL`` and ``/v2/orders``.

    Every method raises ``RefusedRequest`` for what Alpaca would refuse. Market orders are
    filled at once, at the ask or the bid, also while the market is closed.

    Args:
        paper_account: Whose positions they are.
    """

    def __init__(self, paper_account: PaperAccount) -> None:
        self._paper_account = paper_account
        self._orders = 0

    def positions(self, _call: Call) -> bytes:
        """All of them, in the order in which they were opened."""
        return msgspec.json.encode(
            [self._describe(holding) for holding in self._paper_account.book]
        )

    def position(self, call: Call) -> bytes:
        """The one named by its symbol or its asset."""
        return msgspec.json.encode(self._describe(self._holding(call.name)))

    def order(self, call: Call) -> bytes:
        """Do the order of the body."""
        return msgspec.json.encode(self._fill(parse_order(call.body), call.now_ns))

    def close(self, call: Call) -> bytes:
        """Close the position named, or so many shares (``qty``) or per cent of it."""
        holding = self._holding(call.name)
        size = abs(holding.qty)
        if "qty" in call.params:
            size = parse_qty(call.params["qty"])
        elif "percentage" in call.params:
            percentage = parse_qty(call.params["percentage"], "percentage")
            if percentage > _WHOLE:
                unusable("percentage must be <= 100")
            with localcontext(EXACT):
                size = (size * percentage / _WHOLE).quantize(PLACES, ROUND_DOWN)
            size = parse_qty(size)
        return msgspec.json.encode(self._close(holding, size, call.now_ns))

    def close_all(self, call: Call) -> bytes:
        """Close every position."""
        return msgspec.json.encode(
            [
                {
                    "symbol": holding.symbol,
                    "status": _OK,
                    "body": self._close(holding, abs(holding.qty), call.now_ns),
                }
                for holding in self._paper_account.book
            ]
        )

    def _describe(self, holding: Holding) -> dict[str, object]:
        symbol = holding.symbol
        return describe_position(holding, self._paper_account.price(symbol), start_price(symbol))

    def _holding(self, name: str) -> Holding:
        holding = self._paper_account.book.get(name)
        if holding is not None:
            return holding
        for holding in self._paper_account.book:
            if asset_id(holding.symbol) == name:
                return holding
        raise RefusedRequest(_NOT_FOUND, _NO_POSITION, "position does not exist")

    def _close(self, holding: Holding, size: Decimal, now_ns: int) -> dict[str, object]:
        side: Literal["buy", "sell"] = "sell" if holding.qty > 0 else "buy"
        return self._fill(OrderRequest(holding.symbol, side, "market", "day", size), now_ns)

    def _fill(self, order: OrderRequest, now_ns: int) -> dict[str, object]:
        symbol = order.symbol
        price = self._paper_account.fill_price(symbol, Decimal(1 if order.side == "buy" else -1))
        qty = order.shares(price)
        check_order(self._paper_account.book.get(symbol), qty)
        try:
            trade = self._paper_account.trade(symbol, qty, price, now_ns)
        except ValueError as exc:
            unusable(str(exc))
        self._orders += 1
        return describe_order(self._orders, order, trade)


def asset_id(symbol: str) -> str:
    """The symbol's asset: a UUID, always the same."""
    return str(uuid.uuid5(_ASSETS, symbol))


def describe_position(holding: Holding, price: Decimal, lastday: Decimal) -> dict[str, object]:
    """One position as JSON; every number is a string.

    A short position has ``qty``, ``market_value`` and ``cost_basis`` below 0. The shares count
    as held since the last day, so what the day brought is measured from its close.

    Args:
        holding: The position.
        price: Dollars a share now.
        lastday: Dollars a share at the last day's close.

    Source: Alpaca's OpenAPI description of "Positions", and the negative numbers of a short
    position from its users' reports. That ratios have up to 16 places is inferred.
    """
    with localcontext(EXACT):
        value = holding.qty * price
        cost = holding.qty * holding.avg_entry_price
        close = holding.qty * lastday
        return {
            "asset_id": asset_id(holding.symbol),
            "symbol": holding.symbol,
            "exchange": _EXCHANGES[tape_of(holding.symbol)],
            "asset_class": "us_equity",
            "asset_marginable": True,
            "qty": plain(holding.qty),
            "avg_entry_price": plain(holding.avg_entry_price),
            "side": "long" if holding.qty > 0 else "short",
            "market_value": plain(value),
            "cost_basis": plain(cost),
            "unrealized_pl": plain(value - cost),
            "unrealized_plpc": _ratio(value - cost, cost),
            "unrealized_intraday_pl": plain(value - close),
            "unrealized_intraday_plpc": _ratio(value - close, close),
            "current_price": plain(price),
            "lastday_price": plain(lastday),
            "change_today": _ratio(price - lastday, lastday),
            "qty_available": plain(holding.qty),
        }


def _ratio(part: Decimal, whole: Decimal) -> str:
    """The part of the whole's size, by a factor of 1; 0 of nothing."""
    return plain((part / abs(whole)).quantize(_RATIO_PLACES)) if whole else "0"


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
                size = ((self.notional or 0) / price).quantize(PLACES, ROUND_DOWN)
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
