"""Members of a group on virtual time: a lease in memory, one store behind all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import msgspec
import pytest

from mdservice.app.service import Service, open_service
from mdservice.app.status import always_open
from mdservice.app.topology import FeedParts
from mdservice.errors import (
    ConfigurationError,
    FeedRefused,
    HistoryRefused,
    MDServiceError,
    StoreUnavailable,
)
from mdservice.model.feeds import NEWS_FEED, STOCKS
from mdservice.model.kinds import TRADES, Kind, Stream
from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339
from mdservice.model.trade import Trade
from mdservice.positions.sources import PositionSource
from mdservice.publish.lease import LEASE_S, Leader
from mdservice.publish.store import WriteBatch
from mdservice.settings import Settings
from mdservice.testing import (
    FakeDriver,
    FakeHistory,
    MemoryGroup,
    MemoryLease,
    MemoryPriceStore,
    VirtualClock,
)


class CutLease(MemoryLease):
    """A lease whose member may lose the way to the server."""

    cut = False
    lost = False
    """Whether the next call finds that the connection was lost."""
    silent = False
    """Whether the server does not answer for a second, and the call then fails."""
    recall_takes_s = 0.0
    claims_unheard = False
    """Whether the answers to claims are lost."""

    async def claim(self) -> Leader | None:
        taken = await super().claim()
        if self.claims_unheard:
            raise StoreUnavailable("no answer to the claim")
        return taken

    async def recall(self) -> bytes | None:
        await anyio.sleep(self.recall_takes_s)
        return await super().recall()

    async def _reach(self) -> MemoryGroup:
        self._note_awake()
        if self.lost:
            self.lost = False
            raise StoreUnavailable("the connection was lost")
        if self.silent:
            await anyio.sleep(1)
            raise StoreUnavailable("no answer within 1 s")
        if self.cut:
            self._last_error = "no way to the server"
            raise StoreUnavailable(self._last_error)
        return await super()._reach()


class TermStore:
    """The store of one term: its connection is registered, and ended by the next claim."""

    def __init__(self, server: MemoryPriceStore, lease: MemoryLease | None, name: str) -> None:
        self.server = server
        self.lease = lease
        self.name = name
        self.connected = False
        self.number = 0
        self.writes: list[str] = []

    address = "memory://"
    command_errors = 0
    last_command_error = None

    def end(self) -> None:
        self.connected = False

    async def connect(self) -> None:
        self.connected = False
        if self.server.down:
            raise StoreUnavailable("away")
        if self.lease is not None:
            await self.lease.admit("store", self.end)
        self.connected = True

    def _require(self) -> None:
        if not self.connected or self.server.down:
            self.connected = False
            raise StoreUnavailable("lost")

    async def last_batch(self) -> int:
        self._require()
        return self.number

    async def write(self, batch: WriteBatch) -> None:
        await anyio.lowlevel.checkpoint()
        self._require()
        if not self.server.connected:
            await self.server.connect()
        await self.server.write(batch)
        WRITERS.setdefault(id(self.server), []).append(self.name)
        self.number = batch.number

    async def read_latest(self, kind: Kind[Any], symbols: Iterable[str]) -> Mapping[str, bytes]:
        self._require()
        if not self.server.connected:
            await self.server.connect()
        return await self.server.read_latest(kind, symbols)

    async def read_newest(self, stream: Stream, count: int) -> Sequence[bytes]:
        self._require()
        if not self.server.connected:
            await self.server.connect()
        return await self.server.read_newest(stream, count)

    async def ping(self) -> None:
        self._require()

    async def aclose(self) -> None:
        self.connected = False


WRITERS: dict[int, list[str]] = {}


@attrs.define
class Member:
    service: Service
    feed: FakeDriver
    news_feed: FakeDriver
    """The feed of news, if the settings want news."""
    lease: CutLease
    end: Callable[[], None]
    """Ends the service's block."""
    ended: anyio.Event
    error: MDServiceError | None = None
    """What it has ended with."""


@attrs.define
class Bench:
    clock: VirtualClock
    group: MemoryGroup
    store: MemoryPriceStore
    history: FakeHistory
    tasks: Any
    members: list[Member] = attrs.field(factory=list)
    made: int = 0
    refusals: Sequence[int] = ()
    """What the feed of each member says to its first connections."""

    async def start(
        self, name: str, *symbols: str, positions: PositionSource | None = None, **more: Any
    ) -> Member:
        """A member, once it leads or stands by."""
        own = Leader(name, f"host-{name}", 1, f"/run/{name}.sock")
        lease = CutLease(self.group, own, clock=self.clock)
        feed, news_feed = FakeDriver(), FakeDriver(feed=NEWS_FEED)
        for code in self.refusals:
            feed.refuse_next(code)
        feeds: dict[str, Any] = {"drivers": [feed], "history": self.history}
        if "news" in more:
            stocks = FeedParts(STOCKS, [feed], self.history, always_open, on_demand=False)
            news = FeedParts(NEWS_FEED, [news_feed], self.history, always_open)
            feeds = {"feeds": [stocks, news]}
        opened = anyio.Event()
        scope, ended = anyio.CancelScope(), anyio.Event()

        def make_store(leader: Leader | None) -> TermStore:
            return TermStore(self.store, None if leader is None else lease, name)

        async def run() -> None:
            settings = Settings(
                symbols=",".join(symbols or ("AAPL",)), mute_after=80_000.0, group="desk", **more
            )
            member = None
            try:
                with scope:
                    async with open_service(
                        settings,
                        **feeds,
                        store=make_store,
                        positions=positions,
                        clock=self.clock,
                        lease=lease,
                    ) as service:
                        member = Member(service, feed, news_feed, lease, scope.cancel, ended)
                        self.members.append(member)
                        opened.set()
                        await anyio.sleep_forever()
            except FeedRefused as exc:
                assert member is not None
                member.error = exc
            ended.set()

        self.tasks.start_soon(run)
        await opened.wait()
        return self.members[-1]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [decode(payload) for payload in self.store.published.get("price.updated", [])]

    @property
    def numbers(self) -> list[tuple[int, float]]:
        """Number and bid of every published quote of AAPL, in order."""
        return [(event["seq"], event["bid"]) for event in self.events if event["symbol"] == "AAPL"]

    @property
    def states(self) -> list[dict[str, Any]]:
        return [decode(payload) for payload in self.store.published.get("feed.status", [])]

    @property
    def writers(self) -> list[str]:
        return WRITERS.get(id(self.store), [])

    async def until(self, condition: Callable[[], Any]) -> None:
        with anyio.fail_after(100):
            while not condition():
                await anyio.sleep(0.02)

    def market(self, *bids: float, symbol: str = "AAPL") -> None:
        """The market makes quotes: history has them, and so has a feed that is connected."""
        for bid in bids:
            self.made += 1
            at_ns = self.clock.utc_ns() + self.made
            self.history.add([Quote(symbol, bid, bid + 1, 100, 100, at_ns, at_ns)])
            for member in self.members:
                if any(link.wants(symbol) for link in member.feed.connections):
                    member.feed.send_quotes([{"S": symbol, "bp": bid, "ap": bid + 1, "t": at_ns}])

    def trade(self, number: int) -> None:
        """The market makes a trade of AAPL at this price, which took a while."""
        at_ns = self.clock.utc_ns() - 200_000_000
        made = Trade("AAPL", number, 10, "V", ("@",), "C", number, at_ns, at_ns, 0)
        self.history.add([made], TRADES)
        sent = {"T": "t", "S": "AAPL", "i": number, "x": "V", "p": float(number), "s": 10}
        for member in self.members:
            if member.feed.connections:
                member.feed.send_messages([{**sent, "c": ["@"], "t": at_ns, "z": "C"}])

    @property
    def trades(self) -> list[float]:
        """The price of every published trade, in order."""
        return [decode(each)["price"] for each in self.store.published.get("trade.updated", [])]

    async def published(self, *bids: float) -> None:
        """Wait until exactly these quotes of AAPL are published, numbered from 1."""
        wanted = list(enumerate(bids, 1))
        with anyio.move_on_after(300):
            await self.until(lambda: len(self.numbers) >= len(wanted))
        assert self.numbers == wanted

    async def two(self, *bids: float) -> tuple[Member, Member]:
        """Two members, of which the first leads and has published these quotes."""
        first, second = await self.start("first"), await self.start("second")
        await self.leads(first)
        if bids:
            self.market(*bids)
            await self.published(*bids)
        return first, second

    async def repairs(self, lag_s: float) -> Member:
        """The second member, which leads, and repairs the gap behind quote 1: of 2 and 3."""
        first, second = await self.two(1)
        await anyio.sleep(2)
        self.history.lag_s = lag_s
        first.end()
        await first.ended.wait()
        self.market(2, 3)
        await self.until(lambda: any(link.wants("AAPL") for link in second.feed.connections))
        return second

    async def leads(self, member: Member) -> None:
        """Wait until a member leads, with its feed subscribed."""
        await self.until(lambda: member.service.readiness().ready)


def decode(payload: bytes) -> dict[str, Any]:
    return msgspec.json.decode(payload, type=dict[str, Any])


@asynccontextmanager
async def open_bench() -> AsyncIterator[Bench]:
    clock = VirtualClock()
    store = MemoryPriceStore(clock=clock)
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        yield Bench(clock, MemoryGroup(), store, FakeHistory(), tasks)
        tasks.cancel_scope.cancel()


async def test_the_first_leads_and_the_second_stands_by(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first = await bench.start("first")
        second = await bench.start("second")
        await bench.leads(first)
        bench.market(1, 2)
        await bench.published(1, 2)
        assert second.feed.attempts == []
        leads, stands_by = first.service.status(), second.service.status()
        assert (leads.state, stands_by.state) == ("running", "standby")
        assert leads.standby is not None
        assert stands_by.standby is not None
        assert leads.standby.leader == stands_by.standby.leader == "host-first (process 1)"
        assert leads.standby.epoch == stands_by.standby.epoch == 1
        assert second.service.liveness().ready
        assert not second.service.readiness().ready
        assert "host-first" in second.service.readiness().reasons[0]
        with pytest.raises(MDServiceError, match=r"host-first.*/run/first.sock"):
            await second.service.subscribe("MSFT")


async def test_wants_are_stored_again_although_a_store_renewed_the_lease_first(
    autojump_clock: Any,
) -> None:
    """The server lost them. The store connects first, so the leader sees no new epoch."""
    async with open_bench() as bench:
        first, _ = await bench.two()
        await first.service.subscribe("MSFT")
        await anyio.sleep(5.5)  # the market is quiet: nothing is new from now on
        bench.group.restart()
        await first.lease.renew()
        assert bench.group.wishes is None
        await bench.until(lambda: b"MSFT" in (bench.group.wishes or b""))


async def test_a_standby_knows_the_last_prices(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        _, second = await bench.two(1, 2)
        await bench.until(lambda: second.service.latest("AAPL"))
        known = second.service.latest("AAPL")
        assert known is not None
        assert (known.bid, known.seq) == (2, 2)
        assert second.service.liveness().ready


async def test_a_standby_that_waited_for_redis_knows_the_last_prices_soon_after(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        _, second = await bench.two()
        second.lease.silent = True
        await anyio.sleep(5)
        second.lease.silent = False
        bench.market(1, 2)
        await bench.published(1, 2)
        began_s = bench.clock.monotonic()
        await bench.until(lambda: second.service.latest("AAPL"))
        assert bench.clock.monotonic() - began_s < 3


async def test_a_standby_reads_the_last_prices_soon_after_one_slow_read(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        _, second = await bench.two()
        second.lease.recall_takes_s = 2.5
        await anyio.sleep(2.5)
        second.lease.recall_takes_s = 0.0
        await anyio.sleep(2.5)
        bench.market(1, 2)
        await bench.published(1, 2)
        with anyio.fail_after(15):
            await bench.until(lambda: second.service.latest("AAPL"))


async def test_a_standby_takes_over_and_numbers_go_on_without_a_gap(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first, second = await bench.two(1, 2)
        began_s = bench.clock.monotonic()
        first.lease.cut = True
        await bench.until(lambda: first.service.status().state == "standby")
        bench.market(3, 4)
        await bench.leads(second)
        assert bench.clock.monotonic() - began_s < LEASE_S + 2
        bench.market(5)
        await bench.published(1, 2, 3, 4, 5)
        assert bench.writers.index("second") == bench.writers.count("first")
        takeovers = [state for state in bench.states if state["state"] == "takeover"]
        told = ("feed", "leader", "epoch", "refreshed")
        assert [tuple(one[name] for name in told) for one in takeovers] == [
            ("stocks", "host-second (process 1)", 2, True)
        ]
        first.lease.cut = False
        await bench.until(lambda: first.service.status().standby.epoch == 2)  # type: ignore[union-attr]
        assert not first.feed.connections


async def test_a_deposed_leader_steps_down_and_may_lead_again(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first, second = await bench.two(1)
        bench.group.expire()  # the standby is sooner than the renewal
        await bench.leads(second)
        await bench.until(lambda: first.service.status().state == "standby")
        bench.market(2)
        await bench.published(1, 2)
        second.end()
        await second.ended.wait()
        await bench.leads(first)
        bench.market(3)
        await bench.published(1, 2, 3)
        status = first.service.status().standby
        assert status is not None
        assert (status.epoch, status.terms, status.leads) == (3, 2, True)


async def test_a_leader_that_ends_passes_the_lead_at_once(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first, second = await bench.two(1)
        first.end()
        await first.ended.wait()
        began_s = bench.clock.monotonic()
        await bench.leads(second)
        assert bench.clock.monotonic() - began_s < 0.5
        bench.market(2)
        await bench.published(1, 2)


async def test_a_lone_leader_keeps_its_feed_and_its_backlog_while_redis_is_away(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        first = await bench.start("first")
        await bench.leads(first)
        bench.market(1)
        await bench.published(1)
        await anyio.sleep(2)  # it knows that there is no standby
        bench.group.down = bench.store.down = True
        await anyio.sleep(30)
        bench.market(2, 3)
        await anyio.sleep(1)
        bench.group.restart()  # its data are lost
        bench.group.down = bench.store.down = False
        await bench.published(1, 2, 3)
        assert len(first.feed.attempts) == 1
        status = first.service.status().standby
        assert status is not None
        assert (status.epoch, status.terms) == (2, 1)


async def test_a_leader_with_a_standby_leaves_its_feed_when_it_cannot_renew(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        first, second = await bench.two()
        await anyio.sleep(2)
        assert first.service.status().standby.standby_alive  # type: ignore[union-attr]
        bench.group.down = bench.store.down = True
        await bench.until(lambda: first.service.status().state == "standby")
        assert not first.feed.connections
        bench.market(1)
        bench.group.down = bench.store.down = False
        await bench.until(
            lambda: first.service.readiness().ready or second.service.readiness().ready
        )


async def test_what_programs_want_outlives_their_leader(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first = await bench.start("first", "AAPL", "MSFT")
        second = await bench.start("second", "AAPL", "MSFT")
        await bench.leads(first)
        await first.service.subscribe("TSLA")
        await first.service.unsubscribe("MSFT")
        first.lease.cut = True  # at once: nothing is stored later
        await bench.leads(second)
        assert second.service.subscriptions() == {"AAPL": ["settings"], "TSLA": ["api"]}
        await second.feed.subscribed("AAPL", "TSLA")


@pytest.mark.parametrize("away", [False, True])
async def test_what_programs_want_outlives_a_redis_without_its_data_and_then_their_leader(
    autojump_clock: Any, away: bool
) -> None:
    async with open_bench() as bench:
        first, second = await bench.two()
        await first.service.subscribe("TSLA")
        await anyio.sleep(2)
        bench.group.down = bench.store.down = away
        await anyio.sleep(1.5)
        bench.group.restart()
        bench.group.down = bench.store.down = False
        await anyio.sleep(3)
        assert first.service.status().standby.leads  # type: ignore[union-attr]
        first.lease.cut = True
        await bench.leads(second)
        assert second.service.subscriptions() == {"AAPL": ["settings"], "TSLA": ["api"]}


async def test_a_leader_that_ends_passes_the_lead_at_once_on_a_new_connection(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        first, second = await bench.two()
        await anyio.sleep(2)
        first.lease.lost = True  # found by the release
        first.end()
        await first.ended.wait()
        began_s = bench.clock.monotonic()
        await bench.leads(second)
        assert bench.clock.monotonic() - began_s < 0.5


async def test_quotes_come_from_rest_while_the_connection_is_in_use(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first, second = await bench.two(1)
        second.feed.refuse_next(406, times=2)
        first.lease.cut = True
        await bench.until(lambda: first.service.status().state == "standby")
        await bench.until(lambda: second.service.status().standby.leads)  # type: ignore[union-attr]
        await bench.until(lambda: second.feed.attempts)
        bench.market(2, 3)
        await anyio.sleep(1.5)
        assert bench.numbers == [(1, 1), (2, 2), (3, 3)]  # without a connection
        assert not second.feed.connections
        assert any("REST" in reason for reason in second.service.status().reasons)
        bench.market(4)
        await bench.leads(second)
        bench.market(5)
        await bench.published(1, 2, 3, 4, 5)
        assert not any("REST" in reason for reason in second.service.status().reasons)
        states = [state["state"] for state in bench.states]
        assert states.count("takeover") == 1


async def test_quotes_from_rest_go_on_after_a_refusal(autojump_clock: Any) -> None:
    """Such as that of too many calls a minute."""
    async with open_bench() as bench:
        first, second = await bench.two(1)
        second.feed.refuse_next(406, times=100)
        first.lease.cut = True
        await bench.until(lambda: second.feed.attempts)
        bench.market(2)
        await bench.published(1, 2)
        bench.history.always = HistoryRefused("the API's calls of this minute are used up (16 s)")
        await anyio.sleep(3)
        bench.history.always = None
        bench.market(3)
        began_s = anyio.current_time()
        await bench.published(1, 2, 3)
        assert anyio.current_time() - began_s < 7
        assert not second.feed.connections


async def test_a_new_leader_goes_on_after_a_refusal_for_good(autojump_clock: Any) -> None:
    """Such as that of a wrong key, which the exchange may accept later."""
    async with open_bench() as bench:
        first, second = await bench.two(1)
        second.feed.refuse_next(402, times=2)
        first.lease.cut = True
        await bench.until(lambda: second.feed.attempts)
        bench.market(2)
        await bench.until(lambda: second.service.status().state == "degraded")
        assert any("402" in reason for reason in second.service.status().reasons)
        await bench.leads(second)
        bench.market(3)
        await bench.published(1, 2, 3)


async def test_a_lone_leader_goes_on_in_its_next_term_after_a_refusal_for_good(
    autojump_clock: Any,
) -> None:
    """It has never seen another leader, and does not just start."""
    async with open_bench() as bench:
        first = await bench.start("first")
        await bench.leads(first)
        other = MemoryLease(bench.group, Leader("x", "host-x", 1, "/run/x"), clock=bench.clock)
        bench.group.expire()
        await other.claim()
        await other.release()
        first.feed.refuse_next(402)
        await bench.until(lambda: first.service.status().standby.terms == 2)  # type: ignore[union-attr]
        await bench.leads(first)


async def test_a_member_that_is_refused_at_its_start_ends(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        bench.refusals = [402]
        first = await bench.start("first")
        await first.ended.wait()
        assert isinstance(first.error, FeedRefused)


async def test_a_symbol_that_no_refresh_brought_loses_nothing(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first = await bench.start("first", "AAPL", "MSFT")
        second = await bench.start("second", "AAPL", "MSFT")
        await bench.leads(first)
        bench.market(1)
        bench.market(1, symbol="MSFT")
        await bench.published(1)
        second.feed.refuse_next(406, times=8)
        first.lease.cut = True
        await bench.until(lambda: second.service.status().standby.leads)  # type: ignore[union-attr]
        await anyio.sleep(0.5)  # it has asked for the first prices
        bench.history.refuses["AAPL"] = "not now"
        bench.market(2, 3)
        for bid in range(2, 30):  # newer ones of another symbol are published meanwhile
            bench.market(bid, symbol="MSFT")
            await anyio.sleep(1)
        assert not second.feed.connections
        assert bench.numbers == [(1, 1)]
        del bench.history.refuses["AAPL"]
        await bench.published(1, 2, 3)


async def test_a_price_that_rest_alone_had_hides_no_gap_of_other_symbols(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        first, second = await bench.two(1)
        await anyio.sleep(5)
        first.feed.refuse_next(406, times=100)
        first.feed.drop()
        await bench.until(lambda: not first.feed.connections)
        bench.market(2, 3)
        await anyio.sleep(20)
        bench.market(7, symbol="MSFT")
        await first.service.subscribe("MSFT")
        await bench.until(lambda: any(event["symbol"] == "MSFT" for event in bench.events))
        first.lease.cut = True
        await bench.leads(second)
        await bench.published(1, 2, 3)
        gaps = [state for state in bench.states if state["state"] == "gap"]
        assert len(gaps) == 1
        assert gaps[0]["symbols"] == ["AAPL", "MSFT"]


async def test_leaders_of_less_than_a_second_hide_no_gap(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        began_ns = bench.clock.utc_ns()
        first = await bench.start("first", "AAPL", "MSFT")
        second = await bench.start("second", "AAPL", "MSFT")
        await bench.leads(first)
        bench.market(1)
        await bench.published(1)
        first.lease.cut = True
        first.feed.refuse_next(406, times=100)
        first.feed.drop()
        await bench.until(lambda: not first.feed.connections)
        bench.market(2, 3)
        await anyio.sleep(2)
        bench.market(7, symbol="MSFT")
        bench.history.refuses["AAPL"] = "no"
        second.feed.refuse_next(406)
        await bench.until(lambda: any(event["symbol"] == "MSFT" for event in bench.events))
        second.lease.cut = True
        await bench.until(lambda: second.service.status().state == "standby")
        third = await bench.start("third", "AAPL", "MSFT")
        await bench.leads(third)
        await bench.until(lambda: any(state["state"] == "gap" for state in bench.states))
        (gap,) = (state for state in bench.states if state["state"] == "gap")
        assert gap["symbols"] == ["AAPL", "MSFT"]
        assert parse_rfc3339(gap["from"]) == began_ns + 1


async def test_a_leader_that_ends_during_its_repair_leaves_it_to_the_next_one(
    autojump_clock: Any,
) -> None:
    """What came live must not go out: what is missing could no longer be published before it."""
    async with open_bench() as bench:
        second = await bench.repairs(lag_s=3)
        third = await bench.start("third")
        bench.market(4)
        await anyio.sleep(0.2)
        second.end()
        bench.market(5)
        await bench.leads(third)
        bench.market(6)
        await bench.published(1, 2, 3, 4, 5, 6)


async def test_a_last_leader_publishes_what_waits_for_its_repair(autojump_clock: Any) -> None:
    """No other member will."""
    async with open_bench() as bench:
        second = await bench.repairs(lag_s=30)
        bench.market(4)
        await anyio.sleep(9)
        second.end()
        await second.ended.wait()
        assert [bid for _, bid in bench.numbers] == [1, 4]
        assert [state["symbols"] for state in bench.states if state["state"] == "gap"] == [["AAPL"]]


async def test_a_symbol_without_any_quote_loses_nothing(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first = await bench.start("first", "AAPL", "MSFT")
        second = await bench.start("second", "AAPL", "MSFT")
        await bench.leads(first)
        await anyio.sleep(5)
        first.lease.cut = True
        await bench.until(lambda: first.service.status().state == "standby")
        second.feed.refuse_next(406)
        await bench.until(lambda: second.feed.attempts)
        await anyio.sleep(1.5)  # REST had no first price
        bench.market(1, 2)
        await bench.leads(second)
        bench.market(3)
        await bench.published(1, 2, 3)


@pytest.mark.thorough
async def test_no_trade_is_published_twice_once_the_keys_have_expired(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first = await bench.start("first", channels="quotes,trades")
        second = await bench.start("second", channels="quotes,trades")
        await bench.leads(first)
        for number in (1, 2, 3):
            bench.trade(number)
            await anyio.sleep(2)
        await anyio.sleep(5)
        first.feed.refuse_next(406, times=1_000)
        first.feed.drop()
        await bench.until(lambda: not first.feed.connections)
        second.feed.refuse_next(406, times=5)
        await anyio.sleep(400)  # a price lives for 300 s
        bench.trade(4)
        first.end()
        await first.ended.wait()
        await bench.leads(second)
        bench.trade(5)
        await bench.until(lambda: bench.trades[-1:] == [5])
        assert bench.trades == [1, 2, 3, 4, 5]


async def test_a_reader_in_the_process_lives_through_a_takeover(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first, second = await bench.two()
        async with second.service.quotes("AAPL") as quotes:
            bench.market(1)
            await bench.published(1)
            first.lease.cut = True
            await bench.leads(second)
            bench.market(2)
            await bench.published(1, 2)
            assert (await anext(aiter(quotes))).bid == 2


async def test_who_ends_after_a_claim_without_an_answer_gives_it_up(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first, second = await bench.two(1)
        second.lease.claims_unheard = True
        first.lease.cut = True
        await bench.until(lambda: bench.group.holder == "second")
        second.end()
        await second.ended.wait()
        began_s = anyio.current_time()
        third = await bench.start("third")
        await bench.leads(third)
        assert anyio.current_time() - began_s < 1


async def test_a_lease_needs_a_store_for_each_term(autojump_clock: Any) -> None:
    clock = VirtualClock()
    lease = MemoryLease(MemoryGroup(), Leader("a", "h", 1, "/s"), clock=clock)
    settings = Settings(symbols="AAPL", group="desk")
    with pytest.raises(ConfigurationError, match="store"):
        async with open_service(
            settings, drivers=[FakeDriver()], store=MemoryPriceStore(), clock=clock, lease=lease
        ):
            pass


async def test_events_that_a_deposed_leader_has_not_written_are_counted(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        first, second = await bench.two(1)
        await anyio.sleep(2)
        first.lease.cut = bench.store.down = True
        bench.market(2)
        await bench.until(lambda: first.service.status().state == "standby")
        bench.store.down = False
        status = first.service.status().standby
        assert status is not None
        assert status.dropped >= 1
        await bench.leads(second)
        await bench.published(1, 2)
