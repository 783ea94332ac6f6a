"""When to connect again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import attrs
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mdservice.feed.alpaca.drivers import make_drivers
from mdservice.feed.alpaca.error_codes import http_refusal, refusal
from mdservice.feed.driver import Link
from mdservice.feed.retries import DriverSelection, Retries
from mdservice.feed.subscriptions import Followed
from mdservice.runtime.backoff import Backoff
from mdservice.settings import Settings
from tests.examples import examples


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 405, 410, 426])
def test_a_url_without_a_stream_is_asked_slowly_after_a_few_tries(status: int) -> None:
    retries, refused = Retries(Backoff()), http_refusal(status, "wss://feed.example")
    delays = [retries.after_refusal(refused, 0.0).delay_s for _ in range(10)]
    assert all(delay_s < 5 for delay_s in delays[:3])
    assert all(15 <= delay_s <= 30 for delay_s in delays[3:])
    retries.subscribed(0.0)
    assert retries.after_refusal(refused, 0.0).delay_s < 5


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_by_the_usual_back_off(status: int) -> None:
    retries, refused = Retries(Backoff()), http_refusal(status, "wss://feed.example")
    delays = [retries.after_refusal(refused, 0.0).delay_s for _ in range(20)]
    assert all(delay_s <= min(30, 0.5 * 2**tries) for tries, delay_s in enumerate(delays))


def test_a_slot_that_was_ours_is_asked_for_often_again_though_no_data_came() -> None:
    retries, refused = Retries(Backoff()), refusal(406, "connection limit exceeded")
    delays = [retries.after_refusal(refused, now_s).delay_s for now_s in (0.0, 60.0, 70.0, 90.0)]
    assert delays[-1] >= 15
    retries.subscribed(120.0)
    assert 4 <= retries.after_refusal(refused, 130.0).delay_s <= 6


@attrs.frozen
class Named:
    """A driver that is only looked at."""

    name: str

    def connect(
        self, followed: Followed, utc_ns: Callable[[], int]
    ) -> AbstractAsyncContextManager[Link]:
        raise NotImplementedError


SDK, RAW = Named("alpaca-py"), Named("websockets")


def play(selection: DriverSelection, events: str) -> list[bool]:
    """F: a start failed, U: the driver is unusable, L: logged in; returns what L answered."""
    told = []
    for event in events:
        if event == "L":
            told.append(selection.logged_in())
        else:
            selection.start_failed(unusable=event == "U")
    return told


@pytest.mark.parametrize(
    ("events", "driver", "told"),
    [
        pytest.param("", SDK, [], id="alpaca-py first"),
        pytest.param("F", SDK, [], id="one failure changes nothing"),
        pytest.param("FF", RAW, [], id="two do, and nothing is told yet"),
        pytest.param("FFL", RAW, [True], id="told once raw has logged in"),
        pytest.param("FFLL", RAW, [True, False], id="and only once"),
        pytest.param("FFLFFFFFF", RAW, [True], id="raw stays"),
        pytest.param("FFLU", RAW, [True], id="raw stays whatever comes"),
        pytest.param("L", SDK, [False], id="no change, nothing to tell"),
        pytest.param("FLF", SDK, [False], id="a login starts the count anew"),
        pytest.param("LFFL", RAW, [False, True], id="also in mid-run"),
        pytest.param("U", RAW, [], id="an unusable driver gets no second try"),
        pytest.param("FFFF", SDK, [], id="raw fails too: the network, so they alternate"),
        pytest.param("FFFFFF", RAW, [], id="and alternate"),
        pytest.param("FFFFL", SDK, [False], id="alpaca-py after all: no fallback"),
        pytest.param("FFFFLFFL", RAW, [False, True], id="not settled by that"),
        pytest.param("UFFU", RAW, [], id="unusable stays unusable"),
    ],
)
def test_follows_the_rule_for_auto(events: str, driver: Named, told: list[bool]) -> None:
    selection = DriverSelection([SDK, RAW])
    assert play(selection, events) == told
    assert selection.current is driver


@pytest.mark.parametrize("events", ["FFFF", "U", "FFLFF", "L"])
@pytest.mark.parametrize("driver", [SDK, RAW])
def test_a_named_driver_is_never_changed(driver: Named, events: str) -> None:
    selection = DriverSelection([driver])
    assert not any(play(selection, events))
    assert selection.current is driver


def test_there_has_to_be_a_driver() -> None:
    with pytest.raises(ValueError, match="at least one driver"):
        DriverSelection([])


class Auto(RuleBasedStateMachine):
    """The contract's sentences, checked on the whole history after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.selection = DriverSelection([SDK, RAW])
        self.history: list[tuple[str, str]] = []
        self.told = 0

    def _happened(self, event: str) -> None:
        self.history.append((event, self.selection.current.name))

    @rule()
    def start_fails(self) -> None:
        self._happened("failed")
        self.selection.start_failed()

    @rule()
    def driver_is_unusable(self) -> None:
        self._happened("unusable")
        self.selection.start_failed(unusable=True)

    @rule()
    def logs_in(self) -> None:
        self._happened("login")
        told = self.selection.logged_in()
        first_of_raw = self.history.count(("login", RAW.name)) == 1
        assert told == (self.selection.current is RAW and first_of_raw)
        self.told += told

    @invariant()
    def fallback_is_told_once_raw_has_logged_in_and_only_once(self) -> None:
        assert self.told == (("login", RAW.name) in self.history)

    @invariant()
    def raw_stays_once_it_has_logged_in(self) -> None:
        if ("login", RAW.name) in self.history:
            since = self.history[self.history.index(("login", RAW.name)) :]
            assert {name for _, name in since} == {RAW.name}
            assert self.selection.current is RAW

    @invariant()
    def two_failures_in_a_row_change_the_driver_and_nothing_less_does(self) -> None:
        """Every step of the history, against the driver that came after it."""
        drivers = [name for _, name in self.history] + [self.selection.current.name]
        in_a_row = 0
        settled = False
        for (event, name), after in zip(self.history, drivers[1:], strict=True):
            in_a_row = 0 if event == "login" else in_a_row + 1
            settled = settled or (event, name) == ("login", RAW.name)
            change = event == "unusable" or in_a_row == 2
            assert (after != name) == (change and not settled)
            if after != name:
                in_a_row = 0


Auto.TestCase.settings = examples(60, stateful_step_count=25)
TestAuto = Auto.TestCase


def test_auto_tries_alpaca_py_first_and_raw_next() -> None:
    auto = Settings(feed="simulator", feed_url="ws://127.0.0.1:9")
    assert [driver.name for driver in make_drivers(auto)] == ["alpaca-py", "websockets"]
    (named,) = make_drivers(attrs.evolve(auto, driver="websockets"))
    assert named.name == "websockets"
