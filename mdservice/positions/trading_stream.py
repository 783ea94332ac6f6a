"""Follows the events of the account's orders on Alpaca's trading stream.

Source: Alpaca's documentation of the trading API, "Websocket streaming", and its Python client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio
import attrs
import msgspec
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.errors import PositionsError, PositionsRefused, PositionsUnavailable
from mdservice.observability.logging import get_logger, masked
from mdservice.observability.masking import mask_url
from mdservice.positions.cache import PositionCache
from mdservice.positions.sources import ALPACA, CHECK_ALPACA
from mdservice.positions.trade_updates import KNOWN_EVENTS, TradeUpdate, parse_trade_updates
from mdservice.runtime.actor import Depth, Heartbeat
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.network import root_cause, tls_advice
from mdservice.runtime.websocket import (
    HeldWebsocket,
    WebsocketRoute,
    held_websocket,
    library_connect,
)

if TYPE_CHECKING:
    import trio

    from mdservice.settings import Settings

__all__ = [
    "StreamState",
    "TradeUpdatesFollower",
    "TradeUpdatesSnapshot",
    "TradingLink",
    "TradingStream",
    "open_trading_stream",
]

_log = get_logger(__name__)

StreamState = Literal["connecting", "following", "waiting", "refused"]

_STREAM: Final = "trade_updates"
_LOGIN_S: Final = 10.0
"""How long connecting and logging in may take together."""
_CLOSE_S: Final = 1.0
_PING_INTERVAL_S: Final = 10.0
_PING_TIMEOUT_S: Final = 8.0
"""A peer that is gone without a word is found within the sum of the two. It has to be below the
interval: websockets on trio stops asking once an answer has taken longer."""
_MOST_BYTES: Final = 4 * 1024 * 1024
_FIRST_S, _LIMIT_S = 0.5, 30.0
_FIRST_REFUSED_S, _LIMIT_REFUSED_S = 20.0, 300.0
_HEALTHY_S: Final = 10.0
"""A connection that has lasted so long resets the back-off."""
_FUTURE_NS: Final = 60 * 1_000_000_000
"""An event further ahead of this machine's clock is not used."""
_WORTH_ANOTHER_TRY: Final = frozenset((408, 425, 429))
_CLIENT_ERRORS: Final = range(400, 500)
_LATE: Final = "fills show only when the positions are asked for"


class _Envelope(msgspec.Struct, gc=False):
    """``{"stream":"trade_updates","data":{…}}``."""

    stream: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Authorization(msgspec.Struct, gc=False):
    status: str = ""


class _Listening(msgspec.Struct, gc=False):
    streams: list[str] = []
    error: str | None = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


class TradingStream:
    """Alpaca's stream of trade updates, in text or binary frames.

    Args:
        url: ``wss://paper-api.alpaca.markets/stream``.
        api_key: Never shown.
        secret_key: Never shown.
        open_stream: Opens a replacement for the TCP connection, such as a stream in memory;
            on trio only.
        ping_interval_s: Seconds between two pings.
        ping_timeout_s: How long a pong may take; less than the interval.

    Attributes:
        address: The URL, without any secret.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        secret_key: str,
        *,
        open_stream: Callable[[], Awaitable[trio.abc.Stream]] | None = None,
        ping_interval_s: float = _PING_INTERVAL_S,
        ping_timeout_s: float = _PING_TIMEOUT_S,
    ) -> None:
        self.address = mask_url(url)
        self._url = url
        self._forms = (
            {"action": "authenticate", "data": {"key_id": api_key, "secret_key": secret_key}},
            {"action": "auth", "key": api_key, "secret": secret_key},
        )
        self._open_stream = open_stream
        self._ping_interval_s = ping_interval_s
        self._ping_timeout_s = ping_timeout_s
        self._route = WebsocketRoute(url, direct=open_stream is not None)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[TradingLink]:
        """Connect, log in and listen, for the length of the block.

        Raises:
            PositionsUnavailable: It cannot be reached, or does not answer in time.
            PositionsRefused: It refuses the login or the stream.
        """
        async with held_websocket(_CLOSE_S) as held:
            yield await self._open(held)

    async def _open(self, held: HeldWebsocket) -> TradingLink:
        from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

        try:
            with anyio.fail_after(_LOGIN_S):
                link = TradingLink(await held.open(await self._opening()), self.address)
                await link.log_in(self._forms)
                await link.listen()
                return link
        except PositionsError:
            raise
        except ConnectionClosed as exc:
            reason = f"{self.address} closed the connection at login: {exc}"
            raise PositionsUnavailable(reason) from exc
        except TimeoutError as exc:
            what = "did not finish the login" if held.is_open else "did not answer"
            reason = f"{self.address} {what} within {_LOGIN_S:g} s{self._route.hint}"
            raise PositionsUnavailable(reason) from exc
        except InvalidStatus as exc:
            raise self._refusal(exc.response.status_code) from exc
        except Exception as exc:
            # Until it is open, every error is an outage: on trio a failed TLS handshake is a
            # BrokenResourceError, and a bad host name is a UnicodeError.
            if held.is_open and not isinstance(exc, (OSError, WebSocketException, EOFError)):
                raise
            advice = f"{tls_advice(exc)}{self._route.hint}"
            reason = f"cannot connect to {self.address}: {root_cause(exc)}{advice}"
            raise PositionsUnavailable(reason) from exc

    def _refusal(self, status: int) -> PositionsError:
        text = f"{self.address} refused the connection with HTTP {status}"
        if status in _CLIENT_ERRORS and status not in _WORTH_ANOTHER_TRY:
            return PositionsRefused(
                f"{text}: {CHECK_ALPACA}, or set MDSERVICE_TRADING_STREAM_URL to the whole URL"
            )
        return PositionsUnavailable(text)

    async def _opening(self) -> Any:
        stream = {} if self._open_stream is None else {"stream": await self._open_stream()}
        return library_connect()(
            self._url,
            open_timeout=_LOGIN_S,
            close_timeout=_CLOSE_S,
            ping_interval=self._ping_interval_s,
            ping_timeout=self._ping_timeout_s,
            max_size=_MOST_BYTES,
            compression=None,
            **self._route.options(),
            **stream,
        )


def open_trading_stream(positions: str, settings: Settings) -> TradingStream | None:
    """The stream of the account's trade updates; None if the positions are not Alpaca's.

    Args:
        positions: The source of the positions, as in ``MDSERVICE_POSITIONS``.
        settings: The URL and the keys.

    Raises:
        ConfigurationError: See :class:`TradingStream`.
    """
    if positions != ALPACA or settings.api_key is None or settings.secret_key is None:
        return None
    url = settings.resolved_trading_stream_url()
    return TradingStream(url, settings.api_key, settings.secret_key)


class TradingLink:
    """One open connection. Made by :meth:`TradingStream.connect`.

    Args:
        websocket: The library's connection.
        address: Its URL, without any secret.
    """

    def __init__(self, websocket: Any, address: str) -> None:
        self._websocket = websocket
        self._address = address
        self._early: deque[_Envelope] = deque()
        """Updates that came before the stream was acknowledged."""

    async def log_in(self, forms: tuple[dict[str, Any], ...]) -> None:
        """Send the forms of the login, one after the other, until one is accepted.

        Raises:
            PositionsRefused: None is.
            PositionsUnavailable: There is no answer to any.
        """
        from websockets.exceptions import ConnectionClosed

        refused = False
        try:
            for form in forms:
                await self._websocket.send(msgspec.json.encode(form).decode())
                with anyio.move_on_after(_LOGIN_S / (len(forms) + 1)):
                    message = await self._expect("authorization")
                    if _as(_Authorization, message).status == "authorized":
                        return
                    refused = True
        except ConnectionClosed:
            if not refused:
                raise
        if refused:
            raise PositionsRefused(f"{self._address} refuses the login: {CHECK_ALPACA}")
        raise PositionsUnavailable(
            f"{self._address} does not answer the login; check that it is Alpaca's trading stream"
        )

    async def listen(self) -> None:
        """Ask for the trade updates.

        Raises:
            PositionsRefused: They are refused.
        """
        request = {"action": "listen", "data": {"streams": [_STREAM]}}
        await self._websocket.send(msgspec.json.encode(request).decode())
        answer = _as(_Listening, await self._expect("listening"))
        if _STREAM not in answer.streams:
            reason = f": {answer.error[:100]}" if answer.error else ""
            raise PositionsRefused(f"{self._address} refuses the stream {_STREAM}{reason}")

    async def receive(self) -> _Envelope:
        """The next message.

        Raises:
            PositionsUnavailable: The connection was closed.
            PositionsRefused: The login does not count any more.
            ValueError: It cannot be read.
        """
        from websockets.exceptions import ConnectionClosed

        if self._early:
            return self._early.popleft()
        try:
            message = await self._next()
        except ConnectionClosed as exc:
            reason = f"{self._address} closed the connection: {exc}"
            raise PositionsUnavailable(reason) from exc
        if (
            message.stream == "authorization"
            and _as(_Authorization, message).status != "authorized"
        ):
            raise PositionsRefused(f"{self._address} ends the login: {CHECK_ALPACA}")
        return message

    async def _expect(self, stream: str) -> _Envelope:
        """The next message of a stream; others are kept where they are updates."""
        while True:
            try:
                message = await self._next()
            except ValueError:
                continue  # such as another greeting
            if message.stream == stream:
                return message
            if message.stream == _STREAM:
                self._early.append(message)

    async def _next(self) -> _Envelope:
        message = await self._websocket.recv()
        try:
            return _decode_envelope(message)
        except RecursionError as exc:
            raise ValueError(str(exc)) from exc


def _as(kind: Any, message: _Envelope) -> Any:
    try:
        return msgspec.json.decode(message.data, type=kind)
    except (ValueError, RecursionError):
        return kind()


class TradeUpdatesFollower:
    """Applies the events of the trading stream to the positions; connects again after any loss.

    A refused login, or any other loss, never ends it: the positions are asked for as before. A
    refusal is tried again slowly.

    Args:
        stream: The stream.
        positions: The positions; asked for again after each connection.
        came: Called with each event after it was applied.
        clock: The time.
        part: ``service`` or ``gateway``, for the log: both may follow in one process.
    """

    name = "trade_updates"
    depth = Depth(0, 0)

    def __init__(
        self,
        stream: TradingStream,
        positions: PositionCache,
        came: Callable[[TradeUpdate], Awaitable[None]],
        clock: Clock,
        part: Literal["service", "gateway"] = "service",
    ) -> None:
        self._part = part
        self.heartbeat = Heartbeat(clock)
        self._stream = stream
        self._positions = positions
        self._came = came
        self._clock = clock
        self._backoff = Backoff(_FIRST_S, _LIMIT_S)
        self._refusals = Backoff(_FIRST_REFUSED_S, _LIMIT_REFUSED_S)
        self._state: StreamState = "connecting"
        self._last_error: str | None = None
        self._connects = 0
        self._received = 0
        self._unreadable = 0
        self._unknown = 0

    def snapshot(self) -> TradeUpdatesSnapshot:
        """The present state."""
        return TradeUpdatesSnapshot(
            address=self._stream.address,
            state=self._state,
            reconnects=max(0, self._connects - 1),
            last_error=self._last_error,
            received=self._received,
            unreadable=self._unreadable,
            unknown=self._unknown,
            applied=self._positions.applied,
            late=self._positions.late,
            differed=self._positions.differed,
        )

    def warning(self) -> str | None:
        """Why fills may come late, or None."""
        return self.snapshot().warning

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled."""
        task_status.started()
        self.heartbeat.rest()  # it waits for the server; pings find one that is gone
        while True:
            self._state = "connecting"
            try:
                await self._follow()
            except PositionsRefused as exc:
                self._note(exc, "refused")
                await anyio.sleep(self._refusals.next_s())
            except PositionsUnavailable as exc:
                self._note(exc, "waiting")
                await anyio.sleep(self._backoff.next_s())

    async def _follow(self) -> None:
        """One connection, until it ends by an error."""
        async with self._stream.connect() as link:
            since_s = self._clock.monotonic()
            self._state, self._last_error = "following", None
            self._connects += 1
            self._refusals.reset()
            self._positions.follow_events()
            _log.info("trade_updates_followed", part=self._part, url=self._stream.address)
            while True:
                try:
                    message = await link.receive()
                    if message.stream == _STREAM:
                        await self._take(message)
                except ValueError as exc:
                    self._skip(str(exc))
                except PositionsUnavailable:
                    if self._clock.monotonic() - since_s >= _HEALTHY_S:
                        self._backoff.reset()
                    raise

    async def _take(self, message: _Envelope) -> None:
        self._received += 1
        latest_ns = self._clock.utc_ns() + _FUTURE_NS
        for update in parse_trade_updates(message.data):
            if update.timestamp_ns > latest_ns:
                raise ValueError("it is more than 60 s ahead of this machine's clock")
            self._unknown += update.event not in KNOWN_EVENTS
            self._positions.apply(update)
            await self._came(update)

    def _skip(self, reason: str) -> None:
        """Count a message that cannot be used. It may have been a fill."""
        self._unreadable += 1
        _log.warning(
            "trade_update_unreadable",
            part=self._part,
            reason=reason[:200],
            count=self._unreadable,
        )
        self._positions.want()

    def _note(self, exc: PositionsError, state: StreamState) -> None:
        reason = masked(str(exc))
        if reason != self._last_error:
            _log.warning(
                "trade_updates_lost", part=self._part, url=self._stream.address, reason=reason
            )
        self._state, self._last_error = state, reason


@attrs.frozen
class TradeUpdatesSnapshot:
    """The state of the trading stream, and what came.

    Attributes:
        address: The URL, without any secret.
        state: ``following``: logged in. ``waiting``: lost, until the next try. ``refused``: a
            person has to change something; tried again slowly.
        reconnects: Connections after the first.
        last_error: Why the last one ended, while there is none.
        received: Events that came.
        unreadable: Of these, with what is no event at all, those that could not be used.
        unknown: Events of a kind that is not known.
        applied: Events that changed a position.
        late: Events that were repeated, late, or in the last answer of REST already.
        differed: Quantities that an answer of REST had and the events had not.
    """

    address: str
    state: StreamState
    reconnects: int
    last_error: str | None
    received: int
    unreadable: int
    unknown: int
    applied: int
    late: int
    differed: int

    @property
    def warning(self) -> str | None:
        """Why fills may come late, or None."""
        if self.last_error is None:
            return None
        return f"{_LATE}: {self.last_error}"
