"""A feed driver without a socket: a test scripts how it opens, and what comes over it.

It answers as the simulator does, since the protocol's rules are the simulator's own, and
passes the same contract suite as the real drivers. It starts no thread, so it works under
trio's virtual clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import anyio.lowlevel
import msgspec

from mdservice.clock import Clock
from mdservice.errors import FeedUnavailable
from mdservice.feeds.alpaca.codes import http_refusal, refusal
from mdservice.feeds.driver import CLOSE_TIMEOUT_S, Encoding, Frame, Link, LoginLimit
from mdservice.simulator.account import SILENCE, Account, Refusals, Silence, When
from mdservice.simulator.codes import error_message
from mdservice.simulator.session import Reply, Session, SessionRules
from mdservice.simulator.wire import SimQuote, encode_messages, encode_quotes
from mdservice.testing.fake_link import FakeLink
from mdservice.testing.virtual_clock import VirtualClock

__all__ = ["FakeDriver"]


class FakeDriver:
    """A :class:`~mdservice.feeds.driver.Driver` and the server behind it, in one object.

    What concerns an open connection is done to all that are open.

    Args:
        name: As in the status.
        encoding: Of the frames.
        key: What it logs in with.
        secret: Likewise.
        account: Who may log in; any key will do where not given.
        rules: Limits of each connection.
        clock: Stamps quotes that come without a time.
        closing_s: How long the server takes to answer the closing handshake.
        login_s: How long it takes to let a client in.
        limit: How long the client waits for that; one of its own where not given.

    Attributes:
        script: What the next attempts end with; each takes one. Empty: they open.
        attempts: When the client tried to connect, each time, by the event loop's clock.
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
        limit: LoginLimit | None = None,
    ) -> None:
        self.name = name
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
    async def connect(self) -> AsyncIterator[Link]:
        """See :meth:`mdservice.feeds.driver.Driver.connect`."""
        self.attempts.append(anyio.current_time())
        self.notify()
        with self._limit.one_try(anyio.current_time) as limit_s:
            try:
                with anyio.fail_after(limit_s):
                    link = await self._open(len(self.attempts))
            except TimeoutError as exc:
                raise FeedUnavailable(f"the feed did not answer within {limit_s:g} s") from exc
        try:
            yield link
        finally:
            link.leave()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(min(self._closing_s, CLOSE_TIMEOUT_S))

    async def _open(self, number: int) -> FakeLink:
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
            number, "/v2/iex", account=self._account, refusals=self._refusals, rules=self._rules
        )
        link = FakeLink(number, self.encoding, session, self.notify)
        await _check(session.open(anyio.current_time()))
        await _check(link.log_in(self._login))
        self.links.append(link)
        self.notify()
        return link

    # As the test sees it; the names are those of the simulator.

    @property
    def connections(self) -> tuple[FakeLink, ...]:
        """The links that are open."""
        return tuple(link for link in self.links if link.is_open)

    async def until(self, condition: Callable[[FakeDriver], bool]) -> None:
        """Wait until the condition holds; looked at on every message and connection."""
        while not condition(self):
            await self._changed.wait()

    async def opened(self, count: int = 1) -> FakeLink:
        """Wait until so many links have been opened; the last of them."""
        await self.until(lambda driver: len(driver.links) >= count)
        return self.links[count - 1]

    async def subscribed(self, *symbols: str) -> FakeLink:
        """Wait until an open link is subscribed to quotes of all of these; that link."""
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
        """Send an error message, unasked."""
        self.send_messages([error_message(code)])

    def send_raw(self, payload: Frame) -> None:
        """Send one frame with this payload."""
        for link in self.connections:
            link.feed(payload)

    def drop(self, how: Literal["reset", "half-close", "close"] = "reset") -> None:
        """End connections; ``reset`` loses what was not received."""
        for link in self.connections:
            link.end(lose=how == "reset")

    def refuse_next(self, code: int, *, when: When = "auth", times: int = 1) -> None:
        """Answer the next of this moment with an error."""
        self._refusals.plan(when, code, times)

    def refuse_upgrade(self, status: int, *, times: int = 1) -> None:
        """Answer the next attempts with this HTTP status."""
        self._refusals.plan("upgrade", status, times)

    def stall(self, when: When = "upgrade", *, times: int = 1) -> None:
        """From this moment on the connection never answers."""
        self._refusals.plan(when, SILENCE, times)

    def fail(self, times: int = 1) -> None:
        """Let the next attempts find nobody."""
        self.script.extend(FeedUnavailable(f"{self.name}: nobody listens") for _ in range(times))

    def notify(self) -> None:
        """Wake those who wait for a change."""
        self._changed.set()
        self._changed = anyio.Event()


async def _check(reply: Reply) -> None:
    """Raise where this is no success; silence lasts as long as the client waits."""
    if not reply.messages:
        await anyio.sleep_forever()
    for message in reply.messages:
        if message["T"] == "error":
            raise refusal(message["code"], message["msg"])


def _parts(quotes: Sequence[SimQuote], sizes: Sequence[int] | None) -> list[Sequence[SimQuote]]:
    """The quotes of each frame; what is left after the given sizes is one more."""
    parts = []
    start = 0
    for size in (*(sizes or ()), len(quotes)):
        if start < len(quotes):
            parts.append(quotes[start : start + size])
        start += size
    return parts
