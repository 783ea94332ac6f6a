"""One open connection, over a link in memory: reading, and one request at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
import trio
from trio.testing import MockClock

from mdservice.errors import FeedError, FeedRefused, FeedUnavailable
from mdservice.feed.alpaca.codec import Codec, Encoding, Frame
from mdservice.feed.alpaca.link import AlpacaLink
from mdservice.feed.driver import RequestRefused
from mdservice.feed.session import ACK_TIMEOUT_S, CHUNK_SIZE, NOT_ACKNOWLEDGED, Session
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import Topic
from mdservice.model.kinds import QUOTES, TRADES
from mdservice.model.quote import Quote
from tests.topics import names, quotes

NOW_NS = 1_795_189_904_000_000_000
ANSWER_S = 0.01

Request = Mapping[str, Any]
Answer = Callable[["MemoryFeed", Request], Sequence[Mapping[str, Any]]]


def quote(symbol: str, bid: float = 1.0) -> dict[str, Any]:
    return {
        "T": "q", "S": symbol, "bp": bid, "bs": 1, "ap": bid + 1, "as": 2,
        "t": "2026-11-20T15:51:44.208912345Z",
    }  # fmt: skip


def error(code: int, msg: str = "no") -> dict[str, Any]:
    return {"T": "error", "code": code, "msg": msg}


class MemoryFeed(AlpacaLink):
    """A link, and the feed at its other end, which answers every request after a moment."""

    def __init__(
        self,
        *,
        encoding: Encoding = "json",
        limit: int = 100_000,
        unknown: Sequence[str] = (),
        answer: Answer | None = None,
    ) -> None:
        self.followed = Followed()
        super().__init__(encoding, self.followed, lambda: NOW_NS)
        self.limit = limit
        self.unknown = frozenset(unknown)
        self.subscribed: set[str] = set()
        self.requests: list[Request] = []
        self.overlapping = 0
        self.receiving = 0
        self._answer = answer or MemoryFeed.obey
        self._encode = Codec(encoding).encode
        self._requests_in, self._requests_out = anyio.create_memory_object_stream[Request](100)
        self._frames_in, self._frames_out = anyio.create_memory_object_stream[Frame](1000)
        self._unanswered = 0
        self._end = FeedUnavailable("the feed closed the connection")

    # The link

    async def send_frame(self, frame: Frame) -> None:
        module = msgspec.json if self.encoding == "json" else msgspec.msgpack
        message = module.decode(frame)
        self.requests.append(message)
        self._unanswered += 1
        self.overlapping += self._unanswered > 1
        self._requests_in.send_nowait(message)

    async def receive_frames(self) -> Sequence[Frame]:
        self.receiving += 1
        try:
            frames = [await self._frames_out.receive()]
        except anyio.EndOfStream:
            raise self._end from None
        while self._frames_out.statistics().current_buffer_used:
            frames.append(self._frames_out.receive_nowait())
        return frames

    # The feed

    def push(self, *messages: Mapping[str, Any]) -> None:
        self._frames_in.send_nowait(self._encode(messages))

    def end(self) -> None:
        self._frames_in.close()

    async def serve(self) -> None:
        async for request in self._requests_out:
            await anyio.sleep(ANSWER_S)
            self._unanswered -= 1
            for message in self._answer(self, request):
                self.push(message)

    def close(self) -> None:
        for stream in (
            self._requests_in, self._requests_out, self._frames_in, self._frames_out,
        ):  # fmt: skip
            stream.close()

    def obey(self, request: Request) -> Sequence[Mapping[str, Any]]:
        """As Alpaca does: all of a request or, with an error, nothing."""
        asked = set(request["quotes"])
        if asked & self.unknown:
            return [error(400, "invalid syntax")]
        if request["action"] == "unsubscribe":
            self.subscribed -= asked
        elif len(self.subscribed | asked) > self.limit:
            return [error(405, "symbol limit exceeded")]
        else:
            self.subscribed |= asked
        return [self.state()]

    def state(self) -> dict[str, Any]:
        return {"T": "subscription", "trades": [], "quotes": sorted(self.subscribed), "bars": []}


class Reading:
    """A session, its reading task, and what that brought."""

    def __init__(self, feed: MemoryFeed, hold_back: trio.Event | None) -> None:
        self.session = Session(feed, feed.followed)
        self.quotes: list[Quote] = []
        self.decode_errors = 0
        self.unfollowed = 0
        self.ended_by: FeedError | None = None
        self.ended = anyio.Event()
        self._hold_back = hold_back

    async def run(self) -> None:
        try:
            with self.session.reading() as link:
                while True:
                    received = await link.receive()
                    self.decode_errors += received.errors
                    self.unfollowed += received.unfollowed
                    self.quotes.extend(received.of(QUOTES))
                    if received.of(QUOTES) and self._hold_back is not None:
                        await self._hold_back.wait()
                    self.session.take(received)
        except FeedError as exc:
            self.ended_by = exc
        finally:
            self.ended.set()


@asynccontextmanager
async def reading(feed: MemoryFeed, hold_back: trio.Event | None = None) -> AsyncIterator[Reading]:
    run = Reading(feed, hold_back)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed.serve)
            tasks.start_soon(run.run)
            try:
                yield run
            finally:
                tasks.cancel_scope.cancel()
                feed.close()


def many(count: int) -> list[str]:
    return [f"S{number:04d}" for number in range(count)]


# Reading


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_sends_every_quote_in_order_with_its_reception(
    encoding: Encoding, autojump_clock: MockClock
) -> None:
    feed = MemoryFeed(encoding=encoding)
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        feed.push(quote("AAPL", 1.0), quote("MSFT", 2.0))
        feed.push(quote("AAPL", 3.0))
        await trio.sleep(1)
        feed.push(quote("AAPL", 4.0))
        await trio.sleep(1)
        assert [(q.symbol, q.bid) for q in run.quotes] == [
            ("AAPL", 1.0), ("MSFT", 2.0), ("AAPL", 3.0), ("AAPL", 4.0),
        ]  # fmt: skip
        assert {q.ts_recv_ns for q in run.quotes} == {NOW_NS}


async def test_a_broken_message_is_reported_and_the_reading_goes_on(
    autojump_clock: MockClock,
) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        feed.push(quote("AAPL"), {"T": "q", "S": "BAD"}, quote("MSFT"))
        await trio.sleep(1)
        assert [q.symbol for q in run.quotes] == ["AAPL", "MSFT"]
        assert run.decode_errors == 1
        assert not run.ended.is_set()


async def test_a_slow_taker_holds_the_reading_back(autojump_clock: MockClock) -> None:
    feed = MemoryFeed()
    taken = trio.Event()
    async with reading(feed, hold_back=taken) as run:
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        before = feed.receiving
        feed.push(quote("AAPL"))
        await trio.sleep(1)
        feed.push(quote("MSFT"))
        await trio.sleep(1)
        assert feed.receiving == before, "nothing is read ahead"
        taken.set()
        await trio.sleep(1)
        assert [q.symbol for q in run.quotes] == ["AAPL", "MSFT"]


async def test_the_end_of_the_connection_ends_the_reading(autojump_clock: MockClock) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        feed.push(quote("AAPL"))
        feed.end()
        await run.ended.wait()
        assert isinstance(run.ended_by, FeedUnavailable)
        assert str(run.ended_by) == "the feed closed the connection"
        assert len(run.quotes) == 1


@pytest.mark.parametrize("code", [401, 404, 407, 500])
async def test_an_error_that_asks_for_a_new_connection_ends_this_one(
    code: int, autojump_clock: MockClock
) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        feed.push(error(code, "go away"))
        await run.ended.wait()
        assert isinstance(run.ended_by, FeedUnavailable)
        assert str(code) in str(run.ended_by)
        assert "go away" in str(run.ended_by)


@pytest.mark.parametrize("code", [402, 406, 408, 409, 411, 412])
async def test_a_refusal_for_good_or_for_now_ends_it_with_its_code(
    code: int, autojump_clock: MockClock
) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        feed.push(error(code))
        await run.ended.wait()
        assert isinstance(run.ended_by, FeedRefused)
        assert (run.ended_by.code, run.ended_by.http) == (code, False)


@pytest.mark.parametrize("code", [400, 403, 405, 410, 499])
async def test_a_stray_refusal_of_no_request_is_harmless(
    code: int, autojump_clock: MockClock
) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        feed.push(error(code))
        feed.push(quote("AAPL"))
        await trio.sleep(1)
        assert len(run.quotes) == 1
        assert not run.ended.is_set()


async def test_quotes_read_together_with_the_error_after_them_are_not_lost(
    autojump_clock: MockClock,
) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        feed.push(quote("AAPL"))
        feed.push(error(407, "slow client"))
        await run.ended.wait()
        assert [q.symbol for q in run.quotes] == ["AAPL"]


# Symbols


async def test_quotes_of_a_request_under_way_are_taken(autojump_clock: MockClock) -> None:
    feed = MemoryFeed(unknown=["BAD"])
    async with reading(feed) as run, anyio.create_task_group() as tasks:
        tasks.start_soon(run.session.subscribe, quotes("AAPL"))
        await trio.testing.wait_all_tasks_blocked()
        feed.push(quote("AAPL"), quote("MSFT"))
        await trio.sleep(1)
        assert [q.symbol for q in run.quotes] == ["AAPL"]
        assert run.unfollowed == 1
        assert await run.session.subscribe(quotes("BAD")) is not None
        feed.push(quote("BAD"))
        await trio.sleep(1)
        assert (len(run.quotes), run.unfollowed) == (1, 2)


async def test_quotes_behind_an_unsubscription_are_dropped(autojump_clock: MockClock) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        await run.session.unsubscribe(quotes("MSFT"))
        feed.push(quote("MSFT"), quote("AAPL"), feed.state(), quote("MSFT"))
        feed.push({**feed.state(), "quotes": ["AAPL", "MSFT"]}, quote("MSFT"))
        await trio.sleep(1)
        assert [q.symbol for q in run.quotes] == ["AAPL"]
        assert (run.unfollowed, run.decode_errors) == (3, 0)
        assert not run.ended.is_set()
        await run.session.unsubscribe(quotes("MSFT"))
        await run.session.subscribe(quotes("MSFT"))
        feed.push(quote("MSFT"))
        await trio.sleep(1)
        assert [q.symbol for q in run.quotes] == ["AAPL", "MSFT"]


async def test_another_spelling_is_no_acknowledgement(autojump_clock: MockClock) -> None:
    def in_lower_case(feed: MemoryFeed, request: Request) -> Sequence[Mapping[str, Any]]:
        feed.subscribed |= {symbol.lower() for symbol in request["quotes"]}
        return [feed.state()]

    feed = MemoryFeed(answer=in_lower_case)
    async with reading(feed) as run:
        await run.session.subscribe_what_fits(quotes("AAPL"))
        assert run.session.left_out == {Topic("quotes", "AAPL"): "not acknowledged"}
        feed.push(quote("aapl"), quote("AAPL"))
        await trio.sleep(1)
        assert (run.quotes, run.unfollowed) == ([], 2)


# Subscribing


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_subscribes_and_knows_what_is_acknowledged(
    encoding: Encoding, autojump_clock: MockClock
) -> None:
    feed = MemoryFeed(encoding=encoding)
    async with reading(feed) as run:
        assert await run.session.subscribe(quotes("AAPL", "MSFT")) is None
        assert feed.requests == [{"action": "subscribe", "quotes": ["AAPL", "MSFT"]}]
        assert names(run.session.acknowledged) == {"AAPL", "MSFT"}
        assert run.session.missing(quotes("MSFT", "SPY", "AAPL", "QQQ")) == [*quotes("SPY", "QQQ")]


async def test_asks_only_for_what_is_not_subscribed_yet(autojump_clock: MockClock) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL"))
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        assert [request["quotes"] for request in feed.requests] == [["AAPL"], ["MSFT"]]


@pytest.mark.parametrize("method", ["subscribe", "subscribe_what_fits"])
async def test_many_symbols_go_in_chunks_each_awaited(
    method: str, autojump_clock: MockClock
) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        assert await getattr(run.session, method)(quotes(*many(2 * CHUNK_SIZE + 1))) is None
        assert [len(r["quotes"]) for r in feed.requests] == [CHUNK_SIZE, CHUNK_SIZE, 1]
        assert names(run.session.acknowledged) == set(many(2 * CHUNK_SIZE + 1))
        assert feed.overlapping == 0


async def test_requests_made_at_once_wait_for_each_other(autojump_clock: MockClock) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("OLD"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.session.subscribe, quotes(*many(CHUNK_SIZE + 1)))
            tasks.start_soon(run.session.unsubscribe, quotes("OLD"))
            tasks.start_soon(run.session.subscribe_what_fits, quotes("AAPL"))
            tasks.start_soon(run.session.subscribe, quotes("MSFT"))
        await run.session.free()
        assert feed.overlapping == 0
        assert names(run.session.acknowledged) == {*many(CHUNK_SIZE + 1), "AAPL", "MSFT"}


async def test_a_refusal_leaves_what_was_subscribed_before(autojump_clock: MockClock) -> None:
    feed = MemoryFeed(limit=CHUNK_SIZE + 10)
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL"))
        refused = await run.session.subscribe(quotes("AAPL", *many(CHUNK_SIZE + 50)))
        assert isinstance(refused, RequestRefused)
        assert refused.code == 405
        assert "limit" in refused.reason
        assert names(run.session.acknowledged) == feed.subscribed == {"AAPL"}
        assert await run.session.subscribe(quotes("MSFT")) is None, "and it goes on"


@pytest.mark.parametrize("code", [400, 405, 410, 499])
async def test_any_refusal_of_a_request_is_its_answer(code: int, autojump_clock: MockClock) -> None:
    feed = MemoryFeed(answer=lambda feed, request: [error(code)])
    async with reading(feed) as run:
        refused = await run.session.subscribe(quotes("AAPL"))
        assert refused is not None
        assert refused.code == code
        assert not run.ended.is_set()


async def test_unsubscribes_what_is_subscribed_and_asks_nothing_for_the_rest(
    autojump_clock: MockClock,
) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        await run.session.unsubscribe(quotes("MSFT", "SPY"))
        await run.session.unsubscribe(quotes("SPY"))
        assert feed.requests[1:] == [{"action": "unsubscribe", "quotes": ["MSFT"]}]
        assert names(run.session.acknowledged) == {"AAPL"}


async def test_a_request_that_is_not_understood_names_the_symbols_that_caused_it(
    autojump_clock: MockClock,
) -> None:
    symbols = many(CHUNK_SIZE)
    feed = MemoryFeed(unknown={symbols[17], symbols[150]})
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL"))
        refused = await run.session.subscribe(quotes(*symbols))
        assert refused is not None
        assert refused.code == 400
        assert refused.reason.endswith(f"({symbols[17]}, {symbols[150]})")
        assert names(run.session.acknowledged) == feed.subscribed == {"AAPL"}, "all or nothing"


async def test_of_many_such_symbols_a_few_are_named(autojump_clock: MockClock) -> None:
    symbols = many(CHUNK_SIZE)
    feed = MemoryFeed(unknown=set(symbols))
    async with reading(feed) as run:
        refused = await run.session.subscribe(quotes(*symbols))
        assert refused is not None
        assert refused.reason.endswith(f"({', '.join(symbols[:5])})")
        assert len(feed.requests) < 25


# What fits


@pytest.mark.parametrize("limit", [0, 1, 30, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE + 40])
async def test_subscribes_as_many_as_the_limit_allows_and_names_the_rest(
    limit: int, autojump_clock: MockClock
) -> None:
    wanted = many(2 * CHUNK_SIZE + 50)
    feed = MemoryFeed(limit=limit)
    async with reading(feed) as run:
        assert await run.session.subscribe_what_fits(quotes(*wanted)) is None
        assert names(run.session.acknowledged) == set(wanted[:limit]), "in the order of the wishes"
        assert names(run.session.left_out) == set(wanted[limit:])
        assert all("405" in reason for reason in run.session.left_out.values())
        assert run.session.missing(quotes(*wanted)) == []
        assert len(feed.requests) < 20


@pytest.mark.parametrize(
    "unknown",
    [["S0000"], ["S0249"], ["S0003", "S0004"], ["S0010", "S0150", "S0201"]],
)
async def test_finds_the_symbols_that_are_not_understood(
    unknown: list[str], autojump_clock: MockClock
) -> None:
    wanted = many(250)
    feed = MemoryFeed(unknown=unknown)
    async with reading(feed) as run:
        assert await run.session.subscribe_what_fits(quotes(*wanted)) is None
        assert names(run.session.left_out) == set(unknown)
        assert names(run.session.acknowledged) == set(wanted) - set(unknown)
        sent = [tuple(request["quotes"]) for request in feed.requests]
        assert len(sent) == len(set(sent)), "a refused request is never repeated unchanged"


async def test_a_refusal_of_another_kind_is_handed_to_the_caller(
    autojump_clock: MockClock,
) -> None:
    feed = MemoryFeed(answer=lambda feed, request: [error(410, "invalid subscribe action")])
    async with reading(feed) as run:
        refused = await run.session.subscribe_what_fits(quotes(*many(5)))
        assert refused is not None
        assert refused.code == 410
        assert run.session.left_out == {}


def forgetful(*forgotten: str, times: int) -> Answer:
    """Acknowledges, but leaves symbols out, so many times, without an error."""
    left = times

    def answer(feed: MemoryFeed, request: Request) -> Sequence[Mapping[str, Any]]:
        nonlocal left
        messages = feed.obey(request)
        if left and feed.subscribed.intersection(forgotten):
            left -= 1
            feed.subscribed.difference_update(forgotten)
            messages = [feed.state()]
        return messages

    return answer


@pytest.mark.parametrize("method", ["subscribe", "subscribe_what_fits"])
async def test_what_was_left_out_without_an_error_is_asked_for_again(
    method: str, autojump_clock: MockClock
) -> None:
    feed = MemoryFeed(answer=forgetful("S0001", "S0003", times=1))
    async with reading(feed) as run:
        assert await getattr(run.session, method)(quotes(*many(5))) is None
        assert feed.requests[1]["quotes"] == ["S0001", "S0003"]
        assert names(run.session.acknowledged) == set(many(5))
        assert run.session.left_out == {}


async def test_what_is_never_acknowledged_is_named(autojump_clock: MockClock) -> None:
    feed = MemoryFeed(answer=forgetful("S0001", times=99))
    async with reading(feed) as run:
        assert await run.session.subscribe_what_fits(quotes(*many(5))) is None
        assert names(run.session.left_out) == {"S0001"}
        assert run.session.missing(quotes(*many(5))) == []


async def test_a_request_that_is_never_acknowledged_in_full_is_refused_as_a_whole(
    autojump_clock: MockClock,
) -> None:
    feed = MemoryFeed(answer=forgetful("S0001", times=99))
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL"))
        refused = await run.session.subscribe(quotes(*many(5)))
        assert refused is not None
        assert refused.code == NOT_ACKNOWLEDGED
        assert "S0001" in refused.reason
        assert names(run.session.acknowledged) == feed.subscribed == {"AAPL"}


# When the feed does not answer


async def test_no_answer_in_time_ends_the_connection(autojump_clock: MockClock) -> None:
    feed = MemoryFeed(answer=lambda feed, request: [])
    async with reading(feed) as run:
        started = trio.current_time()
        with pytest.raises(FeedUnavailable, match="did not answer to subscribe within 5 s"):
            await run.session.subscribe(quotes("AAPL"))
        assert trio.current_time() - started == pytest.approx(ACK_TIMEOUT_S)
        await run.ended.wait()
        assert "did not answer" in str(run.ended_by), "the reading ends with the same reason"


async def test_data_meanwhile_is_no_answer(autojump_clock: MockClock) -> None:
    feed = MemoryFeed(answer=lambda feed, request: [quote("AAPL"), error(403)])
    async with reading(feed) as run:
        with pytest.raises(FeedUnavailable, match="did not answer"):
            await run.session.subscribe(quotes("AAPL"))
        assert len(run.quotes) == 1


@pytest.mark.parametrize("last_words", [[], [error(407)], [error(406)]])
async def test_a_request_under_way_ends_with_the_connection(
    last_words: list[dict[str, Any]], autojump_clock: MockClock
) -> None:
    def hang_up(feed: MemoryFeed, request: Request) -> Sequence[Mapping[str, Any]]:
        for message in last_words:
            feed.push(message)
        feed.end()
        return []

    feed = MemoryFeed(answer=hang_up)
    async with reading(feed) as run:
        started = trio.current_time()
        with pytest.raises(FeedUnavailable, match="before the feed had answered"):
            await run.session.subscribe(quotes("AAPL"))
        assert trio.current_time() - started < 1
        await run.ended.wait()


async def test_after_the_end_nothing_is_sent(autojump_clock: MockClock) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        await run.session.subscribe(quotes("AAPL"))
        feed.end()
        await run.ended.wait()
        for request in (run.session.subscribe, run.session.subscribe_what_fits):
            with pytest.raises(FeedUnavailable):
                await request(["MSFT"])
        with pytest.raises(FeedUnavailable):
            await run.session.unsubscribe(quotes("AAPL"))
        assert len(feed.requests) == 1


async def test_a_cancelled_request_makes_way_for_the_next(autojump_clock: MockClock) -> None:
    feed = MemoryFeed()
    async with reading(feed) as run:
        with trio.move_on_after(ANSWER_S / 2) as scope:
            await run.session.subscribe(quotes("AAPL"))
        assert scope.cancelled_caught
        await trio.sleep(1)  # its answer comes when nobody waits for it any more
        assert names(run.session.acknowledged) == {"AAPL"}
        await run.session.free()
        assert await run.session.subscribe(quotes("MSFT")) is None
        assert names(run.session.acknowledged) == {"AAPL", "MSFT"}


# The other event loop


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_works_on_asyncio_too(encoding: Encoding) -> None:
    async def main() -> None:
        feed = MemoryFeed(encoding=encoding, limit=3)
        async with reading(feed) as run:
            assert await run.session.subscribe_what_fits(quotes(*many(5))) is None
            assert len(run.session.left_out) == 2
            refused = await run.session.subscribe(quotes("AAPL"))
            assert refused is not None
            assert refused.code == 405
            await run.session.unsubscribe(quotes(*many(5)))
            assert await run.session.subscribe(quotes("AAPL")) is None
            feed.push(quote("AAPL"))
            feed.end()
            await run.ended.wait()
            assert isinstance(run.ended_by, FeedUnavailable)
            assert len(run.quotes) == 1

    anyio.run(main, backend="asyncio")


async def test_a_channel_that_the_feed_lacks_costs_few_requests(autojump_clock: MockClock) -> None:
    def answer(feed: MemoryFeed, request: Request) -> Sequence[Mapping[str, Any]]:
        if request.get("imbalances"):
            return [error(410, "invalid subscribe action for this feed")]
        for channel in ("quotes", "trades"):
            state[channel] += request.get(channel, [])
        return [{"T": "subscription", **state}]

    state: dict[str, list[str]] = {"quotes": [], "trades": []}
    symbols = many(CHUNK_SIZE)
    wanted = [Topic(c, s) for s in symbols for c in ("quotes", "imbalances", "trades")]
    feed = MemoryFeed(answer=answer)
    async with reading(feed) as run:
        assert await run.session.subscribe_what_fits(wanted) is None
        assert len(feed.requests) < 30
        assert len(run.session.acknowledged) == 2 * len(symbols)
        assert {topic.channel for topic in run.session.left_out} == {"imbalances"}
        assert len(run.session.left_out) == len(symbols)


async def test_the_symbols_are_those_of_the_last_acknowledgement(
    autojump_clock: MockClock,
) -> None:
    async with reading(MemoryFeed()) as run:
        assert run.session.symbols() == run.session.symbols(QUOTES) == ()
        await run.session.subscribe(quotes("AAPL", "MSFT"))
        assert set(run.session.symbols()) == set(run.session.symbols(QUOTES)) == {"AAPL", "MSFT"}
        assert run.session.symbols(TRADES) == ()
        await run.session.unsubscribe(quotes("MSFT"))
        assert run.session.symbols() == run.session.symbols(QUOTES) == ("AAPL",)
