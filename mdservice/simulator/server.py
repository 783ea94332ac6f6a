"""The simulator: connections, the market that feeds them, and the handle that tests hold."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import msgspec
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream, TaskGroup
from websockets.http11 import Request

from mdservice.clock import Clock, SystemClock
from mdservice.errors import ConfigurationError
from mdservice.simulator.account import Refusals, Silence
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.connection import Connection
from mdservice.simulator.control import Control
from mdservice.simulator.http import HttpAnswer, too_many_connections, wants_websocket
from mdservice.simulator.memory import MemoryByteStream, memory_stream_pair
from mdservice.simulator.paper_account import PaperAccount
from mdservice.simulator.record import QuoteRecord
from mdservice.simulator.rest import RestApi
from mdservice.simulator.session import Reply, Session
from mdservice.simulator.wire import SimQuote

__all__ = ["ReceivedMessage", "Simulator", "open_simulator"]


_FEED_PATH = "/v2/iex"
_GOING_AWAY = 1001
_FAREWELL_S = 0.5
_MASKED = ("key", "secret")


@attrs.frozen
class ReceivedMessage:
    """What a client sent.

    Attributes:
        connection: The connection's number.
        at_ns: When, UTC nanoseconds.
        message: Decoded, key and secret masked; None where it could not be decoded.
    """

    connection: int
    at_ns: int
    message: Mapping[str, Any] | None


class Simulator(Control):
    """An Alpaca on this machine; made by :func:`~mdservice.simulator.open_simulator`.

    What it can be made to do is in :class:`~mdservice.simulator.control.Control`. Its methods
    are called from the event loop that it runs on.
    """

    def __init__(self, config: SimulatorConfig, clock: Clock, tasks: TaskGroup) -> None:
        self.config = config
        self.host = ""
        self.port: int | None = None
        """The TCP port; None where it serves streams in memory alone."""
        self.sent: deque[SimQuote] = deque(maxlen=config.history_size)
        """Those that went to at least one connection."""
        self.received: deque[ReceivedMessage] = deque(maxlen=config.received_size)
        """The clients' messages."""
        self.symbol_limit = config.symbol_limit
        """Of the sessions that begin from now on; to be set."""
        self.quotes_made = 0
        """How many quotes the market has made."""
        self._clock = clock
        self._tasks = tasks
        self._account = config.account()
        self._refusals = Refusals()
        self._record = QuoteRecord(config.history_size)
        self._paper_account = PaperAccount(
            config.positions, self._record, trades_size=config.received_size, traded=self.notify
        )
        self._rest = RestApi(
            self._record,
            self._paper_account,
            self._account,
            config.rest_rules(),
            rate_limit=config.rest_rate_limit,
            requests_size=config.received_size,
        )
        self._market = config.market()
        self._connections: dict[int, Connection] = {}
        self._accepted = 0
        self._changed: anyio.Event | None = None
        self._by_quotes = sorted(
            (planned for planned in config.faults if planned.after_quotes is not None),
            key=lambda planned: planned.after_quotes or 0,
        )

    @property
    def url(self) -> str:
        """``ws://127.0.0.1:PORT/v2/iex``; any other path does as well."""
        host = self.host or "simulator"
        return f"ws://{f'[{host}]' if ':' in host else host}:{self.port or 80}{_FEED_PATH}"

    @property
    def rest_url(self) -> str:
        """``http://127.0.0.1:PORT``, for the data host and the trading host alike."""
        return f"http{self.url.removeprefix('ws').removesuffix(_FEED_PATH)}"

    @property
    def history(self) -> deque[SimQuote]:
        """Every quote of the market, also those that nobody was there to hear; as REST has it."""
        return self._record.quotes

    async def serve(self, stream: ByteStream) -> None:
        """Serve one client over this stream until it is gone."""
        self._accepted += 1
        connection = Connection(self._accepted, stream, self)
        self._connections[connection.number] = connection
        try:
            await connection.serve()
        finally:
            del self._connections[connection.number]
            if connection.session is not None:
                connection.session.end(anyio.current_time(), clean=connection.clean)
            self.notify()

    def connect(self) -> MemoryByteStream:
        """A client's end of a new connection in memory; the simulator serves the other."""
        ours, theirs = memory_stream_pair()
        self._tasks.start_soon(self.serve, ours)
        return theirs

    async def until(self, condition: Callable[[Simulator], bool]) -> None:
        """Wait until the condition holds; it is looked at on every change, without polling."""
        while not condition(self):
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()

    def send_quotes(
        self,
        quotes: Iterable[SimQuote | Mapping[str, Any]],
        *,
        frames: Sequence[int] | None = None,
    ) -> int:
        """Send exactly these quotes to every connection that subscribes to them.

        Args:
            quotes: In order; mappings have Alpaca's field names, of which ``S``, ``bp`` and
                ``ap`` are needed. A quote without a time is stamped now.
            frames: Quotes per frame, where they shall not all come in one.

        Returns:
            To how many connections something was sent.
        """
        exact = [
            quote if isinstance(quote, SimQuote) else SimQuote.from_wire(quote) for quote in quotes
        ]
        now_ns = self._clock.utc_ns()
        stamped = [
            quote if quote.ts_event_ns else _stamp(quote, now_ns + index)
            for index, quote in enumerate(exact)
        ]
        return self._publish(stamped, frames)

    # What its connections ask of it.

    def answer_http(self, request: Request, body: bytes) -> HttpAnswer | None:
        """Answer a plain HTTP request; None where an upgrade is asked for and possible."""
        if len(self._connections) > self.config.most_connections:
            return too_many_connections()
        if wants_websocket(request):
            return None
        answer = self._rest.answer(request, body, anyio.current_time(), self._clock.utc_ns())
        self.notify()
        return answer

    def refuse_upgrade_now(self) -> int | Silence | None:
        """The answer planned for this upgrade."""
        return self._refusals.take("upgrade")

    def open_session(self, number: int, request: Request) -> tuple[Session, Reply]:
        """Begin a session, with the login of the request's headers where it has one."""
        session = Session(
            number,
            request.path.partition("?")[0],
            account=self._account,
            refusals=self._refusals,
            rules=attrs.evolve(self.config.rules(), symbol_limit=self.symbol_limit),
        )
        key = request.headers.get("APCA-API-KEY-ID")
        secret = request.headers.get("APCA-API-SECRET-KEY")
        credentials = None if key is None and secret is None else (key or "", secret or "")
        return session, session.open(anyio.current_time(), credentials)

    def message_came(self, number: int, message: Mapping[str, Any] | None) -> None:
        """Keep the message, its secrets masked."""
        if message is not None:
            message = {name: "***" if name in _MASKED else value for name, value in message.items()}
        self.received.append(ReceivedMessage(number, self._clock.utc_ns(), message))

    def subscriptions_changed(self) -> None:
        """Follow the symbols that are subscribed to now.

        A connection that is lost changes nothing: the market goes on with its symbols until
        the next change, and what happens meanwhile is in :attr:`history`, as at a real
        exchange.
        """
        wanted = {
            symbol
            for connection in self._connections.values()
            if connection.session is not None
            for symbol in connection.session.subscriptions["quotes"]
        }
        self._market.follow(wanted, without=self.config.silent_symbols)

    def notify(self) -> None:
        """Wake those who wait for a change."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # Its tasks.

    async def run_market(self) -> None:
        """Make quotes and send them, for ever."""
        if not self.config.rate:
            return
        await self.until(lambda _: bool(self._market.symbols))
        started_s = anyio.current_time()
        while True:
            await anyio.sleep(self.config.slice_s)
            due = self._market.due(anyio.current_time() - started_s)
            quotes = self._market.take(due, self._clock.utc_ns())
            if quotes:
                size = self.config.quotes_per_frame
                self._publish(quotes, [size] * (len(quotes) // size))

    async def run_script(self) -> None:
        """Put the script's timed faults into force."""
        opened_s = anyio.current_time()
        timed = (planned for planned in self.config.faults if planned.after_s is not None)
        for planned in sorted(timed, key=lambda planned: planned.after_s or 0.0):
            await anyio.sleep_until(opened_s + (planned.after_s or 0.0))
            self.inject(planned.fault)

    async def run_trader(self) -> None:
        """Make seeded trades at bid and ask, for ever."""
        if self.config.trade_every_s is None:
            return
        trader = self.config.trader()
        while True:
            await anyio.sleep(self.config.trade_every_s)
            symbol, qty = trader.next(self._paper_account.book)
            self.trade(symbol, qty, self._paper_account.fill_price(symbol, qty))

    async def say_farewell(self) -> None:
        """Close what is open, within half a second."""
        self.drop("close", code=_GOING_AWAY)
        with anyio.move_on_after(_FAREWELL_S):
            await self.until(lambda simulator: not simulator.connections)

    def _publish(self, quotes: list[SimQuote], frames: Sequence[int] | None) -> int:
        self._record.add(quotes)
        self.quotes_made += len(quotes)
        reached = 0
        sent: dict[int, SimQuote] = {}
        for connection in list(self._connections.values()):
            out = connection.send_quotes(quotes, frames)
            reached += bool(out)
            sent.update((id(quote), quote) for quote in out)
        self.sent.extend(sent.values())
        while self._by_quotes and (self._by_quotes[0].after_quotes or 0) <= self.quotes_made:
            self.inject(self._by_quotes.pop(0).fault)
        self.notify()
        return reached


def _stamp(quote: SimQuote, now_ns: int) -> SimQuote:
    return msgspec.structs.replace(quote, ts_event_ns=now_ns)


# Runs a simulator: its port and its tasks.


@asynccontextmanager
async def open_simulator(
    config: SimulatorConfig | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = 0,
    clock: Clock | None = None,
) -> AsyncGenerator[Simulator, None]:
    """Run a simulator for the length of the block, on trio or asyncio.

    Args:
        config: What it does; None for the defaults.
        host: Where it listens.
        port: 0 for a free one (see :attr:`Simulator.port`); None for no socket at all, only
            :meth:`Simulator.connect`, as trio's virtual clock needs it.
        clock: Where quotes get their time; None for the machine's.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    listener = None if port is None else await _listen(host, port)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        simulator = Simulator(config or SimulatorConfig(), clock or SystemClock(), tasks)
        if listener is not None:
            simulator.host = host
            simulator.port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no Django
            tasks.start_soon(_accept, listener, simulator, tasks)
        tasks.start_soon(simulator.run_market)
        tasks.start_soon(simulator.run_script)
        tasks.start_soon(simulator.run_trader)
        try:
            yield simulator
        except Exception as exc:  # noqa: BLE001 - raised again below, out of the task group
            failure = exc
        else:
            await simulator.say_farewell()
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _listen(host: str, port: int) -> Listener[SocketStream]:
    try:
        return await anyio.create_tcp_listener(local_host=host, local_port=port)
    except (OSError, OverflowError) as exc:
        raise ConfigurationError(
            f"the simulator cannot listen on {host}:{port} ({exc}): choose another port, "
            "or 0 for a free one"
        ) from exc


async def _accept(listener: Listener[SocketStream], simulator: Simulator, tasks: TaskGroup) -> None:
    async with listener:
        await listener.serve(simulator.serve, tasks)
