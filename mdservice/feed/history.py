"""Where the quotes come from that a lost connection has missed, and what is refused there.

One symbol that history does not take makes it refuse a whole list.
:class:`HalvingHistory` finds that symbol and sets it aside; everything that asks for past or
latest quotes asks through it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import anyio
import attrs

from mdservice.errors import HistoryRefused, SymbolsRefused
from mdservice.feed.subscriptions import chunks
from mdservice.model.quote import Quote
from mdservice.model.symbol import is_symbol
from mdservice.observability.logging import get_logger

__all__ = ["SET_ASIDE_S", "Found", "HalvingHistory", "QuoteHistory"]

_log = get_logger(__name__)

SET_ASIDE_S = 3_600.0
"""A symbol that history refused is left out of requests for so long."""
_SYMBOLS_PER_REQUEST = 200
_MOST_QUOTES = 200_000
"""What is kept in memory of one answer, all requests together."""
_MOST_REFUSALS = 128
"""Refused requests of one call; symbols that are not found by then are not asked for."""
_MOST_REFUSALS_AT_FIRST = 3
"""Times the depth of the halving: so many refusals, and no success, show another reason."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*")


class QuoteHistory(Protocol):
    """Past quotes of the feed that the connection streams.

    Attributes:
        rows_skipped: Rows of its answers that were no quotes, since it was made.
    """

    rows_skipped: int

    async def quotes(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> Sequence[Quote]:
        """All quotes of these symbols from start to end, both included, UTC nanoseconds.

        In the order of their times within each symbol; ``seq`` is 0.

        Raises:
            SymbolsRefused: It refused the request, maybe for one of the symbols.
            HistoryRefused: It has no history for this feed, time or plan, or none for a while.
            HistoryUnavailable: It did not answer; worth another try.
        """
        ...

    async def latest(self, symbols: Sequence[str]) -> Sequence[Quote]:
        """The newest quote of each symbol; symbols without one are left out.

        Raises:
            SymbolsRefused, HistoryRefused, HistoryUnavailable
        """
        ...


@attrs.frozen
class Found:
    """What history answered.

    Attributes:
        quotes: Of all symbols that it did not refuse.
        refused: The symbols that were not asked for, or refused, with the reason.
    """

    quotes: Sequence[Quote]
    refused: Mapping[str, str]


@attrs.define
class _Call:
    """One call, which may take several requests."""

    found: list[Quote] = attrs.field(factory=list)
    refused: dict[str, str] = attrs.field(factory=dict)
    suspects: dict[str, str] = attrs.field(factory=dict)
    """Refused alone, before any request of this call has succeeded."""
    most_at_first: int = 0
    succeeded: bool = False
    refusals: int = 0


class HalvingHistory:
    """A history in which a refused symbol costs only itself.

    A refused list is halved until the symbols in the way are found. They are set aside for
    :data:`SET_ASIDE_S`: until then no request contains them. Where every half is refused too, the
    symbols are not the reason, and the search stops.

    Args:
        history: What is asked.

    Attributes:
        symbols_refused: How often a symbol was set aside.
        unfollowed: Quotes that were dropped since their symbol was not asked for.
    """

    def __init__(self, history: QuoteHistory) -> None:
        self.symbols_refused = 0
        self._invalid = 0
        self.unfollowed = 0
        self._history = history
        self._set_aside: dict[str, tuple[float, str]] = {}
        """Until when by the event loop's clock, and why."""
        self._warned: set[str] = set()

    @property
    def decode_errors(self) -> int:
        """Rows that were dropped since they are no quotes, or their symbol is none."""
        return self._history.rows_skipped + self._invalid

    @property
    def set_aside(self) -> Mapping[str, str]:
        """The symbols that history refuses, with the reason."""
        return {symbol: self._set_aside[symbol][1] for symbol in sorted(self._set_aside)}

    def forget(self, symbols: Iterable[str]) -> None:
        """These are followed no longer: when they are again, they are asked for again."""
        for symbol in symbols:
            self._set_aside.pop(symbol, None)
            self._warned.discard(symbol)

    async def quotes(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> Found:
        """See :meth:`QuoteHistory.quotes`.

        Raises:
            HistoryRefused: Everything was refused.
            HistoryUnavailable: It did not answer; worth another try.
        """

        async def ask(some: Sequence[str]) -> Sequence[Quote]:
            return await self._history.quotes(some, start_ns, end_ns)

        return await self._call(symbols, ask)

    async def latest(self, symbols: Sequence[str]) -> Found:
        """See :meth:`QuoteHistory.latest`.

        Raises:
            HistoryRefused: Everything was refused.
            HistoryUnavailable: It did not answer; worth another try.
        """
        return await self._call(symbols, self._history.latest)

    async def _call(
        self, symbols: Sequence[str], ask: Callable[[Sequence[str]], Awaitable[Sequence[Quote]]]
    ) -> Found:
        now_s = anyio.current_time()
        call = _Call()
        asked: list[str] = []
        again: list[str] = []
        for symbol in symbols:
            until_s, reason = self._set_aside.get(symbol, (0.0, ""))
            if until_s > now_s:
                call.refused[symbol] = reason
            else:
                (again if reason else asked).append(symbol)
        # Those whose time is over are asked for last: most often they are refused again.
        for some in (*chunks(asked, _SYMBOLS_PER_REQUEST), *chunks(again, _SYMBOLS_PER_REQUEST)):
            await self._ask_halving(call, some, ask)
        for symbol, reason in call.suspects.items():
            if not call.succeeded and "symbol" not in reason.lower():
                raise SymbolsRefused(reason)
            self._put_aside(call, symbol, reason)
        return Found(call.found, call.refused)

    async def _ask_halving(
        self,
        call: _Call,
        symbols: list[str],
        ask: Callable[[Sequence[str]], Awaitable[Sequence[Quote]]],
    ) -> None:
        todo = [symbols]
        while todo:
            some = todo.pop(0)
            if call.refusals >= _MOST_REFUSALS:
                call.refused |= dict.fromkeys(some, "too many other symbols were refused")
                continue
            try:
                call.found += self._asked_for(await ask(some), frozenset(some))
            except SymbolsRefused as exc:
                todo = self._narrow_down(call, some, exc, todo)
            else:
                call.succeeded = True
                for symbol in some:
                    self._set_aside.pop(symbol, None)
            if len(call.found) > _MOST_QUOTES:
                raise HistoryRefused(f"more than {_MOST_QUOTES} quotes are too many")

    def _asked_for(self, quotes: Sequence[Quote], symbols: frozenset[str]) -> list[Quote]:
        kept = [quote for quote in quotes if quote.symbol in symbols]
        if len(kept) < len(quotes):
            dropped = [quote.symbol for quote in quotes if quote.symbol not in symbols]
            invalid = sum(not is_symbol(symbol) for symbol in dropped)
            self._invalid += invalid
            self.unfollowed += len(dropped) - invalid
        return kept

    def _narrow_down(
        self, call: _Call, some: Sequence[str], refusal: SymbolsRefused, todo: list[list[str]]
    ) -> list[list[str]]:
        """What to ask for after a list was refused.

        Raises:
            SymbolsRefused: The symbols are not the reason.
        """
        call.refusals += 1
        reason = str(refusal)
        named = set(_WORD.findall(reason)).intersection(some)
        if len(some) == 1:
            if named or call.succeeded:
                self._put_aside(call, some[0], reason)
                return todo
            call.suspects[some[0]] = reason
            return [*todo[-1:], *todo[:-1]]  # far from these, others may be good
        call.most_at_first = call.most_at_first or (
            _MOST_REFUSALS_AT_FIRST * len(some).bit_length()
        )
        if not (call.succeeded or named) and call.refusals > call.most_at_first:
            raise refusal
        others = [symbol for symbol in some if symbol not in named]
        if named and others:
            return [others, *([symbol] for symbol in some if symbol in named), *todo]
        middle = len(some) // 2
        return [list(some[:middle]), list(some[middle:]), *todo]

    def _put_aside(self, call: _Call, symbol: str, reason: str) -> None:
        call.refused[symbol] = reason
        self._set_aside[symbol] = anyio.current_time() + SET_ASIDE_S, reason
        self.symbols_refused += 1
        if symbol not in self._warned:
            self._warned.add(symbol)
            _log.warning("history_refuses_symbol", symbol=symbol, reason=reason)
