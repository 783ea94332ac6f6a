"""What a test, or a script of faults, can make the simulator do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import anyio
import attrs

from mdservice.clock import Clock
from mdservice.simulator.account import SILENCE, Refusals, When
from mdservice.simulator.connection import Connection
from mdservice.simulator.faults import (
    DataFault,
    DataFaults,
    Drop,
    Fault,
    Freeze,
    Mute,
    Refuse,
    SendError,
)
from mdservice.simulator.paper_account import PaperAccount, Trade
from mdservice.simulator.positions import Holding
from mdservice.simulator.rest import (
    CutRest,
    GarbleRest,
    RefuseRest,
    RestApi,
    RestRequest,
    SlowRest,
)
from mdservice.simulator.wire import Encoding, Number, OutFrame, error_message

__all__ = ["ConnectionInfo", "Control"]


@attrs.frozen
class ConnectionInfo:
    """One open websocket connection at one moment.

    Attributes:
        number: Counts the connections, from 1.
        endpoint: The path that it asked for, ``/v2/iex``.
        encoding: How its frames are encoded.
        authenticated: It has logged in.
        subscriptions: The symbols of each channel.
        quotes_sent: How many quotes it was sent.
        pending_bytes: What waits in its send buffer.
    """

    number: int
    endpoint: str
    encoding: Encoding
    authenticated: bool
    subscriptions: Mapping[str, tuple[str, ...]]
    quotes_sent: int
    pending_bytes: int


class Control:
    """The faults of a running simulator, and its trades. No method waits.

    Where a method takes ``connection``, it means that connection's number, and None all that
    are open.
    """

    _clock: Clock
    _connections: dict[int, Connection]
    _paper_account: PaperAccount
    _refusals: Refusals
    _rest: RestApi

    @property
    def connections(self) -> tuple[ConnectionInfo, ...]:
        """Those whose upgrade was accepted and whose line is still there."""
        return tuple(
            ConnectionInfo(
                number=connection.number,
                endpoint=connection.session.endpoint,
                encoding=connection.encoding,
                authenticated=connection.session.authenticated,
                subscriptions=connection.session.subscriptions,
                quotes_sent=connection.quotes_sent,
                pending_bytes=connection.pending_bytes,
            )
            for connection in self._connections.values()
            if connection.session is not None
        )

    def send_messages(
        self, messages: Sequence[Mapping[str, Any]], *, connection: int | None = None
    ) -> None:
        """Send any messages in one frame, subscribed to or not.

        A whole number under ``t`` is sent as a timestamp.
        """
        for chosen in self._chosen(connection):
            chosen.send_messages(messages)

    def send_raw(self, payload: bytes | str, *, connection: int | None = None) -> None:
        """Send one frame with this payload, text for ``str``, binary for ``bytes``."""
        text = isinstance(payload, str)
        frame = OutFrame(payload.encode() if isinstance(payload, str) else payload, text)
        for chosen in self._chosen(connection):
            chosen.send_frame(frame)

    def send_error(self, code: int, *, connection: int | None = None) -> None:
        """Send an error message, unasked."""
        self.send_messages([error_message(code)], connection=connection)

    def drop(
        self,
        how: Literal["reset", "half-close", "close"] = "reset",
        *,
        code: int = 1001,
        connection: int | None = None,
    ) -> None:
        """End connections; see :class:`~mdservice.simulator.faults.Drop`."""
        for chosen in self._chosen(connection):
            if how == "reset":
                chosen.reset()
            else:
                chosen.hang_up(code if how == "close" else None)

    def refuse_next(self, code: int, *, when: When = "auth", times: int = 1) -> None:
        """Answer the next of this moment with an error.

        ``connect`` in the place of the greeting, ``auth``, ``subscribe`` or ``unsubscribe``.
        """
        self._refusals.plan(when, code, times)

    def refuse_upgrade(self, status: int, *, times: int = 1) -> None:
        """Answer the next upgrade requests with this HTTP status."""
        self._refusals.plan("upgrade", status, times)

    def stall(self, when: When = "upgrade", *, times: int = 1) -> None:
        """Accept, and from this moment on never answer.

        ``upgrade`` after the TCP connection, ``connect`` after the upgrade, ``auth`` or
        ``subscribe`` after such a message.
        """
        self._refusals.plan(when, SILENCE, times)

    def mute(self, for_s: float = float("inf"), *, connection: int | None = None) -> None:
        """Data stops on open connections; they stay open and answer."""
        self._add(Mute(for_s), connection)

    def freeze(self, for_s: float = float("inf"), *, connection: int | None = None) -> None:
        """Nothing at all is sent on open connections, not even a pong."""
        self._add(Freeze(for_s), connection)

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
        return self._paper_account.trade(symbol, qty, price, self._clock.utc_ns())

    @property
    def positions(self) -> tuple[Holding, ...]:
        """The open ones, in the order in which they were opened."""
        return tuple(self._paper_account.book)

    @property
    def trades(self) -> Sequence[Trade]:
        """The newest ones, the oldest first, whoever made them."""
        return self._paper_account.trades

    @property
    def market_open(self) -> bool:
        """What ``/v2/clock`` tells; to be set. Quotes are made all the same."""
        return self._rest.market_open

    @market_open.setter
    def market_open(self, is_open: bool) -> None:
        self._rest.market_open = is_open

    @property
    def rest_requests(self) -> Sequence[RestRequest]:
        """The newest REST requests, the oldest first, answered or refused."""
        return self._rest.requests

    def refuse_rest(
        self,
        status: int = 403,
        code: int = 42210000,
        message: str = "subscription does not permit querying recent SIP data",
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
        """Answer the next REST requests so many seconds later, with ``inf`` never."""
        self._rest.faults.plan(SlowRest(delay_s, path, times))

    def cut_rest(self, *, path: str | None = None, times: int = 1, stalls: bool = False) -> None:
        """End the connection in the middle of the next REST answers, or let them stall there."""
        self._rest.faults.plan(CutRest(path, times, stalls))

    def garble_rest(self, *, path: str | None = None, times: int = 1) -> None:
        """Answer the next REST requests with JSON that cannot be read."""
        self._rest.faults.plan(GarbleRest(path, times))

    def resume(self) -> None:
        """End every data fault in force, and forget the refusals that are still to come.

        REST answers that were to come later come now.
        """
        self._refusals.clear()
        self._rest.faults.clear()
        for connection in self._connections.values():
            connection.faults = DataFaults()
            connection.poke()

    def inject(self, fault: Fault, *, connection: int | None = None) -> None:
        """Put a fault of :mod:`mdservice.simulator.faults` into force now."""
        match fault:
            case Drop(how, code):
                self.drop(how, code=code, connection=connection)
            case Refuse(answer, when, times):
                self._refusals.plan(when, answer, times)
            case SendError(code):
                self.send_error(code, connection=connection)
            case RefuseRest() | SlowRest() | CutRest() | GarbleRest():
                self._rest.faults.plan(fault)
            case _:
                self._add(fault, connection)

    def _add(self, fault: DataFault, number: int | None) -> None:
        for chosen in self._chosen(number):
            chosen.faults.add(fault, anyio.current_time())
            chosen.poke()

    def _chosen(self, number: int | None) -> Iterator[Connection]:
        for connection in list(self._connections.values()):
            if connection.session is not None and number in {None, connection.number}:
                yield connection
