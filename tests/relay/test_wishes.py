"""What all clients together want: counted, asked for once, released late. On virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mdservice.errors import SubscriptionRefused
from mdservice.model.feeds import STOCKS, Feed, Topic
from mdservice.model.kinds import Kind
from mdservice.relay.wishes import RELEASED_AFTER_S, Wishes
from tests.examples import examples

A, B, C = (Topic("quotes", symbol) for symbol in "ABC")
LATER_S = RELEASED_AFTER_S + 0.1


class FakeFeed:
    """The service, which notes what the relay wants of it.

    Attributes:
        wanted: What the feed sends.
        asked: Every request.
        delay_s: How long a request takes.
        refused: The topics that it refuses.
    """

    def __init__(self) -> None:
        self.wanted: set[Topic] = set()
        self.asked: list[tuple[str, set[Topic]]] = []
        self.delay_s = 0.0
        self.refused: set[Topic] = set()

    async def subscribe(self, feed: Feed, topics: Sequence[Topic]) -> None:
        assert feed is STOCKS
        self.asked.append(("subscribe", set(topics)))
        self.wanted |= set(topics)
        await anyio.sleep(self.delay_s)
        if self.refused & set(topics):
            self.wanted -= set(topics)
            raise SubscriptionRefused("too many", code=405, symbols=())

    async def unsubscribe(self, feed: Feed, topics: Sequence[Topic]) -> None:
        assert feed is STOCKS
        self.asked.append(("unsubscribe", set(topics)))
        await anyio.sleep(self.delay_s)
        self.wanted -= set(topics)

    def latest(self, feed: Feed, kind: Kind[Any], symbol: str) -> Sequence[Any]:
        raise AssertionError


@pytest.fixture
def feed() -> FakeFeed:
    return FakeFeed()


@pytest.fixture
def wishes(feed: FakeFeed) -> Wishes:
    return Wishes(STOCKS, feed)


async def subscribe(wishes: Wishes, *topics: Topic) -> None:
    wishes.count(topics)
    try:
        await wishes.ask(topics)
    except SubscriptionRefused:
        wishes.remove(topics)
        raise


async def test_a_topic_is_asked_for_once(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    await subscribe(wishes, A, B)
    await subscribe(wishes, B, C)
    await subscribe(wishes, A)
    assert feed.asked == [("subscribe", {A, B}), ("subscribe", {C})]


async def test_the_topics_of_the_last_client_are_released_after_a_while(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    await subscribe(wishes, A, B)
    await subscribe(wishes, A)
    wishes.remove([A, B])
    await wishes.release()
    assert feed.wanted == {A, B}
    await trio.sleep(LATER_S)
    await wishes.release()
    assert feed.wanted == {A}
    wishes.remove([A])
    await trio.sleep(RELEASED_AFTER_S - 1)
    await wishes.release()
    assert feed.wanted == {A}
    await trio.sleep(2)
    await wishes.release()
    assert feed.wanted == set()
    asked = len(feed.asked)
    await trio.sleep(LATER_S)
    await wishes.release()
    assert len(feed.asked) == asked


async def test_a_client_that_comes_back_keeps_its_topics(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    await subscribe(wishes, A)
    wishes.remove([A])
    await trio.sleep(RELEASED_AFTER_S - 1)
    await subscribe(wishes, A)
    await trio.sleep(LATER_S)
    await wishes.release()
    assert feed.asked == [("subscribe", {A})]


async def test_a_refused_topic_is_asked_for_again_by_the_next_client(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    feed.refused = {A}
    for _ in range(2):
        with pytest.raises(SubscriptionRefused):
            await subscribe(wishes, A, B)
    feed.refused = set()
    await subscribe(wishes, A)
    assert feed.wanted == {A}
    wishes.remove([A])
    await trio.sleep(LATER_S)
    await wishes.release()
    assert feed.wanted == set()


async def test_a_second_client_waits_for_the_answer_to_the_first(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    feed.delay_s = 2.0
    feed.refused = {A}
    refused = []

    async def client() -> None:
        try:
            await subscribe(wishes, A)
        except SubscriptionRefused:
            refused.append(trio.current_time())

    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        nursery.start_soon(client)
    assert [at - start_s for at in refused] == pytest.approx([2.0, 4.0])
    assert feed.wanted == set()


async def test_a_client_that_leaves_while_the_feed_answers_releases_its_topics(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    feed.delay_s = 2.0
    async with trio.open_nursery() as nursery:
        wishes.count([A])
        nursery.start_soon(wishes.ask, [A])
        await trio.sleep(1)
        wishes.remove([A])
    await wishes.release()
    assert feed.wanted == {A}
    await trio.sleep(LATER_S)
    await wishes.release()
    assert feed.wanted == set()


async def test_a_new_client_while_the_feed_unsubscribes_is_subscribed_again(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    await subscribe(wishes, A)
    wishes.remove([A])
    await trio.sleep(LATER_S)
    feed.delay_s = 2.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wishes.release)
        await trio.sleep(1)
        nursery.start_soon(subscribe, wishes, A)
    assert feed.wanted == {A}
    assert [name for name, _ in feed.asked] == ["subscribe", "unsubscribe", "subscribe"]


async def test_topics_of_a_cancelled_release_are_released_by_the_next_one(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    await subscribe(wishes, A, B)
    wishes.remove([A, B])
    await trio.sleep(LATER_S)
    feed.delay_s = 2.0
    with trio.move_on_after(1):
        await wishes.release()
    assert feed.wanted == {A, B}
    await wishes.release()
    assert feed.wanted == set()


async def test_a_topic_of_a_cancelled_release_is_asked_for_again(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    await subscribe(wishes, A)
    wishes.remove([A])
    await trio.sleep(LATER_S)
    feed.delay_s = 2.0
    with trio.move_on_after(1):
        await wishes.release()
    feed.wanted.clear()  # the feed may have got the request
    await subscribe(wishes, A)
    assert feed.wanted == {A}
    await wishes.release()
    assert feed.wanted == {A}


async def test_a_topic_of_a_cancelled_request_is_asked_for_again(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    feed.delay_s = 2.0
    wishes.count([A])
    with trio.move_on_after(1):
        await wishes.ask([A])
    wishes.remove_all()
    feed.wanted.clear()  # the feed may not have got the request
    await subscribe(wishes, A)
    assert feed.wanted == {A}


async def test_the_topics_of_a_cancelled_request_are_released(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    feed.delay_s = 2.0
    wishes.count([A])
    with trio.move_on_after(1):
        await wishes.ask([A])
    wishes.remove_all()
    await wishes.release()
    assert feed.wanted == set()


async def test_a_release_waits_for_a_request_and_does_not_undo_it(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    feed.delay_s = 2.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscribe, wishes, A)
        await trio.sleep(1)
        nursery.start_soon(wishes.release)
    assert feed.asked == [("subscribe", {A})]


async def test_after_a_restart_of_the_relay_everything_is_released(
    feed: FakeFeed, wishes: Wishes, autojump_clock: Any
) -> None:
    await subscribe(wishes, A, B)
    await subscribe(wishes, A)
    wishes.remove_all()
    await trio.sleep(LATER_S)
    await wishes.release()
    assert feed.wanted == set()


@examples(200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "leave", "wait"]),
            st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3, unique=True),
            st.floats(0, 20),
        ),
        max_size=20,
    )
)
def test_the_feed_sends_what_is_wanted_and_nothing_that_was_not_for_long(
    steps: list[tuple[str, list[Topic], float]],
) -> None:
    async def main() -> None:
        feed = FakeFeed()
        wishes = Wishes(STOCKS, feed)
        clients: list[list[Topic]] = []
        last: dict[Topic, float] = {}
        for step, topics, wait_s in steps:
            if step == "come":
                clients.append(topics)
                await subscribe(wishes, *topics)
            elif step == "leave" and clients:
                left = clients.pop(0)
                wishes.remove(left)
                last |= dict.fromkeys(left, trio.current_time())
            else:
                await trio.sleep(wait_s)
            await wishes.release()
            wanted = Counter(topic for each in clients for topic in each)
            now_s = trio.current_time()
            recent = {topic for topic, at in last.items() if now_s - at < RELEASED_AFTER_S}
            assert set(wanted) <= feed.wanted
            assert feed.wanted <= set(wanted) | recent

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
