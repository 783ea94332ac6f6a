"""Positions, prices and the P&L engine, kept together for one gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Literal

import anyio

from mdservice.client.reader import Prices, PricesStatus
from mdservice.clock import Clock
from mdservice.errors import MDServiceError, PositionsUnavailable
from mdservice.gateway.alerting import Alerting
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.model.quote import Quote
from mdservice.observability.logging import get_logger, masked
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.holding import Totals
from mdservice.pnl.rows import PnlReport
from mdservice.positions.cache import PositionCache
from mdservice.redis_io.names import Instance
from mdservice.runtime.backoff import Backoff

__all__ = ["PATIENCE_S", "FollowedPrices", "HeldPositions", "PnlTracker", "ReadFrom"]


# The live subscriber of a book: opened, and opened again, for as long as the book runs.


_FIRST_S: Final = 0.2
_LIMIT_S: Final = 5.0
_SOON_S: Final = 1.0
"""So soon after the start nobody wonders that there is no connection."""


class FollowedPrices:
    """Hands on every quote that comes.

    Args:
        open_prices: Opens a reader of all events.
        came: Takes a quote.
    """

    def __init__(
        self,
        open_prices: Callable[[], AbstractAsyncContextManager[Prices]],
        came: Callable[[Quote], None],
    ) -> None:
        self._open_prices = open_prices
        self._came = came
        self._prices: Prices | None = None
        self._error: str | None = None
        self._since_s: float | None = None

    def status(self) -> PricesStatus | None:
        """How the reader is doing; None while there is none."""
        return None if self._prices is None else self._prices.status()

    def service(self) -> Instance | None:
        """The service that is followed, as it names itself; None where it does not."""
        return None if self._prices is None else self._prices.service

    def conflict(self) -> str | None:
        """That other services write the same keys, or None."""
        if self._prices is None or not (rivals := self._prices.rivals()):
            return None
        who = ", ".join(f"feed {one.feed}, process {one.pid} on {one.host}" for one in rivals)
        return (
            f"{len(rivals) + 1} services write the same keys in database {rivals[0].db}, so prices "
            f"may be of either; beside the followed one: {who}. Stop one of them, or set "
            "MDSERVICE_KEY_PREFIX"
        )

    def error(self) -> str | None:
        """What has failed, so that prices may be out of date, or None."""
        status = self.status()
        if status is None:
            return self._error
        return None if status.connected else status.last_error or "not connected to Redis"

    def delay(self) -> str | None:
        """That the first connection takes its time, though nothing has failed; else None."""
        if self._since_s is None or self._prices is not None or self._error is not None:
            return None
        overdue = anyio.current_time() > self._since_s + _SOON_S
        return "not connected to Redis yet" if overdue else None

    async def run(self) -> None:
        """Follow until cancelled."""
        backoff = Backoff(_FIRST_S, _LIMIT_S)
        self._since_s = anyio.current_time()
        while True:
            try:
                async with self._open_prices() as prices:
                    self._prices, self._error = prices, None
                    backoff.reset()
                    async for quote in prices:
                        self._came(quote)
            except MDServiceError as exc:
                reason = masked(str(exc))
                if reason != self._error:
                    _log.warning("gateway_has_no_prices", reason=reason)
                self._error = reason
            finally:
                self._prices = None
            await anyio.sleep(backoff.next_s())


# The positions of a book: polled, or asked for where an answer needs them.


PATIENCE_S: Final = 5.0
"""How long an answer waits for the source; then it tells what is known."""
_LEAST_POLL_S: Final = 1.0


class HeldPositions:
    """Asks when it is due, one at a time.

    Args:
        polled: The positions.
        interval_s: How often they are asked for, seconds; 0 for each answer anew.
        changed: Told of new ones.
        clock: The time.
    """

    def __init__(
        self,
        polled: PositionCache,
        interval_s: float,
        changed: Callable[[PositionCache], None],
        clock: Clock,
    ) -> None:
        self.polled = polled
        self._interval_s = interval_s
        self._changed = changed
        self._clock = clock
        self._asking = anyio.Lock()
        self._asked_s: float | None = None
        self._overdue = False
        """Whether an answer has waited for the source in vain, since it answered last."""

    def warning(self) -> str | None:
        """Why they may be out of date, or None."""
        if self.polled.last_error is not None:
            return self.polled.last_error
        if self._overdue:
            return f"{self.polled.address} does not answer within {PATIENCE_S:g} s"
        return None

    async def current(self, *, polling: bool) -> PositionCache:
        """The positions, once there are any.

        Args:
            polling: Whether :meth:`poll` runs beside.

        Raises:
            PositionsUnavailable: The source has not answered yet, or refused.
        """
        if not self._is_known(polling=polling):
            with anyio.move_on_after(PATIENCE_S) as limit:
                async with self._asking:
                    if not self._is_known(polling=polling):
                        await self._ask()
            self._overdue = self._overdue or limit.cancelled_caught
        if not self.polled.answers:
            reason = self.warning() or f"{self.polled.address} has not answered yet"
            raise PositionsUnavailable(f"the positions are not known: {reason}")
        return self.polled

    async def poll(self) -> None:
        """Ask now and then, until cancelled."""
        while True:
            async with self._asking:
                await self._ask()
            await anyio.sleep(self._interval_s or _LEAST_POLL_S)

    def _is_known(self, *, polling: bool) -> bool:
        """Whether an answer need not wait for the source."""
        if self._asked_s is None:
            return False
        if polling and self.polled.answers:
            # Who was in vain waited for is left to the polling.
            return self._interval_s > 0 or self._overdue
        return self._clock.monotonic() < self._asked_s + self._interval_s

    async def _ask(self) -> None:
        await self.polled.refresh()
        self._asked_s = self._clock.monotonic()
        self._overdue = False
        self._changed(self.polled)


_log = get_logger(__name__)

ReadFrom = Literal["keys", "live"]
"""Where an answer takes its prices: the keys, read in one round trip for each answer, or what the
live subscriber has heard."""

_LOOK_S: Final = 0.2
"""How soon a stream notices what nobody tells it: a price becoming stale, its own end."""
_MOST_NAMED: Final = 20
"""Unusable positions that a warning names, with their reasons."""
_TICK_S: Final = 1.0
"""How soon a price that became stale by itself is noticed."""


class PnlTracker:
    """Answers what positions are worth.

    Without :meth:`running` it works on request alone: positions are asked for where they are
    older than the interval, prices read from the keys. With it, positions are polled, prices
    followed as they come, alerts looked for, and streams told of changes.

    Args:
        polled: The positions.
        interval_s: How often these are asked for, seconds; 0 for each answer anew.
        redis: Reads the keys.
        open_prices: Opens a reader of all events.
        engine: The P&L; owned by this book.
        alerting: Looks for what crosses its rules, or None.
        read_from: Where an answer takes its prices.
        clock: The time.
    """

    def __init__(
        self,
        polled: PositionCache,
        interval_s: float,
        redis: RedisCalls,
        open_prices: Callable[[], AbstractAsyncContextManager[Prices]],
        engine: PnlEngine,
        alerting: Alerting | None,
        read_from: ReadFrom,
        clock: Clock,
    ) -> None:
        self._held = HeldPositions(polled, interval_s, self._positions_came, clock)
        self._followed = FollowedPrices(open_prices, self._quote_came)
        self._redis = redis
        self._engine = engine
        self._alerting = alerting
        self._read_from = read_from
        self._clock = clock
        self._running = False
        self._service: Instance | None = None
        self._keys_error: str | None = None
        self._unusable: str | None = None
        self._changed = anyio.Event()
        self._waiting = 0

    @property
    def is_running(self) -> bool:
        """Whether :meth:`running` is under way, without which there are no streams."""
        return self._running

    @property
    def positions(self) -> PositionCache:
        """Where the positions stand."""
        return self._held.polled

    @property
    def engine(self) -> PnlEngine:
        """The P&L of what was last heard, to be read only."""
        return self._engine

    def prices_status(self) -> PricesStatus | None:
        """How the live subscriber is doing; None before it has read the keys."""
        return self._followed.status()

    def totals(self) -> Totals:
        """The sums over all positions, at the prices last heard."""
        return self._engine.totals

    def warnings(self, *, live: bool = False) -> list[str]:
        """Why what is told may be out of date; empty where nothing is in the way.

        Args:
            live: Of a stream, which tells what the subscriber hears.
        """
        found = []
        if (reason := self._held.warning()) is not None:
            found.append(f"the positions are out of date: {reason}")
        reason = self.prices_error(live=live)
        if reason is None and (live or self._live):
            reason = self._followed.delay()
        if reason is not None:
            found.append(f"the prices are out of date: {reason}")
        if (reason := self._followed.conflict()) is not None:
            found.append(reason)
        return found

    def unusable(self) -> str | None:
        """Which positions are never priced, and why, as a warning; None where all can be."""
        return self._unusable

    def positions_warnings(self) -> list[str]:
        """Why the positions may be out of date; empty where they are not."""
        reason = self._held.warning()
        return [] if reason is None else [reason]

    def prices_error(self, *, live: bool = False) -> str | None:
        """What has failed, so that the prices may be out of date, or None."""
        return self._followed.error() if live or self._live else self._keys_error

    @property
    def _live(self) -> bool:
        return self._running and self._read_from == "live"

    async def current_positions(self) -> PositionCache:
        """The positions, once there are any.

        Raises:
            PositionsUnavailable: The source has not answered yet, or refused.
        """
        return await self._held.current(polling=self._running)

    async def report(self) -> PnlReport:
        """All positions at their prices now.

        Redis away: the last known prices, which become stale as they get older.

        Raises:
            PositionsUnavailable: As :meth:`current_positions`.
        """
        await self.current_positions()
        if not self._live:
            await self._read_keys()
        return self._engine.report(self._clock.utc_ns())

    async def updates(self, ended: Callable[[], bool]) -> AsyncIterator[PnlReport]:
        """The whole report once the positions are known, then what changed, as it changes.

        Only while :meth:`running`.

        Args:
            ended: Whether nobody wants more; asked a few times a second.
        """
        since: int | None = None
        while not ended():
            if since is None and not self._held.polled.answers:
                await self._change()
                continue
            now_ns = self._clock.utc_ns()
            if since is None:
                report = self._engine.report(now_ns)
            else:
                report = self._engine.changes(since, now_ns)
            if report.version == since:
                await self._change()
            else:
                since = report.version
                yield report

    async def _change(self) -> None:
        """Wait for one, or for a moment: time alone changes things too."""
        self._waiting += 1
        try:
            with anyio.move_on_after(_LOOK_S):
                await self._changed.wait()
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Poll, follow, look for alerts, until the block ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep, self._held.poll)
            tasks.start_soon(self._keep, self._followed.run)
            tasks.start_soon(self._keep, self._tick)
            if self._alerting is not None:
                tasks.start_soon(self._keep, self._alerting.publish)
            self._running = True
            try:
                yield
            finally:
                self._running = False
                tasks.cancel_scope.cancel()
        await self.aclose()

    async def aclose(self) -> None:
        """Close what is open."""
        self._redis.close()
        await self._held.polled.aclose()

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        """One part's unforeseen failure is no reason to end the gateway that has mounted it."""
        while True:
            try:
                await work()
            except Exception:  # noqa: BLE001 - whatever it is, it is logged and tried again
                _log.exception("gateway_part_failed", part=work.__name__.strip("_"))
            await anyio.sleep(_TICK_S)

    def _positions_came(self, polled: PositionCache) -> None:
        if self._engine.set_positions(polled.positions):
            self._unusable = _unusable(self._engine.problems())
            self._tell()

    async def _read_keys(self) -> None:
        symbols, asked_ns = self._engine.symbols, self._clock.utc_ns()
        try:
            found = await self._redis.prices(symbols)
        except MDServiceError as exc:
            self._keys_error = masked(str(exc))
            return
        self._keys_error = None
        self._learn(self._redis.service)
        now_ns = self._clock.utc_ns()
        holding_of, update, gone = self._engine.holding, self._engine.update, []
        for symbol in symbols:
            holding = holding_of(symbol)
            if holding is not None and holding.heard_ns >= asked_ns:
                continue  # an event has overtaken the answer; it has a key, and a newer price
            if (quote := found.get(symbol)) is not None:
                update(quote, now_ns)
            else:
                gone.append(symbol)
        self._engine.expire(gone, now_ns)
        self._tell()

    def _learn(self, service: Instance | None) -> None:
        """Take from the service what belongs to it: the feed's delay, the life of a key."""
        if service is None or service is self._service:
            return
        self._service = service
        if self._engine.set_service(
            feed_delay_s=service.delay_s,
            price_ttl_s=service.price_ttl_s,
            now_ns=self._clock.utc_ns(),
        ):
            self._tell()

    def _quote_came(self, quote: Quote) -> None:
        self._learn(self._followed.service())
        if self._engine.update(quote, self._clock.utc_ns()):
            self._tell()

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(_TICK_S)
            self._learn(self._followed.service())
            if self._alerting is not None:
                self._alerting.look(self._engine)

    def _tell(self) -> None:
        """Something changed."""
        if self._alerting is not None:
            self._alerting.look(self._engine)
        if self._waiting:
            self._changed.set()
            self._changed = anyio.Event()


def _unusable(problems: Sequence[tuple[str, str]]) -> str | None:
    """A warning that the totals lack these positions; None where there are none."""
    if not problems:
        return None
    named = [f"{symbol} ({reason})" for symbol, reason in dict.fromkeys(problems[:_MOST_NAMED])]
    more = len(problems) - _MOST_NAMED
    if more > 0:
        named.append(f"and {more} more")
    what = "1 position is" if len(problems) == 1 else f"{len(problems)} positions are"
    return f"{what} not priced, and missing in the totals: {', '.join(named)}"
