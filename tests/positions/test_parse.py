"""What becomes of an answer or a file: exact positions, each problem in its place."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.errors import PositionsError, PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.parse import MOST_BYTES, MOST_ROWS, NOT_FOLLOWED, NotJson, parse_positions

ROW = {"symbol": "AAPL", "qty": "10", "avg_entry_price": "150.00"}
OF_ALPACA = {
    "asset_id": "904837e3-3b76-47ec-b432-046db621571b",
    "symbol": "AAPL",
    "exchange": "NASDAQ",
    "asset_class": "us_equity",
    "asset_marginable": True,
    "qty": "5",
    "qty_available": "4",
    "avg_entry_price": "100.0",
    "side": "long",
    "market_value": "600.0",
    "cost_basis": "500.0",
    "unrealized_pl": "100.0",
    "unrealized_plpc": "0.20",
    "unrealized_intraday_pl": "10.0",
    "unrealized_intraday_plpc": "0.0084",
    "current_price": "120.0",
    "lastday_price": "119.0",
    "change_today": "0.0084",
}


OF_ALPACA_IN_YEN = {
    **OF_ALPACA,
    "qty": "10",
    "avg_entry_price": "22500",
    "market_value": "280702.5",
    "cost_basis": "225000",
    "unrealized_pl": "55702.5",
    "current_price": "28070.25",
    "lastday_price": "28050",
    "swap_rate": "150",
    "avg_entry_swap_rate": "150",
    "usd": {
        "avg_entry_price": "150",
        "market_value": "1871.35",
        "cost_basis": "1500",
        "unrealized_pl": "371.35",
        "unrealized_plpc": "0.2476",
        "unrealized_intraday_pl": "1.35",
        "unrealized_intraday_plpc": "0.0007",
        "current_price": "187.135",
        "lastday_price": "187",
        "change_today": "0.0007",
    },
}
"""A row of a local-currency account, as Alpaca documents it."""


def parsed(document: Any) -> list[Position]:
    return parse_positions(json.dumps(document).encode())


def one(**fields: Any) -> Position:
    row = {name: value for name, value in {**ROW, **fields}.items() if value is not ...}
    (position,) = parsed([row])
    return position


def one_raw(text: str) -> Position:
    (position,) = parse_positions(b"[%s]" % text.encode())
    return position


# Forms


@pytest.mark.parametrize("document", [[ROW], {"positions": [ROW]}, {"at": 1, "positions": [ROW]}])
def test_a_list_and_an_object_with_a_list_are_the_same(document: Any) -> None:
    assert parsed(document) == [Position("AAPL", Decimal(10), Decimal("150.00"))]


@pytest.mark.parametrize(
    "document", [[], {"positions": []}, None, {"positions": None}, {"positions": None, "at": 1}]
)
def test_no_positions_are_fine(document: Any) -> None:
    assert parsed(document) == []


def test_the_order_is_kept_and_a_symbol_may_come_twice() -> None:
    rows = [{**ROW, "symbol": symbol} for symbol in ("MSFT", "AAPL", "MSFT")]
    assert [position.symbol for position in parsed(rows)] == ["MSFT", "AAPL", "MSFT"]


def test_alpacas_own_row_is_read() -> None:
    (position,) = parsed([OF_ALPACA])
    assert position == Position("AAPL", Decimal(5), Decimal("100.0"), lastday_price=Decimal(119))
    assert position.current_price == 120


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("document", [[ROW], {"positions": [ROW], "n\u00e4me": "\u2028 NaN"}])
def test_a_byte_order_mark_shows_the_encoding(document: Any, encoding: str) -> None:
    text = json.dumps(document, ensure_ascii=False)
    assert parse_positions(text.encode(encoding)) == [Position("AAPL", Decimal(10), Decimal(150))]
    if encoding == "utf-16":
        other_end = b"\xfe\xff" + text.encode("utf-16-be")
        assert len(parse_positions(other_end)) == 1


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(NotJson, match="it is no text in UTF-16"):
        parse_positions(json.dumps([ROW]).encode("utf-16")[:-1], "it")


def test_a_symbol_is_raised_and_stripped() -> None:
    assert one(symbol=" brk.b ").symbol == "BRK.B"


# Numbers


@pytest.mark.parametrize(
    "text",
    [
        "0.1",
        "10",
        "0",
        "1e3",
        "2.5E-7",
        "123456789012345678901234567890",
        "0.123456789012345678901234567890123456789",
        "12345678901234567890.123456789012345678901234567890",
    ],
)
def test_numbers_and_strings_of_them_are_exact(text: str) -> None:
    for written in (text, f'"{text}"', f"-{text}", f'"-{text}"'):
        position = one_raw(f'{{"symbol":"A","qty":{written},"avg_entry_price":{text}}}')
        assert position.problem is None
        assert position.qty == Decimal(written.strip('"'))
        assert position.avg_entry_price == Decimal(text)
        assert str(position.qty) == str(Decimal(written.strip('"')) or position.qty)


@pytest.mark.parametrize("value", ["0", 0, "-0", "0.000", "-0.0"])
def test_nothing_is_a_quantity_without_a_sign(value: Any) -> None:
    for side in ("long", "short"):
        position = one(qty=value, side=side)
        assert position.problem is None
        assert position.qty is not None
        assert not position.qty.is_signed()


@pytest.mark.parametrize(
    "value",
    ["NaN", "nan", "Infinity", "-inf", "sNaN", "", "x", "1,5", "0x10", "1e30", "1e999999999",
     "1e-61", "0e999999", True, [1], {"a": 1}, "1e99999999999999999999"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["qty", "avg_entry_price", "multiplier"])
def test_what_is_no_usable_number_is_a_problem_of_its_row(field: str, value: Any) -> None:
    position = one(**{field: value})
    assert position.problem == f"has a value in {field} that is no usable number"
    assert position.symbol == "AAPL"
    assert (position.qty is None) == (field == "qty")
    assert (position.avg_entry_price is None) == (field == "avg_entry_price")
    assert position.multiplier == 1


def test_huge_json_numbers_are_a_problem_and_cost_no_time() -> None:
    started = time.process_time()
    position = one_raw('{"symbol":"A","qty":1e999999999,"avg_entry_price":1e-999999999}')
    assert (position.qty, position.avg_entry_price) == (None, None)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "nan", "inf", "-inf", "+NaN"])
def test_a_number_that_json_does_not_know_costs_the_row_that_needs_it(word: str) -> None:
    text = (
        f'{{"positions":[{{"symbol":"A","qty":{word},"avg_entry_price":1}},'
        f'{{"symbol":"B","qty":1,"avg_entry_price":\n {word} }},'
        f'{{"symbol":"C","qty":1,"avg_entry_price":1,"multiplier":{word}}},'
        f'{{"symbol":"D","qty":1,"avg_entry_price":1,"unrealized_plpc":{word},'
        f'"note":"{word} \\" {word}","x":[{word},{{"y":{word}}}]}},'
        f'{{"symbol":{word},"qty":1,"avg_entry_price":1}},{word}],"at":{word}}}'
    )
    found = parse_positions(text.encode())
    assert [(position.symbol, position.problem) for position in found] == [
        ("A", "has a value in qty that is no usable number"),
        ("B", "has a value in avg_entry_price that is no usable number"),
        ("C", "has a value in multiplier that is no usable number"),
        ("D", None),
        (word.upper(), None) if word.isalpha() else (word, "has no valid symbol"),
        ("?", "is no object"),
    ]


def test_a_file_of_pythons_json_module_is_read() -> None:
    rows = [{**ROW, "unrealized_plpc": float("nan")}, {**ROW, "qty": float("inf")}]
    good, bad = parse_positions(json.dumps(rows).encode())
    assert (good.problem, bad.qty) == (None, None)


def test_a_price_below_0_is_a_problem() -> None:
    position = one(avg_entry_price="-1")
    assert position.problem == "has an avg_entry_price below 0"
    assert position.avg_entry_price == -1


# Sides


@pytest.mark.parametrize(
    ("qty", "side", "expected"),
    [
        ("5", "long", "5"),
        ("5", None, "5"),
        ("5", "", "5"),
        ("5", ..., "5"),
        ("-5", ..., "-5"),
        ("5", "short", "-5"),
        ("-5", "short", "-5"),
        ("-5", "long", "-5"),
        ("-5", "sell", "-5"),
        ("5", "SHORT", "-5"),
        ("5", " Short ", "-5"),
        ("5", "PositionSide.SHORT", "-5"),
        ("-5", "PositionSide.SHORT", "-5"),
        ("5", "PositionSide.LONG", "5"),
        ("5", "positionside.long", "5"),
        (" 5 ", "long", "5"),
        ("+5", "short", "-5"),
        ("1.2345678901234567890123456789012345", "short", "-1.2345678901234567890123456789012345"),
    ],
)
def test_short_is_given_by_the_sign_or_the_side(qty: str, side: Any, expected: str) -> None:
    position = one(qty=qty, side=side)
    assert (position.problem, str(position.qty)) == (None, expected)


def test_a_side_that_is_not_known_is_a_problem() -> None:
    assert one(side="PositionSide.FLAT").problem == "has a side that is neither long nor short"
    assert one(side="sell").problem == "has a side that is neither long nor short"
    assert one(side=3).problem == "has a value in side that is no text"


# Multiplier, kind


def test_a_multiplier_is_kept() -> None:
    assert one(multiplier="100").multiplier == 100
    assert one(multiplier=0.5).multiplier == Decimal("0.5")
    assert one(multiplier=None).multiplier == 1
    for value in (0, "-1"):
        assert one(multiplier=value).problem == "has a multiplier that is not above 0"


OPTION = "AAPL261218C00200000"


@pytest.mark.parametrize("kind", ["crypto", "CRYPTO", " Crypto", "AssetClass.CRYPTO"])
def test_crypto_is_priced_by_its_pair(kind: str) -> None:
    for symbol in ("BTCUSD", "btcusd", "BTC/USD"):
        position = one(symbol=symbol, asset_class=kind)
        assert position.problem is None
        assert (position.symbol, position.asset_class) == (symbol.upper(), "crypto")
        assert (position.priced_by, position.multiplier) == ("BTC/USD", 1)


@pytest.mark.parametrize("kind", ["us_option", "US_OPTION", "AssetClass.US_OPTION", "option"])
def test_an_option_has_a_hundred_shares_unless_the_row_says_otherwise(kind: str) -> None:
    position = one(symbol=OPTION, asset_class=kind)
    assert position.problem is None
    assert (position.asset_class, position.multiplier) == ("us_option", 100)
    assert position.priced_by == OPTION
    assert one(symbol=OPTION, asset_class=kind, multiplier="10").multiplier == 10


@pytest.mark.parametrize("kind", [None, "", ..., "us_equity"])
def test_the_form_of_a_symbol_is_its_class(kind: Any) -> None:
    found = [one(symbol=s, asset_class=kind) for s in ("BTC/USD", OPTION, "BTCUSD", "BRK.B")]
    assert [each.asset_class for each in found] == ["crypto", "us_option", "us_equity", "us_equity"]
    assert [each.multiplier for each in found] == [1, 100, 1, 1]
    assert [each.priced_by for each in found] == [each.symbol for each in found]


def test_an_option_under_the_name_of_its_stock_is_not_priced_by_it() -> None:
    position = one(asset_class="us_option")
    assert position.problem == "is an option whose symbol has not the OCC form"


@pytest.mark.parametrize("kind", ["crypto_perp", "CRYPTO_PERP", "bond", "us_equity_x"])
def test_what_has_no_feed_is_kept_with_that_problem(kind: str) -> None:
    position = one(symbol="BTCUSD", asset_class=kind)
    assert position == Position("BTCUSD", Decimal(10), Decimal("150.00"), problem=NOT_FOLLOWED)


@pytest.mark.parametrize(
    "kind",
    ["us_equity", "US_EQUITY", " Us_Equity", "AssetClass.US_EQUITY", "assetclass.us_equity",
     "stock", "Stock", "equity", "EQUITY", "Kind.STOCK", None, "", ...],
)  # fmt: skip
def test_stocks_are_stocks(kind: Any) -> None:
    assert one(asset_class=kind).problem is None


# Currencies

DOLLARS = {"avg_entry_price": "150"}


def test_a_row_in_another_currency_is_read_from_its_usd_block() -> None:
    (position,) = parsed([OF_ALPACA_IN_YEN])
    assert position == Position("AAPL", Decimal(10), Decimal(150), lastday_price=Decimal(187))
    assert position.current_price == Decimal("187.135")


@pytest.mark.parametrize(
    "fields",
    [
        {"swap_rate": "150", "usd": DOLLARS},
        {"swap_rate": 150, "usd": {"avg_entry_price": 150}},
        {"swap_rate": None, "usd": DOLLARS},
        {"swap_rate": "1", "usd": DOLLARS},
        {"swap_rate": "what", "usd": DOLLARS},
        {"usd": DOLLARS},
        {"currency": "JPY", "usd": DOLLARS},
        {"avg_entry_price": None, "swap_rate": "150", "usd": DOLLARS},
        {"avg_entry_price": ..., "usd": DOLLARS},
        {"avg_entry_price": "n/a", "usd": DOLLARS},
        {"avg_entry_price": "", "swap_rate": "150", "usd": DOLLARS},
        {"avg_entry_price": "22,500", "swap_rate": "150", "usd": DOLLARS},
        {"avg_entry_price": [22500], "swap_rate": "150", "usd": DOLLARS},
        {"avg_entry_price": "1e400", "swap_rate": "150", "usd": DOLLARS},
    ],
)
def test_a_price_in_dollars_goes_before_the_rows_own(fields: Any) -> None:
    position = one(**{"avg_entry_price": "22500", "side": "short", **fields})
    assert position == Position("AAPL", Decimal(-10), Decimal(150))


@pytest.mark.parametrize(
    "fields",
    [
        {"swap_rate": None, "usd": None},
        {"swap_rate": "1"},
        {"swap_rate": 1.0, "usd": None},
        {"swap_rate": ""},
        {"swap_rate": "1.00", "usd": {"current_price": "3"}},
        {"usd": {}},
        {"usd": "1500"},
        {"usd": 1500},
        {"usd": True},
        {"usd": []},
        {"currency": "USD"},
        {"currency": "usd "},
        {"currency": "Currency.USD"},
        {"currency": None},
        {"currency": ""},
    ],
)
def test_a_row_in_dollars_is_read_itself(fields: Any) -> None:
    assert one(**fields) == Position("AAPL", Decimal(10), Decimal("150.00"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"swap_rate": "150"}, "is in another currency"),
        ({"swap_rate": 0.0067, "usd": None}, "is in another currency"),
        ({"swap_rate": "0"}, "is in another currency"),
        ({"swap_rate": "-1"}, "is in another currency"),
        ({"swap_rate": "150", "usd": {}}, "is in another currency"),
        ({"swap_rate": "150", "usd": {"current_price": "1"}}, "is in another currency"),
        ({"swap_rate": "150", "usd": {"avg_entry_price": None}}, "is in another currency"),
        ({"swap_rate": "150", "usd": "1500"}, "is in another currency"),
        ({"swap_rate": "150", "usd": [DOLLARS]}, "is in another currency"),
        ({"swap_rate": "what"}, "has a value in swap_rate that is no usable number"),
        ({"swap_rate": "NaN"}, "has a value in swap_rate that is no usable number"),
        ({"swap_rate": []}, "has a value in swap_rate that is no usable number"),
        ({"usd": {"current_price": "1"}}, "has a usd block without an avg_entry_price"),
        ({"usd": {"avg_entry_price": "x"}}, "has a value in usd.avg_entry_price"),
        ({"usd": {"avg_entry_price": "NaN"}}, "has a value in usd.avg_entry_price"),
        ({"usd": {"avg_entry_price": "-1"}}, "has an avg_entry_price below 0"),
        ({"currency": "JPY"}, "is in the currency jpy"),
        ({"currency": "eur", "swap_rate": "1"}, "is in the currency eur"),
        ({"currency": 392}, "has a value in currency that is no text"),
    ],
)
def test_a_price_that_is_not_in_dollars_is_never_used(fields: Any, problem: str) -> None:
    position = one(**{"avg_entry_price": "22500", **fields})
    assert position.problem is not None
    assert position.problem.startswith(problem)
    assert (position.symbol, position.qty) == ("AAPL", 10)


# Prices that the source tells


@pytest.mark.parametrize(
    ("fields", "current", "lastday"),
    [
        ({}, None, None),
        ({"current_price": "187.135"}, "187.135", None),
        ({"current_price": 187.135, "lastday_price": "1"}, "187.135", "1"),
        ({"lastday_price": "187"}, None, "187"),
        ({"current_price": None, "lastday_price": 187}, None, "187"),
        ({"current_price": "0", "lastday_price": "187"}, None, "187"),
        ({"current_price": "0.0001", "lastday_price": "-1"}, "0.0001", None),
        ({"current_price": "-1"}, None, None),
        ({"current_price": "NaN", "lastday_price": [1]}, None, None),
        ({"current_price": True, "lastday_price": ""}, None, None),
        ({"current_price": "28070", "usd": {**DOLLARS, "current_price": "187"}}, "187", None),
        ({"lastday_price": "28070", "usd": {**DOLLARS, "lastday_price": "186"}}, None, "186"),
        ({"current_price": "28070", "lastday_price": "1", "usd": DOLLARS}, None, None),
    ],
)
def test_the_sources_own_prices_are_kept_and_never_spoil_a_row(
    fields: Any, current: Any, lastday: Any
) -> None:
    position = one(**fields)
    assert position.problem is None
    assert position.current_price == (None if current is None else Decimal(current))
    assert position.lastday_price == (None if lastday is None else Decimal(lastday))


def test_positions_that_differ_in_that_price_alone_are_equal() -> None:
    assert one(current_price="1") == one(current_price="2")


# Rows that cannot be used


def test_a_problem_that_the_source_reports_is_kept_where_fields_are_missing() -> None:
    told = "has a value in qty that is no usable number"
    assert one(qty=None, avg_entry_price=None, problem=told).problem == told
    assert one(qty=None, problem="").problem == "has no qty"


@pytest.mark.parametrize("told", [None, "", False, 0, {}, ["none"]])
def test_a_field_named_problem_without_a_text_costs_nothing(told: Any) -> None:
    assert one(problem=told) == Position("AAPL", Decimal(10), Decimal("150.00"))


@pytest.mark.parametrize(
    ("row", "symbol", "problem"),
    [
        (3, "?", "is no object"),
        (None, "?", "is no object"),
        ([ROW], "?", "is no object"),
        ("AAPL", "?", "is no object"),
        ({}, "?", "has no symbol and no qty and no avg_entry_price"),
        ({"symbol": "aapl"}, "AAPL", "has no qty and no avg_entry_price"),
        ({**ROW, "qty": None}, "AAPL", "has no qty"),
        ({**ROW, "symbol": None}, "?", "has no symbol"),
        ({**ROW, "symbol": ""}, "?", "has no valid symbol"),
        ({**ROW, "symbol": "*"}, "*", "has no valid symbol"),
        ({**ROW, "symbol": "no such"}, "no such", "has no valid symbol"),
        ({**ROW, "symbol": "straße"}, "straße", "has no valid symbol"),
        ({**ROW, "symbol": 12}, "12", "has no valid symbol"),
        ({**ROW, "symbol": {"a": 1}}, '{"a": 1}', "has no valid symbol"),
        ({**ROW, "symbol": "A" * 33}, "A" * 32 + "…", "has no valid symbol"),
        ({**ROW, "symbol": "X" * 100_000}, "X" * 32 + "…", "has no valid symbol"),
        ({**ROW, "symbol": "A\x1b[2J\n"}, "A\ufffd[2J\ufffd", "has no valid symbol"),
        ({**ROW, "asset_class": 3}, "AAPL", "has a value in asset_class that is no text"),
    ],
)
def test_a_row_that_cannot_be_used_costs_itself(row: Any, symbol: str, problem: str) -> None:
    before, broken, after = parsed([ROW, row, {**ROW, "symbol": "MSFT"}])
    assert (before.symbol, after.symbol) == ("AAPL", "MSFT")
    assert (before.problem, after.problem) == (None, None)
    assert (broken.symbol, broken.problem) == (symbol, problem)


def test_what_is_readable_of_a_broken_row_is_kept() -> None:
    position = one(symbol="?!", side="short", avg_entry_price="x")
    assert position.qty == -10
    assert position.avg_entry_price is None


def test_a_row_of_broken_text_costs_itself() -> None:
    row = b'{"symbol":"\xff","qty":1,"avg_entry_price":1}'
    good = json.dumps(ROW).encode()
    first, broken, last = parse_positions(b"[%s,%s,%s]" % (good, row, good))
    assert (first.problem, last.problem) == (None, None)
    assert broken.problem


def test_a_row_nested_deeply_costs_itself_or_is_refused() -> None:
    deep = b'{"symbol":"A","qty":1,"avg_entry_price":1,"x":' + b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(PositionsRefused, match="nested"):
        parse_positions(b"[" + deep + b"}]")


# What is no positions


@pytest.mark.parametrize(
    "content",
    [b"3", b'"AAPL"', b"{}", b'{"positions": {}}', b"NaN", b'{"positions": NaN}',
     b'{"code": 40110000, "message": "request is not authorized"}'],
)  # fmt: skip
def test_json_that_is_no_positions_is_refused(content: bytes) -> None:
    with pytest.raises(PositionsRefused, match="it is neither a list nor an object") as caught:
        parse_positions(content, "it")
    assert not isinstance(caught.value, NotJson)


@pytest.mark.parametrize("content", [b"<html>", b"[1,]", b"[1] x", b"\x00", b"nope", b"3 x"])
def test_what_is_no_json_is_refused_as_such(content: bytes) -> None:
    with pytest.raises(NotJson, match="it holds no JSON"):
        parse_positions(content, "it")


def test_every_part_of_a_document_is_waited_for() -> None:
    content = json.dumps({"positions": [OF_ALPACA, ROW]}).encode()
    for end in range(len(content)):
        with pytest.raises(PositionsUnavailable, match="it holds no JSON yet"):
            parse_positions(content[:end], "it")


@pytest.mark.parametrize(
    "symbol", ["../x\r\n", "  ", "A B", "A\0", "\x1b[2J", "A" * 60, "*", "", ".A", "\u00c4"]
)
def test_a_bad_symbol_costs_its_row_alone(symbol: str) -> None:
    rows = [{**ROW, "symbol": name} for name in ("MSFT", symbol, "AAPL")]
    found = parsed(rows)
    assert [row.symbol for row in found if row.problem is None] == ["MSFT", "AAPL"]
    assert [row.problem for row in found if row.problem] == ["has no valid symbol"]


# ---- How much is read


def test_too_much_is_refused() -> None:
    rows = json.dumps([ROW] * (MOST_ROWS + 1)).encode()
    with pytest.raises(PositionsRefused, match=r"20,001 positions"):
        parse_positions(rows)
    with pytest.raises(PositionsRefused, match="16 MiB"):
        parse_positions(b" " * (MOST_BYTES + 1))
    with pytest.raises(PositionsRefused, match="too many values"):
        parse_positions(b"[" + b"0," * (MOST_BYTES // 2 - 2) + b"0]")


def test_as_much_as_is_allowed_is_read() -> None:
    assert len(parsed([OF_ALPACA] * MOST_ROWS)) == MOST_ROWS


# ---- Whatever an answer or a file holds


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
rows = st.fixed_dictionaries(
    {},
    optional={
        "symbol": st.sampled_from(["AAPL", "*", "brk.b"]) | json_values,
        "qty": st.decimals().map(str) | json_values,
        "avg_entry_price": st.decimals().map(str) | json_values,
        "side": st.sampled_from(["long", "short"]) | json_values,
        "multiplier": json_values,
        "asset_class": json_values,
        "other": json_values,
    },
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_is_positions_or_an_error_of_ours(content: bytes) -> None:
    try:
        found = parse_positions(content)
    except PositionsError:
        return
    assert all(isinstance(position, Position) for position in found)


@given(st.lists(rows | json_values))
def test_each_row_has_a_position_in_its_place(document: list[Any]) -> None:
    try:
        content = json.dumps(document, allow_nan=False).encode()
    except ValueError:
        return
    found = parse_positions(content)
    assert len(found) == len(document)
    for row, position in zip(document, found, strict=True):
        assert position.symbol
        assert len(position.symbol) <= 33
        assert position.multiplier.is_finite()
        if position.problem is None:
            assert isinstance(row, dict)
            assert position.symbol == row["symbol"].strip().upper() != "*"
            assert position.qty is not None
            assert position.avg_entry_price is not None
            assert position.avg_entry_price >= 0
        for number in (position.qty, position.avg_entry_price):
            assert number is None or (number.is_finite() and len(f"{number:f}") < 100)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=9),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**9, places=12),
    st.booleans(),
)  # fmt: skip
def test_what_goes_in_comes_out_to_the_last_digit(
    qty: Decimal, price: Decimal, as_text: bool
) -> None:
    quote = '"' if as_text else ""
    text = (
        f'[{{"symbol":"A","qty":{quote}{qty:f}{quote},"avg_entry_price":{quote}{price:f}{quote}}}]'
    )
    (position,) = parse_positions(text.encode())
    assert (position.qty, position.avg_entry_price) == (qty, price)
