"""A second kind of record, made up here, in the simulated market beside quotes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import anyio
import httpx
import msgspec
from trio.testing import MockClock

from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.simulator.faults import Reorder
from mdservice.simulator.feeds import STOCKS
from mdservice.simulator.http import Answer
from mdservice.simulator.kinds import Batch, Records, SimKind, SimMarket
from mdservice.simulator.rest_history import (
    RestRules,
    answer_history,
    answer_latest,
    parse_history,
    parse_latest,
)
from mdservice.simulator.stocks import QUOTES, StockSource
from mdservice.simulator.transport import SimulatorTransport
from mdservice.simulator.wire import Encoding, OutFrame, encode_messages

CHANNEL = "bars"
PATH = "/v2/stocks/counts"


class Count(msgspec.Struct, frozen=True):
    """A number of a symbol."""

    symbol: str
    number: int
    ts_event_ns: int = 0


class Counter:
    """Makes quotes, and a count of each symbol that wants them every second."""

    def __init__(self, config: SimulatorConfig, records: Records) -> None:
        self._quotes = StockSource(config, records)
        self._counted: tuple[str, ...] = ()
        self._silent = config.silent_symbols
        self._seconds = 0
        self._number = 0

    @property
    def symbols(self) -> Collection[str]:
        return self._quotes.symbols

    def follow(self, wanted: Mapping[str, AbstractSet[str]]) -> None:
        self._quotes.follow({"quotes": wanted["quotes"]})
        self._counted = tuple(sorted(wanted[CHANNEL] - self._silent))

    def make(self, elapsed_s: float, now_ns: int) -> Iterable[Batch]:
        yield from self._quotes.make(elapsed_s, now_ns)
        while self._seconds < int(elapsed_s):
            self._seconds += 1
            self._number += 1
            yield COUNTS, [Count(symbol, self._number, now_ns) for symbol in self._counted]


def encode(records: Sequence[Count], encoding: Encoding, /, *, spoil: bool) -> OutFrame:
    assert not spoil
    return encode_messages(
        [{"T": "b", "S": one.symbol, "n": one.number, "t": one.ts_event_ns} for one in records],
        encoding,
    )


def row(count: Count) -> dict[str, int]:
    return {"t": count.ts_event_ns, "n": count.number}


def routes(records: Records, rules: RestRules) -> Mapping[str, Answer]:
    counts, quotes = records[COUNTS], records[QUOTES]
    return {
        PATH: lambda call: answer_history(
            counts, parse_history(call.params, rules, call.now_ns), CHANNEL, row
        ),
        f"{PATH}/latest": lambda call: answer_latest(
            counts, parse_latest(call.params, rules), CHANNEL, row
        ),
        "/v2/quoted/": lambda call: b"%d" % (quotes.latest(call.name) is not None),
    }


COUNTS = SimKind(STOCKS, CHANNEL, encode)
MARKETS = (
    SimMarket(
        (QUOTES, COUNTS),
        lambda config, records: Counter(config, records) if config.rate else None,
        routes,
    ),
)


def subscribe(*symbols: str) -> dict[str, Any]:
    return {"action": "subscribe", "quotes": ["AAPL"], CHANNEL: list(symbols)}


async def test_it_is_sent_to_its_subscribers_beside_quotes(
    dial: Any, autojump_clock: MockClock
) -> None:
    config = SimulatorConfig(rate=100, shape="flat", silent_symbols=("F",))
    async with open_simulator(config, port=None, markets=MARKETS) as simulator:
        client = await dial(simulator)
        await client.login()
        await client.send(**subscribe("AAPL", "MSFT", "F"))
        assert (await client.receive())[0][CHANNEL] == ["AAPL", "MSFT", "F"]
        quotes, counts = [], []
        while len(counts) < 4:
            frame = await client.receive()
            assert len({message["T"] for message in frame}) == 1, "one kind in each frame"
            (quotes if frame[0]["T"] == "q" else counts).extend(frame)
        assert [(one["S"], one["n"]) for one in counts] == [
            *(("AAPL", 1), ("MSFT", 1)),
            *(("AAPL", 2), ("MSFT", 2)),
        ]
        assert {quote["S"] for quote in quotes} == {"AAPL"}
        assert 150 < len(quotes) < 250
        assert simulator.made[COUNTS] == 4
        assert simulator.quotes_made == len(simulator.sent)


async def test_rest_has_its_history_and_its_latest(autojump_clock: MockClock) -> None:
    async with (
        open_simulator(SimulatorConfig(rate=0), port=None, markets=MARKETS) as simulator,
        httpx.AsyncClient(
            transport=SimulatorTransport(simulator), base_url=simulator.rest_url
        ) as client,
    ):
        simulator.send_quotes([{"S": "AAPL", "bp": 1, "ap": 2}])
        simulator.send_records(COUNTS, [Count("AAPL", 1, 7), Count("AAPL", 2, 8)])
        params = {"symbols": "AAPL,MSFT", "feed": "iex", "start": "1970-01-01T00:00:00Z"}
        history = (await client.get(PATH, params=params)).json()
        rows = [{"t": 7, "n": 1}, {"t": 8, "n": 2}]
        assert history == {CHANNEL: {"AAPL": rows}, "next_page_token": None}
        latest = (await client.get(f"{PATH}/latest", params=params)).json()
        assert latest == {CHANNEL: {"AAPL": rows[1]}}
        assert (await client.get("/v2/quoted/AAPL")).json() == 1
        assert (await client.get("/v2/quoted/MSFT")).json() == 0
        assert len(simulator.history) == 1


async def test_a_record_held_back_comes_with_the_next_of_its_kind(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with open_simulator(SimulatorConfig(rate=0), port=None, markets=MARKETS) as simulator:
        client = await dial(simulator)
        await client.login()
        await client.send(**subscribe("AAPL"))
        await client.receive()
        simulator.inject(Reorder())
        simulator.send_records(COUNTS, [Count("AAPL", 1)])
        simulator.send_quotes([{"S": "AAPL", "bp": 1, "ap": 2}])
        simulator.send_records(COUNTS, [Count("AAPL", 2)])
        with anyio.fail_after(5):
            assert [message["T"] for message in await client.receive()] == ["q"]
            assert [message["n"] for message in await client.receive()] == [2, 1]
