"""Events from the event log, a Redis stream: none is conflated, and reading can be resumed.

The stream is the buffer: it is read on only when the program has taken what was read. Keys are
read where the log does not tell all: at the very first, and when entries were cut before they
were read. What they tell waits until the log has been read up to where it was then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import attrs

from mdservice.logs import get_logger
from mdservice.model.decode import QuoteDecoder
from mdservice.model.quote import Quote
from mdservice.prices.intake import Intake
from mdservice.prices.keys import read_keys
from mdservice.prices.links import in_thread, open_link, opening
from mdservice.prices.log_entries import START, EntryId, look, read_chunk
from mdservice.prices.whereabouts import Location
from mdservice.sinks.redis_link import RedisAddress, RedisLink

__all__ = ["EventLogSource"]

_log = get_logger(__name__)

_LOST_AT_MOST_MS: Final = 60_000
"""Ids are the server's time: a log that ends this much before our position is the same log."""


@attrs.frozen
class _Keys:
    """Keys, and where the log ended after they had been read."""

    quotes: list[Quote]
    end: EntryId


@attrs.frozen
class _Entries:
    quotes: list[Quote]
    ids: list[EntryId]
    end: EntryId
    cut: bool


def _open(link: RedisLink, address: str, log: bytes) -> EntryId | None:
    open_link(link)
    return look(link, address, log)


def _read_keys(link: RedisLink, address: str, log: bytes, intake: Intake) -> _Keys:
    quotes = read_keys(link, address, intake.symbols, intake.key_decoder, intake.names)
    return _Keys(quotes, look(link, address, log) or START)


def _read_entries(
    link: RedisLink, address: str, log: bytes, after: EntryId, decoder: QuoteDecoder
) -> _Entries:
    chunk = read_chunk(link, address, log, after)
    quotes, ids = [], []
    for entry_id, payload in chunk.entries:
        quote = decoder.decode(payload)
        if quote is not None:
            quotes.append(quote)
            ids.append(entry_id)
    end = chunk.entries[-1][0] if chunk.entries else after
    return _Entries(quotes, ids, end, chunk.cut_after(after))


class EventLogSource:
    """Reads the log, from connection to connection.

    Args:
        intake: Where updates go.
        log: The stream's name.
        after: The id behind which to go on; None for the keys first, and then what is new.
    """

    def __init__(self, intake: Intake, log: str, after: EntryId | None) -> None:
        self._intake = intake
        self._name = log
        self._log = intake.names.event_log(log)
        self._cursor = after
        if after is not None:
            intake.begun = True
            intake.handover.position = str(after)
        self._keys: _Keys | None = None
        # Up to where entries may be older than the keys.
        self._unordered_to = START

    async def follow(self, location: Location, connected: Callable[[], None]) -> None:
        """See :class:`~mdservice.prices.intake.Source`."""
        intake, address = self._intake, location.address
        intake.names = location.names
        self._log = location.names.event_log(self._name)
        with opening(address) as link:
            end = await in_thread(intake.limiter, link, _open, address.shown, self._log)
            if self._cursor is None:
                await self._begin(link, address, end or START)
            elif end is not None:
                self._check_end(end)
            connected()
            while True:
                await intake.handover.emptied()
                await self._step(link, address)

    async def _begin(self, link: RedisLink, address: RedisAddress, end: EntryId) -> None:
        """The keys first; events from where the log ended before they were read."""
        keys = await self._ask_keys(link, address)
        newer = self._intake.take_keys(keys.quotes)
        self._cursor, self._unordered_to = end, keys.end
        # One that ends among the keys has to begin with them again.
        self._intake.handover.offer_entries(newer, [None] * len(newer), str(end))

    async def _ask_keys(self, link: RedisLink, address: RedisAddress) -> _Keys:
        intake = self._intake
        intake.reading_keys(anyio.current_time())
        return await in_thread(intake.limiter, link, _read_keys, address.shown, self._log, intake)

    async def _step(self, link: RedisLink, address: RedisAddress) -> None:
        intake = self._intake
        cursor = self._cursor or START
        if self._keys is None and intake.keys_are_due(anyio.current_time()):
            self._keys = await self._ask_keys(link, address)
        if self._keys is not None and cursor >= self._keys.end:
            newer = intake.take_keys(self._keys.quotes)
            self._keys = None
            intake.handover.offer_entries(newer, [None] * len(newer), None)
            return
        read = await in_thread(
            intake.limiter,
            link,
            _read_entries,
            address.shown,
            self._log,
            cursor,
            intake.event_decoder,
        )
        if read.cut:
            self._note("event_log_was_cut", cursor)
        if read.end == cursor:
            end = await in_thread(intake.limiter, link, look, address.shown, self._log)
            if end is not None:
                self._check_end(end)
            return
        self._hand_over(read, in_order=cursor >= self._unordered_to)

    def _hand_over(self, read: _Entries, *, in_order: bool) -> None:
        self._cursor = read.end
        newer = self._intake.take_events(read.quotes, in_order=in_order)
        # Both are in the same order; what is not news is passed over.
        ids = {id(quote): str(entry) for quote, entry in zip(read.quotes, read.ids, strict=True)}
        places = [ids[id(quote)] for quote in newer]
        self._intake.handover.offer_entries(newer, places, str(read.end))

    def _check_end(self, end: EntryId) -> None:
        """A log that ends before what was read of it has lost its end, or is another one.

        A server that crashes, or a replica that takes over, loses seconds: what there still is
        was read. Anything else is a new log, to be read from its start.
        """
        cursor = self._cursor
        if cursor is None or end >= cursor:
            return
        self._keys = None
        if cursor.ms - end.ms <= _LOST_AT_MOST_MS:
            self._note("event_log_lost_its_end", cursor)
            self._cursor = end
        else:
            self._note("event_log_begins_anew", cursor)
            self._cursor = self._unordered_to = START

    def _note(self, event: str, cursor: EntryId) -> None:
        self._intake.trimmed += 1
        _log.warning(
            event,
            log=self._name,
            position=str(cursor),
            reason="entries may have gone before they were read; the keys are read again",
        )
