"""What has to be true of every stream of the account, whatever went wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec

from mdservice.model.events import encode_status
from mdservice.model.feeds import FEEDS, STOCKS, Feed, Topic
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    KINDS,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    TRADES,
    Kind,
    Overflow,
    Repair,
)
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import parse_rfc3339
from mdservice.model.trade import Trade, changed_trade, trade_identity
from mdservice.redis_io.names import STATUS_CHANNEL
from mdservice.router.policies import Merge
from tests.simulation.account import MadeRecord, content_of, fields_of
from tests.simulation.life import Interval
from tests.simulation.oracle import (
    FAR_OFF_S,
    HELD_AT_MOST_S,
    Gap,
    check_gap_after_the_faults,
    check_quotes,
    check_states,
    unrepaired,
)

if TYPE_CHECKING:
    from tests.simulation.account import AccountMarket
    from tests.simulation.life import Life
    from tests.simulation.world import World

__all__ = ["check_account", "check_account_at_end", "check_keys_live", "check_keys_run_out"]

_IN_ORDER: Final = (QUOTES, LULDS)
_VERSIONS: Final = (BARS, DAILY_BARS, NEWS)
"""Kinds of which REST has only the last version of a record."""
_SPOILS_BOOKS: Final = frozenset(("data_garble", "data_mute", "data_reorder"))
"""After these a change of a book may be missing, and nothing shows it."""
_REPEATS_CHANGES: Final = "data_duplicate"
"""After this a book may be for a moment as it never was: of two changes the first comes again."""
_SAMPLES: Final = 3


def check_account(world: World, life: Life, *, final: bool) -> Iterator[str]:
    """Everything about one run of the service, once it is over."""
    if life.counters is None:
        return
    yield from check_quotes(world, life, final=final)
    yield from _check_records(world, life)
    for feed in FEEDS:
        yield from _check_nothing_missing(world, life, feed, final=final)
        for kind in feed.kinds:
            if not kind.is_companion:
                yield from _labeled(feed, kind, check_states(world, life, feed.name, kind))
            if feed.repair(kind) is Repair.FROM_HISTORY:
                told = check_gap_after_the_faults(world, life, feed.name, kind)
                yield from _labeled(feed, kind, told)
        yield from _check_gaps(life, feed)
    yield from _check_published(life)
    yield from _check_keys(life)
    yield from _check_minutes(life, _market(world))


def _labeled(feed: Feed, kind: Kind[Any], found: Iterator[str]) -> Iterator[str]:
    return (f"{kind.channel} of {feed.name}: {text}" for text in found)


def _market(world: World) -> AccountMarket:
    assert world.account is not None
    return world.account


def _records(life: Life) -> Iterator[tuple[str, Kind[Any], Any]]:
    """The accepted records but the quotes of stocks, which have checks of their own."""
    for feed, kind, record in life.every:
        if kind is not None and not (kind is QUOTES and feed == STOCKS.name):
            yield feed, kind, record


# What was accepted


def _check_records(world: World, life: Life) -> Iterator[str]:
    """Records that the market made, numbered, each once."""
    market = _market(world)
    sure_of_books = (_SPOILS_BOOKS | {_REPEATS_CHANGES}).isdisjoint(world.plan.faults)
    last: dict[tuple[Kind[Any], str], int] = defaultdict(int)
    seen: Counter[tuple[Kind[Any], bytes]] = Counter()  # a day's first minute is both its bars
    newest: dict[tuple[Kind[Any], str], int] = {}
    for _, kind, record in _records(life):
        name = f"{kind.channel}: {record}"
        key = kind, record.symbol
        if record.seq != last[key] + 1:
            yield f"{name} after {last[key]}"
        last[key] = record.seq
        if kind is ORDERBOOKS and sure_of_books:
            bids, asks = record.bids, record.asks
            if bids and asks and bids[0][0] >= asks[0][0]:
                yield f"a crossed book: {record}"
        if kind in _IN_ORDER and record.ts_event_ns < newest.get(key, 0):
            yield f"back in time: {name}"
        newest[key] = record.ts_event_ns
        content = content_of(fields_of(kind, record))
        made = market.made[kind].get(content)
        if made is None:
            of_correction = kind is TRADES and (record.symbol, record.id) in market.corrected
            if not of_correction and (kind is not ORDERBOOKS or sure_of_books):
                yield f"the market never made {name}"
            continue
        seen[kind, content] += 1
        most = made.count
        # One that was held back came in a later frame, which may have been sent twice.
        twice = made.duplicated or made.reordered
        if twice and kind is TRADES and record.id is None:
            most *= 2
        if seen[kind, content] > most and (kind is not ORDERBOOKS or sure_of_books):
            yield f"accepted {seen[kind, content]} times: {name}"


def _check_nothing_missing(world: World, life: Life, feed: Feed, *, final: bool) -> Iterator[str]:
    market = _market(world)
    came: dict[tuple[Kind[Any], str], dict[bytes, bool]] = defaultdict(dict)
    for kind, record in life.earlier_records:  # an exact repeat of what its key holds adds nothing
        came[kind, record.symbol][content_of(fields_of(kind, record))] = False
    for its_feed, kind, record in _records(life):
        if its_feed == feed.name:
            content = content_of(fields_of(kind, record))
            came[kind, record.symbol][content] = id(record) not in life.fetched
    for kind in feed.kinds:
        if kind is QUOTES and feed is STOCKS:
            continue
        if kind is ORDERBOOKS and not _SPOILS_BOOKS.isdisjoint(world.plan.faults):
            continue
        leading = TRADES if kind.is_companion else kind
        statuses = life.statuses_of(feed.name, leading)
        gaps = unrepaired(world, statuses)
        reported = unrepaired(world, [each for each in statuses if each.state == "gap"])
        if kind.is_companion:
            gaps = reported  # their trades are repaired, as they are after the change
        for (its_feed, its_kind, symbol), made in market.of.items():
            if its_feed != feed.name or its_kind is not kind:
                continue
            out = came[kind, symbol]
            for interval in _intervals(life, feed, symbol):
                window = _window(world, life, feed, kind, symbol, interval, out, final=final)
                if window is None:
                    continue
                missing = [
                    one
                    for one in made
                    if window[0] < one.sent_ns <= window[1]
                    and one.at_s < (life.drain_began_s or life.closed_s)
                    and interval.holds(one.sent_ns)
                    and one.content not in out
                    and not _excused(world, life, one, gaps)
                    and not _not_in_history(life, market, one, out, reported)
                ]
                if missing:
                    yield (
                        f"{len(missing)} {kind.channel} of {symbol} are missing, "
                        + ", ".join(
                            f"made at {one.at_s:.6f} s: {one.content.decode()[:300]}"
                            for one in missing[:_SAMPLES]
                        )
                    )


def _intervals(life: Life, feed: Feed, symbol: str) -> Sequence[Interval]:
    return life.wanted.get(symbol, ()) if feed is STOCKS else (Interval(0),)


def _window(
    world: World,
    life: Life,
    feed: Feed,
    kind: Kind[Any],
    symbol: str,
    interval: Interval,
    out: Mapping[bytes, bool],
    *,
    final: bool,
) -> tuple[int, int] | None:
    """From when to when every record has to come, by the market's clock."""
    made = _market(world).made[kind]
    sent = [
        made[content].sent_ns
        for content, streamed in out.items()
        if streamed and content in made and interval.holds(made[content].sent_ns)
    ]
    leading = TRADES if kind.is_companion else kind
    if kind in _IN_ORDER or symbol not in (*world.plan.symbols, EVERY_SYMBOL):
        # A repair may also bring what was sent before it was subscribed.
        asked = [
            one.sent_ns for one in _market(world).of[feed.name, kind, symbol] if one.subscribed
        ]
        first_ns = min(set(sent).intersection(asked), default=None)
    else:
        first_ns = life.resumed_ns.get((feed.name, leading, symbol))
    if first_ns is None:
        return None
    # The gap of what is left out is reported when it comes again.
    left_out = Topic(leading.channel, symbol) in world.left_out_at_end or any(
        one.left_out for one in _market(world).of[feed.name, leading, symbol][-1:]
    )
    if final and not life.cut_short and interval.end_ns is None and not left_out:
        return first_ns, world.market_clock.utc_ns()
    # Others of the last one's time may have been on their way at the end.
    return first_ns, max(sent, default=first_ns) - 1


def _excused(world: World, life: Life, one: MadeRecord, gaps: Sequence[Gap]) -> bool:
    """Whether it was reported that this record may be missing, or cannot be known."""
    if one.spoiled or one.reordered or one.left_out:
        return True
    unchecked = life.kinds_unchecked.get((one.feed, one.kind), ())
    if any(believed.concerned([one]) for believed in unchecked):
        return True
    if _in_gap(world, one, gaps):
        return True
    return any(
        start_s - HELD_AT_MOST_S <= one.at_s <= end_s + HELD_AT_MOST_S
        for start_s, end_s, skew_s in world.skews
        if abs(skew_s) > FAR_OFF_S
    )


def _in_gap(world: World, one: MadeRecord, gaps: Sequence[Gap]) -> bool:
    slack_ns = int(max((abs(s) for _, _, s in world.skews if abs(s) < FAR_OFF_S), default=0) * 1e9)
    return any(
        gap.start_ns - slack_ns <= ns <= gap.end_ns + slack_ns
        and not gap.symbols.isdisjoint((one.symbol, EVERY_SYMBOL))
        for gap in gaps
        for ns in (one.ts_ns, one.sent_ns)
    )


def _not_in_history(
    life: Life,
    market: AccountMarket,
    one: MadeRecord,
    out: Mapping[bytes, bool],
    reported: Sequence[Gap],
) -> bool:
    """Whether it was lost in an outage, and REST does not give it.

    It has only the last version of a record, and a trade may be later than a repair expects.
    """
    if not any(gap.start_ns <= one.sent_ns for gap in reported):
        return False
    fields = msgspec.json.decode(one.content)
    if one.kind is TRADES:
        # History is asked from so long before the loss.
        late = one.sent_ns - one.ts_ns > int(TRADES.late_s * 1e9)
        # Of an earlier run only the last trade is known: those before it count as published.
        earlier = one.ts_ns <= life.earlier_ns.get((TRADES, one.symbol), -1)
        return late or earlier or (one.symbol, fields["id"]) in market.changed_ids
    if one.kind not in _VERSIONS:
        return False
    name = "id" if one.kind is NEWS else "timestamp"
    made = market.of[one.feed, one.kind, one.symbol]
    later = made[next(place for place, other in enumerate(made) if other is one) + 1 :]
    return any(
        other.content in out and msgspec.json.decode(other.content)[name] == fields[name]
        for other in later
    )


# What was reported


def _check_gaps(life: Life, feed: Feed) -> Iterator[str]:
    """Each gap names the channel of a kind of the feed, and how it ends fits that kind."""
    kinds = {kind.channel: kind for kind in feed.kinds if not kind.is_companion}
    for its_feed, kind, status in life.every:
        if its_feed != feed.name or kind is not None:
            continue
        if status.feed != feed.name:
            yield f"a state of {feed.name} names another feed: {status}"
        if status.state not in ("gap", "gap_repaired"):
            continue
        its_kind = kinds.get(status.details.get("channel", ""))
        if its_kind is None:
            yield f"a gap of no channel of {feed.name}: {status}"
            continue
        repair = feed.repair(its_kind)
        if status.state == "gap_repaired" and repair is not Repair.FROM_HISTORY:
            yield f"{its_kind.channel} of {feed.name} cannot be repaired: {status}"
        if status.details.get("refreshed") and repair not in (
            Repair.LATEST,
            Repair.SUBSCRIBE_AGAIN,
        ):
            yield f"{its_kind.channel} of {feed.name} is not refreshed: {status}"


# What was published


def _check_published(life: Life) -> Iterator[str]:
    """What was accepted is published once and in order, or counted as conflated or dropped."""
    expected: dict[str, dict[bytes, int]] = defaultdict(dict)
    for place, (_, kind, item) in enumerate(life.every):
        if kind is not None:
            expected[kind.event][kind.encode(item)] = place
    last: dict[tuple[str, str], int] = {}
    counts: Counter[str] = Counter()
    statuses: dict[str, list[bytes]] = defaultdict(list)
    for batch in life.batches():
        for message in batch.messages:
            if message.symbol is None:
                if message.channel == STATUS_CHANNEL:
                    feed = msgspec.json.decode(message.payload)["feed"]
                    statuses[feed].append(message.payload)
                continue
            counts[message.channel] += 1
            place = expected[message.channel].get(message.payload, -1)
            key = message.channel, message.symbol
            if place < 0:
                yield f"published what was not accepted: {message.payload[:300]!r}"
            elif place <= last.get(key, -1):
                yield f"published again or out of order: {message.payload[:300]!r}"
            last[key] = place
    counters = life.counters
    unsettled = life.unsettled[0] if life.unsettled else 0
    if counts.total() not in {counters.events_published, counters.events_published + unsettled}:
        yield f"{counts.total()} events are in the store, {counters.events_published} are counted"
    told = counters.events_published + unsettled + counters.events_conflated
    told += life.dropped + life.waiting_at_end
    accepted = sum(map(len, expected.values()))
    if accepted != told:
        yield f"{accepted} accepted, {told} published, conflated, dropped or waiting: {counters}"
    if not life.drained:
        return
    for kind in KINDS:
        of_kind = expected[kind.event]
        if kind.overflow is Overflow.KEEP and counts[kind.event] != len(of_kind):
            yield f"{len(of_kind)} {kind.channel} accepted, {counts[kind.event]} published"
    newest: dict[tuple[str, str], int] = {}
    for place, (_, kind, item) in enumerate(life.every):
        if kind is not None and kind is not TRADES:
            newest[kind.event, item.symbol] = place
    behind = {key for key, place in newest.items() if last.get(key) != place}
    if behind:
        yield f"the last of some symbols was not published: {sorted(behind)}"
    if not counters.events_conflated:
        for feed in FEEDS:
            told_of = [
                encode_status(item)
                for its_feed, kind, item in life.every
                if kind is None and its_feed == feed.name
            ]
            if told_of != statuses[feed.name]:
                yield f"the states of {feed.name} are not published as they were sent"


def _check_keys(life: Life) -> Iterator[str]:
    """Once an event is out, its key has that record or a newer one.

    Not where the trade was corrected or canceled: its key may have changed with its own event.
    """
    own: dict[Kind[Any], dict[bytes, int]] = defaultdict(dict)
    changed = {
        changed_trade(item) for _, kind, item in life.every if kind in (CANCELS, CORRECTIONS)
    }
    changed_payloads: set[bytes] = set()
    for _, kind, item in life.every:
        if kind is not None:
            payload = kind.encode(item)
            own[kind][payload] = item.ts_event_ns
            if kind is TRADES and item.id is not None and trade_identity(item) in changed:
                changed_payloads.add(payload)
    times = dict(life.earlier_ns)
    for batch in life.store.executed[life.first_batch : life.last_batch]:
        for kind, latest in batch.latest.items():
            for symbol, payload in latest.items():
                ts_ns = own[kind].get(payload, life.earlier_payloads.get(payload))
                if ts_ns is None and kind is not TRADES:
                    yield f"the key {kind.key_prefix}{symbol} holds {payload[:300]!r}"
                    continue
                if ts_ns is None:  # a corrected one has other content than any event
                    ts_ns = parse_rfc3339(msgspec.json.decode(payload)["timestamp"])
                before_ns = times.get((kind, symbol), 0)
                if ts_ns < before_ns and kind is not TRADES:
                    yield f"the key {kind.key_prefix}{symbol} went back to {payload[:300]!r}"
                times[kind, symbol] = max(ts_ns, before_ns)
        for events in batch.events:
            its_kind = events.kind
            if its_kind is None or not its_kind.has_key:
                continue
            for symbol, payload in zip(events.symbols, events.payloads, strict=True):
                if payload in changed_payloads:
                    continue
                if own[its_kind].get(payload, 0) > times.get((its_kind, symbol), 0):
                    yield f"an event came before its key: {payload[:300]!r}"


# Bars and trades


def _check_minutes(life: Life, market: AccountMarket) -> Iterator[str]:
    """The last version of a minute's bar has as many trades, and as large ones, as came.

    Nothing is known of a minute of which a trade did not come.
    """
    bars: dict[tuple[str, int], Any] = {}
    trades: dict[tuple[str, int], list[Trade]] = defaultdict(list)
    for _, kind, record in _records(life):
        if kind is BARS:
            bars[record.symbol, record.ts_event_ns] = record
        elif kind is TRADES and record.id is not None:
            trades[record.symbol, record.ts_event_ns // _MINUTE_NS * _MINUTE_NS].append(record)
    made: dict[tuple[str, int], set[Any]] = defaultdict(set)
    last: dict[tuple[str, int], MadeRecord] = {}
    reported_ns: dict[tuple[str, int], int] = {}
    for one in market.made[TRADES].values():
        minute = one.symbol, one.ts_ns // _MINUTE_NS * _MINUTE_NS
        fields = msgspec.json.decode(one.content)
        made[minute].add((fields["exchange"], fields["id"]))  # exchanges share ids
        reported_ns[minute] = max(one.sent_ns, reported_ns.get(minute, 0))
    for feed in FEEDS:
        for (its_feed, kind, _), each in market.of.items():
            if its_feed == feed.name and kind is BARS:
                last.update({(one.symbol, one.ts_ns): one for one in each})
    for (symbol, start_ns), bar in bars.items():
        came = trades[symbol, start_ns]
        ids = {(trade.exchange, trade.id) for trade in came}
        if ids != made[symbol, start_ns] or not bar.trade_count:
            continue
        version = last[symbol, start_ns]
        if content_of(fields_of(BARS, bar)) != version.content:
            continue  # a later version was lost, which is checked elsewhere
        if reported_ns[symbol, start_ns] >= version.sent_ns:
            continue  # its update was still to come when the market closed
        volume = sum(trade.size for trade in came)
        if bar.trade_count != len(came) or abs(bar.volume - volume) > _ROUNDING * volume:
            yield f"{bar} has other trades than came: {len(came)} of together {volume}"
        prices = [trade.price for trade in came]
        if bar.low < min(prices) or bar.high > max(prices):
            yield f"{bar} has prices beyond those of its trades"


_MINUTE_NS: Final = 60_000_000_000
_ROUNDING: Final = 1e-9


# The store at the end


async def check_account_at_end(world: World) -> None:
    """Every key holds what was accepted last; the stream of news has the articles."""
    life = world.life
    if life is None or life.service is None:
        return
    vouched = life.service.channels()
    for (kind, symbol), record in _latest(life).items():
        topics = set(kind.topics)
        if topics.isdisjoint(vouched.get(symbol, ())):
            continue
        stored = world.store.get(f"{kind.key_prefix}{symbol}")
        wanted = kind.encode(record)
        earlier = any(record is each for _, each in life.earlier_records)
        if earlier and stored is None and life.service.latest_record(kind, symbol) is None:
            continue  # REST has not confirmed what the run before left
        if stored != wanted:
            world.violated(f"{kind.key_prefix}{symbol} is {stored!r}, not {wanted!r}")
    if _SPOILS_BOOKS.isdisjoint(world.plan.faults):
        for symbol, book in _market(world).books.items():
            stored = world.store.get(f"{ORDERBOOKS.key_prefix}{symbol}")
            if "orderbooks" not in vouched.get(symbol, ()):
                continue
            books = life.service._topology.pipeline_of(symbol).router.sequencer(ORDERBOOKS)
            if isinstance(books, Merge) and symbol in books._unsent:
                continue  # by its clock, the last change was from the future: it is counted
            fields = msgspec.json.decode(stored) if stored is not None else {}
            sides = [[list(level) for level in side] for side in (book.bids, book.asks)]
            if [fields.get("bids"), fields.get("asks")] != sides:
                world.violated(f"the book of {symbol} is {fields}, not {book}")
    entries = list(world.store.streams.get("news", ()))
    published = world.store.published.get(NEWS.event, [])
    if world.store.emptied_at_s is not None:
        published = published[len(published) - len(entries) :]
    if [payload for _, payload in entries] != published:
        world.violated("the stream of news is not what was published")
    for number, payload in entries:
        if number != str(msgspec.json.decode(payload)["id"]):
            world.violated(f"the entry {number} is of another article: {payload[:100]!r}")


def _latest(life: Life) -> dict[tuple[Kind[Any], str], Any]:
    """What each key has to hold of which a record came: the newest by time, as it was corrected.

    That may be one of an earlier run, where only older ones came late.
    """
    latest: dict[tuple[Kind[Any], str], Any] = {}
    trades: dict[str, list[Trade]] = defaultdict(list)
    for kind, record in life.earlier_records:
        if kind is TRADES:
            trades[record.symbol].append(record)
        else:
            latest[kind, record.symbol] = record
    came: dict[tuple[Kind[Any], str], None] = {}
    changed: set[Any] = set()
    for _, kind, record in life.every:
        if kind is None:
            continue
        key = kind, record.symbol
        came[key] = None
        if kind is TRADES:
            if trade_identity(record) not in changed or record.id is None:
                trades[record.symbol].append(record)
        elif kind is CORRECTIONS or kind is CANCELS:
            original = changed_trade(record)
            changed.add(original)
            if kind is CORRECTIONS:
                changed.add(changed_trade(attrs.evolve(record, original_id=record.corrected_id)))
            trades[record.symbol] = [
                each if trade_identity(each) != original else _corrected(each, record)
                for each in trades[record.symbol]
                if trade_identity(each) != original or kind is CORRECTIONS
            ]
        elif kind.has_key:
            before = latest.get(key)
            if before is None or record.ts_event_ns >= before.ts_event_ns:
                latest[key] = record
    for symbol, kept in trades.items():
        latest[TRADES, symbol] = max(
            enumerate(kept), key=lambda item: (item[1].ts_event_ns, item[0]), default=(0, None)
        )[1]
    return {key: latest[key] for key in came if latest.get(key) is not None}


def _corrected(trade: Trade, correction: Any) -> Trade:
    return attrs.evolve(
        trade,
        id=correction.corrected_id,
        price=correction.corrected_price,
        size=correction.corrected_size,
        conditions=correction.corrected_conditions,
    )


def check_keys_live(world: World) -> None:
    """While the feeds are connected and nothing happens, each followed symbol keeps its keys."""
    life = world.life
    if life is None or life.service is None:
        return
    service = life.service
    vouched = service.channels()
    for kind in KINDS:
        if not kind.has_key:
            continue
        for record in service.latest_records(kind):
            followed = not set(kind.topics).isdisjoint(vouched.get(record.symbol, ()))
            if followed and world.store.get(f"{kind.key_prefix}{record.symbol}") is None:
                world.violated(f"{kind.key_prefix}{record.symbol} ran out though it is followed")


def check_keys_run_out(world: World) -> None:
    """Without the feeds, no key is renewed."""
    for kind in KINDS:
        if not kind.has_key or kind.ttl_s is not None:
            continue
        for symbol in world.symbols:
            if world.store.get(f"{kind.key_prefix}{symbol}") is not None:
                world.violated(f"{kind.key_prefix}{symbol} is renewed without a feed")
