"""Gap repair: live records wait while the missed ones are fetched from history."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Generic

import anyio

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable, NoHistory
from mdservice.feed.gap_repair.missing import AcceptedRecords, Missed, MissingRecords
from mdservice.feed.gap_repair.recheck import Believed, Horizon, Recheck
from mdservice.feed.gap_repair.recovery import Recovery
from mdservice.feed.history import HalvingHistory
from mdservice.feed.send_queue import SendQueue
from mdservice.feed.subscriptions import chunks
from mdservice.model.events import Backfill, FeedResumed, RecordBatch
from mdservice.model.kinds import Kind, Order, R
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger
from mdservice.runtime.task_groups import run_together

__all__ = [
    "HOLD_LIMIT_S",
    "LATEST_LIMIT_S",
    "MOST_HELD",
    "MOST_SEEN",
    "QUIET_S",
    "CatchUp",
    "GapRepair",
]


QUIET_S = 2.0
"""How long to wait for a lagging history in a quiet market, where no live record shows the lag."""
_LOOK_S = 0.05
"""How often to look for the first live record."""
_RETRY_S = 1.0
_FAILURES_WITHOUT_ANSWER = 4
"""After so many failures without any answer the repair ends, because live records wait for it."""
_PROBE_S, _PROBE_LIMIT_S = 0.2, 1.0
_PROBED_SYMBOLS = 10
_LATER_NS = 1_000_000_000
"""Times are not exactly in order, so only a record this much later certainly came later."""
_AHEAD_NS = 60_000_000_000
"""How far into the future history is asked: this machine's clock may be behind the exchange's."""
_SYMBOLS_AT_ONCE = 200


class CatchUp(Generic[R]):
    """Fetches the missed records of one repair from history.

    History lags behind the stream by an unknown time. Once it has one of the first live records, or
    a record that is clearly later, it also has all missed records. So :meth:`run` first waits until
    history has such a record, and then fetches the missed ones. In a quiet market there is no live
    record, and :meth:`run` waits :data:`QUIET_S` instead.

    Args:
        kind: The kind of the records.
        history: The source of past records.
        missed: The symbols to fetch, and from when.
        live: Returns the live records since all symbols were subscribed, at most a thousand.
        clock: The time.

    Attributes:
        symbols: The symbols to fetch.
        found: The records fetched so far, in the order of times within each symbol. An error keeps
            them.
        complete: The symbols whose missed records are all in ``found``. An error keeps them.
        refused: The symbols that history refused, with the reason.
        believed: Whether the repair trusted history in a quiet market, without proof that it was up
            to date.
        last_error: Why history did not answer the last request, or None.
    """

    def __init__(
        self,
        kind: Kind[R],
        history: HalvingHistory[R],
        missed: Sequence[Missed],
        live: Callable[[], Sequence[R]],
        clock: Clock,
    ) -> None:
        self.found: list[R] = []
        self.complete: frozenset[str] = frozenset()
        self.refused: dict[str, str] = {}
        self.believed = False
        self.last_error: str | None = None
        self._answered = False
        self._identity = kind.identity
        self._history = history
        self._missed = missed
        self.symbols = [symbol for part in missed for symbol in part.symbols]
        self._live = live
        self._clock = clock

    async def run(self, patience_s: float) -> bool:
        """Fetch all missed records.

        If history does not answer, it asks again. If history has never answered, it gives up after
        four failures; otherwise the caller sets the time limit.

        Args:
            patience_s: How long to wait for a history that lags. After that, it fetches what
                history has.

        Returns:
            Whether history had caught up.

        Raises:
            HistoryRefused: History refused every symbol or never answered, or this machine's
                clock is behind the feed's.
        """
        up_to_date = False
        with anyio.move_on_after(patience_s):
            await self._until_up_to_date()
            up_to_date = True
        for part in self._missed:
            self.found += await self._fetch(part.symbols, part.since_ns)
            if self._clock_is_behind(part.since_ns):
                raise HistoryRefused("this machine's clock is behind the feed's; set the clock")
            if up_to_date:
                self.complete |= frozenset(part.symbols) - self.refused.keys()
        return up_to_date

    def _clock_is_behind(self, since_ns: int) -> bool:
        """Whether records are later than the end of the time for which history is asked."""
        horizon_ns = self._clock.utc_ns() + _AHEAD_NS
        return since_ns > horizon_ns or any(q.ts_event_ns > horizon_ns for q in self._live())

    async def add_latest(self, until_ns: int, held: Sequence[R]) -> None:
        """Add the newest records up to this time, so that at least the prices are right.

        Newer records come over the stream. If one of them were added here, the sequencer would
        reject older ones that the stream has yet to send. Cancellation keeps the found records.

        Args:
            until_ns: The time, UTC nanoseconds.
            held: The live records that wait. One of them is not added, since it would come before
                the others of its time.
        """
        newest = {record.symbol: record.ts_event_ns for record in self.found}
        try:
            for symbols in chunks(self.symbols, _SYMBOLS_AT_ONCE):
                latest = await self._history.latest(symbols)
                times = {record.ts_event_ns for record in latest.records}
                came = {self._identity(each) for each in held if each.ts_event_ns in times}
                self.found += [
                    record
                    for record in latest.records
                    if newest.get(record.symbol, -1) < record.ts_event_ns <= until_ns
                    and self._identity(record) not in came
                ]
        except (HistoryRefused, HistoryUnavailable) as exc:
            _log.warning("latest_quotes_failed", reason=str(exc))

    async def _until_up_to_date(self) -> None:
        began_s = anyio.current_time()
        # Notice a refusal at once, also before the first live record.
        await self._fetch(self.symbols[:_PROBED_SYMBOLS], self._clock.utc_ns())
        pause_s = _PROBE_S
        while True:
            live = [record for record in self._live() if record.symbol not in self.refused]
            if not live:
                await anyio.sleep(_LOOK_S)
                if anyio.current_time() >= began_s + QUIET_S:
                    self.believed = True
                    return
            elif await self._has_one_of(live):
                return
            else:
                await anyio.sleep(pause_s)
                pause_s = min(_PROBE_LIMIT_S, pause_s * 1.5)

    async def _has_one_of(self, live: Sequence[R]) -> bool:
        first_ns = live[0].ts_event_ns
        symbols = list(dict.fromkeys(record.symbol for record in live))[:_PROBED_SYMBOLS]
        # An equal time proves nothing: history may have only some of the records of that time.
        identity = self._identity
        came_live = {identity(record) for record in live}
        return any(
            identity(record) in came_live or record.ts_event_ns >= first_ns + _LATER_NS
            for record in await self._fetch(symbols, first_ns)
        )

    async def _fetch(self, symbols: Sequence[str], start_ns: int) -> list[R]:
        """Ask until there is an answer; give up early if history has never answered."""
        failures = 0
        while True:
            end_ns = max(start_ns, self._clock.utc_ns() + _AHEAD_NS)
            try:
                found = await self._history.past(symbols, start_ns, end_ns)
            except HistoryUnavailable as exc:
                self.last_error = str(exc)
                _log.warning("history_failed", reason=str(exc))
                failures += 1
                if failures >= _FAILURES_WITHOUT_ANSWER and not self._answered:
                    raise HistoryRefused(f"history has not answered: {exc}") from exc
                await anyio.sleep(_RETRY_S)
            else:
                self._answered = True
                self.last_error = None
                self.refused |= found.refused
                return list(found.records)


_log = get_logger(__name__)

HOLD_LIMIT_S = 15.0
"""The maximum time that live records wait for a repair."""
LATEST_LIMIT_S = 3.0
"""The end of this time, reserved for the latest records if the past ones cannot be fetched."""
_FETCH_S = 2.0
"""The time before that, reserved for fetching what a lagging history has."""
_SPARE_S = 0.5
MOST_HELD = 200_000
"""The maximum number of live records that wait for a repair."""
MOST_SEEN = 1_000
"""With ``*``: for more symbols than this, only the latest quotes are fetched."""
_ENOUGH_LIVE = 1_000
"""How many of the first live records to compare with history."""
_MOST_NAMED = 50


class GapRepair(Recovery[R]):
    """Holds live records, fetches past ones, and sends both together.

    If the connection is lost again during a repair, the held records stay held, and the next
    connection's repair covers both outages. After :data:`HOLD_LIMIT_S` the held records are sent as
    they are, and the gap remains. Cancellation loses no held record. At the end they are sent too,
    unless another run goes on: behind them, it could send nothing of what is missing.

    Args:
        kind: The kind of the records.
        history: The source of past records; None if the feed has no history.
        accepted: The accepted records.
        send_queue: Sends records and changes of state to the router.
        clock: The time.
        earlier: The symbols that an earlier run had subscribed, also those without a record, and
            the time up to which it had published all, UTC nanoseconds; None if it is not known.
    """

    def __init__(
        self,
        kind: Kind[R],
        history: HalvingHistory[R] | None,
        accepted: AcceptedRecords,
        send_queue: SendQueue,
        clock: Clock,
        earlier: tuple[Collection[str], int] | None = None,
    ) -> None:
        super().__init__(kind, history, accepted, send_queue, clock)
        self._held: list[R] = []
        self._held_companions: list[RecordBatch[Any]] = []
        """Live records of other kinds that come with these, such as corrections of trades."""
        self._holding = False
        self._began = anyio.Event()
        self._deadline_s = 0.0
        self._work = anyio.CancelScope()
        self._recheck = self._new_recheck(history) if history is not None else None
        self._horizon = self._new_horizon(0)
        self._resumed = False
        """Whether :class:`FeedResumed` was sent for this connection."""
        self._follows = False
        """Whether the last :class:`FeedResumed` had symbols."""
        self._left_out: frozenset[str] = frozenset()
        """The unfulfilled symbols of the last :class:`FeedResumed`."""
        # An article is of no single symbol, so history can be asked for all of them.
        self._every = kind.stream is not None
        window_s = kind.late_s + kind.span_s
        self._missing = MissingRecords(
            accepted, window_s, 0.0 if self._in_order else window_s, every=self._every
        )
        # The end of an earlier run counts as a lost connection. It is noted now, since a takeover
        # refreshes some symbols before the first connection.
        symbols = set(accepted.symbols())
        if earlier is not None:
            followed, complete_ns = earlier
            # Of a symbol without a record, nothing is known that may come again from before.
            self._missing.follow(followed, complete_ns + self._missing.early_ns + 1)
            symbols.update(earlier[0])
        self._missing.lose(symbols, clock.utc_ns())
        self._connected_before = False

    def begin(self) -> None:
        """Note that a connection is open. From now on live records wait if any are missing."""
        now_ns = self._clock.utc_ns()
        if not self._connected_before:
            self._missing.lose(self._accepted.symbols(), now_ns)
            self._connected_before = True
        self._resumed = False
        self._horizon = self._new_horizon(now_ns)
        if self._missing:
            self._hold()

    @property
    def _in_order(self) -> bool:
        """Whether no record is published behind a newer one of its symbol."""
        return self.kind.order is Order.DROP_OLDER

    def _new_recheck(self, history: HalvingHistory[R]) -> Recheck[R]:
        if self._in_order:
            return Recheck(self.kind, history, self._clock)
        return Recheck(self.kind, history, self._clock, self._accepted.was_accepted)

    def _new_horizon(self, opened_ns: int) -> Horizon[R]:
        return Horizon[R](opened_ns, in_order=self.kind.order is not Order.KEEP_ALL)

    def symbols(self) -> frozenset[str]:
        """The symbols whose missing records a repair will fetch."""
        missing = self._missing.symbols()
        if self._history is not None and not self._connected_before:
            missing |= frozenset(self._accepted.symbols())
        return missing

    def lost(self, followed: Iterable[str]) -> None:
        """Note that the connection has ended, and that records of its symbols are now missing.

        Args:
            followed: The symbols that the feed had acknowledged.
        """
        self._missing.lose(followed, self._clock.utc_ns())

    def expect(self, symbols: Iterable[str]) -> None:
        """Hold live records if records of one of these symbols are missing.

        Call it before asking the feed again for unfulfilled symbols, and :meth:`repair` after.
        """
        if any(symbol in self._missing for symbol in symbols):
            self._horizon = self._new_horizon(self._clock.utc_ns())
            self._hold()

    def _hold(self) -> None:
        if self._history is None or self._holding:
            return
        self._holding = True
        self._send_queue.holding(self.kind)
        self._deadline_s = anyio.current_time() + HOLD_LIMIT_S
        self._began.set()
        self._began = anyio.Event()

    def add_live(self, kind: Kind[Any], records: Sequence[Any]) -> None:
        """Hold live records during a repair; otherwise add them to the send queue.

        Records of another kind, which this one brings, are sent after the held ones, since they
        may be about one of them.
        """
        if kind is self.kind:
            self._horizon.came(records)
            held: list[Any] = self._held
            added = records
        else:
            held = self._held_companions
            added = [RecordBatch(kind, records)]
        if not self._holding:
            self._send_queue.add(RecordBatch(kind, records))
            return
        held.extend(added)
        if len(self._held) > MOST_HELD or len(self._held_companions) > MOST_HELD:
            self._give_up("too many live records were waiting")

    async def repair(self, followed: Collection[str], left_out: Collection[str] = ()) -> None:
        """Report the subscribed symbols, fetch the missed records, send them with the held ones.

        Args:
            followed: The acknowledged symbols.
            left_out: The unfulfilled symbols. Their records are fetched when they return.
        """
        self._resumed = True
        self._missing.follow(followed, self._clock.utc_ns())
        if self._history is not None and EVERY_SYMBOL not in followed:
            self._history.forget(self._history.set_aside.keys() - {*followed, *left_out})
        back = self._missing.back(followed, left_out)
        resumed_ns = await self._resume(followed, left_out, repairing=self._holding and bool(back))
        if not self._holding or self._history is None:
            self._missing.reported(back, complete=())
            return
        before = len(self._held)

        def live() -> Sequence[R]:
            return self._horizon.timely(self._held[before : before + _ENOUGH_LIVE])

        catch_up = CatchUp(self.kind, self._history, back, live, self._clock)
        complete: frozenset[str] = frozenset()
        with anyio.CancelScope() as self._work:
            reason = await self._why_not_all(catch_up, followed)
            if reason is not None:
                _log.warning("gap_not_repaired", reason=reason)
                limit_s = self._deadline_s - _SPARE_S - anyio.current_time()
                with anyio.move_on_after(min(LATEST_LIMIT_S, limit_s)):
                    await catch_up.add_latest(resumed_ns, self._held)
            if catch_up.believed and self._holding:
                self._look_again_at(catch_up, back)
            unseen = EVERY_SYMBOL in followed and not self._every
            complete = frozenset() if unseen or not self._holding else catch_up.complete
            self._let_go(catch_up.found, complete)
        self._missing.reported(back, complete)
        await self._send_queue.flush()

    async def run(self) -> None:
        """Keep the time limit, and send the records that a recheck finds, until cancelled."""
        await run_together(self._keep_limit, self._send_late)

    async def _send_late(self) -> None:
        """Send the records that a recheck finds; runs until cancelled."""
        while self._recheck is not None:
            self._send_queue.add(await self._recheck.next())
            await self._send_queue.flush()

    def _look_again_at(self, catch_up: CatchUp[R], missed: Sequence[Missed]) -> None:
        if self._recheck is None:
            return
        lasts_ns = {symbol: part.since_ns for part in missed for symbol in part.symbols}
        lasts_ns |= {record.symbol: record.ts_event_ns for record in catch_up.found}
        for symbol in lasts_ns:
            lasts_ns[symbol] = self._accepted.last_ns(symbol) or lasts_ns[symbol]
        self._recheck.check(
            Believed(
                missed,
                [*catch_up.found, *self._held],
                {symbol: lasts_ns[symbol] for symbol in catch_up.complete},
                self._horizon,
                -1 if self._in_order else int((self.kind.late_s + self.kind.span_s) * 1e9),
            )
        )

    async def subscriptions_changed(
        self, followed: Collection[str], left_out: Collection[str]
    ) -> None:
        """Report the first symbols, and the gaps of unfulfilled ones that a request has subscribed.

        It does not fetch their missing records, so that live records of other symbols do not wait.
        """
        if not self._resumed:
            return  # :meth:`repair` will report it
        self._missing.follow(followed, self._clock.utc_ns())
        began = bool(followed) and not self._follows
        if began or self._left_out.intersection(followed):
            if not self._holding:
                self._missing.reported(self._missing.back(followed, left_out), complete=())
            await self._resume(followed, left_out, repairing=False)
        else:
            self._left_out = frozenset(left_out)

    async def _resume(
        self, followed: Collection[str], left_out: Collection[str], *, repairing: bool
    ) -> int:
        now_ns = self._clock.utc_ns()
        self._follows = bool(followed)
        self._left_out = frozenset(left_out)
        resumed = FeedResumed(self.kind, now_ns, frozenset(followed), repairing, self._left_out)
        await self._send_queue.send(resumed)
        return now_ns

    async def _keep_limit(self) -> None:
        """Send the held records once their time limit is over; runs until cancelled."""
        while True:
            while not self._holding:
                await self._began.wait()
            if anyio.current_time() < self._deadline_s:
                await anyio.sleep_until(self._deadline_s)
            else:
                self._give_up(f"it took over {HOLD_LIMIT_S:g} s")
                await self._send_queue.flush()

    def stop(self, *, hand_over: bool = False) -> None:
        """Add the held records to the send queue, or leave them to the run that goes on."""
        if hand_over and self._holding:
            _log.info("repair_handed_over", channel=self.kind.channel, waiting=len(self._held))
            self._held.clear()
            self._held_companions.clear()
            self._holding = False
        self._give_up("the service stops")

    async def _why_not_all(self, catch_up: CatchUp[R], followed: Collection[str]) -> str | None:
        """Fetch the missed records; return why some are missing, or None if all were fetched."""
        unseen = EVERY_SYMBOL in followed and not self._every
        if unseen and len(catch_up.symbols) > MOST_SEEN:
            return f"the history of {len(catch_up.symbols)} symbols is too much"
        limit_s = self._deadline_s - LATEST_LIMIT_S - anyio.current_time()
        complete = True
        try:
            with anyio.fail_after(limit_s):
                if catch_up.symbols:
                    complete = await catch_up.run(limit_s - _FETCH_S)
                    self._refused = None
        except HistoryRefused as exc:
            self._refused = None if isinstance(exc, NoHistory) else str(exc)
            return str(exc)
        except TimeoutError:
            return catch_up.last_error or "history was too slow"
        if not complete:
            return catch_up.last_error or "history did not catch up with the live records in time"
        if catch_up.refused:
            _log.warning(
                "gap_not_repaired",
                symbols=sorted(catch_up.refused)[:_MOST_NAMED],
                reason=next(iter(catch_up.refused.values())),
            )
        if unseen:
            return "history cannot be asked for symbols that were never seen"
        return None

    def _give_up(self, reason: str) -> None:
        if self._holding:
            _log.warning("gap_not_repaired", reason=reason)
            self._let_go((), frozenset())
        self._work.cancel()

    def _let_go(self, past: Sequence[R], complete: frozenset[str]) -> None:
        """Send past and held records together; later live records no longer wait."""
        if not self._holding:
            return
        held, self._held = self._held, []
        self._holding = False
        self._send_queue.add(Backfill(self.kind, past, held, self._clock.utc_ns(), complete))
        companions, self._held_companions = self._held_companions, []
        for batch in companions:
            self._send_queue.add(batch)
