"""A position's class, its multiplier and the symbol of its price."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mdservice.model.position import Position

OPTION = "AAPL261218C00200000"


@pytest.mark.parametrize(
    ("symbol", "pair"),
    [
        ("BTCUSD", "BTC/USD"),
        ("BTC/USD", "BTC/USD"),
        ("BTCUSDT", "BTC/USDT"),
        ("BTCUSDC", "BTC/USDC"),
        ("USDTUSD", "USDT/USD"),
        ("USDTUSDC", "USDT/USDC"),
        ("ETHBTC", "ETH/BTC"),
        ("BTC/USDT", "BTC/USDT"),
        ("1INCHUSD", "1INCH/USD"),
        ("BTC", "BTC/USD"),
        ("DOGE", "DOGE/USD"),
    ],
)
def test_crypto_is_priced_by_its_pair(symbol: str, pair: str) -> None:
    position = Position(symbol, Decimal(1), Decimal(2), asset_class="crypto")
    assert (position.symbol, position.priced_by) == (symbol, pair)


def test_stocks_and_options_are_priced_by_their_symbol() -> None:
    for symbol in ("AAPL", "BRK.B", OPTION, "BTCUSD"):
        assert Position(symbol, Decimal(1), Decimal(2)).priced_by == symbol


def test_the_class_and_the_multiplier_follow_from_the_form() -> None:
    found = [Position(symbol, None, None) for symbol in ("AAPL", "BTC/USD", OPTION)]
    assert [each.asset_class for each in found] == ["us_equity", "crypto", "us_option"]
    assert [each.multiplier for each in found] == [1, 1, 100]
    assert Position(OPTION, None, None, Decimal(10)).multiplier == 10


def test_the_price_now_is_no_difference_and_the_last_close_is_one() -> None:
    one, other = Decimal(1), Decimal(2)
    assert Position("A", one, one, current_price=one) == Position("A", one, one)
    assert Position("A", one, one, lastday_price=one) != Position(
        "A", one, one, lastday_price=other
    )
