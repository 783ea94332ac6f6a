"""The account's orders: how they are filled, canceled, replaced and refused.

Pure: the time is an argument, and the updates go to a callable.

Source: Alpaca's OpenAPI description of "Orders" and its documentation of trade updates; codes and
texts of refusals from users' reports.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Any, Final, Literal, NoReturn

import attrs
import msgspec

from mdservice.errors import InvalidSymbol
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns
from mdservice.simulator.assets import Asset, asset_of
from mdservice.simulator.http import RefusedRequest, malformed
from mdservice.simulator.paper_account import PaperAccount, Trade
from mdservice.simulator.positions import Holding
from mdservice.simulator.wire import EXACT, PLACES, plain, to_decimal

__all__ = [
    "Configuration",
    "Leg",
    "Order",
    "OrderChange",
    "OrderRequest",
    "Orders",
    "check_order",
    "describe_order",
    "forbidden",
    "parse_order",
    "parse_qty",
    "unusable",
]

_FORBIDDEN, _UNPROCESSABLE, _NOT_FOUND = 403, 422, 404
_INSUFFICIENT, _UNUSABLE, _NO_ORDER = 40310000, 42210000, 40410000
_EXECUTION_IDS = 1 << 64
_MOST_OPEN = 1_000
_LEAST_LEGS, _MOST_LEGS = 2, 4
_DOLLARS = ("USD", "USDT", "USDC")

Side = Literal["buy", "sell"]
TimeInForce = Literal["day", "gtc", "opg", "cls", "ioc", "fok"]
Status = Literal["new", "partially_filled", "filled", "canceled", "expired", "replaced", "rejected"]
_SIDES: Final[Mapping[str, Side]] = {
    "buy_to_open": "buy",
    "buy_to_close": "buy",
    "sell_to_open": "sell",
    "sell_to_close": "sell",
}
_OPEN: Final[AbstractSet[Status]] = frozenset(("new", "partially_filled"))
_STAMP: Final[Mapping[Status, str]] = {
    "filled": "filled_at",
    "canceled": "canceled_at",
    "expired": "expired_at",
    "replaced": "replaced_at",
    "rejected": "failed_at",
}


class Configuration(msgspec.Struct):
    """``/v2/account/configurations``, of which the two that refuse orders are simulated."""

    suspend_trade: bool = False
    no_shorting: bool = False
    fractional_trading: bool = True
    max_margin_multiplier: str = "2"
    max_options_trading_level: int | None = 3
    ptp_no_exception_entry: bool = False
    trade_confirm_email: Literal["all", "none"] = "all"


class Leg(msgspec.Struct, frozen=True):
    """A leg of a multi-leg order: ``ratio_qty`` contracts in each unit of the order."""

    symbol: str
    ratio_qty: Decimal
    side: Side | None = None
    position_intent: str | None = None


class OrderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``{"symbol":"AAPL","qty":"5","side":"buy","type":"market","time_in_force":"day"}``.

    Either ``qty``, in shares, or ``notional``, in dollars; both above 0. A multi-leg order has
    ``order_class`` ``mleg``, ``legs``, and neither symbol nor side.
    """

    type: str
    time_in_force: TimeInForce
    symbol: str = ""
    side: Side | None = None
    qty: Decimal | None = None
    notional: Decimal | None = None
    limit_price: Decimal | None = None
    order_class: str | None = None
    legs: tuple[Leg, ...] | None = None
    extended_hours: bool | None = None
    position_intent: str | None = None
    client_order_id: str | None = None


class OrderChange(msgspec.Struct, frozen=True):
    """The body of ``PATCH /v2/orders/{id}``."""

    qty: Decimal | None = None
    limit_price: Decimal | None = None
    time_in_force: TimeInForce | None = None
    client_order_id: str | None = None


@attrs.define(eq=False)
class Order:
    """An order, or a leg of one.

    Attributes:
        id: A UUID.
        request: What was asked for.
        qty: Shares, coins, contracts or, with legs, units of them.
        created_ns: UTC nanoseconds.
        updated_ns: Likewise.
        legs: Those of a multi-leg order, with the signed ratio of each.
        filled_qty: How much of ``qty`` is done.
        cost: Dollars a share times quantity, of all fills.
        fills: How many there were.
        status: Alpaca's name.
        stamps: When it came to its end, by the name of the field.
        replaces: The order whose place it took.
        replaced_by: The order that took its place.
    """

    id: str
    request: OrderRequest
    qty: Decimal
    created_ns: int
    updated_ns: int
    legs: tuple[tuple[Order, Decimal], ...] = ()
    filled_qty: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    fills: int = 0
    status: Status = "new"
    stamps: dict[str, int] = attrs.field(factory=dict)
    replaces: str | None = None
    replaced_by: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether more of it may be filled."""
        return self.status in _OPEN

    @property
    def left(self) -> Decimal:
        """How much is not filled."""
        return self.qty - self.filled_qty

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that it trades."""
        return tuple(leg.request.symbol for leg, _ in self.legs) or (self.request.symbol,)

    @property
    def sign(self) -> int:
        """1 to buy, -1 to sell."""
        return -1 if self.request.side == "sell" else 1


Update = Mapping[str, Any]
"""The ``data`` of a message of ``trade_updates``."""


class Orders:
    """Takes orders and fills them at the market's quotes.

    A market order is filled at the ask or the bid, also while the market is closed; a limit order
    once that is within its limit.

    Args:
        account: Whose orders they are.
        fills_per_order: In how many parts an order is filled.
        waits: Whether orders wait for :meth:`fill_next` with each part.
        size: How many orders that came to an end are kept.
        updated: Called with each update of an order.
    """

    def __init__(
        self,
        account: PaperAccount,
        *,
        fills_per_order: int = 1,
        waits: bool = False,
        size: int = 1_000,
        updated: Callable[[Update], None],
    ) -> None:
        self.configuration = Configuration()
        self._account = account
        self._fills_per_order = fills_per_order
        self._waits = waits
        self._size = size
        self._updated = updated
        self._numbered = 0
        self._executed = 0
        self._to_reject = 0
        self._all: dict[str, Order] = {}
        self._open: dict[str, Order] = {}

    def __iter__(self) -> Iterator[Order]:
        return iter(tuple(self._all.values()))

    @property
    def open(self) -> tuple[Order, ...]:
        """Those that may still be filled, the oldest first."""
        return tuple(self._open.values())

    def get(self, order_id: str) -> Order:
        """The order with this id.

        Raises:
            RefusedRequest: There is none, 404.
        """
        order = self._all.get(order_id)
        if order is None:
            raise RefusedRequest(_NOT_FOUND, _NO_ORDER, f"order not found for {order_id[:64]}")
        return order

    def by_client_id(self, client_order_id: str) -> Order:
        """The newest order with the client's id.

        Raises:
            RefusedRequest: There is none, 404.
        """
        for order in reversed(self._all.values()):
            if order.request.client_order_id == client_order_id:
                return order
        raise RefusedRequest(_NOT_FOUND, _NO_ORDER, "order not found")

    def submit(self, request: OrderRequest, now_ns: int) -> Order:
        """Take an order, and fill what can be filled at once.

        Raises:
            RefusedRequest: It is not taken.
        """
        self._check_account(request)
        size = self._size_of(request)
        self._check(request, size)
        if len(self._open) >= _MOST_OPEN:
            unusable("too many open orders")
        return self._take(request, size, now_ns)

    def trade(self, symbol: str, qty: Decimal, price: Decimal, now_ns: int) -> Trade:
        """An order that is filled at this price at once, whatever the market and the account say.

        Raises:
            ValueError: As :meth:`PaperAccount.trade`.
        """
        price = to_decimal(price)
        self._account.book.qty_after(symbol, qty, price)
        request = OrderRequest(
            symbol=symbol,
            side="buy" if qty > 0 else "sell",
            type="market",
            time_in_force="gtc" if asset_of(symbol).asset_class == "crypto" else "day",
            qty=abs(qty),
        )
        order = self._open_order(request, abs(qty), now_ns)
        self._update("new", order, now_ns)
        self._fill(order, abs(qty), now_ns, {symbol: price})
        return Trade(now_ns, symbol, qty, price)

    def cancel(self, order: Order, now_ns: int) -> None:
        """Cancel an order.

        Raises:
            RefusedRequest: It is not open.
        """
        self._check_open(order)
        self._end(order, "canceled", now_ns)

    def replace(self, order: Order, change: OrderChange, now_ns: int) -> Order:
        """Replace an order by one with these changes.

        Raises:
            RefusedRequest: It is not open, or the new one is not taken.
        """
        self._check_open(order)
        request = order.request
        if change.limit_price is not None and request.type != "limit":
            unusable("limit_price is only for limit orders")
        qty = order.qty if change.qty is None else parse_qty(change.qty)
        if qty <= order.filled_qty:
            unusable("qty must be greater than filled_qty")
        new = msgspec.structs.replace(
            request,
            qty=qty - order.filled_qty,
            notional=None,
            limit_price=(
                request.limit_price
                if change.limit_price is None
                else _parse_limit(change.limit_price, request)
            ),
            time_in_force=change.time_in_force or request.time_in_force,
            client_order_id=change.client_order_id,
        )
        self._check_account(new)
        self._check(new, qty - order.filled_qty, without=order)
        return self._take(new, qty - order.filled_qty, now_ns, replaced=order)

    def expire_day(self, now_ns: int) -> None:
        """End the orders that are good for the day alone."""
        for order in self.open:
            if order.request.time_in_force in {"day", "opg", "cls"}:
                self._end(order, "expired", now_ns)

    def reject_next(self, times: int = 1) -> None:
        """Take the next orders, and then reject them, as an exchange may."""
        self._to_reject += times

    def fill(self, order: Order, qty: Decimal, price: Decimal | None, now_ns: int) -> None:
        """Fill a part of an open order.

        Args:
            order: Which one.
            qty: How much, at most what is left.
            price: Dollars a share; None for the market's. Multi-leg orders need None.
            now_ns: UTC nanoseconds.

        Raises:
            ValueError: The order is not open, there is less of it left, the position would be too
                large, or it has legs and a price.
        """
        if not order.is_open or not 0 < qty <= order.left:
            raise ValueError(f"{plain(qty)} of order {order.id} cannot be filled")
        if price is not None and order.legs:
            raise ValueError(f"order {order.id} has legs: each is filled at its own price")
        prices = self._prices(order) if price is None else {order.request.symbol: price}
        self._check_size(order, qty, prices)
        self._fill(order, qty, now_ns, prices)

    def fill_next(self, now_ns: int) -> None:
        """Fill the next part of every order that the market fills now."""
        for order in self.open:
            self._fill_part(order, now_ns)

    def match(self, symbols: Iterable[str], now_ns: int) -> None:
        """Fill the orders in these symbols that the market fills now."""
        if self._waits or not self._open:
            return
        quoted = frozenset(symbols)
        for order in self.open:
            if not quoted.isdisjoint(order.symbols):
                self._fill_all(order, now_ns)

    def reserved(self, symbol: str, without: Order | None = None) -> Decimal:
        """How much of a position the open orders may close, without those of one order."""
        held = self._account.book.get(symbol)
        return sum(
            (
                abs(qty)
                for order in self.open
                if order is not without and held is not None
                for name, qty in _signed(order.request, order.left)
                if name == symbol and (qty > 0) != (held.qty > 0)
            ),
            Decimal(0),
        )

    # What is taken.

    def _take(
        self, request: OrderRequest, size: Decimal, now_ns: int, replaced: Order | None = None
    ) -> Order:
        rejected = self._to_reject > 0
        order = self._open_order(request, size, now_ns, replaced)
        if rejected:
            self._to_reject -= 1
            self._end(order, "rejected", now_ns)
            return order
        self._update("new", order, now_ns)
        if request.time_in_force in {"ioc", "fok"}:
            self._fill_all(order, now_ns)
            if order.is_open:
                self._end(order, "canceled", now_ns)
        elif not self._waits:
            self._fill_all(order, now_ns)
        return order

    def _open_order(
        self, request: OrderRequest, size: Decimal, now_ns: int, replaced: Order | None = None
    ) -> Order:
        order = Order(self._next_id(), request, size, now_ns, now_ns)
        order.legs = tuple(self._leg(leg, request, size, now_ns) for leg in request.legs or ())
        if replaced is not None:
            order.replaces, replaced.replaced_by = replaced.id, order.id
            self._end(replaced, "replaced", now_ns)
        self._all[order.id] = self._open[order.id] = order
        return order

    def _leg(
        self, leg: Leg, request: OrderRequest, size: Decimal, now_ns: int
    ) -> tuple[Order, Decimal]:
        own = OrderRequest(
            symbol=leg.symbol,
            side=leg.side,
            type=request.type,
            time_in_force=request.time_in_force,
            order_class="mleg",
            position_intent=leg.position_intent,
        )
        order = Order(self._next_id(), own, leg.ratio_qty * size, now_ns, now_ns)
        return order, leg.ratio_qty * order.sign

    def _next_id(self) -> str:
        self._numbered += 1
        return str(uuid.UUID(int=self._numbered, version=4))

    def _size_of(self, request: OrderRequest) -> Decimal:
        """How much an order is for; that of one in dollars follows from its price."""
        if request.qty is not None:
            return request.qty
        price = request.limit_price
        if price is None:
            sign = Decimal(-1 if request.side == "sell" else 1)
            price = self._account.fill_price(request.symbol, sign)
        with localcontext(EXACT):
            size = ((request.notional or 0) / price).quantize(PLACES, ROUND_DOWN)
        return parse_qty(size)

    def _check_account(self, request: OrderRequest) -> None:
        if self.configuration.suspend_trade:
            forbidden("new orders are rejected by user request")
        name = request.client_order_id
        if name and any(order.request.client_order_id == name for order in self):
            unusable("client_order_id must be unique")

    def _check(self, request: OrderRequest, size: Decimal, without: Order | None = None) -> None:
        """Refuse what the positions do not allow, besides those that ``without`` reserves."""
        if size % 1 and any(asset_of(symbol).is_whole for symbol, _ in _signed(request, size)):
            unusable("options orders need a whole qty")
        for symbol, qty in _signed(request, size):
            held = self._account.book.get(symbol)
            check_order(asset_of(symbol), held, qty, self.reserved(symbol, without))
            opens = qty < 0 and (held is None or held.qty < 0)
            if opens and self.configuration.no_shorting:
                forbidden("account is not allowed to short")
            try:
                price = self._account.fill_price(symbol, qty)
                self._account.book.qty_after(symbol, qty, to_decimal(price))
            except ValueError as exc:
                unusable(str(exc))

    @staticmethod
    def _check_open(order: Order) -> None:
        if not order.is_open:
            unusable(f'order is already in "{order.status}" state')

    # What is filled.

    def _prices(self, order: Order) -> dict[str, Decimal]:
        """The market's price of each symbol for a trade in the order's direction.

        Raises:
            ValueError: One is too large to trade at.
        """
        return {
            symbol: to_decimal(self._account.fill_price(symbol, qty))
            for symbol, qty in _signed(order.request, order.left)
        }

    def _is_within_limit(self, order: Order, prices: Mapping[str, Decimal]) -> bool:
        request = order.request
        if request.type == "market":
            return True
        assert request.limit_price is not None
        for symbol, qty in _signed(request, order.left):
            if not self._account.is_offered(symbol, qty):
                return False
        price = _net(order, prices)
        if order.legs or order.sign > 0:
            return price <= request.limit_price
        return price >= request.limit_price

    def _fill_all(self, order: Order, now_ns: int) -> None:
        while order.is_open and self._fill_part(order, now_ns):
            pass

    def _fill_part(self, order: Order, now_ns: int) -> bool:
        """Fill the next part; False where the market does not fill the order now."""
        qty = self._part(order)
        try:
            prices = self._prices(order)
            self._check_size(order, qty, prices)
        except ValueError:
            return False
        if not self._is_within_limit(order, prices):
            return False
        self._fill(order, qty, now_ns, prices)
        return True

    def _check_size(self, order: Order, qty: Decimal, prices: Mapping[str, Decimal]) -> None:
        """Check that each position can grow so far.

        Raises:
            ValueError: One cannot.
        """
        for symbol, signed in _signed(order.request, qty):
            self._account.book.qty_after(symbol, signed, prices[symbol])

    def _part(self, order: Order) -> Decimal:
        """How much the next fill is for: equal parts, whole ones of a whole number."""
        unit = Decimal(1) if order.qty % 1 == 0 else PLACES
        with localcontext(EXACT):
            for count in range(order.fills + 1, self._fills_per_order):
                until = (order.qty * count / self._fills_per_order).quantize(unit, ROUND_DOWN)
                if until > order.filled_qty:
                    return until - order.filled_qty
        return order.left

    def _fill(self, order: Order, qty: Decimal, now_ns: int, prices: Mapping[str, Decimal]) -> None:
        """Fill the order, and report it."""
        parts = [(leg, abs(ratio) * qty) for leg, ratio in order.legs] or [(order, qty)]
        rows = [self._fill_one(one, part, now_ns, prices) for one, part in parts]
        price = _net(order, prices)
        if order.legs:
            self._count(order, qty, price, now_ns)
        if not order.is_open:
            self._close(order)
        fields: dict[str, Any] = {"price": plain(price), "qty": plain(qty)}
        if order.legs:
            held = self._account.book.get
            fields["position_qtys"] = {
                row["symbol"]: plain(_qty(held(row["symbol"]))) for row in rows
            }
            fields["legs"] = rows
        else:
            fields["position_qty"] = rows[0]["position_qty"]
        event = "partial_fill" if order.is_open else "fill"
        self._update(event, order, now_ns, **fields)

    def _fill_one(
        self, order: Order, qty: Decimal, now_ns: int, prices: Mapping[str, Decimal]
    ) -> dict[str, Any]:
        symbol = order.request.symbol
        price = prices[symbol]
        before = self._account.book.get(symbol)
        trade = self._account.trade(symbol, order.sign * qty, price, now_ns)
        self._count(order, qty, price, now_ns)
        shorts = order.sign < 0 and (before is None or before.qty < 0)
        self._account.add_activity(
            "FILL",
            now_ns,
            {
                "transaction_time": format_ns(now_ns),
                "type": "partial_fill" if order.is_open else "fill",
                "price": plain(price),
                "qty": plain(qty),
                "side": "sell_short" if shorts else order.request.side,
                "symbol": symbol,
                "leaves_qty": plain(order.left),
                "order_id": order.id,
                "cum_qty": plain(order.filled_qty),
                "order_status": order.status,
            },
        )
        self._account.charge(trade)
        return {
            "order_id": order.id,
            "symbol": symbol,
            "side": order.request.side,
            "price": plain(price),
            "qty": plain(qty),
            "position_qty": plain(_qty(self._account.book.get(symbol))),
        }

    def _count(self, order: Order, qty: Decimal, price: Decimal, now_ns: int) -> None:
        with localcontext(EXACT):
            order.filled_qty += qty
            order.cost += qty * price
        order.fills += 1
        order.updated_ns = now_ns
        order.status = "partially_filled" if order.left else "filled"
        if not order.left:
            order.stamps["filled_at"] = now_ns

    def _end(self, order: Order, status: Status, now_ns: int) -> None:
        for one in (order, *(leg for leg, _ in order.legs)):
            one.status = status
            one.updated_ns = one.stamps[_STAMP[status]] = now_ns
        self._close(order)
        self._update(status, order, now_ns)

    def _close(self, order: Order) -> None:
        """Move the order to the ended ones, of which only the newest are kept."""
        del self._open[order.id]
        if len(self._all) - len(self._open) > self._size:
            del self._all[next(old.id for old in self._all.values() if not old.is_open)]

    def _update(self, event: str, order: Order, now_ns: int, **fields: Any) -> None:
        self._executed += 1
        execution = uuid.UUID(int=_EXECUTION_IDS + self._executed, version=4)
        self._updated(
            {
                "event": event,
                "execution_id": str(execution),
                "order": describe_order(order),
                "timestamp": format_ns(now_ns),
                **fields,
            }
        )


def parse_order(body: bytes) -> OrderRequest:
    """The order that a request's body asks for.

    Raises:
        RefusedRequest: It cannot be understood, or it is none that is simulated.
    """
    try:
        order = msgspec.json.decode(body, type=OrderRequest)
    except (ValueError, RecursionError):
        malformed("request body format is invalid")
    if order.type not in {"market", "limit"}:
        unusable("only market and limit orders are simulated")
    if order.order_class == "mleg":
        return _parse_legs(order)
    if order.order_class not in {None, "", "simple"} or order.legs:
        unusable("only simple and multi-leg orders are simulated")
    asset = _asset(order.symbol)
    if order.side is None:
        unusable("side is required")
    if (order.qty is None) == (order.notional is None):
        unusable("either qty or notional is required")
    qty = None if order.qty is None else parse_qty(order.qty)
    notional = None if order.notional is None else parse_qty(order.notional, "notional")
    if asset.is_whole and qty is None:
        unusable("options orders need a qty")
    if asset.asset_class == "crypto" and order.time_in_force not in {"gtc", "ioc"}:
        unusable("invalid crypto time_in_force")
    return msgspec.structs.replace(
        order,
        symbol=asset.symbol,
        qty=qty,
        notional=notional,
        limit_price=_parse_limit(order.limit_price, order),
    )


def _parse_legs(order: OrderRequest) -> OrderRequest:
    legs = order.legs or ()
    if not _LEAST_LEGS <= len(legs) <= _MOST_LEGS:
        unusable("multi-leg orders have 2 to 4 legs")
    if order.qty is None or order.notional is not None or order.symbol or order.side:
        unusable("multi-leg orders have a qty, and the symbol and side of each leg")
    parsed = []
    for leg in legs:
        asset, ratio = _asset(leg.symbol), parse_qty(leg.ratio_qty, "ratio_qty")
        if asset.asset_class != "us_option" or ratio % 1:
            unusable("legs are whole numbers of options")
        side = leg.side or _SIDES.get(leg.position_intent or "")
        if side is None:
            unusable("a leg needs a side or a position_intent")
        parsed.append(msgspec.structs.replace(leg, symbol=asset.symbol, ratio_qty=ratio, side=side))
    if len({leg.symbol for leg in parsed}) < len(parsed):
        unusable("the legs must have different symbols")
    qty = parse_qty(order.qty)
    if qty % 1:
        unusable("options orders need a whole qty")
    limit = _parse_limit(order.limit_price, order)
    return msgspec.structs.replace(order, legs=tuple(parsed), qty=qty, limit_price=limit)


def _asset(symbol: str) -> Asset:
    try:
        asset = asset_of(symbol)
    except InvalidSymbol:
        unusable(f'asset "{symbol[:32]}" not found')
    if asset.symbol == EVERY_SYMBOL or (
        asset.asset_class == "crypto" and not asset.symbol.endswith(_DOLLARS)
    ):
        unusable(f'asset "{symbol[:32]}" not found')
    return asset


def _parse_limit(price: Decimal | None, order: OrderRequest) -> Decimal | None:
    """The limit price that the order's type needs; below 0 only for legs, as a credit."""
    if order.type == "market":
        if price is not None:
            unusable("market orders have no limit_price")
        return None
    if price is None:
        unusable("limit orders need a limit_price")
    try:
        limit = to_decimal(price)
    except ValueError:
        malformed("limit_price is invalid")
    if limit <= 0 and order.order_class != "mleg":
        unusable("limit_price must be > 0")
    return limit


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


def check_order(asset: Asset, holding: Holding | None, qty: Decimal, reserved: Decimal) -> None:
    """Refuse an order that would take a position through 0, or sell short what cannot be.

    Args:
        asset: What is traded.
        holding: The position, where there is one.
        qty: Shares, coins or contracts, below 0 to sell them.
        reserved: How much of the position other orders close.

    Raises:
        RefusedRequest: As Alpaca, whose users turn a position with two orders.
    """
    if holding is not None and (holding.qty > 0) != (qty > 0):
        available = max(Decimal(0), abs(holding.qty) - reserved)
        if abs(qty) > available:
            asked, there = plain(abs(qty)), plain(available)
            forbidden(
                f"insufficient qty available for order (requested: {asked}, available: {there})"
            )
    elif qty < 0 and asset.asset_class == "crypto":
        forbidden(f"insufficient balance for {asset.symbol.partition('/')[0]}")
    elif qty < 0 and qty % 1:
        unusable("fractional orders cannot be sold short")


def describe_order(order: Order) -> dict[str, Any]:
    """An order as JSON; every number is a string.

    A multi-leg one has ``legs``, and neither symbol nor side.
    """
    request = order.request
    asset = asset_of(request.symbol) if request.symbol else None
    empty = ("expired_at", "canceled_at", "failed_at", "replaced_at", "filled_at")
    unused = ("stop_price", "trail_percent", "trail_price", "hwm")
    of_leg = request.order_class == "mleg" and not order.legs
    with localcontext(EXACT):
        average = (order.cost / order.filled_qty).quantize(PLACES) if order.filled_qty else None
    return {
        "id": order.id,
        "client_order_id": request.client_order_id or order.id,
        "created_at": format_ns(order.created_ns),
        "updated_at": format_ns(order.updated_ns),
        "submitted_at": format_ns(order.created_ns),
        **dict.fromkeys(empty),
        **{name: format_ns(at_ns) for name, at_ns in order.stamps.items()},
        "replaced_by": order.replaced_by,
        "replaces": order.replaces,
        "asset_id": "" if asset is None else asset.id,
        "symbol": request.symbol,
        "asset_class": "" if asset is None else asset.asset_class,
        "notional": None if request.notional is None else plain(request.notional),
        "qty": None if request.notional is not None else plain(order.qty),
        "filled_qty": plain(order.filled_qty),
        "filled_avg_price": None if average is None else plain(average),
        "order_class": request.order_class or "",
        "order_type": "" if of_leg else request.type,
        "type": "" if of_leg else request.type,
        "side": request.side or "",
        "position_intent": request.position_intent or "",
        "time_in_force": request.time_in_force,
        "limit_price": None if request.limit_price is None else plain(request.limit_price),
        "status": order.status,
        "extended_hours": bool(request.extended_hours),
        "legs": [
            {**describe_order(leg), "ratio_qty": plain(abs(ratio))} for leg, ratio in order.legs
        ]
        or None,
        **dict.fromkeys(unused),
    }


def forbidden(message: str) -> NoReturn:
    """Refuse an order that the account does not allow.

    Raises:
        RefusedRequest: Always, 403.
    """
    raise RefusedRequest(_FORBIDDEN, _INSUFFICIENT, message)


def unusable(message: str) -> NoReturn:
    """Refuse an order that is well formed but cannot be executed.

    Raises:
        RefusedRequest: Always, 422.
    """
    raise RefusedRequest(_UNPROCESSABLE, _UNUSABLE, message)


def _signed(request: OrderRequest, size: Decimal) -> Sequence[tuple[str, Decimal]]:
    """What an order of this size trades: symbols, and quantities below 0 for those sold."""
    if request.legs:
        return [
            (leg.symbol, leg.ratio_qty * (-size if leg.side == "sell" else size))
            for leg in request.legs
        ]
    return [(request.symbol, -size if request.side == "sell" else size)]


def _net(order: Order, prices: Mapping[str, Decimal]) -> Decimal:
    """Dollars a share of one unit: what the legs cost together, below 0 for a credit."""
    with localcontext(EXACT):
        if not order.legs:
            return prices[order.request.symbol]
        parts = (prices[leg.request.symbol] * ratio for leg, ratio in order.legs)
        return sum(parts, Decimal(0))


def _qty(holding: Holding | None) -> Decimal:
    return Decimal(0) if holding is None else holding.qty
