"""How much is read, and how quickly."""

from __future__ import annotations

import json

import pytest

from mdservice.errors import PositionsRefused
from mdservice.positions.parse import MOST_BYTES, MOST_ROWS, parse_positions
from tests.positions.test_parse import OF_ALPACA, ROW, parsed


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
