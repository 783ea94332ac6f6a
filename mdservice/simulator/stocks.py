"""The market of US stocks: its kinds of records, the source of them, and its REST history."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.feeds import STOCKS
from mdservice.simulator.http import Answer
from mdservice.simulator.kinds import Batch, Records, SimKind, SimMarket, Source
from mdservice.simulator.rest_history import (
    RestRules,
    answer_history,
    answer_latest,
    parse_history,
    parse_latest,
    quote_row,
)
from mdservice.simulator.wire import SimQuote, encode_quotes

__all__ = ["QUOTES", "STOCK_MARKET", "StockSource"]

QUOTES: Final[SimKind[SimQuote]] = SimKind(STOCKS, "quotes", encode_quotes)


class StockSource:
    """Makes the quotes of the followed symbols.

    Args:
        config: Seed, rate and shape of the market.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self._market = config.market()
        self._silent = config.silent_symbols

    @property
    def symbols(self) -> Collection[str]:
        """The followed symbols."""
        return self._market.symbols

    def follow(self, wanted: Mapping[str, AbstractSet[str]]) -> None:
        """See :meth:`mdservice.simulator.kinds.Source.follow`."""
        self._market.follow(frozenset().union(*wanted.values()), without=self._silent)

    def make(self, elapsed_s: float, now_ns: int) -> Iterable[Batch]:
        """See :meth:`mdservice.simulator.kinds.Source.make`."""
        quotes = self._market.take(self._market.due(elapsed_s), now_ns)
        if quotes:
            yield QUOTES, quotes


def _source(config: SimulatorConfig, _records: Records) -> Source | None:
    return StockSource(config) if config.rate else None


def _routes(records: Records, rules: RestRules) -> Mapping[str, Answer]:
    quotes = records[QUOTES]
    return {
        "/v2/stocks/quotes": lambda call: answer_history(
            quotes, parse_history(call.params, rules, call.now_ns), "quotes", quote_row
        ),
        "/v2/stocks/quotes/latest": lambda call: answer_latest(
            quotes, parse_latest(call.params, rules), "quotes", quote_row
        ),
    }


STOCK_MARKET: Final = SimMarket((QUOTES,), _source, _routes)
