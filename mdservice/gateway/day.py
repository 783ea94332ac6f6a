"""The account's day: its fills and fees, its P&L, and whether that agrees with its equity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from decimal import Decimal
from typing import Final

import anyio
import attrs
import msgspec

from mdservice.clock import Clock
from mdservice.errors import AccountError, AccountRefused, AccountUnavailable, MDServiceError
from mdservice.gateway.missing_prices import LastCloses
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.model.position import Position
from mdservice.model.symbol import without_slash
from mdservice.observability.logging import get_logger, masked
from mdservice.pnl.day import (
    DayBook,
    Fill,
    Start,
    SymbolDay,
    average_at_start,
    midnight_ns,
    new_york_date,
)
from mdservice.pnl.encode import encode_day
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.numbers import EXACT, ZERO, short
from mdservice.positions.activities import Account, Activities, AlpacaAccount
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate
from mdservice.runtime.backoff import Backoff

__all__ = ["AccountDay"]

_log = get_logger(__name__)

_POLL_S: Final = 60.0
_LEAST_S: Final = 5.0
"""Between two polls. Each is four requests, and Alpaca answers 200 a minute on its free plan."""
_PATIENCE_S: Final = 5.0
"""How long a request waits for a poll."""
_CLOSES_LIMIT_S: Final = 3.0
"""How long last closes may take, less than a request waits; then the next poll asks again."""
_CONFIRM_S: Final = 4.0
"""How long the equity must differ; less than the time between two polls."""
_FIRST_S: Final = 1.0
_FULL_EVERY: Final = 10
"""Each so many polls, all fills of the day are read again, and not only the new ones."""
_UNLISTED_S: Final = 120.0
"""How long the list of activities may lack a fill from the stream."""
_MOST_PAGES_BACK: Final = 50
_MOST_NAMED: Final = 10
_CENT: Final = Decimal("0.01")
_ROUNDED: Final = Decimal("0.02")
"""By how much four amounts that are rounded to the cent may differ from their sum."""
_NO_SUCH_CALL: Final = 404
_DOLLARS: Final = "USD"


class _Kept(msgspec.Struct):
    """What Redis keeps of the start of the day, for a gateway that starts later."""

    date: str
    starts: dict[str, Start]


_decoder = msgspec.json.Decoder(_Kept)


@attrs.define
class _Read:
    """What one poll brought."""

    date: str
    asked_ns: int
    account: Account
    fills: Activities
    others: Activities


class AccountDay:
    """Follows the fills, the fees and the balances of the account, and keeps the engine's day.

    The list of activities is read each minute, and a few seconds after each fill. Fills from the
    stream count at once. At midnight in New York a new day begins.

    What positions were at the start of the day is kept in Redis, so that a gateway that starts
    later knows the average price and the last close of a position that is gone by then.

    Args:
        source: The account.
        positions: The positions.
        engine: Gets what the fills changed.
        redis: Keeps the start of the day.
        clock: The time.
        changed: Called after each change of the engine.
        closes: Knows the last closes of what is gone before the first gateway of the day
            starts; None if nothing does.
    """

    def __init__(
        self,
        source: AlpacaAccount,
        positions: PositionCache,
        engine: PnlEngine,
        redis: RedisCalls,
        clock: Clock,
        changed: Callable[[], None],
        closes: LastCloses | None = None,
    ) -> None:
        self._closes = closes
        self._closes_error: str | None = None
        self._source = source
        self._positions = positions
        self._engine = engine
        self._redis = redis
        self._clock = clock
        self._changed = changed
        self._book = DayBook("")
        self._days: dict[str, SymbolDay] = {}
        self._lots: dict[str, tuple[Position, ...]] = {}
        """The positions for which each day was computed."""
        self._held: list[tuple[Decimal | None, Decimal | None, Decimal | None]] = []
        self._noted: tuple[Position, ...] = ()
        self._is_known = False
        self._error: str | None = "the account has not answered yet"
        self._listed: set[str] = set()
        self._booked: set[str] = set()
        self._last_id = ""
        self._polls = 0
        self._wanted = anyio.Event()
        self._polling = anyio.Lock()
        self._requesting = anyio.Lock()
        self._polled_s: float | None = None
        self._account: Account | None = None
        self._searched: frozenset[tuple[str, Decimal]] = frozenset()
        """Symbols, and quantities at the start of the day, that the older activities were read for.

        The quantity changes when the positions come after the first fills."""
        self._suspect: tuple[Decimal, float] | None = None
        """A difference that is not confirmed, and since when."""
        self._difference: Decimal | None = None
        self._save_error: str | None = None
        self._unsaved = False
        engine.set_day(None)

    @property
    def error(self) -> str | None:
        """Why the fills are not known, or may be out of date; or None."""
        return self._error

    @property
    def is_known(self) -> bool:
        """Whether the fills of this date were read."""
        return self._is_known and self._book.date == new_york_date(self._clock.utc_ns())

    @property
    def difference(self) -> Decimal | None:
        """Dollars of the equity that neither P&L nor activities explain; None if not compared."""
        return self._difference

    async def run(self) -> None:
        """Poll until cancelled."""
        backoff = Backoff(_FIRST_S, _POLL_S)
        while True:
            await self.poll()
            if self._error is None and self._is_known:
                backoff.reset()
                wait_s = _POLL_S
            else:
                wait_s = backoff.next_s()
            now_ns = self._clock.utc_ns()
            next_day_ns = midnight_ns(new_york_date(now_ns), 1) - now_ns
            with anyio.move_on_after(min(wait_s, next_day_ns / 1e9 + 0.001)):
                await self._wanted.wait()
                await anyio.sleep(_LEAST_S)

    def want(self) -> None:
        """Read the activities soon."""
        self._wanted.set()

    def take_fill(self, update: TradeUpdate) -> None:
        """Count a fill from the stream at once; other events change nothing."""
        qty, price = update.change, update.price
        if not update.is_fill or not qty or price is None:
            return
        self.want()
        name = update.execution_id or repr(update.identity)
        fill = Fill(update.symbol, qty, price, update.timestamp_ns, f"stream/{name}")
        if self._is_known and self._book.add(fill, streamed=True):
            self._compute((without_slash(fill.symbol),))

    def take_positions(self) -> None:
        """Compute the day of symbols whose positions in the engine have changed.

        A changed quantity may be a fill that the stream has lost, and another last close or average
        price a new day, so the activities are read soon.
        """
        held = [
            (position.qty, position.lastday_price, position.avg_entry_price)
            for position in self._engine.positions
        ]
        if held != self._held:
            self._held = held
            self.want()
        if self._is_known:
            # Average prices and last closes change overnight, some time after the date.
            before, self._noted = set(map(id, self._noted)), self._positions.positions
            changed = [position for position in self._noted if id(position) not in before]
            if self._book.note(changed, newer=True):
                self._unsaved = True
            lots = self._engine.lots
            self._compute(key for key, known in self._lots.items() if lots(key) is not known)

    async def current(self, *, polled: bool) -> None:
        """Poll if the fills are not known, or too old; for at most 5 s.

        Args:
            polled: Whether :meth:`run` polls, so that known fills are not too old.
        """
        with anyio.move_on_after(_PATIENCE_S):
            async with self._requesting:
                if not self._is_current(polled=polled):
                    await self.poll()

    def _is_current(self, *, polled: bool) -> bool:
        if self._polled_s is None:
            return False
        age_s = self._clock.monotonic() - self._polled_s
        if not self.is_known:
            # Where only positions were missing, and are known now, there is nothing to wait for.
            may_be_known = self._error is None and self._positions.answers > 0
            is_today = self._book.date == new_york_date(self._clock.utc_ns())
            return is_today and age_s < _PATIENCE_S and not may_be_known
        return polled or age_s < _POLL_S

    async def poll(self) -> None:
        """Read the activities and the balances now; a failure is in :attr:`error`."""
        async with self._polling:
            if self._wanted.is_set():  # else run() may wait for it
                self._wanted = anyio.Event()
            positions = self._positions.positions if self._positions.answers else None
            try:
                read = await self._read()
                book, is_new = self._book_for(read)
                if is_new and not read.fills.whole:
                    read.fills = await self._source.fills(read.date)
                if is_new:
                    book.starts |= await self._load(read.account.id, read.date)
                self._take(read, book, is_new=is_new, positions=positions)
                await self._find_averages()
                await self._find_closes()
            except AccountError as exc:
                self._fail(exc)
            else:
                if self._error is not None and self._polls > 1:
                    _log.info("account_is_back", source=self._source.address)
                self._error = None
                self._check(read.account)
            self._polled_s = self._clock.monotonic()
            await self._save()

    async def aclose(self) -> None:
        """Close the connections to the account."""
        await self._source.aclose()

    async def _read(self) -> _Read:
        asked_ns = self._clock.utc_ns()
        date = new_york_date(asked_ns)
        account = await self._source.account()
        known = self._is_known and date == self._book.date and self._account is not None
        whole = not known or self._polls % _FULL_EVERY == 0
        fills = await self._source.fills(date, "" if whole else self._last_id)
        others = await self._source.others(date)
        return _Read(date, asked_ns, account, fills, others)

    def _book_for(self, read: _Read) -> tuple[DayBook, bool]:
        """The book to add what was read to, and whether it is a new one."""
        same = self._account is not None and self._account.id == read.account.id
        if not self._is_known or not same or read.date != self._book.date:
            return DayBook(read.date), True
        if self._is_taken_back(read):
            return DayBook(read.date), True
        return self._book, False

    def _is_taken_back(self, read: _Read) -> bool:
        """Whether the list lacks what it had before."""
        if not self._booked <= {one.id for one in read.others.bookings}:
            return True
        return read.fills.whole and not self._listed <= {one.id for one in read.fills.fills}

    def _take(
        self, read: _Read, book: DayBook, *, is_new: bool, positions: tuple[Position, ...] | None
    ) -> None:
        if is_new:
            self._book, self._days, self._lots = book, {}, {}
            self._listed, self._searched = set(), frozenset()
        changed = {without_slash(fill.symbol) for fill in read.fills.fills if book.add(fill)}
        changed |= book.book(read.others.bookings)
        changed |= book.drop_unlisted(read.asked_ns - round(_UNLISTED_S * 1e9))
        if positions is not None:
            # Those before the fills were read, and what has changed without a fill meanwhile.
            noted = book.note(positions), book.note(self._positions.positions, newer=True)
            self._unsaved = self._unsaved or any(noted)
        self._listed |= {fill.id for fill in read.fills.fills}
        self._booked = {one.id for one in read.others.bookings}
        self._last_id = read.fills.last_id or self._last_id
        self._account = read.account
        self._polls += 1
        # Fills without the positions after them are another P&L, which limits must not see.
        self._is_known = self._positions.answers > 0
        if not self._is_known:
            return
        if is_new:
            self._engine.set_day({})
            changed = set(book.keys)
        self._compute(changed, changed=is_new)

    def _compute(self, keys: Iterable[str], *, changed: bool = False) -> None:
        """Update the day of these symbols in the engine, and report if anything has changed."""
        for key in list(keys):
            self._lots[key] = lots = self._engine.lots(key)
            self._days[key] = day = self._book.symbol_day(key, lots)
            changed = self._engine.update_day(key, day) or changed
        if changed:
            self._changed()

    def _fail(self, exc: AccountError) -> None:
        reason = masked(str(exc))
        if reason != self._error:
            _log.warning("account_failed", source=self._source.address, reason=reason)
        self._error = reason
        date = new_york_date(self._clock.utc_ns())
        if isinstance(exc, AccountRefused) and exc.status == _NO_SUCH_CALL:
            # Whatever this is, it has no activities: as a gateway without an account.
            self._is_known = False
            self._engine.set_day({}, followed=False)
            self._changed()
        elif date != self._book.date:
            self._book = DayBook(date)
            self._is_known = False
            self._engine.set_day(None)
            self._changed()

    # The start of the day.

    async def _find_averages(self) -> None:
        """Find average prices at the start of the day in the activities of the days before."""
        wanted = {
            key: day.start_qty
            for key, day in self._days.items()
            if day.needs_average and day.start_qty
        }
        if not wanted or self._searched.issuperset(wanted.items()):
            return
        searched = frozenset(wanted.items())
        start_ns = midnight_ns(self._book.date)
        older: dict[str, list[Fill]] = {key: [] for key in wanted}
        async with aclosing(self._source.before(self._book.date, _MOST_PAGES_BACK)) as pages:
            async for page in pages:
                changes = [one.fill for one in page.bookings if one.fill is not None]
                for fill in (*page.fills, *changes):
                    of_symbol = older.get(without_slash(fill.symbol))
                    if of_symbol is not None and fill.at_ns < start_ns:
                        of_symbol.append(fill)
                for one in page.bookings:
                    if one.changes is not None:  # a split: what is older does not add up
                        wanted.pop(without_slash(one.changes), None)
                self._learn_averages(wanted, older)
                if not wanted:
                    break
        self._searched = searched

    def _learn_averages(self, wanted: dict[str, Decimal], older: Mapping[str, list[Fill]]) -> None:
        for key, qty in list(wanted.items()):
            fills = sorted(older[key], key=lambda fill: fill.at_ns)
            average = average_at_start(fills, qty)
            if average is not None:
                del wanted[key]
                self._book.learn_average(key, qty, average)
                self._unsaved = True
                self._compute((key,))

    async def _find_closes(self) -> None:
        """Find the last closes of what is gone and was never seen as a position."""
        wanted = [
            day.symbol
            for day in self._days.values()
            if not day.qty and day.problem is None and day.closed_pnl is None
        ]
        if self._closes is None or not wanted:
            return
        date = self._book.date
        found: dict[str, Decimal] = {}
        reasons: list[str] = []
        with anyio.move_on_after(_CLOSES_LIMIT_S):
            found, reasons = await self._closes.before(date, wanted)
        reason = "; ".join(reasons) or None
        if reason is not None and reason != self._closes_error:
            _log.warning("last_closes_not_read", reason=reason)
        self._closes_error = reason
        if date != self._book.date:
            return
        for symbol, price in found.items():
            self._book.learn_close(without_slash(symbol), price)
            self._unsaved = True
        self._compute(map(without_slash, found))

    async def _load(self, account: str, date: str) -> Mapping[str, Start]:
        try:
            kept = await self._redis.day_start(account)
            found = None if kept is None else _decoder.decode(kept)
        except (MDServiceError, ValueError) as exc:
            _log.warning("day_start_not_read", reason=masked(str(exc)))
            return {}
        return found.starts if found is not None and found.date == date else {}

    async def _save(self) -> None:
        if not self._unsaved or self._account is None:
            return
        kept = msgspec.json.encode(_Kept(self._book.date, self._book.starts))
        try:
            await self._redis.keep_day_start(self._account.id, kept)
        except MDServiceError as exc:
            reason = masked(str(exc))
            if reason != self._save_error:
                _log.warning("day_start_not_kept", reason=reason)
            self._save_error = reason
        else:
            self._unsaved, self._save_error = False, None

    # The cross-check.

    def _check(self, account: Account) -> None:
        """Compare the change of the equity with the day's P&L and what else moved the cash.

        A difference counts once a later poll confirms it, because the balances, the positions and
        the activities are not of the same moment.
        """
        now_s = self._clock.monotonic()
        found = self._unexplained(account)
        if found is None or abs(found) <= _CENT:
            self._suspect = None
            if found is not None and abs(self._difference or ZERO) > _CENT:
                _log.info("equity_agrees_again")
            self._difference = found
        elif self._suspect is not None and found == self._suspect[0]:
            if now_s < self._suspect[1] + _CONFIRM_S:
                self.want()
                return
            if found != self._difference:
                _log.warning("equity_differs", dollars=short(found))
            self._difference = found
        else:
            self._suspect = found, now_s
            self.want()

    def _unexplained(self, account: Account) -> Decimal | None:
        """Dollars of the change of the equity that are not explained; None if that is unknown."""
        totals, fees = self._engine.totals, self._book.fees
        equity, last_equity = account.equity, account.last_equity
        pnl = totals.day_pnl
        if pnl is None or fees is None or equity is None or last_equity is None:
            return None
        if account.currency != _DOLLARS:
            return None
        # What the cash must have gained: the P&L that is not in what is still held.
        expected = EXACT.subtract(EXACT.subtract(pnl, totals.market_value), fees)
        for amount in self._book.moved().values():
            expected = EXACT.add(expected, amount)
        cash, value = account.cash, account.positions_value
        if cash is not None and value is not None:
            rest = EXACT.subtract(equity, EXACT.add(cash, value))
            if abs(rest) <= _ROUNDED:
                # What positions are worth is on both sides, at the broker's own prices.
                return EXACT.subtract(EXACT.subtract(cash, last_equity), expected)
        value = self._value()
        if value is None:
            return None
        expected = EXACT.add(expected, value)
        return EXACT.subtract(EXACT.subtract(equity, last_equity), expected)

    def _value(self) -> Decimal | None:
        """What the positions are worth at their source's prices; None if one has none."""
        total = ZERO
        for position in self._positions.positions:
            qty, price = position.qty, position.current_price
            if qty is None or price is None or position.problem is not None:
                return None
            units = EXACT.multiply(qty, position.multiplier)
            total = EXACT.fma(units, price, total)
        return total

    # The answer.

    def warnings(self) -> list[str]:
        """Why the day's figures may be out of date, incomplete, or not those of the equity."""
        found = []
        if self._error is not None:
            found.append(f"today's fills may be out of date: {self._error}")
        found += _named([f"{day.symbol}: {_why(day)}" for day in self._days.values() if _why(day)])
        if self._book.fees is None:
            found.append("a fee cannot be read, so the fees are not known")
        account = self._account
        if account is not None and account.currency != _DOLLARS:
            found.append(f"the equity is in {account.currency}, so it is not compared")
        if moved := self._book.moved():
            amounts = ", ".join(f"{kind} {short(amount)}" for kind, amount in moved.items())
            found.append(f"other activities changed the equity too, in dollars: {amounts}")
        if self._difference is not None and abs(self._difference) > _CENT:
            found.append(
                f"the equity changed by {short(self._difference)} dollars more than this P&L and "
                "the activities explain"
            )
        return found

    def encode(self, warnings: Sequence[str] = ()) -> bytes:
        """``{"date":"2026-11-20","realized_pnl":12.5,…}``; see :func:`encode_day`.

        Raises:
            AccountUnavailable: The fills of this date are not known.
        """
        if not self.is_known:
            reason = self._error or "the fills of the new date are not read yet"
            raise AccountUnavailable(f"the activities of the account are not known: {reason}")
        days = [self._days[key] for key in self._book.keys if key in self._days]
        return encode_day(
            self._book.date,
            self._engine.totals,
            self._book.fees,
            days,
            [*warnings, *self.warnings()],
        )


def _why(day: SymbolDay) -> str | None:
    """Why the P&L of a symbol is not known, or None."""
    if day.problem is not None:
        return f"its P&L is not known, because {day.problem}"
    if day.needs_average:
        return "its average entry price at the start of the day is not known"
    if not day.qty and day.closed_pnl is None:
        return "its price at the last close is not known"
    return None


def _named(texts: list[str]) -> list[str]:
    more = len(texts) - _MOST_NAMED
    return texts if more <= 0 else [*texts[:_MOST_NAMED], f"and {more} more symbols"]
