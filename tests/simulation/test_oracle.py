"""A check that cannot fail checks nothing: each is shown a service that misbehaves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import attrs
import pytest
import trio

import mdservice.app.service
import mdservice.http_api.monitoring
from mdservice.app.service import Service
from mdservice.app.topology import Topology
from mdservice.feed.connection import FeedConnection
from mdservice.feed.gap_repair.repair import GapRepair
from mdservice.feed.requests import SubscriptionRequests
from mdservice.feed.subscriptions import SubscriptionSet
from mdservice.model.events import RecordBatch
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    IMBALANCES,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.model.quote import Quote
from mdservice.model.status import Readiness
from mdservice.pnl.day import DayBook, Fill
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.holding import Totals
from mdservice.pnl.limits import Limits
from mdservice.positions.cache import PositionCache
from mdservice.positions.tracker import HeldSymbols
from mdservice.publish.publisher import EventPublisher
from mdservice.publish.store import Message, WriteBatch
from mdservice.router import policies
from mdservice.router.actor import Router
from mdservice.router.gaps import Gaps
from mdservice.router.policies import KeepAll, ReplaceSameTime
from mdservice.router.sequencer import Routed, Sequencer
from mdservice.simulator.connection import Connection
from mdservice.testing import MemoryPriceStore
from tests.batches import write_batch
from tests.simulation import watch
from tests.simulation.plan import PRICE_TTL_S, Plan
from tests.simulation.streams import TrioStream
from tests.simulation.world import simulate

NO_FAULTS = ("none",)


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def violations(*only: str, seed: int = 9) -> str:
    return "\n".join(simulate(seed, only=only or NO_FAULTS, gateway=False).violations)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert violations() == ""


# Events


def test_finds_a_quote_that_was_never_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    add_live = GapRepair.add_live

    def lose_some(self: GapRepair, kind: Any, quotes: Sequence[Quote]) -> None:
        add_live(self, kind, [quote for quote in quotes if quote.bid_size % 100 != 99])

    monkeypatch.setattr(GapRepair, "add_live", lose_some)
    assert "are missing" in violations()


def test_finds_a_quote_that_is_accepted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    route = Sequencer.route

    def twice(self: Sequencer, quotes: Sequence[Quote], now_ns: int, tolerance_ns: int) -> Routed:
        routed = route(self, quotes, now_ns, tolerance_ns)
        if routed.accepted:
            again = attrs.evolve(routed.accepted[-1])
            again.seq += 1
            self._latest[again.symbol] = again
            routed.accepted.append(again)
        return routed

    monkeypatch.setattr(Sequencer, "route", twice)
    assert "accepted 2 times" in violations()


def test_finds_a_wrong_number(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Router._send

    def skip_one(self: Router, item: Any) -> None:
        if isinstance(item, RecordBatch):
            for quote in item.records:
                quote.seq += quote.seq > 10
        send(self, item)

    monkeypatch.setattr(Router, "_send", skip_one)
    assert " after 10" in violations()


def rebuilt(batch: WriteBatch, messages: Sequence[Message]) -> WriteBatch:
    """The batch with other messages."""
    return attrs.evolve(batch, events=write_batch(0, {}, messages).events)


def _change_batches(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Let the publisher make other batches than it should."""
    next_batch = EventPublisher._next_batch

    def changed(self: EventPublisher) -> Any:
        in_flight = next_batch(self)
        return attrs.evolve(in_flight, batch=change(in_flight.batch))

    monkeypatch.setattr(EventPublisher, "_next_batch", changed)


def test_finds_a_lost_event(monkeypatch: pytest.MonkeyPatch) -> None:
    _change_batches(monkeypatch, lambda b: rebuilt(b, b.messages[1:]))
    assert "published, conflated or waiting" in violations()


def test_finds_a_doubled_event(monkeypatch: pytest.MonkeyPatch) -> None:
    _change_batches(monkeypatch, lambda b: rebuilt(b, [*b.messages, *b.messages]))
    assert "published again or out of order" in violations()


def test_finds_reordered_events(monkeypatch: pytest.MonkeyPatch) -> None:
    _change_batches(monkeypatch, lambda b: rebuilt(b, b.messages[::-1]))
    assert "published again or out of order" in violations()


def test_finds_an_event_that_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(batch: Any) -> Any:
        messages = [
            attrs.evolve(message, payload=message.payload.replace(b'"bid":', b'"bid":1'))
            for message in batch.messages
        ]
        return rebuilt(batch, messages)

    _change_batches(monkeypatch, change)
    assert "published what was not accepted" in violations()


# Keys


def test_finds_a_key_that_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def oldest(batch: Any) -> Any:
        prices: dict[str, bytes] = {}
        for message in batch.messages:
            if message.symbol is not None:
                prices.setdefault(message.symbol, message.payload)
        return attrs.evolve(batch, latest={QUOTES: prices})

    _change_batches(monkeypatch, oldest)
    assert "an event came before its key" in violations()


def test_finds_a_key_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first: dict[str, bytes] = {}

    def back_to_the_first(batch: Any) -> Any:
        prices = batch.latest.get(QUOTES, {})
        for symbol, payload in prices.items():
            first.setdefault(symbol, payload)
        back = {QUOTES: {symbol: first[symbol] for symbol in prices}}
        return attrs.evolve(batch, latest=back) if batch.number % 10 == 0 else batch

    _change_batches(monkeypatch, back_to_the_first)
    assert "went back from" in violations()


# Truth


@pytest.mark.parametrize("fault", ["store_down", "network_down"])
def test_finds_a_readiness_that_lies(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(
        mdservice.app.service, "readiness", lambda *_args, **_kwargs: Readiness(ready=True)
    )
    assert "ready though the" in violations(fault)


def test_finds_a_service_that_is_never_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    never = Readiness(False, ("no",))
    monkeypatch.setattr(mdservice.app.service, "readiness", lambda *_args, **_kwargs: never)
    found = violations()
    assert "s after the last fault" in found
    assert "not ready at the end" in found


def test_finds_an_answer_that_differs_from_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    always_fine = mdservice.http_api.monitoring.json_answer({"ready": True, "reasons": []})
    monkeypatch.setattr(mdservice.http_api.monitoring, "_health", lambda _: always_fine)
    assert any("/health/ready answered" in violations("network", seed=seed) for seed in range(1, 4))


def test_finds_prices_that_are_not_the_last_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    latest = Service.latest_records

    def without_one(self: Service, kind: Any, symbols: Any = None) -> list[Any]:
        return latest(self, kind, symbols)[1:]

    monkeypatch.setattr(Service, "latest_records", without_one)
    assert "/api/v1/market-data/prices answered" in violations()


def test_finds_a_subscription_that_was_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def only_say_so(_self: SubscriptionRequests, _command: Any) -> str:
        await anyio.lowlevel.checkpoint()
        return "subscribed"

    monkeypatch.setattr(SubscriptionRequests, "_subscribe", only_say_so)
    assert "wanted, " in violations("symbols_change")


def test_finds_symbols_that_were_not_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    subscriptions = Service.subscriptions
    monkeypatch.setattr(
        Service, "subscriptions", lambda self: {**subscriptions(self), "ODD": ["api"]}
    )
    assert any("/subscriptions answered" in violations(seed=seed) for seed in range(1, 6))


def test_finds_positions_that_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    update = HeldSymbols.update
    monkeypatch.setattr(HeldSymbols, "update", lambda *args: update(*args)[1:])
    assert "are held" in violations("positions_change")


def test_finds_closed_positions_that_are_followed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SubscriptionSet, "follow", lambda self, *args: self.add(*args) and [])
    assert any("are followed" in violations("positions_change", seed=seed) for seed in range(5, 8))


def test_finds_an_error_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_self: FeedConnection, **_kwargs: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("as it should not be")

    monkeypatch.setattr(FeedConnection, "run", fail)
    assert "the service ended with" in violations()


# Nothing left


def test_finds_an_open_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stay_open(_self: TrioStream) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(TrioStream, "aclose", stay_open)
    assert "connections open" in violations()


def test_finds_a_connection_of_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Connection.serve

    async def linger(self: Connection) -> None:
        await serve(self)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(PRICE_TTL_S + 5)  # the feed is away for so long before the end

    monkeypatch.setattr(Connection, "serve", linger)
    assert "has left the simulator's connections" in violations()


def test_finds_an_open_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    close = Topology.close
    left: list[Topology] = []

    def stay_open(self: Topology) -> None:
        left.append(self)

    monkeypatch.setattr(Topology, "close", stay_open)
    try:
        assert "has left a channel open" in violations()
    finally:
        for topology in left:
            close(topology)


def test_finds_a_task_outside_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    drain = Service.drain

    async def leave_a_task(self: Service) -> None:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
        await drain(self)

    monkeypatch.setattr(Service, "drain", leave_a_task)
    found = violations()
    assert "has left 1 system tasks" in found
    assert "1 tasks are left at the end" in found


def test_finds_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    drain = Service.drain

    async def leave_a_thread(self: Service) -> None:
        threading.Thread(target=over.wait, daemon=True).start()
        await drain(self)

    monkeypatch.setattr(Service, "drain", leave_a_thread)
    try:
        assert "has left 1 threads" in violations()
    finally:
        over.set()


@pytest.mark.parametrize(
    ("limit", "what"),
    [
        ("MOST_HELD", "live quotes held of stocks"),
        ("_MOST_IN_OUTLET", "items in the outlet of stocks"),
    ],
)
def test_finds_what_grows(monkeypatch: pytest.MonkeyPatch, limit: str, what: str) -> None:
    monkeypatch.setattr(watch, limit, -1)
    assert f"0 {what}, at most -1" in violations()


# Every stream of an account


def of_account(*only: str, seed: int = 5_000_011) -> str:
    outcome = simulate(seed, only=only or NO_FAULTS, account=True, gateway=False)
    return "\n".join(outcome.violations)


def test_nothing_is_found_where_nothing_is_wrong_with_an_account() -> None:
    assert of_account() == ""


@pytest.mark.parametrize(
    ("kind", "one_in", "words"),
    [
        (TRADES, 7, "trades of"),
        (CORRECTIONS, 1, "corrections of"),
        (CANCELS, 1, "cancelErrors of"),
        (BARS, 2, "bars of"),
        (STATUSES, 2, "statuses of"),
        (LULDS, 2, "lulds of"),
        (IMBALANCES, 3, "imbalances of"),
        (ORDERBOOKS, 5, "orderbooks of"),
        (NEWS, 1, "news of"),
    ],
    ids=repr,
)
def test_finds_a_lost_record_of_each_kind(
    monkeypatch: pytest.MonkeyPatch, kind: Kind[Any], one_in: int, words: str
) -> None:
    route = Router._route
    count = 0

    def lossy(self: Router, routing: Any, records: Sequence[Any]) -> Any:
        nonlocal count
        kept = []
        for record in records:
            if routing.kind is kind:
                count += 1
                if count % one_in == 0:
                    continue
            kept.append(record)
        return route(self, routing, kept)

    monkeypatch.setattr(Router, "_route", lossy)
    rare = kind in {STATUSES, LULDS}
    found = of_account(seed=5_000_002 if rare else 5_000_009)
    assert f"{words}" in found
    assert "are missing" in found


def test_finds_a_repeated_trade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepAll, "_is_new_again", lambda *_: True)
    assert "accepted 2 times: trades" in of_account("data_duplicate", seed=5_000_003)


def test_finds_a_bar_that_does_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = ReplaceSameTime._accept

    def other(self: ReplaceSameTime, bar: Any) -> None:
        bar.volume += 1
        accept(self, bar)

    monkeypatch.setattr(ReplaceSameTime, "_accept", other)
    found = of_account(seed=5_000_009)
    assert "the market never made bars" in found


def test_finds_a_book_in_which_levels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_apply", lambda side, levels: side.update(dict(levels)))
    found = of_account()
    assert "a crossed book" in found
    assert "the book of" in found


def test_finds_a_gap_that_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gaps, "resumed", lambda *_, **__: [])
    monkeypatch.setattr(Gaps, "ended", lambda *_: [])  # which would report it after all
    found = of_account("feed_drop", seed=5_000_003)
    assert "imbalances of" in found


def test_finds_a_repair_of_what_was_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Router._report

    def more(self: Router, state: Any, details: Sequence[Any]) -> None:
        for each in details:
            if state == "gap":
                report(self, "gap", [each])
            report(self, "gap_repaired", [each])

    monkeypatch.setattr(Router, "_report", more)
    found = of_account("feed_drop", seed=5_000_003)
    assert "cannot be repaired" in found
    assert "a gap is repaired that was not reported" in found


def test_finds_a_gap_that_is_said_to_be_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Router._report

    def refreshed(self: Router, state: Any, details: Sequence[Any]) -> None:
        report(self, state, [{**each, "refreshed": True} for each in details])

    monkeypatch.setattr(Router, "_report", refreshed)
    assert "is not refreshed" in of_account("feed_drop", seed=5_000_003)


def test_finds_a_key_that_a_correction_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "_change_trades", lambda *_: None)
    seeds = 5_000_003, *range(5_000_001, 5_000_007)  # the first shows it; the others need not run
    assert any("trade:" in of_account(seed=seed) for seed in seeds)


def test_finds_a_key_that_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    vouched = FeedConnection.vouched

    def without_books(self: FeedConnection, kind: Kind[Any]) -> Any:
        return () if kind is ORDERBOOKS else vouched(self, kind)

    monkeypatch.setattr(FeedConnection, "vouched", without_books)
    assert "orderbook:BTC/USD ran out" in of_account()


def test_finds_news_that_are_not_in_their_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = MemoryPriceStore._execute

    def without_last(self: MemoryPriceStore, batch: WriteBatch) -> None:
        execute(self, batch)
        if self.streams.get("news"):
            self.streams["news"].pop()

    monkeypatch.setattr(MemoryPriceStore, "_execute", without_last)
    assert "the stream of news" in of_account()


# A gateway


def of_gateways(*seeds: int) -> Iterator[str]:
    """The violations of each seed, with the faults of a gateway, and without those of the service."""
    for seed in seeds or (8_100_009, 8_100_013, 8_100_020):
        yield "\n".join(simulate(seed, only=NO_FAULTS, account=False).violations)


def test_nothing_is_found_where_nothing_is_wrong_with_a_gateway() -> None:
    assert "".join(of_gateways()) == ""


def test_finds_a_fill_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PositionCache, "apply", lambda *_: False)
    assert any("a second after its fill" in found for found in of_gateways())


def test_finds_a_difference_that_no_poll_corrects(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = PositionCache._keep

    def first_only(self: PositionCache, positions: Any, began_s: float) -> None:
        keep(self, self.positions if self.answers else positions, began_s)

    monkeypatch.setattr(PositionCache, "_keep", first_only)
    assert any("the gateway's report is" in found for found in of_gateways())
    monkeypatch.setattr(PositionCache, "apply", lambda *_: False)
    assert any("after the last poll" in found for found in of_gateways())


def test_finds_a_sum_that_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Totals, "step", lambda *_: None)
    never = property(lambda _: 0, lambda *_: None)
    monkeypatch.setattr(Totals, "long_steps_e14", never)
    monkeypatch.setattr(Totals, "short_steps_e14", never)
    found = "".join(of_gateways())
    assert "the gateway's report is" in found
    assert "the exposure is" in found


def test_finds_a_price_that_a_gateway_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    update = PnlEngine.update

    def without_some(self: PnlEngine, quote: Quote, now_ns: int) -> bool:
        return quote.bid_size % 10 != 0 and update(self, quote, now_ns)

    monkeypatch.setattr(PnlEngine, "update", without_some)
    seeds = 8_100_012, *range(8_100_001, 8_100_031)  # the first shows it; the others need not run
    assert any("the gateway's report is" in found for found in of_gateways(*seeds))


def test_finds_a_fill_that_a_day_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    add = DayBook.add

    def without_some(self: DayBook, fill: Fill, *, streamed: bool = False) -> bool:
        return abs(fill.qty) != 10 and add(self, fill, streamed=streamed)

    monkeypatch.setattr(DayBook, "add", without_some)
    assert any("the day: SymbolDay" in found for found in of_gateways())


def test_finds_a_fee_that_a_day_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DayBook, "book", lambda *_: set())
    seeds = [seed for seed in range(8_100_001, 8_100_099) if _charges(seed)]
    seeds = [8_100_010, *seeds[:5]]  # the first shows it; the others need not run
    assert any("the day: the fees are 0" in found for found in of_gateways(*seeds))


def _charges(seed: int) -> bool:
    trading = Plan.draw(seed, NO_FAULTS, account=False).trading
    return trading is not None and trading.sale_fee > 0


def test_finds_a_limit_that_is_never_crossed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "_crosses", lambda *_, **__: False)
    assert any("are crossed, by the recount" in found for found in of_gateways())
