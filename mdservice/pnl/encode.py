"""Encodes P&L and positions as the gateway's JSON. Numbers are exact decimals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation, localcontext
from typing import Final, get_args

import msgspec

from mdservice.model.position import AssetClass, Position
from mdservice.model.quote import Quote
from mdservice.pnl.day import SymbolDay
from mdservice.pnl.holding import Holding, Totals
from mdservice.pnl.numbers import EXACT, PLACES, divide, plain, quantize, short, shortened, shown
from mdservice.pnl.rows import MarkName, PnlReport, Status

__all__ = ["encode_position", "encode_positions", "encode_report", "row_texts"]

_encode = msgspec.json.encode
_MARKS: Final = {None: "null", **{name: f'"{name}"' for name in get_args(MarkName)}}


def _json(text: str) -> str:
    return _encode(text).decode()


def _problem(text: str) -> str:
    return f',"problem":{_json(text)}'


def _given(number: Decimal | None) -> str:
    return "null" if number is None else plain(number)


def _position(symbol: str, qty: Decimal | None, avg_entry_price: Decimal | None) -> str:
    """The row without its closing brace. Zeros of the source stay."""
    return (
        f'{{"symbol":{_json(symbol)},"qty":{_given(qty)}'
        f',"avg_entry_price":{_given(avg_entry_price)}'
    )


def row_texts(holdings: Iterable[Holding]) -> list[list[str]]:
    """The JSON of each symbol's rows, not to be changed: the same objects until something changes.

    A row is ``{"symbol":"AAPL","qty":10,…,"status":"live"}``; ``problem`` is only there if there is
    one. Computed numbers have no trailing zeros, and no number has an exponent.
    """
    with localcontext(EXACT):  # operators take half the time of the context's methods
        return [one.texts if one.fresh_texts else _texts(one) for one in holdings]


def _texts(holding: Holding) -> list[str]:
    """The rows of a symbol, written again. In the context :data:`EXACT`."""
    texts, lot, mark = holding.texts, holding.sole, holding.mark
    if not holding.heads:
        holding.heads = tuple(_head(*lot.head) for lot in holding.lots)
        texts[:] = holding.heads
    holding.fresh_texts = True
    price = holding.price
    if (
        price is None
        or holding.price_e5 is None
        or lot is None
        or not lot.hundredth
        or type(mark) is not Quote
    ):
        return _other_texts(holding)
    # Nearly all rows are such, so this calls few functions. A mid has decimals. Shares have no
    # positive exponent, so the products and sums have decimals too.
    value = lot.units * price
    pnl = value + lot.minus_paid
    try:
        percent = str(quantize(divide(pnl, lot.hundredth), PLACES))
    except InvalidOperation:  # more digits than the context allows
        return _other_texts(holding)
    if percent[-1] == "0":
        percent = shortened(percent)
    base, day = holding.first_base, "null"
    if base is not None and holding.day.problem is None:
        day = short(value - base)
    when = mark.timestamp
    status = "live" if holding.live and holding.quote is mark else holding.status
    row = (
        f',"current_price":{str(price).rstrip("0").rstrip(".")}'
        f',"unrealized_pnl":{str(pnl).rstrip("0").rstrip(".")},"unrealized_pnl_pct":{percent}'
        f',"market_value":{str(value).rstrip("0").rstrip(".")},"day_pnl":{day}'
        f',"last_updated":"{when}","mark":"mid","status":"{status}"}}'
    )
    if "E" in row:  # a number is very small
        return _other_texts(holding)
    texts[0] = holding.heads[0] + row
    return texts


def _other_texts(holding: Holding) -> list[str]:
    pairs = zip(holding.heads, holding.lots, strict=True)
    holding.texts[:] = [_row(head, *holding.figures(lot)) for head, lot in pairs]
    return holding.texts


def _head(
    symbol: str,
    qty: Decimal | None,
    avg_entry_price: Decimal | None,
    asset_class: AssetClass,
    multiplier: Decimal | None,
) -> str:
    position = _position(symbol, qty, avg_entry_price)
    return f'{position},"asset_class":"{asset_class}","multiplier":{_given(multiplier)}'


def _row(
    head: str,
    price: Decimal | None,
    pnl: Decimal | None,
    percent: Decimal | None,
    value: Decimal | None,
    day: Decimal | None,
    updated: str | None,
    mark: MarkName | None,
    status: Status,
    problem: str | None,
) -> str:
    when = "null" if updated is None else f'"{updated}"'
    return (
        f'{head},"current_price":{"null" if price is None else short(price)}'
        f',"unrealized_pnl":{"null" if pnl is None else short(pnl)}'
        f',"unrealized_pnl_pct":{"null" if percent is None else short(percent)}'
        f',"market_value":{"null" if value is None else short(value)}'
        f',"day_pnl":{"null" if day is None else short(day)}'
        f',"last_updated":{when},"mark":{_MARKS[mark]},"status":"{status}"'
        f"{'' if problem is None else _problem(problem)}}}"
    )


def encode_report(report: PnlReport[str]) -> bytes:
    """``{"positions":[…],"total_unrealized_pnl":371.35,…,"priced":1,"unpriced":0}``.

    A whole report and one of changes have the same form.

    Args:
        report: With the rows of :func:`row_texts`.
    """
    day, realized = report.total_day_pnl, report.realized_day_pnl
    texts = list(report.positions) or [""]
    texts[0] = f'{{"positions":[{texts[0]}'
    texts[-1] += (
        f'],"total_unrealized_pnl":{short(report.total_unrealized_pnl)}'
        f',"total_market_value":{short(report.total_market_value)}'
        f',"total_day_pnl":{_computed(day)},"realized_day_pnl":{_computed(realized)}'
        f',"market":{_encode(report.market).decode()}'
        f',"priced":{report.priced},"unpriced":{report.unpriced}}}'
    )
    return ",".join(texts).encode()


def encode_day(
    date: str,
    totals: Totals,
    fees: Decimal | None,
    days: Iterable[SymbolDay],
    warnings: Sequence[str] = (),
) -> bytes:
    """``{"date":"2026-11-20","realized_pnl":12.5,"unrealized_change":4.85,"fees":0.02,…}``.

    The others are ``total``, which is what was realised and the change less the fees, and
    ``symbols``: ``{"symbol":"AAPL","realized_pnl":12.5,"fills":3,"qty":10}``. What is not known is
    null.

    Args:
        date: New York's.
        totals: Those of the engine.
        fees: Dollars; None if they are not known.
        days: The symbols that changed today.
        warnings: Included if there are any.
    """
    realized, day = totals.realized_day_pnl, totals.day_pnl
    change = None if realized is None or day is None else EXACT.subtract(day, realized)
    total = None if fees is None or day is None else EXACT.subtract(day, fees)
    symbols = ",".join(
        f'{{"symbol":{_json(one.symbol)},"realized_pnl":{_computed(one.realized)}'
        f',"fills":{one.fills},"qty":{short(one.qty)}}}'
        for one in days
    )
    suffix = f',"warnings":{_encode(warnings).decode()}' if warnings else ""
    return (
        f'{{"date":"{date}","realized_pnl":{_computed(realized)}'
        f',"unrealized_change":{_computed(change)},"fees":{_computed(fees)}'
        f',"total":{_computed(total)},"symbols":[{symbols}]{suffix}}}'
    ).encode()


def _computed(number: Decimal | None) -> str:
    return "null" if number is None else short(number)


def encode_positions(
    positions: Iterable[Position],
    warnings: Sequence[str] = (),
    differences: Sequence[str] = (),
) -> bytes:
    """``{"positions":[{"symbol":"AAPL","qty":10,"avg_entry_price":150.00,…}]}``, in their order.

    The other fields are ``asset_class``, ``multiplier``, ``current_price``, ``lastday_price``, and
    ``problem`` if there is one. A value that is unknown, not a JSON number or far too long is null.
    Parsing the JSON gives the same positions.

    Args:
        positions: As their source sent them.
        warnings: Why they may be out of date; included if there are any.
        differences: What their source has corrected lately; likewise.
    """
    suffix = "".join(
        f',"{name}":{_encode(texts).decode()}'
        for name, texts in (("warnings", warnings), ("differences", differences))
        if texts
    )
    return f'{{"positions":[{",".join(map(encode_position, positions))}]{suffix}}}'.encode()


def encode_position(position: Position) -> str:
    """One row of :func:`encode_positions`."""
    head = _position(position.symbol, shown(position.qty), shown(position.avg_entry_price))
    return f"{head}{_more(position)}}}"


def _more(position: Position) -> str:
    problem = "" if position.problem is None else _problem(position.problem)
    return (
        f',"asset_class":"{position.asset_class}","multiplier":{_given(shown(position.multiplier))}'
        f',"current_price":{_given(shown(position.current_price))}'
        f',"lastday_price":{_given(shown(position.lastday_price))}'
        f"{problem}"
    )
