"""The gaps of a feed: symbols with missing records, since when, repaired or not. Pure.

::

    lost ──▶ missing ──resumed──▶ gap reported ──filled──▶ repaired, or the gap remains
                ▲  │                     │
                │  └── unfulfilled: stays missing, and is reported when it returns
                └──────── lost again ◀───┘  before it was filled: reported again, from the same time

A gap that is refreshed is reported only when the latest values are out. If the connection is lost
before that, one gap covers both outages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns

__all__ = ["Gaps"]


@attrs.define
class _Gap:
    """A gap that is being repaired or refreshed; ``times`` is how often it was reported."""

    from_ns: int
    to_ns: int
    symbols: frozenset[str]
    times: int = 1

    def details(self, channel: str, **more: Any) -> dict[str, Any]:
        return {
            "channel": channel,
            "from": format_ns(self.from_ns),
            "to": format_ns(self.to_ns),
            "symbols": sorted(self.symbols),
            **more,
        }


class Gaps:
    """Keeps track of the gaps of one kind of record, and makes their messages.

    Args:
        channel: The kind's channel: ``gap_repaired`` has the count of records under this name.
        in_order: Whether records from history that are older than their symbol's last one are
            rejected, so that a gap behind it can no longer be filled.

    Attributes:
        reported: How many gaps were reported.
        repaired: How many of them were repaired.
    """

    def __init__(self, channel: str, *, in_order: bool = True) -> None:
        self._channel = channel
        self._in_order = in_order
        self.reported = 0
        self.repaired = 0
        self._missing: dict[str, int] = {}
        """The missing symbols, with the time of the last accepted record before the loss."""
        self._began: dict[str, int] = {}
        """When the present loss of a symbol began: later than in a gap that was reported before."""
        self._left_out: frozenset[str] = frozenset()
        self._out: dict[str, int] = {}
        """The last record of each symbol that an earlier run has published, where it may be later
        than the gap's begin."""
        self._being_repaired: list[_Gap] = []
        self._being_refreshed: list[_Gap] = []
        self._refreshes = 0
        """How many refreshes are under way."""
        self._unrepaired: set[str] = set()
        """Symbols whose last gap remained although those of other symbols were repaired."""

    def start(
        self, from_ns: int, symbols: Collection[str], last_ns: Callable[[str], int | None]
    ) -> None:
        """Note that the records of these symbols are missing since an earlier run.

        Args:
            from_ns: The time up to which that run had published all, UTC nanoseconds.
            symbols: The symbols that it had subscribed.
            last_ns: Returns the time of a symbol's last record of that run. It may have published
                some later records, but not those of all symbols.
        """
        self.lost(from_ns, symbols)
        self._out = {symbol: last for symbol in symbols if (last := last_ns(symbol)) is not None}

    def since_ns(self) -> int | None:
        """The time from which records are missing that may still be repaired, or None."""
        repairs = (*self._being_repaired, *self._being_refreshed)
        symbols = (self._missing.keys() - self._left_out).union(*(gap.symbols for gap in repairs))
        return min((self._began[symbol] for symbol in symbols), default=None)

    def lost(
        self,
        newest_ns: int | None,
        symbols: Collection[str],
        last_ns: Callable[[str], int | None] = lambda _symbol: None,
        reached_ns: int | None = None,
    ) -> None:
        """Note that the records of these symbols are missing from now on.

        Args:
            newest_ns: The time of the last accepted record of all symbols, UTC nanoseconds; None
                without an accepted record, when nothing is known to be missing.
            symbols: The subscribed symbols.
            last_ns: Returns the time of a symbol's last accepted record. An unrepaired symbol is
                missing from this time, since history may have advanced the other symbols.
            reached_ns: The time that the stream had reached, UTC nanoseconds, if history was ahead
                of it; None if it had come as far as the last accepted record.
        """
        unfinished = (*self._being_repaired, *self._being_refreshed)
        since = {symbol: gap.from_ns for gap in unfinished for symbol in gap.symbols}
        self._being_refreshed = []
        self._refreshes = 0
        for symbol in symbols:
            complete_ns = began_ns = newest_ns
            if newest_ns is not None:
                its_last_ns = last_ns(symbol)
                if reached_ns is not None and (
                    not self._in_order or (its_last_ns or 0) <= reached_ns
                ):
                    complete_ns = began_ns = min(newest_ns, reached_ns)
                if symbol in self._unrepaired:
                    complete_ns = min(newest_ns, its_last_ns or newest_ns)
            from_ns = since.get(symbol, complete_ns)
            if from_ns is not None:
                if symbol not in self._missing and symbol not in since:
                    self._began[symbol] = from_ns if began_ns is None else began_ns
                self._missing.setdefault(symbol, from_ns)

    def resumed(
        self,
        at_ns: int,
        followed: Collection[str],
        left_out: Collection[str],
        last_ns: Callable[[str], int | None],
        *,
        repairing: bool,
        refreshing: bool = False,
    ) -> list[dict[str, Any]]:
        """Report the gaps of symbols whose records come again.

        Args:
            at_ns: The time of the return, UTC nanoseconds.
            followed: The subscribed symbols; ``*`` is every symbol.
            left_out: The unfulfilled symbols. All other symbols are no longer wanted.
            last_ns: Returns the time of a symbol's last accepted record. If one was published since
                the loss, earlier records can no longer be sent in order, and the gap remains.
            repairing: Whether :meth:`filled` will be called.
            refreshing: Whether :meth:`refreshed` will be called, which then reports the gaps.

        Returns:
            The contents of the ``gap`` messages, one for each time from which symbols were missing.
        """
        every_ns = self._missing.get(EVERY_SYMBOL)
        if every_ns is not None and EVERY_SYMBOL not in followed:  # only some are wanted now
            for symbol in followed:
                if symbol not in self._missing:
                    self._missing[symbol] = self._began[symbol] = every_ns
        repairable: dict[int, set[str]] = {}
        too_late: dict[int, set[str]] = {}
        still_missing: dict[str, int] = {}
        for symbol, from_ns in self._missing.items():
            if symbol in followed or EVERY_SYMBOL in followed:
                out_ns = max(from_ns, self._out.get(symbol, 0))
                went_on = self._in_order and (last_ns(symbol) or 0) > out_ns
                (too_late if went_on else repairable).setdefault(from_ns, set()).add(symbol)
            elif symbol in left_out:
                still_missing[symbol] = from_ns
        self._missing = still_missing
        self._left_out = frozenset(still_missing)
        self._out = {symbol: self._out[symbol] for symbol in self._out.keys() & still_missing}
        gaps = _gaps(repairable, at_ns)
        reported = [*_gaps(too_late, at_ns), *gaps]
        if refreshing:
            self._being_refreshed += reported
            self._refreshes += 1
            return []
        self.reported += len(reported)
        if repairing:
            self._replace(gaps)
        return [gap.details(self._channel) for gap in reported]

    def refreshed(self, symbols: Collection[str], failed: Collection[str]) -> list[dict[str, Any]]:
        """Report the gaps whose latest values are out, and those that could not be refreshed.

        Args:
            symbols: The symbols whose latest value is out.
            failed: The symbols whose latest value could not be had.

        Returns:
            The contents of the ``gap`` messages.
        """
        self._refreshes -= 1
        details = []
        waiting = []
        for gap in self._being_refreshed:
            fresh = gap.symbols.intersection(symbols)
            old = gap.symbols - fresh
            if self._refreshes > 0:  # the others are part of another refresh
                old &= frozenset(failed)
                waiting.append(_Gap(gap.from_ns, gap.to_ns, gap.symbols - fresh - old))
            for part, more in ((fresh, {"refreshed": True}), (old, {})):
                if part:
                    one = _Gap(gap.from_ns, gap.to_ns, part)
                    details.append(one.details(self._channel, **more))
        self._being_refreshed = [gap for gap in waiting if gap.symbols]
        self.reported += len(details)
        return details

    def ended(self, at_ns: int, newest_ns: int | None) -> list[dict[str, Any]]:
        """Report gaps that begin before the last accepted record.

        The next run of the service takes what is missing from that record on.

        Args:
            at_ns: The time of the end, UTC nanoseconds.
            newest_ns: The time of the last accepted record, UTC nanoseconds, or None.

        Returns:
            The contents of the ``gap`` messages.
        """
        unreported: dict[int, set[str]] = {}
        for symbol, from_ns in self._missing.items():
            reported = symbol in self._unrepaired
            if newest_ns is not None and newest_ns > from_ns and not reported:
                unreported.setdefault(from_ns, set()).add(symbol)
        gaps = _gaps(unreported, at_ns)
        self.reported += len(gaps)
        return [gap.details(self._channel) for gap in gaps]

    def _replace(self, gaps: list[_Gap]) -> None:
        """Report these again with the next repair, which covers them."""
        before, self._being_repaired = self._being_repaired, gaps
        for old in before:
            again = next((gap for gap in gaps if gap.from_ns == old.from_ns), None)
            if again is not None:
                again.times += old.times

    def brought(self, newest_ns: int | None, symbols: Collection[str]) -> None:
        """Note that late records of an earlier repair were sent, perhaps during the next outage.

        Records before them can no longer be sent in order, so the gaps of their symbols now begin
        here.

        Args:
            newest_ns: The time of the last accepted record now, UTC nanoseconds.
            symbols: The symbols of these records.
        """
        if not self._in_order:
            return
        for symbol in self._missing.keys() & set(symbols):
            self._missing[symbol] = max(self._missing[symbol], newest_ns or 0)
            self._began[symbol] = max(self._began[symbol], self._missing[symbol])

    def late(self, from_ns: int, to_ns: int, symbols: Collection[str]) -> list[dict[str, Any]]:
        """Report that history had records of a repair too late.

        Args:
            from_ns: The time of the last record that was published before, UTC nanoseconds.
            to_ns: The end of the time for which history was asked, UTC nanoseconds.
            symbols: The symbols whose records are, or may be, permanently missing.

        Returns:
            The content of the ``gap`` message; empty if all records could still be sent.
        """
        if not symbols:
            return []
        self.reported += 1
        gap = _Gap(from_ns, to_ns, frozenset(symbols))
        return [gap.details(self._channel, reason="history was late")]

    def filled(
        self,
        until_ns: int,
        newest_ns: int | None,
        counts: Mapping[str, int],
        complete: Collection[str],
    ) -> list[dict[str, Any]]:
        """Report the end of a repair.

        Args:
            until_ns: The time of the end, UTC nanoseconds.
            newest_ns: The time of the last accepted record now.
            counts: The number of repaired records by symbol. Those under ``*``, as of news, are
                counted with the first gap.
            complete: The completely repaired symbols.

        Returns:
            The contents of the ``gap_repaired`` messages; empty if no reported gap is repaired.
        """
        details = []
        of_all = counts.get(EVERY_SYMBOL, 0)
        for gap in self._being_repaired:
            if (
                newest_ns is not None and self._in_order
            ):  # lost again meanwhile: the new gap begins here
                for symbol in gap.symbols.intersection(self._missing):
                    self._missing[symbol] = self._began[symbol] = newest_ns
            repaired = gap.symbols.intersection(complete)
            self._unrepaired = (self._unrepaired | gap.symbols) - repaired
            if not repaired:
                continue
            if repaired == gap.symbols:
                self.repaired += gap.times
            fixed = _Gap(gap.from_ns, max(gap.to_ns, until_ns), repaired)
            count = of_all + sum(counts.get(each, 0) for each in repaired - {EVERY_SYMBOL})
            of_all = 0
            details.append(fixed.details(self._channel, **{self._channel: count}))
        self._being_repaired = []
        return details


def _gaps(symbols: Mapping[int, Collection[str]], at_ns: int) -> list[_Gap]:
    """One gap for each time from which symbols are missing.

    A gap never ends before it begins, even if this machine's clock is behind the exchange's.
    """
    return [
        _Gap(from_ns, max(from_ns, at_ns), frozenset(symbols[from_ns]))
        for from_ns in sorted(symbols)
    ]
