"""What has to be true of a group, whatever goes wrong with its members, its ways and its Redis.

It judges what others see: the batches that Redis executed, in their order, and the leases that it
gave. What a member believes counts only for whether one leads in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import msgspec

from mdservice.model.events import FeedStatus
from mdservice.model.kinds import QUOTES
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339
from mdservice.publish.lease import LEASE_S
from mdservice.redis_io.names import STATUS_CHANNEL
from tests.simulation.market import Identity
from tests.simulation.names import STATIC
from tests.simulation.oracle import Gap, excused, identity, unrepaired
from tests.simulation.redis_server import Lost, Read, Written

if TYPE_CHECKING:
    from mdservice.feed.gap_repair.recheck import Believed
    from tests.simulation.group_world import GroupWorld, Process

_SAMPLE_S = 0.1
_LATE_S = 1.0
"""How much later than the lease's end a standby may lead."""
_TWO_LEAD_S = 2.5
"""How long two may believe that they lead: until the next renewal, which has a second's limit."""
_SLOW_S = 0.2
"""With slower answers than this, no service can lead in time."""
_CALL_S = 1.0
"""How long a call that began in slow times may still be waited for."""
_WISHES_S = 4.0
"""How long what programs want may be kept nowhere else: until the renewal after the next."""
_KNOWN_S = 12.0
"""How long after an event a standby may not know it: at most ten seconds, and a read."""
_ROUNDING_S = 1e-6
_FAILED_OVER = "Redis failed over"


class LeadWatch:
    """Looks ten times a second whether a member leads that can, and only one."""

    def __init__(self, world: GroupWorld) -> None:
        self._world = world
        self._able_since: dict[Process, float] = {}
        self._none_since_s: float | None = 0.0
        self._two_since_s: float | None = None
        self._wishes_differ_since_s: float | None = None
        self._stopped: set[Process] = set()
        self.subscribed_ns: list[int] = []
        """When the feed had a new connection that is subscribed, by the market's clock."""
        self._connections: set[int] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await anyio.sleep(_SAMPLE_S)
            self._look()
            self._look_at_feed()
            self._look_at_wishes()

    def was_stopped(self, process: Process) -> bool:
        """Whether it was stopped at any time."""
        return process in self._stopped

    def _look(self) -> None:
        world, now_s = self._world, anyio.current_time()
        self._stopped |= {process for process in world.processes if process.stopped}
        able = [process for process in world.processes if self._is_able(process)]
        self._able_since = {process: self._able_since.get(process, now_s) for process in able}
        leading = [process for process in able if process.leads]
        self._none_since_s = None if leading else (self._none_since_s or now_s)
        self._two_since_s = (self._two_since_s or now_s) if len(leading) > 1 else None
        if self._two_since_s is not None and now_s - self._two_since_s > _TWO_LEAD_S:
            names = ", ".join(process.name for process in leading)
            world.violated(f"several lead at once: {names}")
            self._two_since_s = None
        if self._none_since_s is None or not able:
            return
        overdue_s = now_s - self._may_be_without_until_s()
        if overdue_s > 0:
            name = min(able, key=lambda process: self._able_since[process]).name
            world.violated(f"no member leads, although {name} could: {overdue_s:.1f} s too late")
            self._none_since_s = now_s

    def _may_be_without_until_s(self) -> float:
        """Until when it is right that none leads."""
        redis = self._world.redis
        could_s = max(min(self._able_since.values()), self._none_since_s or 0.0)
        last = redis.granted[-1] if redis.granted else None
        lease_s = 0.0 if last is None else last.at_s + (0.0 if last.free else LEASE_S)
        if redis.restarted_s >= 0:  # a standby leaves the leader time to come back
            lease_s = max(lease_s, redis.restarted_s + LEASE_S + _LATE_S)
            lease_s = max(lease_s, could_s + LEASE_S) if self._restarted_lately() else lease_s
        return max(could_s, lease_s) + _LATE_S

    def _restarted_lately(self) -> bool:
        """Whether a member may see only now that the server is another one."""
        return anyio.current_time() - self._world.redis.restarted_s < 120.0

    def _is_able(self, process: Process) -> bool:
        """Whether a member can lead: it runs, and reaches a Redis that answers."""
        redis = self._world.redis
        ways = process.lease_way.is_open and process.store_way.is_open
        fast = redis.slow_s <= _SLOW_S and anyio.current_time() >= redis.fast_s + _CALL_S
        works = not redis.down and redis.refusal is None and fast
        return process.runs and ways and works

    def _look_at_wishes(self) -> None:
        """What programs want of the leader is in Redis for the next one."""
        world, now_s = self._world, anyio.current_time()
        leader = world.life
        if leader is None or leader.service is None or leader not in self._able_since:
            self._wishes_differ_since_s = None
            return
        wanted = {
            symbol for symbol, sources in leader.service.subscriptions().items() if "api" in sources
        }
        kept = {symbol for _, symbol in world.redis.wishes["sources"].get("api", ())}
        if wanted == kept or world.redis.refusal is not None:
            self._wishes_differ_since_s = None
        elif self._wishes_differ_since_s is None:
            self._wishes_differ_since_s = now_s
        elif now_s - self._wishes_differ_since_s > _WISHES_S:
            world.violated(f"{sorted(kept)} is kept of what is wanted: {sorted(wanted)}")
            self._wishes_differ_since_s = None

    def _look_at_feed(self) -> None:
        for connection in self._world.sim.connections:
            if connection.number not in self._connections and connection.subscriptions.get(
                "quotes"
            ):
                self._connections.add(connection.number)
                self.subscribed_ns.append(self._world.market_clock.utc_ns())


async def until_standbys_know(world: GroupWorld) -> None:
    """Wait until each standby knows the last prices, since a repair may just have brought them."""
    with anyio.move_on_after(_KNOWN_S):
        while any(_unknown(world)):
            await anyio.sleep(_SAMPLE_S)


def _unknown(world: GroupWorld) -> Iterator[str]:
    """What standbys do not know of the leader's last prices."""
    leader = world.life
    if leader is None or leader.service is None:
        return
    wanted = leader.service.subscriptions()  # the leader also shows what was unsubscribed
    for process in world.processes:
        if not process.runs or process.leads or process.service is None:
            continue
        for quote in (each for each in leader.service.prices() if each.symbol in wanted):
            known = process.service.latest(quote.symbol)
            if known is None or encode_quote(known) != encode_quote(quote):
                yield f"{process.name} does not know the last price of {quote.symbol}"


def check_group_at_end(world: GroupWorld) -> None:
    """All has been well for a while, and the market is closed."""
    leading = [process for process in world.processes if process.runs and process.leads]
    standing_by = [process for process in world.processes if process.runs and not process.leads]
    if len(leading) != 1 or len(standing_by) != len(world.hosts) - 1:
        world.violated(f"{len(leading)} lead and {len(standing_by)} stand by at the end")
        return
    (leader,) = leading
    service = leader.service
    assert service is not None
    few_calls = world.plan.config.rest_rate_limit is not None
    reasons = service.readiness().reasons
    if reasons and not (few_calls and "calls of this minute" in str(reasons)):
        world.violated(f"the leader is not ready at the end: {reasons}")
    if waiting := service._topology.publisher.unacknowledged:
        world.violated(f"{waiting} events are not written at the end")
    status = service.status().standby
    if status is None or not status.leads or not status.standby_alive:
        world.violated(f"the leader shows another state: {status}")
    for quote in service.prices():
        stored = world.redis.price(quote.symbol)
        if stored != encode_quote(quote):
            world.violated(f"the key of {quote.symbol} is {stored!r}, not {encode_quote(quote)!r}")
    for process in standing_by:
        assert process.service is not None
        shown = process.service.status().standby
        ready = process.service.readiness()
        named = leader.lease.own.shown
        if (
            ready.ready
            or shown is None
            or (shown.leader, shown.epoch)
            != (
                named,
                leader.lease.own.epoch,
            )
        ):
            world.violated(f"{process.name} shows another leader than {leader.name}: {shown}")
    for violation in _unknown(world):
        world.violated(violation)


def check_group(world: GroupWorld) -> Iterator[str]:
    """Everything that others have seen of the group."""
    yield from check_leases(world)
    yield from check_writers(world)
    readers = Readers(world)
    yield from readers.check()
    yield from check_none_missing(world, readers)


def check_leases(world: GroupWorld) -> Iterator[str]:
    """A lease is another's only once it was given up or not renewed for its time, in a new epoch."""
    lost_s = [event.at_s for event in world.redis.history if isinstance(event, Lost)]
    last = None
    for given in world.redis.granted:
        if last is not None and last.id != given.id and not given.free:
            lost = any(last.at_s <= at_s <= given.at_s for at_s in lost_s)
            if not lost and not last.free and given.at_s < last.at_s + LEASE_S - _ROUNDING_S:
                yield (
                    f"{given.id} got the lease at {given.at_s:.3f} s, and {last.id} had renewed it "
                    f"at {last.at_s:.3f} s"
                )
            if not lost and given.epoch <= last.epoch:
                yield f"epoch {given.epoch} of {given.id} after {last.epoch} of {last.id}"
        last = given


def check_writers(world: GroupWorld) -> Iterator[str]:
    """Only the leader writes once it has begun, and in each epoch only one.

    It begins when it has ended the connections of the one before, and reads.
    """
    writers: dict[int, str] = {}
    begun = None
    for event in world.redis.history:
        if isinstance(event, Lost):
            writers.clear()
        if isinstance(event, Read):
            begun = event.id
        if not isinstance(event, Written) or event.holder not in {event.id, begun}:
            continue
        if event.id != event.holder:
            yield (
                f"at {event.at_s:.3f} s a batch of {event.id} (epoch {event.term}) was executed, "
                f"though {event.holder} leads in epoch {event.epoch}"
            )
        if writers.setdefault(event.epoch, event.id) != event.id:
            yield f"{writers[event.epoch]} and {event.id} have both written in epoch {event.epoch}"


@attrs.frozen
class Excuse:
    """Quotes of a symbol that may be missing."""

    symbol: str
    start_ns: int
    end_ns: int


@attrs.frozen
class _Term:
    id: str
    epoch: int


class Readers:
    """What a subscriber sees that never loses its connection, in order.

    Attributes:
        unchecked: As those of one run of a service.
        published: Every quote that was published.
        gaps: Those that stay: reported, and not repaired.
        excuses: What a loss of Redis took along with the leader.
    """

    def __init__(self, world: GroupWorld) -> None:
        self._world = world
        self.published: Counter[Identity] = Counter()
        self.gaps: list[Gap] = []
        self.excuses: list[Excuse] = []
        self._unpromised_ns = dict.fromkeys(STATIC, 0)
        """Symbols of which nothing is promised yet, and since when: none of the feed's quotes was
        published since the prices began, or were lost."""
        self.unchecked: list[Believed[Any]] = [
            believed for process in world.processes for believed in process.unchecked
        ]
        self._last: dict[str, Quote] = {}
        self._of_server: dict[str, Quote] = {}
        """The last of each symbol that the server still has after a loss."""
        self._may_begin_again: set[str] = set()
        """Symbols whose last price the leader may have left out, since its clock was wrong."""
        self._gone: set[Identity] = set()
        """Published, but a new leader does not know of these: the server or its clock lost them."""
        self._reads: dict[_Term, tuple[float, dict[str, Quote]]] = {}
        self._subscribed_ns = 0
        """When the feed was first subscribed in this term, by the market's clock."""
        self._statuses: list[FeedStatus] = []
        self._term: _Term | None = None
        self._begun: set[_Term] = set()
        self._before: tuple[_Term, int] | None = None
        self._has_lost = False

    def check(self) -> Iterator[str]:
        """Go through all that happened."""
        for event in self._world.redis.history:
            if isinstance(event, Lost):
                self._lose(event)
            elif isinstance(event, Read):
                yield from self._note_read(event)
            else:
                yield from self._take(event)
        self._end_term(last=True)
        # The second look at history may come while the leader can no longer write what it found.
        found_late = [status for process in self._world.processes for status in process.found_late]
        self.gaps += unrepaired(self._world, found_late)
        for symbol, start_ns in self._unpromised_ns.items():
            self.excuses.append(Excuse(symbol, start_ns, self._world.market_clock.utc_ns()))

    def _lose(self, event: Lost) -> None:
        self._has_lost = True
        self._of_server = {symbol: QUOTES.decode(payload) for symbol, payload in event.keys.items()}
        for symbol, last in self._last.items():
            payload = event.keys.get(symbol)
            has_ns = -1 if payload is None else QUOTES.decode(payload).ts_event_ns
            for made_identity, _ in self._world.market.by_symbol[symbol]:
                if has_ns <= made_identity[1] <= last.ts_event_ns:
                    self._gone.add(made_identity)

    def _note_read(self, event: Read) -> Iterator[str]:
        found = {symbol: QUOTES.decode(payload) for symbol, payload in event.found.items()}
        if self._world.believes_it_is_earlier(event.id, event.at_s):
            self._may_begin_again |= set(STATIC)  # to it, the prices are of the future
        self._reads[_Term(event.id, event.term)] = event.at_s, found
        if self._has_lost:
            return
        for symbol, last in self._last.items():
            read = found.get(symbol)
            if read is None or read.seq != last.seq:
                yield f"{event.id} found {read} of {symbol} at {event.at_s:.3f} s, not {last}"

    def _take(self, event: Written) -> Iterator[str]:
        term = _Term(event.id, event.term)
        if term != self._term:
            yield from self._begin_term(term, event)
        messages = event.batch.messages
        again = (term, event.batch.number) == self._before
        if not event.batch.ages_s and not event.batch.restored:
            self._before = term, event.batch.number
        if again and self._has_lost and messages and not event.batch.restored:
            return  # a server that forgot everything also forgot that it had executed this batch
        for message in messages:
            if message.symbol is None:
                if message.channel == STATUS_CHANNEL:
                    self._statuses.append(_decode_status(message.payload))
                continue
            if message.symbol not in STATIC:
                continue  # subscribed and left at any time, so its numbers may begin again
            yield from self._take_quote(message.payload)
            key = event.keys[message.symbol]
            if key is None or QUOTES.decode(key).seq < QUOTES.decode(message.payload).seq:
                yield f"the key holds {key!r} after {message.payload!r}"
        for symbol in event.keys.keys() & set(STATIC):
            payload, last = event.keys[symbol], self._last.get(symbol)
            if payload is None or last is None or QUOTES.decode(payload).seq < last.seq:
                yield f"the key of {symbol} went back to {payload!r} at {event.at_s:.3f} s"

    def _take_quote(self, payload: bytes) -> Iterator[str]:
        quote = QUOTES.decode(payload)
        symbol, its_identity = quote.symbol, identity(quote)
        made = self._world.market.made.get(its_identity)
        if made is None:
            yield f"a quote that the market never made: {payload!r}"
            return
        if quote.seq == 1 and symbol in self._may_begin_again and symbol in self._last:
            self._unpromised_ns.setdefault(symbol, self._last.pop(symbol).ts_event_ns)
            # It does not know either which quotes were published, and asks history for the newest.
            self._gone.update(each for each in self.published if each[0] == symbol)
        self._may_begin_again.discard(symbol)
        last = self._last.get(symbol)
        if quote.seq != (last.seq if last else 0) + 1:
            yield f"{symbol} {quote.seq} after {last.seq if last else 0}"
        if last is not None and quote.ts_event_ns < last.ts_event_ns:
            yield f"back in time: {payload!r} after {last}"
        if symbol in self._unpromised_ns and quote.ts_event_ns > self._subscribed_ns:
            # What came between a price from REST and the feed's first quote is not promised.
            start_ns = self._unpromised_ns.pop(symbol)
            self.excuses.append(Excuse(symbol, start_ns, quote.ts_event_ns))
        self._last[symbol] = quote
        self.published[its_identity] += 1
        again = self.published[its_identity] > 1 and its_identity not in self._gone
        if again and not self._world.market.may_come_again(its_identity):
            yield f"published {self.published[its_identity]} times: {payload!r}"

    def _begin_term(self, term: _Term, event: Written) -> Iterator[str]:
        self._end_term()
        first, again = self._term is None, term in self._begun
        self._begun.add(term)
        self._term = term
        self._statuses = []
        read_s, found = self._reads.get(term, (event.at_s, {}))
        if again:  # the server has lost the claim of the next leader: this one goes on
            found = self._of_server
            if event.batch.ages_s:  # with its own records, where the server came back empty before
                found = {s: QUOTES.decode(key) for s, key in event.keys.items() if key is not None}
                self._gone.update(
                    each
                    for each in self.published
                    if each[0] in found and each[1] > found[each[0]].ts_event_ns
                )
        self._subscribed_ns = self._next_subscribed_ns(read_s)
        if self._has_lost:
            for symbol, last in list(self._last.items()):
                read = found.get(symbol)
                if read is None:
                    self._unpromised_ns.setdefault(symbol, last.ts_event_ns)
                    del self._last[symbol]
                else:
                    self._last[symbol] = read
            self._has_lost = False
        statuses = [each for each in event.batch.messages if each.channel == STATUS_CHANNEL]
        if not first and not again and term.epoch > 1:
            states = [_decode_status(each.payload).state for each in statuses]
            if states[:1] != ["takeover"]:
                yield f"{term} begins with {states}, and not with its takeover"

    def _next_subscribed_ns(self, at_s: float) -> int:
        """When the feed was subscribed after this moment."""
        clock = self._world.market_clock
        after_ns = clock.utc_ns() - int((anyio.current_time() - at_s) * 1e9)
        every_ns = self._world.lead_watch.subscribed_ns
        return next((at_ns for at_ns in every_ns if at_ns > after_ns), clock.utc_ns())

    def _end_term(self, *, last: bool = False) -> None:
        """A new leader repairs from the newest published record on: what it finds is its own gap."""
        told = [
            status
            for status in self._statuses
            if status.details.get("channel", QUOTES.channel) == QUOTES.channel
            and not str(status.details.get("reason", "")).startswith(_FAILED_OVER)
        ]
        newest_ns = max((last.ts_event_ns for last in self._last.values()), default=0)
        for gap in unrepaired(self._world, told):
            if last:
                self.gaps.append(gap)
            elif gap.start_ns < newest_ns:
                self.gaps.append(attrs.evolve(gap, end_ns=min(gap.end_ns, newest_ns)))


def _decode_status(payload: bytes) -> FeedStatus:
    told: dict[str, Any] = msgspec.json.decode(payload)
    state, at, feed = told.pop("state"), told.pop("at"), told.pop("feed")
    return FeedStatus(state, parse_rfc3339(at), told, feed)


def check_none_missing(world: GroupWorld, readers: Readers) -> Iterator[str]:
    """Every quote that the market made was published, or is within a gap that was reported."""
    for symbol in STATIC:
        missing = [
            made
            for its_identity, made in world.market.by_symbol[symbol]
            if its_identity not in readers.published
            and not any(
                excuse.symbol == symbol and excuse.start_ns <= its_identity[1] <= excuse.end_ns
                for excuse in readers.excuses
            )
            and not excused(world, readers.unchecked, made, readers.gaps)
        ]
        if missing:
            yield (
                f"{len(missing)} quotes of {symbol} are missing, the first made at "
                f"{missing[0].at_s:.6f} s, the last at {missing[-1].at_s:.6f} s: "
                f"{missing[0].quote}"
            )
