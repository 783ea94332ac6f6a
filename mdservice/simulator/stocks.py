"""The market of US stocks: its kinds of records, and the source of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Literal

import msgspec

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.simulator.bars import SimBar
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.feeds import STOCKS
from mdservice.simulator.http import Answer
from mdservice.simulator.kinds import Batch, Records, SimKind, SimMarket
from mdservice.simulator.rest_history import RestRules
from mdservice.simulator.rest_stocks import stock_routes, valid_trade
from mdservice.simulator.stock_records import (
    SimCancel,
    SimCorrection,
    SimImbalance,
    SimLimits,
    SimStatus,
    SimTrade,
    encode_bars,
    encode_cancels,
    encode_corrections,
    encode_daily_bars,
    encode_imbalances,
    encode_limits,
    encode_statuses,
    encode_trades,
    encode_updated_bars,
)
from mdservice.simulator.tape import Made, Tape, cancel_of
from mdservice.simulator.wire import SimQuote, encode_quotes

__all__ = [
    "BARS",
    "CANCELS",
    "CORRECTIONS",
    "DAILY_BARS",
    "IMBALANCES",
    "LULDS",
    "QUOTES",
    "STATUSES",
    "STOCK_MARKET",
    "TRADES",
    "UPDATED_BARS",
    "StockSource",
]


def _keep_corrections(records: Records, corrections: Sequence[SimCorrection]) -> None:
    for one in corrections:
        changed = _change(records, one.symbol, one.exchange, one.original_id, "incorrect")
        if changed is not None:
            right = msgspec.structs.replace(
                changed,
                id=one.corrected_id,
                price=one.corrected_price,
                size=one.corrected_size,
                conditions=one.corrected_conditions,
                update="corrected",
            )
            records[TRADES].add([right])


def _keep_cancels(records: Records, cancels: Sequence[SimCancel]) -> None:
    for one in cancels:
        _change(records, one.symbol, one.exchange, one.id, "canceled")


def _change(
    records: Records,
    symbol: str,
    exchange: str,
    number: int,
    update: Literal["canceled", "incorrect"],
) -> SimTrade | None:
    """Mark a trade in the history; the trade as it was, None where it is not there."""
    return records[TRADES].amend(
        symbol,
        lambda trade: trade.id == number and trade.exchange == exchange,
        lambda trade: msgspec.structs.replace(trade, update=update),
    )


def _keep_updated_bars(records: Records, bars: Sequence[SimBar]) -> None:
    for bar in bars:
        records[BARS].replace(bar)


def _keep_daily_bars(records: Records, bars: Sequence[SimBar]) -> None:
    for bar in bars:
        records[DAILY_BARS].replace(bar)


QUOTES: Final[SimKind[SimQuote]] = SimKind(STOCKS, "quotes", encode_quotes)
TRADES: Final[SimKind[SimTrade]] = SimKind(STOCKS, "trades", encode_trades)
CORRECTIONS: Final[SimKind[SimCorrection]] = SimKind(
    STOCKS, "corrections", encode_corrections, _keep_corrections
)
CANCELS: Final[SimKind[SimCancel]] = SimKind(STOCKS, "cancelErrors", encode_cancels, _keep_cancels)
BARS: Final[SimKind[SimBar]] = SimKind(STOCKS, "bars", encode_bars)
UPDATED_BARS: Final[SimKind[SimBar]] = SimKind(
    STOCKS, "updatedBars", encode_updated_bars, _keep_updated_bars
)
DAILY_BARS: Final[SimKind[SimBar]] = SimKind(
    STOCKS, "dailyBars", encode_daily_bars, _keep_daily_bars
)
STATUSES: Final[SimKind[SimStatus]] = SimKind(STOCKS, "statuses", encode_statuses)
LULDS: Final[SimKind[SimLimits]] = SimKind(STOCKS, "lulds", encode_limits)
IMBALANCES: Final[SimKind[SimImbalance]] = SimKind(STOCKS, "imbalances", encode_imbalances)
_KINDS = (
    *(QUOTES, TRADES, CORRECTIONS, CANCELS, BARS, UPDATED_BARS, DAILY_BARS),
    *(STATUSES, LULDS, IMBALANCES),
)
_BY_CHANNEL = {kind.channel: kind for kind in _KINDS}


class StockSource:
    """Makes the quotes of the followed symbols, and the tape of those that want more than quotes.

    With a rate of 0 it makes nothing by itself, but halts and changes of trades when asked to.

    Args:
        config: Seed, rates and shape of the market.
        records: What was published.
    """

    def __init__(self, config: SimulatorConfig, records: Records) -> None:
        self._market = config.market()
        self._tape = Tape(config.tape_rules())
        self._records = records
        self._silent = config.silent_symbols
        self._runs = config.rate > 0

    @property
    def symbols(self) -> Collection[str]:
        """The followed symbols."""
        return self._market.symbols

    def follow(self, wanted: Mapping[str, AbstractSet[str]]) -> None:
        """See :meth:`mdservice.simulator.kinds.Source.follow`."""
        if not self._runs:
            return
        self._market.follow(frozenset().union(*wanted.values()), without=self._silent)
        traded: frozenset[str] = frozenset().union(
            *(symbols for channel, symbols in wanted.items() if channel != QUOTES.channel)
        )
        quoted = frozenset(self._market.symbols)
        self._tape.follow(quoted if EVERY_SYMBOL in traded else quoted & traded)

    def make(self, elapsed_s: float, now_ns: int) -> Iterable[Batch]:
        """See :meth:`mdservice.simulator.kinds.Source.make`."""
        quotes = self._market.take(self._market.due(elapsed_s), now_ns)
        if quotes:
            yield QUOTES, quotes
        if self._tape.active:
            yield from _batches(self._tape.make(quotes, now_ns))

    def halt(self, symbol: str, now_ns: int, for_s: float) -> Iterable[Batch]:
        """Halt a symbol that is not halted."""
        return _batches(self._tape.halt(symbol, now_ns, for_s))

    def end_halts(self, now_ns: int, symbol: str | None = None) -> Iterable[Batch]:
        """Resume trading where a halt is over, or in this symbol in any case."""
        return _batches(self._tape.end_halts(now_ns, symbol))

    def change_trade(
        self, symbol: str, what: Literal["correct", "cancel"], now_ns: int
    ) -> Iterable[Batch]:
        """Correct or cancel the symbol's latest trade; nothing where there is none."""
        trade = self._records[TRADES].latest(symbol, valid_trade)
        if trade is None:
            return
        if what == "cancel":
            yield CANCELS, [cancel_of(trade, now_ns)]
            return
        (quote,) = self._records[QUOTES].between(
            symbol, 0, trade.ts_event_ns, most=1, newest_first=True
        ) or (SimQuote(symbol, trade.price, round(trade.price + 0.01, 2)),)
        price = quote.ask if trade.price != quote.ask else quote.bid
        yield CORRECTIONS, [self._tape.correct(trade, price, now_ns)]


def _batches(made: Iterable[Made]) -> Iterator[Batch]:
    for channel, records in made:
        yield _BY_CHANNEL[channel], records


def _routes(records: Records, rules: RestRules) -> Mapping[str, Answer]:
    return stock_routes(records[QUOTES], records[TRADES], records[BARS], records[DAILY_BARS], rules)


STOCK_MARKET: Final = SimMarket(_KINDS, StockSource, _routes)
