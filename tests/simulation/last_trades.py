"""Last trades in the simulation: another service publishes them, and what a gateway knows of them.

Some are canceled or corrected, come late, or are no last trades by their conditions.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import anyio
import attrs

from mdservice.model.kinds import CANCELS, CORRECTIONS, TRADES, Kind
from mdservice.model.timestamps import new_york_day
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.simulator.assets import asset_of
from tests.pnl.limits_reference import LimitsReference

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["LastLimits", "OtherTrades", "TradesHeard", "counts"]

_EVERY_S: Final = 0.8
_CHANGED: Final = 0.12
_LATE: Final = 0.06
_LATE_NS: Final = 3_000_000_000
_NOT_LAST: Final = frozenset("IW7")
_STOCK_CONDITIONS: Final = (
    *[("@",)] * 8,
    *(("@", "F"), ("@", "I"), ("@", "I"), ("W",), ("@", "7")),
)


def counts(trade: Trade) -> bool:
    """Whether it is a last trade by its conditions, of those that are made here."""
    return trade.tape is None or _NOT_LAST.isdisjoint(trade.conditions)


class OtherTrades:
    """Publishes trades, and what changes them, as another service does."""

    def __init__(self, world: World, symbols: Sequence[str]) -> None:
        self._world = world
        self._symbols = symbols
        self._rng = random.Random(f"{world.plan.seed}/last trades")
        self._cents = {symbol: int(asset_of(symbol).start_price * 100) for symbol in symbols}
        self._kept: dict[str, list[Trade]] = defaultdict(list)
        self._seqs = {symbol: count(1) for symbol in symbols}
        self._changes = count(1)
        self._ids = count(1)

    async def run(self) -> None:
        """Publish until cancelled; nothing while the store refuses."""
        rng, store = self._rng, self._world.store
        while True:
            await anyio.sleep(rng.expovariate(1 / _EVERY_S))
            if store.down or store.refusal is not None:
                continue
            symbol = rng.choice(self._symbols)
            if rng.random() < _CHANGED and asset_of(symbol).asset_class == "us_equity":
                self._change(symbol)
            else:
                self._trade(symbol)

    def _trade(self, symbol: str) -> None:
        rng, now_ns = self._rng, self._world.market_clock.utc_ns()
        step = max(1, self._cents[symbol] // 500)
        self._cents[symbol] = cents = max(5, self._cents[symbol] + rng.randrange(-step, step + 1))
        is_stock = asset_of(symbol).asset_class == "us_equity"
        is_option = asset_of(symbol).asset_class == "us_option"
        trade = Trade(
            symbol,
            cents / 100,
            1,
            "V" if is_stock else "C" if is_option else None,
            rng.choice(_STOCK_CONDITIONS) if is_stock else ("a",) if is_option else (),
            "C" if is_stock else None,
            None if is_option else next(self._ids),
            now_ns - (_LATE_NS if rng.random() < _LATE else 0),
            now_ns,
            next(self._seqs[symbol]),
        )
        self._kept[symbol].append(trade)
        self._put(symbol, TRADES, trade)

    def _change(self, symbol: str) -> None:
        kept, now_ns = self._kept[symbol], self._world.market_clock.utc_ns()
        if not kept:
            return
        place = self._rng.choice((len(kept) - 1, self._rng.randrange(len(kept))))
        trade, seq = kept[place], next(self._changes)
        where = symbol, trade.exchange, trade.tape
        was = trade.id, trade.price, trade.size
        if self._rng.random() < 0.5:
            del kept[place]
            self._put(symbol, CANCELS, Cancel(*where, *was, "cancel", now_ns, now_ns, seq))
            return
        right = attrs.evolve(trade, id=next(self._ids), price=trade.price + 1)
        kept[place] = right
        change = Correction(
            *(*where, *was, trade.conditions, right.id, right.price, right.size),
            *(right.conditions, now_ns, now_ns, seq),
        )
        self._put(symbol, CORRECTIONS, change)

    def _put(self, symbol: str, kind: Kind[Any], record: Any) -> None:
        newest = max(reversed(self._kept[symbol]), key=_event_ns, default=None)
        self._world.store.put_change(kind, record, TRADES, symbol, newest)


class TradesHeard:
    """What one gateway was told of trades, read slowly."""

    def __init__(self) -> None:
        self.standing: dict[str, list[Trade]] = defaultdict(list)
        self.heard_ns: dict[str, int] = {}
        self.gone: set[str] = set()
        """Symbols whose key was gone, and of which no trade came since."""

    def take(self, record: Any, now_ns: int) -> None:
        """An event, or a key that was read at the start."""
        match record:
            case Trade():
                self._add(record, now_ns)
            case Cancel():
                self._replace(record, record.id, lambda _: None)
            case Correction():
                self._replace(record, record.original_id, lambda trade: _corrected(trade, record))

    def take_key(self, symbol: str, trade: Trade | None, now_ns: int) -> None:
        """A key that was asked for: newer trades were canceled."""
        if self.heard_ns.get(symbol, 0) >= now_ns:
            return
        if trade is None:
            self.gone.add(symbol)
            return
        known = self.standing[symbol]
        while known:
            newest = max(reversed(known), key=_event_ns)
            if not (newest.ts_event_ns > trade.ts_event_ns and newest.seq > trade.seq):
                break
            known.remove(newest)
        self._add(trade, now_ns)

    def _add(self, trade: Trade, now_ns: int) -> None:
        self.heard_ns[trade.symbol] = now_ns
        self.gone.discard(trade.symbol)
        same = trade.ts_event_ns, trade.seq
        known = [
            each for each in self.standing[trade.symbol] if (each.ts_event_ns, each.seq) != same
        ]
        self.standing[trade.symbol] = [*known, trade] if counts(trade) else known

    def _replace(
        self, change: Any, trade_id: object, right: Callable[[Trade], Trade | None]
    ) -> None:
        meant = trade_id, change.exchange, change.tape, new_york_day(change.ts_event_ns)
        found = []
        for trade in self.standing[change.symbol]:
            mine = trade.id, trade.exchange, trade.tape, new_york_day(trade.ts_event_ns)
            becomes = right(trade) if mine == meant else trade
            if becomes is not None and counts(becomes):
                found.append(becomes)
        self.standing[change.symbol] = found


class LastLimits(LimitsReference):
    """Limits that are judged by last trades."""

    def usable(self, symbol: str) -> bool:
        return self.is_closed(symbol) or (
            self.book.mark(symbol) is not None and self.book.young(symbol, self.now_ns)
        )


def _corrected(trade: Trade, change: Correction) -> Trade:
    assert change.corrected_price is not None
    return attrs.evolve(
        trade,
        id=change.corrected_id,
        price=change.corrected_price,
        conditions=change.corrected_conditions,
    )


def _event_ns(trade: Trade) -> int:
    return trade.ts_event_ns
