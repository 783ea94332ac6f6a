"""The crypto market: order books, and the quotes, trades and bars that follow from them.

Each step changes the book of one pair: a taker takes from its best level, or the makers move.
So a trade has the price of the best level, a quote is the top of the book, and a bar adds up
from the trades. Pure: elapsed time and the clock's time are arguments.

Source: Alpaca, "Real-time Crypto Data". A minute without a trade has a bar of quote mids with
volume 0; here the bar of any other minute has only trades in it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, Final, Literal, cast

import attrs
import msgspec

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import LATEST_NS
from mdservice.simulator.bars import SimBar
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.feeds import CRYPTO
from mdservice.simulator.http import Answer, Call
from mdservice.simulator.kinds import Batch, Records, SimKind, SimMarket, Source
from mdservice.simulator.market import MarketRecord
from mdservice.simulator.rest_history import (
    RestRules,
    answer_history,
    answer_latest,
    parse_history,
    parse_latest,
    wants_days,
)
from mdservice.simulator.stock_records import (
    bar_row,
    encode_bars,
    encode_daily_bars,
    encode_updated_bars,
    encoder,
    rower,
)
from mdservice.simulator.wire import (
    Encoding,
    OutFrame,
    encode_items,
    encode_timestamp,
    json_number,
)

__all__ = [
    "BARS",
    "CRYPTO_MARKET",
    "DAILY_BARS",
    "ORDERBOOKS",
    "PAIRS",
    "QUOTES",
    "TRADES",
    "UPDATED_BARS",
    "BookRecord",
    "CryptoSource",
    "Made",
    "PairWalk",
    "SimBook",
    "SimPairQuote",
    "SimPairTrade",
    "Tally",
    "apply_change",
]

PAIRS: Mapping[str, float] = {
    "BTC/USD": 64_250.0,
    "ETH/USD": 3_420.0,
    "SOL/USD": 148.6,
    "XRP/USD": 0.5213,
    "DOGE/USD": 0.1274,
    "LTC/USD": 71.35,
    "LINK/USD": 13.92,
    "AVAX/USD": 27.41,
    "BTC/USDT": 64_260.0,
    "ETH/BTC": 0.0532,
}
"""Start prices, the busiest first: what ``*`` means. Invented, of a plausible size."""

_MINUTE_NS = 60_000_000_000
_DAY_NS = 86_400_000_000_000
_HALF_MINUTE_NS = 30_000_000_000
_SECOND_NS = 1_000_000_000
_STEP_NS = 1_000
_CLOCK_STEP_NS = 1_000_000_000
_MOST_AT_ONCE = 1_000
_MOST_BARS = 60
"""For a pair after a pause of the clock; bars of minutes before that are left out."""

_LEVELS = 10
_DIGITS = 7
"""Of a start price in ticks."""
_NOTIONAL = 2_000.0
"""The mean size of a level, in the quote currency."""
_PULL_AT = 0.25
_FIRST_ID = 7_400_000_000_000_000_000
"""Alpaca's ids of crypto trades need 63 bits."""
_TRADE_BELOW = 77
"""Of 256: the part of the steps that are trades."""

Taker = Literal["B", "S", "-"]
Level = tuple[float, float]
"""A price, and the size there."""


class SimPairQuote(msgspec.Struct, frozen=True, gc=False):
    """A quote of a crypto pair: the top of its book. Sizes are fractions of coins."""

    symbol: str
    bid: float
    ask: float
    bid_size: float = 1.0
    ask_size: float = 1.0
    ts_event_ns: int = 0


class SimPairTrade(msgspec.Struct, frozen=True, gc=False):
    """A trade of a crypto pair.

    Attributes:
        symbol: ``BTC/USD``.
        price: In the quote currency.
        size: A fraction of coins.
        id: Rises with the time of the trades of a pair.
        taker: ``B`` where a buyer took the offer, ``S`` for a seller, ``-`` for unknown.
        ts_event_ns: UTC nanoseconds.
    """

    symbol: str
    price: float
    size: float
    id: int
    taker: Taker = "-"
    ts_event_ns: int = 0


class SimBook(msgspec.Struct, frozen=True):
    """The order book of a pair, or a change of it.

    Attributes:
        symbol: ``BTC/USD``.
        bids: Levels, best first. In a change those that changed; a size of 0 removes one.
        asks: Likewise.
        whole: Whether these are all levels.
        ts_event_ns: UTC nanoseconds.
    """

    symbol: str
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    whole: bool = False
    ts_event_ns: int = 0


def apply_change(book: SimBook | None, change: SimBook) -> SimBook | None:
    """The whole book after a change of it.

    None where the book before the change is not known.
    """
    if change.whole:
        return change
    if book is None:
        return None
    bids, asks = dict(book.bids), dict(book.asks)
    for side, levels in ((bids, change.bids), (asks, change.asks)):
        for price, size in levels:
            if size:
                side[price] = size
            else:
                side.pop(price, None)
    return SimBook(
        change.symbol,
        tuple(sorted(bids.items(), reverse=True)),
        tuple(sorted(asks.items())),
        whole=True,
        ts_event_ns=change.ts_event_ns,
    )


@attrs.define
class Tally:
    """Adds up the trades of one bar, in whole ticks and units, in any order of their times."""

    first_ns: int = 0
    last_ns: int = 0
    open: int = 0
    high: int = 0
    low: int = 0
    close: int = 0
    units: int = 0
    weighted: int = 0
    count: int = 0

    def add(self, ts_ns: int, price: int, units: int) -> None:
        """Add a trade."""
        if not self.count or ts_ns < self.first_ns:
            self.first_ns, self.open = ts_ns, price
        if not self.count or ts_ns >= self.last_ns:
            self.last_ns, self.close = ts_ns, price
        self.high = max(self.high, price)
        self.low = min(self.low, price) if self.count else price
        self.units += units
        self.weighted += price * units
        self.count += 1

    def bar(self, symbol: str, start_ns: int, price_scale: int, size_scale: int = 1) -> SimBar:
        """The bar; what has no size counts as no trade.

        Args:
            symbol: ``BTC/USD``.
            start_ns: When it starts, UTC nanoseconds.
            price_scale: Ticks in one unit of the currency.
            size_scale: Units of size in one coin.
        """
        units = self.units
        return SimBar(
            symbol,
            self.open / price_scale,
            self.high / price_scale,
            self.low / price_scale,
            self.close / price_scale,
            units / size_scale if units % size_scale else units // size_scale,
            self.count if units else 0,
            round(self.weighted / (units * price_scale), 9) if units else 0.0,
            start_ns,
        )


@attrs.define
class _Minute:
    """What happened in a minute of a pair: its trades, and the mids of its quotes."""

    trades: Tally = attrs.field(factory=Tally)
    mids: Tally = attrs.field(factory=Tally)
    closed: bool = False
    update_due: bool = False


@attrs.define
class Made:
    """The records that a part of the market has made, by kind, in the order of their arrival."""

    trades: list[SimPairTrade] = attrs.field(factory=list)
    quotes: list[SimPairQuote] = attrs.field(factory=list)
    orderbooks: list[SimBook] = attrs.field(factory=list)
    bars: list[SimBar] = attrs.field(factory=list)
    updated_bars: list[SimBar] = attrs.field(factory=list)
    daily_bars: list[SimBar] = attrs.field(factory=list)


class PairWalk:
    """One pair: its book, and what happens to it.

    The n-th step of a pair depends on the seed and the pair alone, never on when it is made or on
    what other pairs do.

    Args:
        symbol: ``BTC/USD``; one that :data:`PAIRS` does not have starts at a price from its name.
        seed: The simulator's seed.
        ts_ns: When it opens, UTC nanoseconds.
        late_ratio: The fraction of trades that arrives after the bar of its minute.
    """

    def __init__(self, symbol: str, seed: int, ts_ns: int, late_ratio: float = 0.0) -> None:
        self.symbol = symbol
        start = start_price(symbol)
        magnitude = math.floor(math.log10(start))
        self.price_scale: int = 10 ** max(0, _DIGITS - 1 - magnitude)
        """Ticks in one unit of the quote currency."""
        self.size_scale: int = 10 ** max(0, min(9, magnitude + 2))
        """Units of size in one coin."""
        self._random = random.Random(f"{seed}:{symbol}")  # noqa: S311 - reproducible, no secret
        self._ticks = round(start * self.price_scale)
        self._low = round(self._ticks * (1 - _PULL_AT))
        self._high = round(self._ticks * (1 + _PULL_AT))
        self._step = max(1, self._ticks // 20_000)
        self._spread = max(1, self._ticks // 5_000)
        self._mean_units: int = max(2, round(_NOTIONAL / start * self.size_scale))
        self._late_below = round(late_ratio * 65_536)
        self._id = _FIRST_ID + self._random.getrandbits(40)
        self._minutes: dict[int, _Minute] = {}
        self._days: dict[int, Tally] = {}
        self._held: list[tuple[int, int, int, int, SimPairTrade]] = []
        """Late trades: when each is to arrive, its time, ticks and units, and itself."""
        self._next_minute_ns = ts_ns - ts_ns % _MINUTE_NS + _MINUTE_NS
        self._bids: dict[int, int] = {}
        self._asks: dict[int, int] = {}
        self._move()

    def open(self, ts_ns: int, made: Made) -> None:
        """Make the whole book, its quote, and a first trade."""
        self._trade(ts_ns, made, bits=0, late=False)
        made.quotes.append(self._quote(ts_ns))
        made.orderbooks.append(self._whole(ts_ns))

    def step(self, ts_ns: int, made: Made) -> None:
        """Make the next step, at this time (UTC nanoseconds)."""
        before = dict(self._bids), dict(self._asks)
        top = self._top()
        bits = self._random.getrandbits(48)
        if bits & 0xFF < _TRADE_BELOW:
            self._trade(ts_ns, made, bits >> 8, late=bits >> 32 < self._late_below)
        else:
            self._move()
        if self._top() != top:
            made.quotes.append(self._quote(ts_ns))
        made.orderbooks.append(
            SimBook(
                self.symbol,
                self._levels(_changed(before[0], self._bids), best_first=True),
                self._levels(_changed(before[1], self._asks)),
                ts_event_ns=ts_ns,
            )
        )

    def pass_time(self, now_ns: int, made: Made) -> None:
        """Make what is due by the clock: late trades, bars of past minutes, updated bars."""
        minutes = max(0, now_ns - self._next_minute_ns) // _MINUTE_NS
        self._next_minute_ns += max(0, minutes - _MOST_BARS) * _MINUTE_NS
        while self._next_minute_ns <= now_ns:
            self._close_minute(self._next_minute_ns - _MINUTE_NS, made)
            self._next_minute_ns += _MINUTE_NS
        for due_ns, ts_ns, price, units, trade in self._held:
            if due_ns <= now_ns:
                made.trades.append(trade)
                self._count(ts_ns, price, units)
        self._held = [late for late in self._held if late[0] > now_ns]
        for start_ns, minute in list(self._minutes.items()):
            if minute.update_due and now_ns >= start_ns + _MINUTE_NS + _HALF_MINUTE_NS:
                made.updated_bars.append(self._minute_bar(start_ns, minute))
                minute.update_due = False
            if now_ns >= start_ns + 2 * _MINUTE_NS:
                del self._minutes[start_ns]

    def _close_minute(self, start_ns: int, made: Made) -> None:
        minute = self._minutes.setdefault(start_ns, _Minute())
        if not minute.mids.count:
            self._count_mid(start_ns, minute)
        minute.closed = True
        made.bars.append(self._minute_bar(start_ns, minute))
        day_ns = start_ns - start_ns % _DAY_NS
        for old_ns in [old_ns for old_ns in self._days if old_ns < day_ns]:
            made.daily_bars.append(self._bar(old_ns, self._days.pop(old_ns)))
        day = self._days.get(day_ns)
        if day is not None:
            made.daily_bars.append(self._bar(day_ns, day))

    def _minute_bar(self, start_ns: int, minute: _Minute) -> SimBar:
        return self._bar(start_ns, minute.trades if minute.trades.count else minute.mids)

    def _bar(self, start_ns: int, tally: Tally) -> SimBar:
        # Mids are in half ticks and have no size.
        scale = self.price_scale * (1 if tally.units else 2)
        return tally.bar(self.symbol, start_ns, scale, self.size_scale)

    def _count(self, ts_ns: int, price: int, units: int) -> None:
        start_ns = ts_ns - ts_ns % _MINUTE_NS
        minute = self._minutes.setdefault(start_ns, _Minute())
        minute.trades.add(ts_ns, price, units)
        minute.update_due = minute.closed
        self._days.setdefault(ts_ns - ts_ns % _DAY_NS, Tally()).add(ts_ns, price, units)

    def _count_mid(self, ts_ns: int, minute: _Minute) -> None:
        bid, _, ask, _ = self._top()
        minute.mids.add(ts_ns, bid + ask, 0)

    def _trade(self, ts_ns: int, made: Made, bits: int, *, late: bool) -> None:
        """Take from the best level of one side."""
        buys = bool(bits & 1)
        side, price = (self._asks, min(self._asks)) if buys else (self._bids, max(self._bids))
        units = max(1, side[price] * (1 + (bits >> 1 & 0x7)) // 8)
        self._id += 1 + (bits >> 4 & 0x3)
        trade = SimPairTrade(
            self.symbol,
            price / self.price_scale,
            units / self.size_scale,
            self._id,
            "B" if buys else "S",
            ts_ns,
        )
        side[price] -= units
        if not side[price]:
            del side[price]
        self._refill()
        if late:
            minute_ends_ns = ts_ns - ts_ns % _MINUTE_NS + _MINUTE_NS
            due_ns = minute_ends_ns + (2 + (bits >> 6 & 0xF)) * _SECOND_NS
            self._held.append((due_ns, ts_ns, price, units, trade))
        else:
            made.trades.append(trade)
            self._count(ts_ns, price, units)

    def _move(self) -> None:
        """Let the makers move the top of the book, and change one level behind it."""
        bits = self._random.getrandbits(64)
        # The difference of two equal draws: no drift, and small steps are the likely ones.
        ticks = self._ticks + ((bits & 3) - (bits >> 2 & 3)) * self._step
        if ticks < self._low:
            ticks += 3 * self._step
        elif ticks > self._high:
            ticks -= 3 * self._step
        self._ticks = bid = max(1, ticks)
        ask = bid + self._spread + (bits >> 4 & 0xFF) * (self._spread + 2) // 256
        self._bids = {price: size for price, size in self._bids.items() if price < bid}
        self._asks = {price: size for price, size in self._asks.items() if price > ask}
        self._bids[bid] = self._size(bits >> 12)
        self._asks[ask] = self._size(bits >> 28)
        self._refill()
        side = self._bids if bits >> 44 & 1 else self._asks
        side[sorted(side)[(bits >> 45 & 0xFF) % len(side)]] = self._size(bits >> 53)

    def _refill(self) -> None:
        """Keep the number of levels, at the far ends of the book."""
        while len(self._bids) > _LEVELS:
            del self._bids[min(self._bids)]
        while len(self._asks) > _LEVELS:
            del self._asks[max(self._asks)]
        while len(self._bids) < _LEVELS:
            bits = self._random.getrandbits(24)
            price = min(self._bids, default=self._ticks) - 1 - (bits >> 16) % (2 * self._step)
            if price < 1:
                break
            self._bids[price] = self._size(bits)
        while len(self._asks) < _LEVELS:
            bits = self._random.getrandbits(24)
            least = self._ticks + self._spread
            price = max(self._asks, default=least) + 1 + (bits >> 16) % (2 * self._step)
            self._asks[price] = self._size(bits)

    def _size(self, bits: int) -> int:
        return max(1, self._mean_units * (1 + (bits & 0xFFFF)) // 32_768)

    def _top(self) -> tuple[int, int, int, int]:
        bid, ask = max(self._bids), min(self._asks)
        return bid, self._bids[bid], ask, self._asks[ask]

    def _quote(self, ts_ns: int) -> SimPairQuote:
        minute = self._minutes.setdefault(ts_ns - ts_ns % _MINUTE_NS, _Minute())
        self._count_mid(ts_ns, minute)
        bid, bid_units, ask, ask_units = self._top()
        return SimPairQuote(
            self.symbol,
            bid / self.price_scale,
            ask / self.price_scale,
            bid_units / self.size_scale,
            ask_units / self.size_scale,
            ts_ns,
        )

    def _whole(self, ts_ns: int) -> SimBook:
        bids = self._levels(self._bids.items(), best_first=True)
        return SimBook(self.symbol, bids, self._levels(self._asks.items()), True, ts_ns)

    def _levels(
        self, levels: Iterable[tuple[int, int]], *, best_first: bool = False
    ) -> tuple[Level, ...]:
        """Levels in prices and coins: bids with the highest first, asks with the lowest."""
        return tuple(
            (price / self.price_scale, units / self.size_scale)
            for price, units in sorted(levels, reverse=best_first)
        )


def _changed(before: Mapping[int, int], after: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """The levels that differ; a size of 0 where one is gone."""
    for price in before.keys() | after.keys():
        if before.get(price) != after.get(price):
            yield price, after.get(price, 0)


def start_price(symbol: str) -> float:
    """From the table, else from the name: between 0.1 and 1,000."""
    known = PAIRS.get(symbol)
    if known is not None:
        return known
    digest = hashlib.sha256(symbol.encode()).digest()
    return math.pow(10, int.from_bytes(digest[:4], "big") / (1 << 32) * 4 - 1)


class CryptoSource:
    """Makes the records of the followed pairs, around the clock.

    For the same pairs the whole sequence of steps is the same on every run; how it is cut into
    slices makes no difference. Bars depend on the clock's minutes, as they must.

    Args:
        config: The seed of every random choice, the mean steps per second of all followed pairs
            together, the part of the trades that is late, and the pairs that are silent.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self._seed = config.seed
        self._rate = config.crypto_rate
        self._late_ratio = config.late_trade_ratio
        self._silent = config.silent_symbols
        self._choice = random.Random(f"{config.seed}/pairs")  # noqa: S311 - reproducible, no secret
        self._walks: dict[str, PairWalk] = {}
        self._symbols: tuple[str, ...] = ()
        self._weights: Sequence[float] = ()
        self._due_so_far = 0
        self._last_ns = 0

    @property
    def symbols(self) -> tuple[str, ...]:
        """Those followed, the busiest first."""
        return self._symbols

    def follow(self, wanted: Mapping[str, AbstractSet[str]]) -> None:
        """Make all records of these pairs from now on; ``*`` is all of :data:`PAIRS`."""
        pairs = set().union(*wanted.values())
        if EVERY_SYMBOL in pairs:
            pairs.remove(EVERY_SYMBOL)
            pairs.update(PAIRS)
        rank = {symbol: place for place, symbol in enumerate(PAIRS)}
        self._symbols = tuple(
            sorted(pairs - self._silent, key=lambda symbol: (rank.get(symbol, len(rank)), symbol))
        )
        self._weights = [place**-0.9 for place in range(1, len(self._symbols) + 1)]

    def make(self, elapsed_s: float, now_ns: int) -> Iterable[Batch]:
        """The steps that have come due, at most a second's worth, and what the clock brings."""
        total = int(self._rate * elapsed_s)
        count = min(total - self._due_so_far, max(_MOST_AT_ONCE, int(self._rate)))
        self._due_so_far = total
        made = self.take(count, now_ns)
        batches = zip(CRYPTO_MARKET.kinds, attrs.astuple(made, recurse=False), strict=True)
        return [(kind, records) for kind, records in batches if records]

    def take(self, count: int, now_ns: int) -> Made:
        """The next ``count`` steps, with rising times up to ``now_ns``, and what time brings."""
        made = Made()
        for symbol in self._symbols:
            if symbol not in self._walks:
                ts_ns = self._times(1, now_ns)[0]
                self._walks[symbol] = PairWalk(symbol, self._seed, ts_ns, self._late_ratio)
                self._walks[symbol].open(ts_ns, made)
        if self._symbols and count > 0:
            names = self._choice.choices(self._symbols, self._weights, k=count)
            for symbol, ts_ns in zip(names, self._times(count, now_ns), strict=True):
                walk = self._walks[symbol]
                walk.pass_time(ts_ns, made)
                walk.step(ts_ns, made)
        for symbol in self._symbols:
            self._walks[symbol].pass_time(now_ns, made)
        return made

    def _times(self, count: int, now_ns: int) -> range:
        first_ns = now_ns - (count - 1) * _STEP_NS
        if first_ns <= self._last_ns <= now_ns + _CLOCK_STEP_NS:
            first_ns = self._last_ns + 1
        times = range(first_ns, first_ns + count * _STEP_NS, _STEP_NS)
        self._last_ns = times[-1]
        return times


class BookRecord(MarketRecord[SimBook]):
    """Keeps the newest changes as they came, and the whole book of each pair.

    A change of a book that is not known changes no book.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._books: dict[str, SimBook] = {}

    def add(self, records: Sequence[SimBook]) -> None:
        """Apply these changes, in order."""
        self.records.extend(records)
        for change in records:
            book = apply_change(self._books.get(change.symbol), change)
            if book is not None:
                self._books[change.symbol] = book

    def latest(self, symbol: str, valid: Callable[[SimBook], bool] | None = None) -> SimBook | None:
        """The pair's whole book; None where it is not known, or not valid."""
        book = self._books.get(symbol)
        return book if book is not None and (valid is None or valid(book)) else None

    def whole(self, symbols: AbstractSet[str]) -> list[SimBook]:
        """The whole books of these pairs, as far as they are known; ``*`` is all of them."""
        wanted = self._books if EVERY_SYMBOL in symbols else sorted(symbols)
        return [self._books[symbol] for symbol in wanted if symbol in self._books]


_TRADE = {"p": "price", "s": "size", "t": "ts_event_ns", "i": "id", "tks": "taker"}
_QUOTE = {"bp": "bid", "bs": "bid_size", "ap": "ask", "as": "ask_size", "t": "ts_event_ns"}
_SYMBOL = {"S": "symbol"}
_TRADE_NUMBERS, _QUOTE_NUMBERS = ("p", "s"), ("bp", "bs", "ap", "as")
_trade_row = rower(_TRADE, _TRADE_NUMBERS)
_quote_row = rower(_QUOTE, _QUOTE_NUMBERS)


def _book_row(book: SimBook, encoding: Encoding = "json") -> dict[str, Any]:
    number = json_number if encoding == "json" else float

    def side(levels: Iterable[Level]) -> list[dict[str, float]]:
        return [{"p": number(price), "s": number(size)} for price, size in levels]

    t = encode_timestamp(book.ts_event_ns, encoding)
    return {"t": t, "b": side(book.bids), "a": side(book.asks)}


def _encode_books(
    books: Sequence[SimBook], encoding: Encoding, /, *, spoil: bool = False
) -> OutFrame:
    """``r`` is there only where the book is whole."""
    items: list[dict[str, Any]] = [
        {
            "T": "o",
            "S": book.symbol,
            **_book_row(book, encoding),
            **({"r": True} if book.whole else {}),
        }
        for book in books
    ]
    if spoil:
        items.insert(len(items) // 2, {"T": "o", "S": "BTC/USD", "t": 7.5, "b": None})
    return encode_items(items, encoding)


def _keep_updated_bars(records: Records, bars: Sequence[SimBar]) -> None:
    for bar in bars:
        records[BARS].replace(bar)


def _keep_daily_bars(records: Records, bars: Sequence[SimBar]) -> None:
    for bar in bars:
        records[DAILY_BARS].replace(bar)


TRADES: Final[SimKind[SimPairTrade]] = SimKind(
    CRYPTO, "trades", encoder("t", _SYMBOL | _TRADE, _TRADE_NUMBERS)
)
QUOTES: Final[SimKind[SimPairQuote]] = SimKind(
    CRYPTO, "quotes", encoder("q", _SYMBOL | _QUOTE, _QUOTE_NUMBERS)
)
ORDERBOOKS: Final[SimKind[SimBook]] = SimKind(
    CRYPTO,
    "orderbooks",
    _encode_books,
    record=BookRecord,
    first=lambda record, symbols: cast("BookRecord", record).whole(symbols),
)
BARS: Final[SimKind[SimBar]] = SimKind(CRYPTO, "bars", encode_bars)
UPDATED_BARS: Final[SimKind[SimBar]] = SimKind(
    CRYPTO, "updatedBars", encode_updated_bars, _keep_updated_bars
)
DAILY_BARS: Final[SimKind[SimBar]] = SimKind(
    CRYPTO, "dailyBars", encode_daily_bars, _keep_daily_bars
)


def _source(config: SimulatorConfig, _records: Records) -> Source | None:
    return CryptoSource(config) if config.rate and config.crypto_rate else None


def _routes(records: Records, rules: RestRules) -> Mapping[str, Answer]:
    no_feed = frozenset(("",))
    rules = attrs.evolve(
        rules,
        default_feed="",
        history_feeds=no_feed,
        latest_feeds=no_feed,
        has_symbol=CRYPTO.has_symbol,
    )

    def history(call: Call, kind: SimKind[Any]) -> bytes:
        query = parse_history(call.params, rules, call.now_ns)
        return answer_history(records[kind], query, kind.channel, _ROWS[kind])

    def bars(call: Call) -> bytes:
        record = records[DAILY_BARS if wants_days(call.params) else BARS]
        query = parse_history(call.params, rules, call.now_ns)
        return answer_history(record, query, BARS.channel, bar_row)

    def latest(call: Call, kind: SimKind[Any]) -> bytes:
        symbols = parse_latest(call.params, rules)
        return answer_latest(records[kind], symbols, kind.channel, _ROWS[kind])

    def snapshots(call: Call) -> bytes:
        found = {symbol: snapshot(symbol) for symbol in parse_latest(call.params, rules)}
        return msgspec.json.encode({"snapshots": found})

    def snapshot(symbol: str) -> dict[str, Any]:
        days = records[DAILY_BARS].between(symbol, 0, LATEST_NS, most=2, newest_first=True)
        found = (
            ("latestTrade", _trade_row, records[TRADES].latest(symbol)),
            ("latestQuote", _quote_row, records[QUOTES].latest(symbol)),
            ("minuteBar", bar_row, records[BARS].latest(symbol)),
            ("dailyBar", bar_row, days[0] if days else None),
            ("prevDailyBar", bar_row, days[1] if len(days) > 1 else None),
        )
        return {name: row(record) for name, row, record in found if record is not None}

    routes: dict[str, Answer] = {}
    for path in CRYPTO.paths:
        for kind in _ROWS:
            routes[f"{path}/latest/{kind.channel}"] = partial(latest, kind=kind)
            if kind is not ORDERBOOKS:
                routes[f"{path}/{kind.channel}"] = partial(history, kind=kind)
        routes |= {f"{path}/bars": bars, f"{path}/snapshots": snapshots}
    return routes


_ROWS: Final[Mapping[SimKind[Any], Callable[[Any], Any]]] = {
    TRADES: _trade_row,
    QUOTES: _quote_row,
    BARS: bar_row,
    ORDERBOOKS: _book_row,
}
"""How the kinds of which REST has the latest records look there."""

CRYPTO_MARKET: Final = SimMarket(
    (TRADES, QUOTES, ORDERBOOKS, BARS, UPDATED_BARS, DAILY_BARS), _source, _routes
)
