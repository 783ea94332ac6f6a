"""Of which symbols records are missing, and from when history is to be asked for them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import attrs

from mdservice.model.symbol import EVERY_SYMBOL

__all__ = ["AcceptedRecords", "Missed", "MissingRecords"]


# What the feed's side has to know of the records that are out already.


class AcceptedRecords(Protocol):
    """The accepted records, read while they grow."""

    def complete_until_ns(self) -> int | None:
        """Up to when what was received is out, UTC nanoseconds; None where nothing is."""
        ...

    def last_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last accepted record, UTC nanoseconds, or None."""
        ...

    def is_first(self, symbol: str) -> bool:
        """Whether its last record was fetched on subscribing: the stream has brought none since."""
        ...

    def symbols(self) -> Sequence[str]:
        """Those that have an accepted record."""
        ...


_OVERLAP_NS = 5_000_000_000
"""History is asked from this long before the last accepted record."""


@attrs.frozen
class Missed:
    """Of these symbols everything from this time on is to be fetched, UTC nanoseconds."""

    since_ns: int
    symbols: Sequence[str]


class MissingRecords:
    """Notes what was followed when a connection was lost, until its repair has been told.

    The time is taken at the loss: records that go out later hide nothing of what came before them.

    Args:
        accepted: The records that are out.
    """

    def __init__(self, accepted: AcceptedRecords) -> None:
        self._accepted = accepted
        self._since_ns: dict[str, int] = {}
        self._followed_ns: dict[str, int] = {}
        """What is followed now, and since when by this machine's clock."""
        self._unrepaired: set[str] = set()
        """Symbols whose last repair did not bring all."""

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._since_ns

    def __len__(self) -> int:
        return len(self._since_ns)

    def symbols(self) -> frozenset[str]:
        """Those of which records are missing."""
        return frozenset(self._since_ns)

    def follow(self, symbols: Iterable[str], now_ns: int) -> None:
        """These are followed now, all of them.

        Args:
            symbols: As the feed has acknowledged them.
            now_ns: UTC nanoseconds.
        """
        self._followed_ns = {symbol: self._followed_ns.get(symbol, now_ns) for symbol in symbols}

    def lose(self, symbols: Iterable[str], now_ns: int) -> None:
        """These are followed no longer; of those that are missing already nothing changes.

        Of a symbol without any record nothing is missing from before it was followed. Before any
        record of all is out, nothing is known to be missing.
        """
        complete_ns = self._accepted.complete_until_ns()
        if complete_ns is None:
            return
        names = set(symbols)
        if EVERY_SYMBOL in names:
            names.update(self._accepted.symbols())
        complete_ns -= _OVERLAP_NS
        for symbol in names - {EVERY_SYMBOL}:
            since_ns = complete_ns
            last_ns = self._accepted.last_ns(symbol)
            if last_ns is None:
                since_ns = max(since_ns, self._followed_ns.get(symbol, now_ns))
            elif symbol in self._unrepaired and last_ns < complete_ns:
                # One request asks for many symbols from one time: the quiet time is rounded up.
                since_ns = complete_ns - (1 << (complete_ns - last_ns).bit_length())
            self._since_ns.setdefault(symbol, since_ns)

    def back(self, followed: Collection[str], left_out: Collection[str]) -> Sequence[Missed]:
        """What is to be fetched of the symbols that are back.

        Args:
            followed: The symbols whose records come; ``*`` is every one.
            left_out: Those that are wanted and still do not; all others are wanted no longer.
        """
        back: dict[int, list[str]] = {}
        for symbol in sorted(self._since_ns):
            if symbol in followed or EVERY_SYMBOL in followed:
                back.setdefault(self._since_ns[symbol], []).append(symbol)
            elif symbol not in left_out:
                del self._since_ns[symbol]
        return [Missed(since_ns, back[since_ns]) for since_ns in sorted(back, reverse=True)]

    def told(self, missed: Iterable[Missed], complete: Collection[str]) -> None:
        """The repair of these has ended and was reported.

        Args:
            missed: What was to be fetched.
            complete: The symbols of which all was fetched. For the others a later repair asks from
                their last accepted record, which may be older than the next loss.
        """
        symbols = {symbol for part in missed for symbol in part.symbols}
        for symbol in symbols:
            self._since_ns.pop(symbol, None)
        self._unrepaired = (self._unrepaired | symbols).difference(complete)
