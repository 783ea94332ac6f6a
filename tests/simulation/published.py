"""What has to be true of what one run of the service brought to the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from mdservice.model.events import encode_status
from mdservice.model.kinds import QUOTES
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.redis_io.names import ACCOUNT_CHANNEL

if TYPE_CHECKING:
    from tests.simulation.life import Life


class _Event(msgspec.Struct):
    symbol: str
    seq: int
    timestamp: str


_EVENT = msgspec.json.Decoder(_Event)


def check_published(life: Life) -> Iterator[str]:
    """What was accepted is published once and in order, or counted as conflated."""
    expected = {(q.symbol, q.seq): encode_quote(q) for q in life.accepted}
    batches = life.batches()
    published = [
        message
        for batch in batches
        for message in batch.messages
        if message.channel != ACCOUNT_CHANNEL
    ]
    last: dict[str, int] = defaultdict(int)
    count = 0
    for message in published:
        if message.symbol is None:
            continue
        count += 1
        event = _EVENT.decode(message.payload)
        if expected.get((event.symbol, event.seq)) != message.payload:
            yield f"published what was not accepted: {message.payload!r}"
        if event.seq <= last[event.symbol]:
            yield f"published again or out of order: {message.payload!r}"
        last[event.symbol] = event.seq
    counters = life.counters
    unsettled = life.unsettled[0] if life.unsettled else 0
    if count not in {counters.events_published, counters.events_published + unsettled}:
        yield f"{count} events are in the store, {counters.events_published} are counted"
    told = counters.events_published + unsettled + counters.events_conflated + life.waiting_at_end
    if len(life.accepted) != told:
        yield f"{len(life.accepted)} accepted, {told} published, conflated or waiting: {counters}"
    numbers = [batch.number for batch in batches]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"batches executed: {numbers}"
    if not counters.events_conflated and life.drained:
        routed = [
            expected[item.symbol, item.seq] if isinstance(item, Quote) else encode_status(item)
            for item in life.routed
        ]
        if routed != [message.payload for message in published]:
            yield "published is not what was sent, or not in that order"
    if life.drained:
        newest = {quote.symbol: quote.seq for quote in life.accepted}
        if newest != dict(last):
            yield f"the last of a symbol was not published: {newest} {dict(last)}"


def check_keys(life: Life) -> Iterator[str]:
    """Once an event is out, its key has that price or a newer one, and never goes back.

    A key that ran out may be written again as the run before left it: before any of this run.
    """
    earlier = {encode_quote(quote) for quote in life.earlier.values()}
    own = {encode_quote(quote) for quote in life.accepted}
    keys: dict[str, tuple[int, str]] = {}
    for batch in life.store.executed[life.first_batch : life.last_batch]:
        for symbol, payload in batch.latest.get(QUOTES, {}).items():
            price = _EVENT.decode(payload)
            if price.symbol != symbol or not (payload in own or payload in earlier):
                yield f"the key of {symbol} holds {payload!r}"
            now = price.seq if payload in own else 0, price.timestamp
            before = keys.setdefault(symbol, now)
            if now[0] < before[0] or now[1] < before[1]:
                yield f"the key of {symbol} went back from {before} to {payload!r}"
            keys[symbol] = now
        for message in batch.messages:
            if message.symbol is not None:
                event = _EVENT.decode(message.payload)
                if event.seq > keys.get(message.symbol, (0, ""))[0]:
                    yield f"an event came before its key: {message.payload!r}"


def check_counters(life: Life) -> Iterator[str]:
    counters = life.counters
    if counters.quotes_accepted != len(life.accepted):
        yield f"{len(life.accepted)} accepted: {counters}"
    from_rest = counters.quotes_backfilled + counters.prices_fetched
    told = counters.quotes_accepted - from_rest + counters.quotes_stale
    # Of the future ones some may have come from history, under a clock that is behind.
    if told > counters.quotes_received and not counters.quotes_backfilled:
        yield f"more accepted and stale ones than received: {counters}"
    told += life.future - life.future_fetched + life.fetched_before
    if not counters.gaps and told != counters.quotes_received:
        lost = counters.quotes_received - told
        if not (life.cut_short or life.error) or lost < 0:
            yield f"{lost} received quotes are neither accepted, stale nor future: {counters}"
