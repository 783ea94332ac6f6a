"""Redis commands as bytes, packed once a batch.

A client library spends about 9 µs on packing one ``SET`` and one ``PUBLISH``; filling in
templates takes well under 1 µs, and there are two commands for every quote.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from mdservice.publish.store import WriteBatch
from mdservice.redis_io.names import BATCH_CHANNEL, RedisNames, encode_marker

__all__ = ["NUMBER_TTL_S", "BatchPacker", "PackedBatch", "pack"]

NUMBER_TTL_S = 86_400
"""How long the number of a writer's last batch is kept, in seconds."""


def pack(*words: bytes) -> bytes:
    """One command, as an array of its words."""
    return b"*%d\r\n" % len(words) + b"".join(
        b"$%d\r\n%b\r\n" % (len(word), word) for word in words
    )


def _words(*words: bytes) -> bytes:
    """Some words of a command, to be embedded in a template: ``%`` is escaped."""
    packed = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    return packed.replace(b"%", b"%%")


_WORD = b"$%d\r\n%b\r\n"
_MULTI = pack(b"MULTI")
_EXEC = pack(b"EXEC")


@attrs.frozen
class PackedBatch:
    """A batch ready to be sent.

    Attributes:
        data: All of its commands, ``MULTI`` and ``EXEC`` included.
        queued: How many commands stand between these two.
    """

    data: bytes
    queued: int


class BatchPacker:
    """Turns batches into one transaction each.

    Args:
        price_ttl_s: After how many seconds a price expires.
        event_log: The stream to which price events are appended, or None.
        event_log_maxlen: About how many entries the stream keeps.
        instance: Whose batch number is kept.
        prefix: What stands in front of every name.
    """

    def __init__(
        self,
        *,
        price_ttl_s: int,
        event_log: str | None,
        event_log_maxlen: int,
        instance: str,
        prefix: str = "",
    ) -> None:
        self._names = names = RedisNames(prefix)
        self._instance = instance
        self.marks_db: int | None = None
        """The database to name at the head of each batch; None for no such message."""
        ttl = b"%d" % price_ttl_s
        self._price_ttl_s = price_ttl_s
        self._set = b"*5\r\n" + _words(b"SET") + _WORD + _WORD + _words(b"EX", ttl)
        self._publish: dict[str, bytes] = {}
        """By channel, of which there are two."""
        self._xadd: bytes | None = None
        if event_log is not None:
            limit = (b"MAXLEN", b"~", b"%d" % event_log_maxlen)
            head = (b"XADD", names.event_log(event_log), *limit, b"*")
            self._xadd = b"*10\r\n" + _words(*head, b"symbol") + _WORD + _words(b"data") + _WORD
        self._number_key = names.writer_key(instance)

    def number(self, value: int, *condition: bytes) -> bytes:
        """The command that stores a batch number; ``b"NX"`` as condition keeps another one."""
        words = (b"SET", self._number_key, b"%d" % value, b"EX", b"%d" % NUMBER_TTL_S)
        return pack(*words, *condition)

    def _old_prices(self, batch: WriteBatch) -> Iterator[bytes]:
        """Each for what is left of its time; those whose time is over are left out."""
        for symbol, age_s in batch.ages_s.items():
            left_s = self._price_ttl_s - age_s
            if left_s > 0:
                key = self._names.price_key(symbol)
                words = (b"SET", key, batch.prices[symbol], b"EX", b"%d" % left_s)
                yield pack(*words)

    def marker(self, db: int, events: int) -> bytes:
        """The command that tells readers whose the next events are."""
        channel = self._names.channel(BATCH_CHANNEL)
        return pack(b"PUBLISH", channel, encode_marker(self._instance, db, events))

    def _publish_on(self, channel: str) -> bytes:
        template = b"*3\r\n" + _words(b"PUBLISH", self._names.channel(channel)) + _WORD
        self._publish[channel] = template
        return template

    def batch(self, batch: WriteBatch) -> PackedBatch:
        """Pack a batch: whose it is, every key, every message in order, the number."""
        set_, publish_on, xadd = self._set, self._publish, self._xadd
        price_key = self._names.price_key
        parts = [_MULTI]
        add = parts.append
        if self.marks_db is not None and batch.messages:
            events = sum(1 for message in batch.messages if message.symbol is not None)
            add(self.marker(self.marks_db, events))
        prices = batch.prices
        if batch.ages_s:
            prices = {s: payload for s, payload in prices.items() if s not in batch.ages_s}
            parts += self._old_prices(batch)
        for symbol, payload in prices.items():
            key = price_key(symbol)
            add(set_ % (len(key), key, len(payload), payload))
        for message in batch.messages:
            payload = message.payload
            publish = publish_on.get(message.channel) or self._publish_on(message.channel)
            add(publish % (len(payload), payload))
            if xadd is not None and message.symbol is not None:
                symbol_bytes = message.symbol.encode()
                add(xadd % (len(symbol_bytes), symbol_bytes, len(payload), payload))
        add(self.number(batch.number))
        queued = len(parts) - 1
        add(_EXEC)
        return PackedBatch(b"".join(parts), queued)
