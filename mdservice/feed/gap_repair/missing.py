"""The symbols with missing records, and from when to ask history for each. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import attrs

from mdservice.model.kinds import Record
from mdservice.model.symbol import EVERY_SYMBOL

__all__ = ["AcceptedRecords", "Missed", "MissingRecords"]


class AcceptedRecords(Protocol):
    """What the feed needs to know about the accepted records; the sequencer implements it."""

    def complete_until_ns(self) -> int | None:
        """The time up to which records were accepted, UTC nanoseconds.

        Without a record the time of the first subscription, or None before it.
        """
        ...

    def last_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last accepted record, UTC nanoseconds, or None."""
        ...

    def latest(self, symbol: str) -> Record | None:
        """The symbol's last accepted record, or None."""
        ...

    def was_accepted(self, record: Any) -> bool:
        """Whether an equal record was accepted lately."""
        ...

    def is_first(self, symbol: str) -> bool:
        """Whether the symbol's last record is a first price from REST, and the stream sent none."""
        ...

    def symbols(self) -> Sequence[str]:
        """The symbols with an accepted record."""
        ...


@attrs.frozen
class Missed:
    """The symbols to fetch, each from this time on, UTC nanoseconds."""

    since_ns: int
    symbols: Sequence[str]


class MissingRecords:
    """The symbols whose records were lost with a connection, until their repair is reported.

    The time from which records are missing is noted at the loss: the last published record is later
    after a reconnect, and would hide the gap before it.

    Args:
        accepted: The accepted records.
        overlap_s: How long before the last accepted record history is asked from, seconds.
        early_s: How much earlier than its arrival the time of a record may be by its kind, seconds:
            a bar has the time of its start, and a trade may be reported late.
        every: Whether ``*`` is missed and fetched as a symbol is. Otherwise it stands for the
            symbols that were seen.
    """

    def __init__(
        self,
        accepted: AcceptedRecords,
        overlap_s: float = 5.0,
        early_s: float = 0.0,
        *,
        every: bool = False,
    ) -> None:
        self._accepted = accepted
        self._overlap_ns = int(overlap_s * 1e9)
        self.early_ns = int(early_s * 1e9)
        """How much earlier than its arrival the time of a record may be, nanoseconds."""
        self._since_ns: dict[str, int] = {}
        self._every = every
        self._followed_ns: dict[str, int] = {}
        """The subscribed symbols, and the time of subscribing by this machine's clock."""
        self._unrepaired: set[str] = set()
        """The symbols whose last repair was incomplete."""

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._since_ns

    def __len__(self) -> int:
        return len(self._since_ns)

    def symbols(self) -> frozenset[str]:
        """The symbols with missing records."""
        return frozenset(self._since_ns)

    def follow(self, symbols: Iterable[str], now_ns: int) -> None:
        """Replace the subscribed symbols.

        Args:
            symbols: As the feed has acknowledged them.
            now_ns: UTC nanoseconds.
        """
        self._followed_ns = {symbol: self._followed_ns.get(symbol, now_ns) for symbol in symbols}

    def lose(self, symbols: Iterable[str], now_ns: int) -> None:
        """Note that the connection is lost. Symbols that are missing already do not change.

        For a symbol without a record, records are missing that may have come since its
        subscription. Before the first accepted record of any symbol, that holds for all that the
        feed has acknowledged.
        """
        names = set(symbols)
        complete_ns = self._accepted.complete_until_ns()
        if complete_ns is None:
            names &= self._followed_ns.keys()
            complete_ns = min(self._followed_ns.values(), default=now_ns)
        if EVERY_SYMBOL in names and not self._every:
            names.update(self._accepted.symbols())
            names.discard(EVERY_SYMBOL)
        complete_ns -= self._overlap_ns
        for symbol in names:
            since_ns = complete_ns
            last_ns = self._accepted.last_ns(symbol)
            if last_ns is None:
                since_ns = max(since_ns, self._followed_ns.get(symbol, now_ns) - self.early_ns)
            elif symbol in self._unrepaired and last_ns < complete_ns:
                # Rounded to few different times, because each different time needs its own request.
                since_ns = complete_ns - (1 << (complete_ns - last_ns).bit_length())
            self._since_ns.setdefault(symbol, since_ns)

    def back(self, followed: Collection[str], left_out: Collection[str]) -> Sequence[Missed]:
        """The missing symbols that are subscribed again, grouped by the time to fetch from.

        Args:
            followed: The subscribed symbols; ``*`` is every symbol.
            left_out: The unfulfilled symbols. Symbols in neither are no longer wanted; they are
                forgotten.
        """
        every_ns = self._since_ns.get(EVERY_SYMBOL)
        if every_ns is not None and EVERY_SYMBOL not in followed:  # only some are wanted now
            for symbol in followed:
                self._since_ns.setdefault(symbol, every_ns)
        back: dict[int, list[str]] = {}
        for symbol in sorted(self._since_ns):
            if symbol in followed or EVERY_SYMBOL in followed:
                back.setdefault(self._since_ns[symbol], []).append(symbol)
            elif symbol not in left_out:
                del self._since_ns[symbol]
        return [Missed(since_ns, back[since_ns]) for since_ns in sorted(back, reverse=True)]

    def reported(self, missed: Iterable[Missed], complete: Collection[str]) -> None:
        """Note that the repair of these symbols has ended and was reported.

        Args:
            missed: The symbols that were fetched.
            complete: The completely fetched symbols. For the others, the next repair asks from
                their last accepted record on, and so fetches this gap too.
        """
        symbols = {symbol for part in missed for symbol in part.symbols}
        for symbol in symbols:
            self._since_ns.pop(symbol, None)
        self._unrepaired = (self._unrepaired | symbols).difference(complete)
