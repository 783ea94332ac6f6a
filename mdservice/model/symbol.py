"""The form of symbols."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mdservice.errors import InvalidSymbol

__all__ = [
    "EVERY_SYMBOL",
    "is_option",
    "is_symbol",
    "pair_of",
    "pair_without_slash",
    "parse_symbol",
    "parse_symbols",
    "spellings",
    "without_slash",
]

EVERY_SYMBOL = "*"
"""Alpaca's name for every symbol of the feed."""

_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9./_-]{0,31}", re.ASCII)
_OPTION = re.compile(r"[A-Z][A-Z0-9]{0,5}[0-9]{6}[CP][0-9]{8}", re.ASCII)
"""Root, expiry, call or put, strike in thousandths. Source: OCC, Options Symbology Initiative."""
_CURRENCIES = ("USDT", "USDC", "USDG", "USD", "EUR", "GBP", "BTC", "ETH")
"""What pairs are quoted in, the longest first. Source: Alpaca, crypto trading, supported pairs."""
_SHORTER_THAN_OPTIONS = 15
_LONGEST_TICKER = 5
_SHOWN = 32
_IN_RECORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,31}", re.ASCII)


def is_symbol(text: str) -> bool:
    """Whether a record may have this symbol, which becomes part of a key and a line of text.

    False for ``*``, since no record has it.
    """
    return _IN_RECORD.fullmatch(text) is not None


def parse_symbol(text: str) -> str:
    """The symbol in upper case: ``aapl`` → ``AAPL``; ``BRK.B``, ``BTC/USD`` and ``*`` pass.

    Raises:
        InvalidSymbol: The message quotes the text, shortened if it is long.
    """
    symbol = text.strip().upper()
    # Checks the text as it is, since upper() turns some non-ASCII letters, such as ß, into ASCII
    if text.isascii() and (symbol == EVERY_SYMBOL or _SYMBOL.fullmatch(symbol)):
        return symbol
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    several = "; put commas between symbols" if len(text.split()) > 1 else ""
    raise InvalidSymbol(
        f"{shown!r} is not a symbol: letters, digits, '.', '/', '-' or '_', at most 32 of them, "
        f"for instance AAPL, BRK.B or BTC/USD{several}"
    )


def without_slash(symbol: str) -> str:
    """The symbol as Alpaca's news and trading API write it: ``BTC/USD`` → ``BTCUSD``."""
    return symbol.replace("/", "")


def pair_of(symbol: str) -> str | None:
    """The pair that a name without a slash stands for, or None: ``BTCUSD`` → ``BTC/USD``."""
    for currency in _CURRENCIES:
        if symbol.endswith(currency) and (base := symbol.removesuffix(currency)):
            return None if "/" in base else f"{base}/{currency}"
    return None


def pair_without_slash(symbol: str) -> str | None:
    """The pair that is meant by a symbol too long for a stock's, or None: ``BTCUSD`` → ``BTC/USD``.

    Alpaca's streams take ``BTCUSD`` for a stock's symbol.
    """
    return pair_of(symbol) if len(symbol) > _LONGEST_TICKER and symbol.isalpha() else None


def spellings(symbol: str) -> tuple[str, ...]:
    """The symbols of the feed that a name may stand for: itself, and the pair, if it is one."""
    pair = pair_of(symbol)
    return (symbol,) if pair is None else (symbol, pair)


def is_option(symbol: str) -> bool:
    """Whether it is an option's symbol in the OCC form, such as ``AAPL261218C00200000``."""
    return len(symbol) > _SHORTER_THAN_OPTIONS and _OPTION.fullmatch(symbol) is not None


def parse_symbols(texts: Iterable[str]) -> tuple[str, ...]:
    """Each text as a symbol, without repeats, in the same order.

    Raises:
        InvalidSymbol: For the first invalid one.
    """
    return tuple(dict.fromkeys(parse_symbol(text) for text in texts))
