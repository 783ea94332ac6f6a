"""``python -m tests.bench repair``: how long after an outage everything missed is out.

The simulator, in a process of its own, cuts the connection over TCP, makes 10,000 quotes of 100
symbols that nobody hears, and takes connections again: that is the end of the outage. Measured is
until ``gap_repaired`` is heard from Valkey, behind all that was missed; the back-off before the
connection is part of it. A live market goes on at 1,000 quotes a second, a quiet one says nothing
more. Each round checks that every quote was heard as an event, once and in order.

With trades, the service follows them too, and misses 2,000 of them as well. Then the time counts
until ``gap_repaired`` of both channels.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import hiredis
import msgspec
import redis

from mdservice.redis_io.embedded import open_embedded_server
from tests.bench.processes import REPOSITORY, Child, Cores, pin, running
from tests.bench.programs import Service, Surroundings
from tests.bench.results import aligned, machine, write
from tests.bench.tape import symbol_names

__all__ = ["LIMIT_S", "main"]

LIMIT_S = 90
"""Nothing here may take longer."""
_SYMBOLS = 100
_MISSED = 100
"""Quotes of each symbol that an outage swallows."""
_ROUNDS = 5
_TRADES_MISSED = 20
"""Trades of each symbol, likewise, where trades are followed."""
_WITH_TRADES = "websockets, trades too"
_DRIVERS = ("websockets", "alpaca-py", _WITH_TRADES)
_MARKETS = ("live", "quiet")
_HEARD_LIMIT_S = 20.0
_ANSWER_LIMIT_S = 10.0
_READ_BYTES = 262_144
_SUBSCRIBE = b"SUBSCRIBE price.updated trade.updated feed.status\r\n"
_SUBSCRIPTIONS = 3
_MOST_TOLD = 5
_NOTHING = object()


class _Event(msgspec.Struct, gc=False):
    symbol: str
    bid: float = 0
    id: int = 0


class Ear:
    """Hears events and states, and checks the order as it hears: bids count a symbol's quotes.

    Args:
        path: The server's UNIX socket.
        symbols: Of the market.
    """

    def __init__(self, path: Path, symbols: list[str]) -> None:
        self.wrong: list[str] = []
        self.heard_s: dict[str, float] = {}
        """When each state was last heard, in monotonic time."""
        self._last = dict.fromkeys(symbols, 0)
        self._trades = dict.fromkeys(symbols, 0)
        self._decode = msgspec.json.Decoder(_Event).decode
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._subscribed = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.sendall(_SUBSCRIBE)
        self.listen(lambda: self._subscribed == _SUBSCRIPTIONS)

    def listen(self, until: Callable[[], bool]) -> None:
        """Hear until the condition holds.

        Raises:
            TimeoutError: It took too long.
        """
        deadline = time.monotonic() + _HEARD_LIMIT_S
        while not until():
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._reader.feed(self._socket.recv(_READ_BYTES))
            now_s = time.monotonic()
            while (message := self._reader.gets()) is not _NOTHING:
                self._take(message, now_s)

    def has_heard(self, quotes: int, trades: int = 0) -> bool:
        """Whether this many of each symbol have been heard."""
        return all(last >= quotes for last in self._last.values()) and all(
            last >= trades for last in self._trades.values()
        )

    def _take(self, message: Any, now_s: float) -> None:
        kind, channel, content = message
        if kind == b"subscribe":
            self._subscribed += 1
        elif channel == b"feed.status":
            status = msgspec.json.decode(content)
            self.heard_s[status["state"] + status.get("channel", "")] = now_s
        else:
            event = self._decode(content)
            last, number = self._last, int(event.bid)
            if channel == b"trade.updated":
                last, number = self._trades, event.id
            expected = last[event.symbol] + 1
            if number != expected and len(self.wrong) < _MOST_TOLD:
                self.wrong.append(f"{event.symbol}: {number} came in place of {expected}")
            last[event.symbol] = number

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@attrs.frozen
class Repair:
    """One outage, seconds from its end."""

    driver: str
    market: str
    connected_s: float
    repaired_s: float


@attrs.frozen
class Scene:
    """A service with its market, and who listens."""

    driver: str
    exchange: Child
    ear: Ear

    def order(self, do: str, **more: Any) -> dict[str, Any]:
        """Have the market do something."""
        self.exchange.tell({"do": do, **more})
        return self.exchange.hear(_ANSWER_LIMIT_S)

    def outage(self, market: str) -> Repair:
        """Lose the connection, and hear everything that was missed."""
        ear, with_trades = self.ear, self.driver == _WITH_TRADES

        def all_of(made: dict[str, Any], quotes: int = 0, trades: int = 0) -> bool:
            return ear.has_heard(
                made["quotes"] + quotes, made["trades"] + trades if with_trades else 0
            )

        made = self.order("lead")
        ear.listen(lambda: all_of(made))
        ear.heard_s.clear()
        ended_s = self.order(
            "outage", missed=_MISSED, trades=_TRADES_MISSED, live=market == "live"
        )["ended"]
        repaired = ["gap_repairedquotes", *(["gap_repairedtrades"] if with_trades else [])]
        ear.listen(lambda: all(name in ear.heard_s for name in repaired))
        if not all_of(made, _MISSED, _TRADES_MISSED):
            ear.wrong.append("gap_repaired came before all that was missed")
        made = self.order("rest")
        ear.listen(lambda: all_of(made))
        repaired_s = max(ear.heard_s[name] for name in repaired)
        connected_s = ear.heard_s["connected"]
        return Repair(self.driver, market, connected_s - ended_s, repaired_s - ended_s)


@contextmanager
def _scene(driver: str, store: redis.Redis, path: Path, folder: Path) -> Iterator[Scene]:
    """Start a market and a service; end both after the block."""
    store.flushall()
    cores = Cores.of_this_machine()
    folder.mkdir()
    with (
        running(
            "tests.bench.exchange",
            str(_SYMBOLS),
            core=cores.others,
            others_core=cores.others,
            log=folder / "exchange.log",
        ) as exchange,
        closing(Ear(path, symbol_names(_SYMBOLS))) as ear,
    ):
        port = exchange.hear(_ANSWER_LIMIT_S)["port"]
        given = Surroundings(
            feed_url=f"ws://127.0.0.1:{port}/v2/sip",
            rest_url=f"http://127.0.0.1:{port}",
            redis_url=f"unix://{path}",
            symbols=symbol_names(_SYMBOLS),
            folder=folder,
            cores=cores,
        )
        channels = "quotes,trades" if driver == _WITH_TRADES else "quotes"
        service = Service(driver.partition(",")[0], channels=channels)
        with service.running(given) as child:
            try:
                ear.listen(lambda: "connected" in ear.heard_s)
                service.counters(given)  # returns once it is ready
                yield Scene(driver, exchange, ear)
            except Exception as exc:
                exc.add_note(f"{service.name} logged at last:\n{child.last_words()}")
                raise


async def main(say: Callable[[str], None]) -> int:
    """Run it all; the blocking parts may block, nothing else is on this event loop.

    Args:
        say: Takes a line for people.

    Returns:
        The exit code.
    """
    description = machine(Cores.of_this_machine())
    pin(Cores.of_this_machine().others)
    repairs: list[Repair] = []
    wrong: list[str] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdbench-")))
        server = await stack.enter_async_context(open_embedded_server(folder / "redis.sock"))
        store = stack.enter_context(redis.Redis(unix_socket_path=str(server.path)))
        for driver in _DRIVERS:
            with _scene(driver, store, server.path, folder / driver) as scene:
                for _ in range(_ROUNDS):
                    for market in _MARKETS:
                        repairs.append(scene.outage(market))
                        say(_line(repairs[-1]))
                wrong += [f"{driver}: {reason}" for reason in scene.ear.wrong]
    say("\n" + _table(repairs) + "\n")
    content = {"machine": description, "repairs": [attrs.asdict(r) for r in repairs]}
    say(str(write(REPOSITORY / "bench-results", {**content, "wrong": wrong})))
    for reason in wrong:
        say(f"WRONG: {reason}")
    return 1 if wrong else 0


def _line(repair: Repair) -> str:
    return (
        f"{repair.driver:12} {repair.market:6} connected after {repair.connected_s:.2f} s, "
        f"repaired after {repair.repaired_s:.2f} s"
    )


def _table(repairs: list[Repair]) -> str:
    """Medians and spread of all rounds."""
    rows = [
        ("driver", "market", "repaired", "", "of it after", ""),
        ("", "", "after, s", "spread", "connecting, s", "spread"),
    ]
    for driver in _DRIVERS:
        for market in _MARKETS:
            these = [r for r in repairs if (r.driver, r.market) == (driver, market)]
            whole = [r.repaired_s for r in these]
            part = [r.repaired_s - r.connected_s for r in these]
            rows.append((driver, market, *_spread(whole), *_spread(part)))
    return aligned(rows)


def _spread(values: list[float]) -> tuple[str, str]:
    return f"{median(values):.2f}", f"{min(values):.2f} … {max(values):.2f}"
