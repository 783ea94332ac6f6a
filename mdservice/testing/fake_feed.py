"""A feed driver without a socket: a test scripts how connections open and what they receive.

It uses the simulator's protocol rules, so it answers as the simulator does, and it passes the
same contract suite as the real drivers. It starts no thread, so it works under trio's virtual
clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, Final, Literal

import anyio
import anyio.lowlevel
import attrs
import msgspec

from mdservice.clock import Clock
from mdservice.errors import FeedUnavailable, SymbolsRefused
from mdservice.feed.alpaca.codec import Encoding, Frame
from mdservice.feed.alpaca.error_codes import http_refusal, refusal
from mdservice.feed.alpaca.link import AlpacaLink
from mdservice.feed.driver import CLOSE_TIMEOUT_S, LoginLimit
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import STOCKS, Feed
from mdservice.model.kinds import QUOTES, Kind, R, Record
from mdservice.model.news import Article
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.simulator.feeds import FEEDS
from mdservice.simulator.session import (
    SILENCE,
    Account,
    Refusals,
    Reply,
    Session,
    SessionRules,
    Silence,
    When,
)
from mdservice.simulator.wire import (
    OutFrame,
    SimQuote,
    decode_message,
    encode_messages,
    encode_quotes,
    error_message,
)

__all__ = ["FakeDriver", "FakeHistory", "FakeLink", "HistoryRequest", "VirtualClock"]

_NS_PER_S: Final = 1_000_000_000
# 2026-11-20T15:00:00Z, a Friday in market hours.
_START_NS: Final = 1_795_186_800 * _NS_PER_S

_MOST_REQUESTS: Final = 10_000

_MOST_FRAMES: Final = 100_000
_SLOW_CLIENT: Final = 407
_MASKED: Final = ("key", "secret")


class FakeDriver:
    """A :class:`~mdservice.feed.driver.Driver` and the server behind it, in one object.

    Methods that act on a connection act on all open ones.

    Args:
        name: The driver's name in the status.
        encoding: The encoding of the frames.
        key: The key with which it logs in.
        secret: The secret of that key.
        account: The account that checks the login; by default one that accepts any key.
        rules: Limits of each connection.
        clock: Stamps quotes that come without a time.
        closing_s: How long the server takes to answer the closing handshake.
        login_s: How long the server takes to answer the login.
        feed: Which feed it serves.
        limit: How long the client waits for the login; by default a limit of its own.

    Attributes:
        script: Errors for the next attempts; each attempt takes one. If empty, attempts succeed.
        attempts: The time of each attempt to connect, by the event loop's clock.
        links: The connections that opened, in order.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        encoding: Encoding = "msgpack",
        key: str = "key",
        secret: str = "secret",  # noqa: S107 - of a fake
        account: Account | None = None,
        rules: SessionRules | None = None,
        clock: Clock | None = None,
        closing_s: float = 0.0,
        login_s: float = 0.0,
        feed: Feed = STOCKS,
        limit: LoginLimit | None = None,
    ) -> None:
        self.name = name
        self.feed = feed
        self.encoding: Encoding = encoding
        self.script: deque[Exception] = deque()
        self.attempts: list[float] = []
        self.links: list[FakeLink] = []
        self._login = {"action": "auth", "key": key, "secret": secret}
        self._account = account or Account()
        self._rules = rules or SessionRules()
        self._clock = clock or VirtualClock()
        self._closing_s = closing_s
        self.login_s = login_s
        self._limit = limit or LoginLimit()
        self._refusals = Refusals()
        self._changed = anyio.Event()

    # As the client sees it.

    @asynccontextmanager
    async def connect(
        self, followed: Followed, utc_ns: Callable[[], int]
    ) -> AsyncIterator[FakeLink]:
        """See :meth:`mdservice.feed.driver.Driver.connect`."""
        self.attempts.append(anyio.current_time())
        self.notify()
        with self._limit.one_try(anyio.current_time) as limit_s:
            try:
                with anyio.fail_after(limit_s):
                    link = await self._open(len(self.attempts), followed, utc_ns)
            except TimeoutError as exc:
                raise FeedUnavailable(f"the feed did not answer within {limit_s:g} s") from exc
        try:
            yield link
        finally:
            link.leave()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(min(self._closing_s, CLOSE_TIMEOUT_S))

    async def _open(self, number: int, followed: Followed, utc_ns: Callable[[], int]) -> FakeLink:
        await anyio.lowlevel.checkpoint()
        if self.login_s:
            await anyio.sleep(self.login_s)
        if self.script:
            raise self.script.popleft()
        upgrade = self._refusals.take("upgrade")
        if isinstance(upgrade, Silence):
            await anyio.sleep_forever()
        elif upgrade is not None:
            raise http_refusal(upgrade)
        session = Session(
            number,
            next(each.paths[0] for each in FEEDS if each.name == self.feed.name),
            account=self._account,
            refusals=self._refusals,
            rules=self._rules,
            encoding=self.encoding,
        )
        link = FakeLink(number, self.encoding, session, self.notify, followed, utc_ns, self.feed)
        await _check(session.open(anyio.current_time()))
        await _check(link.log_in(self._login))
        self.links.append(link)
        self.notify()
        return link

    # As the test sees it; the names are those of the simulator.

    @property
    def connections(self) -> tuple[FakeLink, ...]:
        """The open links."""
        return tuple(link for link in self.links if link.is_open)

    async def until(self, condition: Callable[[FakeDriver], bool]) -> None:
        """Wait until the condition holds; checked on every message and connection."""
        while not condition(self):
            await self._changed.wait()

    async def opened(self, count: int = 1) -> FakeLink:
        """Wait until ``count`` links have been opened; return the last of them."""
        await self.until(lambda driver: len(driver.links) >= count)
        return self.links[count - 1]

    async def subscribed(self, *symbols: str) -> FakeLink:
        """Wait until an open link is subscribed to quotes of all these symbols; return it."""
        wanted = set(symbols)
        while True:
            for link in self.connections:
                if wanted <= {*link.subscriptions["quotes"]}:
                    return link
            await self._changed.wait()

    def send_quotes(
        self,
        quotes: Iterable[SimQuote | Mapping[str, Any]],
        *,
        frames: Sequence[int] | None = None,
    ) -> None:
        """Send quotes to the connections that subscribe to them; see the simulator's."""
        now_ns = self._clock.utc_ns()
        exact = [q if isinstance(q, SimQuote) else SimQuote.from_wire(q) for q in quotes]
        stamped = [
            q if q.ts_event_ns else msgspec.structs.replace(q, ts_event_ns=now_ns + index)
            for index, q in enumerate(exact)
        ]
        for link in self.connections:
            wanted = [quote for quote in stamped if link.wants(quote.symbol)]
            link.feed(*(encode_quotes(part, self.encoding) for part in _parts(wanted, frames)))

    def send_messages(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Send any messages in one frame."""
        for link in self.connections:
            link.feed(encode_messages(messages, self.encoding))

    def send_error(self, code: int) -> None:
        """Send an error message that answers no request."""
        self.send_messages([error_message(code)])

    def send_raw(self, payload: Frame) -> None:
        """Send one frame with this payload."""
        for link in self.connections:
            link.feed(payload)

    def drop(self, how: Literal["reset", "half-close", "close"] = "reset") -> None:
        """End connections; ``reset`` loses frames that were not received."""
        for link in self.connections:
            link.end(lose=how == "reset")

    def refuse_next(self, code: int, *, when: When = "auth", times: int = 1) -> None:
        """Answer the next requests of the kind ``when`` with an error."""
        self._refusals.plan(when, code, times)

    def refuse_upgrade(self, status: int, *, times: int = 1) -> None:
        """Answer the next attempts with this HTTP status."""
        self._refusals.plan("upgrade", status, times)

    def stall(self, when: When = "upgrade", *, times: int = 1) -> None:
        """Never answer again on the next connections, from the step ``when`` on."""
        self._refusals.plan(when, SILENCE, times)

    def accept(self) -> None:
        """Forget the planned refusals and stalls: the next attempts succeed."""
        self._refusals.clear()

    def fail(self, times: int = 1) -> None:
        """Let the next attempts fail to connect."""
        self.script.extend(FeedUnavailable(f"{self.name}: no server listens") for _ in range(times))

    def notify(self) -> None:
        """Wake the tasks that wait for a change."""
        self._changed.set()
        self._changed = anyio.Event()


class FakeLink(AlpacaLink):
    """One open connection, from both sides; made by :meth:`FakeDriver.connect`.

    Attributes:
        number: Counts the driver's attempts to connect, from 1.
        sent: Every message of the client, in order, the login included, secrets masked.
        is_open: False once the client has left its block.
    """

    def __init__(
        self,
        number: int,
        encoding: Encoding,
        session: Session,
        notify: Callable[[], None],
        followed: Followed,
        utc_ns: Callable[[], int],
        feed: Feed,
    ) -> None:
        super().__init__(encoding, followed, utc_ns, feed)
        self.number = number
        self.sent: list[Mapping[str, Any]] = []
        self.is_open = False
        self._notify_driver = notify
        self._session = session
        self._frames: deque[Frame] = deque()
        self._ended: str | None = None
        self._changed = anyio.Event()

    # As the client sees it.

    async def send_frame(self, frame: Frame) -> None:
        """Receive a frame from the client and answer it as Alpaca does."""
        await anyio.lowlevel.checkpoint()
        if self._ended is not None:
            raise FeedUnavailable(self._ended)
        payload = frame.encode() if isinstance(frame, str) else frame
        reply = self._take(decode_message(payload, self.encoding) or {})
        for answer in reply.messages:
            self.feed(encode_messages([answer], self.encoding))
        if reply.close_code is not None:
            self.end(f"the feed closed the connection with {reply.close_code}")

    async def receive_frames(self) -> Sequence[Frame]:
        """The waiting frames, at least one."""
        await anyio.lowlevel.checkpoint()
        while not self._frames:
            if self._ended is not None:
                raise FeedUnavailable(self._ended)
            await self._changed.wait()
        frames = tuple(self._frames)
        self._frames.clear()
        return frames

    # As the test sees it.

    @property
    def authenticated(self) -> bool:
        """Whether it has logged in."""
        return self._session.authenticated

    @property
    def subscriptions(self) -> Mapping[str, tuple[str, ...]]:
        """The symbols of each channel."""
        return self._session.subscriptions

    @property
    def requests(self) -> list[tuple[str, list[str]]]:
        """Action and symbols of each change of the quotes' subscriptions, in order."""
        return [(m["action"], m["quotes"]) for m in self.sent if "quotes" in m]

    def log_in(self, message: Mapping[str, Any]) -> Reply:
        """The server's answer to the credentials; after success the link is open."""
        reply = self._take(message)
        self.is_open = self._session.authenticated
        return reply

    def feed(self, *frames: Frame | OutFrame) -> None:
        """Deliver frames; a client with too many unread frames is cut off as slow (407)."""
        if self._ended is not None:
            return
        if len(self._frames) + len(frames) > _MOST_FRAMES:
            self._frames.clear()
            frames = (encode_messages([error_message(_SLOW_CLIENT)], self.encoding),)
            self._ended = "the feed cut a slow client off"
        self._frames.extend(
            _as_frame(frame) if isinstance(frame, OutFrame) else frame for frame in frames
        )
        self._notify()

    def wants(self, symbol: str) -> bool:
        """Whether quotes of the symbol are subscribed to."""
        return self.is_open and self._session.wants(symbol)

    def end(self, reason: str = "the feed closed the connection", *, lose: bool = False) -> None:
        """End the connection from the server's side.

        Args:
            reason: The text of the client's error.
            lose: Whether frames that the client has not received are lost.
        """
        if lose:
            self._frames.clear()
        self._ended = self._ended or reason
        self._notify()

    def leave(self) -> None:
        """The client has left its block."""
        self.is_open = False
        self._session.end(anyio.current_time(), clean=True)
        self.end("this side closed the connection", lose=True)
        self._notify_driver()

    def _take(self, message: Mapping[str, Any]) -> Reply:
        shown = {name: "***" if name in _MASKED else value for name, value in message.items()}
        self.sent.append(shown)
        reply = self._session.receive(message, anyio.current_time())
        self._notify_driver()
        return reply

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class FakeHistory:
    """A :class:`~mdservice.feed.history.History` in this process.

    Passes the same contract suite as the real one.

    Attributes:
        lag_s: How long a record takes to appear in :meth:`past`; :meth:`latest` has no lag.
        delay_s: How long every answer takes.
        script: Errors for the next calls; each call takes one, None lets it succeed.
        always: The error of every call once the script is empty, or None.
        refuses: Symbols for which it refuses every request that has them, with its message.
        requests: The requests, in order.
    """

    def __init__(self, lag_s: float = 0.0) -> None:
        self.lag_s = lag_s
        self.delay_s = 0.0
        self.rows_skipped = 0
        self.script: deque[Exception | None] = deque()
        self.always: Exception | None = None
        self.refuses: dict[str, str] = {}
        self.requests: deque[HistoryRequest] = deque(maxlen=_MOST_REQUESTS)
        self._recorded: list[tuple[float, Kind[Any], Any]] = []

    def add(self, records: Iterable[Record], kind: Kind[Any] = QUOTES) -> None:
        """Add records that the market has made now, in this order."""
        now_s = anyio.current_time()
        self._recorded.extend((now_s, kind, _again(record, seq=0)) for record in records)

    async def past(
        self, kind: Kind[R], symbols: Sequence[str], start_ns: int, end_ns: int
    ) -> Sequence[R]:
        """See :meth:`mdservice.feed.history.History.past`."""
        await self._answer(HistoryRequest(_now(), "past", tuple(symbols), start_ns, end_ns))
        known_s = _now() - self.lag_s
        found = [
            _again(record)
            for at_s, of, record in self._recorded
            if of is kind
            and _is_about(record, symbols)
            and start_ns <= record.ts_event_ns <= end_ns
            and at_s <= known_s
        ]
        return sorted(found, key=lambda record: (record.symbol, record.ts_event_ns))

    async def latest(self, kind: Kind[R], symbols: Sequence[str]) -> Sequence[R]:
        """See :meth:`mdservice.feed.history.History.latest`."""
        await self._answer(HistoryRequest(_now(), "latest", tuple(symbols)))
        newest: dict[str, R] = {}
        for _, of, record in self._recorded:
            last = newest.get(record.symbol)
            is_newer = last is None or record.ts_event_ns >= last.ts_event_ns
            if of is kind and _is_about(record, symbols) and is_newer:
                newest[record.symbol] = record
        return [_again(newest[symbol]) for symbol in sorted(newest)]

    async def _answer(self, request: HistoryRequest) -> None:
        self.requests.append(request)
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(self.delay_s)
        outcome = self.script.popleft() if self.script else self.always
        if outcome is not None:
            raise outcome
        for symbol, words in self.refuses.items():
            if symbol in request.symbols:
                raise SymbolsRefused(words)


class VirtualClock:
    """A :class:`~mdservice.clock.Clock` that follows the running event loop's time.

    On trio's ``MockClock`` time starts at 0, so the first stamp of a test is ``start_ns``.

    Args:
        start_ns: UTC nanoseconds at the loop's time 0.
    """

    def __init__(self, start_ns: int = _START_NS) -> None:
        self._start_ns = start_ns

    def monotonic(self) -> float:
        """The event loop's time, in seconds."""
        return anyio.current_time()

    def utc_ns(self) -> int:
        """UTC nanoseconds."""
        return self._start_ns + int(anyio.current_time() * _NS_PER_S)

    def step(self, seconds: float) -> None:
        """Set the machine's clock forward or back, as NTP does; monotonic time does not move."""
        self._start_ns += int(seconds * _NS_PER_S)


@attrs.frozen
class HistoryRequest:
    """One request to a :class:`FakeHistory`.

    Attributes:
        at_s: When it came, by the event loop's clock.
        call: ``past`` or ``latest``.
        symbols: The requested symbols.
        start_ns: The start of the period, UTC nanoseconds; 0 for ``latest``.
        end_ns: The end of the period; 0 for ``latest``.
    """

    at_s: float
    call: str
    symbols: tuple[str, ...]
    start_ns: int = 0
    end_ns: int = 0


def _is_about(record: Record, symbols: Sequence[str]) -> bool:
    if isinstance(record, Article):
        return EVERY_SYMBOL in symbols or not set(symbols).isdisjoint(record.symbols)
    return record.symbol in symbols


def _again(record: R, seq: int | None = None) -> R:
    again = copy(record)
    again.seq = record.seq if seq is None else seq
    return again


def _now() -> float:
    return anyio.current_time()


def _as_frame(frame: OutFrame) -> Frame:
    return frame.data.decode() if frame.text else frame.data


async def _check(reply: Reply) -> None:
    """Raise unless this is a success; for silence, wait until the client gives up."""
    if not reply.messages:
        await anyio.sleep_forever()
    for message in reply.messages:
        if message["T"] == "error":
            raise refusal(message["code"], message["msg"])


def _parts(quotes: Sequence[SimQuote], sizes: Sequence[int] | None) -> list[Sequence[SimQuote]]:
    """The quotes of each frame; quotes beyond the given sizes form one more frame."""
    parts = []
    start = 0
    for size in (*(sizes or ()), len(quotes)):
        if start < len(quotes):
            parts.append(quotes[start : start + size])
        start += size
    return parts
