"""Ids of a log's entries, whether a log was cut, and a reader of a log on a scripted server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mdservice.client import event_log
from mdservice.client.discovery import Location
from mdservice.client.event_log import START, Chunk, EntryId, EventLogSource, parse_entry_id
from mdservice.client.intake import KEYS_AT_MOST_EVERY_S, Intake
from mdservice.errors import ConfigurationError, StoreUnavailable
from mdservice.model.kinds import QUOTES
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.redis_io.connection import RedisAddress
from mdservice.redis_io.names import RedisNames

ids = st.builds(EntryId, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


@given(ids)
def test_an_id_is_read_back(entry: EntryId) -> None:
    assert parse_entry_id(str(entry)) == entry
    assert entry.encode() == str(entry).encode()


def test_ids_are_ordered_as_numbers_not_as_text() -> None:
    assert START < EntryId(9, 10) < EntryId(10, 9) < EntryId(10, 10)
    assert parse_entry_id(" 7 ") == EntryId(7, 0)


@pytest.mark.parametrize("text", ["", "$", "-", "1-", "-1", "1-2-3", "٣", "1" * 21, None, 5])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="after"):
        parse_entry_id(text)


def test_a_log_that_no_longer_reaches_back_was_cut() -> None:
    assert Chunk([], EntryId(5, 0)).cut_after(EntryId(4, 0))
    assert not Chunk([], EntryId(5, 0)).cut_after(EntryId(5, 0))
    assert not Chunk([], EntryId(5, 0)).cut_after(START)
    assert not Chunk([], None).cut_after(EntryId(5, 0))


# ---- a reader


class Server:
    """Has keys and logs, and can lose its connections.

    Attributes:
        keys: The prices, by the name of their key.
        logs: The entries of each log, in order.
        last_ids: The last id that each log ever had.
        asked: The commands that came, without their options.
        before_scan: Called once, when the keys are about to be read.
    """

    def __init__(self) -> None:
        self.keys: dict[str, Quote] = {}
        self.logs: dict[str, list[tuple[EntryId, Quote]]] = {}
        self.last_ids: dict[str, EntryId] = {}
        self.asked: list[tuple[str, ...]] = []
        self.before_scan: Callable[[], None] = lambda: None
        self.role: Any = [b"master", 0, []]
        self._lost = trio.Event()

    def add(self, entry: EntryId, quote: Quote, *, key: bool = True, prefix: str = "") -> None:
        """As the service does: the entry, and the key."""
        name = f"{prefix}log"
        self.logs.setdefault(name, []).append((entry, quote))
        self.last_ids[name] = entry
        if key:
            self.keys[f"{prefix}price:{quote.symbol}"] = quote

    def lose_connections(self) -> None:
        self._lost.set()

    @asynccontextmanager
    async def connect(self, _address: RedisAddress) -> AsyncIterator[Any]:
        self._lost = trio.Event()
        yield self

    address = "redis://db"
    settle_s = 0.0
    server = RedisAddress("redis://db", timeout_s=1.0)

    async def call(self, *commands: bytes) -> list[Any]:
        await trio.lowlevel.checkpoint()
        reader = hiredis.Reader()
        replies = []
        for command in commands:
            reader.feed(command)
            replies.append(await self._answer([word.decode() for word in reader.gets()]))
            if self._lost.is_set():
                raise StoreUnavailable("the connection is lost")
        return replies

    def _range(self, log: str, first: str, last: str) -> list[Any]:
        start = START if first == "-" else parse_entry_id(first)
        end = None if last == "+" else parse_entry_id(last)
        entries = [(parse_entry_id(one[0].decode()), one) for one in self._entries(log, START)]
        return [one for id_, one in entries if start <= id_ and (end is None or id_ <= end)]

    async def _answer(self, words: list[str]) -> Any:  # noqa: PLR0911 - one for each command
        name, *rest = words
        if name == "ROLE":
            return self.role
        if name == "XINFO":
            self.asked.append((name, rest[1]))
            last = self.last_ids.get(rest[1])
            if last is None:
                return hiredis.ReplyError("ERR no such key")
            return [b"length", 1, b"last-generated-id", last.encode()]
        if name == "XREAD":
            log, after = rest[-2], parse_entry_id(rest[-1])
            self.asked.append((name, log, rest[-1]))
            if not (found := self._entries(log, after)):
                with trio.move_on_after(float(rest[3]) / 1_000):
                    await self._lost.wait()
                found = self._entries(log, after)
            return [[log.encode(), found[: int(rest[1])]]] if found else None
        if name == "XRANGE":
            return self._range(*rest[:3])[:1]
        if name == "SCAN":
            self.asked.append((name, rest[2]))
            before_scan, self.before_scan = self.before_scan, lambda: None
            before_scan()
            prefix = rest[2].removesuffix("*")
            return [b"0", [key.encode() for key in self.keys if key.startswith(prefix)]]
        assert name == "MGET"
        return [encode_quote(self.keys[key]) for key in rest]

    def _entries(self, log: str, after: EntryId) -> list[Any]:
        return [
            [entry.encode(), [b"data", encode_quote(quote)]]
            for entry, quote in self.logs.get(log, ())
            if entry > after
        ]


class Reader:
    """Follows the log, with a new connection after each lost one."""

    def __init__(self, server: Server, after: EntryId | None) -> None:
        self.intake = Intake([QUOTES], ())
        self.names = RedisNames()
        self.connected = 0
        self._server = server
        self._source = EventLogSource(self.intake, "log", after)

    def note_connected(self) -> None:
        self.connected += 1

    async def run(self) -> None:
        while True:
            location = Location(RedisAddress("redis://db", timeout_s=1.0), self.names)
            try:
                await self._source.follow(location, self.note_connected)
            except StoreUnavailable:
                await trio.sleep(0.1)

    async def taken(self, within_s: float = 3 * KEYS_AT_MOST_EVERY_S) -> list[tuple[str, int]]:
        """All that arrives within this time."""
        found = []
        with trio.move_on_after(within_s):
            while True:
                one = await self.intake.handover.take()
                found.append((one.symbol, one.seq))
        return found

    @property
    def position(self) -> str | None:
        return self.intake.handover.position


@asynccontextmanager
async def reading(
    server: Server, monkeypatch: pytest.MonkeyPatch, after: EntryId | None = None
) -> AsyncIterator[Reader]:
    monkeypatch.setattr(event_log, "connected_to", server.connect)
    reader = Reader(server, after)
    with trio.fail_after(1_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            yield reader
            nursery.cancel_scope.cancel()


def quote(seq: int, symbol: str = "AAPL", *, at_ns: int | None = None) -> Quote:
    return Quote(symbol, float(seq), seq + 1.0, 1, 1, at_ns or 1_000 + seq, 0, seq)


def at(second: float, number: int = 0) -> EntryId:
    """An id of the server's clock."""
    return EntryId(1_700_000_000_000 + int(second * 1_000), number)


async def test_the_keys_come_first_and_then_the_entries_that_are_newer(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.add(at(1), quote(1))
    server.add(at(2), quote(2))
    async with reading(server, monkeypatch) as reader:
        assert await reader.taken() == [("AAPL", 2)]
        assert (reader.connected, reader.position) == (1, str(at(2)))
        server.add(at(3), quote(3))
        assert await reader.taken() == [("AAPL", 3)]
        assert reader.position == str(at(3))
        assert reader.intake.trimmed == 0


async def test_after_a_given_entry_the_keys_are_not_read(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    for seq in (1, 2, 3):
        server.add(at(seq), quote(seq))
    async with reading(server, monkeypatch, after=at(1)) as reader:
        assert reader.position == str(at(1))
        assert await reader.taken() == [("AAPL", 2), ("AAPL", 3)]
        assert not [words for words in server.asked if words[0] == "SCAN"]


async def test_another_connection_uses_the_names_of_its_location(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.add(at(1), quote(1))
    async with reading(server, monkeypatch) as reader:
        assert await reader.taken() == [("AAPL", 1)]
        reader.names = RedisNames("two:")
        server.add(at(5), quote(9, "MSFT"), prefix="two:")
        server.asked.clear()
        server.lose_connections()
        assert await reader.taken() == [("MSFT", 9)]
        assert {words[1] for words in server.asked if words[0] == "XREAD"} == {"two:log"}
        server.add(at(6), quote(11, "MSFT"), prefix="two:")  # a step: the keys are read again
        assert await reader.taken() == [("MSFT", 11)]
        assert [words for words in server.asked if words[0] == "SCAN"][-1] == (
            "SCAN",
            "two:price:*",
        )


async def test_a_log_that_lost_its_end_is_read_on_and_the_keys_say_the_rest(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover: what was read is not repeated, and a key may be all that is left."""
    server = Server()
    for seq in (1, 2, 3):
        server.add(at(seq), quote(seq))
    async with reading(server, monkeypatch, after=START) as reader:
        assert len(await reader.taken()) == 3
        del server.logs["log"][1:]
        server.last_ids["log"] = at(1)
        server.keys = {"price:AAPL": quote(3), "price:MSFT": quote(7, "MSFT")}
        server.lose_connections()
        assert await reader.taken(0.5) == [("MSFT", 7)], "it is noticed at connecting"
        assert reader.intake.trimmed == 1
        server.add(at(2, 5), quote(4))
        assert await reader.taken() == [("AAPL", 4)]
        assert reader.position == str(at(2, 5))


async def test_a_log_that_went_on_without_its_last_entries_makes_it_read_the_keys(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover: the new primary has newer entries already, and is being restored."""
    server = Server()
    for seq in (1, 2, 3):
        server.add(at(seq), quote(seq))
    async with reading(server, monkeypatch, after=START) as reader:
        assert len(await reader.taken()) == 3
        del server.logs["log"][1:]
        server.add(at(4), quote(4))
        server.lose_connections()
        assert await reader.taken(0.5) == [("AAPL", 4)]
        assert reader.intake.trimmed == 1
        server.keys["price:MSFT"] = quote(7, "MSFT")  # the service writes it again
        assert await reader.taken(10) == [("MSFT", 7)]
        resyncs = reader.intake.resyncs
        await reader.taken(10)
        assert reader.intake.resyncs == resyncs


@pytest.mark.parametrize(("behind_s", "fresh"), [(60, False), (61, True)])
async def test_a_log_that_ends_much_earlier_is_another_one_and_read_from_its_start(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, behind_s: int, fresh: bool
) -> None:
    server = Server()
    server.add(at(100), quote(5))
    async with reading(server, monkeypatch, after=START) as reader:
        assert await reader.taken() == [("AAPL", 5)]
        server.logs.clear()
        server.keys.clear()
        server.add(at(99 - behind_s), quote(1, "IBM"), key=False)
        server.add(at(100 - behind_s), quote(1, "MSFT"), key=False)
        server.lose_connections()
        expected = [("IBM", 1), ("MSFT", 1)] if fresh else []
        assert await reader.taken() == expected
        assert reader.intake.trimmed == 1
        assert reader.intake.resyncs == 1


async def test_after_a_cut_the_keys_come_when_the_log_is_read_up_to_their_time(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    for seq in range(5, 1_205):
        server.add(at(seq), quote(seq))
    server.keys["price:MSFT"] = quote(3, "MSFT")
    async with reading(server, monkeypatch, after=at(1)) as reader:
        taken = await reader.taken()
        assert taken == [*(("AAPL", seq) for seq in range(5, 1_205)), ("MSFT", 3)]
        assert (reader.intake.trimmed, reader.intake.resyncs) == (1, 1)


async def test_entries_that_the_keys_have_already_are_not_taken_for_a_new_run(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.add(at(1), quote(4))

    def write() -> None:  # after the end of the log was asked, before the keys are read
        server.add(at(2), quote(5, at_ns=2_000))
        server.add(at(3), quote(6, at_ns=2_000))

    server.before_scan = write
    async with reading(server, monkeypatch) as reader:
        assert await reader.taken() == [("AAPL", 6)]
        assert reader.intake.states[QUOTES].order.starts == 0
        # Entries after that are in order: this one can only be of a new run.
        server.add(at(4), quote(1, at_ns=2_000))
        assert await reader.taken() == [("AAPL", 1)]
        assert reader.intake.states[QUOTES].order.starts == 1


async def test_all_entries_of_another_log_are_in_order(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.add(at(1_000), quote(6, at_ns=2_000))
    async with reading(server, monkeypatch) as reader:
        assert await reader.taken() == [("AAPL", 6)]
        server.logs.clear()
        server.add(at(5), quote(1, at_ns=2_000))
        assert await reader.taken() == [("AAPL", 1)]
        assert reader.intake.states[QUOTES].order.starts == 1


async def test_keys_that_wait_for_a_log_go_with_it(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    for seq in range(5, 1_505):
        server.add(at(seq), quote(seq))
    async with reading(server, monkeypatch, after=at(1)) as reader:
        await trio.sleep(5)
        assert len(reader.intake.handover) == 500, "it reads on when the program has taken these"
        for _ in range(700):
            await reader.intake.handover.take()
        assert reader.intake.resyncs == 1, "they wait until the log is read"
        server.logs.clear()
        server.add(at(-500), quote(1_506))
        server.keys["price:MSFT"] = quote(3, "MSFT")
        rest = await reader.taken()
        assert rest[-2:] == [("AAPL", 1_506), ("MSFT", 3)]


async def test_it_leaves_a_replica_that_is_cut_off(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.add(at(1), quote(1))
    async with reading(server, monkeypatch, after=START) as reader:
        assert await reader.taken() == [("AAPL", 1)]
        server.role = [b"slave", b"db", 6379, b"connect", -1]
        connected = reader.connected
        await reader.taken(10)
        assert reader.connected == connected, "there is no use in reading it"
        server.role[3] = b"connected"
        server.add(at(2), quote(2))
        assert await reader.taken(10) == [("AAPL", 2)]
