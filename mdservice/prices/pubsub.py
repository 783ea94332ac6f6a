"""Events from the channel ``price.updated``.

Subscribed first, then the keys are read over a connection of their own while events already
come. A ``PING`` sent after the keys were read comes back behind every event that was published
before: then, and not earlier, the keys tell of what was missed and of nothing that is only
still on its way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, cast

import anyio
import attrs

from mdservice.actors.groups import run_together
from mdservice.errors import StoreUnavailable
from mdservice.model.decode import QuoteDecoder
from mdservice.model.quote import Quote
from mdservice.model.redis_layout import PRICE_CHANNEL
from mdservice.prices.intake import Intake
from mdservice.prices.keys import read_keys
from mdservice.prices.links import in_thread, open_link, opening, refuse_errors
from mdservice.prices.silence import ANSWER_LIMIT_S, Silence
from mdservice.sinks.conflation import ConflatingBuffer
from mdservice.sinks.redis_link import RedisAddress, RedisLink
from mdservice.sinks.resp import pack

__all__ = ["PubSubSource"]

_WAIT_S: Final = 1.0
_SHORT_WAIT_S: Final = 0.02
"""While keys are being read, so that the marker goes out soon."""
_HELD_AT_MOST: Final = 100_000
_MARKER: Final = b"keys-were-read"
_PING: Final = pack(b"PING", b"")


@attrs.frozen
class _Heard:
    at_s: float
    anything: bool
    marker: bool
    quotes: list[Quote]


def _subscribe(link: RedisLink, address: str, channel: bytes) -> None:
    open_link(link)
    refuse_errors(address, link.call(pack(b"SUBSCRIBE", channel)))


def _receive(
    link: RedisLink, address: str, wait_s: float, data: bytes, decoder: QuoteDecoder
) -> _Heard:
    replies = link.receive(wait_s, data)
    payloads, marker = [], False
    for reply in replies:
        if not isinstance(reply, list):
            refuse_errors(address, (reply,))
        elif reply[0] == b"message":
            payloads.append(reply[2])
        elif reply == [b"pong", _MARKER]:
            marker = True
    quotes = decoder.decode_all(payloads)
    return _Heard(time.monotonic(), bool(replies), marker, quotes)


def _read_keys(link: RedisLink, address: str, intake: Intake) -> list[Quote]:
    open_link(link)
    return read_keys(link, address, intake.symbols, intake.key_decoder, intake.names)


class PubSubSource:
    """Reads the channel; never waits for the program that iterates."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def follow(self, address: RedisAddress, connected: Callable[[], None]) -> None:
        """See :class:`~mdservice.prices.intake.Source`."""
        with opening(address) as link:
            channel = self._intake.names.channel(PRICE_CHANNEL)
            await in_thread(self._intake.limiter, link, _subscribe, address.shown, channel)
            connection = _Connection(self._intake, address, link, connected)
            await run_together(connection.receive, connection.read_keys)


class _Connection:
    """One subscribed connection, from its keys to its end."""

    def __init__(
        self,
        intake: Intake,
        address: RedisAddress,
        link: RedisLink,
        connected: Callable[[], None],
    ) -> None:
        self._intake = intake
        self._address = address
        self._link = link
        self._connected = connected
        # At the very first, events wait for the keys.
        self._held = None if intake.begun else ConflatingBuffer(_HELD_AT_MOST)
        self._silence = Silence(time.monotonic())
        self._up_to_date = False
        self._keys: list[Quote] | None = None
        self._marker_sent = False
        self._keys_wanted = anyio.Event()
        self._want_keys()

    async def receive(self) -> None:
        """Take what comes, until the connection is lost."""
        intake, shown = self._intake, self._address.shown
        while True:
            wait_s = _SHORT_WAIT_S if self._reading_keys else _WAIT_S
            heard = await in_thread(
                intake.limiter,
                self._link,
                _receive,
                shown,
                wait_s,
                self._to_say(),
                intake.event_decoder,
            )
            if self._silence.too_long(heard.at_s, anything=heard.anything):
                raise StoreUnavailable(
                    f"Redis at {shown} does not answer a PING within {ANSWER_LIMIT_S:g} s; "
                    "connecting again"
                )
            self._take(heard.quotes)
            if heard.marker and self._keys is not None:
                self._apply(self._keys)
            if not self._reading_keys and intake.keys_are_due(anyio.current_time()):
                self._want_keys()

    async def read_keys(self) -> None:
        """Read the keys whenever that is wanted."""
        while True:
            await self._keys_wanted.wait()
            self._keys_wanted = anyio.Event()
            with opening(self._address) as link:
                self._keys = await in_thread(
                    self._intake.limiter, link, _read_keys, self._address.shown, self._intake
                )

    def _want_keys(self) -> None:
        self._intake.reading_keys(anyio.current_time())
        self._reading_keys = True
        self._keys_wanted.set()

    def _to_say(self) -> bytes:
        if self._keys is not None and not self._marker_sent:
            self._marker_sent = True
            return pack(b"PING", _MARKER)
        return _PING if self._silence.ask(time.monotonic()) else b""

    def _take(self, quotes: list[Quote]) -> None:
        if self._held is not None:
            self._held.extend(quotes)
        elif quotes:
            newer = self._intake.take_events(quotes, in_order=self._up_to_date)
            self._intake.handover.offer(newer)

    def _apply(self, keys: list[Quote]) -> None:
        """Hand over what the keys tell beyond the events that have come."""
        intake, held = self._intake, self._held
        intake.handover.offer(intake.take_keys(keys))
        if held is not None:
            self._held = None
            self._take(cast("list[Quote]", held.take(len(held))))
        if not self._up_to_date:
            self._up_to_date = True
            self._connected()
        self._keys, self._marker_sent, self._reading_keys = None, False, False
