"""Batches for stores, as short as tests want to write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from mdservice.model.kinds import QUOTES
from mdservice.publish.store import Events, Message, WriteBatch

__all__ = ["write_batch"]


def write_batch(
    number: int,
    prices: Mapping[str, bytes] | None = None,
    messages: Iterable[Message] = (),
    ages_s: Mapping[str, int] | None = None,
) -> WriteBatch:
    """A batch of prices, and messages in order; those with a symbol are price events."""
    events = []
    for (channel, is_price), group in groupby(
        messages, lambda m: (m.channel, m.symbol is not None)
    ):
        some = list(group)
        symbols = [message.symbol for message in some if message.symbol is not None]
        payloads = [message.payload for message in some]
        events.append(Events(channel, payloads, QUOTES if is_price else None, symbols))
    latest = {QUOTES: prices} if prices else {}
    return WriteBatch(number, latest, events, {QUOTES: ages_s} if ages_s else {})
