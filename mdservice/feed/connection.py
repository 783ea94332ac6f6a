"""The actor that holds the market-data connection: connect, log in, subscribe, read, again.

::

    connecting ──login──▶ subscribing ──acknowledged──▶ streaming
        ▲  │                   │                            │
        │  └──────failed───────┴──────────ended─────────────┘
        │                              │
        └── waiting (back-off) ◀───────┤
            waiting_for_slot (406) ◀───┤
            refused (after data) ◀─────┘   refused before any data: the service ends
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError, FeedError, FeedRefused, FeedUnavailable
from mdservice.feed.driver import Acknowledged, Received
from mdservice.feed.first_prices import FirstPrices
from mdservice.feed.gap_repair.repair import GapRepair
from mdservice.feed.liveness import Liveness
from mdservice.feed.requests import Command, SubscriptionRequests
from mdservice.feed.retries import DriverSelection, Retries
from mdservice.feed.send_queue import SendQueue
from mdservice.feed.session import Session
from mdservice.feed.subscriptions import Followed, SubscriptionSet
from mdservice.feed.unfulfilled import UnfulfilledSymbols
from mdservice.model.events import FeedLost, FeedState, FeedStatus, RecordBatch
from mdservice.observability.logging import get_logger, masked
from mdservice.runtime.actor import Channel, Depth, Heartbeat
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.task_groups import run_together

__all__ = ["FeedConnection", "FeedSnapshot"]


# The feed connection at one moment.


@attrs.frozen
class FeedSnapshot:
    """The connection at one moment; the names are those of ``/status``."""

    phase: str
    driver: str
    connected: bool
    subscribed: bool
    logins: int
    reconnects: int
    last_error: str | None
    wanted: int
    acknowledged: int
    left_out: dict[str, str]
    quotes_received: int
    decode_errors: int
    unfollowed: int
    other_messages: int
    without_quotes: Sequence[str]
    history_refused: str | None
    history_set_aside: Mapping[str, str]
    history_symbols_refused: int


_log = get_logger(__name__)

_LAST_WORDS_S = 0.5


class FeedConnection:
    """Owns the one connection and what is subscribed on it.

    Args:
        selection: Which drivers there are, and which to try next.
        book: Which symbols are wanted; changed only by this actor once it runs.
        commands: Requests to change them.
        send_queue: Takes the quotes and the changes of the feed's state, in order.
        clock: The time.
        backoff: The delays between tries.
        repair: Fetches what a lost connection has missed.
        liveness: Judges the silence of an open connection.
        first_prices: Fetches the latest quotes of symbols that become wanted.
    """

    name = "feed_connection"

    def __init__(
        self,
        selection: DriverSelection,
        book: SubscriptionSet,
        commands: Channel[Command],
        send_queue: SendQueue,
        clock: Clock,
        backoff: Backoff,
        repair: GapRepair[Any],
        liveness: Liveness,
        first_prices: FirstPrices[Any],
    ) -> None:
        self.heartbeat = Heartbeat(clock)
        self._selection = selection
        self._book = book
        self._unfulfilled = UnfulfilledSymbols(book, repair)
        self._inbox = commands.inbox(self.heartbeat, "commands")
        self._requests = SubscriptionRequests(
            book,
            self._inbox,
            lambda: self._session,
            repair.subscriptions_changed,
            self._unfulfilled.room,
        )
        self._send_queue = send_queue
        self._clock = clock
        self._retries = Retries(backoff)
        self._repair = repair
        self._liveness = liveness
        self._first_prices = first_prices
        self._session: Session | None = None
        self._synced = False
        self._phase = "connecting"
        self._last_error: str | None = None
        self._logins = 0
        self._data_has_come = False
        self._quotes_received = 0
        self._decode_errors = 0
        self._other_messages = 0
        self._unfollowed = 0
        self._under_every: set[str] = set()
        self._stopping = anyio.Event()

    @property
    def depth(self) -> Depth:
        """How many requests wait."""
        return self._inbox.depth

    def snapshot(self) -> FeedSnapshot:
        """The connection now."""
        session = self._session
        return FeedSnapshot(
            phase=self._phase,
            driver=self._selection.current.name,
            connected=session is not None,
            subscribed=session is not None and self._synced,
            logins=self._logins,
            reconnects=max(0, self._logins - 1),
            last_error=self._last_error,
            wanted=len(self._book),
            acknowledged=len(session.acknowledged) if session else 0,
            left_out=dict(session.left_out) if session else {},
            quotes_received=self._quotes_received,
            decode_errors=self._decode_errors + self._repair.decode_errors,
            unfollowed=self._unfollowed + self._repair.unfollowed,
            other_messages=self._other_messages,
            without_quotes=self._liveness.without_quotes(self._clock.utc_ns()) if session else (),
            history_refused=self._repair.refused,
            history_set_aside=self._repair.set_aside,
            history_symbols_refused=self._repair.symbols_refused,
        )

    def vouched(self) -> frozenset[str]:
        """The symbols whose next quote the open connection would bring; none without one."""
        return self._session.acknowledged if self._session is not None else frozenset()

    def sources(self) -> dict[str, list[str]]:
        """Each wanted symbol with those who want it."""
        return self._book.sources()

    def acknowledged(self) -> list[str]:
        """The symbols that the feed has acknowledged on the open connection, sorted."""
        return sorted(self._session.acknowledged) if self._session else []

    def left_out(self) -> dict[str, str]:
        """The wanted symbols that the feed does not give, with its words; none in an outage."""
        why = self._session.why_left_out() if self._session else {}
        return {symbol: why[symbol] for symbol in sorted(why) if symbol in self._book}

    def stop(self) -> None:
        """Close the connection and the send queue; :meth:`run` then returns."""
        self._stopping.set()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Keep the feed connected until :meth:`stop`.

        Raises:
            FeedRefused: The feed refused for good, and no data had come before.
            ConfigurationError: The named driver cannot work here.
        """
        self.heartbeat.rest()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._requests.serve)
            tasks.start_soon(self._repair.keep_limit)
            tasks.start_soon(self._repair.tell_late)
            tasks.start_soon(self._first_prices.run)
            tasks.start_soon(self._stay_connected)
            task_status.started()
            await self._stopping.wait()
            tasks.cancel_scope.cancel()
        self._phase = "stopped"
        await self._repair.stop()
        self._send_queue.close()

    # The connection's life

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._connect_once()
            except FeedRefused as exc:
                delay_s = await self._delay_after_refusal(exc)
            except ConfigurationError as exc:
                self._failed(exc)
                before = self._selection.current
                self._selection.start_failed(unusable=True)
                if self._selection.current is before:
                    raise
                delay_s = 0.0
            except FeedUnavailable as exc:
                self._failed(exc)
                retry = self._retries.after_failure(self._clock.monotonic())
                self._phase, delay_s = retry.phase, retry.delay_s
            _log.info("feed_waits", phase=self._phase, delay_s=round(delay_s, 2))
            await anyio.sleep(delay_s)

    async def _connect_once(self) -> None:
        """One connection from start to end; always ends with an exception."""
        self._phase = "connecting"
        driver = self._selection.current
        logged_in = False
        followed = Followed(self._under_every)
        try:
            async with driver.connect(followed, self._clock.utc_ns) as link:
                logged_in = True
                await self._hold(Session(link, followed))
        except FeedError as exc:
            self._last_error = masked(str(exc))
            if isinstance(exc, FeedUnavailable) and not logged_in:
                self._selection.start_failed()
            raise
        finally:
            if logged_in:
                await self._lost()

    async def _hold(self, session: Session) -> None:
        self._logins += 1
        self._synced = False
        self._phase = "subscribing"
        self._session = session
        self._repair.begin()
        self._liveness.begin()
        driver = self._selection.current.name
        if self._selection.logged_in():
            _log.warning("feed_driver_changed", driver=driver, reason=self._last_error)
            await self._send_status("fallback", driver=driver, reason=self._last_error)
        _log.info("feed_connected", driver=driver)
        await self._send_status("connected", driver=driver)
        await run_together(partial(self._read, session), partial(self._begin, session))

    async def _read(self, session: Session) -> None:
        """Read until the connection ends."""
        with session.reading() as link:
            while True:
                received = await link.receive()
                self._note(received)
                if received.records:
                    self.heartbeat.beat("reader")
                    try:
                        await self._send(received)
                    finally:
                        self.heartbeat.rest("reader")  # it waits for the feed again
                session.take(received)

    async def _send(self, received: Received) -> None:
        """Send the records of all kinds. A cancelled wait leaves all of them to the send queue."""
        for kind, records in received.records.items():
            if kind is self._repair.kind:
                self._repair.add_live(records)
            else:
                self._send_queue.add(RecordBatch(kind, records))
        await self._send_queue.flush()

    def _note(self, received: Received) -> None:
        """Count what was read; data ends the back-off."""
        self._decode_errors += received.errors
        self._other_messages += received.others
        self._unfollowed += received.unfollowed
        for control in received.controls:
            if isinstance(control, Acknowledged):
                self._liveness.subscribed(control.symbols, self._clock.utc_ns())
        for records in received.records.values():
            self._quotes_received += len(records)
            self._data_has_come = True
            self._liveness.data_came(records)
            self._retries.reset()

    async def _lost(self) -> None:
        """The link has ended, also by cancellation: say so, within a moment, else later."""
        followed = self._session.acknowledged if self._session else frozenset()
        self._session = None
        self._synced = False
        self._repair.lost(followed)
        lost = FeedLost(self._clock.utc_ns(), followed, self._last_error or "stopped")
        with anyio.move_on_after(_LAST_WORDS_S, shield=True):
            await self._send_queue.send(lost)

    async def _begin(self, session: Session) -> None:
        await self._subscribe_wanted(session)
        await run_together(
            partial(self._stay_whole, session),
            partial(self._liveness.watch, self._send_stale),
        )

    async def _stay_whole(self, session: Session) -> None:
        await self._repair.repair(session.acknowledged, session.left_out)
        await self._unfulfilled.keep_asking(session)

    async def _subscribe_wanted(self, session: Session) -> None:
        """Subscribe all that is wanted, also what was asked for meanwhile."""
        while missing := session.missing(self._book.wanted):
            refused = await session.subscribe_what_fits(missing)
            if refused is not None:
                raise refused.as_error()
        if session.left_out:
            _log.warning(
                "feed_symbols_left_out",
                count=len(session.left_out),
                symbols=sorted(session.left_out)[:50],
                reason=next(iter(session.left_out.values())),
            )
        self._synced = True
        self._phase = "streaming"
        self._retries.subscribed(self._clock.monotonic())
        _log.info("feed_subscribed", symbols=len(session.acknowledged))

    async def _delay_after_refusal(self, exc: FeedRefused) -> float:
        self._failed(exc)
        retry = self._retries.after_refusal(exc, self._clock.monotonic())
        self._phase = retry.phase
        if retry.for_good:
            await self._send_status("fatal", reason=self._last_error, code=exc.code)
            if not self._data_has_come:
                await anyio.sleep(_LAST_WORDS_S)  # the last words reach the store first
                raise exc
        return retry.delay_s

    def _failed(self, exc: Exception) -> None:
        self._last_error = masked(str(exc))
        _log.warning("feed_failed", driver=self._selection.current.name, reason=self._last_error)

    async def _send_stale(self, reason: str) -> None:
        _log.warning("feed_is_mute", reason=reason)
        await self._send_status("stale", reason=reason)

    async def _send_status(self, state: FeedState, **details: Any) -> None:
        await self._send_queue.send(FeedStatus(state, self._clock.utc_ns(), details))
