"""The market: its symbols and their prices, how many quotes are due, and a record of them all.

Pure: elapsed time and the clock's time are arguments.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate
from typing import Generic, Literal

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.simulator.wire import S, SimQuote

__all__ = [
    "UNIVERSE",
    "Market",
    "MarketRecord",
    "PriceWalk",
    "Shape",
    "day_fraction",
    "day_multiplier",
    "start_cents",
    "tape_of",
]

UNIVERSE: Mapping[str, int] = {
    "NVDA": 17_850,
    "TSLA": 34_120,
    "AAPL": 18_713,
    "SPY": 61_240,
    "AMD": 15_475,
    "AMZN": 20_390,
    "MSFT": 42_855,
    "META": 58_610,
    "GOOGL": 17_645,
    "QQQ": 52_930,
    "INTC": 2_415,
    "BAC": 4_380,
    "NFLX": 90_525,
    "F": 1_095,
    "PLTR": 8_240,
    "JPM": 24_315,
    "AVGO": 22_960,
    "XOM": 11_580,
    "DIS": 11_160,
    "KO": 6_275,
    "PFE": 2_590,
    "WMT": 9_345,
    "CSCO": 5_990,
    "BA": 17_420,
    "V": 31_190,
    "JNJ": 15_535,
    "PG": 16_880,
    "IWM": 22_710,
    "COST": 92_470,
    "BRK.B": 46_835,
}
"""Start prices in cents, by symbol, the busiest first. Invented, of a plausible size."""

_NASDAQ = frozenset(
    (
        *("NVDA", "TSLA", "AAPL", "AMD", "AMZN", "MSFT", "META", "GOOGL", "QQQ", "INTC"),
        *("NFLX", "PLTR", "AVGO", "CSCO", "COST"),
    )
)
_ARCA = frozenset(("SPY", "IWM"))
_LOWEST_CENTS = 500
_RANGE_CENTS = 49_500

_CONDITIONS = ("R",)
_CENTS = 100
_ROUND_LOT = 100
_PULL_AT = 0.25
"""How far from its start, as a part of it, a price begins to be pulled back."""
_NO_EXCHANGE = " "

Shape = Literal["day", "flat"]
"""``day``: bursts at open and close around the mean rate; ``flat``: the mean rate always."""

_OPEN_PEAK = 3.0
_CLOSE_PEAK = 2.0
_WIDTH = 0.05
_TAIL = math.exp(-1 / _WIDTH)
_BASE = 1 - (_OPEN_PEAK + _CLOSE_PEAK) * _WIDTH * (1 - _TAIL)

_QUOTE_STEP_NS = 1_000
_CLOCK_STEP_NS = 1_000_000_000
_MOST_AT_ONCE = 1_000
_ALL = tuple(UNIVERSE)
_RANK = {symbol: rank for rank, symbol in enumerate(_ALL, start=1)}

_COMPACT_FROM = 1_024


class Market:
    """Makes the quotes of the subscribed symbols.

    The order of the symbols is drawn from the seed too, so for the same symbols the whole
    sequence is the same on every run; how it is cut into slices makes no difference.

    Args:
        seed: Of every random choice.
        rate: Mean quotes per second of all followed symbols together.
        shape: How the rate goes over the day.
        day_s: Length of the day, after which the next one opens.
        zipf: How uneven the symbols are: 0 all alike, 1 the n-th busiest has 1/n.
        weights: Shares of single symbols in the place of those.
        exchanges: Exchange codes of the quotes.
        zero_side_ratio: The fraction of quotes that lacks one side, 0 to 1.
    """

    def __init__(
        self,
        *,
        seed: int,
        rate: float,
        shape: Shape = "flat",
        day_s: float = 600.0,
        zipf: float = 0.9,
        weights: Mapping[str, float] | None = None,
        exchanges: Sequence[str] = ("V",),
        zero_side_ratio: float = 0.0,
    ) -> None:
        self._seed = seed
        self._rate = rate
        self._shape = shape
        self._day_s = day_s
        self._zipf = zipf
        self._weights = dict(weights or {})
        self._exchanges = tuple(exchanges)
        self._zero_side_ratio = zero_side_ratio
        self._choice = random.Random(f"{seed}/order")  # noqa: S311 - reproducible, no secret
        self._walks: dict[str, PriceWalk] = {}
        self._symbols: tuple[str, ...] = ()
        self._cumulated: list[float] = []
        self._due_so_far = 0
        self._last_ns = 0

    @property
    def symbols(self) -> tuple[str, ...]:
        """The subscribed symbols, the busiest first."""
        return self._symbols

    def follow(self, symbols: Iterable[str], *, without: AbstractSet[str] = frozenset()) -> None:
        """Make quotes of these from now on.

        Args:
            symbols: By name; ``*`` is all of the table, besides those named.
            without: Symbols that are never quoted.
        """
        wanted = set(symbols)
        if EVERY_SYMBOL in wanted:
            wanted.remove(EVERY_SYMBOL)
            wanted.update(_ALL)
        wanted -= without
        ordered = sorted(wanted, key=lambda symbol: (_RANK.get(symbol, len(_ALL) + 1), symbol))
        self._symbols = tuple(ordered)
        self._cumulated = list(
            accumulate(
                self._weights.get(symbol, place**-self._zipf)
                for place, symbol in enumerate(ordered, start=1)
            )
        )

    def due(self, elapsed_s: float) -> int:
        """How many quotes have come due since the last call.

        After a long pause (a machine that slept) what is beyond one second's worth is lost.
        """
        total = int(self._total_by(elapsed_s))
        due = total - self._due_so_far
        self._due_so_far = total
        return min(due, max(_MOST_AT_ONCE, int(self._rate)))

    def take(self, count: int, now_ns: int) -> list[SimQuote]:
        """The next ``count`` quotes, with rising timestamps up to ``now_ns``."""
        if not self._symbols or count <= 0:
            return []
        if not self._cumulated[-1]:
            return []
        first_ns = now_ns - (count - 1) * _QUOTE_STEP_NS
        if first_ns <= self._last_ns <= now_ns + _CLOCK_STEP_NS:
            first_ns = self._last_ns + 1
        names = self._choice.choices(self._symbols, cum_weights=self._cumulated, k=count)
        quotes = [
            self._walk(name).next(first_ns + index * _QUOTE_STEP_NS)
            for index, name in enumerate(names)
        ]
        self._last_ns = quotes[-1].ts_event_ns
        return quotes

    def _walk(self, symbol: str) -> PriceWalk:
        walk = self._walks.get(symbol)
        if walk is None:
            walk = self._walks[symbol] = PriceWalk(
                symbol,
                self._seed,
                exchanges=self._exchanges,
                zero_side_ratio=self._zero_side_ratio,
            )
        return walk

    def _total_by(self, elapsed_s: float) -> float:
        """Quotes from the start until then."""
        if self._shape == "flat":
            return self._rate * elapsed_s
        days, moment = divmod(elapsed_s / self._day_s, 1)
        return self._rate * self._day_s * (days + day_fraction(moment))


class PriceWalk:
    """Quotes of one symbol, one after the other.

    A seeded random walk: always ``bid < ask`` in whole cents, from one cent up, where both sides
    are active. The n-th quote of a symbol depends on the seed, the symbol and the settings alone,
    never on when it is asked for or on what other symbols do.

    Args:
        symbol: Its name, hashed into the seed and into an unknown symbol's start price.
        seed: The simulator's seed.
        exchanges: Exchange codes to choose from.
        zero_side_ratio: The fraction of quotes that has one side without a price, 0 to 1.
    """

    def __init__(
        self,
        symbol: str,
        seed: int,
        *,
        exchanges: Sequence[str] = ("V",),
        zero_side_ratio: float = 0.0,
    ) -> None:
        self.symbol = symbol
        start = start_cents(symbol)
        self._random = random.Random(f"{seed}:{symbol}")  # noqa: S311 - reproducible, no secret
        self._exchanges = tuple(exchanges)
        self._tape = tape_of(symbol)
        self._bid = max(1, start)
        self._low = max(1, round(start * (1 - _PULL_AT)))
        self._high = max(self._low + 1, round(start * (1 + _PULL_AT)))
        self._step = max(1, start // 20_000)
        self._spread = max(1, start // 10_000)
        self._zero_below = round(zero_side_ratio * 65_536)

    def next(self, ts_event_ns: int) -> SimQuote:
        """The next quote, stamped with the time given (UTC nanoseconds)."""
        bits = self._random.getrandbits(64)
        bid = self._walk(bits & 0xFF)
        ask = bid + self._spread + (bits >> 8 & 0xFF) * (self._spread + 2) // 256
        exchanges = self._exchanges
        bid_size = _ROUND_LOT * (1 + (bits >> 16 & 0xFF) % 9)
        ask_size = _ROUND_LOT * (1 + (bits >> 24 & 0xFF) % 9)
        bid_exchange = exchanges[(bits >> 32 & 0x7F) % len(exchanges)]
        ask_exchange = exchanges[(bits >> 39 & 0x7F) % len(exchanges)]
        if (bits >> 48) < self._zero_below:
            if bits & 0x100:
                bid, bid_size, bid_exchange = 0, 0, _NO_EXCHANGE
            else:
                ask, ask_size, ask_exchange = 0, 0, _NO_EXCHANGE
        return SimQuote(
            self.symbol,
            bid / _CENTS,
            ask / _CENTS,
            bid_size,
            ask_size,
            ts_event_ns,
            bid_exchange,
            ask_exchange,
            _CONDITIONS,
            self._tape,
        )

    def _walk(self, byte: int) -> int:
        """Move the bid by up to three steps and return it."""
        # The difference of two equal draws: no drift, and small steps are the likely ones.
        bid = self._bid + ((byte & 3) - (byte >> 2 & 3)) * self._step
        if bid < self._low:
            bid += 3 * self._step
        elif bid > self._high:
            bid -= 3 * self._step
        self._bid = max(1, bid)
        return self._bid


class MarketRecord(Generic[S]):
    """The newest records of the market; those beyond the size are forgotten, oldest first.

    Adding one is done in constant time unless times go back, finding a page in the logarithm
    of the symbol's records.

    Args:
        size: How many records it holds.
    """

    def __init__(self, size: int) -> None:
        self.records: deque[S] = deque(maxlen=size)
        """All of them as they came; only to be read."""
        self._size = size
        self._series: dict[str, _Series[S]] = {}

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of the records."""
        return tuple(self._series)

    def add(self, records: Sequence[S]) -> None:
        """Keep these records, in order."""
        if len(records) > self._size:
            records = records[len(records) - self._size :]
        for _ in range(len(self.records) + len(records) - self._size):
            self._forget(self.records.popleft())
        self.records.extend(records)
        for record in records:
            series = self._series.get(record.symbol)
            if series is None:
                series = self._series[record.symbol] = _Series()
            series.add(record)

    def replace(self, record: S) -> None:
        """Replace the symbol's last record of the same time by this one, or add it."""
        series = self._series.get(record.symbol)
        if series is None or not series.replace(record):
            self.add([record])

    def between(
        self,
        symbol: str,
        start_ns: int,
        end_ns: int,
        *,
        most: int,
        newest_first: bool = False,
        resume: tuple[int, int] | None = None,
    ) -> list[S]:
        """The symbol's records from start to end, both included.

        Args:
            symbol: Any, known or not.
            start_ns: UTC nanoseconds.
            end_ns: UTC nanoseconds.
            most: How many at most.
            newest_first: Go from the end to the start.
            resume: Begin at this time, and leave out so many records of just that time.
        """
        series = self._series.get(symbol)
        if series is None:
            return []
        low, high = series.before(start_ns), series.after(end_ns)
        if resume is not None:
            ts_ns, done = resume
            if newest_first:
                high = min(high, max(series.after(ts_ns) - done, series.before(ts_ns)))
            else:
                low = max(low, min(series.before(ts_ns) + done, series.after(ts_ns)))
        if newest_first:
            return series.records[max(low, high - most) : high][::-1]
        return series.records[low : min(high, low + most)]

    def latest(self, symbol: str, valid: Callable[[S], bool] | None = None) -> S | None:
        """The symbol's newest record by its time, of those that are valid; None without any."""
        series = self._series.get(symbol)
        if not series:
            return None
        if valid is None:
            return series.records[-1]
        return next(filter(valid, reversed(series.records[series.first :])), None)

    def amend(
        self, symbol: str, matches: Callable[[S], bool], change: Callable[[S], S]
    ) -> S | None:
        """Put another record, with the same time, in the place of the newest one that matches.

        :attr:`records` keeps the one that came.

        Returns:
            The record that was there; None where none matches.
        """
        series = self._series.get(symbol)
        if series is None:
            return None
        for place in range(len(series.records) - 1, series.first - 1, -1):
            found = series.records[place]
            if matches(found):
                series.records[place] = change(found)
                return found
        return None

    def _forget(self, record: S) -> None:
        series = self._series[record.symbol]
        series.forget(record)
        if not series:
            del self._series[record.symbol]


class _Series(Generic[S]):
    """One symbol's records in the order of their times, those of one time as they came.

    What was forgotten stays in front until it is half of all, so that forgetting is cheap.
    """

    def __init__(self) -> None:
        self.times: list[int] = []
        self.records: list[S] = []
        self.first = 0

    def __len__(self) -> int:
        return len(self.times) - self.first

    def add(self, record: S) -> None:
        ts_ns = record.ts_event_ns
        if len(self) and ts_ns < self.times[-1]:
            place = bisect_right(self.times, ts_ns, self.first)
            self.times.insert(place, ts_ns)
            self.records.insert(place, record)
        else:
            self.times.append(ts_ns)
            self.records.append(record)

    def replace(self, record: S) -> bool:
        """Take the place of the last one of its time; False where there is none."""
        place = self.after(record.ts_event_ns) - 1
        found = place >= self.first and self.times[place] == record.ts_event_ns
        if found:
            self.records[place] = record
        return found

    def forget(self, record: S) -> None:
        """Forget the first record of its time."""
        place = bisect_left(self.times, record.ts_event_ns, self.first)
        if place > self.first:
            del self.times[place], self.records[place]
            return
        self.first += 1
        if self.first >= _COMPACT_FROM and self.first * 2 >= len(self.times):
            del self.times[: self.first], self.records[: self.first]
            self.first = 0

    def before(self, ts_ns: int) -> int:
        """The place of the first record that is not before this time."""
        return bisect_left(self.times, ts_ns, self.first)

    def after(self, ts_ns: int) -> int:
        """The place of the first record that is after this time."""
        return bisect_right(self.times, ts_ns, self.first)


def start_cents(symbol: str) -> int:
    """The start price of a symbol: from the table, else from a hash of its name.

    A symbol that the table does not know starts between 5.00 and 499.99, always at the same
    price, whatever the seed.
    """
    known = UNIVERSE.get(symbol)
    if known is not None:
        return known
    digest = hashlib.sha256(symbol.encode()).digest()
    return _LOWEST_CENTS + int.from_bytes(digest[:8], "big") % _RANGE_CENTS


def tape_of(symbol: str) -> str:
    """The tape that reports the symbol: ``C`` Nasdaq, ``B`` Arca, ``A`` New York."""
    if symbol in _NASDAQ:
        return "C"
    return "B" if symbol in _ARCA else "A"


def day_multiplier(moment: float) -> float:
    """The factor of the mean rate at this part of the trading day, 0 to 1.

    About 3.75 at the open, 0.75 at midday and 2.75 at the close; 1 on average.
    """
    return (
        _BASE
        + _OPEN_PEAK * math.exp(-moment / _WIDTH)
        + _CLOSE_PEAK * math.exp((moment - 1) / _WIDTH)
    )


def day_fraction(moment: float) -> float:
    """The fraction of the day's quotes made by then: the multiplier's integral."""
    return (
        _BASE * moment
        + _OPEN_PEAK * _WIDTH * (1 - math.exp(-moment / _WIDTH))
        + _CLOSE_PEAK * _WIDTH * (math.exp((moment - 1) / _WIDTH) - _TAIL)
    )
