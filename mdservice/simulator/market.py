"""The whole market: how many quotes are due, of which symbols, at what times.

Pure: elapsed time and the clock's time are arguments.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate
from typing import Literal

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.simulator.prices import PriceWalk
from mdservice.simulator.universe import UNIVERSE
from mdservice.simulator.wire import SimQuote

__all__ = ["Market", "Shape", "day_fraction", "day_multiplier"]

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


def day_multiplier(moment: float) -> float:
    """By what the mean rate is multiplied at this part of the trading day, 0 to 1.

    About 3.75 at the open, 0.75 at midday and 2.75 at the close; 1 on average.
    """
    return (
        _BASE
        + _OPEN_PEAK * math.exp(-moment / _WIDTH)
        + _CLOSE_PEAK * math.exp((moment - 1) / _WIDTH)
    )


def day_fraction(moment: float) -> float:
    """Which part of the day's quotes has come by then: the multiplier's integral, 0 to 1."""
    return (
        _BASE * moment
        + _OPEN_PEAK * _WIDTH * (1 - math.exp(-moment / _WIDTH))
        + _CLOSE_PEAK * _WIDTH * (math.exp((moment - 1) / _WIDTH) - _TAIL)
    )


class Market:
    """Makes the quotes of the symbols that somebody follows.

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
        zero_side_ratio: Which part of the quotes lacks one side.
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
        """Those followed, the busiest first."""
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
