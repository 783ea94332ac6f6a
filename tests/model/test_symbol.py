"""What is a symbol and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.errors import InvalidSymbol
from mdservice.model.symbol import (
    EVERY_SYMBOL,
    is_symbol,
    pair_without_slash,
    parse_symbol,
    parse_symbols,
    without_slash,
)


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("AAPL", "AAPL"),
        pytest.param("aapl", "AAPL", id="raised"),
        pytest.param(" Msft ", "MSFT", id="trimmed"),
        ("BRK.B", "BRK.B"),
        ("BTC/USD", "BTC/USD"),
        ("bf-b", "BF-B"),
        ("INAQ.U", "INAQ.U"),
        ("FAKEPACA", "FAKEPACA"),
        ("A", "A"),
        ("X" * 32, "X" * 32),
        ("*", EVERY_SYMBOL),
    ],
)
def test_takes_a_symbol_in_either_case(text: str, symbol: str) -> None:
    assert parse_symbol(text) == symbol


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "A B",
        "A,B",
        "**",
        ".A",
        "-A",
        "$AAPL",
        "A\x00",
        "A\r\nDEL",
        "price:*",
        "X" * 33,
        pytest.param("\u00df", id="raising the case makes SS of it"),
        pytest.param("\u017fpy", id="raising the case makes SPY of it"),
        pytest.param("\uff21", id="a wide letter"),
        pytest.param("\u0661", id="a digit that is not ASCII"),
    ],
)
def test_refuses_anything_else_and_names_it(text: str) -> None:
    with pytest.raises(InvalidSymbol) as caught:
        parse_symbol(text)
    assert repr(text[:32])[:-1] in str(caught.value)


def test_a_long_bad_symbol_is_named_cut_short() -> None:
    with pytest.raises(InvalidSymbol) as caught:
        parse_symbol("?" * 100_000)
    assert len(str(caught.value)) < 200
    assert "…" in str(caught.value)


def test_many_keep_their_order_and_lose_repeats() -> None:
    assert parse_symbols(["msft", "AAPL", "MSFT", "aapl", "*"]) == ("MSFT", "AAPL", "*")
    assert parse_symbols([]) == ()


def test_one_bad_symbol_refuses_all_of_them() -> None:
    with pytest.raises(InvalidSymbol, match="not a symbol") as caught:
        parse_symbols(["AAPL", "no good", "MSFT"])
    assert "no good" in str(caught.value)


@given(st.text(max_size=40))
def test_what_passes_is_plain_ascii_and_passes_again(text: str) -> None:
    try:
        symbol = parse_symbol(text)
    except InvalidSymbol:
        return
    assert symbol.isascii()
    assert symbol == text.strip().upper()
    assert parse_symbol(symbol) == symbol
    assert not set(symbol) & set(" \r\n\x00:,")


@pytest.mark.parametrize("text", ["A", "aapl", "BRK.B", "BTC/USD", "INAQ.U", "0-_./", "X" * 32])
def test_a_record_may_have_it(text: str) -> None:
    assert is_symbol(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "*", "../x\r\n", ".A", "/A", "-A", "_A", "A B", " A", "A ", "A\n", "A\0", "\x1b[2J",
        "A" * 33, "A" * 60, "\u00c4", "\uff21", "A\u0661", "A\ud800", "A,B", "A:B",
    ],
)  # fmt: skip
def test_no_record_may_have_it(text: str) -> None:
    assert not is_symbol(text)


def test_symbols_with_blanks_between_are_told_to_have_commas() -> None:
    with pytest.raises(InvalidSymbol, match="comma"):
        parse_symbol("AAPL MSFT")


@pytest.mark.parametrize(
    ("symbol", "pair"),
    [
        ("BTCUSD", "BTC/USD"),
        ("ETHBTC", "ETH/BTC"),
        ("BTC/USD", None),
        ("IUSD", None),
        ("AAPL", None),
        ("FAKEPACA", None),
        ("AAPL261218C00200000", None),
        ("*", None),
    ],
)
def test_a_pair_without_its_slash_is_recognised(symbol: str, pair: str | None) -> None:
    assert pair_without_slash(symbol) == pair


# Source: Alpaca, "What cryptocurrencies does Alpaca currently support".
COINS = (
    *(
        "AAVE",
        "AVAX",
        "BAT",
        "BCH",
        "BTC",
        "CRV",
        "DOGE",
        "DOT",
        "ETH",
        "GRT",
        "LINK",
        "LTC",
        "MKR",
    ),
    *("PEPE", "SHIB", "SOL", "SUSHI", "TRUMP", "UNI", "USDC", "USDG", "USDT", "XRP", "XTZ", "YFI"),
)


@pytest.mark.parametrize("quote", ["USD", "USDC", "USDT", "BTC"])
def test_no_pair_of_alpaca_has_the_name_of_a_stock(quote: str) -> None:
    """A US ticker has at most five letters, so an activity's symbol tells its class."""
    for coin in COINS:
        if coin != quote:
            assert pair_without_slash(without_slash(f"{coin}/{quote}")) == f"{coin}/{quote}"
