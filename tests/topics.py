"""Short names for what is subscribed."""

from __future__ import annotations

from collections.abc import Iterable

from mdservice.model.feeds import Topic

__all__ = ["names", "quotes", "trades"]


def quotes(*symbols: str) -> tuple[Topic, ...]:
    """The quotes of these symbols."""
    return tuple(Topic("quotes", symbol) for symbol in symbols)


def trades(*symbols: str) -> tuple[Topic, ...]:
    """The trades of these symbols."""
    return tuple(Topic("trades", symbol) for symbol in symbols)


def names(topics: Iterable[Topic]) -> set[str]:
    """The symbols of topics."""
    return {topic.symbol for topic in topics}
