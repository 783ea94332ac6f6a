"""The endpoints of the trading API: the account, its positions, its orders and its activities.

Source: Alpaca's OpenAPI descriptions of "Positions", "Orders" and "Account activities"; codes and
texts from users' reports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal, localcontext
from functools import lru_cache
from itertools import islice
from typing import Final, Literal

import msgspec

from mdservice.errors import InvalidSymbol
from mdservice.model.timestamps import LATEST_NS
from mdservice.simulator.assets import asset_of
from mdservice.simulator.http import Call, Endpoint, RefusedRequest, malformed
from mdservice.simulator.options import Contract
from mdservice.simulator.orders import (
    Configuration,
    Order,
    OrderChange,
    OrderRequest,
    Orders,
    describe_order,
    parse_order,
    parse_qty,
    unusable,
)
from mdservice.simulator.paper_account import CENT, Activity, PaperAccount
from mdservice.simulator.positions import Holding
from mdservice.simulator.rest_history import limit_parameter, time_parameter
from mdservice.simulator.wire import EXACT, PLACES, plain

__all__ = ["TradingApi", "describe_account", "describe_position"]

_ACCOUNT_ID: Final = "3f1c8e02-7a52-5d0e-9b6c-51d2c0a4e7f9"
_RATIO_PLACES = Decimal("1e-16")
_NOT_FOUND, _NO_POSITION, _NO_CONTRACT = 404, 40410000, 40410000
_OK, _NO_CONTENT, _MULTI = 200, 204, 207
_WHOLE = 100
_DEFAULT_ORDERS, _MOST_ORDERS = 50, 500
_MOST_ACTIVITIES = 100
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TRADES = "FILL"
_MARGIN, _MAINTENANCE = Decimal("0.5"), Decimal("0.3")
_MULTIPLIER = 2


class TradingApi:
    """Answers ``/v2/account``, ``/v2/positions``, ``/v2/orders`` and what is below them.

    Options' contracts too. Every method raises ``RefusedRequest`` for what Alpaca would refuse.

    Args:
        paper_account: Whose positions they are.
        orders: The account's.
    """

    def __init__(self, paper_account: PaperAccount, orders: Orders) -> None:
        self._paper_account = paper_account
        self._orders = orders

    def endpoints(self) -> Mapping[str, Mapping[str, Endpoint]]:
        """What answers, by path and method; a path that ends with ``/`` has a name behind it."""
        return {
            "/v2/account": {"GET": Endpoint(self._account)},
            "/v2/account/configurations": {
                "GET": Endpoint(self._configuration),
                "PATCH": Endpoint(self._configure),
            },
            "/v2/account/activities": {"GET": Endpoint(self._activities)},
            "/v2/account/activities/": {"GET": Endpoint(self._activities)},
            "/v2/positions": {
                "GET": Endpoint(self._positions),
                "DELETE": Endpoint(self._close_all, _MULTI),
            },
            "/v2/positions/": {
                "GET": Endpoint(self._position),
                "DELETE": Endpoint(self._close),
            },
            "/v2/orders": {
                "GET": Endpoint(self._list_orders),
                "POST": Endpoint(self._submit),
                "DELETE": Endpoint(self._cancel_all, _MULTI),
            },
            "/v2/orders/": {
                "GET": Endpoint(self._order),
                "PATCH": Endpoint(self._replace),
                "DELETE": Endpoint(self._cancel, _NO_CONTENT),
            },
            "/v2/options/contracts/": {"GET": Endpoint(_contract)},
            "/v2/orders:by_client_order_id": {"GET": Endpoint(self._order_of_client)},
        }

    # The account.

    def _account(self, _call: Call) -> bytes:
        return msgspec.json.encode(
            describe_account(self._paper_account, self._orders.configuration)
        )

    def _configuration(self, _call: Call) -> bytes:
        return msgspec.json.encode(self._orders.configuration)

    def _configure(self, call: Call) -> bytes:
        """Change what the body names."""
        try:
            changed = msgspec.json.decode(call.body, type=dict[str, object])
            self._orders.configuration = msgspec.convert(
                {**msgspec.to_builtins(self._orders.configuration), **changed}, Configuration
            )
        except (ValueError, RecursionError):
            malformed("request body format is invalid")
        return self._configuration(call)

    def _activities(self, call: Call) -> bytes:
        """A page, the newest first unless ``direction=asc``.

        A date in ``after`` or ``until`` is its midnight in UTC (inferred).
        """
        params = call.params
        named = call.name or params.get("activity_types", "")
        types = frozenset(filter(None, named.split(",")))
        category = params.get("category", "")
        date = params.get("date")
        if date and not _DATE.fullmatch(date):
            malformed(f"invalid date: {date[:40]}")
        after_ns = time_parameter(params, "after", -1, day_ns=0)
        until_ns = time_parameter(params, "until", LATEST_NS, day_ns=0)
        limit = limit_parameter(
            {"limit": params.get("page_size", "")}, _MOST_ACTIVITIES, _MOST_ACTIVITIES
        )

        def wanted(activity: Activity) -> bool:
            is_trade = activity.activity_type == _TRADES
            return (
                (not types or activity.activity_type in types)
                and (not category or is_trade == (category == "trade_activity"))
                and (not date or activity.date == date)
                and after_ns < activity.at_ns < until_ns
            )

        kept = self._paper_account.activities
        every = iter(kept if _direction(params) == "asc" else reversed(kept))
        token = params.get("page_token")
        if token and not any(activity.id == token for activity in every):
            malformed("invalid page_token")
        rows = [activity.row for activity in islice(filter(wanted, every), limit)]
        return msgspec.json.encode(rows)

    # Positions.

    def _positions(self, _call: Call) -> bytes:
        """All of them, in the order in which they were opened."""
        return msgspec.json.encode(
            [self._describe(holding) for holding in self._paper_account.book]
        )

    def _position(self, call: Call) -> bytes:
        """The one named by its symbol or its asset."""
        return msgspec.json.encode(self._describe(self._holding(call.name)))

    def _close(self, call: Call) -> bytes:
        """Close the position named, or so many shares (``qty``) or per cent of it."""
        holding = self._holding(call.name)
        size = abs(holding.qty)
        if "qty" in call.params:
            size = parse_qty(call.params["qty"])
        elif "percentage" in call.params:
            percentage = parse_qty(call.params["percentage"], "percentage")
            if percentage > _WHOLE:
                unusable("percentage must be <= 100")
            unit = Decimal(1) if asset_of(holding.symbol).is_whole else PLACES
            with localcontext(EXACT):
                size = (size * percentage / _WHOLE).quantize(unit, ROUND_DOWN)
            size = parse_qty(size)
        return msgspec.json.encode(self._close_part(holding, size, call.now_ns))

    def _close_all(self, call: Call) -> bytes:
        """Close every position, after canceling the orders where that is asked for."""
        if call.params.get("cancel_orders", "").lower() == "true":
            self._cancel_all(call)
        return msgspec.json.encode(
            [
                {
                    "symbol": asset_of(holding.symbol).position_symbol,
                    **self._try_to_close(holding, call.now_ns),
                }
                for holding in self._paper_account.book
            ]
        )

    def _try_to_close(self, holding: Holding, now_ns: int) -> dict[str, object]:
        try:
            body = self._close_part(holding, abs(holding.qty), now_ns)
        except RefusedRequest as refused:
            return {"status": refused.status, "body": msgspec.json.decode(refused.body())}
        return {"status": _OK, "body": body}

    def _close_part(self, holding: Holding, size: Decimal, now_ns: int) -> dict[str, object]:
        side: Literal["buy", "sell"] = "sell" if holding.qty > 0 else "buy"
        is_crypto = asset_of(holding.symbol).asset_class == "crypto"
        request = OrderRequest(
            symbol=holding.symbol,
            side=side,
            type="market",
            time_in_force="gtc" if is_crypto else "day",
            qty=size,
        )
        return describe_order(self._orders.submit(request, now_ns))

    def _describe(self, holding: Holding) -> msgspec.Raw:
        account, symbol = self._paper_account, holding.symbol
        return _row_of_position(
            holding,
            account.price(symbol),
            account.lastday_price(symbol),
            self._orders.reserved(symbol),
        )

    def _holding(self, name: str) -> Holding:
        try:
            holding = self._paper_account.book.get(asset_of(name).symbol)
        except InvalidSymbol:
            holding = None
        if holding is not None:
            return holding
        for holding in self._paper_account.book:
            if asset_of(holding.symbol).id == name:
                return holding
        raise RefusedRequest(_NOT_FOUND, _NO_POSITION, "position does not exist")

    # Orders.

    def _submit(self, call: Call) -> bytes:
        """Do the order of the body."""
        order = self._orders.submit(parse_order(call.body), call.now_ns)
        return msgspec.json.encode(describe_order(order))

    def _list_orders(self, call: Call) -> bytes:
        """The open ones, or those with the status asked for; the newest first."""
        params = call.params
        status = params.get("status") or "open"
        if status not in {"open", "closed", "all"}:
            malformed(f"invalid status: {status[:40]}")
        limit = limit_parameter(params, _DEFAULT_ORDERS, _MOST_ORDERS)
        after_ns = time_parameter(params, "after", -1, day_ns=0)
        until_ns = time_parameter(params, "until", LATEST_NS, day_ns=0)
        symbols = frozenset(filter(None, params.get("symbols", "").upper().split(",")))

        def wanted(order: Order) -> bool:
            return (
                (status == "all" or order.is_open == (status == "open"))
                and after_ns < order.created_ns < until_ns
                and (not symbols or not symbols.isdisjoint(_names(order)))
                and params.get("side", order.request.side) == order.request.side
            )

        every = list(self._orders)
        chosen = filter(wanted, every if _direction(params) == "asc" else reversed(every))
        return msgspec.json.encode([describe_order(order) for order in islice(chosen, limit)])

    def _order(self, call: Call) -> bytes:
        """The one named by its id."""
        return msgspec.json.encode(describe_order(self._orders.get(call.name)))

    def _order_of_client(self, call: Call) -> bytes:
        order = self._orders.by_client_id(call.params.get("client_order_id", ""))
        return msgspec.json.encode(describe_order(order))

    def _replace(self, call: Call) -> bytes:
        """Change the order named."""
        order = self._orders.get(call.name)
        try:
            change = msgspec.json.decode(call.body, type=OrderChange)
        except (ValueError, RecursionError):
            malformed("request body format is invalid")
        return msgspec.json.encode(describe_order(self._orders.replace(order, change, call.now_ns)))

    def _cancel(self, call: Call) -> bytes:
        """Cancel the order named."""
        self._orders.cancel(self._orders.get(call.name), call.now_ns)
        return b""

    def _cancel_all(self, call: Call) -> bytes:
        """Cancel every open order."""
        answer = []
        for order in self._orders.open:
            self._orders.cancel(order, call.now_ns)
            answer.append({"id": order.id, "status": _OK})
        return msgspec.json.encode(answer)


def describe_account(account: PaperAccount, configuration: Configuration) -> dict[str, object]:
    """``/v2/account`` as JSON; every number is a string.

    ``equity`` is the cash and what the positions are worth, rounded to the cent. Margin is half of
    what stocks and options are worth, long or short; buying power is twice what is left.

    Source: Alpaca's OpenAPI description of "Account"; its margin rules are simplified.
    """
    balances = account.balances()
    with localcontext(EXACT):
        gross = balances.long_value - balances.short_value
        crypto = sum(
            abs(account.value(held))
            for held in account.book
            if asset_of(held.symbol).asset_class == "crypto"
        )
        initial = (gross - crypto) * _MARGIN + crypto
        free = max(Decimal(0), balances.exact_equity - initial)
        buying = free * _MULTIPLIER
        maintenance = (gross - crypto) * _MAINTENANCE + crypto
    return {
        "id": _ACCOUNT_ID,
        "account_number": "PA0000000001",
        "status": "ACTIVE",
        "crypto_status": "ACTIVE",
        "currency": "USD",
        "cash": _cents(balances.cash),
        "equity": _cents(balances.exact_equity),
        "portfolio_value": _cents(balances.exact_equity),
        "last_equity": _cents(balances.last_equity),
        "long_market_value": _cents(balances.long_value),
        "short_market_value": _cents(balances.short_value),
        "position_market_value": _cents(gross),
        "initial_margin": _cents(initial),
        "maintenance_margin": _cents(maintenance),
        "last_maintenance_margin": "0",
        "sma": "0",
        "buying_power": _cents(buying),
        "regt_buying_power": _cents(buying),
        "daytrading_buying_power": "0",
        "non_marginable_buying_power": _cents(free),
        "options_buying_power": _cents(free),
        "multiplier": str(_MULTIPLIER),
        "accrued_fees": "0",
        "pending_transfer_in": "0",
        "pending_transfer_out": "0",
        "shorting_enabled": not configuration.no_shorting,
        "trade_suspended_by_user": configuration.suspend_trade,
        "trading_blocked": False,
        "transfers_blocked": False,
        "account_blocked": False,
        "pattern_day_trader": False,
        "daytrade_count": 0,
        "options_approved_level": 3,
        "options_trading_level": configuration.max_options_trading_level,
        "created_at": "2020-01-02T15:04:05Z",
    }


def describe_position(
    holding: Holding, price: Decimal, lastday: Decimal, reserved: Decimal = Decimal(0)
) -> dict[str, object]:
    """One position as JSON; every number is a string.

    A short position has ``qty``, ``market_value`` and ``cost_basis`` below 0. The shares count
    as held since the last day, so what the day brought is measured from its close.

    Args:
        holding: The position.
        price: Dollars a share now.
        lastday: Dollars a share at the last day's close.
        reserved: How much of it open orders may close.

    Source: Alpaca's OpenAPI description of "Positions", and the negative numbers of a short
    position from its users' reports. That ratios have up to 16 places is inferred.
    """
    asset = asset_of(holding.symbol)
    with localcontext(EXACT):
        size = holding.qty * asset.multiplier
        value = size * price
        cost = size * holding.avg_entry_price
        close = size * lastday
        available = max(Decimal(0), abs(holding.qty) - reserved).copy_sign(holding.qty)
        return {
            "asset_id": asset.id,
            "symbol": asset.position_symbol,
            "exchange": asset.exchange,
            "asset_class": asset.asset_class,
            "asset_marginable": asset.asset_class == "us_equity",
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
            "qty_available": plain(available),
        }


@lru_cache(maxsize=10_000)
def _row_of_position(
    holding: Holding, price: Decimal, lastday: Decimal, reserved: Decimal
) -> msgspec.Raw:
    """:func:`describe_position` as JSON; most rows of an answer were also in the last one."""
    return msgspec.Raw(msgspec.json.encode(describe_position(holding, price, lastday, reserved)))


def _contract(call: Call) -> bytes:
    """The option named.

    Source: Alpaca's OpenAPI description of "Option contracts".
    """
    try:
        contract = Contract.parse(call.name)
    except ValueError:
        raise RefusedRequest(_NOT_FOUND, _NO_CONTRACT, "option contract not found") from None
    asset = asset_of(contract.symbol)
    return msgspec.json.encode(
        {
            "id": asset.id,
            "symbol": contract.symbol,
            "name": f"{contract.root} {contract.expiry} {'Call' if contract.is_call else 'Put'}",
            "status": "active",
            "tradable": True,
            "expiration_date": str(contract.expiry),
            "root_symbol": contract.root,
            "underlying_symbol": contract.root,
            "type": "call" if contract.is_call else "put",
            "style": "american",
            "strike_price": f"{contract.strike:g}",
            "multiplier": str(asset.multiplier),
            "size": str(asset.multiplier),
        }
    )


def _names(order: Order) -> set[str]:
    """The order's symbols, with and without their slash."""
    return {name for symbol in order.symbols for name in (symbol, symbol.replace("/", ""))}


def _direction(params: Mapping[str, str]) -> str:
    direction = params.get("direction") or "desc"
    if direction not in {"asc", "desc"}:
        malformed(f"invalid direction: {direction[:40]}")
    return direction


def _ratio(part: Decimal, whole: Decimal) -> str:
    """The part of the whole's size, by a factor of 1; 0 of nothing."""
    return plain((part / abs(whole)).quantize(_RATIO_PLACES)) if whole else "0"


def _cents(dollars: Decimal) -> str:
    with localcontext(EXACT):
        return plain(dollars.quantize(CENT, ROUND_HALF_EVEN))
