"""What recovers the records that a lost connection has missed; one for each kind of a feed.

:class:`~mdservice.feed.gap_repair.repair.GapRepair` fetches them from history, and without a
history it only reports the gap. :class:`Refresh` brings the latest values up to date.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Generic

import anyio

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.gap_repair.missing import AcceptedRecords
from mdservice.feed.history import HalvingHistory
from mdservice.feed.send_queue import SendQueue
from mdservice.model.events import FeedResumed, FirstRecords, RecordBatch, Refreshed
from mdservice.model.kinds import Kind, R
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger

__all__ = ["REFRESH_LIMIT_S", "Recovery", "Refresh"]

_log = get_logger(__name__)

REFRESH_LIMIT_S = 10.0
"""How long the latest values may take; after that the gap is reported without them."""
_REQUEST_LIMIT_S = 3.0
"""The same while a request to subscribe waits for it."""
_PAUSE_S = 0.5


class Recovery(ABC, Generic[R]):
    """Recovers one kind over all connections of a feed.

    Args:
        kind: The kind of the records.
        history: The source of past and latest records; None if the feed has none of this kind.
        accepted: The accepted records.
        send_queue: Sends records and changes of state to the router.
        clock: The time.
    """

    def __init__(
        self,
        kind: Kind[R],
        history: HalvingHistory[R] | None,
        accepted: AcceptedRecords,
        send_queue: SendQueue,
        clock: Clock,
    ) -> None:
        self.kind = kind
        self._history = history
        self._accepted = accepted
        self._send_queue = send_queue
        self._clock = clock
        self._refused: str | None = None

    @property
    def refused(self) -> str | None:
        """Why history refused the last recovery as a whole, or None."""
        return self._refused

    @property
    def set_aside(self) -> Mapping[str, str]:
        """The symbols that history refuses, with the reason. Their gaps remain."""
        return self._history.set_aside if self._history is not None else {}

    @property
    def symbols_refused(self) -> int:
        """How often history refused a symbol."""
        return self._history.symbols_refused if self._history is not None else 0

    @property
    def decode_errors(self) -> int:
        """The number of fetched records with an invalid symbol."""
        return self._history.decode_errors if self._history is not None else 0

    @property
    def unfollowed(self) -> int:
        """The number of fetched records of symbols that were not requested."""
        return self._history.unfollowed if self._history is not None else 0

    def brings(self, kind: Kind[Any]) -> bool:
        """Whether records of this kind come with its topics."""
        return not set(kind.topics).isdisjoint(self.kind.topics)

    @abstractmethod
    def begin(self) -> None:
        """Note that a connection is open."""

    @abstractmethod
    def symbols(self) -> frozenset[str]:
        """The symbols with missing records."""

    @abstractmethod
    def lost(self, followed: Iterable[str]) -> None:
        """Note that the connection has ended, and that records of its symbols are missing."""

    @abstractmethod
    def expect(self, symbols: Iterable[str]) -> None:
        """Note that these symbols are about to be asked for again."""

    @abstractmethod
    def add_live(self, kind: Kind[Any], records: Sequence[Any]) -> None:
        """Send live records, at once or after those that are being recovered."""

    @abstractmethod
    async def repair(self, followed: Collection[str], left_out: Collection[str] = ()) -> None:
        """Recover what is missing of the followed symbols, and report it."""

    @abstractmethod
    async def subscriptions_changed(
        self, followed: Collection[str], left_out: Collection[str]
    ) -> None:
        """Report what a request has changed while the connection is open."""

    @abstractmethod
    async def run(self) -> None:
        """Do what remains after a recovery, until cancelled or done."""

    @abstractmethod
    def stop(self, *, hand_over: bool = False) -> None:
        """Add everything that waits to the send queue.

        Args:
            hand_over: Whether another run goes on at once from what is published. Then nothing is
                added: it recovers what waits, together with what is missing before it.
        """


class Refresh(Recovery[R]):
    """Brings the latest values up to date after a lost connection; the gap between them stays.

    Args:
        kind: The kind of the records.
        history: Where the latest records are fetched. None for records whose whole value comes
            after subscribing, as of an order book.
        accepted: The accepted records.
        send_queue: Sends records and changes of state to the router.
        clock: The time.
    """

    def __init__(
        self,
        kind: Kind[R],
        history: HalvingHistory[R] | None,
        accepted: AcceptedRecords,
        send_queue: SendQueue,
        clock: Clock,
    ) -> None:
        super().__init__(kind, history, accepted, send_queue, clock)
        self._missing: set[str] = set()
        self._awaited: set[str] = set()
        """Symbols whose whole value has not come since subscribing."""
        self._came = anyio.Event()
        self._connected_before = False
        self._losses = 0
        self._resumed = False
        self._left_out: frozenset[str] = frozenset()

    def begin(self) -> None:
        """Note that a connection is open."""
        if not self._connected_before:  # the end of an earlier run counts as a lost connection
            self._missing.update(self._accepted.symbols())
            self._connected_before = True
        self._resumed = False
        self._awaited = set(self._missing) if self._history is None else set()

    def symbols(self) -> frozenset[str]:
        """The symbols with missing records."""
        return frozenset(self._missing)

    def lost(self, followed: Iterable[str]) -> None:
        """Note that records of these symbols are missing."""
        self._losses += 1
        self._missing.update(symbol for symbol in followed if symbol != EVERY_SYMBOL)

    def expect(self, symbols: Iterable[str]) -> None:
        """Note that these symbols are about to be asked for again."""

    def add_live(self, kind: Kind[Any], records: Sequence[Any]) -> None:
        """Send live records at once."""
        self._send_queue.add(RecordBatch(kind, records))
        if self._awaited and kind is self.kind:
            self._awaited.difference_update(record.symbol for record in records)
            self._came.set()
            self._came = anyio.Event()

    async def repair(self, followed: Collection[str], left_out: Collection[str] = ()) -> None:
        """Report the subscribed symbols, and bring the latest values of the missing ones."""
        await self._repair(followed, left_out, REFRESH_LIMIT_S)

    async def _repair(
        self, followed: Collection[str], left_out: Collection[str], limit_s: float
    ) -> None:
        self._resumed = True
        losses = self._losses
        back = sorted(self._missing.intersection(followed))
        self._missing.intersection_update(left_out)
        await self._resume(followed, left_out, refreshing=bool(back))
        if not back:
            return
        with anyio.move_on_after(limit_s):
            if self._history is None:
                await self._until_whole(frozenset(back))
            else:
                await self._fetch(self._history, back)
        if self._losses != losses:
            return  # while a request waited; the next connection reports it
        refreshed = frozenset(back) - self._awaited
        if self._history is not None and self._refused is not None:
            refreshed = frozenset()
        refreshed -= self.set_aside.keys()
        self._send_queue.add(
            Refreshed(self.kind, self._clock.utc_ns(), refreshed, frozenset(back) - refreshed)
        )
        await self._send_queue.flush()

    async def _until_whole(self, symbols: frozenset[str]) -> None:
        """Wait until each symbol's whole value has come."""
        while not self._awaited.isdisjoint(symbols):
            await self._came.wait()

    async def _fetch(self, history: HalvingHistory[R], symbols: Sequence[str]) -> None:
        self._refused = "no answer"
        while True:
            asked_ns = self._clock.utc_ns()
            try:
                found = await history.latest(symbols)
            except HistoryRefused as exc:
                self._refused = str(exc)
                _log.warning("refresh_refused", channel=self.kind.channel, reason=str(exc))
                return
            except HistoryUnavailable as exc:
                self._refused = str(exc)
                _log.warning("refresh_failed", channel=self.kind.channel, reason=str(exc))
                await anyio.sleep(_PAUSE_S)
                continue
            self._refused = None
            if found.records:
                asked = dict.fromkeys(symbols, asked_ns)
                self._send_queue.add(FirstRecords(self.kind, found.records, asked))
            return

    async def subscriptions_changed(
        self, followed: Collection[str], left_out: Collection[str]
    ) -> None:
        """Report symbols that a request has subscribed again."""
        if not self._resumed:
            return  # :meth:`repair` will report it
        if self._left_out.intersection(followed):
            await self._repair(followed, left_out, _REQUEST_LIMIT_S)
        else:
            self._left_out = frozenset(left_out)

    async def _resume(
        self, followed: Collection[str], left_out: Collection[str], *, refreshing: bool
    ) -> None:
        self._left_out = frozenset(left_out)
        await self._send_queue.send(
            FeedResumed(
                self.kind,
                self._clock.utc_ns(),
                frozenset(followed),
                repairing=False,
                left_out=self._left_out,
                refreshing=refreshing,
            )
        )

    async def run(self) -> None:
        """Nothing remains after a refresh."""

    def stop(self, *, hand_over: bool = False) -> None:
        """Nothing waits."""
