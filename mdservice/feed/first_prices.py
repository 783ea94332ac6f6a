"""First prices: fetches the latest record of a symbol from REST when it is subscribed.

The stream only sends a symbol's next record, which may be hours away. So this module asks REST for
the latest one as soon as a symbol is wanted, whether or not the feed is connected.

::

    want ──▶ due ──10 ms──▶ one request for up to 200 symbols ──60 ms──▶ FirstRecords ──▶ router
              ▲                          │ failed
              └────────back-off──────────┘ five tries, then the symbol waits for the stream
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic

import anyio
import attrs

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.gap_repair.missing import AcceptedRecords
from mdservice.feed.gap_repair.recovery import Recovery
from mdservice.feed.history import HalvingHistory
from mdservice.feed.send_queue import SendQueue
from mdservice.feed.subscriptions import SubscriptionSet
from mdservice.model.events import FirstRecords
from mdservice.model.feeds import Topic, symbols_of
from mdservice.model.kinds import Kind, R
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger, masked

__all__ = ["COALESCE_S", "PAUSES_S", "STREAM_FIRST_S", "FirstPrices"]

_log = get_logger(__name__)

COALESCE_S = 0.01
"""How long a request waits for other symbols that are subscribed at the same moment."""
PAUSES_S = (0.5, 2.0, 8.0, 30.0)
"""The waits between two tries, seconds; with the requests, about as long as REST's rate limit."""
_ANSWER_LIMITS_S = (3.0, 5.0, 10.0)
"""How long the first tries may take, seconds; later ones as long as the last of these."""
STREAM_FIRST_S = 0.06
"""How long an answer waits, seconds, so that the stream's records of that moment come first.

Otherwise REST may be ahead of the stream, and the sequencer would reject the records between.
"""
_MOST_REQUESTS = 4
"""The maximum number of requests at a time; symbols that become due meanwhile wait."""
_MOST_SYMBOLS = 200
_MOST_CHARACTERS = 4_000
"""The maximum length of the symbols in one URL; some proxies refuse URLs of more than 8 KB."""


@attrs.define
class _Due:
    """A symbol whose latest record is to be fetched.

    Attributes:
        asked_ns: When the fetch was requested, UTC nanoseconds.
        at_s: When to ask REST, by the event loop's clock.
        known_ns: The time of the symbol's last record at ``asked_ns``, or None.
        tries: How often REST has failed.
        in_flight: Whether a request for it has no answer yet.
    """

    asked_ns: int
    at_s: float
    known_ns: int | None
    tries: int = 0
    in_flight: bool = False


class FirstPrices(Generic[R]):
    """Fetches the latest record of every symbol that becomes wanted.

    If a repair will fill the gap of a symbol, the repair brings its price: a first price would make
    the sequencer reject the records of the gap. Nothing is fetched for ``*``.

    Args:
        kind: The kind of the records.
        history: The source of the latest records, or None.
        subscriptions: The wanted topics.
        repair: Knows the symbols whose gap it will fill.
        accepted: The accepted records.
        send_queue: Sends the found records to the router.
        clock: The time.

    Attributes:
        failed: For how many symbols no price was found, because REST failed or refused them.
        last_error: Why the last request failed, or None if it succeeded.
    """

    def __init__(
        self,
        kind: Kind[R],
        history: HalvingHistory[R] | None,
        subscriptions: SubscriptionSet,
        repair: Recovery[R],
        accepted: AcceptedRecords,
        send_queue: SendQueue,
        clock: Clock,
    ) -> None:
        self._kind = kind
        self._history = history
        self._subscriptions = subscriptions
        self._repair = repair
        self._accepted = accepted
        self._send_queue = send_queue
        self._clock = clock
        self._due: dict[str, _Due] = {}
        self._changed = anyio.Event()
        self._requests = 0
        self.failed = 0
        self.last_error: str | None = None

    def want_all(self) -> None:
        """Fetch the price of every wanted symbol; at the start."""
        self._add(symbols_of(self._subscriptions.wanted, self._kind))

    def want(self, topics: Iterable[Topic]) -> None:
        """Fetch the prices of those symbols that are new or have none; before subscribing."""
        self._add(
            symbol
            for symbol in symbols_of(topics, self._kind)
            if not self._is_wanted(symbol) or self._accepted.last_ns(symbol) is None
        )

    def fetch(self, symbols: Iterable[str]) -> None:
        """Fetch the latest records of these symbols again; an answer under way is too old."""
        every = self._is_wanted(EVERY_SYMBOL)
        wanted = [symbol for symbol in symbols if every or self._is_wanted(symbol)]
        for symbol in wanted:
            self._due.pop(symbol, None)
        self._add(wanted)

    def forget(self, topics: Iterable[Topic]) -> None:
        """Stop fetching those of the symbols that no source wants any more."""
        ended = [s for s in symbols_of(topics, self._kind) if not self._is_wanted(s)]
        for symbol in ended:
            self._due.pop(symbol, None)
        if self._history is not None:
            self._history.forget(ended)

    def _is_wanted(self, symbol: str) -> bool:
        for channel in self._kind.topics:  # noqa: SIM110 - any() takes twice as long
            if Topic(channel, symbol) in self._subscriptions:
                return True
        return False

    def _add(self, symbols: Iterable[str]) -> None:
        if self._history is None:
            return
        now_ns, now_s = self._clock.utc_ns(), anyio.current_time()
        for symbol in symbols:
            if symbol != EVERY_SYMBOL and symbol not in self._due:
                self._due[symbol] = _Due(now_ns, now_s, self._accepted.last_ns(symbol))
        self._changed.set()

    async def run(self) -> None:
        """Fetch until cancelled. A restart repeats the requests that had no answer."""
        if self._history is None:
            return
        self._requests = 0
        for due in self._due.values():
            due.in_flight = False
        async with anyio.create_task_group() as tasks:
            while True:
                await self._until_due()
                await anyio.sleep(COALESCE_S)
                for symbols in self._next_requests():
                    self._requests += 1
                    tasks.start_soon(self._fetch, self._history, symbols)

    async def _until_due(self) -> None:
        while True:
            self._changed = anyio.Event()
            times = [due.at_s for due in self._due.values() if not due.in_flight]
            wait_s = min(times, default=float("inf")) - anyio.current_time()
            if self._requests >= _MOST_REQUESTS:
                wait_s = float("inf")
            if wait_s <= 0:
                return
            with anyio.move_on_after(wait_s):
                await self._changed.wait()

    def _next_requests(self) -> list[list[str]]:
        """The symbols of the requests that can be made now."""
        now_s = anyio.current_time()
        requests: list[list[str]] = []
        characters = 0
        for symbol, due in self._due.items():
            if due.in_flight or due.at_s > now_s:
                continue
            full = not requests or len(requests[-1]) >= _MOST_SYMBOLS
            if full or characters + len(symbol) > _MOST_CHARACTERS:
                if len(requests) + self._requests >= _MOST_REQUESTS:
                    break
                requests.append([])
                characters = 0
            requests[-1].append(symbol)
            characters += len(symbol) + len("%2F")
            due.in_flight = True
        return requests

    async def _fetch(self, history: HalvingHistory[R], symbols: Sequence[str]) -> None:
        asked = {symbol: self._due[symbol] for symbol in symbols if symbol in self._due}
        tries = max((due.tries for due in asked.values()), default=0)
        limit_s = _ANSWER_LIMITS_S[min(tries, len(_ANSWER_LIMITS_S) - 1)]
        try:
            with anyio.fail_after(limit_s):
                answer = await history.latest(symbols)
        except TimeoutError:
            self._try_again(asked, f"no answer within {limit_s:g} s")
        except (HistoryRefused, HistoryUnavailable) as exc:
            self._try_again(asked, masked(str(exc)))
        else:
            self.last_error = None
            self.failed += len(answer.refused)
            history.forget(s for s in answer.refused if not self._is_wanted(s))
            await anyio.sleep(STREAM_FIRST_S)
            wanted = {s: due.asked_ns for s, due in asked.items() if self._due.get(s) is due}
            repairing = self._repair.symbols()
            found = [
                record
                for record in answer.records
                if record.symbol in wanted
                and self._last_is(
                    record.symbol,
                    record.ts_event_ns
                    if record.symbol in repairing
                    else asked[record.symbol].known_ns,
                )
            ]
            if found:
                self._send_queue.add(FirstRecords(self._kind, found, wanted))
            for symbol in wanted:
                del self._due[symbol]
            await self._send_queue.flush()
        finally:
            self._requests -= 1
            self._changed.set()

    def _last_is(self, symbol: str, ts_ns: int | None) -> bool:
        """Whether the symbol's last record has this time, so the stream has sent none since."""
        return self._accepted.last_ns(symbol) == ts_ns

    def _try_again(self, asked: dict[str, _Due], reason: str) -> None:
        self.last_error = reason
        given_up = []
        for symbol, due in asked.items():
            if self._due.get(symbol) is not due:
                continue
            if due.tries >= len(PAUSES_S):
                given_up.append(symbol)
                del self._due[symbol]
                continue
            due.at_s = anyio.current_time() + PAUSES_S[due.tries]
            due.tries += 1
            due.in_flight = False
        self.failed += len(given_up)
        _log.warning(
            "first_prices_failed",
            reason=reason,
            symbols=len(asked),
            given_up=sorted(given_up)[:50],
        )
