"""Joins positions, prices and the P&L engine for one gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Literal, Protocol, TypeVar

import anyio

from mdservice.client.reader import Prices, PricesStatus, Records
from mdservice.clock import Clock
from mdservice.errors import MDServiceError, PositionsError
from mdservice.gateway.alerting import Alerting
from mdservice.gateway.day import AccountDay
from mdservice.gateway.missing_prices import LastCloses, MissingPrices
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.gateway.risk import Risk
from mdservice.gateway.webhook import Webhook
from mdservice.model.kinds import TRADES
from mdservice.model.market import Market
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.observability.logging import get_logger, masked
from mdservice.pnl.engine import PnlEngine, RowsOf, rows_of
from mdservice.pnl.holding import Totals
from mdservice.pnl.rows import PnlReport, Row
from mdservice.positions.activities import AlpacaAccount
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate
from mdservice.redis_io.names import GONE_AFTER_S, Instance
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient

__all__ = ["Came", "Fills", "FollowedPrices", "PnlTracker", "ReadFrom"]

_log = get_logger(__name__)

_FIRST_S: Final = 0.2
_LIMIT_S: Final = 5.0
_SOON_S: Final = 1.0
"""After the start, a missing connection is reported only after this time."""

_T = TypeVar("_T")
ReadFrom = Literal["keys", "live"]
"""The source of an answer's prices: the keys, read in one round trip per answer, or the live
subscriber."""

_LOOK_S: Final = 0.2
"""How often a stream checks for prices that became stale, and for its own end."""
_MOST_NAMED: Final = 20
"""How many unusable positions a warning names."""
_CLOSE_S: Final = 1.0
"""How long closing the connections may take."""
_CONFIRM_S: Final = 5.0
_TICK_S: Final = 1.0
"""How often the tracker checks for prices that became stale, and calls a program's function for
positions without a request."""


class Fills(Protocol):
    """Follows the account's events, and applies them to the positions."""

    async def run(self) -> None:
        """Follow until cancelled."""
        ...

    def warning(self) -> str | None:
        """Why fills may come late, or None."""
        ...


Came = Callable[[TradeUpdate], Awaitable[None]]
"""Called with each event of the account after it was applied."""


class PnlTracker:
    """Tracks the value of positions.

    Without :meth:`running` it works only on request: it fetches positions that are older than the
    interval, and reads prices from the keys. Inside :meth:`running` it also polls the positions,
    reads live prices, checks alert rules and feeds streams.

    Args:
        positions: The positions; closed with the tracker.
        redis: Reads the keys.
        open_prices: Opens a reader of all events.
        engine: The P&L engine; owned by the tracker.
        alerting: Checks the alert rules, or None.
        read_from: The source of an answer's prices.
        clock: The time.
        risk: Judges the limits.
        webhook: Gets alerts and changes of the breaker, or None; closed with the tracker.
        http: What the other parts use for HTTP, or None; closed with the tracker.
        follow_fills: Makes what follows the account's events and applies them to the positions,
            with a function to call after each; None if there are no events.
        market_clock: Gives the stock market's hours. Without it, or while it does not answer, they
            are those that the service announces.
        missing: Finds prices that Redis has not, or None.
        account: Reads the account's balances and activities, or None; closed with the tracker.
        closes: Knows the last closes of what is gone, or None.

    Attributes:
        day: The account's day; None without an account.
        risk: As given.
        webhook: As given.
    """

    def __init__(
        self,
        positions: PositionCache,
        redis: RedisCalls,
        open_prices: Callable[[], AbstractAsyncContextManager[Prices | Records]],
        engine: PnlEngine,
        alerting: Alerting | None,
        read_from: ReadFrom,
        clock: Clock,
        risk: Risk,
        webhook: Webhook | None = None,
        http: HttpClient | None = None,
        follow_fills: Callable[[Came], Fills] | None = None,
        market_clock: MarketClock | None = None,
        missing: MissingPrices | None = None,
        account: AlpacaAccount | None = None,
        closes: LastCloses | None = None,
    ) -> None:
        self.risk = risk
        self.webhook = webhook
        self._market_clock = market_clock
        self._market: Market | None = None
        """What the market's own clock says."""
        self._http = http
        self._missing = missing
        self._positions = positions
        came = self._record_came if engine.mark == "last" else self._quote_came
        self._followed = FollowedPrices(open_prices, came)
        self._wanted: set[str] = set()
        """Symbols whose last trades were all canceled, so that their keys are to be read."""
        self._wants = anyio.Event()
        self._no_trades: str | None = None
        """Why there are no last trades to price by."""
        self._redis = redis
        self._engine = engine
        self._alerting = alerting
        self._read_from = read_from
        self._clock = clock
        self._running = False
        self._service: Instance | None = None
        self._announced: Market | None = None
        """The hours that the service announced last."""
        self._announced_s = 0.0
        self._keys_error: str | None = None
        self._unusable: str | None = None
        self._changed = anyio.Event()
        self._moved = anyio.Event()
        self._waiting = 0
        self._fills = None if follow_fills is None else follow_fills(self._fill_came)
        self.day = None
        if account is not None:
            self.day = AccountDay(account, positions, engine, redis, clock, self._notify, closes)

    @property
    def is_running(self) -> bool:
        """Whether :meth:`running` is active. Streams need it."""
        return self._running

    @property
    def positions(self) -> PositionCache:
        """The positions and the state of their source."""
        return self._positions

    @property
    def engine(self) -> PnlEngine:
        """The P&L at the last prices. Read only."""
        return self._engine

    def prices_status(self) -> PricesStatus | None:
        """The status of the live subscriber; None before it has read the keys."""
        return self._followed.status()

    def totals(self) -> Totals:
        """The sums over all positions at the last prices."""
        return self._engine.totals

    def warnings(self, *, live: bool = False) -> list[str]:
        """Why an answer may be out of date; empty without problems.

        Args:
            live: For a stream, which uses the subscriber's prices.
        """
        found = []
        if (reason := self._positions.warning()) is not None:
            found.append(f"the positions are out of date: {reason}")
        found += self._positions.differences()
        if self._fills is not None and (reason := self._fills.warning()) is not None:
            found.append(reason)
        reason = self.prices_error(live=live)
        if reason is None and (live or self._live):
            reason = self._followed.delay()
        if reason is not None:
            found.append(f"the prices are out of date: {reason}")
        if (reason := self._followed.conflict()) is not None:
            found.append(reason)
        if self._no_trades is not None:
            found.append(self._no_trades)
        if self.webhook is not None and self.webhook.dropped:
            found.append(f"{self.webhook.dropped} messages did not reach the webhook, see the log")
        if self._missing is not None and (reason := self._missing.warning()) is not None:
            found.append(reason)
        return found

    def unusable(self) -> str | None:
        """A warning about positions that are never priced, with the reasons; None if all can be."""
        return self._unusable

    def prices_error(self, *, live: bool = False) -> str | None:
        """Why the prices may be out of date, or None."""
        return self._followed.error() if live or self._live else self._keys_error

    @property
    def _live(self) -> bool:
        return self._running and self._read_from == "live"

    async def current_positions(self) -> Sequence[Position]:
        """The positions, which the P&L has from now on too.

        Raises:
            PositionsUnavailable: The source has never answered.
        """
        positions = await self._positions.current(polled=self._running)
        self._take(positions)
        return positions

    async def problems(self) -> list[str]:
        """Why positions or prices are not known, so that limits cannot be judged.

        Takes the current positions first. Empty without limits.
        """
        if not self.risk.has_limits:
            return []
        found = []
        try:
            await self.current_positions()
        except PositionsError as exc:
            found.append(str(exc))
        else:
            if (reason := self._positions.warning()) is not None:
                found.append(f"the positions are out of date: {reason}")
        reason = self._followed.error()
        if reason is None and self._followed.status() is None:
            reason = "not connected to Redis yet"
        if reason is not None:
            found.append(f"the prices are out of date: {reason}")
        return found

    async def refresh(self) -> None:
        """Take the current positions and prices.

        Raises:
            PositionsUnavailable: As :meth:`current_positions`.
        """
        self._take(await self._positions.current(polled=self._running))
        if not self._live:
            await self.read_keys()

    async def report_of(self, rows_of: RowsOf[_T]) -> PnlReport[_T]:
        """All positions at their current prices.

        Without Redis, at the last known prices, which become stale with age.

        Args:
            rows_of: Returns the rows of each holding, one for each lot.

        Raises:
            PositionsUnavailable: As :meth:`current_positions`.
        """
        await self.refresh()
        return self._engine.report_of(rows_of, self._clock.utc_ns())

    async def report(self) -> PnlReport[Row]:
        """As :meth:`report_of`, with rows that a program can use."""
        return await self.report_of(rows_of)

    async def updates(
        self, rows_of: RowsOf[_T], ended: Callable[[], bool]
    ) -> AsyncIterator[PnlReport[_T]]:
        """The whole report once the positions are known, then each change.

        Only while :meth:`running`.

        Args:
            rows_of: Returns the rows of each holding, one for each lot.
            ended: Returns whether the stream should end; called a few times a second.
        """
        since: int | None = None
        while not ended():
            if since is None and not self._positions.answers:
                await self._change()
                continue
            report = self._engine.report_of(rows_of, self._clock.utc_ns(), since)
            if report.version == since:
                await self._change()
            else:
                since = report.version
                yield report

    async def _change(self) -> None:
        """Wait for a change, or for a moment, because time alone makes prices stale."""
        self._waiting += 1
        try:
            with anyio.move_on_after(_LOOK_S):
                await self._changed.wait()
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Poll positions, read live prices and check alerts inside this block."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep, self._poll)
                if self._fills is not None:
                    tasks.start_soon(self._keep, self._fills.run)
                tasks.start_soon(self._keep, self._followed.run)
                tasks.start_soon(self._keep, self._tick)
                if self._missing is not None:
                    tasks.start_soon(self._keep, self._find_missing)
                if self._alerting is not None:
                    tasks.start_soon(self._keep, self._alerting.publish)
                if self.webhook is not None:
                    tasks.start_soon(self._keep, self.webhook.run)
                if self.day is not None:
                    tasks.start_soon(self._keep, self.day.run)
                tasks.start_soon(self._keep, self.risk.run)
                tasks.start_soon(self._keep, self._confirm)
                if self._market_clock is not None:
                    tasks.start_soon(self._keep, self._follow_market)
                tasks.start_soon(self._keep, self.risk.act)
                self._running = True
                try:
                    yield
                finally:
                    self._running = False
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        self._redis.close()
        await self._positions.aclose()
        if self.webhook is not None:
            await self.webhook.aclose()
        if self._http is not None:
            await self._http.aclose()
        if self.day is not None:
            await self.day.aclose()

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        """Log an unexpected failure of one part, so that it does not end the gateway."""
        while True:
            try:
                await work()
            except Exception:  # noqa: BLE001 - whatever it is, it is logged and tried again
                _log.exception("gateway_part_failed", part=work.__name__.strip("_"))
            await anyio.sleep(_TICK_S)

    async def _poll(self) -> None:
        self._take(await self._positions.refresh())
        while True:
            self._take(await self._positions.refresh_when_due(_TICK_S))

    async def _fill_came(self, update: TradeUpdate) -> None:
        known = self._positions if self._positions.answers else self._engine
        self._take(known.positions, update)

    @property
    def moved(self) -> anyio.Event:
        """Set at the next change of the positions."""
        return self._moved

    def _take(self, positions: Sequence[Position], update: TradeUpdate | None = None) -> None:
        """The one way of positions into the P&L: what an await of the cache has returned.

        Args:
            positions: All of them.
            update: The event after which they are so. Limits are judged when both are in the P&L,
                because one without the other is another P&L of the day.
        """
        has_moved = self._engine.set_positions(positions)
        if update is not None and self.day is not None:
            self.day.take_fill(update)
        if has_moved:
            self._unusable = _unusable(self._engine.problems())
            if self.day is not None:
                self.day.take_positions()
            self._notify()
            self._moved.set()
            self._moved = anyio.Event()

    async def read_keys(self, symbols: Sequence[str] | None = None) -> None:
        """Take the prices that stand in the keys; a failure is in :meth:`warnings`.

        Args:
            symbols: Whose keys; None for those of all positions.
        """
        symbols = self._engine.symbols if symbols is None else symbols
        asked_ns = self._clock.utc_ns()
        try:
            quotes = await self._redis.prices(symbols)
            trades = await self._redis.trades(symbols) if self._engine.mark == "last" else None
        except MDServiceError as exc:
            self._keys_error = masked(str(exc))
            return
        self._keys_error = None
        self._learn(self._redis.service)
        now_ns = self._clock.utc_ns()
        engine, gone = self._engine, []
        for symbol, quote in zip(symbols, quotes, strict=True):
            if quote is None:
                gone.append(symbol)
            else:
                engine.update(quote, now_ns, asked_ns)
        if trades is not None:
            gone = []
            for symbol, trade in zip(symbols, trades, strict=True):
                if trade is None:
                    gone.append(symbol)
                else:
                    engine.trade(trade, now_ns, asked_ns)
        engine.expire(gone, now_ns, asked_ns)
        self._notify()

    def _learn(self, service: Instance | None) -> None:
        """Use the service's own settings: the feed's delay, the expiry of a key."""
        if service is None or service is self._service:
            return
        self._service = service
        self._look_for_trades(service)
        if service.market is not None:
            self._announced, self._announced_s = service.market, self._clock.monotonic()
            self._set_market()
        if self._engine.set_service(
            feed_delay_s=service.delay_s,
            price_ttl_s=service.price_ttl_s,
            now_ns=self._clock.utc_ns(),
        ):
            self._notify()

    def _look_for_trades(self, service: Instance) -> None:
        """Warn if last trades are to be the price, and the service does not follow trades."""
        channels = service.channels
        reason = None
        if self._engine.mark == "last" and channels and TRADES.channel not in channels:
            followed = ",".join((*channels, TRADES.channel))
            reason = (
                "MDSERVICE_MARK=last needs trades, which the service does not follow: set "
                f"MDSERVICE_CHANNELS={followed} for it"
            )
        if reason is not None and self._no_trades is None:
            _log.warning("gateway_has_no_trades", reason=reason)
        self._no_trades = reason

    def _quote_came(self, quote: Quote) -> None:
        self._learn(self._followed.service())
        if self._engine.update(quote, self._clock.utc_ns()):
            self._notify()

    async def _find_missing(self) -> None:
        if self._missing is not None:
            await self._missing.run(self._missing_came)

    def _missing_came(self, record: Quote | Trade) -> None:
        """Apply a record that is not from Redis, so that it does not need a key to be live."""
        self._record_came(record)
        self._engine.need_no_key(record)

    def _record_came(self, record: Any) -> None:
        """Apply a record where last trades are the price, or that was missing."""
        self._learn(self._followed.service())
        engine, now_ns, changed = self._engine, self._clock.utc_ns(), False
        match record:
            case Trade():
                stands_in = engine.mark != "last"
                changed = engine.stand_in(record) if stands_in else engine.trade(record, now_ns)
            case Quote():
                changed = engine.update(record, now_ns)
            case Correction():
                changed = engine.correct(record, now_ns)
            case Cancel():
                changed = engine.cancel(record, now_ns)
                holding = engine.known(record.symbol)
                if changed and holding is not None and not holding.trades:
                    self._wanted.add(record.symbol)
                    self._wants.set()
        if changed:
            self._notify()

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(_TICK_S)
            self._learn(self._followed.service())
            self._set_market()
            self._judge()

    async def _follow_market(self) -> None:
        if self._market_clock is not None:
            await self._market_clock.follow(self._clock, self._market_came)

    def _market_came(self, market: Market | None) -> None:
        self._market = market
        self._set_market()

    def _set_market(self) -> None:
        """Use the hours of the market's own clock, or else those that the service announces."""
        now_ns, market = self._clock.utc_ns(), self._market
        if market is None and (market := self._announced) is not None:
            # What a service that has ended said counts until the market opens or closes by it.
            gone = self._clock.monotonic() - self._announced_s > GONE_AFTER_S
            changes_ns = market.changes_ns
            if gone and (changes_ns is None or now_ns >= changes_ns):
                market = None
        if self._engine.set_market(market, now_ns):
            self._notify()

    async def _confirm(self) -> None:
        """Ask the keys after the close whether the last prices are still the newest ones.

        Ask them too for the last trades before those that were canceled.
        """
        while True:
            if symbols := self._engine.unconfirmed():
                await self.read_keys(symbols)
            with anyio.move_on_after(_CONFIRM_S):
                await self._wants.wait()
            self._wants = anyio.Event()
            if self._wanted:
                symbols, self._wanted = list(self._wanted), set()
                await self.read_keys(symbols)

    def _judge(self) -> None:
        if self._alerting is not None:
            self._alerting.look(self._engine)
        self.risk.look()

    def _notify(self) -> None:
        """Wake the streams after a change."""
        self._judge()
        if self._waiting:
            self._changed.set()
            self._changed = anyio.Event()


class FollowedPrices:
    """Reads all events, and passes each record on; reopened as long as the tracker runs.

    Args:
        open_prices: Opens a reader of all events.
        came: Called with each record.
    """

    def __init__(
        self,
        open_prices: Callable[[], AbstractAsyncContextManager[Prices | Records]],
        came: Callable[[Any], None],
    ) -> None:
        self._open_prices = open_prices
        self._came = came
        self._prices: Prices | Records | None = None
        self._error: str | None = None
        self._since_s: float | None = None

    def status(self) -> PricesStatus | None:
        """The status of the reader; None without one."""
        return None if self._prices is None else self._prices.status()

    def service(self) -> Instance | None:
        """The service whose events are read; None if it is unknown."""
        return None if self._prices is None else self._prices.service

    def conflict(self) -> str | None:
        """A warning if other services write the same keys, or None."""
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
        """A warning if the first connection takes long without an error, or None."""
        if self._since_s is None or self._prices is not None or self._error is not None:
            return None
        overdue = anyio.current_time() > self._since_s + _SOON_S
        return "not connected to Redis yet" if overdue else None

    async def run(self) -> None:
        """Read events until cancelled."""
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


def _unusable(problems: Sequence[tuple[str, str]]) -> str | None:
    """A warning about positions that the totals do not include; None without any."""
    if not problems:
        return None
    named = [f"{symbol} ({reason})" for symbol, reason in dict.fromkeys(problems[:_MOST_NAMED])]
    more = len(problems) - _MOST_NAMED
    if more > 0:
        named.append(f"and {more} more")
    what = "1 position is" if len(problems) == 1 else f"{len(problems)} positions are"
    return f"{what} not priced, and missing in the totals: {', '.join(named)}"
