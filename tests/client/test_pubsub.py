"""The channel and the keys, read beside each other, on virtual time and a server by script."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
import trio

from mdservice.client.discovery import Location
from mdservice.client.intake import KEYS_AT_MOST_EVERY_S, Intake
from mdservice.client.pubsub import ANSWER_LIMIT_S, PING_AFTER_S, PubSubSource, Silence
from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import QUOTES
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.redis_io.connection import RedisAddress
from mdservice.redis_io.names import Instance, RedisNames, encode_instance, encode_marker

LOCATION = Location(RedisAddress("redis://db", timeout_s=1.0), RedisNames())
LIMIT_S = 1_000.0


def quote(seq: int, symbol: str = "AAPL", *, at_ns: int | None = None) -> Quote:
    return Quote(symbol, float(seq), seq + 1.0, 1, 1, 1_000 + (at_ns or seq), 0, seq)


def commands_in(data: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader(notEnoughData=None)
    reader.feed(data)
    return list(iter(reader.gets, None))


class Server:
    """Answers what a reader asks, publishes, goes silent, refuses.

    Attributes:
        keys: The prices that stand there.
        key_reads: How often they were read.
        hold_keys: While set, reading them takes until it is released.
        silent: While set, no PING is answered.
        refuse: Answers SUBSCRIBE with this error.
        pings: When a plain PING came.
        markers: How many PINGs came that mark the end of reading the keys.
        record: The service that the database belongs to.
        record_reads: How often that was asked for.
        while_subscribing: A message that comes before the last answer to SUBSCRIBE.
        held_up_s: How long the reader does not listen, once.
        settle_s: How long after its key an event may come.
    """

    def __init__(self) -> None:
        self.keys: dict[str, Quote] = {}
        self.key_reads = 0
        self.hold_keys: trio.Event | None = None
        self.silent = False
        self.refuse: str | None = None
        self.pings: list[float] = []
        self.markers = 0
        self.connections = 0
        self.record: Instance | None = None
        self.role: Any = [b"master", 0, []]
        self.record_reads = 0
        self.while_subscribing: list[bytes] | None = None
        self.held_up_s = 0.0
        self.settle_s = 0.0
        self._to_subscriber: deque[Any] = deque()
        self._news = trio.Event()

    @asynccontextmanager
    async def connect(self, address: RedisAddress) -> AsyncIterator[Any]:
        self.connections += 1
        try:
            yield Connection(self)
        finally:
            self.connections -= 1

    def publish(self, *quotes: Quote) -> None:
        for each in quotes:
            self.say([b"message", b"price.updated", encode_quote(each)])

    def write(self, *quotes: Quote, lost: bool = False) -> None:
        """As the service does: the key, then the event, which may get lost."""
        for each in quotes:
            self.keys[each.symbol] = each
            if not lost:
                self.publish(each)

    def announce(self, service: Instance) -> None:
        self.say([b"message", b"mdservice.instances", encode_instance(service)])

    def publish_as(self, service: Instance, *quotes: Quote) -> None:
        marker = encode_marker(service.id, service.db, len(quotes))
        self.say([b"message", b"mdservice.batch", marker])
        self.write(*quotes)

    def mark(self, service: Instance, events: int, number: int, *, restored: bool = False) -> None:
        marker = encode_marker(service.id, service.db, events, number, restored=restored)
        self.say([b"message", b"mdservice.batch", marker])

    def say(self, reply: Any) -> None:
        self._to_subscriber.append(reply)
        self._news.set()

    def hear(self, data: bytes) -> None:
        for command in commands_in(data):
            assert command[0] == b"PING"
            if command[1] == b"":
                self.pings.append(trio.current_time())
            else:
                self.markers += 1
            if not self.silent:
                self.say([b"pong", command[1]])

    async def answer(self, data: bytes) -> Any:
        ((name, *words),) = commands_in(data)
        if name == b"ROLE":
            return self.role
        if name == b"GET":
            self.record_reads += 1
            return None if self.record is None else encode_instance(self.record)
        if name == b"SCAN":
            self.key_reads += 1
            if self.hold_keys is not None:
                await self.hold_keys.wait()
            return [b"0", [f"price:{symbol}".encode() for symbol in self.keys]]
        assert name == b"MGET"
        symbols = [word.removeprefix(b"price:").decode() for word in words]
        return [encode_quote(self.keys[symbol]) for symbol in symbols]

    async def wait_for_news(self, wait_s: float) -> None:
        if not self._to_subscriber:
            self._news = trio.Event()
            with trio.move_on_after(wait_s):
                await self._news.wait()

    def take(self) -> list[Any]:
        taken = list(self._to_subscriber)
        self._to_subscriber.clear()
        return taken


class Connection:
    """What a :class:`~mdservice.redis_io.connection.RedisConnection` does, by the server's script."""

    server = LOCATION.address
    address = LOCATION.address.shown

    def __init__(self, server: Server) -> None:
        self._server = server
        self.settle_s = server.settle_s

    async def call(self, *commands: bytes) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return [await self._server.answer(command) for command in commands]

    async def exchange(self, data: bytes, replies: int) -> list[Any]:
        await trio.lowlevel.checkpoint()
        refuse, message = self._server.refuse, self._server.while_subscribing
        answer = [b"subscribe", b"", 1] if refuse is None else hiredis.ReplyError(refuse)
        if message is None:
            assert b"SUBSCRIBE" in data
            return [answer] * replies
        if data:
            return [*[[b"subscribe", b"", 1]] * (replies - 1), message]
        self._server.while_subscribing = None
        if replies > 1:
            await trio.sleep_forever()  # only one is left
        return [answer]

    async def receive(self, wait_s: float, data: bytes = b"") -> list[Any]:
        server = self._server
        held_up_s, server.held_up_s = server.held_up_s, 0.0
        await trio.sleep(held_up_s)
        server.hear(data)
        await server.wait_for_news(wait_s)
        return server.take()


class Bench:
    """A source that follows a server by script."""

    def __init__(self, server: Server, intake: Intake) -> None:
        self.server = server
        self.intake = intake
        self.connected = 0
        self.error: Exception | None = None

    def note_connected(self) -> None:
        self.connected += 1

    async def run(self) -> None:
        try:
            source = PubSubSource(self.intake, self.server.connect)
            await source.follow(LOCATION, self.note_connected)
        except (StoreRefused, StoreUnavailable) as exc:
            self.error = exc

    async def taken(self) -> list[tuple[str, int]]:
        """All that has been given out by now."""
        await trio.sleep(0.1)
        found = []
        while len(self.intake.handover):
            one = await self.intake.handover.take()
            found.append((one.symbol, one.seq))
        return found


@asynccontextmanager
async def open_bench(server: Server, intake: Intake | None = None) -> AsyncIterator[Bench]:
    """A source at work, on the test's clock."""
    bench = Bench(server, intake or Intake([QUOTES], ()))
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.run)
            yield bench
            nursery.cancel_scope.cancel()
    assert server.connections == 0


async def test_the_keys_come_first_and_then_the_events_that_waited(autojump_clock: Any) -> None:
    server = Server()
    server.keys = {"AAPL": quote(5), "MSFT": quote(3, "MSFT")}
    server.hold_keys = trio.Event()
    async with open_bench(server) as bench:
        server.publish(quote(4), quote(5), quote(6))
        assert await bench.taken() == []
        assert bench.connected == 0, "what is known has not been given out yet"
        assert server.markers == 0, "the marker comes after the keys"
        server.hold_keys.set()
        assert await bench.taken() == [("AAPL", 5), ("MSFT", 3), ("AAPL", 6)]
        assert (bench.connected, server.markers) == (1, 1)
        server.publish(quote(7))
        assert await bench.taken() == [("AAPL", 7)]
        assert (bench.intake.states[QUOTES].order.missed, server.key_reads) == (0, 1)


async def test_keys_are_not_applied_before_the_marker_is_back(autojump_clock: Any) -> None:
    server = Server()
    server.keys = {"AAPL": quote(5)}
    server.silent = True
    async with open_bench(server) as bench:
        server.say([b"pong", b""])  # the answer to another question
        assert await bench.taken() == []
        assert bench.connected == 0
        server.say([b"pong", b"keys-were-read"])
        assert await bench.taken() == [("AAPL", 5)]
        assert bench.connected == 1


async def test_an_event_that_comes_soon_after_its_key_is_not_missed(autojump_clock: Any) -> None:
    server, intake = Server(), Intake([QUOTES], ())
    intake.take_keys(QUOTES, [quote(1)])
    server.settle_s = 0.25
    server.keys = {"AAPL": quote(3)}
    async with open_bench(server, intake) as bench:
        assert await bench.taken() == []  # 0.1 s later
        server.publish(quote(2), quote(3))
        assert await bench.taken() == [("AAPL", 2), ("AAPL", 3)]
        await trio.sleep(1)
        assert await bench.taken() == []
        assert (bench.connected, bench.intake.states[QUOTES].order.missed) == (1, 0)


async def test_a_step_makes_it_read_the_keys_again(autojump_clock: Any) -> None:
    server = Server()
    async with open_bench(server) as bench:
        server.write(quote(1), quote(1, "MSFT"))
        assert await bench.taken() == [("AAPL", 1), ("MSFT", 1)]
        server.write(quote(2, "MSFT"), quote(2), quote(3), lost=True)
        server.write(quote(4))
        await trio.sleep(2 * KEYS_AT_MOST_EVERY_S)
        assert await bench.taken() == [("AAPL", 4), ("MSFT", 2)]
        assert (bench.intake.states[QUOTES].order.missed, bench.intake.resyncs) == (2, 1)
        reads = server.key_reads
        await trio.sleep(10)
        assert server.key_reads == reads, "once for each step"
        assert bench.connected == 1


async def test_many_steps_read_the_keys_once_a_second_at_most(autojump_clock: Any) -> None:
    server = Server()
    async with open_bench(server) as bench:
        await bench.taken()
        before, began_s = server.key_reads, trio.current_time()
        for seq in range(1, 1_001, 2):
            server.write(quote(seq))
            await trio.sleep(0.02)
        lasted_s = trio.current_time() - began_s
        assert lasted_s / 3 <= server.key_reads - before <= lasted_s / KEYS_AT_MOST_EVERY_S + 1


async def test_after_a_lost_connection_events_do_not_wait_for_the_keys(
    autojump_clock: Any,
) -> None:
    server, intake = Server(), Intake([QUOTES], ())
    intake.take_keys(QUOTES, [quote(1), quote(1, "MSFT")])
    server.keys = {"AAPL": quote(3), "MSFT": quote(2, "MSFT")}
    server.hold_keys = trio.Event()
    async with open_bench(server, intake) as bench:
        server.publish(quote(4))
        assert await bench.taken() == [("AAPL", 4)]
        server.hold_keys.set()
        assert await bench.taken() == [("MSFT", 2)], "the older key is not news"


async def test_a_server_that_says_nothing_is_asked_and_then_given_up(
    autojump_clock: Any,
) -> None:
    server = Server()
    async with open_bench(server) as bench:
        await bench.taken()
        began_s = trio.current_time()
        await trio.sleep(3 * PING_AFTER_S + 1)
        assert len(server.pings) >= 2
        assert bench.error is None, "it answers"
        server.silent = True
        asked = len(server.pings)
        await trio.sleep(PING_AFTER_S + ANSWER_LIMIT_S + 3)
        assert isinstance(bench.error, StoreUnavailable)
        assert len(server.pings) == asked + 1
        assert server.pings[0] - began_s <= PING_AFTER_S + 1


async def test_events_count_as_a_sign_of_life(autojump_clock: Any) -> None:
    server = Server()
    async with open_bench(server) as bench:
        await bench.taken()
        server.silent = True
        for seq in range(1, 20):
            server.write(quote(seq))
            await trio.sleep(PING_AFTER_S / 2)
        assert bench.error is None
        assert server.pings == []


@pytest.mark.parametrize("when", ["subscribing", "later"])
async def test_the_servers_error_ends_it_with_its_words(autojump_clock: Any, when: str) -> None:
    server = Server()
    text = "NOPERM No permissions to access a channel"
    if when == "subscribing":
        server.refuse = text
    async with open_bench(server) as bench:
        await trio.sleep(1)
        if when == "later":
            server.say(hiredis.ReplyError(text))
            await trio.sleep(1)
        assert isinstance(bench.error, StoreRefused)
        assert "NOPERM" in str(bench.error)


@pytest.mark.parametrize(
    "message", [[b"message"], [b"message", b"a"], [b"message", [b"a"], b"b"], [b"message"] * 4]
)
async def test_a_message_of_another_form_is_no_answer_of_redis(
    autojump_clock: Any, message: list[Any]
) -> None:
    server = Server()
    async with open_bench(server) as bench:
        await bench.taken()
        server.say(message)
        await trio.sleep(1)
        assert isinstance(bench.error, StoreUnavailable)


@pytest.mark.parametrize("keys", [7, b"price:A", [7], [[b"price:A"]], None])
async def test_keys_of_another_form_are_no_answer_of_redis(autojump_clock: Any, keys: Any) -> None:
    class Odd(Server):
        async def answer(self, data: bytes) -> Any:
            return [b"0", keys] if b"SCAN" in data else await super().answer(data)

    async with open_bench(Odd()) as bench:
        await trio.sleep(1)
        assert isinstance(bench.error, StoreUnavailable)


async def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(autojump_clock: Any) -> None:
    server = Server()
    async with open_bench(server) as bench:
        await bench.taken()
        server.say([b"message", b"price.updated", b"no quote"])
        server.say([b"subscribe", b"price.updated", 1])
        server.publish(quote(1))
        assert await bench.taken() == [("AAPL", 1)]
        assert bench.intake.states[QUOTES].event_decoder.errors == 1


def service(name: str, *, db: int = 0, **more: Any) -> Instance:
    return Instance(name, db, "host", 1, "iex", 0.0, 300.0, "", **more)


async def test_a_reader_that_was_held_up_does_not_leave_a_server_that_works(
    autojump_clock: Any,
) -> None:
    server = Server()
    server.record = first = service("first")
    async with open_bench(server) as bench:
        server.announce(first)
        await bench.taken()
        server.held_up_s = 10.0
        server.publish_as(first, quote(1))
        await trio.sleep(11.5)
        server.publish_as(first, quote(2))  # what was announced meanwhile stands behind this
        await trio.sleep(1)
        server.announce(first)
        server.publish_as(first, quote(3))
        assert await bench.taken() == [("AAPL", 1), ("AAPL", 2), ("AAPL", 3)]
        assert bench.error is None


async def test_the_next_service_is_followed_from_its_predecessors_last_word_on(
    autojump_clock: Any,
) -> None:
    server = Server()
    server.record = first = service("first")
    second = service("second")
    async with open_bench(server) as bench:
        for seq in range(1, 30):
            server.announce(first)
            server.publish_as(first, quote(seq))
            server.publish_as(second, quote(1, "MSFT", at_ns=seq))
            await trio.sleep(0.1)
        assert bench.intake.foreign > 0
        server.publish_as(second, quote(1, "SPY"))  # passed over, like others before
        server.announce(service("first", gone=True))
        server.record = None
        server.publish_as(second, quote(2, "SPY"), quote(3, "SPY"))
        taken = await bench.taken()
        assert [one for one in taken if one[0] == "SPY"][-2:] == [("SPY", 2), ("SPY", 3)]


async def test_events_wait_while_the_followed_service_may_have_been_killed(
    autojump_clock: Any,
) -> None:
    server = Server()
    server.record = first = service("first")
    second = service("second")
    async with open_bench(server) as bench:
        server.announce(first)
        await bench.taken()
        for seq in range(1, 35):  # as long as the record of the killed service stays
            server.publish_as(second, quote(seq))
            server.announce(second)
            await trio.sleep(0.1)
        server.record = second
        server.publish_as(second, quote(35))
        await trio.sleep(1)
        assert await bench.taken() == [("AAPL", seq) for seq in range(1, 36)]
        assert bench.intake.foreign == 0
        assert bench.error is None


async def test_events_of_a_live_rival_wait_for_one_announcement_and_are_passed_over(
    autojump_clock: Any,
) -> None:
    server = Server()
    server.record = first = service("first")
    rival = service("rival")
    async with open_bench(server) as bench:
        for seq in range(1, 101):
            if seq % 10 == 0:
                server.announce(first)
            server.publish_as(rival, quote(seq, "MSFT"))
            server.keys.clear()
            await trio.sleep(0.1)
        server.announce(first)
        await trio.sleep(1)
        assert await bench.taken() == []
        assert bench.intake.foreign == 100


async def test_without_a_record_the_events_of_a_service_are_taken(autojump_clock: Any) -> None:
    server = Server()
    async with open_bench(server) as bench:
        server.publish_as(service("first"), quote(1))
        assert await bench.taken() == [("AAPL", 1)]
        assert bench.intake.foreign == 0


async def test_a_batch_is_as_long_as_its_owner_says(autojump_clock: Any) -> None:
    """Another program may publish too, without saying who it is."""
    server = Server()
    server.record = service("first")
    elsewhere = service("elsewhere", db=1)
    async with open_bench(server) as bench:
        await bench.taken()
        server.publish_as(elsewhere, quote(1, "MSFT"), quote(2, "MSFT"))
        server.publish(quote(1), quote(2))
        server.publish_as(elsewhere, quote(3, "MSFT"))
        assert await bench.taken() == [("AAPL", 1), ("AAPL", 2)]
        assert bench.intake.foreign == 3


async def test_a_service_in_another_database_puts_nothing_in_doubt(autojump_clock: Any) -> None:
    server = Server()
    server.record = first = service("first")
    async with open_bench(server) as bench:
        server.announce(first)
        await bench.taken()
        asked = server.record_reads
        for _ in range(10):
            server.announce(first)
            server.announce(service("elsewhere", db=1))
            await trio.sleep(1)
        assert server.record_reads == asked
        server.announce(service("rival"))
        await trio.sleep(1)
        assert server.record_reads == asked + 1


async def test_the_record_is_read_at_once_for_the_first_event_that_waits(
    autojump_clock: Any,
) -> None:
    server = Server()
    server.record = first = service("first")
    second = service("second")
    async with open_bench(server) as bench:
        server.announce(first)
        server.announce(second)  # the record is read for this, and is not due again
        await trio.sleep(0.1)
        server.record = second
        server.publish_as(second, quote(1))
        assert await bench.taken() == [("AAPL", 1)]


async def test_events_that_wait_are_decided_without_a_further_word(autojump_clock: Any) -> None:
    server = Server()
    server.record = first = service("first")
    second = service("second")
    async with open_bench(server) as bench:
        server.announce(first)
        await bench.taken()
        server.publish_as(second, quote(1))
        assert await bench.taken() == []
        server.record = second
        await trio.sleep(2)
        assert await bench.taken() == [("AAPL", 1)]
        assert bench.error is None


async def test_the_keys_of_another_owner_are_read(autojump_clock: Any) -> None:
    server = Server()
    server.record = first = service("first")
    second = service("second")
    async with open_bench(server) as bench:
        server.announce(first)
        await bench.taken()
        server.announce(service("first", gone=True))
        server.record = second
        server.write(quote(7, "MSFT"), lost=True)  # before the reader knows of the second one
        server.announce(service("first", gone=True))
        await trio.sleep(2)
        assert await bench.taken() == [("MSFT", 7)]


async def test_whom_it_passed_over_it_takes_as_the_owner_of_the_database(
    autojump_clock: Any,
) -> None:
    server = Server()
    server.record = first = service("first")
    second, third = service("second"), service("third")
    async with open_bench(server) as bench:
        server.announce(first)
        server.publish_as(second, quote(1))
        while not bench.intake.foreign:
            await trio.sleep(0.1)
            server.announce(first)
        server.keys.clear()
        await bench.taken()
        for owner, seq in ((third, 2), (second, 3)):  # killed, and followed by another
            server.record = owner
            server.publish_as(owner, quote(seq))
            assert await bench.taken() == [("AAPL", seq)]


async def test_a_subscription_that_is_mixed_with_events_is_read_to_its_end(
    autojump_clock: Any,
) -> None:
    server = Server()
    server.while_subscribing = [b"message", b"price.updated", encode_quote(quote(1))]
    server.refuse = "NOPERM No permissions to access a channel"
    async with open_bench(server) as bench:
        await trio.sleep(1)
        assert isinstance(bench.error, StoreRefused)


def test_asks_once_after_a_while() -> None:
    silence = Silence(0.0)
    assert not silence.ask(PING_AFTER_S - 0.1)
    assert silence.ask(PING_AFTER_S)
    assert not silence.ask(PING_AFTER_S + 1)


def test_gives_up_only_what_was_asked_and_did_not_answer() -> None:
    silence = Silence(0.0)
    assert not silence.too_long(1_000.0, anything=False)
    assert silence.ask(1_000.0)
    assert not silence.too_long(1_000.0 + ANSWER_LIMIT_S - 0.1, anything=False)
    assert silence.too_long(1_000.0 + ANSWER_LIMIT_S, anything=False)


def test_whatever_is_heard_counts() -> None:
    silence = Silence(0.0)
    assert silence.ask(10.0)
    assert not silence.too_long(10.0 + 2 * ANSWER_LIMIT_S, anything=True)
    assert not silence.ask(10.0 + 2 * ANSWER_LIMIT_S + PING_AFTER_S - 0.1)


# ---- events that were lost before they reached the server


@pytest.mark.parametrize(
    ("then", "lost"),
    [
        ((2, 3, 8), 0),
        ((2, 2, 8), 0),  # a batch that was sent again
        ((2, 4, 8), 1),
        ((2, 0, 7), 0),  # while the service is idle
        ((2, 0, 8), 1),
        ((2, 0, 6), 0),
    ],
)
async def test_a_step_between_batches_makes_it_read_the_keys(
    then: tuple[int, int, int], lost: int, autojump_clock: Any
) -> None:
    events, number = then[1] and 1, {3: 8, 2: 7, 4: 9}.get(then[1], then[2])
    server = Server()
    server.record = one = service("first")
    async with open_bench(server) as bench:
        server.mark(one, 1, 7)
        server.publish(quote(1))
        assert await bench.taken() == [("AAPL", 1)]
        server.write(quote(5, "MSFT"), lost=True)
        server.mark(one, events, number)
        await trio.sleep(2)
        assert await bench.taken() == [("MSFT", 5)] * lost
        assert (bench.intake.lost, bench.intake.resyncs) == (lost, lost)


async def test_it_reads_the_keys_once_the_service_has_written_lost_values_again(
    autojump_clock: Any,
) -> None:
    server = Server()
    server.record = one = service("first")
    async with open_bench(server) as bench:
        assert await bench.taken() == []
        server.write(quote(5, "MSFT"), lost=True)
        server.mark(service("another"), 0, 7, restored=True)
        await trio.sleep(2)
        assert await bench.taken() == []
        server.mark(one, 0, 7, restored=True)
        await trio.sleep(2)
        assert await bench.taken() == [("MSFT", 5)]
        assert bench.intake.lost == 1


async def test_another_run_and_another_database_show_no_loss(autojump_clock: Any) -> None:
    server = Server()
    server.record = one = service("first")
    async with open_bench(server) as bench:
        server.mark(one, 0, 7)
        server.mark(service("elsewhere", db=1), 0, 3, restored=True)
        server.mark(one, 0, 9)  # the one before is of another service
        server.mark(service("first"), 0, 9)
        await trio.sleep(2)
        assert bench.intake.lost == 0


# ---- a server that is a replica


CUT_OFF = [b"slave", b"db", 6379, b"connect", -1]
FOLLOWS = [b"slave", b"db", 6379, b"connected", 1]


async def test_a_replica_that_is_cut_off_is_not_read(autojump_clock: Any) -> None:
    server = Server()
    server.role = CUT_OFF
    async with open_bench(server) as bench:
        await trio.sleep(1)
        assert "without a connection to its primary" in str(bench.error)
        assert bench.connected == 0


@pytest.mark.parametrize("record", [None, "first"])
async def test_a_server_that_is_cut_off_later_is_left_within_5_s(
    record: str | None, autojump_clock: Any
) -> None:
    server = Server()
    server.record = None if record is None else service(record)
    async with open_bench(server) as bench:
        for _ in range(10):
            await trio.sleep(1)
            if server.record is not None:
                server.announce(server.record)
        assert bench.error is None
        server.role = FOLLOWS
        await trio.sleep(20 if record is None else 2)
        assert bench.error is None
        server.role = CUT_OFF
        await trio.sleep(5)
        assert "without a connection to its primary" in str(bench.error)
