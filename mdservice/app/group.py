"""A member of a standby group: it stands by until the lease is free, then leads.

::

    stand by ──lease free──▶ claim ──▶ read the last records ──▶ build and run the parts
       ▲                                                              │
       ├──────────deposed, or the lease could not be renewed──────────┤
       └ end ◀────────────────drained, lease released─────────────────┘

Each term is like a start of the service: the parts are built again, and gaps are repaired from the
last published records. What programs hold stays: the API, the readers in this process, positions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import attrs
import msgspec
from anyio.abc import TaskStatus

from mdservice.app.progress import Complete, Progress
from mdservice.app.service import DRAIN_LIMIT_S, Plan, Service, StoreMaker
from mdservice.app.topology import HELD_SOURCE, FeedParts, Pipeline, Topology
from mdservice.errors import (
    ConfigurationError,
    Deposed,
    HistoryRefused,
    HistoryUnavailable,
    NoHistory,
    StoreError,
)
from mdservice.feed.history import HalvingHistory
from mdservice.model.events import FeedStatus, LateRecords
from mdservice.model.feeds import STOCKS, Topic
from mdservice.model.kinds import NEWS, QUOTES, Kind
from mdservice.model.status import Readiness, StandbyReport, Status
from mdservice.observability.logging import get_logger, masked
from mdservice.positions.tracker import SOURCE as POSITIONS_SOURCE
from mdservice.publish.lease import (
    LEASE_S,
    LOOK_EVERY_S,
    RENEW_EVERY_S,
    Leader,
    Lease,
    MovingLease,
    this_process,
)
from mdservice.publish.store import PriceStore
from mdservice.relay.wishes import SOURCE as RELAY_SOURCE
from mdservice.runtime.supervisor import LIVE_WITHIN_S
from mdservice.runtime.task_groups import block_tasks

if TYPE_CHECKING:
    from mdservice.journal.recorder import Recorder
    from mdservice.publish.instances import Instances
    from mdservice.redis_io.names import Instance
    from mdservice.router.sequencer import Sequencer

__all__ = ["HELD_FOR_S", "Member"]

_log = get_logger(__name__)
_T = TypeVar("_T")

HELD_FOR_S: Final = 60.0
"""How long the symbols of the last leader's relay and positions are kept, seconds."""
_GROUPLESS_S: Final = 0.5
"""How often a standby looks whether a service without a group still runs, seconds."""
_AGAIN_S: Final = 0.2
"""The pause before another try after Redis has failed, seconds."""
_LEAST_S: Final = 0.2
"""How long a renewal may take at least, seconds: also after a stall it is tried once."""
_WARM_S: Final = 2.0
"""How often a standby reads the last records, seconds; less often if that takes long."""
_SHARE: Final = 0.05
"""The share of the time that this may take."""
_WARM_AT_MOST_S: Final = 10.0
"""How long a standby waits at most: a slow Redis, or a process that was stopped, is no work."""
_POLL_S: Final = 1.0
"""How often a standby asks for positions at most."""
_REFRESH_S: Final = 1.0
"""How often quotes are refreshed from REST until the feed is connected, seconds."""
_AFTER_REFUSAL_S = 5.0
"""How long REST is left alone after a refusal, such as that of too many calls a minute."""
_REFRESH_LIMIT_S: Final = 5.0
_OVERLAP_NS: Final = 5_000_000_000
"""How long before the last record REST is asked from: it may be late."""
_MOST_REFRESHED: Final = 1_000
"""For how many symbols quotes are refreshed."""
_END_S: Final = 1.0
"""The limit for closing the relay and the journal of a deposed leader, seconds."""


class _Wishes(msgspec.Struct, frozen=True):
    """What the programs of a leader want, for the next one.

    Attributes:
        sources: The topics, as channel and symbol, that each source but the settings wants.
        removed: The topics of the settings that are not wanted any more.
        complete: The time up to which all is published, by feed and channel, UTC nanoseconds.
    """

    sources: dict[str, list[tuple[str, str]]] = {}
    removed: list[tuple[str, str]] = []
    complete: Complete = {}


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Wishes)


class Member:
    """A service in a group. It leads while it has the lease, and stands by otherwise.

    Args:
        plan: What its parts are built from.
        make_store: Makes the store of each term; None for the Redis of the settings.
        lease: The lease; None for that in the Redis of the settings.

    Attributes:
        service: What the API and embedders use.
    """

    def __init__(self, plan: Plan, make_store: StoreMaker | None, lease: Lease | None) -> None:
        self._plan = plan
        self._clock = plan.clock
        self._group = plan.settings.group or "group"
        self._instances: Callable[[str], Instances | None] = lambda _name: None
        self._others: Instances | None = None
        self._groupless: Instance | None = None
        """A service without a group that writes here, after which this group leads."""
        if lease is None:
            from mdservice.redis_io.lease import RedisLease

            redis_lease = RedisLease(
                str(plan.resolved.redis_url),
                self._group,
                this_process(plan.settings.socket),
                clock=plan.clock,
                prefix=plan.settings.key_prefix,
            )
            lease = redis_lease
            admit = redis_lease.admit("instances")
            self._instances = lambda name: plan.instances(name, admit)
            self._others = plan.instances(lease.own.id)
            make_store = make_store or partial(_redis_store, plan, redis_lease.admit("store"))
        if make_store is None:
            raise ConfigurationError("open_service takes lease= with a function as store=")
        self._lease = lease
        self._make_store = make_store
        self._reader = make_store(None)
        self._settings_topics = plan.topics()
        self._leader: Leader | None = None
        self._leads = False
        self._refreshing: frozenset[str] = frozenset()
        """The feeds whose prices come from REST."""
        self._standby_alive = False
        self._rivals = True
        """Whether another member may lead next; not known before the first renewal of a term."""
        self._terms = 0
        self._dropped = 0
        self._lost: str | None = None
        """Why the term has ended, if not by :meth:`stop`."""
        self._may_have_claimed = False
        """Whether the last claim had no answer."""
        self._running: Topology | None = None
        """The parts of this term, once they run."""
        self._progress = Progress({})
        self._has_stood_by = False
        self._looked_s = self._clock.monotonic()
        self._stopping = anyio.Event()
        self._stopped = anyio.Event()
        self._idle = self._build_idle((), {})
        """Parts that do not run, with the last records, while another service leads."""
        self.service = Service(
            plan.settings,
            self._idle,
            plan.clock,
            plan.resolved,
            plan.facts,
            group=self,
        )

    # What the service shows

    @property
    def standing_by(self) -> str | None:
        """Why the service does not serve; None while it leads."""
        if self._leads:
            return None
        leader, groupless = self._leader, self._groupless
        if leader is None and groupless is not None:
            return (
                f"stands by: {groupless.host} (process {groupless.pid}) writes here without a "
                f"group since {groupless.since}; group {self._group} leads once it has ended"
            )
        if leader is None:
            error = self._lease.last_error
            why = f": Redis is not connected: {error}" if error is not None else ""
            return f"stands by: no service leads group {self._group}{why}"
        return (
            f"stands by: {leader.shown} leads group {self._group} since {leader.since}, with its "
            f"socket at {leader.socket}"
        )

    @property
    def taking_over(self) -> tuple[str, ...]:
        """Why prices are not live yet in this term."""
        running = self._running
        if not self._refreshing or running is None:
            return ()
        feeds = ", ".join(
            pipeline.feed.name
            for pipeline in running.pipelines
            if pipeline.feed.name in self._refreshing and not pipeline.connection.snapshot().logins
        )
        if not feeds:
            return ()
        return (f"took the lead: quotes of {feeds} come from REST until the feed is connected",)

    def status(self, status: Status) -> Status:
        """The status, with the group."""
        leader = self._lease.own if self._leads else self._leader
        report = StandbyReport(
            group=self._group,
            leader=None if leader is None else leader.shown,
            epoch=0 if leader is None else leader.epoch,
            since=None if leader is None else leader.since,
            leads=self._leads,
            standby_alive=self._standby_alive if self._leads else True,
            terms=self._terms,
            dropped=self._dropped,
        )
        if self._leads:
            # Prices were live before, so a leader that waits for its feed does not just start.
            waits = status.state == "starting" and report.epoch > 1
            state = "degraded" if waits else status.state
            return attrs.evolve(status, state=state, standby=report)
        feeds = {
            name: attrs.evolve(feed, phase="idle", last_error=None)
            for name, feed in status.feeds.items()
        }
        error = self._lease.last_error
        draining = status.state == "draining"
        return attrs.evolve(
            status,
            state="draining" if draining else "standby",
            reasons=status.reasons[:1] if draining else (f"the service {self.standing_by}",),
            feed=attrs.evolve(status.feed, phase="idle", last_error=None),
            feeds=feeds,
            redis=attrs.evolve(status.redis, connected=error is None, last_error=error),
            standby=report,
        )

    def liveness(self) -> Readiness:
        """Whether a standby still looks for its leader."""
        age_s = self._clock.monotonic() - self._looked_s
        if age_s <= LIVE_WITHIN_S:
            return Readiness(ready=True)
        return Readiness(False, (f"the standby has not looked for its leader for {age_s:.1f} s",))

    async def remember(self) -> None:
        """Keep the subscriptions for the next leader; without an answer, the renewal does it."""
        with suppress(StoreError):
            await self._remember()

    async def stop(self) -> None:
        """Drain, and release the lease."""
        self._stopping.set()
        with anyio.move_on_after(DRAIN_LIMIT_S + _END_S):
            await self._stopped.wait()
        self._plan.readers.close()

    # The member's life

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Stand by and lead in turn, until :meth:`stop` or cancellation.

        ``started()`` is called as soon as it does either.
        """
        started = _Once(task_status.started)
        try:
            async with block_tasks() as tasks:
                if isinstance(self._lease, MovingLease):
                    tasks.start_soon(self._lease.watch)
                while (leader := await self._stand_by(started)) is not None:
                    await self._lead(leader, started)
                    if self._lost is not None:
                        self._show(self._build_idle(self._settings_topics, {}))
        finally:
            self._stopped.set()
            self._idle.close()
            with anyio.CancelScope(shield=True):
                await self._reader.aclose()
                await self._lease.aclose()

    async def _stand_by(self, started: Callable[[], None]) -> Leader | None:
        """Wait for the lease; None when the service stops."""
        async with block_tasks() as tasks:
            tasks.start_soon(self._stay_warm)
            if self._plan.positions is not None:
                tasks.start_soon(self._follow_positions)
            while not self._stopping.is_set():
                self._looked_s = self._clock.monotonic()
                wait_s = LOOK_EVERY_S
                try:
                    before, self._leader = self._leader, await self._lease.look()
                    if self._leader is None:
                        if await self._is_served_without_a_group():
                            wait_s = _GROUPLESS_S
                        elif (taken := await self._claim()) is not None:
                            return taken
                    self._note_leader(before)
                except StoreError as exc:
                    wait_s = _AGAIN_S
                    _log.debug("standby_cannot_look", reason=str(exc))
                started()
                with anyio.move_on_after(wait_s):
                    await self._stopping.wait()
        if self._may_have_claimed:
            with anyio.move_on_after(_END_S, shield=True):
                await self._release()
        return None

    async def _claim(self) -> Leader | None:
        self._may_have_claimed = True  # until there is an answer
        taken = await self._lease.claim()
        self._may_have_claimed = False
        return taken

    async def _is_served_without_a_group(self) -> bool:
        if self._others is None:
            return False
        before, self._groupless = self._groupless, await self._others.groupless()
        if self._groupless is not None and before is None:
            self._has_stood_by = True
            _log.info("stands_by", group=self._group, reason=self.standing_by)
        return self._groupless is not None

    def _note_leader(self, before: Leader | None) -> None:
        leader = self._leader
        if leader is not None and (before is None or before.epoch != leader.epoch):
            self._has_stood_by = True
            _log.info("stands_by", group=self._group, leader=leader.shown, epoch=leader.epoch)

    async def _stay_warm(self) -> None:
        """Keep the last records as the leader writes them."""
        while True:
            began_s = self._clock.monotonic()
            wait_s = _WARM_S
            try:
                topics, wishes = self._wishes(self._stored(await self._lease.recall()))
                every = [*topics, *(topic for some in wishes.values() for topic in some)]
                last = await self._plan.last_records(self._reader, every, required=True)
                self._show(self._build_idle(topics, last, wishes))
                took_s = self._clock.monotonic() - began_s
                wait_s = min(max(_WARM_S, took_s / _SHARE), _WARM_AT_MOST_S)
            except StoreError as exc:  # a wait for Redis is no work
                _log.debug("standby_cannot_read", reason=str(exc))
            await anyio.sleep(wait_s)

    def _show(self, idle: Topology) -> None:
        """Serve other idle parts."""
        before, self._idle = self._idle, idle
        self.service.use(idle)
        before.close()

    def _build_idle(
        self,
        topics: Sequence[Topic],
        last: Mapping[Kind[Any], Sequence[Any]],
        wishes: Mapping[str, Sequence[Topic]] | None = None,
    ) -> Topology:
        """Parts that do not run, with the last records."""
        topology = self._plan.build(self._reader, topics, last, wishes=wishes)
        self._know(topology, last)
        return topology

    def _know(self, topology: Topology, last: Mapping[Kind[Any], Sequence[Any]]) -> None:
        for pipeline in topology.pipelines:
            for kind in pipeline.feed.kinds:
                pipeline.router.sequencer(kind).trust_earlier()
        if NEWS in last:
            self._plan.readers.replace_articles(last[NEWS])

    async def _follow_positions(self) -> None:
        positions = self._plan.positions
        assert positions is not None
        await positions.refresh()
        while True:
            await positions.refresh_when_due(_POLL_S)

    # A term

    async def _lead(self, leader: Leader, started: Callable[[], None]) -> None:
        """Lead until deposed, or until the service stops."""
        self._terms += 1
        self._lost = None
        self._standby_alive, self._rivals = False, True
        self._leader, self._leads = None, True
        _log.info("leads", group=self._group, epoch=leader.epoch)
        try:
            async with block_tasks() as tasks:
                with anyio.CancelScope() as term:
                    tasks.start_soon(self._keep_lease, term)
                    await self._run_term(leader, started)
        finally:
            self._leads = False
            self._running = None
            self._refreshing = frozenset()
            if self._lost is None:
                with anyio.move_on_after(_END_S, shield=True):
                    await self._release()

    async def _release(self) -> None:
        """Release the lease, also if the first call finds that its connection was lost."""
        for _ in range(2):
            try:
                await self._lease.release()
            except StoreError as exc:
                _log.debug("lease_not_released", reason=str(exc))
            else:
                return

    async def _keep_lease(self, term: anyio.CancelScope) -> None:
        """Renew the lease; end the term once another member may lead."""
        renewed_s = self._clock.monotonic()
        while True:
            await anyio.sleep(RENEW_EVERY_S if self._lease.last_error is None else _AGAIN_S)
            began_s = self._clock.monotonic()
            left_s = max(_LEAST_S, renewed_s + LEASE_S - began_s)
            lost = None
            try:
                with anyio.move_on_after(left_s if self._rivals else LEASE_S):
                    self._rivals = self._standby_alive = await self._lease.renew()
                    renewed_s = began_s
                    if self._running is not None:
                        self._progress.look(self._running)
                    await self._remember()
            except Deposed as exc:
                lost = str(exc)
            except StoreError as exc:
                _log.warning("lease_not_renewed", group=self._group, reason=str(exc))
            # Without a standby no service can have taken the lead, and the feeds may stay.
            if self._rivals and self._clock.monotonic() - renewed_s >= LEASE_S:
                lost = lost or f"the lease could not be renewed for {LEASE_S:g} s"
            if lost is not None:
                self._lost = lost
                term.cancel()
                return

    async def _run_term(self, leader: Leader, started: Callable[[], None]) -> None:
        store = self._make_store(leader)
        async with AsyncExitStack() as stack:
            stored = self._stored(await self._ask_redis(self._lease.recall))
            topics, others = self._wishes(stored)
            every = [*topics, *(topic for some in others.values() for topic in some)]
            last = await self._ask_redis(
                partial(self._plan.last_records, store, every, required=True)
            )
            if last is None:
                return  # the service stops
            make_relay = await self._without_if_refused("relay", self._plan.open_relay, stack)
            journal = await self._without_if_refused("journal", self._open_journal, stack)
            topology = self._plan.build(
                store,
                topics,
                last,
                make_relay=make_relay,
                journal=journal,
                wishes=others,
                numbering_on=True,
                complete=stored.complete,
                ends_if_refused=self._is_a_start,
            )
            self._progress = Progress(stored.complete, topology)
            # Before the first record from REST: this term may end before it is stored again.
            first = _Wishes(stored.sources, stored.removed, self._progress.until)
            await self._ask_redis(partial(self._lease.remember, _encoder.encode(first)))
            self._know(topology, last)
            name = f"{leader.id}.{leader.epoch}"
            self._announce(topology, leader)
            instances = self._instances(name)
            self.service.use(topology, instances)
            market = await self._plan.run(topology, instances, stack)
            self.service.use(topology, instances, market)
            self._running = topology
            started()
            try:
                async with block_tasks() as tasks:
                    for pipeline, parts in zip(topology.pipelines, self._plan.feeds, strict=True):
                        tasks.start_soon(self._refresh, pipeline, parts)
                    tasks.start_soon(self._release_held, topology, others)
                    await self._stopping.wait()
                await self.service.drain_topology(hand_over=self._rivals)
            finally:
                if self._lost is not None:
                    await self._step_down(topology)

    async def _step_down(self, topology: Topology) -> None:
        """Close everything at once; the next leader repairs what is not written."""
        in_batch, waiting = topology.publisher.not_stored(topology.writer.written)
        self._dropped += in_batch + waiting
        _log.error("stepped_down", group=self._group, reason=self._lost, dropped=in_batch + waiting)
        topology.supervisor.drain()
        topology.stop_feeds()
        with anyio.move_on_after(_END_S, shield=True):
            if topology.relay is not None:
                topology.relay.refuse()
                await topology.relay.stop()
            if topology.journal is not None:
                await topology.journal.stop()

    async def _ask_redis(self, ask: Callable[[], Awaitable[_T]]) -> _T | None:
        """Ask until there is an answer; None once the service stops."""
        while not self._stopping.is_set():
            try:
                return await ask()
            except StoreError as exc:
                _log.warning("takeover_waits_for_redis", group=self._group, reason=str(exc))
                await anyio.sleep(_AGAIN_S)
        return None

    async def _without_if_refused(
        self, part: str, open_part: Callable[[AsyncExitStack], Awaitable[_T]], stack: AsyncExitStack
    ) -> _T | None:
        """Open a part of the service. A new leader leads without it rather than not at all."""
        try:
            return await open_part(stack)
        except ConfigurationError as exc:
            if self._is_a_start:
                raise
            _log.error("leads_without_a_part", part=part, reason=str(exc))
            return None

    @property
    def _is_a_start(self) -> bool:
        """Whether it has just been started: a person looks then, and not at a takeover."""
        return self._terms == 1 and not self._has_stood_by

    async def _open_journal(self, stack: AsyncExitStack) -> Recorder | None:
        return self._plan.open_journal(stack)

    def _announce(self, topology: Topology, leader: Leader) -> None:
        """Publish for each feed in use that another service led before."""
        if leader.epoch == 1:
            return
        for pipeline, parts in zip(topology.pipelines, self._plan.feeds, strict=True):
            if pipeline.feed is not STOCKS and not pipeline.connection.sources():
                continue
            refreshed = QUOTES in pipeline.feed.kinds and parts.history is not None
            details = {"leader": leader.shown, "epoch": leader.epoch, "refreshed": refreshed}
            now_ns = self._clock.utc_ns()
            status = FeedStatus("takeover", now_ns, details, pipeline.feed.name)
            topology.readers.offer(status)
            topology.account.send_nowait(status)  # nothing else is in the channel yet

    async def _refresh(self, pipeline: Pipeline, parts: FeedParts) -> None:
        """Publish the quotes that REST has, once a second until the feed is connected.

        The account's connection may still be in use by the last leader.
        """
        if parts.history is None or QUOTES not in pipeline.feed.kinds:
            return
        name = pipeline.feed.name
        history = HalvingHistory(parts.history, QUOTES)
        sequencer = pipeline.router.sequencer(QUOTES)
        complete_ns: dict[str, int] = {}
        """Up to when REST has answered for a symbol."""
        try:
            while True:
                await anyio.sleep(_REFRESH_S)
                if pipeline.connection.snapshot().logins:
                    return
                symbols = _to_refresh(sequencer, complete_ns)
                if not symbols:
                    continue
                self._refreshing |= {name}
                try:
                    with anyio.fail_after(_REFRESH_LIMIT_S):
                        for since_ns, some in symbols.items():
                            await self._refresh_since(
                                pipeline, history, since_ns, some, complete_ns
                            )
                except (HistoryUnavailable, TimeoutError) as exc:
                    _log.warning("takeover_refresh_failed", feed=name, reason=masked(str(exc)))
                    continue
                except HistoryRefused as exc:
                    _log.warning("takeover_refresh_failed", feed=name, reason=masked(str(exc)))
                    self._refreshing -= {name}
                    if isinstance(exc, NoHistory):
                        return
                    await anyio.sleep(_AFTER_REFUSAL_S)
        finally:
            self._refreshing -= {name}

    async def _refresh_since(
        self,
        pipeline: Pipeline,
        history: HalvingHistory[Any],
        since_ns: int,
        symbols: Sequence[str],
        complete_ns: dict[str, int],
    ) -> None:
        """Publish the quotes that REST has since then; note for which symbols it has answered."""
        to_ns = self._clock.utc_ns()
        found = await history.past(symbols, since_ns - _OVERLAP_NS, to_ns)
        newest_ns = max((record.ts_event_ns for record in found.records), default=since_ns)
        answered = set(symbols) - found.refused.keys()
        complete_ns.update(dict.fromkeys(answered, max(since_ns, newest_ns)))
        records = pipeline.router.sequencer(QUOTES).not_out_yet(found.records)
        if records and not pipeline.connection.snapshot().logins:
            with suppress(anyio.ClosedResourceError):  # the service stops
                pipeline.send_queue.add(LateRecords(QUOTES, records, since_ns, to_ns))

    async def _release_held(
        self, topology: Topology, wishes: Mapping[str, Sequence[Topic]]
    ) -> None:
        """Let go what the last leader's relay and positions wanted and nothing wants again."""
        if held := wishes.get(HELD_SOURCE):
            await anyio.sleep(HELD_FOR_S)
            await topology.unsubscribe(held, (HELD_SOURCE,))

    # What programs want

    def _stored(self, stored: bytes | None) -> _Wishes:
        """What the last leader has stored."""
        try:
            return _Wishes() if stored is None else _decoder.decode(stored)
        except msgspec.MsgspecError as exc:
            _log.error("subscriptions_not_read", group=self._group, reason=str(exc))
            return _Wishes()

    def _wishes(self, wishes: _Wishes) -> tuple[Sequence[Topic], Mapping[str, Sequence[Topic]]]:
        """The topics of the settings, and of each other source, as the last leader had them."""
        removed = {Topic(*pair) for pair in wishes.removed}
        others: dict[str, list[Topic]] = {}
        for source, pairs in wishes.sources.items():
            lasting = source not in (RELAY_SOURCE, POSITIONS_SOURCE)
            topics = [Topic(*pair) for pair in pairs]
            others.setdefault(source if lasting else HELD_SOURCE, []).extend(topics)
        return [topic for topic in self._settings_topics if topic not in removed], others

    async def _remember(self) -> None:
        """Store what programs want, and how far all is published.

        Also if nothing has changed: Redis may have lost it, in a restart or a failover.
        """
        sources: dict[str, list[tuple[str, str]]] = {}
        wanted: set[Topic] = set()
        if self._running is None:
            return
        for pipeline in self._running.pipelines:
            for source, topics in pipeline.connection.wishes().items():
                if source == "settings":
                    wanted.update(topics)
                else:
                    pairs = [(topic.channel, topic.symbol) for topic in topics]
                    sources.setdefault(source, []).extend(pairs)
        removed = [(t.channel, t.symbol) for t in self._settings_topics if t not in wanted]
        await self._lease.remember(_encoder.encode(_Wishes(sources, removed, self._progress.until)))


def _to_refresh(sequencer: Sequencer[Any], complete_ns: Mapping[str, int]) -> dict[int, list[str]]:
    """The symbols to ask REST for, by the time up to which their records are published."""
    found: dict[int, list[str]] = {}
    reached_ns = sequencer.complete_until_ns()
    if reached_ns is not None:
        for symbol in sequencer.symbols()[:_MOST_REFRESHED]:
            found.setdefault(complete_ns.get(symbol, reached_ns), []).append(symbol)
    return found


def _redis_store(plan: Plan, admit: Any, leader: Leader | None) -> PriceStore:
    """The store of a term, or that of a standby."""
    if leader is None:
        return plan.open_store("standby", reads_only=True)
    return plan.open_store(f"{leader.id}.{leader.epoch}", admit=admit)


class _Once:
    """Calls a function at the first call."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    def __call__(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()
