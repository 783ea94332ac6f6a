"""Encodes P&L and positions as the gateway's JSON. Numbers are exact decimals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from operator import add
from typing import Final, get_args

import msgspec

from mdservice.model.position import Position
from mdservice.pnl.day import SymbolDay
from mdservice.pnl.holding import Totals
from mdservice.pnl.numbers import EXACT, plain, short, shown
from mdservice.pnl.rows import MarkName, PnlReport, Row

__all__ = ["PnlEncoder", "encode_position", "encode_positions"]

_encode = msgspec.json.encode
_MARKS: Final = {None: "null", **{name: f'"{name}"' for name in get_args(MarkName)}}


def _json(text: str) -> str:
    return _encode(text).decode()


def _given(number: Decimal | None) -> str:
    return "null" if number is None else plain(number)


def _position(symbol: str, qty: Decimal | None, avg_entry_price: Decimal | None) -> str:
    """The row without its closing brace. Zeros of the source stay."""
    return (
        f'{{"symbol":{_json(symbol)},"qty":{_given(qty)}'
        f',"avg_entry_price":{_given(avg_entry_price)}'
    )


def _head(row: Row) -> str:
    """What does not follow the price."""
    position = _position(row.symbol, row.qty, row.avg_entry_price)
    return f'{position},"asset_class":"{row.asset_class}","multiplier":{_given(row.multiplier)}'


def _tail(row: Row) -> str:
    price, pnl, percent = row.current_price, row.unrealized_pnl, row.unrealized_pnl_pct
    value, day = row.market_value, row.day_pnl
    updated = "null" if row.last_updated is None else f'"{row.last_updated}"'
    problem = "" if row.problem is None else f',"problem":{_json(row.problem)}'
    return (
        f',"current_price":{"null" if price is None else short(price)}'
        f',"unrealized_pnl":{"null" if pnl is None else short(pnl)}'
        f',"unrealized_pnl_pct":{"null" if percent is None else short(percent)}'
        f',"market_value":{"null" if value is None else short(value)}'
        f',"day_pnl":{"null" if day is None else short(day)}'
        f',"last_updated":{updated},"mark":{_MARKS[row.mark]},"status":"{row.status}"{problem}}}'
    )


class PnlEncoder:
    """Encodes the reports of one engine. Rows that have not changed are encoded once.

    It keeps the bytes of one whole report.
    """

    def __init__(self) -> None:
        self._rows: Sequence[Row] = ()
        self._heads: list[str] = []
        self._tails: list[str] = []

    def encode(self, report: PnlReport) -> bytes:
        """``{"positions":[…],"total_unrealized_pnl":371.35,"priced":1,"unpriced":0}``.

        A whole report and one of changes have the same form. A row is
        ``{"symbol":"AAPL","qty":10,…,"status":"live"}``, with ``problem`` only if there is
        one. Computed numbers have no trailing zeros, and no number has an exponent.
        """
        rows, day, realized = report.positions, report.total_day_pnl, report.realized_day_pnl
        if report.whole:
            self._learn(rows)
            texts = map(add, self._heads, self._tails)
        else:
            texts = map(add, map(_head, rows), map(_tail, rows))
        return (
            f'{{"positions":[{",".join(texts)}]'
            f',"total_unrealized_pnl":{short(report.total_unrealized_pnl)}'
            f',"total_market_value":{short(report.total_market_value)}'
            f',"total_day_pnl":{"null" if day is None else short(day)}'
            f',"realized_day_pnl":{"null" if realized is None else short(realized)}'
            f',"market":{_encode(report.market).decode()}'
            f',"priced":{report.priced},"unpriced":{report.unpriced}}}'
        ).encode()

    def _learn(self, rows: Sequence[Row]) -> None:
        if len(rows) != len(self._rows):
            self._heads, self._tails = list(map(_head, rows)), list(map(_tail, rows))
        else:
            for place, (row, known) in enumerate(zip(rows, self._rows, strict=True)):
                if row is known:
                    continue
                self._tails[place] = _tail(row)
                if (
                    row.qty is not known.qty
                    or row.symbol is not known.symbol
                    or row.avg_entry_price is not known.avg_entry_price
                    or row.asset_class != known.asset_class
                    or row.multiplier is not known.multiplier
                ):
                    self._heads[place] = _head(row)
        self._rows = rows


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
    problem = "" if position.problem is None else f',"problem":{_json(position.problem)}'
    return (
        f',"asset_class":"{position.asset_class}","multiplier":{_given(shown(position.multiplier))}'
        f',"current_price":{_given(shown(position.current_price))}'
        f',"lastday_price":{_given(shown(position.lastday_price))}'
        f"{problem}"
    )
