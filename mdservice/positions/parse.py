"""Positions from JSON: a list of rows, or an object with such a list; ``null`` is none. Pure.

An unusable row becomes a position with a problem and does not affect the other rows.

A row of an account in another currency has a ``swap_rate`` and a ``usd`` block. Its prices are read
from that block, since the feed's prices are in dollars. Without the block the row has a problem,
because today's rate is not the rate of the day on which the position was opened.

A symbol with a slash is crypto, one in the OCC form an option. Any other is of the row's class, or
a stock if the row has none.

Source: Alpaca, trading API, "All open positions": a bare list, numbers as strings, ``side``
``long`` or ``short``, ``asset_class`` ``us_equity``, ``us_option`` or ``crypto``; ``swap_rate`` and
``usd`` for local-currency accounts.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final, TypeVar

import msgspec

from mdservice.errors import InvalidSymbol, PositionsRefused, PositionsUnavailable
from mdservice.model.position import AssetClass, Position, asset_class_of, default_multiplier
from mdservice.model.symbol import EVERY_SYMBOL, is_option, parse_symbol

__all__ = [
    "MOST_BYTES",
    "MOST_ROWS",
    "NOT_FOLLOWED",
    "NotJson",
    "parse_positions",
]

MOST_BYTES: Final = 16 * 1024 * 1024
"""Of one answer or file."""
MOST_ROWS: Final = 20_000
NOT_FOLLOWED: Final = "is of an asset class without a feed"
"""The problem of a valid position in something else than stocks, crypto and options."""

_MOST_FIELDS = 50
"""Of a row, on average; bounds the memory that a huge list of trifles takes."""
_MOST_DIGITS_BEFORE, _MOST_DIGITS_AFTER = 30, 60
"""The decimal point; beyond any quantity, and sums of them stay exact and short."""
_SHOWN = 32
_SIDES = ("", "long", "short")
_CLASSES: Final[dict[str, AssetClass]] = {
    "us_equity": "us_equity",
    "equity": "us_equity",
    "stock": "us_equity",
    "": "us_equity",
    "crypto": "crypto",
    "us_option": "us_option",
    "option": "us_option",
}
_FIELDS = ("symbol", "qty", "avg_entry_price")
_NUMBERS = ("qty", "avg_entry_price", "multiplier")
_FORM = 'a list of positions or {"positions": [...]}'
_ONE = Decimal(1)
_NULL = msgspec.Raw(b"null")
_NO_NUMBER = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[-+]?\b(?:nan|inf(?:inity)?)\b', re.DOTALL | re.IGNORECASE
)
"""A text, or a number that is not JSON but that Python's json module writes."""
_UTF_8_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MOST_PROBLEM = 200
_DOLLARS = ("", "usd")
_NULLS = (b"null", b'""')
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_Kind = TypeVar("_Kind")


class NotJson(PositionsRefused):
    """The content is not JSON."""


class _Document(msgspec.Struct, gc=False):
    positions: list[msgspec.Raw] | None


class _Row(msgspec.Struct, gc=False):
    """``{"symbol":"AAPL","qty":"10","avg_entry_price":"150.00","side":"long"}`` and more."""

    symbol: str
    qty: Decimal
    avg_entry_price: Decimal | None = None
    side: str | None = None
    multiplier: Decimal | None = None
    asset_class: str | None = None
    currency: str | None = None
    swap_rate: msgspec.Raw = _NULL
    usd: msgspec.Raw = _NULL
    current_price: msgspec.Raw = _NULL
    lastday_price: msgspec.Raw = _NULL
    problem: msgspec.Raw = _NULL


class _Dollars(msgspec.Struct, gc=False):
    """The block ``usd`` of a row: the row's amounts in dollars."""

    avg_entry_price: msgspec.Raw = _NULL
    current_price: msgspec.Raw = _NULL
    lastday_price: msgspec.Raw = _NULL


_document_decoder = msgspec.json.Decoder(list[msgspec.Raw] | _Document | None)
_decimal_decoder = msgspec.json.Decoder(Decimal)
_row_decoder = msgspec.json.Decoder(_Row)


def parse_positions(content: bytes, where: str = "the answer") -> list[Position]:
    """All rows as positions, in their order; a symbol may occur more than once.

    Quantities of short positions are below 0: by their sign, or by ``side`` ``short``.

    Args:
        content: ``[row, …]`` or ``{"positions": [row, …]}``; ``null`` in the place of either
            list means no positions. UTF-8, or UTF-16 with a byte-order mark. ``qty``,
            ``avg_entry_price`` and ``multiplier`` are JSON numbers or decimal strings, and kept
            exactly. Unknown fields are ignored.
        where: The name of the content in errors.

    Raises:
        PositionsUnavailable: The content ends too early; perhaps it is still being written.
        NotJson: The content is not JSON.
        PositionsRefused: It is JSON without positions, or it is too large.
    """
    if len(content) > MOST_BYTES:
        raise PositionsRefused(
            f"{where} has more than {MOST_BYTES // 2**20} MiB, too much for positions"
        )
    if content.count(b",") > MOST_ROWS * _MOST_FIELDS:
        raise PositionsRefused(f"{where} holds too many values for {MOST_ROWS:,} positions")
    content = _in_utf_8(content, where)
    try:
        document = _document_decoder.decode(content)
    except (ValueError, RecursionError):
        try:
            content = _NO_NUMBER.sub(_as_text, content)
            document = _document_decoder.decode(content)
        except (ValueError, RecursionError) as exc:
            raise _no_positions(content, where) from exc
    rows = document.positions if isinstance(document, _Document) else document
    if rows is None:
        return []
    if len(rows) > MOST_ROWS:
        raise PositionsRefused(
            f"{where} holds {len(rows):,} positions; at most {MOST_ROWS:,} are followed"
        )
    return [_position(row) for row in rows]


def _in_utf_8(content: bytes, where: str) -> bytes:
    if content.startswith(_UTF_16_MARKS):  # as PowerShell's > writes
        try:
            return content.decode("utf-16").encode()
        except UnicodeDecodeError as exc:
            raise NotJson(
                f"{where} is no text in UTF-16 ({exc.reason}): write it in UTF-8"
            ) from exc
    return content.removeprefix(_UTF_8_MARK)  # what some editors begin a file with


def _as_text(found: re.Match[bytes]) -> bytes:
    """A text unchanged; NaN as ``"NaN"``, which is a problem only if the field is used."""
    written = found[0]
    return written if written.startswith(b'"') else b'"%b"' % written


def _no_positions(content: bytes, where: str) -> PositionsUnavailable | PositionsRefused:
    try:
        msgspec.json.decode(content, type=msgspec.Raw)
    except RecursionError:
        return PositionsRefused(f"{where} is nested too deeply for positions: give {_FORM}")
    except ValueError as exc:
        if "truncated" in str(exc):
            return PositionsUnavailable(f"{where} holds no JSON yet, or only a part: it ends early")
        return NotJson(f"{where} holds no JSON ({exc}): give {_FORM}")
    return PositionsRefused(
        f"{where} is neither a list nor an object with a list of positions: give {_FORM}"
    )


def _position(raw: msgspec.Raw) -> Position:
    try:
        row = _row_decoder.decode(raw)
    except (ValueError, RecursionError):
        found = _row_with_price_in_dollars(raw)
        if found is None:
            return _position_of_broken(raw)
        row = found
    qty, multiplier = row.qty, row.multiplier
    price, problem = row.avg_entry_price, None
    prices: _Row | _Dollars | None = row
    if row.usd is not _NULL or row.swap_rate is not _NULL or row.currency is not None:
        price, problem, block = _in_dollars(price, row.usd, row.swap_rate, row.currency)
        prices = block or (row if problem is None else None)
    if price is None or not (
        _is_usable(qty) and _is_usable(price) and (multiplier is None or _is_usable(multiplier))
    ):
        return _position_of_broken(raw)
    qty = _signed(qty, row.side)
    symbol, wrong_symbol = _symbol(row.symbol)
    asset_class, wrong_class = _class(symbol, row.asset_class)
    return Position(
        symbol,
        qty,
        price,
        default_multiplier(asset_class) if multiplier is None else multiplier,
        wrong_symbol or _problem_of(row, qty, price) or wrong_class or problem,
        None if prices is None else _price(prices.current_price),
        None if prices is None else _price(prices.lastday_price),
        asset_class,
    )


def _row_with_price_in_dollars(raw: msgspec.Raw) -> _Row | None:
    """A row whose entry price is broken, without that price, if it has one in dollars."""
    fields = _as(dict[str, msgspec.Raw], raw)
    if fields is None or "usd" not in fields or fields.pop("avg_entry_price", None) is None:
        return None
    return _as(_Row, msgspec.Raw(msgspec.json.encode(fields)))


def _in_dollars(
    price: Decimal | None,
    usd: msgspec.Raw,
    swap_rate: msgspec.Raw,
    currency: str | None,
) -> tuple[Decimal | None, str | None, _Dollars | None]:
    """A row's entry price in dollars, the reason if there is none, and the block with its prices.

    Without a block, the prices are the row's own.
    """
    block, is_given = _block(usd), not _is_null(swap_rate)
    if block is not None and not _is_null(block.avg_entry_price):
        dollars = _number(block.avg_entry_price)
        if dollars is None:
            return price, "has a value in usd.avg_entry_price that is no usable number", None
        return dollars, None, block
    rate = _number(swap_rate) if is_given else _ONE
    problem = None
    if rate is None:
        problem = "has a value in swap_rate that is no usable number"
    elif rate != 1:
        problem = "is in another currency (swap_rate), without an avg_entry_price in usd"
    elif _word(currency) not in _DOLLARS:
        problem = f"is in the currency {_shown(_word(currency))}, without an avg_entry_price in usd"
    elif block is not None and not is_given:
        problem = "has a usd block without an avg_entry_price"
    return price, problem, None


def _price(raw: msgspec.Raw) -> Decimal | None:
    if raw is _NULL:
        return None
    try:
        price = _decimal_decoder.decode(raw)
    except (ValueError, RecursionError):
        return None
    return price if _is_usable(price) and price > 0 else None


def _block(usd: msgspec.Raw) -> _Dollars | None:
    """The block; None if it is not an object, or an empty one."""
    return _as(_Dollars, usd) if _as(dict[str, msgspec.Raw], usd) else None


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw) in _NULLS


def _symbol(written: str) -> tuple[str, str | None]:
    """The symbol; or the text as written, and what is wrong with it."""
    try:
        symbol = parse_symbol(written)
    except InvalidSymbol:
        symbol = EVERY_SYMBOL
    if symbol != EVERY_SYMBOL:
        return symbol, None
    return _shown(written), "has no valid symbol"


def _class(symbol: str, written: str | None) -> tuple[AssetClass, str | None]:
    """The class, and why a position of it cannot be priced."""
    found = _CLASSES.get(written or "") or _CLASSES.get(_word(written))
    asset_class = asset_class_of(symbol, found or "us_equity")
    if asset_class == "us_option" and not is_option(symbol):  # or its price would be the stock's
        return asset_class, "is an option whose symbol has not the OCC form"
    return asset_class, NOT_FOLLOWED if found is None else None


def _signed(qty: Decimal, side: str | None) -> Decimal:
    """The quantity, below 0 for a short position; exact, unlike ``-qty`` and ``abs(qty)``."""
    if not qty:
        return qty.copy_abs()
    return qty.copy_abs().copy_negate() if _word(side) == "short" else qty


def _problem_of(row: _Row, qty: Decimal, price: Decimal) -> str | None:
    if row.problem is not _NULL and (reason := _as(str, row.problem)):  # the source knows more
        return reason[:_MOST_PROBLEM]
    if price < 0:
        return "has an avg_entry_price below 0"
    if row.multiplier is not None and row.multiplier <= 0:
        return "has a multiplier that is not above 0"
    if qty > 0 and _word(row.side) not in _SIDES:
        return "has a side that is neither long nor short"
    return None


def _position_of_broken(raw: msgspec.Raw) -> Position:
    """A position with a problem, from the readable fields of a broken row."""
    try:
        fields = _object_decoder.decode(raw)
    except (ValueError, RecursionError):
        is_object = bytes(memoryview(raw)[:1]) == b"{"
        return Position("?", None, None, problem="cannot be read" if is_object else "is no object")
    given = {name: value for name, value in fields.items() if bytes(value) != b"null"}
    symbol = _as(str, given.get("symbol"))
    side = _as(str, given.get("side"))
    numbers = {name: _number(given.get(name)) for name in _NUMBERS}
    missing = [name for name in _FIELDS if name not in given]
    reason = _as(str, given.get("problem"))
    if reason:  # the source knows more
        problem = reason[:_MOST_PROBLEM]
    elif missing:
        problem = f"has no {' and no '.join(missing)}"
    else:
        problem = _wrong_field(given, symbol, numbers)
    written = bytes(given.get("symbol", b"")).decode("utf-8", "replace")
    qty = numbers["qty"]
    symbol = _shown(written) if symbol is None else _symbol(symbol)[0]
    asset_class, _ = _class(symbol, _as(str, given.get("asset_class")))
    return Position(
        symbol,
        qty if qty is None else _signed(qty, side),
        numbers["avg_entry_price"],
        numbers["multiplier"] or default_multiplier(asset_class),
        problem,
        asset_class=asset_class,
    )


def _wrong_field(
    given: dict[str, msgspec.Raw], symbol: str | None, numbers: dict[str, Decimal | None]
) -> str:
    if symbol is None or _symbol(symbol)[1] is not None:
        return "has no valid symbol"
    for name in _NUMBERS:
        if name in given and numbers[name] is None:
            return f"has a value in {name} that is no usable number"
    for name in ("side", "asset_class", "currency"):
        if name in given and _as(str, given[name]) is None:
            return f"has a value in {name} that is no text"
    return "cannot be read"


def _as(kind: type[_Kind], raw: msgspec.Raw | None) -> _Kind | None:
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, RecursionError):
        return None


def _number(raw: msgspec.Raw | None) -> Decimal | None:
    number = _as(Decimal, raw)
    return number if number is not None and _is_usable(number) else None


def _is_usable(number: Decimal) -> bool:
    """Whether sums of such numbers are exact and can be written; False for NaN and Infinity."""
    if not number.is_finite() or number.adjusted() >= _MOST_DIGITS_BEFORE:
        return False
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= -_MOST_DIGITS_AFTER


def _word(text: str | None) -> str:
    """``us_equity`` for ``US_EQUITY``, and for ``AssetClass.US_EQUITY``, as Python shows enums."""
    return text.strip().lower().rpartition(".")[2] if text else ""


def _shown(written: str) -> str:
    """The printable part of a text; ``?`` if nothing is left."""
    text = "".join(char if char.isprintable() else "\ufffd" for char in written[: _SHOWN + 1])
    return (text[:_SHOWN] + "…" if len(text) > _SHOWN else text) or "?"
