"""A second kind of record, made up here, in the simulated market beside quotes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import anyio
import httpx
import msgspec
from trio.testing import MockClock

from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.simulator.faults import Reorder
from mdservice.simulator.kinds import QUOTES, SimKind
from mdservice.simulator.transport import SimulatorTransport
from mdservice.simulator.wire import Encoding, OutFrame, encode_messages

# Sessions know this channel of Alpaca's; the market makes nothing for it by itself.
CHANNEL = "bars"


class Count(msgspec.Struct, frozen=True):
    """A number of a symbol."""

    symbol: str
    number: int
    ts_event_ns: int = 0


class Counter:
    """Makes a record of each followed symbol every second."""

    def __init__(self, _config: SimulatorConfig) -> None:
        self.symbols: tuple[str, ...] = ()
        self._seconds = 0
        self._number = 0

    def follow(self, symbols: Iterable[str], *, without: AbstractSet[str] = frozenset()) -> None:
        self.symbols = tuple(sorted(set(symbols) - without))

    def due(self, elapsed_s: float) -> int:
        before, self._seconds = self._seconds, int(elapsed_s)
        return self._seconds - before

    def take(self, count: int, now_ns: int) -> list[Count]:
        made = []
        for _ in range(count):
            self._number += 1
            made += [Count(symbol, self._number, now_ns) for symbol in self.symbols]
        return made


def encode(records: Sequence[Count], encoding: Encoding, /, *, spoil: bool) -> OutFrame:
    assert not spoil
    return encode_messages(
        [{"T": "b", "S": one.symbol, "n": one.number, "t": one.ts_event_ns} for one in records],
        encoding,
    )


COUNTS = SimKind(
    channel=CHANNEL,
    generator=Counter,
    encode=encode,
    path="/v2/stocks/counts",
    row=lambda count: {"t": count.ts_event_ns, "n": count.number},
)
BOTH = (QUOTES, COUNTS)


def subscribe(*symbols: str) -> dict[str, Any]:
    return {"action": "subscribe", "quotes": ["AAPL"], CHANNEL: list(symbols)}


async def test_it_is_sent_to_its_subscribers_beside_quotes(
    dial: Any, autojump_clock: MockClock
) -> None:
    config = SimulatorConfig(rate=100, shape="flat", silent_symbols=("F",))
    async with open_simulator(config, port=None, kinds=BOTH) as simulator:
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
        open_simulator(SimulatorConfig(rate=0), port=None, kinds=BOTH) as simulator,
        httpx.AsyncClient(
            transport=SimulatorTransport(simulator), base_url=simulator.rest_url
        ) as client,
    ):
        simulator.send_quotes([{"S": "AAPL", "bp": 1, "ap": 2}])
        simulator.send_records(COUNTS, [Count("AAPL", 1, 7), Count("AAPL", 2, 8)])
        params = {"symbols": "AAPL,MSFT", "feed": "iex", "start": "1970-01-01T00:00:00Z"}
        history = (await client.get(COUNTS.path, params=params)).json()
        rows = [{"t": 7, "n": 1}, {"t": 8, "n": 2}]
        assert history == {CHANNEL: {"AAPL": rows}, "next_page_token": None}
        latest = (await client.get(f"{COUNTS.path}/latest", params=params)).json()
        assert latest == {CHANNEL: {"AAPL": rows[1]}}
        quotes = (await client.get(f"{QUOTES.path}/latest", params=params)).json()
        assert list(quotes["quotes"]) == ["AAPL"]
        assert len(simulator.history) == 1


async def test_a_record_held_back_comes_with_the_next_of_its_kind(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with open_simulator(SimulatorConfig(rate=0), port=None, kinds=BOTH) as simulator:
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
