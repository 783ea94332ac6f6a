"""The JSON of positions and P&L: exact decimals, and JSON whatever the numbers are."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.encode import PnlEncoder, encode_positions
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.numbers import plain, short
from mdservice.pnl.rows import PnlReport, Row
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
rows = st.builds(
    Row,
    symbol=st.text(max_size=5),
    qty=perhaps,
    avg_entry_price=perhaps,
    asset_class=st.sampled_from(["us_equity", "crypto", "us_option"]),
    multiplier=perhaps,
    current_price=perhaps,
    unrealized_pnl=perhaps,
    unrealized_pnl_pct=perhaps,
    market_value=perhaps,
    day_pnl=perhaps,
    last_updated=st.sampled_from([None, "2026-11-20T15:51:44.208912345Z"]),
    mark=st.sampled_from([None, "mid", "previous"]),
    status=st.sampled_from(["live", "closed", "stale", "unpriced"]),
    problem=st.none() | st.text(max_size=5),
)


def decoded(payload: bytes) -> dict[str, object]:
    """Refuses what a strict reader might: exponents and negative zeros."""

    def number(text: str) -> Decimal:
        assert not set(text) & set("eE")
        assert not (text.startswith("-") and Decimal(text) == 0)
        return Decimal(text)

    return json.loads(payload, parse_float=number, parse_int=number, parse_constant=pytest.fail)


def test_the_example_of_the_contract_byte_for_byte() -> None:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    lastday = Decimal("185.40")
    engine.set_positions([Position("AAPL", Decimal(10), Decimal("150.00"), lastday_price=lastday)])
    engine.update(Quote("AAPL", 187.12, 187.15, 2, 3, T_NS, T_NS), T_NS)
    assert PnlEncoder().encode(engine.report(T_NS)) == (
        b'{"positions":[{"symbol":"AAPL","qty":10,"avg_entry_price":150.00,'
        b'"asset_class":"us_equity","multiplier":1,'
        b'"current_price":187.135,"unrealized_pnl":371.35,"unrealized_pnl_pct":24.7567,'
        b'"market_value":1871.35,"day_pnl":17.35,'
        b'"last_updated":"2026-11-20T15:51:44.208912345Z","mark":"mid","status":"live"}],'
        b'"total_unrealized_pnl":371.35,"total_market_value":1871.35,"total_day_pnl":17.35,'
        b'"realized_day_pnl":null,"market":null,"priced":1,"unpriced":0}'
    )


def test_an_unpriced_row_with_a_problem() -> None:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    engine.set_positions([Position('ß"', None, Decimal("-0.00"), problem='no "symbol"\n')])
    assert PnlEncoder().encode(engine.report(T_NS)).decode() == (
        '{"positions":[{"symbol":"ß\\"","qty":null,"avg_entry_price":0,"asset_class":"us_equity","multiplier":1,'
        '"current_price":null,"unrealized_pnl":null,"unrealized_pnl_pct":null,'
        '"market_value":null,"day_pnl":null,'
        '"last_updated":null,"mark":null,"status":"unpriced","problem":"no \\"symbol\\"\\n"}],'
        '"total_unrealized_pnl":0,"total_market_value":0,"total_day_pnl":null,'
        '"realized_day_pnl":null,"market":null,"priced":0,"unpriced":1}'
    )


def test_no_positions() -> None:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    assert PnlEncoder().encode(engine.report(T_NS)) == (
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


@examples(300)
@given(st.lists(st.lists(rows, max_size=4).map(tuple), min_size=1, max_size=4), any_decimals)
def test_always_json_with_the_exact_numbers(several: list[tuple[Row, ...]], total: Decimal) -> None:
    encoder = PnlEncoder()
    for told in several:
        for whole, realized in ((True, total), (False, None)):
            report = PnlReport(told, total, total, None, realized, None, 1, 2, 3, whole)
            answer = decoded(encoder.encode(report))
            names = list(Row.__struct_fields__)
            assert answer == {
                "positions": [
                    {
                        name: getattr(row, name)
                        for name in names
                        if name != "problem" or row.problem is not None
                    }
                    for row in told
                ],
                "total_unrealized_pnl": total,
                "total_market_value": total,
                "total_day_pnl": None,
                "realized_day_pnl": realized,
                "market": None,
                "priced": 1,
                "unpriced": 2,
            }
            assert all(list(row) == names[: len(row)] for row in answer["positions"])


def test_only_changed_rows_are_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    engine.set_positions([Position(s, Decimal(1), Decimal(1)) for s in ("A", "B", "C")])
    encoder = PnlEncoder()
    encoder.encode(engine.report(T_NS))
    engine.update(Quote("B", 2.0, 2.0, 1, 1, T_NS, T_NS), T_NS)
    before = list(encoder._tails)
    encoder.encode(engine.report(T_NS))
    assert [new is old for new, old in zip(encoder._tails, before, strict=True)] == [
        True,
        False,
        True,
    ]
