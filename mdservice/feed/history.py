"""History: past and latest records from REST, and the symbols that it refuses.

A single invalid symbol makes history refuse a whole list. :class:`HalvingHistory` finds that symbol
and sets it aside. All requests for past or latest records go through it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, Protocol

import anyio
import attrs

from mdservice.errors import HistoryRefused, SymbolsRefused
from mdservice.feed.subscriptions import chunks
from mdservice.model.kinds import NEWS, Kind, R
from mdservice.model.symbol import is_symbol
from mdservice.observability.logging import get_logger

__all__ = ["SET_ASIDE_S", "Found", "HalvingHistory", "History"]

_log = get_logger(__name__)

SET_ASIDE_S = 3_600.0
"""How long no request contains a symbol that history has refused, seconds."""
_SYMBOLS_PER_REQUEST = 200
_MOST_RECORDS = 200_000
"""The maximum number of records kept in memory for one call, all requests together."""
_MOST_REFUSALS = 128
"""The maximum number of refused requests in one call. Symbols left by then are not requested."""
_MOST_REFUSALS_AT_FIRST = 3
"""Times the depth of the halving: after so many refusals and no success, the search stops."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*")


class History(Protocol):
    """Past records of the feed that the connection streams.

    Attributes:
        rows_skipped: The number of rows in all its answers that could not be read.
    """

    rows_skipped: int

    async def past(
        self, kind: Kind[R], symbols: Sequence[str], start_ns: int, end_ns: int
    ) -> Sequence[R]:
        """All records of these symbols from start to end, both included, UTC nanoseconds.

        In the order of their times within each symbol; ``seq`` is 0.

        Raises:
            SymbolsRefused: It refused the request, maybe for one of the symbols.
            HistoryRefused: It has no history for this kind, feed, time or plan, or none for a
                while.
            HistoryUnavailable: It did not answer. A retry may help.
        """
        ...

    async def latest(self, kind: Kind[R], symbols: Sequence[str]) -> Sequence[R]:
        """The newest record of each symbol; symbols without one are omitted.

        Raises:
            SymbolsRefused, HistoryRefused, HistoryUnavailable
        """
        ...


@attrs.frozen
class Found(Generic[R]):
    """The answer of history to one call.

    Attributes:
        records: The records of all symbols that it did not refuse.
        refused: The symbols that history refused now, or that were set aside and not requested,
            with the reason.
    """

    records: Sequence[R]
    refused: Mapping[str, str]


@attrs.define
class _Call(Generic[R]):
    """One call, which may take several requests."""

    found: list[R] = attrs.field(factory=list)
    refused: dict[str, str] = attrs.field(factory=dict)
    suspects: dict[str, str] = attrs.field(factory=dict)
    """The symbols refused in a request of their own before any request has succeeded."""
    most_at_first: int = 0
    succeeded: bool = False
    refusals: int = 0


class HalvingHistory(Generic[R]):
    """The history of one kind, in which a refused symbol does not affect the others.

    It halves a refused list until it finds the symbols that cause the refusal, and sets them aside:
    for :data:`SET_ASIDE_S` no request contains them. If every half is refused too, the symbols are
    not the reason, and the search stops.

    Args:
        history: The history to ask.
        kind: The kind of the records.

    Attributes:
        symbols_refused: How often a symbol was set aside.
        decode_errors: Records that were dropped because their symbol is invalid.
        unfollowed: Records that were dropped because their symbol was not requested.
    """

    def __init__(self, history: History, kind: Kind[R]) -> None:
        self.symbols_refused = 0
        self.decode_errors = 0
        self.unfollowed = 0
        self._history = history
        self._kind = kind
        self._set_aside: dict[str, tuple[float, str]] = {}
        """The end of each symbol's time, by the event loop's clock, and the reason."""
        self._warned: set[str] = set()

    @property
    def set_aside(self) -> Mapping[str, str]:
        """The symbols that history refuses, with the reason."""
        return {symbol: self._set_aside[symbol][1] for symbol in sorted(self._set_aside)}

    def forget(self, symbols: Iterable[str]) -> None:
        """No longer set these symbols aside, because they were unsubscribed."""
        for symbol in symbols:
            self._set_aside.pop(symbol, None)
            self._warned.discard(symbol)

    async def past(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> Found[R]:
        """See :meth:`History.past`.

        Raises:
            HistoryRefused: Everything was refused.
            HistoryUnavailable: It did not answer; worth another try.
        """

        async def ask(some: Sequence[str]) -> Sequence[R]:
            return await self._history.past(self._kind, some, start_ns, end_ns)

        return await self._call(symbols, ask)

    async def latest(self, symbols: Sequence[str]) -> Found[R]:
        """See :meth:`History.latest`.

        Raises:
            HistoryRefused: Everything was refused.
            HistoryUnavailable: It did not answer; worth another try.
        """

        async def ask(some: Sequence[str]) -> Sequence[R]:
            return await self._history.latest(self._kind, some)

        return await self._call(symbols, ask)

    async def _call(
        self, symbols: Sequence[str], ask: Callable[[Sequence[str]], Awaitable[Sequence[R]]]
    ) -> Found[R]:
        now_s = anyio.current_time()
        call: _Call[R] = _Call()
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
        call: _Call[R],
        symbols: list[str],
        ask: Callable[[Sequence[str]], Awaitable[Sequence[R]]],
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
            if len(call.found) > _MOST_RECORDS:
                raise HistoryRefused(f"more than {_MOST_RECORDS} {self._kind.channel} are too many")

    def _asked_for(self, records: Sequence[R], symbols: frozenset[str]) -> list[R]:
        if self._kind is NEWS:
            return list(records)  # an article may be about several symbols
        kept = [record for record in records if record.symbol in symbols]
        if len(kept) < len(records):
            dropped = [record.symbol for record in records if record.symbol not in symbols]
            invalid = sum(not is_symbol(symbol) for symbol in dropped)
            self.decode_errors += invalid
            self.unfollowed += len(dropped) - invalid
        return kept

    def _narrow_down(
        self, call: _Call[R], some: Sequence[str], refusal: SymbolsRefused, todo: list[list[str]]
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

    def _put_aside(self, call: _Call[R], symbol: str, reason: str) -> None:
        call.refused[symbol] = reason
        self._set_aside[symbol] = anyio.current_time() + SET_ASIDE_S, reason
        self.symbols_refused += 1
        if symbol not in self._warned:
            self._warned.add(symbol)
            _log.warning("history_refuses_symbol", symbol=symbol, reason=reason)
