"""The endpoints of the trading API that see and change positions."""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Literal

import msgspec

from mdservice.simulator.decimals import EXACT
from mdservice.simulator.desk import Desk, start_price
from mdservice.simulator.positions import Holding
from mdservice.simulator.rest.call import Call
from mdservice.simulator.rest.orders import (
    OrderRequest,
    check_order,
    describe_order,
    parse_order,
    parse_qty,
    unusable,
)
from mdservice.simulator.rest.positions import asset_id, describe_position
from mdservice.simulator.rest.refusal import RefusedRequest

__all__ = ["TradingApi"]

_NOT_FOUND, _NO_POSITION = 404, 40410000
_OK = 200
_WHOLE = 100
_PLACES = Decimal("1e-9")


class TradingApi:
    """Answers ``/v2/positions``, ``/v2/positions/AAPL`` and ``/v2/orders``.

    Every method raises ``RefusedRequest`` for what Alpaca would refuse. Market orders are
    filled at once, at the ask or the bid, also while the market is closed.

    Args:
        desk: Whose positions they are.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._orders = 0

    def positions(self, _call: Call) -> bytes:
        """All of them, in the order in which they were opened."""
        return msgspec.json.encode([self._describe(holding) for holding in self._desk.book])

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
                size = (size * percentage / _WHOLE).quantize(_PLACES, ROUND_DOWN)
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
                for holding in self._desk.book
            ]
        )

    def _describe(self, holding: Holding) -> dict[str, object]:
        symbol = holding.symbol
        return describe_position(holding, self._desk.price(symbol), start_price(symbol))

    def _holding(self, name: str) -> Holding:
        holding = self._desk.book.get(name)
        if holding is not None:
            return holding
        for holding in self._desk.book:
            if asset_id(holding.symbol) == name:
                return holding
        raise RefusedRequest(_NOT_FOUND, _NO_POSITION, "position does not exist")

    def _close(self, holding: Holding, size: Decimal, now_ns: int) -> dict[str, object]:
        side: Literal["buy", "sell"] = "sell" if holding.qty > 0 else "buy"
        return self._fill(OrderRequest(holding.symbol, side, "market", "day", size), now_ns)

    def _fill(self, order: OrderRequest, now_ns: int) -> dict[str, object]:
        symbol = order.symbol
        price = self._desk.fill_price(symbol, Decimal(1 if order.side == "buy" else -1))
        qty = order.shares(price)
        check_order(self._desk.book.get(symbol), qty)
        try:
            trade = self._desk.trade(symbol, qty, price, now_ns)
        except ValueError as exc:
            unusable(str(exc))
        self._orders += 1
        return describe_order(self._orders, order, trade)
