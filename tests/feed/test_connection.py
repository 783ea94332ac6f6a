"""The connection's life: log in, subscribe, stream, lose it, come back. All on virtual time."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import anyio
import attrs
import pytest

from mdservice.errors import ConfigurationError, FeedRefused
from mdservice.feed.alpaca.link import AlpacaLink
from mdservice.feed.driver import LoginLimit, Received
from mdservice.feed.retries import HELD_S
from mdservice.feed.session import ACK_TIMEOUT_S
from mdservice.model.events import FeedLost, RecordBatch
from mdservice.model.kinds import CORRECTIONS, QUOTES
from mdservice.runtime.backoff import Backoff
from mdservice.simulator.session import SessionRules
from mdservice.testing import FakeDriver
from tests.topics import names

SEED = 7


def quote(bid: float, symbol: str = "AAPL") -> dict[str, Any]:
    return {"S": symbol, "bp": bid, "ap": bid + 1}


def delays(count: int, **limits: float) -> list[float]:
    """What a back-off with the bench's seed gives."""
    backoff = Backoff(**limits, rng=random.Random(SEED))
    return [backoff.next_s() for _ in range(count)]


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


# ---- streaming


async def test_reports_that_it_is_connected_then_sends_what_comes(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        link = await bench.driver.subscribed("AAPL", "MSFT")
        bench.driver.send_quotes([quote(1), quote(2, "MSFT"), quote(3)], frames=[2, 1])
        await bench.until(lambda: bench.bids == [1, 2, 3])
        assert bench.story == ["connected", [1, 2, 3]]
        assert bench.statuses[0].details == {"driver": "fake"}
        assert bench.statuses[0].at_ns == bench.items[1].records[0].ts_recv_ns
        assert link.sent[0] == {"action": "auth", "key": "***", "secret": "***"}
        assert link.requests == [("subscribe", ["AAPL", "MSFT"])]
        now = bench.now
        assert (now.phase, now.connected, now.subscribed) == ("streaming", True, True)
        assert (now.wanted, now.acknowledged, now.quotes_received) == (2, 2, 3)
        assert (now.logins, now.reconnects, now.last_error) == (1, 0, None)


OTHERS = CORRECTIONS
"""A kind without a recovery of its own."""


@pytest.fixture
def _with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read that brings quotes brings the same records of another kind."""
    receive = AlpacaLink.receive

    async def with_others(self: AlpacaLink) -> Received:
        received = await receive(self)
        if received.records:
            received.records[OTHERS] = list(map(attrs.evolve, received.of(QUOTES)))
        return received

    monkeypatch.setattr(AlpacaLink, "receive", with_others)


@pytest.mark.usefixtures("_with_others")
async def test_records_of_a_kind_without_repair_go_on_as_their_own(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        bench.driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1, 1])
        kinds = [item.kind for item in bench.items if isinstance(item, RecordBatch)]
        assert kinds == [QUOTES, OTHERS]


@pytest.mark.usefixtures("_with_others")
async def test_a_restart_loses_no_kind_of_what_was_read(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        await bench.until_phase("streaming")
        bench.stop_taking()
        sent = 0
        while bench.now.quotes_received == sent:  # until the reader waits for room
            sent += 1
            bench.driver.send_quotes([quote(sent)])
            await anyio.wait_all_tasks_blocked()
        read = 2 * bench.now.quotes_received
        await bench.cancel()
        bench.take()
        await bench.start()
        await bench.until(lambda: bench.story.count("connected") == 2)
        assert len(bench.bids) == read
        assert bench.bids[::2] == bench.bids[1::2] == list(range(1, read // 2 + 1))


async def test_without_symbols_it_logs_in_and_waits(autojump_clock: Any, open_bench: Any) -> None:
    async with open_bench() as bench:
        link = await bench.driver.opened()
        await bench.until_phase("streaming")
        assert link.requests == []
        assert bench.now.subscribed


async def test_broken_messages_are_counted_and_cost_only_themselves(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        bench.driver.send_raw(b"\xc1 no msgpack")
        bench.driver.send_messages([{"T": "q", "S": "AAPL", "bp": "x"}, {"T": "zz"}])
        bench.driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        assert (bench.now.decode_errors, bench.now.other_messages) == (2, 1)
        assert bench.story == ["connected", [1]]


async def test_slow_router_holds_the_reading_back_and_loses_nothing(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        bench.stop_taking()
        for bid in range(1, 201):
            bench.driver.send_quotes([quote(bid)])
            await anyio.wait_all_tasks_blocked()
        assert bench.connection.heartbeat.age_s() < 2, "the waiting reader counts as alive"
        waiting = bench.now.quotes_received
        assert waiting < 100, "it reads on although nobody takes"
        bench.take()
        await bench.until(lambda: len(bench.bids) == 200)
        assert bench.bids == list(range(1, 201))


async def test_quotes_of_no_subscription_are_counted_and_dropped(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        await bench.until_phase("streaming")
        fields = {"T": "q", "bp": 1, "bs": 1, "ap": 2, "as": 1}
        fields["t"] = "2026-11-20T15:51:44.208912345Z"
        bench.driver.send_messages([{**fields, "S": symbol} for symbol in ("MSFT", "../x", "*")])
        bench.driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        assert (bench.now.unfollowed, bench.now.decode_errors) == (1, 2)
        assert bench.now.quotes_received == 1


# ---- coming back


@pytest.mark.parametrize("how", ["reset", "half-close", "close"])
async def test_comes_back_and_subscribes_again(
    autojump_clock: Any, open_bench: Any, how: str
) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        await bench.driver.subscribed("AAPL")
        bench.driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        bench.driver.drop(how)
        second = await bench.driver.opened(2)
        await bench.driver.subscribed("AAPL", "MSFT")
        bench.driver.send_quotes([quote(2)])
        await bench.until(lambda: bench.bids == [1, 2])
        assert bench.story == ["connected", [1], "disconnected", "connected", [2]]
        assert bench.statuses[1].details == {"reason": "the feed closed the connection"}
        assert second.requests == [("subscribe", ["AAPL", "MSFT"])]
        assert (bench.now.logins, bench.now.reconnects) == (2, 1)
        assert bench.now.last_error == "the feed closed the connection"


async def test_backoff_grows_with_jitter(autojump_clock: Any, open_bench: Any) -> None:
    driver = FakeDriver()
    driver.fail(9)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await driver.opened()
        assert gaps(driver.attempts) == pytest.approx(delays(9))
        for bound, gap in zip(
            (0.5, 1, 2, 4, 8, 16, 30, 30, 30), gaps(driver.attempts), strict=True
        ):
            assert bound / 2 <= gap <= bound
        assert bench.story in ([], ["connected"])


async def test_backoff_is_reset_by_data_and_not_by_a_login(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.fail(2)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        for number in (1, 2):
            await driver.opened(number)
            await bench.until_phase("streaming")
            driver.drop()
        await driver.opened(3)
        # Neither login brought data: it has grown to the fourth step.
        expected = delays(4)
        waits = [*gaps(driver.attempts[:3]), driver.attempts[4] - driver.attempts[3]]
        assert waits[0:2] == pytest.approx(expected[0:2])
        assert waits[2] == pytest.approx(expected[3], abs=0.05)
        await driver.subscribed("AAPL")
        driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        lost_s = anyio.current_time()
        driver.drop()
        await driver.opened(4)
        assert driver.attempts[-1] - lost_s <= 0.5, "data has come, so it starts anew"


@pytest.mark.parametrize("code", [401, 404, 407, 500])
async def test_error_that_ends_the_connection_makes_it_come_back(
    autojump_clock: Any, open_bench: Any, code: int
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        bench.driver.send_error(code)
        await bench.driver.opened(2)
        await bench.until(lambda: bench.story == ["connected", "disconnected", "connected"])
        assert str(code) in bench.statuses[1].details["reason"]


async def test_quotes_that_came_with_the_error_are_sent(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        await bench.until_phase("streaming")
        bench.driver.send_quotes([quote(1), quote(2)])
        bench.driver.send_error(407)
        await bench.until(lambda: "disconnected" in bench.story)
        assert bench.story[:3] == ["connected", [1, 2], "disconnected"]


@pytest.mark.parametrize("code", [406, 407])
async def test_an_acknowledgement_behind_the_error_hides_no_gap(
    autojump_clock: Any, open_bench: Any, code: int
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        bench.driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        end = {"T": "error", "code": code, "msg": "no"}
        bench.driver.send_messages([end, {"T": "subscription", "quotes": []}])
        await bench.driver.opened(2)
        (lost,) = [item for item in bench.items if isinstance(item, FeedLost)]
        assert names(lost.topics) == {"AAPL"}
        assert str(code) in lost.reason


async def test_harmless_error_is_ignored(autojump_clock: Any, open_bench: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        for code in (403, 400, 405, 410, 999):  # without a request under way
            bench.driver.send_error(code)
        bench.driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        assert bench.story == ["connected", [1]]


# ---- refusals


@pytest.mark.parametrize("code", [402, 408, 409, 411])
async def test_refusal_for_good_at_start_is_fatal(
    autojump_clock: Any, open_bench: Any, code: int
) -> None:
    driver = FakeDriver()
    driver.refuse_next(code)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.ended.wait()
        refused = only_cause(bench.outcome)
        assert isinstance(refused, FeedRefused)
        assert (refused.code, refused.http) == (code, False)
        assert bench.story == ["fatal"]
        assert bench.statuses[0].details == {"reason": str(refused), "code": code}
        assert len(driver.attempts) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_upgrade_for_good_at_start_is_fatal(
    autojump_clock: Any, open_bench: Any, status: int
) -> None:
    driver = FakeDriver()
    driver.refuse_upgrade(status)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.ended.wait()
        refused = only_cause(bench.outcome)
        assert isinstance(refused, FeedRefused)
        assert (refused.code, refused.http) == (status, True)
        assert bench.story == ["fatal"]


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_other_refused_upgrade_is_tried_again(
    autojump_clock: Any, open_bench: Any, status: int
) -> None:
    driver = FakeDriver()
    driver.refuse_upgrade(status, times=3)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await driver.opened()
        assert gaps(driver.attempts) == pytest.approx(delays(3))
        assert f"HTTP {status}" in bench.now.last_error


async def test_410_is_fatal_when_first_subscribing(autojump_clock: Any, open_bench: Any) -> None:
    driver = FakeDriver()
    driver.refuse_next(410, when="subscribe")
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.ended.wait()
        assert only_cause(bench.outcome).code == 410  # type: ignore[union-attr]
        assert bench.story == ["connected", "disconnected", "fatal"]


@pytest.mark.parametrize("code", [402, 409])
async def test_refusal_for_good_after_data_is_reported_and_retried_slowly(
    autojump_clock: Any, open_bench: Any, code: int
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        bench.driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        bench.driver.refuse_next(code, times=3)
        bench.driver.drop()
        await bench.until(lambda: "fatal" in bench.story)
        await bench.until_phase("refused")
        assert f"refused with {code}" in bench.now.last_error
        assert not bench.now.connected
        await bench.driver.opened(2)
        await bench.driver.subscribed("AAPL")
        bench.driver.send_quotes([quote(2)])
        await bench.until(lambda: bench.bids == [1, 2])
        assert not bench.ended.is_set()
        assert bench.story == [
            *("connected", [1], "disconnected"),
            *("fatal", "fatal", "fatal", "connected", [2]),
        ]
        waits = gaps(bench.driver.attempts[1:])
        for bound, wait in zip((30, 60, 120), waits, strict=True):
            assert bound / 2 <= wait <= bound
        assert bench.now.phase == "streaming"


def assert_slot_waits(waits: list[float]) -> None:
    """About 5 s each during the first minute, then longer, up to 30 s."""
    waited_s = 0.0
    bounds = iter((10, 20))
    for wait in waits:
        if waited_s < 60:
            assert 4 <= wait <= 6, (wait, waited_s)
        else:
            bound = next(bounds, 30)
            assert bound / 2 <= wait <= bound, (wait, waited_s)
        waited_s += wait
    assert len({round(wait, 3) for wait in waits}) > 1, "they have no jitter"


@pytest.mark.parametrize("symbols", [("AAPL",), ()], ids=["quiet", "without symbols"])
async def test_a_connection_that_held_in_a_quiet_market_ends_the_backoff(
    autojump_clock: Any, open_bench: Any, symbols: tuple[str, ...]
) -> None:
    driver = FakeDriver()
    driver.fail(9)
    async with open_bench(*symbols, drivers=[driver]) as bench:
        for number in range(1, 6):
            await driver.opened(number)
            await bench.until_phase("streaming")
            await anyio.sleep(HELD_S + 1)
            lost_s = anyio.current_time()
            driver.drop()
            await driver.opened(number + 1)
            assert driver.attempts[-1] - lost_s <= 0.5


@pytest.mark.parametrize("held_s", [0.0, 1.0, HELD_S - 1])
async def test_connections_that_end_soon_wait_longer_and_longer(
    autojump_clock: Any, open_bench: Any, held_s: float
) -> None:
    driver = FakeDriver()
    async with open_bench("AAPL", drivers=[driver]) as bench:
        waits = []
        for number in range(1, 9):
            await driver.opened(number)
            await bench.until_phase("streaming")
            await anyio.sleep(held_s)
            lost_s = anyio.current_time()
            driver.drop()
            await driver.opened(number + 1)
            waits.append(driver.attempts[-1] - lost_s)
        assert waits[-1] >= 15, "half of the longest wait"


async def test_a_login_whose_subscription_is_not_answered_does_not_end_the_backoff(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.stall("subscribe", times=12)
    async with open_bench("AAPL", drivers=[driver]):
        await driver.opened(12)
        assert gaps(driver.attempts)[-1] >= 15 + ACK_TIMEOUT_S


@pytest.mark.parametrize("quiet", [True, False])
async def test_refusals_for_good_begin_with_short_waits_after_a_connection_that_held(
    autojump_clock: Any, open_bench: Any, *, quiet: bool
) -> None:
    driver = FakeDriver()
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await driver.subscribed("AAPL")
        driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        for number in (2, 3):
            before = len(driver.attempts)
            driver.refuse_next(402, times=4)
            driver.drop()
            await driver.opened(number)
            assert gaps(driver.attempts[before:])[0] <= 30
            await bench.until_phase("streaming")
            if not quiet:
                driver.send_quotes([quote(number)])
            await anyio.sleep(HELD_S + 1)


async def test_406_is_tried_about_every_5_s_for_a_minute_and_then_less_often(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.refuse_next(406, times=20)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.until_phase("waiting_for_slot")
        assert "old session" in bench.now.last_error
        await driver.opened()
        assert_slot_waits(gaps(driver.attempts))
        await bench.until(lambda: bench.story == ["connected"])


@pytest.mark.parametrize("quotes", [True, False], ids=["with data", "in a quiet market"])
async def test_each_406_of_a_later_outage_begins_a_minute_of_its_own(
    autojump_clock: Any, open_bench: Any, quotes: bool
) -> None:
    driver = FakeDriver()
    driver.refuse_next(406, times=18)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await driver.opened()
        await bench.until_phase("streaming")
        if quotes:
            driver.send_quotes([quote(1)])
        await anyio.sleep(600)
        before = len(driver.attempts)
        driver.refuse_next(406, times=18)
        driver.drop()
        await driver.opened(2)
        assert_slot_waits(gaps(driver.attempts[before:]))


async def test_a_failure_between_two_406_does_not_make_their_waits_longer(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await driver.opened()
        driver.fail(1)
        driver.refuse_next(406, times=6)
        driver.drop()
        await driver.opened(2)
        assert_slot_waits(gaps(driver.attempts[2:]))
        assert bench.now.phase in ("subscribing", "streaming")


async def test_406_on_an_open_connection_waits_for_the_slot(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        bench.driver.send_error(406)
        await bench.until_phase("waiting_for_slot")
        assert bench.story == ["connected", "disconnected"]
        await bench.driver.opened(2)


# ---- a slow login


@pytest.mark.parametrize(("login_s", "attempts"), [(2, 1), (5, 2), (11, 3), (14, 4)])
async def test_a_slow_login_succeeds_and_the_next_outage_begins_with_a_short_limit(
    autojump_clock: Any, open_bench: Any, login_s: float, attempts: int
) -> None:
    driver = FakeDriver(login_s=login_s)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        for round_ in (1, 2):
            await driver.opened(round_)
            await bench.until_phase("streaming")
            assert len(driver.attempts) == attempts * round_
            driver.send_quotes([quote(round_)])
            driver.drop()
            await bench.until(lambda: "disconnected" in bench.story)


async def test_a_login_that_takes_longer_than_15_s_is_given_up_each_time(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(login_s=40)
    async with open_bench("AAPL", drivers=[driver]):
        await driver.until(lambda d: len(d.attempts) == 8)
        waits = gaps(driver.attempts)
        for index, limit_s in enumerate((3, 6, 12, 15, 15, 15, 15)):
            bound = min(30, 0.5 * 2**index)
            assert limit_s + bound / 2 <= waits[index] <= limit_s + bound + 0.01


async def test_with_auto_the_drivers_share_the_limit_and_still_change_soon(
    autojump_clock: Any, open_bench: Any
) -> None:
    limit = LoginLimit()
    first, second = (FakeDriver(name, login_s=11, limit=limit) for name in ("first", "second"))
    async with open_bench("AAPL", drivers=[first, second]):
        await second.opened()
        assert (len(first.attempts), len(second.attempts)) == (2, 1)
        assert second.attempts[0] - first.attempts[0] < 11


async def test_a_refused_connection_does_not_make_the_limit_longer(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.fail(6)
    driver.stall("auth")  # of the seventh try, the first that is answered
    async with open_bench("AAPL", drivers=[driver]):
        await driver.opened()
        assert gaps(driver.attempts)[6] == pytest.approx(3 + delays(7)[6])


# ---- subscribing at start


async def test_at_the_symbol_limit_as_many_as_fit_are_subscribed(
    autojump_clock: Any, open_bench: Any
) -> None:
    symbols = [f"S{n}" for n in range(50)]
    driver = FakeDriver(rules=SessionRules(symbol_limit=30))
    async with open_bench(*symbols, drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        (link,) = driver.connections
        assert link.subscriptions["quotes"] == tuple(symbols[:30])
        assert list(bench.now.left_out) == symbols[30:]
        assert all("405" in reason for reason in bench.now.left_out.values())
        assert bench.now.subscribed
        assert (bench.now.wanted, bench.now.acknowledged) == (50, 30)
        assert bench.story == ["connected"]
        assert len(link.requests) < 20, "it halves, it does not try one by one"


async def test_symbol_that_is_not_understood_is_found_among_many(
    autojump_clock: Any, open_bench: Any
) -> None:
    symbols = [f"S{n}" for n in range(500)]
    driver = FakeDriver(rules=SessionRules(invalid_symbols={"S77", "S333"}))
    async with open_bench(*symbols, drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        (link,) = driver.connections
        assert set(link.subscriptions["quotes"]) == set(symbols) - {"S77", "S333"}
        assert set(bench.now.left_out) == {"S77", "S333"}
        assert all("400" in reason for reason in bench.now.left_out.values())
        assert max(len(names) for _, names in link.requests) <= 200


async def test_limit_and_bad_symbol_together(autojump_clock: Any, open_bench: Any) -> None:
    symbols = [f"S{n}" for n in range(10)]
    rules = SessionRules(symbol_limit=5, invalid_symbols={"S2"})
    driver = FakeDriver(rules=rules)
    async with open_bench(*symbols, drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        (link,) = driver.connections
        assert link.subscriptions["quotes"] == ("S0", "S1", "S3", "S4", "S5")
        assert set(bench.now.left_out) == {"S2", "S6", "S7", "S8", "S9"}


async def test_partial_acknowledgement_is_noticed_and_asked_for_again(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(rules=SessionRules(ignored_symbols={"MSFT"}))
    async with open_bench("AAPL", "MSFT", "TSLA", drivers=[driver]) as bench:
        await bench.until_phase("streaming")
        (link,) = driver.connections
        assert link.requests == [
            ("subscribe", ["AAPL", "MSFT", "TSLA"]),
            ("subscribe", ["MSFT"]),
        ]
        assert bench.now.left_out == {"MSFT": "not acknowledged"}
        assert bench.now.subscribed


async def test_unanswered_first_subscription_makes_it_reconnect(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver()
    driver.stall("subscribe")
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await driver.opened()
        await driver.opened(2)
        assert ACK_TIMEOUT_S <= driver.attempts[1] <= ACK_TIMEOUT_S + 0.5
        await driver.subscribed("AAPL")
        await bench.until(lambda: bench.story == ["connected", "disconnected", "connected"])
        assert "did not answer to subscribe within 5 s" in bench.statuses[1].details["reason"]


# ---- which driver


async def test_auto_changes_the_driver_after_two_failed_starts(
    autojump_clock: Any, open_bench: Any
) -> None:
    first, raw = FakeDriver("alpaca-py"), FakeDriver("websockets")
    first.fail(100)
    async with open_bench("AAPL", drivers=[first, raw]) as bench:
        await raw.subscribed("AAPL")
        assert len(first.attempts) == 2
        raw.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        assert bench.story == ["fallback", "connected", [1]]
        assert bench.statuses[0].details["driver"] == "websockets"
        assert "no server listens" in bench.statuses[0].details["reason"]
        assert bench.now.driver == "websockets"
        raw.drop()
        await raw.opened(2)
        await bench.until(lambda: bench.story[-1] == "connected")
        assert bench.story == ["fallback", "connected", [1], "disconnected", "connected"]
        assert len(first.attempts) == 2, "raw stays until the next start"


async def test_raw_driver_is_up_within_20_s_where_the_first_never_answers(
    autojump_clock: Any, open_bench: Any
) -> None:
    first, raw = FakeDriver("alpaca-py"), FakeDriver("websockets")
    first.stall("upgrade", times=100)
    async with open_bench("AAPL", drivers=[first, raw]):
        await raw.subscribed("AAPL")
        assert anyio.current_time() <= 20


async def test_both_alternate_under_one_backoff_while_neither_works(
    autojump_clock: Any, open_bench: Any
) -> None:
    first, raw = FakeDriver("alpaca-py"), FakeDriver("websockets")
    first.fail(4)
    raw.fail(4)
    async with open_bench("AAPL", drivers=[first, raw]) as bench:
        await first.opened()
        tries = sorted([(t, "a") for t in first.attempts] + [(t, "w") for t in raw.attempts])
        assert "".join(name for _, name in tries) == "aawwaawwa"
        assert gaps([t for t, _ in tries]) == pytest.approx(delays(8))
        await bench.until(lambda: bench.story == ["connected"])  # no change, so no fallback
        assert bench.now.driver == "alpaca-py"


async def test_fallback_is_published_only_once_raw_has_logged_in(
    autojump_clock: Any, open_bench: Any
) -> None:
    first, raw = FakeDriver("alpaca-py"), FakeDriver("websockets")
    first.fail(100)
    raw.fail(3)
    async with open_bench("AAPL", drivers=[first, raw]) as bench:
        while len(raw.attempts) < 3:
            assert bench.story == []
            await anyio.sleep(0.1)
        await raw.opened()
        await bench.until(lambda: bench.story == ["fallback", "connected"])


@pytest.mark.parametrize("refuse", ["by code", "by status"])
async def test_refusals_never_change_the_driver(
    autojump_clock: Any, open_bench: Any, refuse: str
) -> None:
    first, raw = FakeDriver("alpaca-py"), FakeDriver("websockets")
    if refuse == "by code":
        first.refuse_next(406, times=6)
    else:
        first.refuse_upgrade(503, times=6)
    async with open_bench("AAPL", drivers=[first, raw]) as bench:
        await first.opened()
        await bench.until(lambda: bench.story == ["connected"])
        assert raw.attempts == []


async def test_lost_connections_never_change_the_driver(
    autojump_clock: Any, open_bench: Any
) -> None:
    first, raw = FakeDriver("alpaca-py"), FakeDriver("websockets")
    async with open_bench("AAPL", drivers=[first, raw]):
        for number in range(1, 5):
            await first.opened(number)
            first.drop()
        await first.opened(5)
        assert raw.attempts == []


async def test_driver_that_cannot_work_here_is_changed_at_once(
    autojump_clock: Any, open_bench: Any
) -> None:
    first, raw = FakeDriver("alpaca-py"), FakeDriver("websockets")
    first.script.extend([ConfigurationError("alpaca-py is not installed")] * 9)
    async with open_bench("AAPL", drivers=[first, raw]) as bench:
        await raw.opened()
        assert anyio.current_time() == 0
        await bench.until(lambda: bench.story == ["fallback", "connected"])
        assert bench.statuses[0].details["reason"] == "alpaca-py is not installed"


async def test_named_driver_that_cannot_work_here_ends_it(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver("alpaca-py")
    driver.script.append(ConfigurationError("alpaca-py is not installed"))
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.ended.wait()
        assert isinstance(only_cause(bench.outcome), ConfigurationError)


# ---- the end


async def test_stop_closes_the_connection_and_the_outbox(
    autojump_clock: Any, open_bench: Any
) -> None:
    driver = FakeDriver(closing_s=60)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await driver.subscribed("AAPL")
        driver.send_quotes([quote(1)])
        await bench.until(lambda: bench.bids == [1])
        started_s = anyio.current_time()
        await bench.stop()
        assert anyio.current_time() - started_s <= 1.0
        assert bench.outcome is None
        assert bench.story == ["connected", [1], "disconnected"]
        assert driver.connections == ()
        assert bench.now.phase == "stopped"
        with pytest.raises(anyio.ClosedResourceError):
            bench.channel.outbox.send_nowait(bench.items[0])


@pytest.mark.parametrize("moment", ["opening", "waiting", "subscribing", "waiting_for_slot"])
async def test_stop_is_prompt_at_any_moment(
    autojump_clock: Any, open_bench: Any, moment: str
) -> None:
    driver = FakeDriver()
    if moment == "opening":
        driver.stall("upgrade")
    elif moment == "waiting":
        driver.fail(9)
    elif moment == "subscribing":
        driver.stall("subscribe")
    else:
        driver.refuse_next(406, times=9)
    async with open_bench("AAPL", drivers=[driver]) as bench:
        await bench.until_phase("connecting" if moment == "opening" else moment)
        started_s = anyio.current_time()
        await bench.stop()
        assert anyio.current_time() == started_s
        assert bench.outcome is None


async def test_stop_is_bounded_while_the_channel_is_full(
    autojump_clock: Any, open_bench: Any
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        bench.stop_taking()
        for bid in range(200):
            bench.driver.send_quotes([quote(bid)])
            await anyio.wait_all_tasks_blocked()
        started_s = anyio.current_time()
        await bench.stop()
        assert anyio.current_time() - started_s <= 1.0


async def test_runs_again_after_a_restart(autojump_clock: Any, open_bench: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.driver.subscribed("AAPL")
        await bench.subscribe("MSFT")
        await bench.cancel()
        assert bench.driver.connections == ()
        await bench.start()
        await bench.driver.subscribed("AAPL", "MSFT")
        bench.driver.send_quotes([quote(5)])
        await bench.until(lambda: bench.bids == [5])
        assert bench.story == ["connected", "disconnected", "connected", [5]]
        assert (await bench.subscribe("TSLA")).status == "subscribed"


def only_cause(outcome: BaseException | None) -> BaseException:
    """The one exception in however many groups."""
    assert outcome is not None, "it returned"
    while isinstance(outcome, BaseExceptionGroup):
        (outcome,) = outcome.exceptions
    return outcome
