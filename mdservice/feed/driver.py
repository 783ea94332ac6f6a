"""The interface of a feed driver: it opens a connection, logs in, and speaks one vendor's protocol.

A driver returns decoded quotes and answers as the types below. It neither reconnects nor keeps the
subscriptions: :class:`mdservice.feed.connection.FeedConnection` does, for every driver and vendor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Literal, Protocol

import attrs

from mdservice.errors import FeedRefused, FeedUnavailable, Remedy
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import Topic
from mdservice.model.kinds import QUOTES, Kind, R
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL, is_symbol
from mdservice.model.timestamps import EARLIEST_NS, LATEST_NS

__all__ = [
    "CLOSE_TIMEOUT_S",
    "LONGEST_OPEN_TIMEOUT_S",
    "OPEN_TIMEOUT_S",
    "Acknowledged",
    "Driver",
    "Link",
    "LoginLimit",
    "Received",
    "RequestRefused",
]

OPEN_TIMEOUT_S = 3.0
"""How long connecting and logging in may take together, at first."""
LONGEST_OPEN_TIMEOUT_S = 15.0
"""The longest time for connecting and logging in, after several tries that ran out of time."""
CLOSE_TIMEOUT_S = 1.0
"""How long closing may take before the socket is dropped."""
_RAN_OUT = 0.95
"""The part of the limit after which a failed try counts as too slow; clocks differ a little."""
_PRICE_LIMIT, _SIZE_LIMIT = 1e15, 1e18


@attrs.define
class LoginLimit:
    """How long connecting and logging in may take: short at first, doubled if it was too short.

    It is short so that ``auto`` soon changes drivers, and grows so that a slow name server or a
    far proxy does not keep the service out for ever. The drivers of one feed share it. It covers
    all steps of a login: the name, TCP, a proxy, TLS, the upgrade, the greeting and the
    authentication.

    Attributes:
        seconds: The limit of the next try.
    """

    seconds: float = attrs.field(factory=lambda: OPEN_TIMEOUT_S)

    @contextmanager
    def one_try(self, time_s: Callable[[], float]) -> Iterator[float]:
        """One try to connect and log in; gives the seconds that it may take.

        Args:
            time_s: The event loop's clock, seconds.
        """
        limit_s, started_s = self.seconds, time_s()
        try:
            yield limit_s
        except FeedUnavailable:
            if time_s() - started_s >= limit_s * _RAN_OUT:
                self.seconds = max(limit_s, min(LONGEST_OPEN_TIMEOUT_S, limit_s * 2))
            raise
        self.seconds = OPEN_TIMEOUT_S


Cause = Literal["symbol_limit", "bad_symbol", "not_offered", "other"]
"""Why a request is refused: the feed gives no more symbols; it does not understand one of them; it
does not have what is asked for, whatever the symbols; or another reason."""


@attrs.frozen
class Acknowledged:
    """The feed's answer to a request: everything that is subscribed now."""

    topics: frozenset[Topic]


@attrs.frozen
class RequestRefused:
    """The feed's refusal of a whole request. The subscriptions are the same as before.

    Attributes:
        reason: What happened and what to do.
        words: The feed's own message, if it has one.
        cause: What the service may do about it.
        code: The feed's error code, or 0; only for display.
    """

    reason: str
    words: str = ""
    cause: Cause = "other"
    code: int = 0

    def as_error(self) -> FeedRefused:
        """The error to raise if the service cannot work without the request."""
        remedy: Remedy = "fix" if self.cause == "not_offered" else "retry"
        return FeedRefused(self.reason, code=self.code, remedy=remedy)


@attrs.define
class Received:
    """The decoded content of one read.

    Attributes:
        records: Of each kind that came, the records of symbols that are followed, in the order in
            which they came.
        controls: Answers to requests, likewise.
        errors: What could not be understood, counted: messages, or whole frames.
        others: Good messages that are neither records of a known kind nor answers.
        unfollowed: Good records of symbols that are not followed; they are left out.
    """

    records: dict[Kind[Any], list[Any]] = attrs.field(factory=dict)
    controls: list[Acknowledged | RequestRefused] = attrs.field(factory=list)
    errors: int = 0
    others: int = 0
    unfollowed: int = 0

    def of(self, kind: Kind[R]) -> list[R]:
        """The records of one kind; empty where none came."""
        return self.records.get(kind, [])

    def add_quote(self, quote: Quote, followed: Followed) -> None:
        """Add a quote, or count it where it is not valid or its symbol is not followed.

        A driver whose codec checks that itself, as Alpaca's does, fills ``records``.
        """
        if not _is_valid(quote):
            self.errors += 1
        elif followed.takes(QUOTES.channel, quote.symbol):
            self.records.setdefault(QUOTES, []).append(quote)
        else:
            self.unfollowed += 1

    def acknowledge(self, topics: Sequence[Topic], followed: Followed | None) -> None:
        """All that is subscribed now; a symbol that is none costs itself.

        Records that are added from now on are of that state.
        """
        valid = frozenset(t for t in topics if t.symbol == EVERY_SYMBOL or is_symbol(t.symbol))
        if len(valid) < len(topics):
            self.errors += sum(topic not in valid for topic in topics)
        self.acknowledged(valid, followed)

    def acknowledged(self, topics: frozenset[Topic], followed: Followed | None) -> None:
        """The same for topics that the driver has checked."""
        if followed is not None:
            followed.acknowledge(topics)
        self.controls.append(Acknowledged(topics))


def _is_valid(quote: Quote) -> bool:
    return (
        is_symbol(quote.symbol)
        and 0 <= quote.bid < _PRICE_LIMIT
        and 0 <= quote.ask < _PRICE_LIMIT
        and 0 <= quote.bid_size < _SIZE_LIMIT
        and 0 <= quote.ask_size < _SIZE_LIMIT
        and EARLIEST_NS <= quote.ts_event_ns <= LATEST_NS
    )


class Link(Protocol):
    """An open, authenticated connection."""

    async def subscribe(self, topics: Sequence[Topic]) -> None:
        """Ask for these channels of these symbols as well; the answer comes by :meth:`receive`.

        One request is under way at a time. It is answered with :class:`Acknowledged`, which names
        all that is subscribed, or with :class:`RequestRefused`; also where nothing changes.

        Raises:
            FeedUnavailable: The connection has ended.
        """
        ...

    async def unsubscribe(self, topics: Sequence[Topic]) -> None:
        """Ask for no more of these; answered as :meth:`subscribe` is.

        Raises:
            FeedUnavailable: The connection has ended.
        """
        ...

    async def receive(self) -> Received:
        """Wait for data, and return what has come.

        A cancelled call loses nothing. Where some waits already, it still lets other tasks run:
        nothing else holds back the loop that calls it. What came before the end of the connection
        is returned first.

        Raises:
            FeedUnavailable: The connection has ended.
            FeedRefused: The feed has ended it, and says why.
        """
        ...


class Driver(Protocol):
    """A way to reach the feed."""

    @property
    def name(self) -> str:
        """As in the settings and the status: ``alpaca-py`` or ``websockets``."""
        ...

    def connect(
        self, followed: Followed, utc_ns: Callable[[], int]
    ) -> AbstractAsyncContextManager[Link]:
        """Connect and log in, for as long as the block lasts.

        Gives up after :data:`OPEN_TIMEOUT_S`; a driver for slow ways takes a :class:`LoginLimit`.

        Closed at its end within :data:`CLOSE_TIMEOUT_S`, also when cancelled.

        Args:
            followed: What is taken. The link notes there what the feed acknowledges.
            utc_ns: The clock, UTC nanoseconds; stamps ``ts_recv_ns`` of what comes.

        Raises:
            FeedUnavailable: It cannot be reached, or does not answer in time.
            FeedRefused: It answered and said no.
            ConfigurationError: The driver itself cannot work here (not installed, say).
        """
        ...
