"""What every history does: the one over REST against a simulator, and the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
import attrs
import pytest

from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory
from mdservice.feed.history import History
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote, identity
from mdservice.simulator import SimQuote, SimulatorConfig, open_simulator
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing import FakeHistory, VirtualClock

LAG_S = 3.0
START_NS = 1_795_186_800 * 10**9  # where the virtual clock begins


class Backend(Protocol):
    history: History

    def add(self, quotes: Sequence[Quote]) -> None: ...
    def refuse(self) -> None: ...
    def fail(self) -> None: ...


class OfSimulator:
    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator
        self.history: History = AlpacaHistory(
            simulator.rest_url,
            "iex",
            Credentials("key", "secret"),
            VirtualClock(),
            SimulatorTransport(simulator),
        )

    def add(self, quotes: Sequence[Quote]) -> None:
        self._simulator.send_quotes(
            [
                SimQuote(q.symbol, q.bid, q.ask, q.bid_size, q.ask_size, q.ts_event_ns)
                for q in quotes
            ]
        )

    def refuse(self) -> None:
        self._simulator.refuse_rest()

    def fail(self) -> None:
        self._simulator.refuse_rest(503, 0, "away")


class Fake:
    def __init__(self) -> None:
        self._fake = FakeHistory(LAG_S)
        self.history: History = self._fake

    def add(self, quotes: Sequence[Quote]) -> None:
        self._fake.add(quotes)

    def refuse(self) -> None:
        self._fake.script.append(HistoryRefused("42210000"))

    def fail(self) -> None:
        self._fake.script.append(HistoryUnavailable("away"))


@asynccontextmanager
async def opened(kind: str) -> AsyncIterator[Backend]:
    with anyio.fail_after(60):
        if kind == "fake":
            yield Fake()
            return
        config = SimulatorConfig(rate=0, rest_page_size=3, rest_lag_s=LAG_S, rest_rate_limit=None)
        async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
            yield OfSimulator(simulator)


def on_both(test: Callable[[Backend], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @pytest.mark.parametrize("kind", ["simulator", "fake"])
    async def run(kind: str, autojump_clock: Any) -> None:
        async with opened(kind) as backend:
            await test(backend)

    run.__name__ = test.__name__
    return run


def quote(number: int, symbol: str = "AAPL", *, at_ns: int | None = None) -> Quote:
    return Quote(symbol, number + 0.5, number + 1.0, number, 2, at_ns or START_NS + number, 0)


def identities(quotes: Sequence[Quote]) -> list[Any]:
    return [identity(one) for one in quotes]


@on_both
async def test_all_quotes_of_the_time_come_in_order_within_each_symbol(behind: Backend) -> None:
    made = [quote(number, "AAPL" if number % 3 else "MSFT") for number in range(1, 21)]
    behind.add(made)
    await anyio.sleep(LAG_S + 0.1)
    found = await behind.history.past(QUOTES, ["MSFT", "AAPL"], START_NS + 4, START_NS + 18)
    for symbol in ("AAPL", "MSFT"):
        assert [identity(q) for q in found if q.symbol == symbol] == [
            identity(q) for q in made if q.symbol == symbol and 4 <= q.bid_size <= 18
        ]
    assert {q.seq for q in found} == {0}


@on_both
async def test_quotes_of_one_time_come_as_they_were_made_also_repeats(behind: Backend) -> None:
    at_ns = START_NS + 7
    made = [quote(number, at_ns=at_ns) for number in (3, 1, 2, 1, 3, 3, 9)]
    behind.add(made)
    await anyio.sleep(LAG_S + 0.1)
    found = await behind.history.past(QUOTES, ["AAPL"], at_ns, at_ns)
    assert identities(found) == identities(made)


@on_both
async def test_what_is_not_asked_for_does_not_come(behind: Backend) -> None:
    behind.add([quote(1), quote(2, "MSFT")])
    await anyio.sleep(LAG_S + 0.1)
    assert await behind.history.past(QUOTES, ["TSLA"], START_NS, START_NS + 99) == []
    assert await behind.history.past(QUOTES, ["AAPL"], START_NS + 2, START_NS + 99) == []
    assert await behind.history.past(QUOTES, [], START_NS, START_NS + 99) == []


@on_both
async def test_past_quotes_lag_and_the_latest_do_not(behind: Backend) -> None:
    # By the simulator it is the quote's time that lags, by the fake when it was added.
    behind.add([quote(1), quote(2), quote(5, "MSFT")])
    end_ns = START_NS + 10**12
    await anyio.sleep(LAG_S - 0.1)
    assert await behind.history.past(QUOTES, ["AAPL"], START_NS, end_ns) == []
    latest = await behind.history.latest(QUOTES, ["AAPL", "MSFT", "TSLA"])
    assert sorted(identities(latest)) == sorted(identities([quote(2), quote(5, "MSFT")]))
    await anyio.sleep(0.2)
    found = await behind.history.past(QUOTES, ["AAPL"], START_NS, end_ns)
    assert identities(found) == identities([quote(1), quote(2)])


@on_both
async def test_latest_of_nothing_is_nothing(behind: Backend) -> None:
    assert list(await behind.history.latest(QUOTES, ["AAPL"])) == []
    assert list(await behind.history.latest(QUOTES, [])) == []


@on_both
async def test_answers_are_the_callers_own(behind: Backend) -> None:
    """The router numbers quotes in place."""
    behind.add([quote(1)])
    await anyio.sleep(LAG_S + 0.1)
    for one in await behind.history.past(QUOTES, ["AAPL"], START_NS, START_NS + 9):
        one.seq = 7
    again = await behind.history.past(QUOTES, ["AAPL"], START_NS, START_NS + 9)
    assert [attrs.evolve(q).seq for q in again] == [0]


@on_both
async def test_a_refusal_differs_from_an_outage(behind: Backend) -> None:
    for call in (
        lambda: behind.history.past(QUOTES, ["AAPL"], START_NS, START_NS + 9),
        lambda: behind.history.latest(QUOTES, ["AAPL"]),
    ):
        behind.refuse()
        with pytest.raises(HistoryRefused, match="42210000"):
            await call()
        behind.fail()
        with pytest.raises(HistoryUnavailable, match="away"):
            await call()
        assert list(await call()) == []
