"""The JSON of positions and P&L: exact decimals, and JSON whatever the numbers are."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.position import Position
from mdservice.model.quote import Quote, exact_mid
from mdservice.pnl.encode import encode_positions, encode_report, row_texts
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.numbers import plain, short
from mdservice.pnl.rows import Row
from mdservice.positions.parse import parse_positions
from tests.examples import examples

T_NS = 1_795_189_904_208_912_345

# Far quicker than st.decimals, which draws exponents that have to be filtered out.
any_decimals = st.builds(
    lambda sign, digits, exponent: Decimal((sign, tuple(map(int, str(digits))), exponent)),
    st.integers(0, 1),
    st.integers(0, 10**30),
    st.integers(-60, 60),
)
perhaps = st.none() | any_decimals
prices = st.floats(0, 1e300, allow_subnormal=False) | st.sampled_from([0.0, 0.01, 187.135, 1e22])
positions = st.builds(
    Position,
    symbol=st.text(max_size=5),
    qty=perhaps,
    avg_entry_price=perhaps,
    multiplier=any_decimals,
    problem=st.none() | st.text(max_size=5),
    current_price=perhaps,
    lastday_price=perhaps,
    asset_class=st.sampled_from(["us_equity", "crypto", "us_option"]),
)


def new_engine() -> PnlEngine:
    return PnlEngine(stale_after_s=60, price_ttl_s=300, max_spread=0)


def encoded(engine: PnlEngine) -> bytes:
    return encode_report(engine.report_of(row_texts, T_NS))


def decoded(payload: bytes) -> dict[str, object]:
    """Refuses what a strict reader might: exponents and negative zeros."""

    def number(text: str) -> Decimal:
        assert not set(text) & set("eE")
        assert not (text.startswith("-") and Decimal(text) == 0)
        return Decimal(text)

    return json.loads(payload, parse_float=number, parse_int=number, parse_constant=pytest.fail)


def test_the_example_of_the_contract_byte_for_byte() -> None:
    engine = new_engine()
    lastday = Decimal("185.40")
    engine.set_positions([Position("AAPL", Decimal(10), Decimal("150.00"), lastday_price=lastday)])
    engine.update(Quote("AAPL", 187.12, 187.15, 2, 3, T_NS, T_NS), T_NS)
    assert encoded(engine) == (
        b'{"positions":[{"symbol":"AAPL","qty":10,"avg_entry_price":150.00,'
        b'"asset_class":"us_equity","multiplier":1,'
        b'"current_price":187.135,"unrealized_pnl":371.35,"unrealized_pnl_pct":24.7567,'
        b'"market_value":1871.35,"day_pnl":17.35,'
        b'"last_updated":"2026-11-20T15:51:44.208912345Z","mark":"mid","status":"live"}],'
        b'"total_unrealized_pnl":371.35,"total_market_value":1871.35,"total_day_pnl":17.35,'
        b'"realized_day_pnl":null,"market":null,"priced":1,"unpriced":0}'
    )


def test_an_unpriced_row_with_a_problem() -> None:
    engine = new_engine()
    engine.set_positions([Position('ß"', None, Decimal("-0.00"), problem='no "symbol"\n')])
    assert encoded(engine).decode() == (
        '{"positions":[{"symbol":"ß\\"","qty":null,"avg_entry_price":0,"asset_class":"us_equity","multiplier":1,'
        '"current_price":null,"unrealized_pnl":null,"unrealized_pnl_pct":null,'
        '"market_value":null,"day_pnl":null,'
        '"last_updated":null,"mark":null,"status":"unpriced","problem":"no \\"symbol\\"\\n"}],'
        '"total_unrealized_pnl":0,"total_market_value":0,"total_day_pnl":null,'
        '"realized_day_pnl":null,"market":null,"priced":0,"unpriced":1}'
    )


def test_no_positions() -> None:
    engine = new_engine()
    assert encoded(engine) == (
        b'{"positions":[],"total_unrealized_pnl":0,"total_market_value":0,"total_day_pnl":0,'
        b'"realized_day_pnl":null,"market":null,"priced":0,"unpriced":0}'
    )
    assert encode_positions([]) == b'{"positions":[]}'


def test_positions_alone() -> None:
    lots = [
        Position("AAPL", Decimal(10), Decimal("150.00")),
        Position("BTC/USD", Decimal("-1E-9"), Decimal("1E+5"), lastday_price=Decimal("65000.50")),
        Position("?", None, None, problem="unreadable"),
        Position("X", Decimal("NaN"), Decimal("1e999999")),
    ]
    assert encode_positions(lots) == (
        b'{"positions":[{"symbol":"AAPL","qty":10,"avg_entry_price":150.00,'
        b'"asset_class":"us_equity","multiplier":1,"current_price":null,"lastday_price":null},'
        b'{"symbol":"BTC/USD","qty":-0.000000001,"avg_entry_price":100000,'
        b'"asset_class":"crypto","multiplier":1,"current_price":null,"lastday_price":65000.50},'
        b'{"symbol":"?","qty":null,"avg_entry_price":null,"asset_class":"us_equity",'
        b'"multiplier":1,"current_price":null,"lastday_price":null,"problem":"unreadable"},'
        b'{"symbol":"X","qty":null,"avg_entry_price":null,"asset_class":"us_equity",'
        b'"multiplier":1,"current_price":null,"lastday_price":null}]}'
    )


def test_what_else_is_known_of_a_position_and_why_it_may_be_out_of_date() -> None:
    lots = [
        Position(
            "BTCUSD",
            Decimal(1),
            Decimal(2),
            multiplier=Decimal("1E+2"),
            current_price=Decimal("2.50"),
            lastday_price=Decimal("2.1"),
            asset_class="crypto",
        ),
        Position("AAPL261218C00200000", Decimal(-1), Decimal(2)),
        Position("?!", None, None, problem="has no valid symbol"),
    ]
    body = encode_positions(lots, ["it is away"])
    assert b'"multiplier":100,"current_price":2.50,"lastday_price":2.1}' in body
    assert body.endswith(b'],"warnings":["it is away"]}')
    found = parse_positions(body)
    assert found == lots
    assert found[0].current_price == Decimal("2.50")


@pytest.mark.parametrize(
    ("number", "as_given", "shortened"),
    [
        ("1E+3", "1000", "1000"),
        ("0E-8", "0", "0"),
        ("0E+8", "0", "0"),
        ("-0.00", "0", "0"),
        ("1E-7", "0.0000001", "0.0000001"),
        ("-1.50E-7", "-0.000000150", "-0.00000015"),
        ("150.00", "150.00", "150"),
        ("100", "100", "100"),
        ("-10.10", "-10.10", "-10.1"),
    ],
)
def test_numbers_are_plain(number: str, as_given: str, shortened: str) -> None:
    assert plain(Decimal(number)) == as_given
    assert short(Decimal(number)) == shortened


@pytest.mark.parametrize(
    ("qty", "multiplier"),
    [("1E+2", "1"), ("1", "1E+2"), ("-1E+2", "1"), ("1E-21", "2E+23"), ("4E+1", "1E+3")],
)
@pytest.mark.parametrize(("bid", "ask"), [(0.0, 0.25), (0.25, 0.25), (100.0, 100.0), (0.1, 0.3)])
def test_a_quantity_with_an_exponent_is_valued_as_any_other(
    qty: str, multiplier: str, bid: float, ask: float
) -> None:
    engine = new_engine()
    engine.set_positions(
        [Position("AAPL", Decimal(qty), Decimal(1), multiplier=Decimal(multiplier))]
    )
    engine.update(Quote("AAPL", bid, ask, 1, 1, T_NS, T_NS), T_NS)
    (row,) = decoded(encoded(engine))["positions"]
    shares, price = Decimal(qty) * Decimal(multiplier), exact_mid(bid, ask)
    assert price is not None
    assert row["market_value"] == shares * price
    assert row["unrealized_pnl"] == shares * (price - 1)


@examples(300)
@given(st.lists(positions, max_size=4), prices, prices)
def test_always_json_with_the_exact_numbers(lots: list[Position], bid: float, ask: float) -> None:
    engine = new_engine()
    engine.set_positions(lots)
    for symbol in engine.symbols:
        engine.update(Quote(symbol, bid, ask, 1, 1, T_NS, T_NS), T_NS)
    report, answer = engine.report(T_NS), decoded(encoded(engine))
    names = list(Row.__struct_fields__)
    assert answer == {
        "positions": [
            {
                name: getattr(row, name)
                for name in names
                if name != "problem" or row.problem is not None
            }
            for row in report.positions
        ],
        "total_unrealized_pnl": report.total_unrealized_pnl,
        "total_market_value": report.total_market_value,
        "total_day_pnl": report.total_day_pnl,
        "realized_day_pnl": None,
        "market": None,
        "priced": report.priced,
        "unpriced": report.unpriced,
    }
    assert all(list(row) == names[: len(row)] for row in answer["positions"])


def test_only_changed_rows_are_written_again() -> None:
    engine = new_engine()
    engine.set_positions([Position(s, Decimal(1), Decimal(1)) for s in ("A", "B", "C")])
    before = engine.report_of(row_texts, T_NS).positions
    engine.update(Quote("B", 2.0, 2.0, 1, 1, T_NS, T_NS), T_NS)
    after = engine.report_of(row_texts, T_NS).positions
    assert [new is old for new, old in zip(after, before, strict=True)] == [True, False, True]


def test_a_row_has_the_lot_that_it_shows_now() -> None:
    engine = new_engine()
    for qty in (1, 2):
        engine.set_positions([Position("A", Decimal(qty), Decimal(1))])
        assert b'"qty":%d,' % qty in encoded(engine)
