"""What has to be true of every run, whatever went wrong in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import inf
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from mdservice.feed.gap_repair.repair import QUIET_S
from mdservice.model.events import FeedStatus
from mdservice.model.feeds import FeedName
from mdservice.model.kinds import QUOTES, Kind
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator import Drop
from tests.simulation.market import Identity, Made, identity_of
from tests.simulation.names import DYNAMIC
from tests.simulation.plan import PRICE_TTL_S
from tests.simulation.published import check_counters, check_keys, check_published

if TYPE_CHECKING:
    from mdservice.app.service import Service
    from mdservice.feed.gap_repair.recheck import Believed
    from tests.simulation.life import Life
    from tests.simulation.world import World

_SECOND_NS = 1_000_000_000
_FOR_EVER_NS = 86_400 * _SECOND_NS
_SETTLED_NS = 16 * _SECOND_NS
"""Longer than live quotes wait behind a repair."""
FAR_OFF_S = 50.0
LATE = "history was late"
"""Why a gap is reported without a lost connection; there is no repairing it."""
_PRICE_LIMIT_S = 3.0
"""How soon a symbol that the feed gives has its price."""
HELD_AT_MOST_S = 60.0
"""How long a quote may wait (a frozen line, a repair) before the service looks at its time."""


def check_life(world: World, life: Life, *, final: bool) -> Iterator[str]:
    """Everything about one run of the service, once it is over."""
    if life.counters is None:
        return
    yield from check_quotes(world, life, final=final)
    yield from check_published(life)
    yield from check_keys(life)
    yield from check_states(world, life)
    yield from check_gap_after_the_faults(world, life)
    yield from check_counters(life)


def check_quotes(world: World, life: Life, *, final: bool) -> Iterator[str]:
    """Quotes of stocks are accepted in order, each once, and none is missing."""
    yield from _check_accepted(world, life)
    yield from _check_nothing_missing(world, life, final=final)


async def check_at_end(world: World) -> None:
    """The service still runs, all has been well for a while, and the market is closed."""
    life = world.life
    assert life is not None
    assert life.service is not None
    service = life.service
    reasons = service.readiness().reasons
    # Ten calls a minute can be used up when a quiet market is looked into: then it connects anew.
    few_calls = world.plan.config.rest_rate_limit == 10 and "calls of this minute" in str(reasons)
    if reasons and not few_calls:
        world.violated(f"not ready at the end: {reasons}")
    if waiting := service._topology.publisher.unacknowledged:
        world.violated(f"{waiting} events are not written at the end")
    emptied_at_s = world.store.emptied_at_s
    followed = _quoted(service)
    if any(q.symbol in followed and not world.store.price(q.symbol) for q in service.prices()):
        await anyio.sleep(_PRICE_LIMIT_S)  # the feed may have given a refused symbol just now
    for quote in service.prices():
        stored = world.store.price(quote.symbol)
        if stored is None and quote.symbol not in _quoted(service):
            continue  # no feed says that it is still right
        if stored != encode_quote(quote):
            told = f"the key of {quote.symbol} is {stored!r}, not {encode_quote(quote)!r}"
            world.violated(f"{told} (the store was emptied at {emptied_at_s})")
    repair = service._topology.feed._recoveries[QUOTES]
    overdue = repair._holding and anyio.current_time() > repair._deadline_s
    if overdue or (repair._held and not repair._holding):
        world.violated("live quotes are still held")


def _quoted(service: Service) -> set[str]:
    """The symbols whose quotes a feed gives."""
    return {symbol for symbol, given in service.channels().items() if "quotes" in given}


async def check_first_price(world: World) -> None:
    """A symbol that is subscribed in a closed market has its price within 3 s, from REST."""
    life = world.life
    if life is None or life.service is None or world.plan.config.rest_rate_limit is not None:
        return
    service = life.service
    traded = {symbol for symbol, *_ in world.market.made}
    new = [
        symbol
        for symbol in DYNAMIC
        if symbol in traded
        and symbol not in life.ever_refused
        and symbol not in service.subscriptions()
    ]
    for symbol in new[:1]:
        outcome = await world.clients.subscribe(life, symbol)
        world.trace(f"{symbol} {outcome} in a closed market")
        await anyio.sleep(_PRICE_LIMIT_S)
        if not outcome.startswith("refused") and world.store.price(symbol) is None:
            world.violated(f"{symbol} has no price 3 s after it was subscribed")


async def check_prices_live(world: World) -> None:
    """While the feed is connected and nothing trades, each followed symbol keeps its price.

    A symbol that the feed left out and gives only at the end of that time may be without one.
    """
    life = world.life
    if life is None or life.service is None:
        return
    service = life.service
    connections = service.status().counters.reconnects
    followed = _quoted(service)
    await anyio.sleep(2 * PRICE_TTL_S)
    if service.status().counters.reconnects != connections:
        return
    followed &= _quoted(service)
    for quote in service.prices():
        if quote.symbol in followed and world.store.price(quote.symbol) is None:
            world.violated(f"the price of {quote.symbol} ran out though the feed is connected")


async def check_prices_run_out(world: World) -> None:
    """Without a feed, no price is renewed: each key runs out."""
    world.network_down_until_s = inf
    world.sim.inject(Drop("reset", 1001))
    await anyio.sleep(PRICE_TTL_S + 1)
    for symbol in world.symbols:
        if world.store.price(symbol) is not None:
            world.violated(f"the price of {symbol} is renewed without a feed")


def identity(quote: Quote) -> Identity:
    """What makes a quote this one."""
    return identity_of(
        quote.symbol, quote.ts_event_ns, quote.bid, quote.ask, quote.bid_size, quote.ask_size
    )


def _check_accepted(world: World, life: Life) -> Iterator[str]:
    """Real quotes, in order, numbered, each once."""
    last: dict[str, Quote] = {}
    seen: Counter[Identity] = Counter()
    for quote in life.accepted:
        its_identity = identity(quote)
        made = world.market.made.get(its_identity)
        if made is None:
            yield f"a quote that the market never made: {quote}"
            continue
        before = last.get(quote.symbol)
        if quote.seq != (before.seq if before else 0) + 1:
            yield f"{quote.symbol} {quote.seq} after {before.seq if before else 0}"
        if before is not None and quote.ts_event_ns < before.ts_event_ns:
            yield f"back in time: {quote} after {before}"
        last[quote.symbol] = quote
        seen[its_identity] += 1
        if seen[its_identity] > 1 and not world.market.may_come_again(its_identity):
            yield f"accepted {seen[its_identity]} times: {quote}"


@attrs.frozen
class Gap:
    """A gap as it was reported."""

    start_ns: int
    end_ns: int
    symbols: frozenset[str]

    def without(self, repaired: Gap) -> Gap:
        """What is left of it."""
        if repaired.start_ns <= self.start_ns and self.end_ns <= repaired.end_ns:
            return attrs.evolve(self, symbols=self.symbols - repaired.symbols)
        return self


def unrepaired(world: World, statuses: Sequence[FeedStatus]) -> list[Gap]:
    """The gaps that were reported and not taken back.

    A quiet market whose history lags is looked at again, as far as this machine's clock is right:
    where it was wrong, a gap counts as one although it was taken back.
    """
    gaps: list[Gap] = []
    believed_wrongly = bool(world.skews) and world.plan.config.rest_lag_s > QUIET_S
    for status in statuses:
        if status.state in ("gap", "gap_repaired"):
            gap = Gap(
                parse_rfc3339(status.details["from"]),
                parse_rfc3339(status.details["to"]),
                frozenset(status.details["symbols"]),
            )
            if status.state == "gap":
                if gap.end_ns == gap.start_ns:  # the clock was behind: until when is not known
                    gap = attrs.evolve(gap, end_ns=gap.end_ns + _FOR_EVER_NS)
                gaps.append(gap)
            elif not believed_wrongly:
                gaps = [told.without(gap) for told in gaps]
    return gaps


def _check_nothing_missing(world: World, life: Life, *, final: bool) -> Iterator[str]:
    accepted = {identity(quote) for quote in life.accepted}
    came: dict[str, list[Quote]] = defaultdict(list)
    for quote in life.accepted:
        # What comes between a price from REST and the feed's acknowledgement is not promised.
        if id(quote) not in life.fetched:
            came[quote.symbol].append(quote)
    gaps = unrepaired(world, life.statuses)
    by_symbol = world.market.by_symbol
    for symbol, intervals in life.wanted.items():
        for interval in intervals:
            # Where it is wanted again later, a repair may bring some of what nobody waited for.
            end_ns = interval.end_ns or _FOR_EVER_NS * 365_000
            within = [
                quote.ts_event_ns
                for quote in came[symbol]
                if interval.holds(quote.ts_event_ns) and quote.ts_recv_ns <= end_ns
            ]
            if not within:
                continue
            first_ns, last_ns = min(within), max(within)
            left_out = by_symbol[symbol] and by_symbol[symbol][-1][1].left_out
            if final and not life.cut_short and interval.end_ns is None and not left_out:
                last_ns = max(last_ns, world.market_clock.utc_ns())
            else:
                last_ns -= 1  # others of that time may have been on their way at the end
            missing = [
                made
                for its_identity, made in by_symbol[symbol]
                if first_ns < its_identity[1] <= last_ns
                and made.at_s < (life.drain_began_s or life.closed_s)
                and interval.holds(its_identity[1])
                and its_identity not in accepted
                and not excused(world, life.unchecked, made, gaps)
            ]
            if missing:
                yield (
                    f"{len(missing)} quotes of {symbol} are missing, the first made at "
                    f"{missing[0].at_s:.6f} s, the last at {missing[-1].at_s:.6f} s: "
                    f"{missing[0].quote}"
                )


def excused(
    world: World, unchecked: Sequence[Believed[Any]], made: Made, gaps: Sequence[Gap]
) -> bool:
    """Whether it was said that this quote may be missing."""
    if made.spoiled or made.reordered:
        return True
    slack_ns = int(max((abs(s) for _, _, s in world.skews if abs(s) < FAR_OFF_S), default=0) * 1e9)
    ts_ns, symbol = made.quote.ts_event_ns, made.quote.symbol
    if any(believed.concerned([made.quote]) for believed in unchecked):
        return True
    if any(
        gap.start_ns - slack_ns <= ts_ns <= gap.end_ns + slack_ns and symbol in gap.symbols
        for gap in gaps
    ):
        return True
    return any(
        start_s - HELD_AT_MOST_S <= made.at_s <= end_s + HELD_AT_MOST_S
        for start_s, end_s, skew_s in world.skews
        if abs(skew_s) > FAR_OFF_S
    )


def check_states(
    world: World, life: Life, feed: FeedName = "stocks", kind: Kind[Any] = QUOTES
) -> Iterator[str]:
    """A feed connects before it disconnects, and a gap follows a lost connection."""
    connected = False
    every = frozenset((*world.symbols, EVERY_SYMBOL))
    # The keys of the run before tell where it ended.
    lost, told = set(every if life.number else ()), set[str]()
    statuses = life.statuses_of(feed, kind)
    connections = [place for place, each in enumerate(statuses) if each.state == "connected"]
    for place, status in enumerate(statuses):
        state = status.state
        symbols = set(status.details.get("symbols", ()))
        if state == "connected":
            if connected:
                yield "connected twice"
            connected = True
        elif state == "disconnected":
            if not connected:
                yield "disconnected without a connection"
            connected, lost = False, set(every)
        elif state == "gap":
            if status.details.get("reason") == LATE:
                continue  # a repair's history told it after all
            # What the next run of the service cannot know is reported at the end.
            at_the_end = place > max(connections, default=-1)
            if not (connected or at_the_end) or not symbols <= lost:
                yield f"a gap without a lost connection: {sorted(symbols - lost)}"
            lost -= symbols
            told |= symbols
        elif state == "gap_repaired":
            if not symbols <= told:
                yield f"a gap is repaired that was not reported: {sorted(symbols - told)}"
            told -= symbols
        elif state == "stale" and not connected:
            yield "stale without a connection"
    if connected and life.error is None:  # which another feed may have raised
        yield "the last state is connected"


def _refused(world: World, life: Life) -> set[str]:
    """The symbols whose repairs may be refused in this run."""
    return life.ever_refused if "rest_refuse_symbol" in world.plan.faults else set()


def _went_on(life: Life, gap: FeedStatus) -> bool:
    """Whether of each symbol a quote from within the gap was out before the gap was reported."""
    before = takewhile(lambda item: item is not gap, life.routed)
    out = {
        item.symbol
        for item in before
        if isinstance(item, Quote) and gap.details["from"] < item.timestamp <= gap.details["to"]
    }
    return out.issuperset(gap.details["symbols"])


def check_gap_after_the_faults(
    world: World, life: Life, feed: FeedName = "stocks", kind: Kind[Any] = QUOTES
) -> Iterator[str]:
    """When history works, a gap is repaired."""
    config = world.plan.config
    few_calls = config.rest_rate_limit == 10 or config.rest_page_size == 7
    if world.faults_over_s is None or (config.rest_rate_limit is not None and few_calls):
        return
    over_ns = world.market_clock.utc_ns() - int((life.closed_s - world.faults_over_s) * _SECOND_NS)
    over_ns += int(max((0.0, *(s for _, _, s in world.skews))) * _SECOND_NS)  # at_ns may be off
    undisturbed = {"feed", "store", "symbols"}.issuperset(
        name.partition("_")[0] for name in world.plan.faults
    )
    told = [
        status
        for status in life.statuses_of(feed, kind)
        if status.state in ("gap", "gap_repaired", "disconnected")
        and status.details.get("reason") != LATE
    ]
    quotes_of_stocks = kind is QUOTES and feed == "stocks"
    refused = _refused(world, life) if quotes_of_stocks else set()
    if not quotes_of_stocks and not {"rest_refuse_symbol", "login_refuse_subscribe"}.isdisjoint(
        world.plan.faults
    ):
        return
    waiting_since_ns: int | None = None
    for status, after in zip(told, [*told[1:], None], strict=False):
        if status.state == "gap_repaired":
            waiting_since_ns = None
        if status.state != "gap":
            continue
        # Lost again at once, what waits has waited since the connection before.
        longer = waiting_since_ns is not None and status.at_ns < waiting_since_ns + _SETTLED_NS
        if longer:
            continue
        waiting_since_ns = status.at_ns
        if not (undisturbed or status.at_ns > over_ns + _SETTLED_NS):
            continue
        if refused.issuperset(status.details["symbols"]):
            continue  # history refused these; they are asked for again only after an hour
        if "login_refuse_subscribe" in world.plan.faults and _went_on(life, status):
            continue  # left out while its live quotes waited: what came before them stays missing
        until_ns = world.market_clock.utc_ns() if after is None else after.at_ns
        repaired = after is not None and after.state == "gap_repaired"
        if not repaired and until_ns > status.at_ns + _SETTLED_NS:
            yield f"a gap is not repaired though nothing is wrong: {status}"
