"""What goes over to the next leader: positions, wants, relay, journal, and records of each kind."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.app.group import HELD_FOR_S
from mdservice.errors import ConfigurationError
from mdservice.journal.recorder import open_folder
from mdservice.model.bar import Bar
from mdservice.model.kinds import BARS, NEWS, TRADES, Kind
from mdservice.model.news import Article
from mdservice.model.position import Position
from mdservice.model.timestamps import format_ns
from mdservice.model.trade import Trade
from mdservice.testing import FakeLink, FakePositions
from tests.app.test_group import Bench, Member, decode, open_bench

TSLA = Position("TSLA", Decimal(10), Decimal(150))
MSFT = Position("MSFT", Decimal(10), Decimal(300))


async def takes_the_lead(bench: Bench, member: Member) -> float:
    """Wait until a member leads; return since when."""

    def leads() -> bool:
        report = member.service.status().standby
        return report is not None and report.leads

    await bench.until(leads)
    return anyio.current_time()


async def subscribed_at_once(member: Member) -> FakeLink:
    """Wait until all three symbols are subscribed, for a second at most."""
    with anyio.fail_after(1):
        return await member.feed.subscribed("AAPL", "MSFT", "TSLA")


async def test_a_standby_knows_the_positions_and_follows_them_at_once_when_it_leads(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        first = await bench.start("first")
        source = FakePositions([TSLA])
        second = await bench.start("second", positions=source)
        await bench.leads(first)
        await bench.until(lambda: second.service.positions() == (TSLA,))
        source.set(TSLA, MSFT)  # opened while it stands by
        await bench.until(lambda: second.service.positions() == (TSLA, MSFT))
        assert second.service.status().state == "standby"
        assert second.feed.attempts == []
        source.stall()  # the new leader has only what it knew before
        first.lease.cut = True
        await takes_the_lead(bench, second)
        link = await subscribed_at_once(second)
        assert link is second.feed.links[0]
        assert second.service.subscriptions() == {
            "AAPL": ["settings"],
            "MSFT": ["positions"],
            "TSLA": ["positions"],
        }


async def take_over(bench: Bench, first: Member, second: Member) -> float:
    """Let the second lead, with what the first's relay and positions wanted; return since when."""
    await bench.leads(first)
    await first.service.subscribe("MSFT", source="relay")
    await bench.until(lambda: first.service.subscriptions().get("TSLA") == ["positions"])
    await bench.until(lambda: b"TSLA" in (bench.group.wishes or b""))
    first.lease.cut = True
    began_s = await takes_the_lead(bench, second)
    await subscribed_at_once(second)
    held = second.service.subscriptions()
    assert held == {"AAPL": ["settings"], "MSFT": ["takeover"], "TSLA": ["takeover"]}
    return began_s


async def test_what_relay_and_positions_wanted_is_let_go_unless_it_is_wanted_again(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        first = await bench.start("first", positions=FakePositions([TSLA]))
        second = await bench.start("second")
        began_s = await take_over(bench, first, second)
        await anyio.sleep(began_s + HELD_FOR_S - 1 - anyio.current_time())
        await subscribed_at_once(second)
        assert second.service.subscriptions().keys() == {"AAPL", "MSFT", "TSLA"}
        await anyio.sleep(2)
        assert second.service.subscriptions() == {"AAPL": ["settings"]}
        (link,) = second.feed.connections
        assert link.subscriptions["quotes"] == ("AAPL",)


async def test_what_relay_and_positions_want_again_is_kept(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        first = await bench.start("first", positions=FakePositions([TSLA]))
        source = FakePositions()
        second = await bench.start("second", positions=source)
        began_s = await take_over(bench, first, second)
        await anyio.sleep(HELD_FOR_S / 2)
        source.set(TSLA)
        await second.service.subscribe("MSFT", source="relay")
        await anyio.sleep(began_s + HELD_FOR_S + 1 - anyio.current_time())
        assert second.service.subscriptions() == {
            "AAPL": ["settings"],
            "MSFT": ["relay"],
            "TSLA": ["positions"],
        }
        (link,) = second.feed.connections
        assert {action for action, _ in link.requests} == {"subscribe"}  # never let go
        assert set(link.subscriptions["quotes"]) == {"AAPL", "MSFT", "TSLA"}


async def test_what_a_leader_still_holds_is_held_by_the_next_one_too(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        first = await bench.start("first", positions=FakePositions([TSLA]))
        second, third = await bench.start("second"), await bench.start("third")
        third.lease.cut = True  # it cannot be sooner than the second
        await take_over(bench, first, second)
        third.lease.cut = False
        await bench.leads(second)
        await anyio.sleep(HELD_FOR_S / 2)
        second.lease.cut = True
        began_s = await takes_the_lead(bench, third)
        await subscribed_at_once(third)
        await anyio.sleep(began_s + HELD_FOR_S - 1 - anyio.current_time())
        assert third.service.subscriptions().keys() == {"AAPL", "MSFT", "TSLA"}
        await anyio.sleep(2)
        assert third.service.subscriptions() == {"AAPL": ["settings"]}


@contextmanager
def used_relay(_folder: Path) -> Iterator[dict[str, Any]]:
    """The settings of a relay whose port another program has."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield {"relay": f"127.0.0.1:{other.getsockname()[1]}"}


@contextmanager
def used_journal(folder: Path) -> Iterator[dict[str, Any]]:
    """The settings of a journal into which another program records."""
    with open_folder(folder / "journal"):
        yield {"journal": folder / "journal"}


@pytest.mark.parametrize(("part", "used"), [("relay", used_relay), ("journal", used_journal)])
async def test_a_new_leader_leads_without_a_part_that_is_in_use(
    autojump_clock: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    part: str,
    used: Callable[[Path], Any],
) -> None:
    async with open_bench() as bench:
        first = await bench.start("first")
        with used(tmp_path) as settings:
            second = await bench.start("second", **settings)
            await bench.leads(first)
            bench.market(1)
            await bench.published(1)
            assert "leads_without_a_part" not in caplog.text
            first.lease.cut = True
            await bench.leads(second)
        bench.market(2)
        await bench.published(1, 2)
        assert getattr(second.service.status(), part) is None
        (line,) = [text for text in caplog.messages if "leads_without_a_part" in text]
        assert f"part={part!r}" in line


@pytest.mark.parametrize("used", [used_relay, used_journal])
async def test_a_first_start_fails_if_a_part_is_in_use(
    autojump_clock: Any, tmp_path: Path, used: Callable[[Path], Any]
) -> None:
    with used(tmp_path) as settings, pytest.RaisesGroup(ConfigurationError, flatten_subgroups=True):
        async with open_bench() as bench:
            await bench.start("first", **settings)


MINUTE_NS = 60_000_000_000


class Market:
    """Makes records of one kind, one a minute; history has them, and so do connected feeds."""

    def __init__(self, bench: Bench, kind: Kind[Any]) -> None:
        self._bench = bench
        self._kind = kind

    async def make(self, *numbers: int) -> None:
        """Make the records with these numbers, each a minute after the one before."""
        for number in numbers:
            await anyio.sleep(60)
            at_ns = self._bench.clock.utc_ns() - 200_000_000  # it took a while
            record, message = MAKE[self._kind](number, at_ns)
            self._bench.history.add([record], self._kind)
            for member in self._bench.members:
                feed = member.news_feed if self._kind is NEWS else member.feed
                if any(link.subscriptions[self._kind.channel] for link in feed.connections):
                    feed.send_messages([message])

    @property
    def published(self) -> list[dict[str, Any]]:
        """Every published record, in order."""
        return [decode(each) for each in self._bench.store.published.get(self._kind.event, [])]


def trade(number: int, at_ns: int) -> tuple[Trade, dict[str, Any]]:
    record = Trade("AAPL", number, 10, "V", ("@",), "C", number, at_ns, at_ns, 0)
    message = {"T": "t", "S": "AAPL", "i": number, "x": "V", "p": float(number), "s": 10}
    return record, {**message, "c": ["@"], "t": at_ns, "z": "C"}


def bar(number: int, at_ns: int) -> tuple[Bar, dict[str, Any]]:
    at_ns -= at_ns % MINUTE_NS + MINUTE_NS  # the start of the minute that has ended
    record = Bar("AAPL", number, number + 2, number, number + 1, 100, 7, None, at_ns, at_ns)
    message = {"T": "b", "S": "AAPL", "o": float(number), "h": number + 2.0, "l": float(number)}
    return record, {**message, "c": number + 1.0, "v": 100, "n": 7, "t": at_ns}


def article(number: int, at_ns: int) -> tuple[Article, dict[str, Any]]:
    at = format_ns(at_ns)
    words = (f"Headline {number}", "", "A. Writer", "", "https://news.invalid/1", "benzinga")
    record = Article(number, *words, ("AAPL",), at, at, at_ns, at_ns)
    names = ("headline", "summary", "author", "content", "url", "source")
    message = {"T": "n", "id": number, **dict(zip(names, words, strict=True))}
    return record, {**message, "symbols": ["AAPL"], "created_at": at, "updated_at": at}


MAKE: dict[Kind[Any], Callable[[int, int], tuple[Any, dict[str, Any]]]] = {
    TRADES: trade,
    BARS: bar,
    NEWS: article,
}


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (TRADES, {"channels": "quotes,trades"}, "price"),
        (BARS, {"channels": "quotes,bars"}, "open"),
        (NEWS, {"news": "AAPL"}, "id"),
    ],
    ids=["trades", "bars", "news"],
)
async def test_no_record_is_lost_and_none_is_published_twice_at_a_takeover(
    autojump_clock: Any, kind: Kind[Any], settings: dict[str, Any], name: str
) -> None:
    async with open_bench() as bench:
        first = await bench.start("first", **settings)
        second = await bench.start("second", **settings)
        market = Market(bench, kind)
        await bench.leads(first)
        await market.make(1, 2, 3)
        feed = second.news_feed if kind is NEWS else second.feed
        feed.refuse_next(406, times=1_000)
        first.lease.cut = True
        await bench.until(lambda: first.service.status().state == "standby")
        await market.make(4, 5)  # no feed of the group is connected
        assert not feed.connections
        assert [event[name] for event in market.published] == [1, 2, 3]
        feed.accept()
        await bench.until(
            lambda: any(link.subscriptions[kind.channel] for link in feed.connections)
        )
        await market.make(6)
        await bench.until(lambda: [event[name] for event in market.published][-1:] == [6])
        await anyio.sleep(60)  # a repeat would come later
        assert [event[name] for event in market.published] == [1, 2, 3, 4, 5, 6]
        if kind is not NEWS:  # an article has no number
            assert [event["seq"] for event in market.published] == [1, 2, 3, 4, 5, 6]
