"""Alpaca's streams of market data and of the account: their paths, channels and symbols.

Source: Alpaca's streaming documentation; see also :mod:`mdservice.model.feeds`, which is the
service's own list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import attrs

from mdservice.model.feeds import FeedName
from mdservice.model.symbol import EVERY_SYMBOL, is_option

__all__ = [
    "CRYPTO",
    "FEEDS",
    "NEWS",
    "OPTIONS",
    "STOCKS",
    "TRADING",
    "SimFeed",
    "StreamName",
    "feed_at",
]

StreamName = FeedName | Literal["trading"]
"""A feed of market data, or the stream of the account's trade updates."""


@attrs.frozen(eq=False)
class SimFeed:
    """One of Alpaca's streams; a session belongs to one.

    Attributes:
        name: ``stocks``, ``crypto``, ``options``, ``news`` or ``trading``.
        paths: Of the upgrade request; an account may have one connection on each.
        channels: In the order of the acknowledgement.
        has_symbol: Whether a symbol has the form of this asset class.
        with_trades: Channels that follow the subscriptions of ``trades``.
        no_wildcard: Channels that refuse ``*`` (413).
        msgpack_only: Whether clients that use JSON get 412.
    """

    name: StreamName
    paths: tuple[str, ...]
    channels: tuple[str, ...]
    has_symbol: Callable[[str], bool]
    with_trades: tuple[str, ...] = ()
    no_wildcard: tuple[str, ...] = ()
    msgpack_only: bool = False

    @property
    def asked_for(self) -> tuple[str, ...]:
        """The channels that clients subscribe to themselves."""
        return tuple(channel for channel in self.channels if channel not in self.with_trades)


def _is_pair(symbol: str) -> bool:
    return symbol == EVERY_SYMBOL or "/" in symbol


def _is_stock(symbol: str) -> bool:
    return (not _is_pair(symbol) and not is_option(symbol)) or symbol == EVERY_SYMBOL


STOCKS: Final = SimFeed(
    "stocks",
    (
        *("/v2/iex", "/v2/sip", "/v2/delayed_sip", "/v2/test"),
        *("/v1beta1/boats", "/v1beta1/overnight"),
    ),
    (
        *("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds"),
        *("corrections", "cancelErrors", "imbalances"),
    ),
    _is_stock,
    with_trades=("corrections", "cancelErrors"),
)
CRYPTO: Final = SimFeed(
    "crypto",
    (
        *("/v1beta3/crypto/us", "/v1beta3/crypto/us-1", "/v1beta3/crypto/eu-1"),
        "/v1beta2/crypto",  # of the older Python SDK
    ),
    ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars"),
    _is_pair,
)
OPTIONS: Final = SimFeed(
    "options",
    ("/v1beta1/indicative", "/v1beta1/opra"),
    ("trades", "quotes"),
    lambda symbol: symbol == EVERY_SYMBOL or is_option(symbol),
    no_wildcard=("quotes",),
    msgpack_only=True,
)
NEWS: Final = SimFeed("news", ("/v1beta1/news",), ("news",), lambda _: True)
FEEDS: Final = (STOCKS, CRYPTO, OPTIONS, NEWS)
"""Those of market data."""
TRADING: Final = SimFeed("trading", ("/stream",), (), lambda _: False)

_BY_PATH = {path: feed for feed in (*FEEDS, TRADING) for path in feed.paths}


def feed_at(path: str) -> SimFeed:
    """The stream at this path; any path that Alpaca does not have is one more for stocks."""
    return _BY_PATH.get(path, STOCKS)
