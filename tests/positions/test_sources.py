"""The settings' words for sources of positions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdservice.errors import ConfigurationError
from mdservice.positions.file import FilePositions
from mdservice.positions.http import AlpacaPositions, HttpPositions
from mdservice.positions.source import PositionSource
from mdservice.positions.sources import open_source

TRADING = "https://paper-api.alpaca.markets"


def chosen(text: str, key: str | None = "PKHIDDEN", secret: str | None = "hidden") -> PositionSource | None:  # fmt: skip
    return open_source(text, trading_url=TRADING, api_key=key, secret_key=secret)


def test_none_is_none() -> None:
    assert chosen("none") is None


def test_each_word_has_its_source() -> None:
    alpaca = chosen("alpaca")
    assert isinstance(alpaca, AlpacaPositions)
    assert alpaca.address == f"{TRADING}/v2/positions"
    http = chosen("https://me:hidden@gw/positions?token=hidden")
    assert isinstance(http, HttpPositions)
    assert http.address == "https://***@gw/positions?token=***"
    file = chosen("file:data/positions.json", None, None)
    assert isinstance(file, FilePositions)
    assert file.address == str(Path("data/positions.json"))


@pytest.mark.parametrize(
    ("key", "secret", "named"),
    [(None, None, "ALPACA_API_KEY"), (None, "s", "ALPACA_API_KEY"), ("k", "", "ALPACA_SECRET_KEY")],
)
def test_alpaca_needs_key_and_secret(key: str | None, secret: str | None, named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"set {named}"):
        chosen("alpaca", key, secret)


@pytest.mark.parametrize("text", ["", "Alpaca", "ftp://me:hidden@host", "positions.json"])
def test_other_words_are_a_wrong_setting(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"positions|POSITIONS") as caught:
        chosen(text)
    assert "hidden" not in str(caught.value)
