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
from tests.topics import quotes


def quote(bid: float, symbol: str = "AAPL") -> dict[str, Any]:
    return {"S": symbol, "bp": bid, "ap": bid + 1}


def following(driver: FakeDriver) -> set[str]:
    (link,) = driver.connections
    return set(link.subscriptions["quotes"])


# ---- done


async def test_subscribes_while_it_runs(autojump_clock: Any, open_bench: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.until_phase("streaming")
        result = await bench.subscribe("MSFT", "TSLA")
        assert result == SubscriptionResult("subscribed", quotes("MSFT", "TSLA"))
        assert following(bench.driver) == {"AAPL", "MSFT", "TSLA"}
        assert bench.driver.connections[0].requests[1:] == [("subscribe", ["MSFT", "TSLA"])]
        assert bench.connection.sources() == {
            "AAPL": ["settings"],
            "MSFT": ["api"],
            "TSLA": ["api"],
        }
        bench.driver.send_quotes([quote(5, "TSLA")])
        await bench.until(lambda: bench.bids == [5])
        assert bench.story == ["connected", [5]]


async def test_what_is_subscribed_already_is_not_asked_for_again(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.until_phase("streaming")
        assert (await bench.subscribe("AAPL")).status == "subscribed"
        assert len(bench.driver.connections[0].requests) == 1
        assert bench.connection.sources() == {"AAPL": ["api", "settings"]}


async def test_large_request_goes_in_chunks_one_at_a_time(
    autojump_clock: Any, open_bench: Any
) -> None:
    symbols = [f"S{n}" for n in range(2 * CHUNK_SIZE + 1)]
    async with open_bench() as bench:
        await bench.until_phase("streaming")
        assert (await bench.subscribe(*symbols)).status == "subscribed"
        (link,) = bench.driver.connections
        assert [len(names) for _, names in link.requests] == [CHUNK_SIZE, CHUNK_SIZE, 1]
        assert bench.now.acknowledged == len(symbols)


async def test_requests_at_once_are_served_one_after_the_other(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench() as bench:
        await bench.until_phase("streaming")
        results: list[str] = []

        async def ask(symbol: str) -> None:
            results.append((await bench.subscribe(symbol)).status)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask, f"S{number}")
        assert results == ["subscribed"] * 20
        assert following(bench.driver) == {f"S{number}" for number in range(20)}


async def test_star_is_every_symbol(autojump_clock: Any, open_bench: Any) -> None:
    async with open_bench("*") as bench:
        await bench.until_phase("streaming")
        bench.driver.send_quotes([quote(1, "ANY"), quote(2, "OTHER")])
        await bench.until(lambda: bench.bids == [1, 2])


async def test_unsubscribes_only_what_no_source_wants_any_more(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        await bench.until_phase("streaming")
        await bench.subscribe("MSFT", "TSLA")
        result = await bench.unsubscribe("MSFT", "TSLA", "NVDA")
        assert result == SubscriptionResult("unsubscribed", quotes("MSFT", "TSLA", "NVDA"))
        assert following(bench.driver) == {"AAPL", "MSFT"}
        assert bench.driver.connections[0].requests[-1] == ("unsubscribe", ["TSLA"])
        assert bench.connection.sources() == {"AAPL": ["settings"], "MSFT": ["settings"]}


async def test_room_goes_to_symbols_that_were_left_out(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=2))
    async with open_bench("AAPL", "MSFT", "TSLA", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        assert set(bench.now.left_out) == {"TSLA"}
        await bench.unsubscribe("AAPL", source="settings")
        with anyio.fail_after(1):
            await driver.subscribed("MSFT", "TSLA")
            await anyio.wait_all_tasks_blocked()
        assert bench.now.left_out == {}


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
    autojump_clock: Any, open_bench: Any, rules: SessionRules, left_out: str
) -> None:
    driver = FakeDriver(rules=rules)
    async with open_bench("AAPL", "MSFT", "TSLA", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        assert set(bench.now.left_out) == {left_out}
        others = {"AAPL", "MSFT", "TSLA"} - {left_out}
        await bench.unsubscribe(left_out, source="settings")
        assert bench.now.left_out == {}
        assert following(driver) == others
        (link,) = driver.connections
        asked = len(link.requests)
        await anyio.sleep(3 * AGAIN_FIRST_S)
        assert bench.now.left_out == {}
        assert len(link.requests) == asked, "it is asked for no longer"


async def test_one_of_two_who_want_a_left_out_symbol_does_not_take_it_off_the_list(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=1))
    async with open_bench("AAPL", "MSFT", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        with pytest.raises(SubscriptionRefused):
            await bench.subscribe("MSFT")
        await bench.unsubscribe("MSFT")
        assert set(bench.now.left_out) == {"MSFT"}
        await bench.unsubscribe("MSFT", source="settings")
        assert bench.now.left_out == {}


async def test_what_is_left_out_is_asked_for_again_now_and_then(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.refuse_next(405, when="subscribe", times=2)  # both of them, then the first alone
    async with open_bench("AAPL", "MSFT", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        assert set(bench.now.left_out) == {"AAPL", "MSFT"}
        (link,) = driver.connections
        asked = len(link.requests)
        await anyio.sleep(AGAIN_FIRST_S + 1)
        assert len(link.requests) == asked + 1
        assert bench.now.left_out == {}
        assert following(driver) == {"AAPL", "MSFT"}
        await anyio.sleep(2_000)
        assert len(link.requests) == asked + 1, "nothing is left to ask for"


async def test_each_look_for_what_is_left_out_waits_twice_as_long(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=1))
    async with open_bench("AAPL", "MSFT", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        (link,) = driver.connections
        asked = len(link.requests)
        looks = []
        for wait_s in (AGAIN_FIRST_S, 2 * AGAIN_FIRST_S, 4 * AGAIN_FIRST_S):
            await anyio.sleep(wait_s - 1)
            looks.append(len(link.requests) - asked)
            await anyio.sleep(1)
        assert looks == [0, 1, 2]
        assert set(bench.now.left_out) == {"MSFT"}


async def test_what_is_pending_because_the_feed_is_busy_is_done_once_it_is_not(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        await bench.until_phase("streaming")
        busy = bench.connection._session._one_request
        async with anyio.create_task_group() as tasks:
            outcomes = []

            async def ask(request: Any, symbol: str, **more: Any) -> None:
                outcomes.append((await request(symbol, **more)).status)

            async with busy:
                tasks.start_soon(ask, bench.subscribe, "TSLA")
                await anyio.sleep(4.5)
            async with busy:
                tasks.start_soon(lambda: ask(bench.unsubscribe, "MSFT", source="settings"))
                await anyio.sleep(4.5)
        assert outcomes == ["pending", "pending"]
        await anyio.sleep(1)
        assert following(bench.driver) == {"AAPL", "TSLA"}


# ---- refused


async def test_request_beyond_the_limit_is_refused_and_changes_nothing(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=3))
    async with open_bench("AAPL", "MSFT", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        with pytest.raises(SubscriptionRefused) as caught:
            await bench.subscribe("TSLA", "NVDA")
        assert (caught.value.code, caught.value.symbols) == (405, ("TSLA", "NVDA"))
        assert "unsubscribe others" in str(caught.value)
        assert following(driver) == {"AAPL", "MSFT"}
        assert set(bench.connection.sources()) == {"AAPL", "MSFT"}
        assert bench.now.connected
        assert bench.now.subscribed
        assert bench.story == ["connected"]
        assert (await bench.subscribe("TSLA")).status == "subscribed", "it goes on"


async def test_request_that_is_refused_in_its_middle_is_taken_back(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=CHUNK_SIZE + 50))
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        with pytest.raises(SubscriptionRefused):
            await bench.subscribe(*(f"S{n}" for n in range(CHUNK_SIZE + 100)))
        assert following(driver) == {"AAPL"}
        assert bench.connection.sources() == {"AAPL": ["settings"]}


async def test_symbol_that_is_not_understood_refuses_the_request(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(invalid_symbols={"BAD"}))
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        with pytest.raises(SubscriptionRefused) as caught:
            await bench.subscribe("MSFT", "BAD")
        assert caught.value.code == 400
        assert "(BAD)" in str(caught.value)
        assert following(driver) == {"AAPL"}


async def test_refusal_does_not_take_a_symbol_from_those_who_wanted_it_before(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(symbol_limit=1))
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        with pytest.raises(SubscriptionRefused):
            await bench.subscribe("AAPL", "MSFT")
        assert bench.connection.sources() == {"AAPL": ["settings"]}
        assert following(driver) == {"AAPL"}


# ---- pending


async def test_while_disconnected_it_is_pending_and_done_on_reconnect(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.fail(4)
    async with open_bench("AAPL", "MSFT", drivers=[driver]) as bench:
        await bench.until_phase("waiting")
        started_s = anyio.current_time()
        assert (await bench.subscribe("TSLA")).status == "pending"
        assert (await bench.unsubscribe("MSFT", source="settings")).status == "pending"
        assert (await bench.unsubscribe("NOPE")).status == "unsubscribed"
        assert anyio.current_time() == started_s, "nobody waits for the feed"
        link = await driver.opened()
        await driver.subscribed("AAPL", "TSLA")
        assert link.requests == [("subscribe", ["AAPL", "TSLA"])]


async def test_request_during_the_first_subscription_waits_for_it(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        link = await bench.driver.opened()  # logged in, not yet subscribed
        assert (await bench.subscribe("MSFT")).status == "subscribed"
        await bench.until_phase("streaming")
        assert sorted(name for _, names in link.requests for name in names) == ["AAPL", "MSFT"]
        assert following(bench.driver) == {"AAPL", "MSFT"}


async def test_request_behind_a_stuck_one_is_pending_in_time(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.stall("subscribe")
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await driver.opened()
        started_s = anyio.current_time()
        assert (await bench.subscribe("MSFT")).status == "pending"
        assert anyio.current_time() - started_s <= ACK_TIMEOUT_S
        await driver.subscribed("AAPL", "MSFT")


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe"])
async def test_request_whose_connection_is_lost_is_pending_and_done_on_the_next(
    autojump_clock: Any, open_bench: Any, action: Any
) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        await bench.until_phase("streaming")
        bench.driver.stall(action)
        results: list[str] = []

        async def ask() -> None:
            if action == "subscribe":
                results.append((await bench.subscribe("TSLA")).status)
            else:
                results.append((await bench.unsubscribe("MSFT", source="settings")).status)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            (link,) = bench.driver.connections
            await bench.driver.until(lambda _: len(link.requests) == 2)
            bench.driver.drop()
        assert results == ["pending"]
        await bench.driver.opened(2)
        expected = {"AAPL", "MSFT", "TSLA"} if action == "subscribe" else {"AAPL"}
        await bench.until_phase("streaming")
        assert following(bench.driver) == expected
        assert bench.story == ["connected", "disconnected", "connected"]


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe"])
async def test_request_without_an_answer_makes_it_reconnect(
    autojump_clock: Any, open_bench: Any, action: Any
) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        await bench.until_phase("streaming")
        bench.driver.stall(action)
        started_s = anyio.current_time()
        if action == "subscribe":
            result = await bench.subscribe("TSLA")
        else:
            result = await bench.unsubscribe("MSFT", source="settings")
        assert result.status == "pending"
        assert anyio.current_time() - started_s == pytest.approx(ACK_TIMEOUT_S)
        await bench.driver.opened(2)
        await bench.until_phase("streaming")
        expected = {"AAPL", "MSFT", "TSLA"} if action == "subscribe" else {"AAPL"}
        assert following(bench.driver) == expected
        assert f"did not answer to {action}" in bench.statuses[1].details["reason"]


async def test_quotes_flow_while_a_request_waits(autojump_clock: Any, open_bench: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.until_phase("streaming")
        bench.driver.stall("subscribe")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.subscribe, "MSFT")
            await anyio.sleep(1)
            bench.driver.send_quotes([quote(1)])
            await anyio.sleep(1)
            assert bench.bids == [1]


async def test_requester_that_gives_up_harms_no_other(autojump_clock: Any, open_bench: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.until_phase("streaming")
        with anyio.move_on_after(0):
            await bench.subscribe("MSFT")
        assert (await bench.subscribe("TSLA")).status == "subscribed"
        assert "TSLA" in following(bench.driver)


async def test_stop_and_restart_answer_every_request(autojump_clock: Any, open_bench: Any) -> None:
    for end in ("stop", "cancel"):
        async with open_bench("AAPL") as bench:
            await bench.until_phase("streaming")
            bench.driver.stall("subscribe")
            commands = [Subscribe(quotes(f"S{n}"), "api") for n in range(5)]
            for command in commands:
                await bench.commands.outbox.send(command)
            await anyio.wait_all_tasks_blocked()
            await (bench.stop() if end == "stop" else bench.cancel())
            with anyio.fail_after(1):
                answers = [await command.answer.wait() for command in commands]
            assert [answer.status for answer in answers] == ["pending"] * 5
            if end == "cancel":
                await bench.start()
                await bench.driver.subscribed("AAPL", *(f"S{n}" for n in range(5)))


async def test_waiting_requests_do_not_look_like_a_stall(
    autojump_clock: Any, open_bench: Any
) -> None:
    """Each chunk may take a while: what waits for the feed rests, it does not hang."""
    async with open_bench("AAPL") as bench:
        await bench.until_phase("streaming")
        for _ in range(30):
            await anyio.sleep(1)
            assert bench.connection.heartbeat.age_s() <= 1
        driver = bench.driver
        slow = driver.connections[0]
        answer_at_once = slow.feed

        def answer_late(*frames: Any) -> None:
            bench._tasks.start_soon(_later, answer_at_once, frames)

        slow.feed = answer_late
        oldest_s = 0.0
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal oldest_s
                while True:
                    oldest_s = max(oldest_s, bench.connection.heartbeat.age_s())
                    await anyio.sleep(0.1)

            tasks.start_soon(watch)
            result = await bench.subscribe(*(f"S{n}" for n in range(6 * CHUNK_SIZE)))
            tasks.cancel_scope.cancel()
        assert result.status == "subscribed"
        assert oldest_s <= 15


async def _later(feed: Any, frames: Any) -> None:
    await anyio.sleep(4)
    feed(*frames)


# ---- following: positions


def limited(most: int) -> FakeDriver:
    return FakeDriver(rules=SessionRules(symbol_limit=most))


async def test_follows_exactly_what_a_source_says(autojump_clock: Any, open_bench: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.until_phase("streaming")
        result = await bench.ask(Follow(quotes("MSFT", "TSLA"), "positions"))
        assert result == SubscriptionResult("subscribed", quotes("MSFT", "TSLA"))
        assert following(bench.driver) == {"AAPL", "MSFT", "TSLA"}
        await bench.ask(Follow(quotes("AAPL", "NVDA"), "positions"))
        assert following(bench.driver) == {"AAPL", "NVDA"}
        assert bench.connection.sources() == {
            "AAPL": ["positions", "settings"],
            "NVDA": ["positions"],
        }
        await bench.ask(Follow(quotes(), "positions"))
        assert following(bench.driver) == {"AAPL"}, "what the settings want stays"


async def test_following_while_the_feed_is_away_is_done_when_it_is_back(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.script.extend([FeedUnavailable("no"), FeedUnavailable("no")])
    async with open_bench(drivers=[driver]) as bench:
        await bench.until_phase("waiting")
        result = await bench.ask(Follow(quotes("MSFT", "TSLA"), "positions"))
        assert result.status == "pending"
        await bench.until_phase("streaming")
        assert following(driver) == {"MSFT", "TSLA"}


async def test_at_the_limit_the_most_important_are_followed(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("SPY", drivers=[limited(3)]) as bench:
        await bench.until_phase("streaming")
        result = await bench.ask(Follow(quotes("D", "C", "B", "A"), "positions"))
        assert result.status == "subscribed"
        assert following(bench.driver) == {"SPY", "D", "C"}
        assert set(bench.now.left_out) == {"A", "B"}


async def test_the_least_important_gives_way_to_a_more_important_one(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("SPY", drivers=[limited(3)]) as bench:
        await bench.until_phase("streaming")
        await bench.ask(Follow(quotes("D", "C"), "positions"))
        await bench.ask(Follow(quotes("E", "D", "C"), "positions"))
        with anyio.fail_after(1):
            await bench.driver.subscribed("SPY", "D", "E")
            await anyio.wait_all_tasks_blocked()
        assert set(bench.now.left_out) == {"C"}
        await bench.ask(Follow(quotes("D", "C"), "positions"))  # E was closed
        with anyio.fail_after(1):
            await bench.driver.subscribed("SPY", "D", "C")
            await anyio.wait_all_tasks_blocked()
        assert bench.now.left_out == {}


async def test_nothing_gives_way_that_somebody_else_asked_for(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("SPY", drivers=[limited(2)]) as bench:
        await bench.until_phase("streaming")
        await bench.subscribe("QQQ")
        await bench.ask(Follow(quotes("E", "D"), "positions"))
        (link,) = bench.driver.connections
        await anyio.sleep(1)
        asked = len(link.requests)
        assert following(bench.driver) == {"SPY", "QQQ"}
        await anyio.sleep(AGAIN_FIRST_S - 2)
        assert len(link.requests) == asked, "it does not try over and over"


async def test_a_symbol_that_the_feed_does_not_know_displaces_nothing(
    autojump_clock: Any, open_bench: Any
) -> None:
    rules = SessionRules(symbol_limit=2, invalid_symbols=frozenset(("BAD",)))
    async with open_bench(drivers=[FakeDriver(rules=rules)]) as bench:
        await bench.until_phase("streaming")
        await bench.ask(Follow(quotes("BAD", "D", "C"), "positions"))
        await anyio.sleep(5)
        assert following(bench.driver) == {"D", "C"}
        assert set(bench.now.left_out) == {"BAD"}


async def test_one_that_was_over_the_limit_first_and_is_not_understood_displaces_nothing(
    autojump_clock: Any, open_bench: Any
) -> None:
    rules = SessionRules(symbol_limit=3, invalid_symbols=frozenset(("BAD",)))
    async with open_bench(drivers=[FakeDriver(rules=rules)]) as bench:
        await bench.until_phase("streaming")
        await bench.ask(Follow(quotes("A", "B", "C", "D", "BAD"), "positions"))
        await anyio.sleep(1)
        for order in (("BAD", "A", "B", "C", "D"), ("BAD", "B", "A", "C", "D")) * 3:
            await bench.ask(Follow(quotes(*order), "positions"))
            await anyio.sleep(1)
        (link,) = bench.driver.connections
        asked = len(link.requests)
        for order in (("BAD", "A", "B", "C", "D"), ("BAD", "B", "A", "C", "D")) * 3:
            await bench.ask(Follow(quotes(*order), "positions"))
            await anyio.sleep(1)
        assert not [names for action, names in link.requests[asked:] if action == "unsubscribe"]
        assert following(bench.driver) == {"A", "B", "C"}
        assert set(bench.now.left_out) == {"BAD", "D"}


async def test_the_larger_position_follows_at_once_when_the_api_lets_a_symbol_go(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench(drivers=[limited(2)]) as bench:
        await bench.until_phase("streaming")
        await bench.subscribe("SMALL")
        await bench.ask(Follow(quotes("LARGE", "MID", "SMALL"), "positions"))
        assert following(bench.driver) == {"SMALL", "LARGE"}
        await bench.unsubscribe("SMALL")
        with anyio.fail_after(1):
            await bench.driver.subscribed("LARGE", "MID")


async def test_after_a_reconnect_the_settings_come_first_then_the_most_important(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench(drivers=[limited(3)]) as bench:
        await bench.until_phase("streaming")
        await bench.ask(Follow(quotes("D", "C", "B"), "positions"))
        await bench.ask(Follow(quotes("B", "C", "D"), "positions"))
        await bench.unsubscribe("C", source="positions")
        await bench.subscribe("SPY")
        await bench.ask(Follow(quotes("B", "C", "D"), "positions"))
        bench.driver.drop("reset")
        with anyio.fail_after(60):
            await bench.driver.subscribed("SPY", "B", "C")
        await anyio.sleep(1)
        assert set(bench.now.left_out) == {"D"}
