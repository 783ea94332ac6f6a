"""The market with a history, as a process: the feed simulator, and outages when asked for them.

``python -m tests.bench.exchange SYMBOLS`` prints ``{"port": …}``. Every line of its input is an
order, and is answered when it is done; it ends with its input.

- ``{"do": "lead"}``: one quote of each symbol; ``{"quotes": …, "trades": …}`` of each symbol so far.
- ``{"do": "outage", "missed": n, "trades": m, "live": bool}``: cuts the connection, makes n quotes
  and m trades of each symbol, takes connections again, then goes on at 1,000 quotes a second or is quiet;
  ``{"ended": monotonic time at which connections were taken again}``.
- ``{"do": "rest"}``: goes on no more; answered as a lead.

A symbol's bids count its quotes, and its trades' ids its trades; a lead has a trade of each too. Times are the market's own: each lead comes ten seconds after
what was before, so that no repair fetches what an earlier one was about.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgspec

from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from mdservice.simulator.stock_records import SimTrade
from mdservice.simulator.stocks import TRADES
from tests.bench.tape import symbol_names

_PACE_S, _QUOTES_A_TICK = 0.01, 10
_BEGAN_AGO_NS = 3_600_000_000_000
_STEP_NS = 100_000
_LEAP_NS = 10_000_000_000
_UNAVAILABLE = 503
_MANY = 1_000_000


class Exchange:
    """Numbers the quotes and gives them their times."""

    def __init__(self, simulator: Simulator, symbols: list[str]) -> None:
        self._simulator = simulator
        self._symbols = symbols
        self._made = 0
        self._trades = 0
        self._now_ns = time.time_ns() - _BEGAN_AGO_NS
        self._paced = False

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked for."""
        if order["do"] == "outage":
            missed = order["missed"], order["trades"]
            return {"ended": await self._outage(*missed, live=order["live"])}
        self._paced = False
        if order["do"] == "lead":
            self._now_ns += _LEAP_NS
            self._make(len(self._symbols))
            self._make_trades(1)
        else:
            self._make(-self._made % len(self._symbols))  # so that all symbols have as many
        return {"quotes": self._made // len(self._symbols), "trades": self._trades}

    async def keep_pace(self) -> None:
        """Make quotes while the market is live."""
        while True:
            await asyncio.sleep(_PACE_S)
            if self._paced:
                self._make(_QUOTES_A_TICK)

    async def _outage(self, missed: int, trades: int, *, live: bool) -> float:
        simulator = self._simulator
        simulator.refuse_upgrade(_UNAVAILABLE, times=_MANY)
        simulator.drop("reset")
        await simulator.until(lambda simulator: not simulator.connections)
        self._make(missed * len(self._symbols))
        self._make_trades(trades)
        simulator.resume()
        self._paced = live
        return time.monotonic()

    def _make(self, count: int) -> None:
        """The next quotes, the symbols in turn."""
        quotes = []
        for index in range(self._made, self._made + count):
            turn, place = divmod(index, len(self._symbols))
            self._now_ns += _STEP_NS
            quotes.append(
                SimQuote(self._symbols[place], turn + 1, turn + 2, ts_event_ns=self._now_ns)
            )
        self._made += count
        self._simulator.send_quotes(quotes)

    def _make_trades(self, count: int) -> None:
        """So many trades of each symbol."""
        trades = []
        for number in range(self._trades + 1, self._trades + count + 1):
            for symbol in self._symbols:
                self._now_ns += _STEP_NS
                trades.append(SimTrade(symbol, 10.0, 100, number, self._now_ns))
        self._trades += count
        self._simulator.send_records(TRADES, trades)


async def serve(symbols: list[str]) -> None:
    """Obey one order after the other."""
    config = SimulatorConfig(rate=0, rest_rate_limit=None, history_size=_MANY)
    async with open_simulator(config) as simulator:
        _report({"port": simulator.port})
        exchange = Exchange(simulator, symbols)
        loop = asyncio.get_running_loop()
        orders = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        pace = loop.create_task(exchange.keep_pace())
        while line := await orders.readline():
            _report(await exchange.obey(msgspec.json.decode(line)))
        pace.cancel()


def _report(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(symbol_names(int(sys.argv[1]))))
