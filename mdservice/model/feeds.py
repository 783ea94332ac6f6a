"""The feeds of an Alpaca account: one connection each, with the channels that it has.

Source: Alpaca, "Streaming Market Data": one connection is allowed per endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any, Final, Literal, NamedTuple

import attrs

from mdservice.errors import InvalidChannel
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    KINDS,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
    Repair,
)
from mdservice.model.symbol import is_option

__all__ = [
    "CHANNELS",
    "CRYPTO",
    "FEEDS",
    "NEWS_FEED",
    "OPTIONS",
    "STOCKS",
    "Feed",
    "FeedName",
    "Topic",
    "feed_of",
    "kinds_of",
    "parse_channels",
    "symbols_of",
    "topics_of",
]

FeedName = Literal["stocks", "crypto", "options", "news"]


class Topic(NamedTuple):
    """One channel of one symbol: what is subscribed, acknowledged and counted by a plan's limit."""

    channel: str
    symbol: str


@attrs.frozen(eq=False)
class Feed:
    """What one of Alpaca's connections carries.

    Attributes:
        name: Its name in ``/status``, ``feed.status`` and metrics.
        kinds: The kinds of records.
        repairs: How missed records of a kind are recovered, where it differs from the kind's own.
    """

    name: FeedName
    kinds: tuple[Kind[Any], ...]
    repairs: dict[Kind[Any], Repair] = attrs.field(factory=dict)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """The channels that can be subscribed, in Alpaca's names."""
        return tuple(dict.fromkeys(topic for kind in self.kinds for topic in kind.topics))

    def repair(self, kind: Kind[Any]) -> Repair:
        """How missed records of a kind are recovered."""
        return self.repairs.get(kind, kind.repair)


STOCKS: Final = Feed(
    "stocks",
    (QUOTES, TRADES, CORRECTIONS, CANCELS, BARS, DAILY_BARS, STATUSES, LULDS, IMBALANCES),
)
CRYPTO: Final = Feed("crypto", (QUOTES, TRADES, BARS, DAILY_BARS, ORDERBOOKS))
OPTIONS: Final = Feed("options", (QUOTES, TRADES), {QUOTES: Repair.LATEST})
NEWS_FEED: Final = Feed("news", (NEWS,))
FEEDS: Final = (STOCKS, CRYPTO, OPTIONS, NEWS_FEED)
CHANNELS: Final = tuple(
    dict.fromkeys(channel for feed in (STOCKS, CRYPTO, OPTIONS) for channel in feed.channels)
)
"""The channels of symbols, in Alpaca's names. ``news`` is subscribed by itself."""
_SHOWN = 32


@lru_cache(100_000)  # a new position asks for each held symbol
def feed_of(symbol: str) -> Feed:
    """The feed that has a symbol: ``BTC/USD`` is crypto, an OCC symbol an option."""
    if "/" in symbol:
        return CRYPTO
    return OPTIONS if is_option(symbol) else STOCKS


def parse_channels(texts: Iterable[str]) -> tuple[str, ...]:
    """Each text as one of :data:`CHANNELS`, without repeats, in the same order.

    Raises:
        InvalidChannel: For the first one that cannot be subscribed; the message lists the known.
    """
    channels = tuple(dict.fromkeys(text.strip() for text in texts))
    for channel in channels:
        if channel not in CHANNELS:
            raise InvalidChannel(_not_subscribed(channel))
    return channels


def kinds_of(channels: Iterable[str]) -> tuple[Kind[Any], ...]:
    """The kinds of record that channels bring, in the order of :data:`KINDS`.

    ``trades`` also brings corrections and cancellations; ``bars`` and ``updatedBars`` are one kind.

    Args:
        channels: Of :data:`CHANNELS`, and ``news``; or a text with commas between them.

    Raises:
        InvalidChannel: For the first other one.
    """
    texts = channels.split(",") if isinstance(channels, str) else channels
    names = {text.strip() for text in texts}
    parse_channels(name for name in names if name != NEWS.channel)
    return tuple(kind for kind in KINDS if not names.isdisjoint(kind.topics))


def _not_subscribed(channel: str) -> str:
    shown = channel if len(channel) <= _SHOWN else channel[:_SHOWN] + "…"
    kind = next((kind for kind in KINDS if kind.channel == channel), None)
    if kind is NEWS:
        return "news is not a channel of a symbol: set MDSERVICE_NEWS, to symbols or *"
    if kind is not None:
        return f"{shown} is not subscribed: it comes with {' and '.join(kind.topics)}"
    return f"{shown!r} is not a channel; known are {', '.join(CHANNELS)}"


def topics_of(symbols: Iterable[str], channels: Iterable[str]) -> tuple[Topic, ...]:
    """Every channel of every symbol, without the channels that a symbol's feed lacks."""
    wanted = tuple(channels)
    return tuple(
        Topic(channel, symbol)
        for symbol in symbols
        for channel in wanted
        if channel in feed_of(symbol).channels
    )


def symbols_of(topics: Iterable[Topic], kind: Kind[Any] | None = None) -> tuple[str, ...]:
    """The symbols of topics, each once; with a kind, of the topics that bring its records."""
    if kind is None:
        return tuple(dict.fromkeys(topic.symbol for topic in topics))
    wanted = kind.topics
    return tuple(dict.fromkeys(topic.symbol for topic in topics if topic.channel in wanted))
