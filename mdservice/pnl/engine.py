"""Positions at live prices: rows and totals that change with each quote. Pure.

An event costs only the work for its symbol's lots, and a report may have only the changed rows. So
ten thousand positions are as fast as ten while only a few prices change.
"""

from __future__ import annotations

from bisect import insort_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from heapq import heappop, heappush, heapreplace
from math import isfinite
from typing import Final, Literal, TypeVar

import attrs

from mdservice.model.market import Market, Session, last_session
from mdservice.model.position import Position, asset_class_of
from mdservice.model.quote import Quote, mid_e5, mid_number
from mdservice.model.symbol import is_option, pair_of, without_slash
from mdservice.model.timestamps import new_york_day
from mdservice.model.trade import Cancel, Correction, Trade, TradeId
from mdservice.pnl.day import NOT_KNOWN, NOTHING_TODAY, SymbolDay
from mdservice.pnl.holding import Holding, Totals
from mdservice.pnl.last_sale import updates_last
from mdservice.pnl.numbers import EXACT, to_price
from mdservice.pnl.rows import PnlReport, Row

__all__ = ["DEFAULT_MAX_SPREAD", "MOST_REMEMBERED", "PnlEngine", "RowsOf", "rows_of"]

MOST_REMEMBERED: Final = 20_000
"""Symbols without a position whose newest quote is kept; more than any feed has. Beyond it, the
ones that were closed or first seen longest ago are dropped."""

DEFAULT_MAX_SPREAD: Final = 10.0
"""Per cent of the mid."""

_T = TypeVar("_T")
RowsOf = Callable[[Sequence[Holding]], Sequence[Sequence[_T]]]
"""Returns the rows of each holding, one for each lot."""
_FEW: Final = 16
"""How many other positions are replaced one by one."""
_S_NS = 1_000_000_000
_MOST_TRADES: Final = 8
"""How many last trades of a symbol are kept, in case the newest ones are canceled."""
_CLOCKS_DIFFER_NS: Final = 60 * _S_NS
"""By how much the market's clock may be ahead of this machine's."""
_200: Final = Decimal(200)


class PnlEngine:
    """Prices of symbols, held or not, and the P&L of the positions.

    A price is live until its quote is older than ``stale_after_s + feed_delay_s``, until its symbol
    has had no quote for ``price_ttl_s``, or until its key is known to be gone. Then it is stale,
    and still shown. Statuses depend on the time that is passed in. If the clock is set back, a
    stale price stays stale until the symbol's next quote.

    A quote with neither side, or with too wide a spread, is not usable: the last usable quote, the
    mark, stays the price, and its row is stale until the next usable quote. A mark that was no
    longer live when it came stays so. Without a mark, the price is the ``current_price`` or
    ``lastday_price`` of the position, and stale.

    While the market is closed, a price that is no longer live is ``closed`` instead of stale if it
    is the last one of the last session: it is of that session, and the service had no newer one
    after the close. A quote that came after the close and is not usable leaves it so. The source's
    price counts as such too. Crypto is always open.

    With ``mark`` ``last``, the price is the last trade that counts as such by
    :func:`mdservice.pnl.last_sale.updates_last`; with ``exit`` it is the bid for a long lot and the
    ask for a short one. If a symbol has lots in both directions, it takes quotes with both sides.
    As long as there is no such price, nor one of the source, the mid of the newest usable quote
    stands in, and is stale.

    Quotes of symbols without a position are accepted too. The newest of each is kept, so that a
    new position has its price at once. Prices of closed positions are kept as well.

    Args:
        stale_after_s: Seconds after which a price counts as stale.
        price_ttl_s: Seconds for which the key of a price exists.
        feed_delay_s: The intended delay of the feed, seconds.
        max_spread: The widest usable spread, whichever side is higher, in per cent of the mid; 0
            allows any. A quote with one side has no spread. The spread of an option is not
            limited, because wide spreads are usual there.
        mark: What the price is: ``mid``, ``last`` or ``exit``.

    Attributes:
        mark: As given.
    """

    def __init__(
        self,
        *,
        stale_after_s: float,
        price_ttl_s: float,
        feed_delay_s: float = 0.0,
        max_spread: float = DEFAULT_MAX_SPREAD,
        mark: Literal["mid", "last", "exit"] = "mid",
    ) -> None:
        self.mark = mark
        self._stale_after_s = stale_after_s
        self._set_ages(feed_delay_s, price_ttl_s)
        self._max_spread = Decimal(repr(float(max_spread)))
        # As a part of the sum of both sides: within it usable, beyond it checked exactly.
        self._surely_narrow = max_spread / 200 * (1 - 1e-9) if max_spread else float("inf")
        self._positions: tuple[Position, ...] = ()
        self._names: list[tuple[str, str]] = []
        """Each position's symbol, and that of its price."""
        self._places: list[tuple[Holding, int]] = []
        """Each position's holding, and the index of its lot."""
        self._held: OrderedDict[str, Holding] = OrderedDict()
        """The holdings by the version of their last change."""
        self._held_keys: dict[str, Holding] = {}
        """The same without a slash in the symbol."""
        self._days: dict[str, SymbolDay] | None = {}
        """What today's fills changed, by the symbol without a slash; None if that is unknown."""
        self._remembered: dict[str, Holding] = {}
        self._heap: list[tuple[int, str]] = []
        """When to check live holdings: only the entry at a holding's ``due_ns`` counts, and it may
        be too early."""
        self._whole_version = 0
        self.symbols: tuple[str, ...] = ()
        """The symbols whose price is wanted; the same tuple until the lots change."""
        self.version = 0
        """Increases by one with each change."""
        self.totals = Totals()
        """The totals of all rows. Read only."""
        self.market: Market | None = None
        """The market's hours, as they were set. Read only."""
        self._session: Session | None = None
        """The last session, while the market is closed."""
        self._closed: tuple[str | None, Session] | None = None
        """The last session, and the open that ends the time without one."""
        self._aged: dict[str, Holding] = {}
        """Held symbols whose mark became too old after an unusable quote, which no row shows."""

    @property
    def positions(self) -> tuple[Position, ...]:
        """The positions as they were set."""
        return self._positions

    def problems(self) -> list[tuple[str, str]]:
        """The symbol and the problem of each lot that is never priced."""
        return [
            (row.symbol, row.problem)
            for holding in self._held.values()
            if holding.priceable < len(holding.positions)
            for row in holding.rows()
            if row.problem is not None
        ]

    @property
    def wake_ns(self) -> int | None:
        """The earliest time at which a price becomes stale by age; None if none does."""
        return self._heap[0][0] if self._heap else None

    def _set_ages(self, feed_delay_s: float, price_ttl_s: float) -> None:
        self._first_stale_age_ns = round((self._stale_after_s + feed_delay_s) * _S_NS) + 1
        self._ttl_ns = round(price_ttl_s * _S_NS)

    def set_service(self, *, feed_delay_s: float, price_ttl_s: float, now_ns: int) -> bool:
        """Use the service's own settings; return whether a row changed.

        Args:
            feed_delay_s: The intended delay of its feed, seconds.
            price_ttl_s: How long the key of a price exists, seconds.
            now_ns: The time at which every held price is judged again.
        """
        before = self._first_stale_age_ns, self._ttl_ns
        self._set_ages(feed_delay_s, price_ttl_s)
        if before == (self._first_stale_age_ns, self._ttl_ns):
            return False
        version = self.version
        for holding in list(self._held.values()):
            if holding.mark is None:
                continue
            live_until_ns = self._live_until_ns(holding.mark, holding.heard_ns)
            live = now_ns < live_until_ns
            if live:
                holding.due_ns = None  # its other entries in the heap no longer count
                self._watch(holding, live_until_ns)
            if live is not holding.live:
                holding.live = live
                self._judge_rest(holding)
                if holding.priceable:
                    self._touch(holding)
        return self.version != version

    def set_market(self, market: Market | None, now_ns: int) -> bool:
        """Use the market's hours; return whether they changed.

        Args:
            market: What its clock says; None if that is not known.
            now_ns: The time at which the clock said so.
        """
        if market == self.market:
            return False
        self.pass_time(now_ns)
        self.market, self._session = market, None
        if market is not None and not market.is_open:
            if self._closed is None or self._closed[0] != market.next_open:
                session = last_session(now_ns + _CLOCKS_DIFFER_NS)
                session = attrs.evolve(session, closes_ns=min(session.closes_ns, now_ns))
                self._closed = market.next_open, session
            self._session = self._closed[1]
        self.version += 1
        for holding in list(self._held.values()):
            if self._judge_rest(holding) and holding.priceable:
                self._touch(holding)
        return True

    def unconfirmed(self) -> list[str]:
        """The symbols whose last price is to be confirmed, since the market has closed."""
        session = self._session
        if session is None:
            return []
        return [
            holding.symbol
            for holding in self._held.values()
            if holding.heard_ns < session.closes_ns and holding.mark is not None
            if holding.has_hours
        ]

    def holding(self, symbol: str) -> Holding | None:
        """The holding of a symbol, or None if it is not held. Read only.

        Like the next two methods, it takes a pair with its slash or without.
        """
        return self._held.get(symbol) or self._held.get(pair_of(symbol) or symbol)

    def known(self, symbol: str) -> Holding | None:
        """The holding of a symbol that is held or had a quote, or None. Read only."""
        found = self._held.get(symbol) or self._remembered.get(symbol)
        if found is None and (pair := pair_of(symbol)) is not None:
            found = self._held.get(pair) or self._remembered.get(pair)
        return found

    def at(self, symbol: str, now_ns: int) -> Holding | None:
        """As :meth:`known`, with the age of its price judged at that time."""
        self.pass_time(now_ns)
        holding = self.known(symbol)
        # The heap has only the prices of held symbols.
        if holding is not None and not holding.positions:
            mark = holding.mark
            if mark is not None and now_ns >= self._live_until_ns(mark, holding.heard_ns):
                holding.live = False
            self._judge_rest(holding)
        return holding

    @property
    def known_symbols(self) -> list[str]:
        """All symbols that are held or had a quote, in no order."""
        return [*self._held, *self._remembered]

    @property
    def held_symbols(self) -> list[str]:
        """The feed's symbols of all that is held, in the order of their source."""
        return list(dict.fromkeys(holding.symbol for holding, _ in self._places))

    def lots(self, key: str) -> tuple[Position, ...]:
        """The positions in a symbol, which is given without a slash; empty if it is not held."""
        holding = self._held_keys.get(key)
        return () if holding is None else holding.positions

    def set_day(self, days: Mapping[str, SymbolDay] | None, *, followed: bool = True) -> None:
        """Replace what today's fills changed in all symbols.

        Args:
            days: By symbols without a slash; None if the fills are not known.
            followed: Whether anything tells the fills. If not, as before the first call, the day's
                P&L is that of positions without any, and what was realised is not known.
        """
        for key, day in (self._days or {}).items():
            self.totals.leave_day(day, held=key in self._held_keys)
        self._days = None if days is None else dict(days)
        self.totals.fills_known = days is not None if followed else None
        for key, day in (days or {}).items():
            self.totals.enter_day(day, held=key in self._held_keys)
        for key, holding in self._held_keys.items():
            self._set_day_of(holding, self._day_of(key))
        for symbol, holding in self._remembered.items():
            holding.set_day(self._day_of(without_slash(symbol)))
        self.version += 1

    def update_day(self, key: str, day: SymbolDay) -> bool:
        """Replace what today's fills changed in one symbol; return whether that is new.

        Args:
            key: The symbol without a slash.
            day: What they changed.
        """
        days = self._days
        if days is None or days.get(key, NOTHING_TODAY) == day:
            return False
        held = key in self._held_keys
        if key in days:
            self.totals.leave_day(days[key], held=held)
        days[key] = day
        self.totals.enter_day(day, held=held)
        if held:
            self._set_day_of(self._held_keys[key], day)
        elif (closed := self.known(key)) is not None:
            closed.set_day(day)
        self.version += 1
        return True

    def _day_of(self, key: str) -> SymbolDay:
        return NOT_KNOWN if self._days is None else self._days.get(key, NOTHING_TODAY)

    def _set_day_of(self, holding: Holding, day: SymbolDay) -> None:
        if holding.day == day:
            return
        before = holding.day_base
        self.totals.leave(holding)
        holding.set_day(day)
        self.totals.enter(holding)
        if holding.day_base != before:
            self._touch(holding)

    def set_positions(self, positions: Sequence[Position]) -> bool:
        """Replace all lots; whether a row was added, removed, moved or changed.

        What is known of prices stays. Rows that stay the same do not count as changed, and where
        no row was added, removed or moved, no whole report is due. Costs as much as there are
        positions, but little if nearly all are the same objects as before, as after a fill.
        """
        positions = tuple(positions)
        if positions is self._positions:
            return False
        if positions == self._positions and not self.totals.waiting:
            return False
        version = self.version
        if (few := self._few_changed(positions)) is not None:
            self._replace_lots(few, positions)
            return self.version != version
        lots: dict[str, list[Position]] = {}
        places: list[tuple[str, int]] = []
        for position in positions:
            of_symbol = lots.setdefault(position.priced_by, [])
            places.append((position.priced_by, len(of_symbol)))
            of_symbol.append(position)
        names = [(position.symbol, position.priced_by) for position in positions]
        moved = names != self._names
        self._names = names
        for symbol in self._held.keys() - lots.keys():
            self._close(self._held.pop(symbol))
        for symbol, of_symbol in lots.items():
            holding = self._held.get(symbol)
            if holding is None:
                self._open(symbol, of_symbol)
            elif holding.positions != tuple(of_symbol) or holding.has_other_prices(of_symbol):
                self._replace(holding, of_symbol)
        self._places = [(self._held[symbol], place) for symbol, place in places]
        self._positions = positions
        self.symbols = tuple(symbol for symbol in lots if self._held[symbol].priceable)
        if moved:
            self.version += 1
            self._whole_version = self.version
        return self.version != version

    def _few_changed(self, positions: tuple[Position, ...]) -> list[int] | None:
        """The places of few other objects in the same symbols; None if more has changed."""
        known = self._positions
        if len(positions) != len(known):
            return None
        places = [place for place, now in enumerate(positions) if now is not known[place]]
        if len(places) > _FEW:
            return None
        for place in places:
            now, before = positions[place], known[place]
            if now.symbol != before.symbol or now.priced_by != before.priced_by:
                return None
        return places

    def _replace_lots(self, places: Sequence[int], positions: tuple[Position, ...]) -> None:
        """Replace the lots at these places, whose symbols stay."""
        priceable = True
        for place in places:
            holding, index = self._places[place]
            lots = list(holding.positions)
            lots[index] = positions[place]
            if holding.positions != tuple(lots) or holding.has_other_prices(lots):
                was = bool(holding.priceable)
                self._replace(holding, lots)
                priceable = priceable and was == bool(holding.priceable)
        self._positions = positions
        if not priceable:
            held = dict.fromkeys(holding.symbol for holding, _ in self._places)
            self.symbols = tuple(symbol for symbol in held if self._held[symbol].priceable)

    def update(self, quote: Quote, now_ns: int, asked_ns: int | None = None) -> bool:
        """Apply a quote from an event or a key; return whether a row changed.

        An older quote is ignored. A repeat of the known quote shows that its key exists. An
        unusable quote leaves the price as it is, and makes its rows stale.

        Args:
            quote: The quote.
            now_ns: The time.
            asked_ns: When its key was asked for; None for an event. An event that came since then
                is newer, so that the key changes nothing.
        """
        symbol = quote.symbol
        holding = self._held.get(symbol) or self._remembered.get(symbol) or self._remember(symbol)
        if asked_ns is not None and holding.heard_ns >= asked_ns:
            return False
        if self.mark == "mid":
            return self._update_mid(holding, quote, now_ns)
        if self.mark == "exit":
            return self._update_exit(holding, quote, now_ns)
        return self._update_spare(holding, quote)

    def _update_mid(self, holding: Holding, quote: Quote, now_ns: int) -> bool:  # noqa: C901 - calls cost more
        known, mark, event_ns = holding.quote, holding.mark, quote.ts_event_ns
        if known is not None and event_ns < known.ts_event_ns:
            return False
        was_live, changed = holding.live and known is mark, False
        if not (quote is known is mark):  # else it is a key that was read before
            bid, ask, factor = quote.bid, quote.ask, self._surely_narrow
            price_e5, price = mid_e5(bid, ask), None
            limit = bid * factor + ask * factor
            if price_e5 is None or not -limit <= ask - bid <= limit:
                price = self._usable_mid(quote)
                if price is None:
                    return self._set_aside(holding, quote, now_ns)
            if mark is None or not holding.has_price(price, price_e5):
                self._reprice(holding, quote, price, price_e5)
                changed = True
            else:
                changed = event_ns != mark.ts_event_ns
                holding.quote = holding.mark = quote
        holding.heard_ns = now_ns
        live_until_ns, gone_ns = event_ns + self._first_stale_age_ns, now_ns + self._ttl_ns
        if gone_ns < live_until_ns:  # noqa: PLR1730 - min() takes thrice as long
            live_until_ns = gone_ns
        holding.live = live = now_ns < live_until_ns
        if live is not was_live:
            changed = True
        if self._session is not None and self._judge_rest(holding):
            changed = True
        if live and holding.positions:
            due_ns = holding.due_ns
            if due_ns is None or live_until_ns < due_ns:
                self._watch(holding, live_until_ns)
        if changed and holding.priceable:
            self._touch(holding)
            return True
        return False

    def _usable_mid(self, quote: Quote) -> Decimal | None:
        """The price of a quote, or None if it may not be one."""
        price = to_price(mid_number(quote.bid, quote.ask))
        usable = self._is_narrow(quote.bid, quote.ask) or is_option(quote.symbol)
        return price if usable else None

    def _update_exit(self, holding: Holding, quote: Quote, now_ns: int) -> bool:
        known, before = holding.quote, holding.shown
        if known is not None and quote.ts_event_ns < known.ts_event_ns:
            return False
        heard_ns, holding.heard_ns = holding.heard_ns, now_ns
        usable = self._usable_mid(quote) is not None
        self.totals.leave(holding)
        holding.quote = quote
        if usable:
            holding.take_exit(quote)
        self.totals.enter(holding)
        if holding.mark is quote:
            self._set_live(holding, now_ns)
        else:
            self._lapse(holding, heard_ns, now_ns)
        self._judge_rest(holding)
        return self._touch_if(holding, before)

    def _update_spare(self, holding: Holding, quote: Quote) -> bool:
        """Keep a quote where last trades are the price."""
        known, before = holding.spare, holding.shown
        if known is not None and quote.ts_event_ns < known.ts_event_ns:
            return False
        if self._usable_mid(quote) is None:
            return False
        if holding.mark is not None or holding.source_price is not None:
            holding.spare = quote
            return False
        self.totals.leave(holding)
        holding.spare = quote
        holding.set_unmarked()
        self.totals.enter(holding)
        return self._touch_if(holding, before)

    def trade(self, trade: Trade, now_ns: int, asked_ns: int | None = None) -> bool:
        """Apply a trade where last trades are the price; return whether a row changed.

        Args:
            trade: From an event, or the latest one in its key.
            now_ns: The time.
            asked_ns: As for :meth:`update`. The key has the latest trade: newer ones were canceled.
        """
        if self.mark != "last":
            return False
        symbol = trade.symbol
        holding = self._held.get(symbol) or self._remembered.get(symbol) or self._remember(symbol)
        if asked_ns is not None and holding.heard_ns >= asked_ns:
            return False
        holding.heard_ns = now_ns
        trades, is_stock = holding.trades, asset_class_of(symbol) == "us_equity"
        while asked_ns is not None and trades and _comes_after(trades[-1], trade):
            trades.pop()
        for place, known in enumerate(trades):
            if (known.ts_event_ns, known.seq) == (trade.ts_event_ns, trade.seq):
                del trades[place]  # the same one, perhaps corrected
                break
        last = trades[-1] if trades else None
        if trade.price > 0 and updates_last(trade, last, is_stock=is_stock):
            insort_right(trades, trade, key=_event_ns)
            del trades[:-_MOST_TRADES]
        return self._set_last(holding, now_ns)

    def stand_in(self, trade: Trade) -> bool:
        """Take the last trade as the price of a symbol without one; return whether a row changed.

        The row is stale until there is a price of the usual kind.
        """
        holding, price = self._held.get(trade.symbol), to_price(trade.price)
        if holding is None or holding.price is not None or price is None or price <= 0:
            return False
        before = holding.shown
        self.totals.leave(holding)
        holding.spare = trade
        holding.set_unmarked()
        self.totals.enter(holding)
        return self._touch_if(holding, before)

    def correct(self, correction: Correction, now_ns: int) -> bool:
        """Change a known last trade that was corrected; return whether a row changed."""
        found = self._find_trade(correction, correction.original_id)
        if found is None:
            return False
        holding, place = found
        trade = holding.trades[place]
        price, size = correction.corrected_price, correction.corrected_size
        right = attrs.evolve(
            trade,
            id=correction.corrected_id,
            price=trade.price if price is None else price,
            size=trade.size if size is None else size,
            conditions=correction.corrected_conditions,
        )
        last = holding.trades[place - 1] if place else None
        is_stock = asset_class_of(right.symbol) == "us_equity"
        if right.price > 0 and updates_last(right, last, is_stock=is_stock):
            holding.trades[place] = right
        else:
            del holding.trades[place]
        return self._set_last(holding, now_ns)

    def cancel(self, cancel: Cancel, now_ns: int) -> bool:
        """Forget a known last trade that was canceled; return whether a row changed."""
        found = self._find_trade(cancel, cancel.id)
        if found is None:
            return False
        holding, place = found
        del holding.trades[place]
        return self._set_last(holding, now_ns)

    def _find_trade(
        self, change: Correction | Cancel, trade_id: TradeId | None
    ) -> tuple[Holding, int] | None:
        """The holding and the place of the trade that is changed."""
        holding = self.known(change.symbol)
        meant = trade_id, change.exchange, change.tape, new_york_day(change.ts_event_ns)
        for place, trade in enumerate(() if holding is None else holding.trades):
            day = new_york_day(trade.ts_event_ns)
            if holding is not None and meant == (trade.id, trade.exchange, trade.tape, day):
                return holding, place
        return None

    def _set_last(self, holding: Holding, now_ns: int) -> bool:
        """Take the newest of the last trades as the price; return whether a row changed."""
        before, trades = holding.shown, holding.trades
        if not trades:
            if holding.mark is not None:
                self.totals.leave(holding)
                holding.quote = None
                holding.set_unmarked()
                self.totals.enter(holding)
                holding.live = False
        elif (price := to_price(trades[-1].price)) is not None:
            if holding.mark is None or price != holding.price:
                self._reprice(holding, trades[-1], price, None)
            holding.quote = holding.mark = trades[-1]
            self._set_live(holding, now_ns)
        self._judge_rest(holding)
        return self._touch_if(holding, before)

    def _set_live(self, holding: Holding, now_ns: int) -> None:
        """Judge the age of the mark, which is new or confirmed."""
        if holding.mark is None:
            return
        live_until_ns = self._live_until_ns(holding.mark, holding.heard_ns)
        holding.live = now_ns < live_until_ns
        if holding.live and holding.positions:
            self._watch(holding, live_until_ns)

    def _touch_if(self, holding: Holding, before: object) -> bool:
        """Note a change of the rows, if they show something else than before."""
        if holding.shown == before or not holding.priceable:
            return False
        self._touch(holding)
        return True

    def _is_narrow(self, bid: float, ask: float) -> bool:
        """Whether the spread is usable, computed exactly; true if it is unknown."""
        if not bid or not ask or not self._max_spread or not isfinite(bid) or not isfinite(ask):
            return True
        low, high = sorted((Decimal(repr(bid)), Decimal(repr(ask))))
        spread, total = EXACT.subtract(high, low), EXACT.add(high, low)
        return EXACT.multiply(spread, _200) <= EXACT.multiply(total, self._max_spread)

    def _lapse(self, holding: Holding, heard_ns: int, now_ns: int) -> None:
        """End a mark that was no longer live when a quote came that leaves it in place.

        The quote is the newest sign of the key, and must not bring the mark back. A held symbol's
        mark mostly has ended before, as the time passed; those of other symbols are only judged
        when something asks for them.

        Args:
            holding: Whose mark.
            heard_ns: When its newest quote before this one came.
            now_ns: When this one came.
        """
        mark = holding.mark
        if holding.live and mark is not None and now_ns >= self._live_until_ns(mark, heard_ns):
            self._end_live(holding)

    def _set_aside(self, holding: Holding, quote: Quote, now_ns: int) -> bool:
        """Keep an unusable quote; return whether a row changed."""
        known, was = holding.quote, holding.status
        self._lapse(holding, holding.heard_ns, now_ns)
        holding.heard_ns = now_ns
        if holding.price is None:
            self.totals.leave(holding)
            holding.quote = quote
            self.totals.enter(holding)
            # Its rows show the time of the newest quote.
            changed = known is None or known.ts_event_ns != quote.ts_event_ns
        else:
            holding.quote = quote
            self._judge_rest(holding)
            changed = holding.status != was
        if changed and holding.priceable:
            self._touch(holding)
            return True
        return False

    def expire(self, symbols: Iterable[str], now_ns: int, asked_ns: int | None = None) -> None:
        """Mark prices whose keys are gone as stale, until the next or the same quote comes.

        Args:
            symbols: Those whose keys are gone.
            now_ns: The time.
            asked_ns: When the keys were asked for. A price that came since then stays, and so does
                one that needs no key.
        """
        self.pass_time(now_ns)
        for symbol in symbols:
            holding = self._held.get(symbol) or self._remembered.get(symbol)
            if holding is None or holding.mark is None or holding.mark is holding.from_elsewhere:
                continue
            if asked_ns is None or holding.heard_ns < asked_ns:
                self._end_live(holding)

    def need_no_key(self, record: Quote | Trade) -> None:
        """Let the age alone decide whether a price is live, if it is that of this record.

        Args:
            record: It was applied, and is from elsewhere than Redis.
        """
        holding = self._held.get(record.symbol)
        if holding is not None and holding.mark is record:
            holding.from_elsewhere = record

    def pass_time(self, now_ns: int) -> None:
        """Make prices stale that are too old at that time. Reports call this too."""
        heap = self._heap  # each quote causes at most one entry to check
        while heap and heap[0][0] <= now_ns:
            due_ns, symbol = heap[0]
            holding = self._held.get(symbol) or self._remembered.get(symbol)
            if holding is None or holding.due_ns != due_ns:
                heappop(heap)
                continue
            if holding.live and holding.mark is not None and holding.positions:
                live_until_ns = self._live_until_ns(holding.mark, holding.heard_ns)
                if now_ns < live_until_ns:
                    holding.due_ns = live_until_ns
                    heapreplace(heap, (live_until_ns, symbol))
                    continue
                self._end_live(holding)
            holding.due_ns = None
            heappop(heap)

    def report(self, now_ns: int) -> PnlReport[Row]:
        """All rows, in the order of their source."""
        return self.report_of(rows_of, now_ns)

    def changes(self, since: int, now_ns: int) -> PnlReport[Row]:
        """The rows that changed after a report of version ``since``, and the totals.

        The cost is proportional to the number of changed rows. If rows were added, removed or
        moved, or ``since`` is from another engine, it returns the whole report.
        """
        return self.report_of(rows_of, now_ns, since)

    def report_of(
        self, rows_of: RowsOf[_T], now_ns: int, since: int | None = None
    ) -> PnlReport[_T]:
        """As :meth:`changes`, or :meth:`report` without ``since``, with rows in another form.

        Args:
            rows_of: Returns the rows of each holding, one for each lot.
            now_ns: The time.
            since: The version of an earlier report.
        """
        self.pass_time(now_ns)
        if since is None or self.whole_due(since):
            found = rows_of([one for one, _ in self._places])
            places = zip(found, self._places, strict=True)
            return self._report([rows[place] for rows, (_, place) in places], whole=True)
        changed = self.changed(since, now_ns)
        return self._report([row for rows in rows_of(changed) for row in rows], whole=False)

    def changed(self, since: int, now_ns: int) -> list[Holding]:
        """The held symbols that changed after version ``since``, in the order of their change."""
        self.pass_time(now_ns)
        found = []
        for holding in reversed(self._held.values()):
            if holding.version <= since:
                break
            found.append(holding)
        found.reverse()
        return found

    @property
    def has_aged(self) -> bool:
        """Whether :meth:`take_aged` would return any."""
        return bool(self._aged)

    def take_aged(self) -> list[Holding]:
        """The held symbols whose mark became too old since the last call, without a changed row.

        Their newest quote is not usable, so their rows were stale before.
        """
        aged, self._aged = list(self._aged.values()), {}
        return aged

    def whole_due(self, since: int) -> bool:
        """Whether rows were added, removed or moved after version ``since``."""
        return not self._whole_version <= since <= self.version

    def _report(self, rows: list[_T], *, whole: bool) -> PnlReport[_T]:
        totals = self.totals
        return PnlReport(
            tuple(rows),
            totals.unrealized_pnl,
            totals.market_value,
            totals.rows_day_pnl,
            totals.realized_day_pnl,
            self.market,
            totals.priced,
            totals.unpriced,
            self.version,
            whole,
        )

    def _open(self, symbol: str, lots: Sequence[Position]) -> None:
        holding = self._remembered.pop(symbol, None) or Holding(symbol)
        key = without_slash(symbol)
        self._held_keys[key] = holding
        holding.day = self._day_of(key)
        self._hold(holding, lots)
        self._held[symbol] = holding
        self._hold_day(key, held=True)
        self.totals.enter(holding)
        self._touch(holding)
        holding.opened = holding.version
        if holding.live and holding.mark is not None:
            self._watch(holding, self._live_until_ns(holding.mark, holding.heard_ns))

    def _replace(self, holding: Holding, lots: Sequence[Position]) -> None:
        before, base = list(holding.rows()), holding.day_base
        self.totals.leave(holding)
        self._hold(holding, lots)
        self.totals.enter(holding)
        if holding.rows() != before or holding.day_base != base:
            self._touch(holding)

    def _hold(self, holding: Holding, lots: Sequence[Position]) -> None:
        """Replace the lots of a holding, which is in no sum meanwhile."""
        mark = holding.mark
        holding.hold(lots)
        if holding.mark is not mark:  # of the other side: its age is judged at the next look
            holding.live, holding.due_ns = holding.mark is not None, None
            self._watch(holding, 0)
        self._judge_rest(holding)

    def _close(self, holding: Holding) -> None:
        self.totals.leave(holding)
        key = without_slash(holding.symbol)
        del self._held_keys[key]
        self._hold_day(key, held=False)
        holding.hold(())
        self._aged.pop(holding.symbol, None)
        if holding.quote is not None or holding.spare is not None:
            self._keep(holding)

    def _hold_day(self, key: str, *, held: bool) -> None:
        """Count the day of a symbol that was opened or closed as that of a held one, or not."""
        if self._days and (day := self._days.get(key)) is not None:
            self.totals.leave_day(day, held=not held)
            self.totals.enter_day(day, held=held)

    def _remember(self, symbol: str) -> Holding:
        holding = self._keep(Holding(symbol))
        holding.set_day(self._day_of(without_slash(symbol)))
        return holding

    def _keep(self, holding: Holding) -> Holding:
        if len(self._remembered) >= MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[holding.symbol] = holding
        return holding

    def _reprice(
        self, holding: Holding, quote: Quote | Trade, price: Decimal | None, price_e5: int | None
    ) -> None:
        """Take a mark with another price.

        Args:
            holding: Whose.
            quote: The mark.
            price: Its price; None for that of ``price_e5``.
            price_e5: The same in hundred-thousandths, if :func:`mid_e5` knows it.
        """
        if holding.mark is None:
            self.totals.leave(holding)
            holding.quote = holding.mark = quote
            holding.set_price(price, price_e5)
            self.totals.enter(holding)
            return
        before_e5, units_e9 = holding.price_e5, holding.units_e9
        if price_e5 is None or before_e5 is None or units_e9 is None:
            before = holding.price
            holding.set_price(price, price_e5)
            if before is not None and holding.price is not None:
                self.totals.step(holding, before, holding.price)
        else:
            holding.set_price(price, price_e5)
            step_e14 = units_e9 * (price_e5 - before_e5)
            if holding.short:
                self.totals.short_steps_e14 += step_e14
            else:
                self.totals.long_steps_e14 += step_e14
        holding.quote = holding.mark = quote

    def _touch(self, holding: Holding) -> None:
        self.version += 1
        holding.version = self.version
        holding.fresh = holding.fresh_texts = False
        self._held.move_to_end(holding.symbol)

    def _live_until_ns(self, quote: Quote | Trade, heard_ns: int) -> int:
        """The first nanosecond at which the price is no longer live."""
        stale_ns, gone_ns = quote.ts_event_ns + self._first_stale_age_ns, heard_ns + self._ttl_ns
        return stale_ns if stale_ns < gone_ns else gone_ns  # noqa: FURB136 - min() takes thrice as long

    def _watch(self, holding: Holding, at_ns: int) -> None:
        if holding.due_ns is None or at_ns < holding.due_ns:  # sooner: the clock was set back
            holding.due_ns = at_ns
            heappush(self._heap, (at_ns, holding.symbol))

    def _judge_rest(self, holding: Holding) -> bool:
        """Note whether its price is the last session's last one; return whether that changed."""
        was, holding.closed = holding.closed, self._rests(holding)
        return holding.closed is not was

    def _rests(self, holding: Holding) -> bool:
        session, mark, quote = self._session, holding.mark, holding.quote
        if session is None or holding.live or not holding.has_hours:
            return False
        if mark is None or quote is None:
            return holding.source_price is not None
        return (
            mark.ts_event_ns >= session.begins_ns
            and holding.heard_ns >= session.closes_ns
            and (quote is mark or quote.ts_event_ns >= session.closes_ns)
        )

    def _end_live(self, holding: Holding) -> None:
        if holding.live:
            holding.live = False
            self._judge_rest(holding)
            if not holding.priceable:
                return
            if holding.quote is holding.mark or holding.closed:
                self._touch(holding)
            else:
                self._aged[holding.symbol] = holding


def rows_of(holdings: Iterable[Holding]) -> list[list[Row]]:
    """Each symbol's rows, not to be changed."""
    return [holding.rows() for holding in holdings]


def _event_ns(trade: Trade) -> int:
    return trade.ts_event_ns


def _comes_after(trade: Trade, other: Trade) -> bool:
    """Whether a trade is newer, by its time and by its number in the service's run."""
    return trade.ts_event_ns > other.ts_event_ns and trade.seq > other.seq
