"""Requests at run time: done, pending, refused, lost in the middle. All on virtual time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mdservice.errors import FeedUnavailable, SubscriptionRefused
from mdservice.feed.requests import Follow, Subscribe, SubscriptionResult
from mdservice.feed.session import ACK_TIMEOUT_S, CHUNK_SIZE
from mdservice.feed.unfulfilled import AGAIN_FIRST_S
from mdservice.simulator.session import SessionRules
from mdservice.testing import FakeDriver


def quote(bid: float, symbol: str = "AAPL") -> dict[str, Any]:
    return {"S": symbol, "bp": bid, "ap": bid + 1}


def following(driver: FakeDriver) -> set[str]:
    (link,) = driver.connections
    return set(link.subscriptions["quotes"])


# ---- done


async def test_subscribes_while_it_runs(autojump_clock: Any, open_desk: Any) -> None:
    async with open_desk("AAPL") as desk:
        await desk.until_phase("streaming")
        result = await desk.subscribe("MSFT", "TSLA")
        assert result == SubscriptionResult("subscribed", ("MSFT", "TSLA"))
        assert following(desk.driver) == {"AAPL", "MSFT", "TSLA"}
        assert desk.driver.connections[0].requests[1:] == [("subscribe", ["MSFT", "TSLA"])]
        assert desk.connection.sources() == {
            "AAPL": ["settings"],
            "MSFT": ["api"],
            "TSLA": ["api"],
        }
        desk.driver.send_quotes([quote(5, "TSLA")])
        await desk.until(lambda: desk.bids == [5])
        assert desk.story == ["connected", [5]]


async def test_what_is_subscribed_already_is_not_asked_for_again(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk("AAPL") as desk:
        await desk.until_phase("streaming")
        assert (await desk.subscribe("AAPL")).status == "subscribed"
        assert len(desk.driver.connections[0].requests) == 1
        assert desk.connection.sources() == {"AAPL": ["api", "settings"]}


async def test_large_request_goes_in_chunks_one_at_a_time(
    autojump_clock: Any, open_desk: Any
) -> None:
    symbols = [f"S{n}" for n in range(2 * CHUNK_SIZE + 1)]
    async with open_desk() as desk:
        await desk.until_phase("streaming")
        assert (await desk.subscribe(*symbols)).status == "subscribed"
        (link,) = desk.driver.connections
        assert [len(names) for _, names in link.requests] == [CHUNK_SIZE, CHUNK_SIZE, 1]
        assert desk.now.acknowledged == len(symbols)


async def test_requests_at_once_are_served_one_after_the_other(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk() as desk:
        await desk.until_phase("streaming")
        results: list[str] = []

        async def ask(symbol: str) -> None:
            results.append((await desk.subscribe(symbol)).status)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask, f"S{number}")
        assert results == ["subscribed"] * 20
        assert following(desk.driver) == {f"S{number}" for number in range(20)}


async def test_star_is_every_symbol(autojump_clock: Any, open_desk: Any) -> None:
    async with open_desk("*") as desk:
        await desk.until_phase("streaming")
        desk.driver.send_quotes([quote(1, "ANY"), quote(2, "OTHER")])
        await desk.until(lambda: desk.bids == [1, 2])


async def test_unsubscribes_only_what_no_source_wants_any_more(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk("AAPL", "MSFT") as desk:
        await desk.until_phase("streaming")
        await desk.subscribe("MSFT", "TSLA")
        result = await desk.unsubscribe("MSFT", "TSLA", "NVDA")
        assert result == SubscriptionResult("unsubscribed", ("MSFT", "TSLA", "NVDA"))
        assert following(desk.driver) == {"AAPL", "MSFT"}
        assert desk.driver.connections[0].requests[-1] == ("unsubscribe", ["TSLA"])
        assert desk.connection.sources() == {"AAPL": ["settings"], "MSFT": ["settings"]}


async def test_room_goes_to_symbols_that_were_left_out(autojump_clock: Any, open_desk: Any) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=2))
    async with open_desk("AAPL", "MSFT", "TSLA", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        assert set(desk.now.left_out) == {"TSLA"}
        await desk.unsubscribe("AAPL", source="settings")
        with anyio.fail_after(1):
            await driver.subscribed("MSFT", "TSLA")
            await anyio.wait_all_tasks_blocked()
        assert desk.now.left_out == {}


@pytest.mark.parametrize(
    ("rules", "left_out"),
    [
        (SessionRules(symbol_limit=2), "TSLA"),
        (SessionRules(invalid_symbols={"TSLA"}), "TSLA"),
        (SessionRules(ignored_symbols={"TSLA"}), "TSLA"),
        (SessionRules(ignored_symbols={"AAPL"}), "AAPL"),
    ],
    ids=["limit", "invalid", "not acknowledged", "first"],
)
async def test_what_is_unsubscribed_is_left_out_no_longer(
    autojump_clock: Any, open_desk: Any, rules: SessionRules, left_out: str
) -> None:
    driver = FakeDriver(rules=rules)
    async with open_desk("AAPL", "MSFT", "TSLA", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        assert set(desk.now.left_out) == {left_out}
        others = {"AAPL", "MSFT", "TSLA"} - {left_out}
        await desk.unsubscribe(left_out, source="settings")
        assert desk.now.left_out == {}
        assert following(driver) == others
        (link,) = driver.connections
        asked = len(link.requests)
        await anyio.sleep(3 * AGAIN_FIRST_S)
        assert desk.now.left_out == {}
        assert len(link.requests) == asked, "it is asked for no longer"


async def test_one_of_two_who_want_a_left_out_symbol_does_not_take_it_off_the_list(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=1))
    async with open_desk("AAPL", "MSFT", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        with pytest.raises(SubscriptionRefused):
            await desk.subscribe("MSFT")
        await desk.unsubscribe("MSFT")
        assert set(desk.now.left_out) == {"MSFT"}
        await desk.unsubscribe("MSFT", source="settings")
        assert desk.now.left_out == {}


async def test_what_is_left_out_is_asked_for_again_now_and_then(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver()
    driver.refuse_next(405, when="subscribe", times=2)  # both of them, then the first alone
    async with open_desk("AAPL", "MSFT", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        assert set(desk.now.left_out) == {"AAPL", "MSFT"}
        (link,) = driver.connections
        asked = len(link.requests)
        await anyio.sleep(AGAIN_FIRST_S + 1)
        assert len(link.requests) == asked + 1
        assert desk.now.left_out == {}
        assert following(driver) == {"AAPL", "MSFT"}
        await anyio.sleep(2_000)
        assert len(link.requests) == asked + 1, "nothing is left to ask for"


async def test_each_look_for_what_is_left_out_waits_twice_as_long(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=1))
    async with open_desk("AAPL", "MSFT", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        (link,) = driver.connections
        asked = len(link.requests)
        looks = []
        for wait_s in (AGAIN_FIRST_S, 2 * AGAIN_FIRST_S, 4 * AGAIN_FIRST_S):
            await anyio.sleep(wait_s - 1)
            looks.append(len(link.requests) - asked)
            await anyio.sleep(1)
        assert looks == [0, 1, 2]
        assert set(desk.now.left_out) == {"MSFT"}


async def test_what_is_pending_because_the_feed_is_busy_is_done_once_it_is_not(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk("AAPL", "MSFT") as desk:
        await desk.until_phase("streaming")
        busy = desk.connection._session._one_request
        async with anyio.create_task_group() as tasks:
            outcomes = []

            async def ask(request: Any, symbol: str, **more: Any) -> None:
                outcomes.append((await request(symbol, **more)).status)

            async with busy:
                tasks.start_soon(ask, desk.subscribe, "TSLA")
                await anyio.sleep(4.5)
            async with busy:
                tasks.start_soon(lambda: ask(desk.unsubscribe, "MSFT", source="settings"))
                await anyio.sleep(4.5)
        assert outcomes == ["pending", "pending"]
        await anyio.sleep(1)
        assert following(desk.driver) == {"AAPL", "TSLA"}


# ---- refused


async def test_request_beyond_the_limit_is_refused_and_changes_nothing(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=3))
    async with open_desk("AAPL", "MSFT", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        with pytest.raises(SubscriptionRefused) as caught:
            await desk.subscribe("TSLA", "NVDA")
        assert (caught.value.code, caught.value.symbols) == (405, ("TSLA", "NVDA"))
        assert "unsubscribe others" in str(caught.value)
        assert following(driver) == {"AAPL", "MSFT"}
        assert set(desk.connection.sources()) == {"AAPL", "MSFT"}
        assert desk.now.connected
        assert desk.now.subscribed
        assert desk.story == ["connected"]
        assert (await desk.subscribe("TSLA")).status == "subscribed", "it goes on"


async def test_request_that_is_refused_in_its_middle_is_taken_back(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=CHUNK_SIZE + 50))
    async with open_desk("AAPL", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        with pytest.raises(SubscriptionRefused):
            await desk.subscribe(*(f"S{n}" for n in range(CHUNK_SIZE + 100)))
        assert following(driver) == {"AAPL"}
        assert desk.connection.sources() == {"AAPL": ["settings"]}


async def test_symbol_that_is_not_understood_refuses_the_request(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(invalid_symbols={"BAD"}))
    async with open_desk("AAPL", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        with pytest.raises(SubscriptionRefused) as caught:
            await desk.subscribe("MSFT", "BAD")
        assert caught.value.code == 400
        assert "(BAD)" in str(caught.value)
        assert following(driver) == {"AAPL"}


async def test_refusal_does_not_take_a_symbol_from_those_who_wanted_it_before(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=1))
    async with open_desk("AAPL", drivers=[driver]) as desk:
        await desk.until_phase("streaming")
        with pytest.raises(SubscriptionRefused):
            await desk.subscribe("AAPL", "MSFT")
        assert desk.connection.sources() == {"AAPL": ["settings"]}
        assert following(driver) == {"AAPL"}


# ---- pending


async def test_while_disconnected_it_is_pending_and_done_on_reconnect(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver()
    driver.fail(4)
    async with open_desk("AAPL", "MSFT", drivers=[driver]) as desk:
        await desk.until_phase("waiting")
        started_s = anyio.current_time()
        assert (await desk.subscribe("TSLA")).status == "pending"
        assert (await desk.unsubscribe("MSFT", source="settings")).status == "pending"
        assert (await desk.unsubscribe("NOPE")).status == "unsubscribed"
        assert anyio.current_time() == started_s, "nobody waits for the feed"
        link = await driver.opened()
        await driver.subscribed("AAPL", "TSLA")
        assert link.requests == [("subscribe", ["AAPL", "TSLA"])]


async def test_request_during_the_first_subscription_waits_for_it(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk("AAPL") as desk:
        link = await desk.driver.opened()  # logged in, not yet subscribed
        assert (await desk.subscribe("MSFT")).status == "subscribed"
        await desk.until_phase("streaming")
        assert sorted(name for _, names in link.requests for name in names) == ["AAPL", "MSFT"]
        assert following(desk.driver) == {"AAPL", "MSFT"}


async def test_request_behind_a_stuck_one_is_pending_in_time(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver()
    driver.stall("subscribe")
    async with open_desk("AAPL", drivers=[driver]) as desk:
        await driver.opened()
        started_s = anyio.current_time()
        assert (await desk.subscribe("MSFT")).status == "pending"
        assert anyio.current_time() - started_s <= ACK_TIMEOUT_S
        await driver.subscribed("AAPL", "MSFT")


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe"])
async def test_request_whose_connection_is_lost_is_pending_and_done_on_the_next(
    autojump_clock: Any, open_desk: Any, action: Any
) -> None:
    async with open_desk("AAPL", "MSFT") as desk:
        await desk.until_phase("streaming")
        desk.driver.stall(action)
        results: list[str] = []

        async def ask() -> None:
            if action == "subscribe":
                results.append((await desk.subscribe("TSLA")).status)
            else:
                results.append((await desk.unsubscribe("MSFT", source="settings")).status)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            (link,) = desk.driver.connections
            await desk.driver.until(lambda _: len(link.requests) == 2)
            desk.driver.drop()
        assert results == ["pending"]
        await desk.driver.opened(2)
        expected = {"AAPL", "MSFT", "TSLA"} if action == "subscribe" else {"AAPL"}
        await desk.until_phase("streaming")
        assert following(desk.driver) == expected
        assert desk.story == ["connected", "disconnected", "connected"]


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe"])
async def test_request_without_an_answer_makes_it_reconnect(
    autojump_clock: Any, open_desk: Any, action: Any
) -> None:
    async with open_desk("AAPL", "MSFT") as desk:
        await desk.until_phase("streaming")
        desk.driver.stall(action)
        started_s = anyio.current_time()
        if action == "subscribe":
            result = await desk.subscribe("TSLA")
        else:
            result = await desk.unsubscribe("MSFT", source="settings")
        assert result.status == "pending"
        assert anyio.current_time() - started_s == pytest.approx(ACK_TIMEOUT_S)
        await desk.driver.opened(2)
        await desk.until_phase("streaming")
        expected = {"AAPL", "MSFT", "TSLA"} if action == "subscribe" else {"AAPL"}
        assert following(desk.driver) == expected
        assert f"did not answer to {action}" in desk.statuses[1].details["reason"]


async def test_quotes_flow_while_a_request_waits(autojump_clock: Any, open_desk: Any) -> None:
    async with open_desk("AAPL") as desk:
        await desk.until_phase("streaming")
        desk.driver.stall("subscribe")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desk.subscribe, "MSFT")
            await anyio.sleep(1)
            desk.driver.send_quotes([quote(1)])
            await anyio.sleep(1)
            assert desk.bids == [1]


async def test_requester_that_gives_up_harms_no_other(autojump_clock: Any, open_desk: Any) -> None:
    async with open_desk("AAPL") as desk:
        await desk.until_phase("streaming")
        with anyio.move_on_after(0):
            await desk.subscribe("MSFT")
        assert (await desk.subscribe("TSLA")).status == "subscribed"
        assert "TSLA" in following(desk.driver)


async def test_stop_and_restart_answer_every_request(autojump_clock: Any, open_desk: Any) -> None:
    for end in ("stop", "cancel"):
        async with open_desk("AAPL") as desk:
            await desk.until_phase("streaming")
            desk.driver.stall("subscribe")
            commands = [Subscribe((f"S{n}",), "api") for n in range(5)]
            for command in commands:
                await desk.commands.outbox.send(command)
            await anyio.wait_all_tasks_blocked()
            await (desk.stop() if end == "stop" else desk.cancel())
            with anyio.fail_after(1):
                answers = [await command.answer.wait() for command in commands]
            assert [answer.status for answer in answers] == ["pending"] * 5
            if end == "cancel":
                await desk.start()
                await desk.driver.subscribed("AAPL", *(f"S{n}" for n in range(5)))


async def test_waiting_requests_do_not_look_like_a_stall(
    autojump_clock: Any, open_desk: Any
) -> None:
    """Each chunk may take a while: what waits for the feed rests, it does not hang."""
    async with open_desk("AAPL") as desk:
        await desk.until_phase("streaming")
        for _ in range(30):
            await anyio.sleep(1)
            assert desk.connection.heartbeat.age_s() <= 1
        driver = desk.driver
        slow = driver.connections[0]
        answer_at_once = slow.feed

        def answer_late(*frames: Any) -> None:
            desk._tasks.start_soon(_later, answer_at_once, frames)

        slow.feed = answer_late
        oldest_s = 0.0
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal oldest_s
                while True:
                    oldest_s = max(oldest_s, desk.connection.heartbeat.age_s())
                    await anyio.sleep(0.1)

            tasks.start_soon(watch)
            result = await desk.subscribe(*(f"S{n}" for n in range(6 * CHUNK_SIZE)))
            tasks.cancel_scope.cancel()
        assert result.status == "subscribed"
        assert oldest_s <= 15


async def _later(feed: Any, frames: Any) -> None:
    await anyio.sleep(4)
    feed(*frames)


# ---- following: positions


def limited(most: int) -> FakeDriver:
    return FakeDriver(rules=SessionRules(symbol_limit=most))


async def test_follows_exactly_what_a_source_says(autojump_clock: Any, open_desk: Any) -> None:
    async with open_desk("AAPL") as desk:
        await desk.until_phase("streaming")
        result = await desk.ask(Follow(("MSFT", "TSLA"), "positions"))
        assert result == SubscriptionResult("subscribed", ("MSFT", "TSLA"))
        assert following(desk.driver) == {"AAPL", "MSFT", "TSLA"}
        await desk.ask(Follow(("AAPL", "NVDA"), "positions"))
        assert following(desk.driver) == {"AAPL", "NVDA"}
        assert desk.connection.sources() == {
            "AAPL": ["positions", "settings"],
            "NVDA": ["positions"],
        }
        await desk.ask(Follow((), "positions"))
        assert following(desk.driver) == {"AAPL"}, "what the settings want stays"


async def test_following_while_the_feed_is_away_is_done_when_it_is_back(
    autojump_clock: Any, open_desk: Any
) -> None:
    driver = FakeDriver()
    driver.script.extend([FeedUnavailable("no"), FeedUnavailable("no")])
    async with open_desk(drivers=[driver]) as desk:
        await desk.until_phase("waiting")
        result = await desk.ask(Follow(("MSFT", "TSLA"), "positions"))
        assert result.status == "pending"
        await desk.until_phase("streaming")
        assert following(driver) == {"MSFT", "TSLA"}


async def test_at_the_limit_the_most_important_are_followed(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk("SPY", drivers=[limited(3)]) as desk:
        await desk.until_phase("streaming")
        result = await desk.ask(Follow(("D", "C", "B", "A"), "positions"))
        assert result.status == "subscribed"
        assert following(desk.driver) == {"SPY", "D", "C"}
        assert set(desk.now.left_out) == {"A", "B"}


async def test_the_least_important_gives_way_to_a_more_important_one(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk("SPY", drivers=[limited(3)]) as desk:
        await desk.until_phase("streaming")
        await desk.ask(Follow(("D", "C"), "positions"))
        await desk.ask(Follow(("E", "D", "C"), "positions"))
        with anyio.fail_after(1):
            await desk.driver.subscribed("SPY", "D", "E")
            await anyio.wait_all_tasks_blocked()
        assert set(desk.now.left_out) == {"C"}
        await desk.ask(Follow(("D", "C"), "positions"))  # E was closed
        with anyio.fail_after(1):
            await desk.driver.subscribed("SPY", "D", "C")
            await anyio.wait_all_tasks_blocked()
        assert desk.now.left_out == {}


async def test_nothing_gives_way_that_somebody_else_asked_for(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk("SPY", drivers=[limited(2)]) as desk:
        await desk.until_phase("streaming")
        await desk.subscribe("QQQ")
        await desk.ask(Follow(("E", "D"), "positions"))
        (link,) = desk.driver.connections
        await anyio.sleep(1)
        asked = len(link.requests)
        assert following(desk.driver) == {"SPY", "QQQ"}
        await anyio.sleep(AGAIN_FIRST_S - 2)
        assert len(link.requests) == asked, "it does not try over and over"


async def test_a_symbol_that_the_feed_does_not_know_displaces_nothing(
    autojump_clock: Any, open_desk: Any
) -> None:
    rules = SessionRules(symbol_limit=2, invalid_symbols=frozenset(("BAD",)))
    async with open_desk(drivers=[FakeDriver(rules=rules)]) as desk:
        await desk.until_phase("streaming")
        await desk.ask(Follow(("BAD", "D", "C"), "positions"))
        await anyio.sleep(5)
        assert following(desk.driver) == {"D", "C"}
        assert set(desk.now.left_out) == {"BAD"}


async def test_one_that_was_over_the_limit_first_and_is_not_understood_displaces_nothing(
    autojump_clock: Any, open_desk: Any
) -> None:
    rules = SessionRules(symbol_limit=3, invalid_symbols=frozenset(("BAD",)))
    async with open_desk(drivers=[FakeDriver(rules=rules)]) as desk:
        await desk.until_phase("streaming")
        await desk.ask(Follow(("A", "B", "C", "D", "BAD"), "positions"))
        await anyio.sleep(1)
        for order in (("BAD", "A", "B", "C", "D"), ("BAD", "B", "A", "C", "D")) * 3:
            await desk.ask(Follow(order, "positions"))
            await anyio.sleep(1)
        (link,) = desk.driver.connections
        asked = len(link.requests)
        for order in (("BAD", "A", "B", "C", "D"), ("BAD", "B", "A", "C", "D")) * 3:
            await desk.ask(Follow(order, "positions"))
            await anyio.sleep(1)
        assert not [names for action, names in link.requests[asked:] if action == "unsubscribe"]
        assert following(desk.driver) == {"A", "B", "C"}
        assert set(desk.now.left_out) == {"BAD", "D"}


async def test_the_larger_position_follows_at_once_when_the_api_lets_a_symbol_go(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk(drivers=[limited(2)]) as desk:
        await desk.until_phase("streaming")
        await desk.subscribe("SMALL")
        await desk.ask(Follow(("LARGE", "MID", "SMALL"), "positions"))
        assert following(desk.driver) == {"SMALL", "LARGE"}
        await desk.unsubscribe("SMALL")
        with anyio.fail_after(1):
            await desk.driver.subscribed("LARGE", "MID")


async def test_after_a_reconnect_the_settings_come_first_then_the_most_important(
    autojump_clock: Any, open_desk: Any
) -> None:
    async with open_desk(drivers=[limited(3)]) as desk:
        await desk.until_phase("streaming")
        await desk.ask(Follow(("D", "C", "B"), "positions"))
        await desk.ask(Follow(("B", "C", "D"), "positions"))
        await desk.unsubscribe("C", source="positions")
        await desk.subscribe("SPY")
        await desk.ask(Follow(("B", "C", "D"), "positions"))
        desk.driver.drop("reset")
        with anyio.fail_after(60):
            await desk.driver.subscribed("SPY", "B", "C")
        await anyio.sleep(1)
        assert set(desk.now.left_out) == {"D"}
