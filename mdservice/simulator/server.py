"""The simulator: its connections, its markets, and the object by which tests control it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import attrs
import msgspec
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream, TaskGroup
from websockets.http11 import Request

from mdservice.clock import Clock, SystemClock
from mdservice.runtime.network import cannot_listen
from mdservice.runtime.task_groups import block_tasks
from mdservice.simulator.assets import QUOTES as PRICED
from mdservice.simulator.assets import asset_of
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.connection import Connection
from mdservice.simulator.faults import (
    CancelTrade,
    CorrectTrade,
    CutRest,
    DataFault,
    DataFaults,
    Drop,
    Fault,
    Freeze,
    GarbleRest,
    Halt,
    Mute,
    Refuse,
    RefuseRest,
    SendError,
    SlowRest,
)
from mdservice.simulator.feeds import (
    FEEDS,
    OPTIONS,
    STOCKS,
    TRADING,
    SimFeed,
    StreamName,
    feed_at,
)
from mdservice.simulator.http import (
    RECENT_SIP,
    RECENT_SIP_MESSAGE,
    HttpAnswer,
    too_many_connections,
    wants_websocket,
)
from mdservice.simulator.kinds import Batch, SimKind, SimMarket, Source
from mdservice.simulator.market import MarketRecord
from mdservice.simulator.markets import MARKETS
from mdservice.simulator.memory import MemoryByteStream, memory_stream_pair
from mdservice.simulator.orders import Order, Orders, Update
from mdservice.simulator.paper_account import Activity, Balances, PaperAccount, Trade
from mdservice.simulator.positions import Holding
from mdservice.simulator.rest import RestApi, RestRequest
from mdservice.simulator.rest_trading import TradingApi
from mdservice.simulator.session import SILENCE, Refusals, Reply, Session, Silence, When
from mdservice.simulator.stocks import QUOTES, StockSource
from mdservice.simulator.trade_updates import TradingSession
from mdservice.simulator.wire import (
    Encoding,
    Number,
    OutFrame,
    S,
    SimQuote,
    error_message,
    to_decimal,
)

__all__ = ["ConnectionInfo", "ReceivedMessage", "Simulator", "open_simulator"]

_FEED_PATH = "/v2/iex"
_WITH_HOURS = (STOCKS, OPTIONS)
_GOING_AWAY = 1001
_FAREWELL_S = 0.5
_MASKED = ("key", "secret", "key_id", "secret_key")


@asynccontextmanager
async def open_simulator(
    config: SimulatorConfig | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = 0,
    clock: Clock | None = None,
    markets: Sequence[SimMarket] = MARKETS,
) -> AsyncGenerator[Simulator, None]:
    """Run a simulator for the length of the block, on trio or asyncio.

    Args:
        config: What it does; None for the defaults.
        host: Where it listens.
        port: 0 for a free one (see :attr:`Simulator.port`); None for no socket at all, only
            :meth:`Simulator.connect`, as trio's virtual clock needs it.
        clock: Where records get their time; None for the machine's.
        markets: Which markets there are.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    listener = None if port is None else await _listen(host, port)
    async with block_tasks() as tasks:
        simulator = Simulator(config or SimulatorConfig(), clock or SystemClock(), tasks, markets)
        if listener is not None:
            simulator.host = host
            simulator.port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no Django
            tasks.start_soon(_accept, listener, simulator, tasks)
        tasks.start_soon(simulator.run_script)
        tasks.start_soon(simulator.run_trader)
        tasks.start_soon(simulator.run_fills)
        yield simulator
        await simulator.say_farewell()


async def _listen(host: str, port: int) -> Listener[SocketStream]:
    try:
        return await anyio.create_tcp_listener(  # noqa: TID251 - only with a port
            local_host=host, local_port=port
        )
    except (OSError, OverflowError) as exc:
        raise cannot_listen("the simulator", f"{host}:{port}", exc) from exc


async def _accept(listener: Listener[SocketStream], simulator: Simulator, tasks: TaskGroup) -> None:
    async with listener:
        await listener.serve(simulator.serve, tasks)


class Simulator:
    """An Alpaca on this machine; made by :func:`~mdservice.simulator.open_simulator`.

    Its methods are called from the event loop that it runs on. Where one takes ``connection``,
    it means that connection's number, and None all that are open; where one takes ``feed``,
    only the connections of that stream. Without either, those of market data are meant:
    the trading stream is only meant where ``feed="trading"`` or a number names it.
    """

    def __init__(
        self,
        config: SimulatorConfig,
        clock: Clock,
        tasks: TaskGroup,
        markets: Sequence[SimMarket] = MARKETS,
    ) -> None:
        self.config = config
        self.markets = tuple(markets)
        self.kinds = tuple(kind for market in markets for kind in market.kinds)
        self.host = ""
        self.port: int | None = None
        """The TCP port; None where it serves streams in memory alone."""
        self.received: deque[ReceivedMessage] = deque(maxlen=config.received_size)
        """The clients' messages."""
        self.symbol_limit = config.symbol_limit
        """Of the sessions that begin from now on; to be set."""
        self.made: dict[SimKind[Any], int] = dict.fromkeys(self.kinds, 0)
        """How many records of each kind the market has made."""
        self._clock = clock
        self._tasks = tasks
        self._account = config.account()
        self._refusals = Refusals()
        self._records: dict[SimKind[Any], MarketRecord[Any]] = {
            kind: kind.record(config.history_size) for kind in self.kinds
        }
        self._sent: dict[SimKind[Any], deque[Any]] = {
            kind: deque(maxlen=config.history_size) for kind in self.kinds
        }
        self._sources = {market: market.source(config, self._records) for market in self.markets}
        self._running: set[SimMarket] = set()
        self._paper_account = PaperAccount(
            config.positions,
            self._records,
            cash=config.cash,
            sale_fee=config.sale_fee,
            coin_fee=config.coin_fee,
            trades_size=config.received_size,
            activities_size=config.history_size,
            traded=self.notify,
        )
        self._orders = Orders(
            self._paper_account,
            fills_per_order=config.fills_per_order,
            waits=config.fill_every_s is not None,
            size=config.received_size,
            updated=self._send_update,
        )
        self.trade_updates: deque[Update] = deque(maxlen=config.received_size)
        """The newest updates of orders, the oldest first, sent to a client or not."""
        rules = config.rest_rules()
        self._rest = RestApi(
            {
                path: route
                for market in self.markets
                for path, route in market.routes(self._records, rules).items()
            },
            TradingApi(self._paper_account, self._orders),
            self._account,
            rate_limit=config.rest_rate_limit,
            requests_size=config.received_size,
        )
        self._connections: dict[int, Connection] = {}
        self._accepted = 0
        self._changed: anyio.Event | None = None
        self._by_quotes = sorted(
            (planned for planned in config.faults if planned.after_quotes is not None),
            key=lambda planned: planned.after_quotes or 0,
        )

    @property
    def url(self) -> str:
        """``ws://127.0.0.1:PORT/v2/iex``, the stream of stocks.

        Any path does as well that is not one of the other streams.
        """
        host = self.host or "simulator"
        return f"ws://{f'[{host}]' if ':' in host else host}:{self.port or 80}{_FEED_PATH}"

    def stream_url(self, feed: StreamName) -> str:
        """The URL of a stream: ``ws://127.0.0.1:PORT/v1beta3/crypto/us`` of ``crypto``."""
        (path,) = (each.paths[0] for each in (*FEEDS, TRADING) if each.name == feed)
        return self.url.removesuffix(_FEED_PATH) + path

    @property
    def rest_url(self) -> str:
        """``http://127.0.0.1:PORT``, for the data host and the trading host alike."""
        return f"http{self.url.removeprefix('ws').removesuffix(_FEED_PATH)}"

    @property
    def history(self) -> deque[SimQuote]:
        """Every quote of the market, also those without a connected client, as in REST."""
        return self.history_of(QUOTES)

    def history_of(self, kind: SimKind[S]) -> deque[S]:
        """The same for the records of any kind."""
        return self._records[kind].records

    @property
    def sent(self) -> deque[SimQuote]:
        """The quotes that were sent to at least one connection."""
        return self.sent_of(QUOTES)

    def sent_of(self, kind: SimKind[S]) -> deque[S]:
        """The same for the records of any kind."""
        return self._sent[kind]

    @property
    def quotes_made(self) -> int:
        """How many quotes the market has made."""
        return self.made[QUOTES]

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
        """Wait until the condition holds. Every change checks it again, without polling."""
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
        return self.send_records(QUOTES, exact, frames=frames)

    def send_records(
        self, kind: SimKind[S], records: Sequence[S], *, frames: Sequence[int] | None = None
    ) -> int:
        """Send exactly these records to every connection that subscribes to them.

        Args:
            kind: Their kind.
            records: In order. A record without a time is stamped now.
            frames: Records per frame, where they shall not all come in one.

        Returns:
            To how many connections something was sent.
        """
        now_ns = self._clock.utc_ns()
        stamped = [
            record if record.ts_event_ns else _stamp(record, now_ns + index)
            for index, record in enumerate(records)
        ]
        return self._publish(kind, stamped, frames)

    # What a test, or a script of faults, makes it do. No method waits.

    @property
    def connections(self) -> tuple[ConnectionInfo, ...]:
        """Those to streams of market data that were upgraded and whose line is still there."""
        return tuple(one for one in self._infos() if one.feed != TRADING.name)

    @property
    def trading_connections(self) -> tuple[ConnectionInfo, ...]:
        """Those to the stream of trade updates; ``subscriptions`` has the ``streams``."""
        return tuple(one for one in self._infos() if one.feed == TRADING.name)

    def _infos(self) -> Iterator[ConnectionInfo]:
        return (
            ConnectionInfo(
                number=connection.number,
                feed=connection.session.feed.name,
                endpoint=connection.session.endpoint,
                encoding=connection.encoding,
                authenticated=connection.session.authenticated,
                subscriptions=connection.session.subscriptions,
                quotes_sent=connection.sent[QUOTES],
                pending_bytes=connection.pending_bytes,
            )
            for connection in tuple(self._connections.values())  # a test's thread may ask
            if connection.session is not None
        )

    def send_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        connection: int | None = None,
        feed: StreamName | None = None,
    ) -> None:
        """Send any messages in one frame, also to clients that have not subscribed to them.

        A whole number under ``t`` is sent as a timestamp.
        """
        for chosen in self._chosen(connection, feed):
            chosen.send_messages(messages)

    def send_raw(
        self,
        payload: bytes | str,
        *,
        connection: int | None = None,
        feed: StreamName | None = None,
    ) -> None:
        """Send one frame with this payload, text for ``str``, binary for ``bytes``."""
        text = isinstance(payload, str)
        frame = OutFrame(payload.encode() if isinstance(payload, str) else payload, text)
        for chosen in self._chosen(connection, feed):
            chosen.send_frame(frame)

    def send_error(
        self, code: int, *, connection: int | None = None, feed: StreamName | None = None
    ) -> None:
        """Send an error message that answers no request."""
        self.send_messages([error_message(code)], connection=connection, feed=feed)

    def drop(
        self,
        how: Literal["reset", "half-close", "close"] = "reset",
        *,
        code: int = 1001,
        connection: int | None = None,
        feed: StreamName | None = None,
    ) -> None:
        """End connections; see :class:`~mdservice.simulator.faults.Drop`."""
        for chosen in self._chosen(connection, feed):
            if how == "reset":
                chosen.reset()
            else:
                chosen.hang_up(code if how == "close" else None)

    def refuse_next(
        self, code: int, *, when: When = "auth", times: int = 1, feed: StreamName | None = None
    ) -> None:
        """Answer the next messages of one kind with an error.

        ``connect`` answers instead of the greeting, ``auth``, ``subscribe`` and ``unsubscribe``
        instead of the usual answer to such a message.
        """
        self._refusals.plan(when, code, times, feed)

    def refuse_upgrade(
        self, status: int, *, times: int = 1, feed: StreamName | None = None
    ) -> None:
        """Answer the next upgrade requests with this HTTP status."""
        self._refusals.plan("upgrade", status, times, feed)

    def stall(
        self, when: When = "upgrade", *, times: int = 1, feed: StreamName | None = None
    ) -> None:
        """Accept the next connections, but stop answering at some step.

        ``upgrade`` stops after the TCP connection, ``connect`` after the upgrade, ``auth`` and
        ``subscribe`` after such a message.
        """
        self._refusals.plan(when, SILENCE, times, feed)

    def mute(
        self,
        for_s: float = float("inf"),
        *,
        connection: int | None = None,
        feed: StreamName | None = None,
    ) -> None:
        """Data stops on open connections; they stay open and answer."""
        self._add(Mute(for_s), connection, feed)

    def freeze(
        self,
        for_s: float = float("inf"),
        *,
        connection: int | None = None,
        feed: StreamName | None = None,
    ) -> None:
        """Nothing at all is sent on open connections, not even a pong."""
        self._add(Freeze(for_s), connection, feed)

    def halt(self, symbol: str, for_s: float = float("inf")) -> None:
        """Halt trading in a stock, for some seconds or until :meth:`resume_trading`.

        Its quotes continue; the market makes no trades of it during the halt.
        """
        self._publish_all(self._stocks.halt(symbol, self._clock.utc_ns(), for_s))
        if for_s < float("inf"):
            self._tasks.start_soon(self._end_halts_after, for_s)

    def resume_trading(self, symbol: str) -> None:
        """End a stock's halt, if it is halted."""
        self._publish_all(self._stocks.end_halts(self._clock.utc_ns(), symbol))

    async def _end_halts_after(self, for_s: float) -> None:
        await anyio.sleep(for_s)
        self._publish_all(self._stocks.end_halts(self._clock.utc_ns()))

    def correct_trade(self, symbol: str) -> None:
        """Correct the latest trade of a stock; nothing happens where there is none."""
        self._change_trade(symbol, "correct")

    def cancel_trade(self, symbol: str) -> None:
        """Cancel the latest trade of a stock; nothing happens where there is none."""
        self._change_trade(symbol, "cancel")

    def _change_trade(self, symbol: str, what: Literal["correct", "cancel"]) -> None:
        self._publish_all(self._stocks.change_trade(symbol, what, self._clock.utc_ns()))

    @property
    def _stocks(self) -> StockSource:
        for source in self._sources.values():
            if isinstance(source, StockSource):
                return source
        raise ValueError("this simulation has no market of stocks")

    def trade(self, symbol: str, qty: Number, price: Number | None = None) -> Trade:
        """Buy shares, or sell them where ``qty`` is below 0; the position changes at once.

        Args:
            symbol: Any; the market need not have quotes of it.
            qty: Shares, not 0. What goes through 0 turns the position, which takes two orders
                over REST.
            price: Dollars a share; None for the middle of the latest quote, or the start price
                where there is no quote yet.

        Raises:
            InvalidSymbol: There is no such symbol.
            ValueError: ``qty`` is 0, the price is below 0, one of them is no number, or the
                position would be too large.
        """
        name = asset_of(symbol).symbol
        dollars = self._paper_account.price(name) if price is None else to_decimal(price)
        return self._orders.trade(name, to_decimal(qty), dollars, self._clock.utc_ns())

    def fill_order(
        self, order_id: str, qty: Number | None = None, price: Number | None = None
    ) -> None:
        """Fill an open order, or a part of it, whatever its limit.

        Args:
            order_id: The order's id.
            qty: How much; None for what is left.
            price: Dollars a share; None for the market's.

        Raises:
            RefusedRequest: There is no such order.
            ValueError: It is not open, there is less of it left, the position would be too
                large, or a price is given for one with legs.
        """
        order = self._orders.get(order_id)
        self._orders.fill(
            order,
            order.left if qty is None else to_decimal(qty),
            None if price is None else to_decimal(price),
            self._clock.utc_ns(),
        )

    def reject_orders(self, times: int = 1) -> None:
        """Accept the next orders over REST, and then reject them on the stream."""
        self._orders.reject_next(times)

    def move_cash(
        self,
        amount: Number,
        activity_type: str = "CSD",
        *,
        symbol: str | None = None,
        description: str = "",
    ) -> None:
        """Pay dollars into the account, or take them out where ``amount`` is below 0.

        Args:
            amount: Dollars.
            activity_type: Alpaca's name: ``CSD`` deposit, ``CSW`` withdrawal, ``DIV`` dividend,
                ``INT`` interest, ``FEE``.
            symbol: What it is for.
            description: Any text.

        Raises:
            InvalidSymbol: There is no such symbol.
            ValueError: The amount is no number, or too large.
        """
        self._paper_account.move_cash(
            amount, activity_type, self._clock.utc_ns(), symbol=symbol, description=description
        )

    def end_day(self) -> None:
        """End the account's day: orders for the day expire, and its prices become the last day's.

        ``lastday_price`` and ``last_equity`` are those of now, and average entry prices become
        those of Alpaca's overnight rule. Activities of today's date are those of yesterday then, so
        that a day can end at any hour. :attr:`market_open` is not changed.
        """
        now_ns = self._clock.utc_ns()
        self._orders.expire_day(now_ns)
        self._paper_account.end_day()
        self._paper_account.date_back(now_ns)

    def send_trade_update(self, update: Update) -> None:
        """Send any trade update to the listening clients; the account does not change."""
        self._send_update(update)

    def _send_update(self, update: Update) -> None:
        self.trade_updates.append(update)
        for connection in list(self._connections.values()):
            connection.send_update(update)
        self.notify()

    @property
    def orders(self) -> tuple[Order, ...]:
        """The newest orders, the oldest first, open or not."""
        return tuple(self._orders)

    @property
    def activities(self) -> Sequence[Activity]:
        """The account's fills, fees and movements of cash, the oldest first."""
        return self._paper_account.activities

    @property
    def balances(self) -> Balances:
        """The account's cash, what its positions are worth, and its last day's equity."""
        return self._paper_account.balances()

    @property
    def positions(self) -> tuple[Holding, ...]:
        """The open ones, in the order in which they were opened."""
        return tuple(self._paper_account.book)

    @property
    def trades(self) -> Sequence[Trade]:
        """The newest orders of any client, the oldest first."""
        return self._paper_account.trades

    @property
    def market_open(self) -> bool:
        """The answer of ``/v2/clock``, which may be set.

        While it is False, the markets of stocks and options make no records by themselves;
        crypto and news go on, and so does what a test sends.
        """
        return self._rest.market_open

    @market_open.setter
    def market_open(self, is_open: bool) -> None:
        self._rest.market_open = is_open

    def set_market_hours(self, next_open: str, next_close: str) -> None:
        """Answer ``/v2/clock`` with these times instead of the usual hours.

        Args:
            next_open: RFC 3339, ``2026-11-27T09:30:00-05:00``.
            next_close: Likewise.
        """
        self._rest.market_hours = next_open, next_close

    @property
    def rest_requests(self) -> Sequence[RestRequest]:
        """The newest REST requests, the oldest first, answered or refused."""
        return self._rest.requests

    def refuse_rest(
        self,
        status: int = 403,
        code: int = RECENT_SIP,
        message: str = RECENT_SIP_MESSAGE,
        *,
        path: str | None = None,
        times: int = 1,
        symbol: str | None = None,
    ) -> None:
        """Answer the next REST requests with this status, Alpaca's code and text.

        Args:
            status: HTTP status.
            code: Alpaca's; 0 for none.
            message: Alpaca's.
            path: Of the requests meant, ``/v2/stocks/quotes`` for the history alone; None any.
            times: How many of them.
            symbol: Refuse only requests that name this symbol.

        Raises:
            ValueError: There is no such HTTP status.
        """
        self._rest.faults.plan(RefuseRest(status, code, message, path, times, symbol))

    def slow_rest(self, delay_s: float, *, path: str | None = None, times: int = 1) -> None:
        """Delay the next REST answers by this many seconds; ``inf`` never answers."""
        self._rest.faults.plan(SlowRest(delay_s, path, times))

    def cut_rest(self, *, path: str | None = None, times: int = 1, stalls: bool = False) -> None:
        """End the connection in the middle of the next REST answers, or stop sending there."""
        self._rest.faults.plan(CutRest(path, times, stalls))

    def garble_rest(self, *, path: str | None = None, times: int = 1) -> None:
        """Answer the next REST requests with JSON that cannot be read."""
        self._rest.faults.plan(GarbleRest(path, times))

    def resume(self) -> None:
        """End every active data fault, and cancel the planned refusals.

        Delayed REST answers are sent now.
        """
        self._refusals.clear()
        self._rest.faults.clear()
        for connection in self._connections.values():
            connection.faults = DataFaults()
            connection.poke()

    def inject(
        self, fault: Fault, *, connection: int | None = None, feed: StreamName | None = None
    ) -> None:
        """Start a fault of ``mdservice.simulator`` now."""
        match fault:
            case Drop(how, code):
                self.drop(how, code=code, connection=connection, feed=feed)
            case Refuse(answer, when, times):
                self._refusals.plan(when, answer, times, feed)
            case SendError(code):
                self.send_error(code, connection=connection, feed=feed)
            case Halt(symbol, for_s):
                self.halt(symbol, for_s)
            case CorrectTrade(symbol):
                self._change_trade(symbol, "correct")
            case CancelTrade(symbol):
                self._change_trade(symbol, "cancel")
            case RefuseRest() | SlowRest() | CutRest() | GarbleRest():
                self._rest.faults.plan(fault)
            case _:
                self._add(fault, connection, feed)

    def _add(self, fault: DataFault, number: int | None, feed: StreamName | None) -> None:
        for chosen in self._chosen(number, feed):
            chosen.faults.add(fault, anyio.current_time())
            chosen.poke()

    def _chosen(self, number: int | None, feed: StreamName | None) -> Iterator[Connection]:
        for connection in list(self._connections.values()):
            session = connection.session
            if session is None or number not in {None, connection.number}:
                continue
            name = session.feed.name
            if name == feed or (feed is None and (number is not None or name != TRADING.name)):
                yield connection

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

    def refuse_upgrade_now(self, path: str) -> int | Silence | None:
        """The answer planned for an upgrade of this path."""
        return self._refusals.take("upgrade", feed_at(path.partition("?")[0]).name)

    def open_session(
        self, number: int, request: Request, encoding: Encoding
    ) -> tuple[Session | TradingSession, Reply]:
        """Begin a session, with the login of the request's headers where it has one."""
        path = request.path.partition("?")[0]
        if feed_at(path) is TRADING:
            trading = TradingSession(
                path,
                account=self._account,
                refusals=self._refusals,
                as_text=self.config.text_updates,
            )
            return trading, trading.open()
        session = Session(
            number,
            path,
            account=self._account,
            refusals=self._refusals,
            rules=attrs.evolve(self.config.rules(), symbol_limit=self.symbol_limit),
            encoding=encoding,
        )
        key = request.headers.get("APCA-API-KEY-ID")
        secret = request.headers.get("APCA-API-SECRET-KEY")
        credentials = None if key is None and secret is None else (key or "", secret or "")
        return session, session.open(anyio.current_time(), credentials)

    def message_came(self, number: int, message: Mapping[str, Any] | None) -> None:
        """Keep the message, its secrets masked."""
        if message is not None:
            message = _mask(message)
        self.received.append(ReceivedMessage(number, self._clock.utc_ns(), message))

    def subscriptions_changed(self, feed: SimFeed) -> None:
        """Follow the symbols of this stream that are subscribed to now.

        A connection that is lost changes nothing: the market keeps making its symbols until
        the next change, and what happens meanwhile is in :attr:`history`, as at a real
        exchange.
        """
        sessions = [
            connection.session
            for connection in self._connections.values()
            if connection.session is not None and connection.session.feed is feed
        ]
        for market, source in self._sources.items():
            if market.feed is not feed or source is None:
                continue
            wanted: dict[str, set[str]] = {kind.channel: set() for kind in market.kinds}
            for session in sessions:
                subscribed = session.subscriptions
                for channel, symbols in wanted.items():
                    symbols.update(subscribed[channel])
            source.follow(wanted)
            if source.symbols and market not in self._running:
                self._running.add(market)
                self._tasks.start_soon(self._run_market, market, source)

    def first_records(self, kind: SimKind[S], symbols: AbstractSet[str]) -> Sequence[S]:
        """The records that a subscription to these symbols brings at once."""
        return kind.first(self._records[kind], symbols) if kind.first else ()

    def notify(self) -> None:
        """Wake those who wait for a change."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # Its tasks.

    async def _run_market(self, market: SimMarket, source: Source) -> None:
        """Make a market's records and send them, for ever; none while its exchanges are closed."""
        started_s = anyio.current_time()
        while True:
            await anyio.sleep(self.config.slice_s)
            if market.feed in _WITH_HOURS and not self.market_open:
                continue
            elapsed_s = anyio.current_time() - started_s
            self._publish_all(source.make(elapsed_s, self._clock.utc_ns()))

    async def run_script(self) -> None:
        """Start the script's faults at their times."""
        opened_s = anyio.current_time()
        timed = (planned for planned in self.config.faults if planned.after_s is not None)
        for planned in sorted(timed, key=lambda planned: planned.after_s or 0.0):
            await anyio.sleep_until(opened_s + (planned.after_s or 0.0))
            self.inject(planned.fault, feed=planned.feed)

    async def run_trader(self) -> None:
        """Make seeded trades at bid and ask, for ever."""
        if self.config.trade_every_s is None:
            return
        trader = self.config.trader()
        while True:
            await anyio.sleep(self.config.trade_every_s)
            if self._orders.configuration.suspend_trade:
                continue
            symbol, qty = trader.next(self._paper_account.book)
            self.trade(symbol, qty, self._paper_account.fill_price(symbol, qty))

    async def run_fills(self) -> None:
        """Fill the next part of every order that the market fills, for ever."""
        if self.config.fill_every_s is None:
            return
        while True:
            await anyio.sleep(self.config.fill_every_s)
            self._orders.fill_next(self._clock.utc_ns())

    async def say_farewell(self) -> None:
        """Close what is open, within half a second."""
        self.drop("close", code=_GOING_AWAY)
        self.drop("close", code=_GOING_AWAY, feed=TRADING.name)
        with anyio.move_on_after(_FAREWELL_S):
            await self.until(lambda _: not any(self._infos()))

    def _publish_all(self, batches: Iterable[Batch]) -> None:
        size = self.config.quotes_per_frame
        for kind, records in batches:
            self._publish(kind, records, [size] * (len(records) // size))

    def _publish(self, kind: SimKind[S], records: Sequence[S], frames: Sequence[int] | None) -> int:
        if kind.keep is None:
            self._records[kind].add(records)
        else:
            kind.keep(self._records, records)
        self.made[kind] += len(records)
        reached = 0
        sent: dict[int, S] = {}
        for connection in list(self._connections.values()):
            out = connection.send_records(kind, records, frames)
            reached += bool(out)
            sent.update((id(record), record) for record in out)
        self._sent[kind].extend(sent.values())
        if kind in PRICED.values():
            self._orders.match((record.symbol for record in records), self._clock.utc_ns())
        while self._by_quotes and (self._by_quotes[0].after_quotes or 0) <= self.quotes_made:
            planned = self._by_quotes.pop(0)
            self.inject(planned.fault, feed=planned.feed)
        self.notify()
        return reached


@attrs.frozen
class ConnectionInfo:
    """One open websocket connection at one moment.

    Attributes:
        number: Counts the connections, from 1.
        feed: ``stocks``, ``crypto``, ``options``, ``news`` or ``trading``.
        endpoint: The path that it asked for, ``/v2/iex``.
        encoding: How its frames are encoded.
        authenticated: It has logged in.
        subscriptions: The symbols of each channel.
        quotes_sent: How many quotes of stocks it was sent.
        pending_bytes: What waits in its send buffer.
    """

    number: int
    feed: StreamName
    endpoint: str
    encoding: Encoding
    authenticated: bool
    subscriptions: Mapping[str, tuple[str, ...]]
    quotes_sent: int
    pending_bytes: int


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


def _mask(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: "***" if name in _MASKED else _mask(value) if isinstance(value, dict) else value
        for name, value in message.items()
    }


def _stamp(record: S, now_ns: int) -> S:
    stamped: S = msgspec.structs.replace(record, ts_event_ns=now_ns)  # type: ignore[type-var]
    return stamped
