"""What a trading status says about trading."""

from __future__ import annotations

import pytest

from mdservice.model.trading_status import TradingStatus, is_halted


@pytest.mark.parametrize(
    ("tape", "code", "halted"),
    [
        ("C", "H", True),
        ("C", "P", True),
        ("C", "Q", True),
        ("C", "T", False),
        ("A", "2", True),
        ("B", "3", False),
        ("A", "5", None),
        ("B", "H", None),
        ("C", "2", None),
        (None, "H", True),
        ("A", None, None),
    ],
)
def test_the_codes_depend_on_the_tape(
    tape: str | None, code: str | None, halted: bool | None
) -> None:
    assert is_halted(TradingStatus("AAPL", code, None, None, None, tape, 1, 1)) is halted
