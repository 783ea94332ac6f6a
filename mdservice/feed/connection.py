"""The actor that holds one market-data connection: connect, log in, subscribe, read, again.

::

    idle (nothing is wanted)
       │
    connecting ──login──▶ subscribing ──acknowledged──▶ streaming
        ▲  │                   │                            │
        │  └──────failed───────┴──────────ended─────────────┘
        │                              │
        └── waiting (back-off) ◀───────┤
            waiting_for_slot (406) ◀───┤
            refused (after data) ◀─────┘   refused before any data: the service ends
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError, FeedError, FeedRefused, FeedUnavailable
from mdservice.feed.driver import Acknowledged, Received
from mdservice.feed.first_prices import FirstPrices
from mdservice.feed.gap_repair.recovery import Recovery
from mdservice.feed.liveness import Liveness
from mdservice.feed.requests import Command, SubscriptionRequests
from mdservice.feed.retries import DriverSelection, Retries
from mdservice.feed.send_queue import SendQueue
from mdservice.feed.session import Session, named
from mdservice.feed.subscriptions import FeedTap, Followed, SubscriptionSet
from mdservice.feed.unfulfilled import UnfulfilledTopics
from mdservice.model.events import FeedLost, FeedState, FeedStatus
from mdservice.model.feeds import STOCKS, Feed, Topic, symbols_of
from mdservice.model.kinds import QUOTES, Kind
from mdservice.model.status import FeedPhase
from mdservice.observability.logging import get_logger, masked
from mdservice.runtime.actor import Channel, Depth, Heartbeat
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.task_groups import run_together

__all__ = ["IDLE", "FeedConnection", "FeedSnapshot"]


# The feed connection at one moment.


@attrs.frozen
class FeedSnapshot:
    """The connection at one moment; the names are those of ``/status``."""

    phase: FeedPhase
    driver: str
    connected: bool
    subscribed: bool
    logins: int
    reconnects: int
    last_error: str | None
    wanted: int
    acknowledged: int
    left_out: Mapping[str, str]
    quotes_received: int
    records_received: Mapping[str, int]
    decode_errors: int
    unfollowed: int
    other_messages: int
    without_quotes: Sequence[str]
    history_refused: str | None
    history_set_aside: Mapping[str, str]
    history_symbols_refused: int
    silent: int
    silent_symbols: int


_log = get_logger(__name__)

IDLE: Final = "idle"
"""The phase of a connection while none of its topics is wanted."""
_LAST_WORDS_S = 0.5
_UNWANTED_S = 30.0
"""How long a connection stays open although nothing is wanted of it, when it opens on demand."""


class _NotWanted(Exception):
    """Nothing is wanted of the connection."""


def _leading(kind: Kind[Any], recoveries: Mapping[Kind[Any], Recovery[Any]]) -> Recovery[Any]:
    """The kind's own recovery, or that of the kind whose topics bring it, as trades corrections."""
    if kind in recoveries:
        return recoveries[kind]
    return next(each for each in recoveries.values() if each.brings(kind))


def _reasons(left_out: Mapping[Topic, str], acknowledged: Collection[Topic]) -> dict[str, str]:
    """Why each symbol lacks something: the reason for its first channel.

    If the feed gives other channels of the symbol, the missing ones are named:
    ``bars: not acknowledged``.
    """
    reasons: dict[str, str] = {}
    channels: dict[str, list[str]] = {}
    for topic in left_out:
        reasons.setdefault(topic.symbol, left_out[topic])
        channels.setdefault(topic.symbol, []).append(topic.channel)
    for symbol in {topic.symbol for topic in acknowledged}.intersection(reasons):
        reasons[symbol] = f"{', '.join(channels[symbol])}: {reasons[symbol]}"
    return reasons


class FeedConnection:
    """Owns one connection and what is subscribed on it.

    Args:
        feed: What the connection carries.
        selection: Which drivers there are, and which to try next.
        subscriptions: The wanted topics; changed only by this actor once it runs.
        commands: Requests to change them.
        send_queue: Takes the records and the changes of the feed's state, in order.
        clock: The time.
        backoff: The delays between tries.
        recoveries: For each kind, what recovers the records that a lost connection has missed. A
            kind without one comes with another kind's topics: its records wait while that kind is
            repaired.
        liveness: Judges the silence of an open connection.
        first_prices: Fetch the latest records of symbols that become wanted.
        rows_skipped: Returns how many of the history's rows could not be read.
        on_demand: Whether to connect only while something is wanted.
        ends_if_refused: Whether a refusal for good, before any data, ends :meth:`run`. Such as at
            a start, at which a person looks.
        keep_wire: Whether each record keeps the bytes of its message.
        tap: Gets what the connections carry, for the journal; None without one.
    """

    def __init__(
        self,
        feed: Feed,
        selection: DriverSelection,
        subscriptions: SubscriptionSet,
        commands: Channel[Command],
        send_queue: SendQueue,
        clock: Clock,
        backoff: Backoff,
        recoveries: Mapping[Kind[Any], Recovery[Any]],
        liveness: Liveness,
        first_prices: Sequence[FirstPrices[Any]] = (),
        rows_skipped: Callable[[], int] = lambda: 0,
        *,
        on_demand: bool = False,
        ends_if_refused: bool = True,
        keep_wire: bool = False,
        tap: FeedTap | None = None,
    ) -> None:
        self.name = "feed_connection" if feed is STOCKS else f"{feed.name}_connection"
        self.feed = feed
        self.heartbeat = Heartbeat(clock)
        self._selection = selection
        self._subscriptions = subscriptions
        self._unfulfilled = UnfulfilledTopics(subscriptions, self._expect, self._recover)
        self._inbox = commands.inbox(self.heartbeat, "commands")
        self._requests = SubscriptionRequests(
            subscriptions,
            self._inbox,
            lambda: self._session,
            self._subscriptions_changed,
            self._unfulfilled.room,
            self._note_wanted,
            self._until_opened,
        )
        self._send_queue = send_queue
        self._clock = clock
        self._retries = Retries(backoff)
        self._recoveries = recoveries
        self._leading = {kind: _leading(kind, recoveries) for kind in feed.kinds}
        self._liveness = liveness
        self._first_prices = first_prices
        self._rows_skipped = rows_skipped
        self._on_demand = on_demand
        self._ends_if_refused = ends_if_refused
        self._keep_wire = keep_wire
        self._tap = tap
        self._wanted = anyio.Event()
        """Set when the wanted topics change."""
        self._opened = anyio.Event()
        """Set when a connection that opens on demand is open, or has failed to open."""
        if not on_demand:
            self._opened.set()
        self._session: Session | None = None
        self._synced = False
        self._phase: FeedPhase = "connecting"
        self._last_error: str | None = None
        self._silent = 0
        self._silent_symbols = 0
        self._logins = 0
        self._data_has_come = False
        self._received: Counter[str] = Counter()
        self._decode_errors = 0
        self._other_messages = 0
        self._unfollowed = 0
        self._under_every: set[str] = set()
        self._stopping = anyio.Event()
        self._hands_over = False

    @property
    def depth(self) -> Depth:
        """How many requests wait."""
        return self._inbox.depth

    def snapshot(self) -> FeedSnapshot:
        """The connection now."""
        session = self._session
        recoveries = self._recoveries.values()
        unwanted = self._on_demand and session is None and not len(self._subscriptions)
        return FeedSnapshot(
            phase=IDLE if unwanted else self._phase,  # it may still be waiting after a failure
            driver=self._selection.current.name,
            connected=session is not None,
            subscribed=session is not None and self._synced,
            logins=self._logins,
            reconnects=max(0, self._logins - 1),
            last_error=self._last_error,
            wanted=len(self._subscriptions.symbols()),
            acknowledged=len(session.symbols()) if session else 0,
            left_out=_reasons(session.left_out, session.acknowledged) if session else {},
            quotes_received=self._received[QUOTES.channel],
            records_received=dict(self._received),
            decode_errors=(
                self._decode_errors
                + self._rows_skipped()
                + sum(each.decode_errors for each in recoveries)
            ),
            unfollowed=self._unfollowed + sum(each.unfollowed for each in recoveries),
            other_messages=self._other_messages,
            without_quotes=self._liveness.without_quotes(self._clock.utc_ns()) if session else (),
            history_refused=next((each.refused for each in recoveries if each.refused), None),
            history_set_aside={s: why for each in recoveries for s, why in each.set_aside.items()},
            history_symbols_refused=sum(each.symbols_refused for each in recoveries),
            silent=self._silent,
            silent_symbols=self._silent_symbols,
        )

    def vouched(self, kind: Kind[Any]) -> Collection[str]:
        """The symbols whose next record the open connection would bring; none without one."""
        return self._session.symbols(kind) if self._session is not None else ()

    def sources(self) -> dict[str, list[str]]:
        """Each wanted symbol with those who want it."""
        return self._subscriptions.sources()

    def wanted_by(self, source: str) -> frozenset[Topic]:
        """The topics that a source wants."""
        return self._subscriptions.wanted_by(source)

    def wishes(self) -> dict[str, list[Topic]]:
        """The topics that each source wants."""
        return self._subscriptions.by_source()

    def wants(self, kind: Kind[Any]) -> bool:
        """Whether a topic that brings records of the kind is wanted."""
        if kind not in self.feed.kinds:
            return False
        return any(topic.channel in kind.topics for topic in self._subscriptions.wanted)

    def topics_of(self, symbols: Collection[str]) -> tuple[Topic, ...]:
        """The wanted topics of these symbols."""
        return self._subscriptions.of_symbols(symbols)

    def acknowledged(self) -> list[Topic]:
        """The topics that the feed has acknowledged on the open connection, sorted by symbol."""
        topics = self._session.acknowledged if self._session else ()
        channels = self.feed.channels
        return sorted(topics, key=lambda topic: (topic.symbol, channels.index(topic.channel)))

    def left_out(self) -> dict[Topic, str]:
        """The wanted topics that the feed does not give, with its reason; empty in an outage."""
        why = self._session.why_left_out() if self._session else {}
        return {topic: why[topic] for topic in sorted(why) if topic in self._subscriptions}

    def stop(self, *, hand_over: bool = False) -> None:
        """Close the connection and the send queue; :meth:`run` then returns.

        Args:
            hand_over: Whether another run goes on at once; see :meth:`.Recovery.stop`.
        """
        self._hands_over = hand_over
        self._stopping.set()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Keep the feed connected until :meth:`stop`.

        Raises:
            FeedRefused: The feed refused for good, and no data had come before; see
                ``ends_if_refused``.
            ConfigurationError: The named driver cannot work here.
        """
        self.heartbeat.rest()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._requests.serve)
            for recovery in self._recoveries.values():
                tasks.start_soon(recovery.run)
            for first_prices in self._first_prices:
                tasks.start_soon(first_prices.run)
            tasks.start_soon(self._stay_connected)
            task_status.started()
            await self._stopping.wait()
            tasks.cancel_scope.cancel()
        self._phase = "stopped"
        for recovery in self._recoveries.values():
            recovery.stop(hand_over=self._hands_over)
        with anyio.move_on_after(_LAST_WORDS_S):
            await self._send_queue.flush()
        self._send_queue.close()

    # The connection's life

    async def _stay_connected(self) -> None:
        while True:
            await self._until_wanted()
            try:
                await self._connect_once()
            except _NotWanted:
                self._last_error = None
                continue
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
            self._opened.set()
            _log.info(
                "feed_waits", feed=self.feed.name, phase=self._phase, delay_s=round(delay_s, 2)
            )
            await anyio.sleep(delay_s)

    async def _until_wanted(self) -> None:
        """Wait until there is something to subscribe."""
        while self._on_demand and not len(self._subscriptions):
            self._phase = IDLE
            self._opened = anyio.Event()
            self._wanted = anyio.Event()
            await self._wanted.wait()

    async def _until_opened(self) -> None:
        await self._opened.wait()

    async def _until_unwanted(self) -> None:
        """Return once nothing has been wanted for a while; then another program may connect."""
        while True:
            self._wanted = anyio.Event()
            if self._on_demand and not len(self._subscriptions):
                with anyio.move_on_after(_UNWANTED_S):
                    await self._wanted.wait()
                    continue
                raise _NotWanted
            await self._wanted.wait()

    def _note_wanted(self) -> None:
        self._wanted.set()

    async def _connect_once(self) -> None:
        """One connection from start to end; always ends with an exception."""
        self._phase = "connecting"
        driver = self._selection.current
        logged_in = False
        followed = Followed(self._under_every)
        followed.keep_wire = self._keep_wire
        followed.tap = self._tap
        if self._tap is not None:
            self._tap.connecting(driver.name)
        try:
            async with driver.connect(followed, self._clock.utc_ns) as link:
                logged_in = True
                await self._hold(Session(link, followed))
        except FeedError as exc:
            self._last_error = masked(str(exc))
            if isinstance(exc, FeedUnavailable) and not logged_in:
                self._selection.start_failed()
            raise
        except _NotWanted:
            self._last_error = "nothing is wanted of this feed any more"
            raise
        finally:
            if logged_in:
                await self._lost()

    async def _hold(self, session: Session) -> None:
        self._logins += 1
        self._synced = False
        self._phase = "subscribing"
        self._session = session
        for recovery in self._recoveries.values():
            recovery.begin()
        self._liveness.begin()
        driver = self._selection.current.name
        if self._selection.logged_in():
            _log.warning(
                "feed_driver_changed", feed=self.feed.name, driver=driver, reason=self._last_error
            )
            await self._send_status("fallback", driver=driver, reason=self._last_error)
        _log.info("feed_connected", feed=self.feed.name, driver=driver)
        await self._send_status("connected", driver=driver)
        await run_together(
            partial(self._read, session), partial(self._begin, session), self._until_unwanted
        )

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
            self._leading[kind].add_live(kind, records)
        await self._send_queue.flush()

    def _note(self, received: Received) -> None:
        """Count what was read; data ends the back-off."""
        self._decode_errors += received.errors
        self._other_messages += received.others
        self._unfollowed += received.unfollowed
        for control in received.controls:
            if isinstance(control, Acknowledged):
                self._liveness.subscribed(control.topics, self._clock.utc_ns())
        for kind, records in received.records.items():
            self._received[kind.channel] += len(records)
            self._data_has_come = True
            self._liveness.data_came(kind, records)
            self._retries.reset()

    async def _lost(self) -> None:
        """Report that the link has ended, also by cancellation.

        Without room in the queue within a moment, the queue sends the report later.
        """
        followed = self._session.acknowledged if self._session else frozenset()
        self._session = None
        self._synced = False
        for kind, recovery in self._recoveries.items():
            recovery.lost(symbols_of(followed, kind))
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
        await self._recover(session)
        await self._unfulfilled.keep_asking(session)

    # What a lost connection has missed, kind by kind

    def _expect(self, topics: Collection[Topic]) -> None:
        for kind, recovery in self._recoveries.items():
            recovery.expect(symbols_of(topics, kind))

    async def _recover(self, session: Session) -> None:
        """Recover what is missing of each kind, all kinds at once.

        A kind that nothing wants yet takes part: its symbols may be subscribed later.
        """
        calls = []
        for kind, recovery in self._recoveries.items():
            followed = session.symbols(kind)
            left_out = symbols_of(session.left_out, kind)
            calls.append(partial(recovery.repair, followed, left_out))
        await run_together(*calls)

    async def _subscriptions_changed(self, session: Session) -> None:
        for kind, recovery in self._recoveries.items():
            await recovery.subscriptions_changed(
                session.symbols(kind), symbols_of(session.left_out, kind)
            )

    async def _subscribe_wanted(self, session: Session) -> None:
        """Subscribe all that is wanted, also what was asked for meanwhile."""
        while missing := session.missing(self._subscriptions.wanted):
            refused = await session.subscribe_what_fits(missing)
            if refused is not None:
                raise refused.as_error()
        if session.left_out:
            _log.warning(
                "feed_symbols_left_out",
                feed=self.feed.name,
                count=len(session.left_out),
                symbols=[named([topic]) for topic in sorted(session.left_out)[:50]],
                reason=next(iter(session.left_out.values())),
            )
        self._synced = True
        self._opened.set()
        self._phase = "streaming"
        self._retries.subscribed(self._clock.monotonic())
        _log.info("feed_subscribed", feed=self.feed.name, symbols=len(session.symbols()))

    async def _delay_after_refusal(self, exc: FeedRefused) -> float:
        self._failed(exc)
        retry = self._retries.after_refusal(exc, self._clock.monotonic())
        self._phase = retry.phase
        if retry.for_good:
            await self._send_status("fatal", reason=self._last_error, code=exc.code)
            if not self._data_has_come and self._ends_if_refused:
                await anyio.sleep(_LAST_WORDS_S)  # the last words reach the store first
                raise exc
        return retry.delay_s

    def _failed(self, exc: Exception) -> None:
        self._last_error = masked(str(exc))
        if self._tap is not None:
            self._tap.failed(self._last_error)
        _log.warning(
            "feed_failed",
            feed=self.feed.name,
            driver=self._selection.current.name,
            reason=self._last_error,
        )

    async def _send_stale(self, reason: str, **details: Any) -> None:
        self._silent += "symbols" not in details  # else the connection stays
        self._silent_symbols += len(details.get("symbols", ()))
        _log.warning("feed_is_mute", feed=self.feed.name, reason=reason, **details)
        await self._send_status("stale", reason=reason, **details)

    async def _send_status(self, state: FeedState, **details: Any) -> None:
        await self._send_queue.send(
            FeedStatus(state, self._clock.utc_ns(), details, self.feed.name)
        )
