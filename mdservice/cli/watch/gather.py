"""Makes views from the tracker's P&L and the service's status."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import attrs
import msgspec

from mdservice.cli.watch.keys import FROM_THE_SMALLEST, ORDERS, Browse, OrderName
from mdservice.cli.watch.screen import (
    Account,
    Entry,
    EntryStatus,
    Lot,
    Sums,
    View,
    printable,
)
from mdservice.client.http import ask
from mdservice.client.open import open_stream
from mdservice.client.reader import Records
from mdservice.clock import Clock
from mdservice.errors import MDServiceError
from mdservice.gateway.risk_observer import RiskObserver, ask_gateway
from mdservice.gateway.router import DAY_PATH
from mdservice.gateway.tracker import PnlTracker
from mdservice.model.bar import Bar
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL, is_symbol, spellings
from mdservice.model.trade import Trade
from mdservice.model.trading_status import TradingStatus, is_halted
from mdservice.observability.logging import masked
from mdservice.pnl.holding import Holding
from mdservice.pnl.numbers import EXACT, sums_up
from mdservice.pnl.rows import Row
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings

__all__ = [
    "Flow",
    "GatewayDay",
    "Gatherer",
    "MarketWatch",
    "ServiceWatch",
    "about",
    "state",
    "warnings",
]

_EVERY_S: Final = 2.0
_TIMEOUT_S: Final = 3.0
_SUBSCRIPTIONS: Final = "/api/v1/market-data/subscriptions"
_WINDOW_S: Final = 3.0
_QUIET_S: Final = 3.0
_Place = TypeVar("_Place")
_MOMENT_S: Final = 1.5
"""How long a change of a price is shown."""
_HINTS: Final = 3
_S_NS: Final = 1_000_000_000


class Gatherer:
    """Makes views. The cost depends only on the number of rows that are shown.

    Held lots come first, the largest at the top. Other symbols follow in the order in which they
    were chosen, or by name. A new price never moves a row, unless another order is asked for: then
    rows move every two seconds.

    Args:
        tracker: Positions and prices; must be running.
        service: The status of the service.
        chosen: The only symbols to show; none means all.
        stale_after_s: The age at which the price of an other symbol counts as stale.
        delay_s: The intended delay of the feed, seconds.
        clock: The time.
        market: The last trades, days and halts; None for none.
        risk: The breaker and the limits; None for none.
        day: The account's day, as the gateway knows it; None for none.
        errors: Returns further warnings.
    """

    def __init__(
        self,
        tracker: PnlTracker,
        service: ServiceWatch,
        chosen: Sequence[str],
        *,
        stale_after_s: float,
        delay_s: float,
        clock: Clock,
        market: MarketWatch | None = None,
        risk: RiskObserver | None = None,
        day: GatewayDay | None = None,
        errors: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._market = market or MarketWatch(())
        self._risk = risk
        self._day = day
        self._errors = errors
        self._tracker = tracker
        self._engine = tracker.engine
        self._service = service
        self._chosen = tuple(chosen)
        self._stale_after_s = stale_after_s
        self._delay_s = delay_s
        self._clock = clock
        self._flow = Flow()
        self._seen: dict[str, _Seen] = {}
        self._positions: Sequence[Position] | None = None
        self._known: set[str] = set()
        self._held: list[tuple[str, int]] = []
        self._others: list[str] = []
        self._sorted: _Sorted | None = None
        self._reported: dict[tuple[str, int], tuple[object, _Mark]] = {}
        self._now_s, self._now_ns, self._old = 0.0, 0, False

    def view(self, most: int | None = None, browse: Browse | None = None) -> View:
        """The current view.

        Args:
            most: The maximum number of lots, and of other symbols.
            browse: Where to begin, and the order of the rows.
        """
        self._look()
        browse = browse or Browse()
        held_places, other_symbols = self._arranged(browse)
        start = min(browse.start, max(0, len(held_places) + len(other_symbols) - 1))
        others_start = max(0, start - len(held_places))
        fresh: dict[str, _Seen] = {}
        held = tuple(self._lot(*place, fresh) for place in held_places[start:][:most])
        others = tuple(self._other(s, fresh) for s in other_symbols[others_start:][:most])
        self._seen = fresh
        totals = self._engine.totals
        word, well = state(self._service)
        is_usual = browse.order == ORDERS[0]
        return View(
            word,
            well,
            about(self._service, self._flow),
            self.warnings(),
            self._hints(),
            held,
            len(self._held),
            Sums(totals.unrealized_pnl, totals.unrealized_pnl_pct, totals.priced, totals.unpriced),
            others,
            len(self._others),
            start,
            Account(*self._day_of_account(), totals.market_value, totals.exposure),
            None if self._risk is None else self._risk.now(self._now_ns),
            None if is_usual else browse.order,
            browse.reverse,
        )

    def _day_of_account(self) -> tuple[Decimal | None, Decimal | None]:
        """The P&L of the day, and what of it was realised."""
        totals = self._engine.totals
        found = None if self._day is None or self._tracker.day is not None else self._day.known()
        return found or (totals.day_pnl, totals.realized_day_pnl)

    def _arranged(self, browse: Browse) -> tuple[list[tuple[str, int]], list[str]]:
        """The lots and the other symbols in the order that is asked for."""
        if browse.order == ORDERS[0]:
            self._sorted = None
            step = -1 if browse.reverse else 1
            return self._held[::step], self._others[::step]
        known, wanted = self._sorted, (browse.order, browse.reverse, self._held, self._others)
        if known is None or known.of != wanted or self._now_s >= known.until_s:
            held = _sort(self._held, lambda place: self._key(browse.order, *place), browse)
            others = _sort(self._others, lambda symbol: self._key(browse.order, symbol), browse)
            known = self._sorted = _Sorted(wanted, self._now_s + _EVERY_S, held, others)
        return known.held, known.others

    def _key(self, order: OrderName, symbol: str, place: int | None = None) -> Any:
        """What a lot, or another symbol, is sorted by; None if it is not known."""
        holding = self._engine.known(symbol)
        row = None if place is None else self._row(symbol, place)
        if order == "symbol":
            return symbol
        if order == "status":
            status = self._other_status(symbol, holding) if row is None else row.status
            return self._status(symbol, status)
        if order == "age":
            quote = None if holding is None else holding.quote
            return None if quote is None else -quote.ts_event_ns
        if order == "price":
            return None if holding is None else holding.price
        if row is None:
            return None
        return {
            "qty": row.qty,
            "value": row.market_value,
            "P&L": row.unrealized_pnl,
            "P&L %": row.unrealized_pnl_pct,
            "day P&L": row.day_pnl,
        }[order]

    def changes(self) -> Iterator[tuple[tuple[str, int], Entry]]:
        """The entries that have changed since the last call, by symbol and number of the lot."""
        self._look()
        reported: dict[tuple[str, int], tuple[object, _Mark]] = {}
        for place in self._held:
            row = self._row(*place)
            status, market = self._status(place[0], row.status), self._market.of(place[0])
            reported[place] = mark = (row, (status, market))
            before = self._reported.get(place)
            # It is the same object until something changes, so its content need not be compared.
            if before is None or before[0] is not row or before[1] != mark[1]:
                yield place, self._lot(*place, None)
        for symbol in self._others:
            holding = self._engine.known(symbol)
            price = None if holding is None else holding.price
            status = self._other_status(symbol, holding)
            reported[symbol, -1] = other = (price, (status, self._market.of(symbol)))
            if self._reported.get((symbol, -1)) != other:
                yield (symbol, -1), self._other(symbol, None)
        self._reported = reported

    def warnings(self) -> tuple[str, ...]:
        """Why prices or positions may be out of date, as of the last view."""
        inside = tuple(map(printable, self._errors()))
        return warnings(self._service, self._tracker, old=self._old) + inside

    def notes(self) -> tuple[str, ...]:
        """As :meth:`warnings`, and whether the breaker is tripped, for output in lines."""
        breaker = None if self._risk is None else self._risk.breaker
        if breaker is None or not breaker.tripped:
            return self.warnings()
        text = f"the breaker is tripped: {breaker.rule} by {breaker.subject}"
        return (*self.warnings(), printable(text))

    def _look(self) -> None:
        """Update the time, the count of events, and the symbols."""
        self._now_s, self._now_ns = self._clock.monotonic(), self._clock.utc_ns()
        self._engine.pass_time(self._now_ns)
        prices = self._tracker.prices_status()
        if prices is not None:
            self._flow.note(prices.events, self._now_s, self._now_ns)
        gone = self._service.answered and self._service.failure is not None
        self._old = (gone and self._flow.quiet(self._now_ns)) or (
            prices is None or not prices.connected
        )
        known = set(self._engine.known_symbols)
        if known == self._known and self._positions is self._engine.positions:
            return
        self._known, self._positions = known, self._engine.positions
        self._held = _by_cost(self._positions)
        held = {symbol for symbol, _place in self._held}
        others = self._chosen or sorted(known)
        self._others = [s for s in others if held.isdisjoint(spellings(s))]

    def _row(self, symbol: str, place: int) -> Row:
        holding = self._engine.holding(symbol)
        if holding is None:
            raise LookupError(f"{symbol} is held and unknown")
        return holding.rows()[place]

    def _lot(self, symbol: str, place: int, fresh: dict[str, _Seen] | None) -> Entry:
        row, holding = self._row(symbol, place), self._engine.holding(symbol)
        return self._entry(
            symbol,
            self._status(symbol, row.status),
            row.current_price,
            holding,
            fresh,
            Lot(
                row.qty,
                row.avg_entry_price,
                row.unrealized_pnl,
                row.unrealized_pnl_pct,
                row.market_value,
                row.day_pnl,
            ),
        )

    def _other(self, symbol: str, fresh: dict[str, _Seen] | None) -> Entry:
        holding = self._engine.known(symbol)
        price = None if holding is None else holding.price
        return self._entry(symbol, self._other_status(symbol, holding), price, holding, fresh, None)

    def _entry(
        self,
        symbol: str,
        status: EntryStatus,
        price: Decimal | None,
        holding: Holding | None,
        fresh: dict[str, _Seen] | None,
        lot: Lot | None,
    ) -> Entry:
        newest = None if holding is None else holding.quote or holding.spare
        spare = None if holding is None else holding.spare
        quote = next((each for each in (newest, spare) if isinstance(each, Quote)), None)
        change = None if fresh is None else self._change(symbol, price, fresh)
        last, day_pct, volume = self._market.of(symbol)
        entry = Entry(
            printable(symbol), status, price, lot=lot, last=last, day_pct=day_pct, volume=volume
        )
        if newest is None:
            return entry
        return attrs.evolve(
            entry,
            bid=Decimal(repr(quote.bid)) if quote is not None and quote.bid else None,
            ask=Decimal(repr(quote.ask)) if quote is not None and quote.ask else None,
            age_s=self._age_s(newest.ts_event_ns),
            change=change,
        )

    def _change(
        self, symbol: str, price: Decimal | None, fresh: dict[str, _Seen]
    ) -> Decimal | None:
        """The change of the price in the last moment. Only prices that are shown are remembered."""
        seen = self._seen.get(symbol)
        if seen is None or seen.price is None or price is None:
            seen = _Seen(price, None, 0.0)
        elif price != seen.price:
            seen = _Seen(price, price - seen.price, self._now_s + _MOMENT_S)
        elif self._now_s > seen.until_s:
            seen = _Seen(price, None, 0.0)
        fresh[symbol] = seen
        return seen.change

    def _age_s(self, event_ns: int) -> float:
        return (self._now_ns - event_ns) / _S_NS - self._delay_s

    def _status(self, symbol: str, status: EntryStatus) -> EntryStatus:
        if self._market.is_halted(symbol):
            return "HALTED"
        return "old" if self._old and status == "live" else status

    def _other_status(self, symbol: str, holding: Holding | None) -> EntryStatus:
        if holding is None or holding.quote is None or holding.price is None:
            status: EntryStatus = "unpriced" if self._service.asked_for(symbol) else "not asked"
            return self._status(symbol, status)
        too_old = self._age_s(holding.quote.ts_event_ns) > self._stale_after_s
        stale = too_old or holding.quote is not holding.mark
        return self._status(symbol, "stale" if stale else "live")

    def _hints(self) -> tuple[str, ...]:
        missing = [s for s in self._chosen if not any(map(self._service.asked_for, spellings(s)))]
        hints = []
        if missing:
            hints.append(
                f"not subscribed: {', '.join(missing)}; run mdservice subscribe "
                + " ".join(missing)
            )
        hints += self._market.halts()[:_HINTS]
        problems = [p for p in self._positions or () if p.problem is not None]
        hints += [f"{printable(p.symbol)}: {printable(p.problem or '')}" for p in problems[:_HINTS]]
        return tuple(hints)


class GatewayDay:
    """The P&L of the account's day, as the gateway at the settings' address knows it.

    For a program without keys, which cannot read the fills itself. A gateway of another account is
    not believed: what it holds of the symbols that were traded today must be what is held here.

    Args:
        tracker: The positions.
        settings: The gateway and its token.
        http: What to ask with; closed by its owner.
    """

    def __init__(self, tracker: PnlTracker, settings: Settings, http: HttpClient) -> None:
        self._tracker = tracker
        self._settings = settings
        self._http = http
        self._found: _DayAnswer | None = None

    async def poll(self) -> None:
        """Ask again and again until cancelled."""
        while True:
            await self.refresh()
            await anyio.sleep(_EVERY_S)

    async def refresh(self) -> None:
        """Ask once."""
        self._found = await ask_gateway(self._http, self._settings, DAY_PATH, _DayAnswer)

    def known(self) -> tuple[Decimal, Decimal] | None:
        """The P&L without fees, and what of it was realised; None if they are not known."""
        day = self._found
        if day is None or day.realized_pnl is None or day.unrealized_change is None:
            return None
        for each in day.symbols:
            holding = self._tracker.engine.holding(each.symbol)
            if each.qty != (0 if holding is None else holding.qty):
                return None
        return EXACT.add(day.realized_pnl, day.unrealized_change), day.realized_pnl


class _Traded(msgspec.Struct):
    symbol: str
    qty: Decimal


class _DayAnswer(msgspec.Struct):
    realized_pnl: Decimal | None
    unrealized_change: Decimal | None
    symbols: list[_Traded]


@attrs.frozen
class _Sorted:
    of: tuple[object, ...]
    until_s: float
    held: list[tuple[str, int]]
    others: list[str]


def _sort(rows: Sequence[_Place], key: Callable[[_Place], Any], browse: Browse) -> list[_Place]:
    """Numbers from the largest, texts from A to Z, or the other way; what is unknown at the end."""
    keys = [(row, key(row)) for row in rows]
    known = [pair for pair in keys if pair[1] is not None]
    from_the_largest = browse.order not in FROM_THE_SMALLEST
    known.sort(key=itemgetter(1), reverse=from_the_largest is not browse.reverse)
    return [row for row, _ in known] + [row for row, found in keys if found is None]


_Day = tuple[Decimal | None, Decimal | None, Decimal | None]
_Mark = tuple[EntryStatus, _Day]
_NO_DAY: Final[_Day] = (None, None, None)
_MARKET: Final = ("trades", "dailyBars", "statuses")


class MarketWatch:
    """The last trade, the day and the halt of each symbol, where these channels are subscribed.

    Args:
        chosen: The symbols to read, pairs with their slash or without; empty for all.
    """

    def __init__(self, chosen: Sequence[str]) -> None:
        self._chosen = tuple(chain.from_iterable(map(spellings, chosen)))
        self._records: Records | None = None
        self._halts: dict[str, TradingStatus] = {}
        self._status_ns: dict[str, int] = {}
        self._tried = anyio.Event()

    async def known(self) -> None:
        """Wait until the latest values have been read, or could not be."""
        await self._tried.wait()

    def of(self, symbol: str) -> _Day:
        """The last trade's price, the change since the day's open in per cent, and the volume."""
        if self._records is None or not is_symbol(symbol):
            return _NO_DAY
        trade: Trade | None = self._records.latest(symbol, "trades")
        day: Bar | None = self._records.latest(symbol, "dailyBars")
        last = None if trade is None else Decimal(repr(trade.price))
        if day is None:
            return last, None, None
        opened, now = Decimal(repr(day.open)), last or Decimal(repr(day.close))
        pct = (now - opened) / opened * 100 if opened else None
        return last, pct, Decimal(repr(day.volume))

    def is_halted(self, symbol: str) -> bool:
        """Whether trading in a symbol is halted, as far as is known."""
        return symbol in self._halts

    def halts(self) -> list[str]:
        """A sentence about each halted symbol, with the reason."""
        return [_halt(self._halts[symbol]) for symbol in sorted(self._halts)]

    def take(self, record: object) -> None:
        """Note a halt or its end. A status that says nothing of either leaves it as it is."""
        if not isinstance(record, TradingStatus):
            return
        symbol = record.symbol
        if record.ts_event_ns < self._status_ns.get(symbol, 0):
            return
        self._status_ns[symbol] = record.ts_event_ns
        halted = is_halted(record)
        if halted:
            self._halts[symbol] = record
        elif halted is False:
            self._halts.pop(symbol, None)

    async def run(self, settings: Settings) -> None:
        """Read until cancelled. Prices have their own reader, which reports its errors."""
        while True:
            with suppress(MDServiceError):
                async with open_stream(
                    settings.redis_url,
                    self._chosen,
                    _MARKET,
                    prefix=settings.chosen_key_prefix,
                    socket=settings.socket,
                ) as records:
                    self._records = records
                    while True:
                        if not records.status().waiting:
                            self._tried.set()
                        self.take(await anext(records))
            self._tried.set()
            await anyio.sleep(_EVERY_S)


def _halt(status: TradingStatus) -> str:
    reason = status.reason_message or status.reason_code or status.status_message or "no reason"
    return printable(f"{status.symbol} is halted: {reason}")


@attrs.frozen
class _Seen:
    price: Decimal | None
    change: Decimal | None
    until_s: float


class ServiceWatch:
    """The last known status of the service at a socket.

    Args:
        socket: Its UNIX socket.
        subscriptions: Whether to ask for the subscriptions too.

    Attributes:
        status: The last answer of ``/status``; empty before the first.
        failure: Why the last attempt failed, or None.
        answered: Whether the service has ever answered.
    """

    def __init__(self, socket: Path, *, subscriptions: bool) -> None:
        self.status: Mapping[str, Any] = {}
        self.failure: MDServiceError | None = None
        self.answered = False
        self._socket = socket
        self._ask_subscriptions = subscriptions
        self._subscribed: frozenset[str] | None = None

    @property
    def reason(self) -> str | None:
        """Why the service does not answer, or None."""
        return None if self.failure is None else masked(str(self.failure))

    def asked_for(self, symbol: str) -> bool:
        """Whether the symbol is subscribed, as far as is known."""
        known = self._subscribed
        return known is None or symbol in known or EVERY_SYMBOL in known

    async def refresh(self) -> None:
        """Ask the service once."""
        try:
            status, subscribed = await anyio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
        except MDServiceError as exc:
            self.failure = exc
        else:
            self.failure, self.answered = None, True
            self.status, self._subscribed = status, subscribed

    async def poll(self) -> None:
        """Ask the service again and again until cancelled."""
        while True:
            await anyio.sleep(_EVERY_S)
            await self.refresh()

    def _ask(self) -> tuple[Mapping[str, Any], frozenset[str] | None]:
        answer = ask(self._socket, "GET", "/status", timeout_s=_TIMEOUT_S)
        if not answer.ok:
            raise MDServiceError(f"the service refused to report its status: {answer.reason}")
        if not self._ask_subscriptions:
            return answer.content, None
        symbols_answer = ask(self._socket, "GET", _SUBSCRIPTIONS, timeout_s=_TIMEOUT_S)
        symbols = symbols_answer.content.get("symbols") if symbols_answer.ok else None
        known = frozenset(map(str, symbols)) if isinstance(symbols, list) else None
        return answer.content, known


class Flow:
    """The rate of events in the last seconds, and the time of the last one. Pure."""

    def __init__(self) -> None:
        self.last_ns: int | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, events: int, now_s: float, now_ns: int) -> None:
        """Note the total number of events.

        Args:
            events: If smaller than before, the count has restarted.
            now_s: Monotonic seconds.
            now_ns: UTC nanoseconds.
        """
        samples = self._samples
        if samples and events < samples[-1][1]:
            samples.clear()
        elif samples and events > samples[-1][1]:
            self.last_ns = now_ns
        samples.append((now_s, events))
        while len(samples) > 2 and samples[1][0] < now_s - _WINDOW_S:  # noqa: PLR2004 - a window has two ends
            samples.popleft()

    @property
    def per_s(self) -> float | None:
        """Events per second; None before the second count."""
        if len(self._samples) <= 1:
            return None
        (since_s, before), (now_s, events) = self._samples[0], self._samples[-1]
        return (events - before) / max(now_s - since_s, 0.001)

    def quiet(self, now_ns: int) -> bool:
        """Whether no event came in the last seconds."""
        return self.last_ns is None or now_ns - self.last_ns > _QUIET_S * 1e9


def state(service: ServiceWatch) -> tuple[str, bool]:
    """The state of the service in one or two words, and whether it is normal."""
    if service.failure is not None:
        return "service away" if service.answered else "no service", False
    word = printable(str(service.status.get("state", "-")))
    return word, word == "running"


def about(service: ServiceWatch, flow: Flow) -> tuple[str, ...]:
    """Details of the service, the most important first."""
    parts = []
    if flow.per_s is not None:
        parts.append(f"{flow.per_s:,.0f} events/s")
    feed = service.status.get("feed")
    if isinstance(feed, Mapping):
        parts.append(_feed(feed))
    if flow.last_ns is not None:
        last = datetime.fromtimestamp(flow.last_ns / 1e9, UTC)
        parts.append(f"last event {last:%H:%M:%S} UTC")
    if service.status.get("simulator"):
        parts.append("simulated prices")
    return tuple(parts)


def _feed(feed: Mapping[str, Any]) -> str:
    connected = "" if feed.get("connected") else " not connected"
    return printable(f"feed {feed.get('name', '-')}{connected}")


def warnings(service: ServiceWatch, tracker: PnlTracker, *, old: bool) -> tuple[str, ...]:
    """Why what is shown may be out of date."""
    found, reason = [], service.reason
    if reason is not None:
        from_before = old and service.answered
        found.append(f"{reason}; what is shown is from before" if from_before else reason)
    elif service.status.get("state") != "running":
        found += [str(reason) for reason in service.status.get("reasons") or ()]
    for warning in tracker.warnings():
        # If the positions come from the service, the reason is the same.
        known = reason is not None and warning.endswith(reason)
        found += [warning.partition(":")[0]] if known else [warning]
    return tuple(map(printable, found))


def _by_cost(positions: Sequence[Position]) -> list[tuple[str, int]]:
    """Each lot as its symbol and its number, the largest first."""
    counts: dict[str, int] = {}
    places: list[tuple[Decimal, tuple[str, int]]] = []
    for position in positions:
        number = counts.get(position.priced_by, 0)
        counts[position.priced_by] = number + 1
        qty, price, multiplier = position.qty, position.avg_entry_price, position.multiplier
        cost = Decimal(0)
        if qty is not None and price is not None and all(map(sums_up, (qty, price, multiplier))):
            cost = abs(qty * price * multiplier)
        places.append((cost, (position.priced_by, number)))
    return [place for _cost, place in sorted(places, key=itemgetter(0), reverse=True)]
