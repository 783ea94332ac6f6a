"""The live line on a terminal of any width."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mdservice.app.live_line import fitted


def test_shows_as_many_prices_as_there_is_room_for() -> None:
    prices = ["AAPL 187.135", "MSFT 410.5"]
    assert fitted("running |", prices, 80) == "running | AAPL 187.135 MSFT 410.5"
    assert fitted("running |", prices, 32) == "running | AAPL 187.135"


@given(st.integers(-5, 60))
def test_never_cuts_a_price(width: int) -> None:
    prices = ["AAPL 187.135", "MSFT 410.5", "IBM 9"]
    line = fitted("running |", prices, width)
    assert len(line) <= max(0, width)
    assert all(price in line or price.split()[0] not in line for price in prices)
